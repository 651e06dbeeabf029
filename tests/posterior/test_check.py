"""`check_guidance` passes ours and catches what it says it catches."""

from __future__ import annotations

import pytest
import torch

from assimilate.posterior.check import check_guidance
from assimilate.posterior.guidance import DPS, MMPS, SDA, TMPD, JacobianFree, MonteCarlo, PiGDM
from assimilate.posterior.guidance.base import observed_residual
from dynamics.errors import ContractError

OURS = [DPS(), SDA(), PiGDM(), TMPD(), MMPS(iterations=3), JacobianFree(covariance="clean"), MonteCarlo(draws=4)]


@pytest.mark.parametrize("guidance", OURS, ids=repr)
def test_our_guidances_keep_the_contract(guidance):
    report = check_guidance(guidance, samples=200, steps=30)
    if guidance in (OURS[4], OURS[5]):
        # Exact ones: 5 standard errors, plus the step error of 30 Euler-Maruyama steps (measured 0.1).
        assert report.mean_error < 0.1 + 5 / 200**0.5
        assert abs(report.trace_ratio - 1) < 0.25


class Coupled:
    """Divides by a norm over the whole batch, as published codes do."""

    backpropagates = False

    def __call__(self, clean, x, t, context, problem):
        residual = observed_residual(clean.mean @ problem.likelihood.operator.matrix().T, problem)
        step = problem.likelihood.operator.adjoint(residual)
        return clean._replace(mean=clean.mean + 0.01 * step / step.norm())


class Leaky(Coupled):
    """Takes a missing value for a zero."""

    def __call__(self, clean, x, t, context, problem):
        residual = torch.nan_to_num(problem.y) - clean.mean @ problem.likelihood.operator.matrix().T
        return clean._replace(mean=clean.mean + 0.01 * problem.likelihood.operator.adjoint(residual))


def test_broken_guidances_are_caught():
    with pytest.raises(ContractError, match="per sample"):
        check_guidance(Coupled())
    with pytest.raises(ContractError, match="missing value"):
        check_guidance(Leaky())
