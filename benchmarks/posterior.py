"""Scorecards of the guidances on posteriors that are known in closed form.

    python -m benchmarks.posterior [--samples 8000] [--levels 400]

Three problems: an anisotropic Gaussian in 6 dimensions with 3 observed combinations, an isotropic Gaussian with an
orthonormal operator, and a mixture of four Gaussians in 2 dimensions with one observed combination. Each guidance is
run with the exact denoiser on a VE path by an ODE sampler (`Heun`) and a stochastic one (`Ancestral`). Scores:

    mean     error of the sample mean in units of the posterior standard deviation, root mean square over dimensions
    trace    trace of the sample covariance over that of the posterior
    sliced   sliced Wasserstein-1 distance between samples and posterior draws, units of the state
    mode     share of samples nearest to the first mode (mixture; exact value beside it)

The expected bands come from the same bench run for the project's design; see `tests/posterior/test_guidance.py`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from assimilate.posterior.condition import Guidance, condition
from assimilate.posterior.guidance import DPS, MMPS, SDA, TMPD, JacobianFree, MonteCarlo, PiGDM
from assimilate.posterior.paths import VE, Interpolant
from assimilate.posterior.paths import Path as GaussianPath
from assimilate.posterior.predictors import Context, GaussianPredictor, MixturePredictor, Predictor
from assimilate.posterior.samplers import Ancestral, EulerMaruyama, Heun, Sampler
from assimilate.posterior.time_grids import ratio_times, uniform_times
from observations.likelihood import Likelihood
from observations.noise import GaussianNoise
from observations.sampling import Matrix


class Problem(NamedTuple):
    """A prior, an observation and the exact posterior, as a mixture of Gaussians (one component for a Gaussian)."""

    weights: Tensor
    means: Tensor
    covariances: Tensor
    likelihood: Likelihood
    y: Tensor

    def predictor(self, path: GaussianPath) -> Predictor:
        """The exact clean mean of the prior on a path."""
        if len(self.weights) == 1:
            return GaussianPredictor(self.covariances[0], path, self.means[0])
        return MixturePredictor(self.weights, self.means, self.covariances, path)

    def posterior(self) -> tuple[Tensor, Tensor, Tensor]:
        """Weights, means and covariances of the posterior mixture."""
        a = self.likelihood.operator.matrix()  # type: ignore[attr-defined]
        noise = self.likelihood.noise.variance(len(a), dtype=a.dtype).diag()  # type: ignore[attr-defined]
        seen = a @ self.covariances @ a.mT + noise
        gain = torch.linalg.solve(seen, a @ self.covariances).mT
        departure = self.y - self.means @ a.mT
        means = self.means + (gain @ departure[..., None]).squeeze(-1)
        covariances = self.covariances - gain @ a @ self.covariances
        fit = torch.distributions.MultivariateNormal(self.means @ a.mT, seen).log_prob(self.y)
        return torch.softmax(torch.log(self.weights) + fit, 0), means, covariances


def gaussian_problem(isotropic: bool = False) -> Problem:
    """The Gaussian problems in 6 dimensions, 3 observed."""
    rng = torch.Generator().manual_seed(1)
    basis = torch.linalg.qr(torch.randn(6, 6, generator=rng, dtype=torch.float64))[0]
    spectrum = torch.ones(6) if isotropic else torch.tensor([2.0, 1.0, 0.5, 0.25, 0.1, 0.05])
    covariance = basis @ torch.diag(spectrum.double()) @ basis.T
    mean = 0.3 * torch.randn(6, generator=rng, dtype=torch.float64)
    matrix = torch.randn(3, 6, generator=rng, dtype=torch.float64) / 6**0.5
    if isotropic:
        matrix = torch.linalg.qr(matrix.T)[0].T.contiguous()
    truth = mean + torch.linalg.cholesky(covariance) @ torch.randn(6, generator=rng, dtype=torch.float64)
    y = matrix @ truth + 0.2 * torch.randn(3, generator=rng, dtype=torch.float64)
    return Problem(
        torch.ones(1, dtype=torch.float64),
        mean[None],
        covariance[None],
        Likelihood(Matrix((6,), matrix), GaussianNoise(0.2)),
        y,
    )


def mixture_problem() -> Problem:
    """Four modes in two dimensions, one observed combination; the posterior keeps two of them."""
    means = torch.tensor([[2.0, 2.0], [2.2, -2.0], [-2.0, 2.0], [-2.0, -2.0]], dtype=torch.float64)
    covariances = 0.15 * torch.eye(2, dtype=torch.float64).expand(4, 2, 2)
    likelihood = Likelihood(Matrix((2,), torch.tensor([[1.0, 0.15]], dtype=torch.float64)), GaussianNoise(0.3))
    return Problem(torch.full((4,), 0.25).double(), means, covariances, likelihood, torch.tensor([2.18]).double())


def sample(
    problem: Problem,
    guidance: Guidance | None,
    sampler: Sampler,
    path: GaussianPath,
    times: Tensor,
    samples: int,
    seed: int,
) -> Tensor:
    """Samples of the guided sampler, `(samples, d)`, float64; an interpolant starts from the origin."""
    rng = torch.Generator().manual_seed(seed)
    d = problem.means.shape[1]
    base = torch.zeros(samples, d, dtype=torch.float64) if isinstance(path, Interpolant) else None
    z = torch.randn(samples, d, generator=rng, dtype=torch.float64)
    c = path.coefficients(times[0], z)
    predictor = problem.predictor(path)
    if guidance is not None:
        predictor = condition(predictor, path, problem.likelihood, problem.y, guidance, event_dims=1, rng=rng)
    return sampler(predictor, path, c.noise * z, times=times, event_dims=1, rng=rng, context=Context(base=base)).x


def scores(problem: Problem, x: Tensor, seed: int = 0) -> dict[str, float]:
    """Mean error, covariance trace ratio, sliced Wasserstein-1 and the share of the first mode."""
    weights, means, covariances = problem.posterior()
    mean = weights @ means
    spread = means - mean
    total = torch.einsum("k,kij->ij", weights, covariances) + torch.einsum("k,ki,kj->ij", weights, spread, spread)
    rng = torch.Generator().manual_seed(seed)
    pick = torch.multinomial(weights, len(x), replacement=True, generator=rng)
    z = torch.randn(len(x), means.shape[1], generator=rng, dtype=torch.float64)
    reference = means[pick] + (torch.linalg.cholesky(covariances)[pick] @ z[..., None]).squeeze(-1)
    directions = torch.nn.functional.normalize(
        torch.randn(means.shape[1], 64, generator=rng, dtype=torch.float64), dim=0
    )
    sliced = ((x @ directions).sort(0).values - (reference @ directions).sort(0).values).abs().mean()
    result = {
        "mean": float(((x.mean(0) - mean) / total.diagonal().sqrt()).square().mean().sqrt()),
        "trace": float(torch.cov(x.T).trace() / total.trace()),
        "sliced": float(sliced),
    }
    if len(weights) > 1:
        nearest = torch.cdist(x, problem.means).argmin(1)
        result["mode"] = float((nearest == 0).double().mean())
        result["mode_exact"] = float(weights[0])
    return result


PROBLEMS = {
    "gaussian": gaussian_problem,
    "isotropic": lambda: gaussian_problem(isotropic=True),
    "mixture": mixture_problem,
}
GUIDANCES: dict[str, Guidance] = {
    "MMPS": MMPS(iterations=3, solver="cg"),
    "TMPD": TMPD(),
    "PiGDM": PiGDM(),
    "SDA 0.01": SDA(gamma=0.01),
    "SDA 0.1": SDA(gamma=0.1),
    "SDA 1": SDA(gamma=1.0),
    "DPS": DPS(),
    "DPS norm 0.1": DPS(form="norm", gain="constant", strength=0.1),
    "DPS norm 0.3": DPS(form="norm", gain="constant", strength=0.3),
    "JacobianFree clean": JacobianFree(covariance="clean"),
    "JacobianFree isotropic": JacobianFree(),
    "MonteCarlo 16": MonteCarlo(draws=16),
}


def run(samples: int, levels: int, seed: int = 0) -> list[dict[str, Any]]:
    """Every guidance on every problem; one row a run."""
    rows: list[dict[str, Any]] = []
    ve, interpolant = VE(smallest=0.002, largest=40.0), Interpolant()
    grid = uniform_times(levels, dtype=torch.float64)
    flow = ratio_times(interpolant, levels, largest=40.0, smallest=0.002, dtype=torch.float64)
    for name, build in PROBLEMS.items():
        problem = build()
        for label, guidance in GUIDANCES.items():
            for kind, sampler in (("ode", Heun()), ("sde", Ancestral())):
                if kind == "ode" and (isinstance(guidance, MonteCarlo) or getattr(guidance, "gain", "") == "constant"):
                    continue
                x = sample(problem, guidance, sampler, ve, grid, samples, seed)
                rows.append({"problem": name, "guidance": label, "path": "VE", "sampler": kind, **scores(problem, x)})
        if name != "mixture":
            for label in ("MMPS", "JacobianFree clean"):
                x = sample(problem, GUIDANCES[label], EulerMaruyama(), interpolant, flow, samples, seed)
                rows.append(
                    {"problem": name, "guidance": label, "path": "interpolant", "sampler": "sde", **scores(problem, x)}
                )
    return rows


def main() -> None:
    """Print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=8000)
    parser.add_argument("--levels", type=int, default=400)
    parser.add_argument("--out", type=Path, default=Path("posterior.json"))
    settings = parser.parse_args()
    rows = run(settings.samples, settings.levels)
    for row in rows:
        numbers = "  ".join(f"{k} {v:.3f}" for k, v in row.items() if isinstance(v, float))
        print(f"{row['problem']:10s} {row['guidance']:24s} {row['path']:12s} {row['sampler']}  {numbers}")
    settings.out.write_text(
        json.dumps({"samples": settings.samples, "levels": settings.levels, "rows": rows}, indent=1)
    )


if __name__ == "__main__":
    main()
