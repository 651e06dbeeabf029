"""Pictures for training and for comparisons, from a law, from files of one's own or from installed packages.

Every source gives grey pictures `(n, 1, rows, columns)` in [0, 1]; nothing is downloaded. A package or data set that is
not there ends in one line that says what to install.
"""

from __future__ import annotations

import gzip
import importlib.util
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from assimilate.errors import DataError, UserError
from imaging.phantoms import Phantoms, Style

Source = Literal["phantoms", "folder", "idx", "scikit-image", "head-ct", "mni-t1"]

PHOTOGRAPHS = ("camera", "moon", "coins", "page", "clock", "brick", "grass", "gravel")
"""Pictures of scikit-image that ship with it."""
HEAD_WINDOW = (-1000.0, 1000.0)
"""Hounsfield units that become 0 and 1."""


@dataclass(frozen=True)
class Pictures:
    """Which pictures.

    Args:
        source: "phantoms"; "folder" of PNG, TIFF or NPY files; "idx" file of MNIST's format; "scikit-image",
            "head-ct" (pydicom-data) and "mni-t1" (nilearn) where those packages are installed.
        count: how many (phantoms, random crops of a folder); None = all there are.
        size: pixels along each side; larger pictures are averaged down (folders: cropped), 28 for Fashion-MNIST.
        style: of phantoms.
        path: folder or file, for "folder" and "idx".
        names: pictures of scikit-image, or slices of the volume ("mni-t1": numbers along its third axis).
        seed: of phantoms and crops.

    Raises:
        UserError: an unknown source, or a path that is missing.
    """

    source: Source = "phantoms"
    count: int | None = 4
    size: int = 64
    style: Style = "mixed"
    path: str | None = None
    names: tuple[str | int, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the source."""
        object.__setattr__(self, "names", tuple(self.names))
        if self.source not in get_args(Source):
            raise UserError(f"source of pictures '{self.source}'; expected one of {', '.join(get_args(Source))}")
        if self.source in ("folder", "idx") and self.path is None:
            raise UserError(f"pictures from a {self.source} need 'path'")

    def load(self) -> Tensor:
        """The pictures, `(n, 1, rows, columns)`, float32.

        Raises:
            DataError: a file or package is missing or unreadable.
        """
        read: dict[str, Callable[[], Tensor]] = {
            "phantoms": self._phantoms,
            "folder": self._folder,
            "idx": self._idx,
            "scikit-image": self._photographs,
            "head-ct": self._head,
            "mni-t1": self._brain,
        }
        pictures = read[self.source]()
        return pictures if self.count is None else pictures[: self.count]

    def _phantoms(self) -> Tensor:
        rng = torch.Generator().manual_seed(self.seed)
        law, count = Phantoms(self.size, self.style), self.count or 1
        return torch.cat([law(min(64, count - n), rng) for n in range(0, count, 64)])

    def _folder(self) -> Tensor:
        """Random crops of the pictures of a folder, or all of them where they have the size already."""
        from imaging.reading import open_image

        folder = Path(str(self.path))
        if not folder.is_dir():
            raise DataError(f"there is no folder '{folder}'")
        files = [f for f in sorted(folder.iterdir()) if f.suffix.lower() in (".png", ".tif", ".tiff", ".npy", ".jpg")]
        if not files:
            raise DataError(f"the folder '{folder}' holds no PNG, TIFF, JPEG or NPY file")
        whole = []
        for file in files:
            grey = torch.from_numpy(np.ascontiguousarray(open_image(file).values, dtype=np.float32))
            if grey.ndim != 2 or min(grey.shape) < self.size:
                raise DataError(f"{file.name} has shape {tuple(grey.shape)}; expected grey, {self.size} pixels or more")
            whole.append(grey)
        if all(grey.shape == (self.size, self.size) for grey in whole):
            return torch.stack(whole)[:, None]
        rng = torch.Generator().manual_seed(self.seed)
        count = self.count or 8 * len(whole)
        return torch.stack([_crop(whole[n % len(whole)], self.size, rng) for n in range(count)])[:, None]

    def _idx(self) -> Tensor:
        return read_idx(Path(str(self.path)))

    def _photographs(self) -> Tensor:
        if importlib.util.find_spec("skimage") is None:
            raise DataError("pictures of scikit-image need it: pip install 'assimilate-da[imaging]'")
        from skimage import color, data

        names = [str(name) for name in self.names] or list(PHOTOGRAPHS)
        found = []
        for name in names:
            if not hasattr(data, name):
                raise DataError(f"scikit-image has no picture '{name}'; for example: {', '.join(PHOTOGRAPHS)}")
            picture = np.asarray(getattr(data, name)())
            grey = color.rgb2gray(picture) if picture.ndim == 3 else picture / np.iinfo(picture.dtype).max
            found.append(_shrink(torch.from_numpy(np.ascontiguousarray(grey, dtype=np.float32)), self.size))
        return torch.stack(found)[:, None]

    def _head(self) -> Tensor:
        """The head CT slice of pydicom-data, Hounsfield units of `HEAD_WINDOW` to [0, 1]."""
        from imaging.reading import open_image

        found = importlib.util.find_spec("data_store")
        places = list(found.submodule_search_locations or []) if found is not None else []
        files = [Path(place) / "data" / "693_UNCR.dcm" for place in places]
        file = next((f for f in files if f.is_file()), None)
        if file is None:
            raise DataError("the head CT slice is in the package pydicom-data: pip install pydicom pydicom-data")
        low, high = HEAD_WINDOW
        units = torch.from_numpy(np.ascontiguousarray(open_image(file).values, dtype=np.float32))
        return _shrink(((units - low) / (high - low)).clamp(0, 1), self.size)[None, None]

    def _brain(self) -> Tensor:
        """Axial slices of nilearn's MNI152 T1 template, divided by its maximum."""
        import contextlib

        found = importlib.util.find_spec("nilearn")
        name = "datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
        places = list(found.submodule_search_locations or []) if found is not None else []
        file = next((Path(p) / name for p in places if (Path(p) / name).is_file()), None)
        volume = None
        with contextlib.suppress(ImportError):
            import nibabel

            image: Any = None if file is None else nibabel.load(file)
            volume = None if image is None else np.asarray(image.dataobj, dtype=np.float32)
        if volume is None:
            raise DataError("the MNI T1 template is in nilearn and read by nibabel: pip install nilearn nibabel")
        chosen = [int(n) for n in self.names] or [60, 75, 90, 105]
        return torch.stack(
            [_shrink(torch.from_numpy(np.rot90(volume[:, :, n]).copy() / volume.max()), self.size) for n in chosen]
        )[:, None]


def read_idx(path: Path) -> Tensor:
    """Pictures of an idx file (MNIST's format), plain or gzipped, `(n, 1, rows, columns)` in [0, 1].

    Raises:
        DataError: no such file, or not an idx file of byte pictures.
    """
    if not path.is_file():
        raise DataError(f"there is no idx file '{path}' (of Fashion-MNIST, say); none is downloaded")
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        magic, count, rows, columns = struct.unpack(">IIII", content[:16])
    except (OSError, EOFError, struct.error) as error:
        raise DataError(f"'{path}' cannot be read as an idx file: {error}") from error
    if magic != 0x0803 or len(content) != 16 + count * rows * columns:
        raise DataError(f"'{path}' is not an idx file of byte pictures (magic {magic:#x}, {len(content)} bytes)")
    values = np.frombuffer(content, dtype=np.uint8, offset=16).reshape(count, 1, rows, columns)
    return torch.from_numpy(values.copy()).float() / 255.0


def _crop(grey: Tensor, size: int, rng: torch.Generator) -> Tensor:
    top, left = (int(torch.randint(n - size + 1, (1,), generator=rng)) for n in grey.shape)
    return grey[top : top + size, left : left + size]


def _shrink(grey: Tensor, size: int) -> Tensor:
    """The centred square of a picture, averaged down to `size` pixels (anti-aliased)."""
    side = min(grey.shape)
    top, left = ((n - side) // 2 for n in grey.shape)
    square = grey[top : top + side, left : left + side]
    if side < size:
        raise DataError(f"a picture of {tuple(grey.shape)} pixels is smaller than the {size} asked for")
    return torch.nn.functional.interpolate(
        square[None, None], (size, size), mode="bilinear", antialias=True, align_corners=False
    )[0, 0]

