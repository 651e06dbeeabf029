"""Public filters and ours on the same truth and observations: accuracy and CPU time side by side.

    pip install 'assimilate-da[peers]'
    python -m benchmarks.peers                                 dapper, particles and filterpy, all systems
    python -m benchmarks.peers --peers filterpy --seeds 2      one of them
    python -m benchmarks.peers --peer-python particles=PATH    a peer in an interpreter of its own

The extra installs particles 0.3: 0.4 needs NumPy 1. Any peer may live elsewhere, and then need not be installed here:

    python -m venv apart && apart/bin/pip install particles==0.4
    python -m benchmarks.peers --peer-python particles=apart/bin/python

Truth and observations are ours, one set for all; a filter's random numbers are its own. Systems and settings:
`benchmarks.peer_filters.systems`. Every process has one thread. What is measured, for each filter:

    RMSE        error of the mean after each analysis, root of its mean square over variables, then its mean over
                analyses after the burn-in; mean and standard error over the experiments ("seeds")
    spread      the root of the mean variance, likewise
    CPU ms      of one cycle of one experiment, process time, the least over the experiments: "filter" and, where the
                peer has statistics, "+ statistics". Ours also in a batch of 16, divided by 16. Eager PyTorch.

On `lorenz63` a filter with 10 members loses the truth for a while in one experiment of sixteen or so: 4 are too few to
tell two filters apart. Results of systems and peers that are not run again stay in the file.

What is in the times: `INCLUDED`. Where both are the same function of the observations (Kalman filters) the largest
difference of their means is written as well.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from assimilate import __version__
from assimilate.errors import UserError
from benchmarks.peer_filters.ours import Estimates, assimilate, seconds_with_statistics
from benchmarks.peer_filters.problems import Comparison, Data, Problem, draw
from benchmarks.peer_filters.systems import problems

PEERS = ("dapper", "particles", "filterpy")
BATCH = 16
"""Experiments in a batch of ours; the peers get the first of them."""
SHORT = 200
"""Cycles of a run that is only timed."""
RESULTS = Path(__file__).parent / "results" / "peers.json"
OURS = "assimilate"
INCLUDED = {
    OURS: "filter: Filter.step, mean and spread, on tensors; with statistics: assimilate.run on Datasets with error, "
    "spread, CRPS and ranks of each analysis",
    "dapper": "filter: assimilate() with error_only, mean and error of each forecast and analysis; with statistics: "
    "assimilate() as it comes, with spread, CRPS, log score, skewness, kurtosis, ranks and singular values of both",
    "particles": "filter: SMC.run with weighted mean and variance",
    "filterpy": "filter: predict and update",
}
"""Who -> what is in the CPU times."""
Row = dict[str, Any]


def compare(problem: Problem, peer: str, python: str, *, seeds: int, seed: int) -> Iterator[Row]:
    """Rows of all comparisons with one peer on one system, ours and theirs by turns.

    Args:
        problem: the system.
        peer: its name.
        python: the interpreter it is in.
        seeds: experiments that are scored, at most `BATCH`.
        seed: of truth, observations and our members.

    Raises:
        UserError: the peer's script failed; the message has its last lines.
    """
    chosen = [c for c in problem.comparisons if c.peer == peer]
    if not chosen:
        return
    data = draw(problem, BATCH, seed)
    answer = ask(problem, chosen, data, python, seeds)
    versions = json.loads(str(answer["versions"]))
    for index, one in enumerate(chosen):
        found = assimilate(problem, one, data.values, seed=seed)
        theirs = Estimates(answer[f"mean_{index}"], answer[f"spread_{index}"], float(answer[f"seconds_{index}"]))
        about: Row = {"system": problem.name, "method": one.label, "peer": peer}
        row = about | {"who": OURS, "version": __version__, "settings": repr(one.ours), "beside": software()}
        yield row | scores(problem, data, found, seeds) | {"cpu_ms": our_times(problem, one, data, found, seed)}
        times = {"filter": 1e3 * theirs.seconds}
        if f"statistics_{index}" in answer:
            times["with_statistics"] = 1e3 * float(answer[f"statistics_{index}"])
        row = about | {"who": peer, "version": versions[peer], "settings": dict(one.theirs), "beside": versions}
        if one.same_numbers:
            row["largest_difference"] = float(np.abs(theirs.mean - found.mean[:seeds]).max())
        yield row | scores(problem, data, theirs, seeds) | {"cpu_ms": times}


def scores(problem: Problem, data: Data, found: Estimates, seeds: int) -> Row:
    """RMSE and spread after the burn-in, of the first experiments."""
    truth = data.states[:seeds, problem.every :: problem.every]
    errors = np.sqrt(np.square(found.mean[:seeds] - truth).mean(-1))[:, problem.burn_in :].mean(-1)
    return {
        "rmse": float(errors.mean()),
        "rmse_standard_error": float(errors.std(ddof=1) / np.sqrt(seeds)) if seeds > 1 else None,
        "rmse_of_seeds": errors.tolist(),
        "spread": float(found.spread[:seeds, problem.burn_in :].mean()),
        "seeds": seeds,
        "cycles": problem.cycles,
        "burn_in": problem.burn_in,
    }


def our_times(problem: Problem, one: Comparison, data: Data, found: Estimates, seed: int) -> dict[str, float]:
    """CPU ms of one cycle of one experiment, alone and in a batch; see the module."""
    short = data.values[:, :SHORT]
    single = min(assimilate(problem, one, short[e : e + 1], seed=seed).seconds for e in range(3))
    again = assimilate(problem, one, short, seed=seed).seconds
    times = {"filter": single, "filter_in_batch": min(found.seconds, again) / BATCH}
    if one.peer == "dapper":
        part = data._replace(observations=data.observations.isel(time=slice(SHORT)))
        alone = part._replace(
            truth=part.truth.isel(experiment=slice(1)), observations=part.observations.isel(experiment=slice(1))
        )
        times["with_statistics"] = min(seconds_with_statistics(problem, one, alone, seed=seed) for _ in range(2))
        times["with_statistics_in_batch"] = seconds_with_statistics(problem, one, part, seed=seed) / BATCH
    return {name: 1e3 * value for name, value in times.items()}


def ask(problem: Problem, chosen: Sequence[Comparison], data: Data, python: str, seeds: int) -> dict[str, np.ndarray]:
    """Run a peer's script on the first experiments and read its answer."""
    script = Path(__file__).parent / "peer_filters" / f"run_{chosen[0].peer}.py"
    methods = json.dumps([dict(c.theirs) for c in chosen])
    with tempfile.TemporaryDirectory() as folder:
        task, answer = Path(folder, "task.npz"), Path(folder, "answer.npz")
        arrays = problem.arrays() | {"truth": data.states[:seeds], "values": data.values[:seeds], "methods": methods}
        np.savez(task, **arrays)
        # A peer's interpreter has packages of its own: ours on its path would be taken first.
        places = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
        done = subprocess.run(
            [python, str(script), str(task), str(answer)],
            cwd=folder,
            env=places | one_thread(),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            last = "\n".join(done.stderr.splitlines()[-8:])
            raise UserError(f"{script.name} failed on {problem.name} in {python}:\n{last}")
        with np.load(answer) as file:
            return dict(file)


def one_thread() -> dict[str, str]:
    """Environment variables with which NumPy and numba use one thread."""
    return {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "NUMBA")}


