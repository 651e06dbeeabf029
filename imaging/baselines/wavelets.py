r"""Compressed sensing with wavelets: the image is sparse in an orthonormal wavelet basis W.

    x = argmin_x  1/2 |R^-1/2 (y - A x)|^2 + lambda |W x|_1 ,    prox(v) = W^T soft(W v)

The coarsest means are not counted. The basis is periodised, so it is orthonormal on grids whose sides divide by
`2^levels`; PyWavelets (extra `imaging`) makes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from assimilate.errors import UserError
from dynamics.errors import CapabilityError
from imaging.baselines.data_term import DataTerm
from imaging.baselines.point import PointSolver
from imaging.baselines.proximal_gradient import proximal_gradient
from imaging.solvers.base import Need, Task


def _pywavelets() -> Any:
    try:
        import pywt
    except ImportError as error:
        raise UserError("wavelets need PyWavelets: pip install 'assimilate-da[imaging]'") from error
    return pywt


@dataclass(frozen=True)
class WaveletBasis:
    """An orthonormal basis of images, `(*b, rows, columns)` each alone; computed by PyWavelets on the CPU.

    Args:
        wavelet: an orthogonal wavelet of PyWavelets ("haar", "db4", "sym8"...).
        levels: halvings of the grid.

    Raises:
        UserError: PyWavelets is missing, or has no such orthogonal wavelet.
    """

    wavelet: str = "db4"
    levels: int = 3

    def __post_init__(self) -> None:
        """Check the wavelet."""
        pywt = _pywavelets()
        try:
            orthogonal = pywt.Wavelet(self.wavelet).orthogonal
        except ValueError as error:
            raise UserError(f"wavelet '{self.wavelet}': {error}") from error
        if not orthogonal or self.levels < 1:
            raise UserError(f"{self!r}: expected an orthogonal wavelet, such as 'haar', 'db4' or 'sym8', and a level")

    def fits(self, rows: int, columns: int) -> bool:
        """Whether the basis is orthonormal on this grid."""
        return rows % 2**self.levels == 0 and columns % 2**self.levels == 0

    def coarse(self, rows: int, columns: int) -> tuple[slice, slice]:
        """Where the coarsest means stand among the coefficients."""
        return slice(rows >> self.levels), slice(columns >> self.levels)

    def analyse(self, x: Tensor) -> Tensor:
        """`W x`, coefficients on the grid of the image: the coarsest means first, details after them."""
        pywt, coarse = _pywavelets(), x.detach().cpu().numpy()
        coefficients = np.empty_like(coarse)
        for _ in range(self.levels):
            rows, columns = coarse.shape[-2] // 2, coarse.shape[-1] // 2
            coarse, (down, along, both) = pywt.dwt2(coarse, self.wavelet, "periodization", axes=(-2, -1))
            coefficients[..., rows : 2 * rows, :columns] = down
            coefficients[..., :rows, columns : 2 * columns] = along
            coefficients[..., rows : 2 * rows, columns : 2 * columns] = both
        coefficients[..., : coarse.shape[-2], : coarse.shape[-1]] = coarse
        return torch.from_numpy(coefficients).to(x)

    def synthesise(self, c: Tensor) -> Tensor:
        """`W^T c`."""
        pywt, array = _pywavelets(), c.detach().cpu().numpy()
        coarse = array[..., *self.coarse(*array.shape[-2:])]
        for _ in range(self.levels):
            rows, columns = coarse.shape[-2:]
            down = array[..., rows : 2 * rows, :columns]
            along = array[..., :rows, columns : 2 * columns]
            both = array[..., rows : 2 * rows, columns : 2 * columns]
            coarse = pywt.idwt2((coarse, (down, along, both)), self.wavelet, "periodization", axes=(-2, -1))
        return torch.from_numpy(coarse).to(c)


@dataclass(frozen=True)
class WaveletCS(PointSolver):
    """Sparse wavelet coefficients by FISTA.

    Args:
        strength: lambda in units of one over the prior's spread; on random-ellipse phantoms the best was 3 to 6 for
            tomography with 20 views, deblurring and super-resolution, and 1 for 8 views.
        wavelet: an orthogonal wavelet of PyWavelets.
        levels: halvings of the grid.
        coupled: channels share their coefficients' lengths (real and imaginary parts, colours).
        iterations: gradient steps, one product with A and one with its adjoint each.
    """

    name: ClassVar[str] = "wavelet CS"
    reference: ClassVar[str] = (
        "Lustig, Donoho, Pauly (2007), Sparse MRI: the application of compressed sensing for rapid MR imaging, "
        "https://doi.org/10.1002/mrm.21391"
    )
    needs: ClassVar[tuple[Need, ...]] = ("linear", "gaussian")

    strength: float = 5.0
    wavelet: str = "db4"
    levels: int = 3
    coupled: bool = False
    iterations: int = 200

    def __post_init__(self) -> None:
        """Check the strength."""
        if not self.strength > 0:
            raise ValueError(f"strength={self.strength}; expected a positive number (without it: 'pseudo-inverse')")

    @property
    def basis(self) -> WaveletBasis:
        """W."""
        return WaveletBasis(self.wavelet, self.levels)

    def check(self, task: Task) -> None:
        """See `Solver.check`; the basis must fit the grid."""
        super().check(task)
        if task.event_dims != 3 or not self.basis.fits(*task.event_shape[1:]):
            raise CapabilityError(
                f"{self.name} with {self.levels} levels needs images (channel, rows, columns) whose sides divide by "
                f"{2**self.levels}; given {task.event_shape}: take fewer levels or crop the image"
            )

    def weight(self, task: Task) -> float:
        """lambda, in nats for one unit of the image."""
        return self.strength / task.prior.spread

    def shrink(self, v: Tensor, threshold: Tensor | float) -> Tensor:
        """The proximal step of `threshold |W x|_1`."""
        c = self.basis.analyse(v)
        length = c.square().sum(-3, keepdim=True).sqrt() if self.coupled else c.abs()
        factor = (1 - threshold / length.clamp_min(torch.finfo(c.dtype).tiny)).clamp_min(0.0)
        rows, columns = self.basis.coarse(*v.shape[-2:])
        factor[..., rows, columns] = 1.0
        return self.basis.synthesise(factor * c)

    def objective(self, task: Task, x: Tensor) -> Tensor:
        """What is minimised, in nats, `(*b, *event) -> (*b,)`."""
        c = self.basis.analyse(x)
        length = c.square().sum(-3, keepdim=True).sqrt() if self.coupled else c.abs()
        rows, columns = self.basis.coarse(*x.shape[-2:])
        length[..., rows, columns] = 0.0
        return DataTerm.of(task).value(x) + self.weight(task) * length.sum((-3, -2, -1))

    def answer(self, task: Task) -> tuple[Tensor, int]:
        """See `PointSolver.answer`."""
        data, weight = DataTerm.of(task), self.weight(task)

        def proximal(v: Tensor, step: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor | None]:
            return self.shrink(v, step * weight), None

        return proximal_gradient(data, proximal, data.zero, iterations=self.iterations), 0
