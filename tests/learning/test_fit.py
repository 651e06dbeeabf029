"""Training: it learns, it resumes after a kill to the very bit, it refuses another run's file."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from assimilate.learning.checkpoint import CheckpointError, read_header
from assimilate.learning.denoiser import EDMDenoiser
from assimilate.learning.fit import FitSettings, fit, seeded
from assimilate.learning.networks import MLP, MLPSettings, UNet, UNetSettings
from assimilate.learning.objectives import Batch, Denoising, LogUniform

SETTINGS = FitSettings(steps=300, batch=128, learning_rate=1e-2, ema=0.98, held_out_every=50, resume_every=7)
MATRIX = torch.tensor([[1.0, 2.0], [0.0, -1.0]])


def network(width=16):
    return seeded(0, lambda: MLP(MLPSettings(channels=2, outputs=2, width=width)))


def draw(count, rng):
    x = torch.randn(count, 2, generator=rng)
    return Batch(x @ MATRIX.T + 0.1 * torch.randn(count, 2, generator=rng), condition=x)


def loss(model, batch, rng):
    return (model(batch.condition) - batch.clean).square().mean()


def test_it_learns_a_regression_and_keeps_a_record():
    fitted = fit(network(), loss, draw, replace(SETTINGS, steps=1500), held_out=draw)
    x = torch.randn(1000, 2, generator=torch.Generator().manual_seed(9))
    error = (fitted.model(x) - x @ MATRIX.T).square().mean().sqrt()
    assert float(error) < 0.05  # the noise of the data is 0.1, the state of order 2
    rows = fitted.record["losses"]["rows"]
    assert [row[0] for row in rows] == list(range(50, 1501, 50))
    assert rows[-1][2] == pytest.approx(0.01, rel=0.2)  # the noise's variance
    assert not any(p.requires_grad for p in fitted.model.parameters())


def test_the_model_given_is_left_alone_and_the_seed_decides_everything():
    given = network()
    before = {k: v.clone() for k, v in given.state_dict().items()}
    short = replace(SETTINGS, steps=20)
    first, second = (fit(given, loss, draw, short).model.state_dict() for _ in range(2))
    other = fit(given, loss, draw, replace(short, seed=1)).model.state_dict()
    assert all(torch.equal(before[k], v) for k, v in given.state_dict().items())
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert any(not torch.equal(first[k], other[k]) for k in first)


def test_a_killed_run_continues_to_the_same_bits(tmp_path):
    script, file = tmp_path / "run.py", tmp_path / "resume.safetensors"
    script.write_text(textwrap.dedent(f"""
        import sys, time, torch
        torch.set_num_threads({torch.get_num_threads()})
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import test_fit as here
        def slow(count, rng):
            time.sleep(0.01)
            return here.draw(count, rng)
        here.fit(here.network(), here.loss, slow, here.SETTINGS, held_out=here.draw, resume={str(file)!r})
    """))
    process = subprocess.Popen([sys.executable, str(script)])
    limit = time.monotonic() + 120
    while not file.exists() and time.monotonic() < limit:
        time.sleep(0.005)
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run ended before it was killed: make it longer"
    step = read_header(file)["step"]
    assert 0 < step < SETTINGS.steps
    resumed = fit(network(), loss, draw, SETTINGS, held_out=draw, resume=file)
    straight = fit(network(), loss, draw, SETTINGS, held_out=draw)
    for key, value in straight.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[key], value)
    assert resumed.record["losses"] == straight.record["losses"]


def test_a_finished_run_is_not_repeated(tmp_path):
    file = tmp_path / "done.safetensors"
    first = fit(network(), loss, draw, replace(SETTINGS, steps=20), resume=file)

    def never(count, rng):
        raise AssertionError("trained again")

    again = fit(network(), loss, never, replace(SETTINGS, steps=20), resume=file)
    assert all(torch.equal(again.model.state_dict()[k], v) for k, v in first.model.state_dict().items())


def test_a_file_of_another_run_is_refused(tmp_path):
    file = tmp_path / "resume.safetensors"
    fit(network(), loss, draw, replace(SETTINGS, steps=10), resume=file)
    with pytest.raises(CheckpointError, match="other settings"):
        fit(network(), loss, draw, replace(SETTINGS, steps=11), resume=file)
    with pytest.raises(CheckpointError, match="another network"):
        fit(network(width=8), loss, draw, replace(SETTINGS, steps=10), resume=file)


def test_a_loss_that_is_not_finite_stops_the_run():
    def broken(model, batch, rng):
        return loss(model, batch, rng) * float("nan")

    with pytest.raises(FloatingPointError, match="step 0"):
        fit(network(), broken, draw, SETTINGS)
    with pytest.raises(ValueError, match="ema"):
        FitSettings(ema=1.0)


@pytest.mark.slow
def test_a_compiled_network_learns_the_same():
    # Compiling takes most of a minute; the numbers may differ in the last bits.
    def trained(compiled: bool) -> torch.Tensor:
        network = seeded(0, lambda: UNet(UNetSettings(widths=(8, 16))))
        denoiser = EDMDenoiser(network, event_dims=3)
        settings = FitSettings(steps=5, batch=4, compile=compiled, held_out_every=0)
        draw = lambda count, rng: Batch(torch.randn(count, 1, 16, 16, generator=rng))  # noqa: E731
        model = fit(denoiser, Denoising(LogUniform(0.1, 1.0)), draw, settings).model
        return torch.cat([p.flatten() for p in model.parameters()])

    assert torch.allclose(trained(True), trained(False), atol=1e-5)
