"""Time, memory and interpolation error of one LETKF analysis on large grids.

    python -m benchmarks.speed_letkf                                  256 x 256 cells, strides 1, 2 and 4, one thread
    python -m benchmarks.speed_letkf --sizes 256 512 1024 --strides 1 --threads 2

A smooth random field (Gaussian correlation of standard deviation 10 cells, unit variance) on a plane with periodic
sides, 10 % of the cells observed with errors of 0.3, Gaspari-Cohn support 16 cells. Printed are the least process CPU
time and wall time of several analyses with the same places, those of the first one (which finds the neighbours), the
peak memory of the process so far, and the CPU time over that of nothing but `torch.linalg.eigh` of all N x N matrices
in float64 on one thread, timed in the same run. The error of the weight interpolation is the root-mean-square
difference from the analysis without it, of means and of members, over the spread of that analysis.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from assimilate.filters.local import LETKF
from dynamics.fields import Coordinate, Field
from dynamics.random import Rng, Streams
from dynamics.space import Space
from observations.likelihood import Likelihood, Observation
from observations.noise import GaussianNoise
from observations.sampling import Mask

LENGTH = 10.0
"""Standard deviation in cells of the Gaussian correlation of the field."""
ERROR = 0.3
"""Standard deviation of the observation errors, where that of the field is 1."""


Result = TypeVar("Result")


class AtRest:
    """A plane of `size` x `size` cells with periodic sides on which nothing moves.

    Args:
        size: cells along each side.
    """

    dt = 1.0

    def __init__(self, size: int) -> None:
        sides = {name: Coordinate(np.arange(float(size)), (name,)) for name in ("y", "x")}
        self.space = Space((Field("a", "1", ("y", "x")),), sides, periodic=("y", "x"))

    def prior(
        self,
        shape: tuple[int, ...],
        *,
        rng: Rng,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Smooth Gaussian fields of unit variance."""
        assert isinstance(rng, torch.Generator)
        size = self.space.grid_shape[0]
        wave = torch.fft.fftfreq(size, dtype=torch.float64) * 2 * torch.pi * LENGTH
        # The square root of the spectrum of the correlation exp(-d^2 / (2 length^2)), scaled to unit variance.
        amplitude = torch.exp(-(wave[:, None].square() + wave.square()) / 4)
        amplitude = (amplitude / amplitude.square().mean().sqrt()).to(dtype)
        white = torch.randn(*shape, 1, size, size, generator=rng, dtype=dtype)
        return torch.fft.ifft2(torch.fft.fft2(white) * amplitude).real.to(device)

    def step(self, x: Tensor, time: float, *, rng: Rng | None) -> Tensor:
        """Nothing moves."""
        return x


class Cost(NamedTuple):
    """CPU and wall time in seconds."""

    cpu: float
    wall: float


def problem(size: int, members: int, share: float, dtype: torch.dtype) -> tuple[AtRest, Tensor, Observation]:
    """The system, members `(1, N, 1, size, size)` and an observation of some cells of another draw."""
    rng = torch.Generator().manual_seed(0)
    system = AtRest(size)
    fields = system.prior((1, members + 1), rng=rng, dtype=dtype)
    index = torch.randperm(size**2, generator=rng)[: round(share * size**2)].sort().values
    likelihood = Likelihood(Mask(system.space, index), GaussianNoise(std=ERROR))
    y = likelihood.sample(fields[:, 0], rng=rng)[0]
    return system, fields[:, 1:], Observation(likelihood, y)


def eigh_cost(members: int, cells: int, repeats: int) -> float:
    """CPU time in seconds of eigendecompositions in float64, one matrix for each cell, from a sample of them."""
    sample = min(cells, 2048)
    factor = torch.randn(sample, members, members, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gram = factor @ factor.mT
    return cost(lambda: torch.linalg.eigh(gram), repeats)[1].cpu * cells / sample


def analysis(method: LETKF, members: Tensor, seen: Observation) -> Tensor:
    """Members after one analysis."""
    rng = Streams(0, *members.shape[:2])
    return method.step(method.init(members), seen, 0.0, rng=rng)[0].members


def cost(piece: Callable[[], Result], repeats: int) -> tuple[Cost, Cost, Result]:
    """Time of the first call, the least of `repeats` more, and the last result."""
    times = []
    for _ in range(repeats + 1):
        cpu, wall = time.process_time(), time.perf_counter()
        result = piece()
        times.append(Cost(time.process_time() - cpu, time.perf_counter() - wall))
    return times[0], Cost(min(entry.cpu for entry in times[1:]), min(entry.wall for entry in times[1:])), result


def peak_memory() -> float:
    """Peak resident memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Time the analyses and print them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256])
    parser.add_argument("--strides", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--members", type=int, default=32)
    parser.add_argument("--share", type=float, default=0.1)
    parser.add_argument("--radius", type=float, default=8.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    options = parser.parse_args()
    print(
        f"LETKF, {options.members} members, {options.share:.0%} of cells observed, support {2 * options.radius:g} "
        f"cells, {options.dtype}, {options.threads} thread(s); {peak_memory():.0f} MB before"
    )
    for size in options.sizes:
        system, members, seen = problem(size, options.members, options.share, getattr(torch, options.dtype))
        torch.set_num_threads(1)
        alone = eigh_cost(options.members, size**2, options.repeats)
        torch.set_num_threads(options.threads)
        print(f"{size} x {size}: eigh of all matrices alone {alone:.2f} s CPU")
        print("  stride   CPU s  wall s  first CPU  first wall  us a cell  over eigh  peak MB  error: mean, members")
        exact: Tensor | None = None
        for stride in options.strides:
            method = LETKF(system, options.radius, interpolation=stride)
            first, least, found = cost(partial(analysis, method, members, seen), options.repeats)
            error = ""
            if stride == 1:
                exact = found
            elif exact is not None:
                off = found - exact
                spread = exact.std(1).square().mean().sqrt()
                parts = (off.mean(1), off)
                error = ", ".join(f"{float(part.square().mean().sqrt() / spread):.4f}" for part in parts)
            print(
                f"  {stride:6d} {least.cpu:7.2f} {least.wall:7.2f} {first.cpu:10.2f} {first.wall:11.2f} "
                f"{1e6 * least.cpu / size**2:10.1f} {least.cpu / alone:10.2f} {peak_memory():8.0f}  {error}"
            )


if __name__ == "__main__":
    main()
