r"""Kernel Stein discrepancy: how far samples are from a density of which only the score is needed.

With the target's score s and the inverse multiquadric kernel k(x, z) = (c^2 + |x - z|^2)^(-1/2),

    u(x, z) = s(x).s(z) k + s(x).grad_z k + s(z).grad_x k + tr grad_x grad_z k

has mean 0 over z ~ p for every x, so `mean_ij u(x_i, x_j)` is 0 in the limit for draws of p and grows for anything
else. Samples and scores are first whitened by the posterior's covariance, so that no direction and no unit counts
more than another, and c^2 is the number of dimensions.

n independent draws of p still have the mean `E u(x, x) / n`, from the diagonal. The root of the discrepancy over that
is what is returned: 1 for a perfect sampler, whatever n; for another it grows like the root of n.

References:
    Liu, Lee, Jordan (2016), A kernelized Stein discrepancy for goodness-of-fit tests, https://arxiv.org/abs/1602.03253
    Gorham, Mackey (2017), Measuring sample quality with kernels, https://arxiv.org/abs/1703.01717 (the kernel)
    Qiu, Yang, Liu, Wang, Shen (2026), Beyond accuracy: evaluating posterior fidelity of diffusion inverse solvers,
    https://arxiv.org/abs/2602.04189 (with the score of prior and likelihood, for inverse problems)

Differs from the papers: whitened, and relative to what exact draws of the same number give. Like every local 
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.scorecard.laws import Mixture


def stein_ratio(samples: Tensor, target: Mixture, *, reference: Tensor) -> float:
    """Root of the discrepancy of samples over that of as many exact draws.

    Args:
        samples: `(n, d)`.
        target: the law that they should have.
        reference: exact draws of the target, `(m, d)`, for the discrepancy that chance alone gives.
    """
    root = torch.linalg.cholesky(target.covariance)

    def whitened(x: Tensor) -> tuple[Tensor, Tensor]:
        z = torch.linalg.solve_triangular(root, (x - target.mean).mT, upper=False).mT
        return z, target.score(x) @ root

    scale = float(samples.shape[1])
    chance = stein_diagonal(whitened(reference)[1], scale).mean() / len(samples)
    found = stein_matrix(*whitened(samples), scale).mean()
    return float((found.clamp_min(0) / chance).sqrt())


def stein_matrix(x: Tensor, scores: Tensor, scale: float) -> Tensor:
    """`u(x_i, x_j)` between all pairs, `(n, n)`.

    Args:
        x: `(n, d)`.
        scores: `(n, d)`.
        scale: c^2.
    """
    gaps = torch.cdist(x, x).square()
    q = scale + gaps
    across = scores @ x.mT
    own = (scores * x).sum(-1)
    # (s_j - s_i).(x_i - x_j), from the products of all pairs.
    drift = across.mT + across - own[:, None] - own[None, :]
    divergence = x.shape[1] * q**-1.5 - 3 * gaps * q**-2.5
    return (scores @ scores.mT) * q**-0.5 - drift * q**-1.5 + divergence


def stein_diagonal(scores: Tensor, scale: float) -> Tensor:
    """`u(x_i, x_i)`, `(n,)`."""
    return scores.square().sum(-1) * scale**-0.5 + scores.shape[1] * scale**-1.5
