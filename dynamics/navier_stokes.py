r"""Two-dimensional Navier-Stokes flow on the torus in vorticity form, driven by noise, by a steady force, or free.

    dw + u.grad w dt = ( nu lap w - alpha w + f ) dt + eps sum_j ( sin(k_j.r) dW_j + cos(k_j.r) dW'_j )

    w = dv/dx - du/dy,    f = -A k cos(k y), the curl of the body force A sin(k y) along x

State: vorticity, event `(1, n, n)`, dims (y, x), dimensionless on [0, length)^2. The linear part is integrated exactly
and the rest by ETDRK4, order 4: no limit on the step from viscosity, and a steady flow without advection stays what it
is at any step. Advection limits a substep to h (|u| + |v|) n / length < 1.3 (stability). Noise is added half before and
half after the flow of each substep (weak order 2).

A step keeps the modes below the two-thirds cut only (`dynamics.spectral`); what a state holds beyond it is dropped.
The mean vorticity, which is 0 for any periodic velocity, moves nothing and decays with the drag.

References:
    Kassam, Trefethen (2005), Fourth-order time-stepping for stiff PDEs, https://doi.org/10.1137/S1064827502410633
    Chen et al. (2024), Probabilistic forecasting with stochastic interpolants and Foellmer processes,
    https://arxiv.org/abs/2403.13724 (noise on eight modes, drag 0.1)
    Chen et al. (2025), FlowDAS, https://arxiv.org/abs/2501.16642
    Rozet, Louppe (2023), Score-based data assimilation, https://arxiv.org/abs/2306.10574 (Kolmogorov flow)
    Li et al. (2021), Fourier neural operator, https://arxiv.org/abs/2010.08895 (law of the initial vorticity)
    Differs: the drag damps; with the sign in the notebook published with the first of these it amplifies.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from dynamics.fields import Coordinate, Field
from dynamics.integrators import ExponentialCoefficients, etdrk4, etdrk4_coefficients
from dynamics.random import Rng, normal
from dynamics.settings import ANY, COUNT, NOT_NEGATIVE, POSITIVE, check_settings, several, whole
from dynamics.space import Space
from dynamics.spectral import SpectralGrid

FLOWDAS_WAVEVECTORS = ((6, 0), (7, 0), (5, 5), (8, 8))
"""Wavevectors (k_x, k_y) that the noise of the published data drives, each in both phases: eight modes."""
_CACHE_VALUES = 2**16
"""Values of a state that are advanced together on a CPU; more leave the cache and cost more each (measured)."""


@dataclass(frozen=True)
class NavierStokes:
    """Vorticity of a flow on the periodic square.

    Args:
        size: n, cells along each side (128).
        length: side of the square (2 pi). Wavevectors count waves around it.
        viscosity: nu (1e-3).
        drag: alpha, a rate; positive drag damps (0.1).
        noise: eps, the strength of the noise per square root of time (0: deterministic).
        noise_wavevectors: (k_x, k_y) of the modes that the noise drives, each with both phases.
        body_force: A, the amplitude of the steady force (0: none).
        body_force_waves: k, how often it repeats along y (4).
        dt: length of a step (0.5, the spacing of the published snapshots).
        substeps: ETDRK4 steps in a step (32: h = 1/64; at n = 128 the stochastic setting's flow is then right to 3e-5
            after a time of 1, and the error goes with h^4; measured).
        prior_std: root mean square vorticity of the prior law (3.2, that of the stochastic setting's climate).
        prior_waves: where the spectrum of the prior law bends (7, Li et al. 2021).
        prior_decay: p of the prior law (2.5, likewise); the variance of a mode goes with (|k|^2 + prior_waves^2)^-p.

    Raises:
        ValueError: a setting out of its range, or a wavevector that is 0, repeated or beyond the two-thirds cut.
    """

    size: int = 128
    length: float = 2 * math.pi
    viscosity: float = 1e-3
    drag: float = 0.1
    noise: float = 0.0
    noise_wavevectors: tuple[tuple[int, int], ...] = FLOWDAS_WAVEVECTORS
    body_force: float = 0.0
    body_force_waves: int = 4
    dt: float = 0.5
    substeps: int = 32
    prior_std: float = 3.2
    prior_waves: float = 7.0
    prior_decay: float = 2.5

    def __post_init__(self) -> None:
        """Check the settings."""
        check_settings(self, size=whole(8), length=POSITIVE, dt=POSITIVE, substeps=COUNT)
        check_settings(self, viscosity=NOT_NEGATIVE, drag=NOT_NEGATIVE, noise=NOT_NEGATIVE, body_force=ANY)
        check_settings(self, prior_std=POSITIVE, prior_waves=POSITIVE, prior_decay=ANY, body_force_waves=COUNT)
        check_settings(self, noise_wavevectors=several(whole()))
        vectors = tuple((int(k_x), int(k_y)) for k_x, k_y in self.noise_wavevectors)
        object.__setattr__(self, "noise_wavevectors", vectors)
        cut = self.grid.cut
        driven = vectors if self.noise > 0 else ()
        if self.body_force:
            driven = (*driven, (0, self.body_force_waves))
        for vector in driven:
            if vector == (0, 0) or max(map(abs, vector)) > cut:
                raise ValueError(f"wavevector {vector} is 0 or beyond the cut: a grid of {self.size} keeps 1..{cut}")
        if len({max(vector, (-vector[0], -vector[1])) for vector in vectors}) < len(vectors):
            raise ValueError(f"noise_wavevectors={vectors}: a wave is there twice (k and -k are the same waves)")

    @classmethod
    def flowdas(cls, size: int = 128) -> NavierStokes:
        """The stochastic flow of FlowDAS: noise of strength 1 on eight modes, nu 1e-3, drag 0.1, a step of 1.

        FlowDAS keeps every second of the published snapshots, which are 0.5 apart. At nu = 1e-3 use `size` >= 128:
        a smaller grid cuts the cascade short.
        """
        return cls(size=size, noise=1.0, dt=1.0, substeps=64)

    @classmethod
    def kolmogorov(cls, size: int = 256) -> NavierStokes:
        """The Kolmogorov flow of SDA: Reynolds number 1000, force sin(4 y), drag 0.1, a step of 0.2.

        Args:
            size: 256 as published (SDA averages it to 64); half of it allows half the substeps.
        """
        return cls(size=size, body_force=1.0, dt=0.2, substeps=max(8, size // 5))

    @cached_property
    def grid(self) -> SpectralGrid:
        """The Fourier modes."""
        return SpectralGrid(self.size, self.length)

    @cached_property
    def space(self) -> Space:
        """`vorticity(y, x)`, dimensionless, periodic: event `(1, n, n)`."""
        cells = np.arange(self.size) * self.length / self.size
        axes = {dim: Coordinate(cells, (dim,), "1") for dim in ("y", "x")}
        return Space((Field("vorticity", "1", ("y", "x"), "vorticity"),), axes, periodic=("y", "x"))

    def prior(
        self,
        shape: tuple[int, ...],
        *,
        rng: Rng,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Draws of the Gaussian field N(0, prior_std^2) with the prior spectrum, `(*shape, 1, n, n)`.

        It is smooth and has no vortices: spin it up (`simulate(..., spinup=...)`) to start from the climate.
        """
        white = normal(rng, (*shape, 1, self.size, self.size), dtype=dtype, device=device)
        spectrum = self.grid.spectrum(white)
        return self.grid.field(spectrum * self._prior_amplitude.to(spectrum.device, dtype))

    def step(self, x: Tensor, time: float, *, rng: Rng | None) -> Tensor:
        """One step of `dt`: `substeps` of ETDRK4 and their noise, `(*b, 1, n, n)`."""
        rows = x.reshape(math.prod(x.shape[:-3]), self.size, self.size)
        chunk = max(1, _CACHE_VALUES // self.size**2) if x.device.type == "cpu" else max(1, rows.shape[0])
        if rng is None or self.noise == 0:
            return torch.cat([self._flow(block, None) for block in rows.split(chunk)]).reshape(x.shape)
        modes = 2 * len(self.noise_wavevectors)
        draws = normal(rng, (*x.shape[:-3], self.substeps + 1, modes), dtype=x.dtype, device=x.device)
        shocks = (draws * self._shock_std(x)).reshape(-1, self.substeps + 1, modes)
        blocks = zip(rows.split(chunk), shocks.split(chunk), strict=True)
        return torch.cat([self._flow(block, shock) for block, shock in blocks]).reshape(x.shape)

    def velocity(self, x: Tensor) -> Tensor:
        """The velocity (u along x, v along y), `(*b, 1, n, n)` -> `(*b, 2, n, n)`."""
        return self.grid.velocity(self.grid.spectrum(x[..., 0, :, :]))

    def energy(self, x: Tensor) -> Tensor:
        """Mean kinetic energy <u^2 + v^2> / 2, `(*b,)`."""
        return self.grid.energy(self.grid.spectrum(x[..., 0, :, :]))

    def enstrophy(self, x: Tensor) -> Tensor:
        """Mean enstrophy <w^2> / 2, `(*b,)`."""
        return self.grid.enstrophy(self.grid.spectrum(x[..., 0, :, :]))

    def _flow(self, rows: Tensor, shocks: Tensor | None) -> Tensor:
        """Rows `(r, n, n)` after a step; shocks `(r, substeps + 1, modes)` stand between the substeps."""
        coefficients, force, patterns = self._prepared(rows.dtype, rows.device)
        spectrum = self.grid.spectrum(rows)

        def nonlinear(state: Tensor, _: float) -> Tensor:
            advection = self.grid.advection(state)
            return advection if force is None else advection + force

        def shaken(state: Tensor, k: int) -> Tensor:
            if shocks is None:
                return state
            return state + (shocks[:, k].to(patterns.dtype) @ patterns).reshape(state.shape)

        spectrum = shaken(spectrum, 0)
        for k in range(self.substeps):
            spectrum = etdrk4(nonlinear, spectrum, 0.0, self.dt / self.substeps, coefficients)
            spectrum = shaken(spectrum, k + 1)
        return self.grid.field(spectrum)

    def _shock_std(self, like: Tensor) -> Tensor:
        """Standard deviations of the shocks `(substeps + 1, 1)`: those at the ends stand for half a substep."""
        share = torch.ones(self.substeps + 1, 1, dtype=like.dtype, device=like.device)
        share[0], share[-1] = 0.5, 0.5
        return self.noise * torch.sqrt(share * (self.dt / self.substeps))

    @cached_property
    def _prior_amplitude(self) -> Tensor:
        """Factor of white noise's modes, float64 `(n, K + 1)`; the mean is 0, the field's variance prior_std^2."""
        bend = (2 * math.pi / self.length * self.prior_waves) ** 2
        amplitude = (self.grid.squared + bend) ** (-self.prior_decay / 2)
        factors = self.grid.multipliers(amplitude)
        amplitude = amplitude * factors.kept * (self.grid.squared > 0)
        variance = (amplitude**2 * factors.weight).sum() * self.size**2
        return self.prior_std * amplitude / variance.sqrt()

    @cached_property
    def _cache(
        self,
    ) -> dict[tuple[torch.dtype, torch.device], tuple[ExponentialCoefficients, Tensor | None, Tensor]]:
        return {}

    def _prepared(
        self, dtype: torch.dtype, device: torch.device
    ) -> tuple[ExponentialCoefficients, Tensor | None, Tensor]:
        """Weights of ETDRK4, the steady force and the patterns of the noise, in a precision and on a device."""
        key = (dtype, device)
        if key not in self._cache:
            # Computed in float64 whatever the state's precision: the weights cancel near L h = 0.
            linear = -(self.viscosity * self.grid.squared + self.drag)
            weights = etdrk4_coefficients(linear, self.dt / self.substeps)
            placed = ExponentialCoefficients(*(weight.to(device, dtype) for weight in weights))
            angle = 2 * math.pi / self.size * torch.arange(self.size, dtype=torch.float64)
            y, x = angle[:, None], angle[None, :]
            complex_dtype = torch.complex128 if dtype == torch.float64 else torch.complex64
            force = None
            if self.body_force:
                waves = self.body_force_waves
                curl = -self.body_force * (2 * math.pi / self.length * waves) * torch.cos(waves * y) + 0 * x
                force = self.grid.spectrum(curl).to(device, complex_dtype)
            phases = [k_x * x + k_y * y for k_x, k_y in self.noise_wavevectors]
            shapes = [wave(phase) for phase in phases for wave in (torch.sin, torch.cos)]
            patterns = torch.zeros(0, self.size * (self.grid.cut + 1), dtype=torch.complex128)
            if shapes:
                patterns = self.grid.spectrum(torch.stack(shapes)).flatten(1)
            self._cache[key] = (placed, force, patterns.to(device, complex_dtype))
        return self._cache[key]
