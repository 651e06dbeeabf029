r"""How right a learned transition is: one step from many states, against the true system.

The mean error is the rms over states of E[x_k | x_{k-1}], learned minus true, with the variance of the sample mean
taken out; the spread is the rms standard deviation, learned over true; the distance is the mean over states of the
Wasserstein-1 distance between the two laws of each component, over the true spread.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dynamics import Dynamics, TransitionDensity
from dynamics.random import Rng


class OneStepErrors(NamedTuple):
    """Errors of one step, one number a value of the event.

    Attributes:
        mean: rms error of the mean, Space units.
        mean_error: standard error of `mean` squared, Space units squared.
        spread: learned over true standard deviation.
        distance: Wasserstein-1 distance over the true standard deviation; None where moments were used.
        floor: the same distance between two samples of the true law: what `distance` is for a perfect transition.
    """

    mean: Tensor
    mean_error: Tensor
    spread: Tensor
    distance: Tensor | None = None
    floor: Tensor | None = None


def one_step_errors(
    learned: Dynamics, true: Dynamics, states: Tensor, *, draws: int, rng: Rng, time: float = 0.0
) -> OneStepErrors:
    """Errors of a learned step against the true system's.

    Args:
        learned: the learned transition.
        true: the true system; its moments are used if it is a `TransitionDensity`, else as many draws.
        states: held-out states `(n, *event)`, Space units.
        draws: draws of the next state from each.
        rng: source of random numbers.
        time: time of the states.
    """
    ours = _draws(learned, states, draws, rng, time)
    mean, variance = ours.mean(0), ours.var(0)
    distance = floor = None
    noise = variance / draws
    if isinstance(true, TransitionDensity):
        true_mean, covariance = true.moments(states, time)
        true_variance = covariance.diagonal().expand(states.shape)
    else:
        theirs = _draws(true, states, draws, rng, time)
        true_mean, true_variance = theirs.mean(0), theirs.var(0)
        noise = noise + true_variance / draws
        again = _draws(true, states, draws, rng, time)
        distance, floor = (_wasserstein(sample, theirs).mean(0) for sample in (ours, again))
    squared = (mean - true_mean).square() - noise
    return OneStepErrors(
        mean=squared.mean(0).clamp_min(0).sqrt(),
        mean_error=squared.std(0) / len(states) ** 0.5,
        spread=(variance.mean(0) / true_variance.mean(0)).sqrt(),
        distance=distance,
        floor=floor,
    )


def _wasserstein(sample: Tensor, reference: Tensor) -> Tensor:
    """Wasserstein-1 distance of two samples of equal size, value by value, over the reference's standard deviation."""
    return (sample.sort(0).values - reference.sort(0).values).abs().mean(0) / reference.std(0)


def _draws(dynamics: Dynamics, states: Tensor, draws: int, rng: Rng, time: float) -> Tensor:
    """`(draws, n, *event)`."""
    with torch.no_grad():
        return torch.stack([dynamics.step(states, time, rng=rng) for _ in range(draws)])
