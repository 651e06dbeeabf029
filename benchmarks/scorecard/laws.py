r"""Mixtures of Gaussians, as priors and as posteriors: everything about them is known.

    p(x) = sum_k w_k N(x; m_k, C_k)

seen through `y = A x + N(0, R)` becomes the mixture with

    S_k = A C_k A^T + R,     K_k = C_k A^T S_k^-1
    w_k' ~ w_k N(y; A m_k, S_k),     m_k' = m_k + K_k (y - A m_k),     C_k' = C_k - K_k A C_k

A Gaussian is a mixture of one. States are flattened, `(n, d)`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Mixture(NamedTuple):
    """A mixture of Gaussians.

    Attributes:
        weights: `(k,)`, summing to 1.
        means: `(k, d)`.
        covariances: `(k, d, d)`, positive definite.
    """

    weights: Tensor
    means: Tensor
    covariances: Tensor

    @property
    def mean(self) -> Tensor:
        """The mean, `(d,)`."""
        return self.weights @ self.means

    @property
    def covariance(self) -> Tensor:
        """The covariance, `(d, d)`."""
        spread = self.means - self.mean
        within = torch.einsum("k,kij->ij", self.weights, self.covariances)
        return within + torch.einsum("k,ki,kj->ij", self.weights, spread, spread)

    def draw(self, n: int, *, rng: torch.Generator) -> Tensor:
        """Independent draws, `(n, d)`."""
        pick = torch.multinomial(self.weights, n, replacement=True, generator=rng)
        z = torch.randn(n, self.means.shape[1], generator=rng, dtype=self.means.dtype)
        drawn = torch.empty_like(z)
        # Component by component: a root for every draw would not fit into memory on a field.
        for k, root in enumerate(torch.linalg.cholesky(self.covariances)):
            drawn[pick == k] = self.means[k] + z[pick == k] @ root.mT
        return drawn

    def component_log_prob(self, x: Tensor) -> Tensor:
        """Log density of each component without its weight, `(n, k)`."""
        parts = zip(self.means, self.covariances, strict=True)
        return torch.stack([torch.distributions.MultivariateNormal(m, c).log_prob(x) for m, c in parts], -1)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density, `(n,)`."""
        return torch.logsumexp(torch.log(self.weights) + self.component_log_prob(x), -1)

    def score(self, x: Tensor) -> Tensor:
        """Gradient of the log density, `(n, d)`."""
        share = torch.softmax(torch.log(self.weights) + self.component_log_prob(x), -1)
        pulls = [torch.linalg.solve(c, (m - x).mT).mT for m, c in zip(self.means, self.covariances, strict=True)]
        return torch.einsum("nk,knd->nd", share, torch.stack(pulls))

    def nearest(self, x: Tensor) -> Tensor:
        """The component in which each state is most likely, weights aside, `(n,)`."""
        return self.component_log_prob(x).argmax(-1)

    def observed(self, matrix: Tensor, noise: Tensor, y: Tensor) -> Mixture:
        """The posterior after `y = matrix x + N(0, noise)`.

        Args:
            matrix: A, `(m, d)`.
            noise: R, `(m, m)`.
            y: `(m,)`.
        """
        seen = matrix @ self.covariances @ matrix.mT + noise
        gain = torch.linalg.solve(seen, matrix @ self.covariances).mT
        departure = y - self.means @ matrix.mT
        means = self.means + (gain @ departure[..., None]).squeeze(-1)
        covariances = self.covariances - gain @ matrix @ self.covariances
        fit = torch.distributions.MultivariateNormal(self.means @ matrix.mT, seen).log_prob(y)
        weights = torch.softmax(torch.log(self.weights) + fit, 0)
        return Mixture(weights, means, (covariances + covariances.mT) / 2)
