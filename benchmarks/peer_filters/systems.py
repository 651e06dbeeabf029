r"""The systems on which public filters and ours are compared, and the settings of both.

Each comparison names a method of ours and the peer's own settings for the same algorithm.

References:
    Sakov, Oliver, Bertino (2012), An iterative EnKF for strongly nonlinear systems,
    https://doi.org/10.1175/MWR-D-11-00184.1 (`lorenz63`)
    Sakov, Oke (2008), A deterministic formulation of the ensemble Kalman filter,
    https://doi.org/10.1111/j.1600-0870.2007.00299.x (`lorenz96`)
    The settings of the methods on both are the tables in the source of DAPPER 1.7.1,
    https://github.com/nansencenter/DAPPER; see the cards `published-lorenz63` and `published-lorenz96`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from assimilate.filters.ensemble import ETKF, EnKF
from assimilate.filters.kalman import KalmanFilter
from assimilate.filters.local import LETKF
from assimilate.filters.particle import BootstrapFilter
from assimilate.filters.unscented_kalman import UnscentedKalmanFilter
from benchmarks.peer_filters.problems import Comparison, Problem
from dynamics.covariance import FullCovariance
from dynamics.linear import LinearGaussian
from dynamics.lorenz import FLOWDAS_SCALE, Lorenz63, Lorenz96
from observations.likelihood import Likelihood
from observations.noise import GaussianNoise
from observations.nonlinear import Arctan
from observations.sampling import Identity, Matrix, Select

START = (1.509, -1.531, 25.46)
"""Mean of the prior on Lorenz-63, Sakov et al. (2012); its covariance is 2 I."""
GASPARI_COHN = 1.82
"""Our radius over DAPPER's `loc_rad`, at which its taper is exp(-1/2)."""


@dataclass(frozen=True)
class KnownStart(Lorenz63):
    """Lorenz-63 that tells the moments of its prior, for filters that start from a Gaussian law."""

    def prior_moments(
        self, *, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
    ) -> tuple[Tensor, FullCovariance]:
        """Mean `(3,)` and covariance."""
        mean = torch.tensor(self.prior_mean, dtype=dtype, device=device)
        return mean, FullCovariance(torch.tensor(self.prior_covariance, dtype=dtype, device=device), (3,))


def problems() -> tuple[Problem, ...]:
    """All systems with their comparisons."""
    return _lorenz63(), _lorenz96(), _arctan(), _noisy(), _ring()


def _lorenz63() -> Problem:
    system = _system(dt=0.01, noise_std=0.0)
    return Problem(
        "lorenz63",
        "Lorenz-63, all three variables every 25 steps of 0.01, noise variance 2",
        system,
        Likelihood(Identity(system.space), GaussianNoise(std=2**0.5)),
        *_start(system),
        (
            Comparison("EnKF, 10 members", EnKF(system, inflation=1.04), 10, *_dapper("EnKF", "PertObs", 10, 1.04)),
            Comparison(
                "ETKF, 10 members",
                ETKF(system, inflation=1.02, rotate=True),
                10,
                *_dapper("EnKF", "Sqrt", 10, 1.02, rot=True),
            ),
        ),
        cycles=1000,
        burn_in=64,
        every=25,
    )


def _lorenz96() -> Problem:
    size, variance = 40, 0.001
    mean = np.eye(size)[0]
    system = Lorenz96(size, prior_mean=tuple(mean.tolist()), prior_std=variance**0.5)
    local = LETKF(system, radius=4 * GASPARI_COHN, inflation=1.04, rotate=True)
    return Problem(
        "lorenz96",
        "Lorenz-96 with 40 variables, all seen every step of 0.05, noise variance 1",
        system,
        Likelihood(Identity(system.space), GaussianNoise(std=1.0)),
        mean,
        variance * np.eye(size),
        (
            Comparison("EnKF, 40 members", EnKF(system, inflation=1.06), 40, *_dapper("EnKF", "PertObs", 40, 1.06)),
            Comparison(
                "ETKF, 24 members",
                ETKF(system, inflation=1.013, rotate=True),
                24,
                *_dapper("EnKF", "Sqrt", 24, 1.013, rot=True),
            ),
            Comparison("LETKF, 7 members", local, 7, *_dapper("LETKF", None, 7, 1.04, rot=True, loc_rad=4)),
        ),
        cycles=1000,
        burn_in=400,
    )


