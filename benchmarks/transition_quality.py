"""How good a learned transition is: its draws against those of the simulator it was trained on, from the same states.

    python -m benchmarks.transition_quality navier-stokes-small [--states 48] [--members 32] [--write]

New trajectories of the card's system, unseen in training, give states x and one next state x' each. From every x both
the simulator and the learned transition draw members, and both are scored against x':

    crps_ratio        fair CRPS of the learned transition over that of the simulator; 1 is perfect
    spread_ratio      rms spread over the simulator's
    mean_error        rms(mean - mean of the simulator's members, less their sampling error) over the simulator's spread
    forecast_error    the same for the network's regressed forecast alone
    spectrum_error    largest |E(k) / E_true(k) - 1| of the members' kinetic-energy spectra, k = 1 .. two-thirds cut
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from assimilate import registry
from assimilate.cards.files import load
from assimilate.learning.pretrained import load_pretrained
from assimilate.verification.crps import ensemble_crps
from assimilate.verification.spectra import energy_spectrum, flow_of
from dynamics import Dynamics, simulate
from dynamics.random import Streams

RESULTS = Path(__file__).parent / "results"


def states_of(dynamics: Dynamics, count: int, *, spinup: int, seed: int) -> Tensor:
    """States of new trajectories, eight of each and four steps apart, `(count, *event)`."""
    ds = simulate(dynamics, steps=28, every=4, trajectories=-(-count // 8), seed=seed, spinup=spinup)
    return dynamics.space.to_tensor(ds).flatten(0, 1)[:count]


def members_of(dynamics: Dynamics, states: Tensor, members: int, seed: int) -> Tensor:
    """Next states, `(state, member, *event)`."""
    start = states.unsqueeze(1).expand(-1, members, *states.shape[1:])
    with torch.no_grad():
        chunks = [
            dynamics.step(part, 0.0, rng=Streams(seed, tuple(range(k, k + len(part))), members).at(0))
            for k, part in zip(range(0, len(start), 8), start.split(8), strict=False)
        ]
    return torch.cat(chunks)


def fair_crps(members: Tensor, target: Tensor) -> float:
    """Mean fair CRPS over everything."""
    dims = ["state", "value"]
    found = xr.DataArray(members.flatten(2).numpy(), dims=["state", "member", "value"])
    return float(ensemble_crps(found, xr.DataArray(target.flatten(1).numpy(), dims=dims), fair=True).mean())


def measure(true: Dynamics, learned: Dynamics, *, states: int, members: int, spinup: int, seed: int = 2**20) -> dict:
    """The table of one transition; see the module."""
    x = states_of(true, states, spinup=spinup, seed=seed)
    target = members_of(true, x, 1, seed + 1)[:, 0]
    ours, exact = members_of(learned, x, members, seed + 2), members_of(true, x, members, seed + 3)
    spread = float(exact.var(1).mean().sqrt())
    with torch.no_grad():
        forecast = learned.step(x, 0.0, rng=None)

    def mean_error(mean: Tensor, own: float) -> float:
        # What two finite ensembles of the same law would differ by is taken off.
        square = float((mean - exact.mean(1)).square().mean()) - (own + spread**2) / members
        return float(np.sqrt(max(square, 0.0))) / spread

    out: dict[str, Any] = {
        "states": states,
        "members": members,
        "crps_true": fair_crps(exact, target),
        "crps_ratio": fair_crps(ours, target) / fair_crps(exact, target),
        "spread_ratio": float(ours.var(1).mean().sqrt()) / spread,
        "mean_error": mean_error(ours.mean(1), float(ours.var(1).mean())),
        "forecast_error": mean_error(forecast, 0.0),
    }
    flow = flow_of(true.space)
    if flow is not None:
        ratio = energy_spectrum(ours, flow).mean((0, 1)) / energy_spectrum(exact, flow).mean((0, 1))
        out |= {"spectrum_error": float((ratio - 1).abs().max()), "spectrum_ratio": [round(float(r), 4) for r in ratio]}
    return {k: round(v, 4) if isinstance(v, float) else v for k, v in out.items()}


def main() -> None:
    """Print the table, and write it if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("card", help="card whose system is the simulator")
    parser.add_argument("--transition", help="pretrained name or checkpoint; default: the card's name")
    parser.add_argument("--states", type=int, default=48)
    parser.add_argument("--members", type=int, default=32)
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/CARD-transition.json")
    options = parser.parse_args()
    card = load(options.card)
    if card.truth.dynamics is None:
        parser.error(f"{options.card} has no simulated truth")
    true = registry.build("dynamics", card.truth.dynamics.spec(), "truth.dynamics")
    learned = load_pretrained(options.transition or Path(options.card).stem)
    table = measure(true, learned, states=options.states, members=options.members, spinup=card.truth.spinup)
    print(json.dumps(table, indent=1))
    if options.write:
        (RESULTS / f"{Path(options.card).stem}-transition.json").write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
