"""Lost tracks: stretches of a run in which a method is far worse than a reference on the same truths.

    python -m benchmarks.tracks out/lorenz63-cold/result.nc [--window 40] [--drop 50] [--factor 2]

The error is the root mean square over the variables of truth minus ensemble mean, averaged (as a square) over a moving
window; a track is lost in a window where it exceeds `factor` times the reference's error in the same window. The
reference is the method whose label holds "exact".
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import xarray as xr


def squared_error(tree: xr.DataTree, method: str) -> np.ndarray:
    """Mean over the variables of the squared error of the mean, `(experiment, time)`."""
    truth, found = tree["truth"].to_dataset(), tree[method].to_dataset()
    names = [name for name in truth.data_vars if f"{name}_mean" in found]
    parts = [(found[f"{n}_mean"] - truth[n].sel(time=found["time"])) ** 2 for n in names]
    return np.asarray(sum(parts[1:], parts[0]).transpose("experiment", "time")) / len(parts)


def lost_tracks(
    tree: xr.DataTree, method: str, reference: str, *, window: int = 40, drop: int = 50, factor: float = 2.0
) -> tuple[int, float]:
    """Experiments with a lost track, and the largest ratio of windowed errors.

    Args:
        tree: a result.
        method: group of the method.
        reference: group of the reference.
        window: analyses in a window.
        drop: analyses at the start that are not looked at.
        factor: ratio beyond which a track is lost.
    """

    def windowed(name: str) -> np.ndarray:
        squares = squared_error(tree, name)[:, drop:]
        kernel = np.ones(window) / window
        return np.sqrt(np.stack([np.convolve(row, kernel, "valid") for row in squares]))

    ratio = windowed(method) / windowed(reference)
    return int((ratio > factor).any(1).sum()), float(ratio.max())


def main() -> None:
    """Print lost tracks of every method of a result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path)
    parser.add_argument("--window", type=int, default=40)
    parser.add_argument("--drop", type=int, default=50)
    parser.add_argument("--factor", type=float, default=2.0)
    options = parser.parse_args()
    with xr.open_datatree(options.result) as tree:
        methods = [name for name in tree.children if name not in ("truth", "observations", "scores")]
        reference = next(name for name in methods if "exact" in name)
        for name in methods:
            if name != reference:
                count, worst = lost_tracks(
                    tree, name, reference, window=options.window, drop=options.drop, factor=options.factor
                )
                print(f"{name}: {count} lost tracks, largest ratio of errors {worst:.2f}")


if __name__ == "__main__":
    main()