def _arctan() -> Problem:
    system = _system(dt=0.025, noise_std=0.025**0.5)
    return Problem(
        "lorenz63-arctan",
        "stochastic Lorenz-63, arctan(x / 8) every step of 0.025, noise 0.25",
        system,
        Likelihood(Arctan(system.space, channels=0, scale=FLOWDAS_SCALE[0]), GaussianNoise(std=0.25)),
        *_start(system),
        (
            Comparison(
                "bootstrap filter, 10,000 members",
                BootstrapFilter(system, threshold=0.5),
                10_000,
                "particles",
                {"method": "Bootstrap", "N": 10_000, "resampling": "systematic", "ESSrmin": 0.5},
            ),
        ),
        cycles=400,
        burn_in=50,
        known={"noise_std": system.noise_std, "scale": FLOWDAS_SCALE[0]},
    )


def _noisy() -> Problem:
    system = _system(dt=0.025, noise_std=0.025**0.5)
    return Problem(
        "lorenz63-noisy",
        "stochastic Lorenz-63, x every step of 0.025, noise variance 2",
        system,
        Likelihood(Select(system.space, channels=0), GaussianNoise(std=2**0.5)),
        *_start(system),
        (
            _unscented(UnscentedKalmanFilter(system, prior="dynamics")),
            _independent_enkf(EnKF(system, perturbations="independent"), 50),
        ),
        cycles=400,
        burn_in=50,
        dtype=torch.float64,
        known={"noise_std": system.noise_std, "operator": np.eye(3)[:1]},
    )


def _ring() -> Problem:
    system = LinearGaussian.ring(20)
    mean, covariance = system.prior_moments(dtype=torch.float64)
    operator = torch.eye(20, dtype=torch.float64)[::2]
    return Problem(
        "ring",
        "linear Gaussian field on a ring of 20 cells, every second cell every step, noise 0.5",
        system,
        Likelihood(Matrix(system.space, operator), GaussianNoise(std=0.5)),
        mean.flatten().numpy(),
        covariance.dense().numpy(),
        (
            Comparison("Kalman filter", KalmanFilter(system), 2, "filterpy", {"method": "KalmanFilter"}, True),
            _unscented(UnscentedKalmanFilter(system, prior="dynamics")),
            _independent_enkf(EnKF(system, perturbations="independent"), 100),
        ),
        cycles=200,
        burn_in=20,
        dtype=torch.float64,
        known={
            "operator": operator.numpy(),
            "matrix": system.matrix.numpy(),
            "noise_covariance": system.noise_covariance.numpy(),
        },
    )


def _system(dt: float, noise_std: float) -> KnownStart:
    covariance = ((2.0, 0.0, 0.0), (0.0, 2.0, 0.0), (0.0, 0.0, 2.0))
    return KnownStart(dt=dt, noise_std=noise_std, prior_mean=START, prior_covariance=covariance)


def _start(system: KnownStart) -> tuple[np.ndarray, np.ndarray]:
    return np.array(system.prior_mean), np.array(system.prior_covariance)


def _dapper(method: str, scheme: str | None, members: int, inflation: float, **more: Any) -> tuple[str, dict[str, Any]]:
    chosen = {} if scheme is None else {"upd_a": scheme}
    return "dapper", {"method": method, **chosen, "N": members, "infl": inflation, **more}


def _unscented(ours: UnscentedKalmanFilter) -> Comparison:
    # The same sigma points on both sides: weight 0 at the mean, along the rows of the triangular root.
    theirs = {"method": "UnscentedKalmanFilter", "points": "JulierSigmaPoints", "kappa": 0.0}
    return Comparison("unscented Kalman filter", ours, 2, "filterpy", theirs, True)


def _independent_enkf(ours: EnKF, members: int) -> Comparison:
    theirs = {"method": "EnsembleKalmanFilter", "N": members}
    return Comparison(f"EnKF, {members} members", ours, members, "filterpy", theirs)
