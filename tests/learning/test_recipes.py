"""What `assimilate fit` runs: settings from a table, training, a checkpoint with its record."""

from __future__ import annotations

import pytest

from assimilate.errors import UnknownName, UserError
from assimilate.learning.pretrained import load_pretrained
from assimilate.learning.recipes import build_settings, train
from assimilate.learning.transition_fit import TransitionFit
from dynamics.linear import LinearGaussian

TINY = {
    "simulation": {"trajectories": 20, "states": 21, "spinup": 5},
    "training": {"steps": 30, "batch": 64, "held_out_batch": 64},
    "network": {"width": 8},
    "length": 3,
}


def test_tables_change_settings_and_keep_the_other_defaults():
    settings = build_settings(TransitionFit, {"steps": 5, "denoiser": {"steps": 7}}, "recipe 'transition'")
    assert settings.steps == 5 and settings.denoiser.steps == 7
    assert settings.denoiser.seed == TransitionFit().denoiser.seed != settings.forecast.seed
    assert settings.forecast == TransitionFit().forecast


@pytest.mark.parametrize(
    ("table", "message"),
    [({"stepps": 1}, "did you mean 'steps'"), ({"denoiser": {"bach": 1}}, "denoiser.*did you mean 'batch'"),
     ({"denoiser": {"steps": 0}}, "steps is 0; expected a whole number of 1 or more")],
)
def test_a_wrong_setting_is_named(table, message):
    with pytest.raises(UserError, match=message):
        build_settings(TransitionFit, table, "recipe 'transition'")


def test_a_window_prior_is_trained_written_and_read(tmp_path):
    system = LinearGaussian.scalar(0.9, 1.0)
    file = train("window", system, TINY, file=tmp_path / "w.safetensors", resume=tmp_path / "resume")
    assert (tmp_path / "resume" / "window.safetensors").exists()
    prior = load_pretrained(file)
    assert prior.order == 1 and prior.dt == system.dt
    assert prior.record["denoiser"]["settings"]["steps"] == 30
    with pytest.raises(UnknownName, match="did you mean 'window'"):
        train("windows", system, file=tmp_path / "x")


def test_a_transition_records_what_was_measured(tmp_path):
    table = {
        "simulation": TINY["simulation"], "stored": 8, "steps": 2,
        "forecast": TINY["training"], "denoiser": TINY["training"],
    }
    file = train("transition", LinearGaussian.scalar(0.9, 1.0), table, file=tmp_path / "t.safetensors")
    measured = load_pretrained(file).record["measured"]
    assert set(measured) >= {"mean", "spread", "states", "draws"} and len(measured["spread"]) == 1
