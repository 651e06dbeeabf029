"""A system that does not move, so that a step of a filter is its analysis."""

import torch


class Still:
    """Any Space, at rest."""

    dt = 1.0

    def __init__(self, space):
        self.space = space

    def prior(self, shape, *, rng, dtype=torch.float32, device="cpu"):
        raise NotImplementedError

    def step(self, x, time, *, rng):
        return x