def present(peer: str, python: str) -> bool:
    """Whether an interpreter has a peer."""
    look = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({peer!r}) is None)"
    with tempfile.TemporaryDirectory() as folder:
        return subprocess.run([python, "-c", look], cwd=folder, check=False).returncode == 0


def interpreters(given: Sequence[str]) -> dict[str, str]:
    """Peer -> interpreter, from `PATH` (of all) and `PEER=PATH`; this one where none is given.

    Raises:
        UserError: an unknown peer, or no file at the path.
    """
    found = dict.fromkeys(PEERS, sys.executable)
    for text in given:
        peer, _, path = text.rpartition("=")
        if peer and peer not in PEERS:
            raise UserError(f"--peer-python {text}: the peers are {', '.join(PEERS)}")
        if not Path(path).is_file():
            raise UserError(f"--peer-python {text}: there is no file {path}")
        # Absolute, as the scripts run in another folder; not resolved, as a link is what makes a virtual environment.
        found |= dict.fromkeys([peer] if peer else PEERS, str(Path(path).absolute()))
    return found


def line(row: Row) -> str:
    """One line of the table."""
    error, times = row["rmse_standard_error"], row["cpu_ms"]
    rmse = f"{row['rmse']:.3f}" + ("" if error is None else f" ± {error:.3f}")
    names = ("filter", "with_statistics", "filter_in_batch", "with_statistics_in_batch")
    cells = " ".join(f"{times[name]:9.3f}" if name in times else f"{'':9s}" for name in names)
    who = f"{row['who']} {row['version']}"
    return f"{row['system']:16s} {row['method']:33s} {who:18s} {rmse:15s} {row['spread']:7.3f} {cells}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare, print the table and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--systems", nargs="+", choices=[p.name for p in problems()], help="default: all")
    parser.add_argument("--seeds", type=int, default=4, help=f"experiments that are scored, 1 to {BATCH} (4)")
    parser.add_argument("--cycles", type=int, help="analyses; default: those of each system")
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--peer-python", nargs="+", default=[], metavar="[PEER=]PATH", help="interpreters of the peers")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    if not 1 <= options.seeds <= BATCH:
        parser.error(f"--seeds {options.seeds}: expected 1 to {BATCH}")
    try:
        places = interpreters(options.peer_python)
    except UserError as error:
        parser.error(str(error))
    torch.set_num_threads(1)
    missing = [peer for peer in options.peers if not present(peer, places[peer])]
    for peer in missing:
        print(f"{peer} is left out: {places[peer]} does not have it (pip install 'assimilate-da[peers]')")
    if len(missing) == len(options.peers):
        parser.exit(1, "nothing to compare with\n")
    head = f"{'system':16s} {'method':33s} {'who':18s} {'RMSE':15s} {'spread':>7s}"
    print(f"{'':93s}CPU ms a cycle, one thread    of {BATCH} in a batch, each")
    print(f"{head} {'filter':>9s} {'+ stats':>9s} {'filter':>9s} {'+ stats':>9s}")
    rows = []
    for problem in problems():
        if options.systems and problem.name not in options.systems:
            continue
        if options.cycles:
            problem = replace(problem, cycles=options.cycles, burn_in=min(problem.burn_in, options.cycles // 2))
        for peer in options.peers:
            if peer in missing:
                continue
            for row in compare(problem, peer, places[peer], seeds=options.seeds, seed=options.seed):
                rows.append(row)
                write(options.out, rows)
                print(line(row), flush=True)
                if "largest_difference" in row:
                    print(f"{'':50s} largest difference of the means {row['largest_difference']:.1e}", flush=True)


def software() -> dict[str, str]:
    """Versions beside ours."""
    return {"python": platform.python_version(), "torch": torch.__version__, "numpy": version("numpy")}


def write(path: Path, rows: Sequence[Row]) -> None:
    """The JSON file, a row for each filter; rows of it that were not measured now are kept."""

    def key(row: Row) -> tuple[str, ...]:
        return row["system"], row["method"], row["peer"]

    new = {key(row) for row in rows}
    old = json.loads(path.read_text())["rows"] if path.is_file() else []
    titles = {problem.name: problem.title for problem in problems()}
    kept = [row for row in old if key(row) not in new and row["system"] in titles]
    ordered = sorted([*rows, *kept], key=lambda row: list(titles).index(row["system"]))
    content = {"threads": 1, "batch": BATCH, "systems": titles, "included": INCLUDED, "rows": ordered}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    os.replace(part, path)


if __name__ == "__main__":
    main()
