"""Checkpoints: exact round trips, one clear error for every kind of damage, whole files or none."""

from __future__ import annotations

import json
import os
import pickle
from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from assimilate.errors import UnknownName
from assimilate.learning import checkpoint as module
from assimilate.learning.checkpoint import Checkpoint, CheckpointError, load_checkpoint, read_header, save_checkpoint
from assimilate.learning.networks import MLP, MLPSettings, UNet, UNetSettings
from assimilate.posterior.paths import VE, VP, FlowMatching, Interpolant
from dynamics import Lorenz63, Space


def example(path=None):
    networks = {"a": MLP(MLPSettings(channels=3, outputs=3)), "b": UNet(UNetSettings(widths=(4, 8)))}
    for network in networks.values():
        for p in network.parameters():
            nn.init.normal_(p, generator=torch.Generator().manual_seed(0))
    return Checkpoint(
        kind="test", networks=networks, tensors={"states": torch.arange(6.0).reshape(2, 3)}, space=Lorenz63().space,
        path=path or Interpolant(scale=(0.1, 0.2, 0.3)), constants={"dt": 0.025}, data={"n": 3}, record={"s": [1, 2]},
    )


@pytest.mark.parametrize("path", [VP(), VE(largest=3.0), FlowMatching(), Interpolant(2, (0.1, 0.3), 2)])
def test_round_trip(tmp_path, path):
    given = example(path)
    read = load_checkpoint(save_checkpoint(given, tmp_path / "new" / "w.safetensors"))
    for name, network in given.networks.items():
        assert read.networks[name].settings == network.settings
        for key, value in network.state_dict().items():
            assert torch.equal(read.networks[name].state_dict()[key], value)
    assert torch.equal(read.tensors["states"], given.tensors["states"])
    assert read.path == path and read.space == given.space
    assert (read.kind, read.constants, read.data, read.record) == ("test", {"dt": 0.025}, {"n": 3}, {"s": [1, 2]})
    assert isinstance(read.space, Space)


def damaged(file, change):
    content = bytearray(file.read_bytes())
    change(content)
    file.write_bytes(bytes(content))
    return file


def flip_last(content):
    content[-1] ^= 1


def cut(content):
    del content[-100:]


def spoil_header(content):
    content[0:8] = b"\xff" * 8


@pytest.mark.parametrize("change", [flip_last, cut, spoil_header])
def test_damage_is_one_clear_error(tmp_path, change):
    file = save_checkpoint(example(), tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(damaged(file, change))


def test_files_that_are_no_checkpoints(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint"):
        load_checkpoint(tmp_path / "missing.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointError, match="something else"):
        load_checkpoint(tmp_path / "foreign.safetensors")

    class Bomb:
        def __reduce__(self):
            return (os.abort, ())

    (tmp_path / "bomb.safetensors").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(tmp_path / "bomb.safetensors")


def test_a_newer_format_and_a_header_that_does_not_fit(tmp_path, monkeypatch):
    file = save_checkpoint(example(), tmp_path / "w.safetensors")
    with monkeypatch.context() as patch:
        patch.setattr(module, "FORMAT", 0)
        with pytest.raises(CheckpointError, match="update"):
            load_checkpoint(file)
    tensors, header = module.read_tensors(file)
    header["networks"]["a"]["settings"]["width"] = 7
    module.write_tensors(tensors, {k: v for k, v in header.items() if k not in ("digest", "format")}, file)
    with pytest.raises(CheckpointError, match="network 'a' cannot be rebuilt"):
        load_checkpoint(file)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    file = save_checkpoint(example(), tmp_path / "w.safetensors")
    before = file.read_bytes()

    def full(handle):
        raise OSError("no space left on device")

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(ValueError, match="no space left"):
        save_checkpoint(example(VP()), file)
    assert file.read_bytes() == before and list(tmp_path.iterdir()) == [file]


@dataclass(frozen=True)
class OwnSettings:
    size: int = 2


class Own(nn.Module):
    def __init__(self, settings):
        super().__init__()
        self.settings = settings
        self.layer = nn.Linear(settings.size, settings.size)


def test_a_network_of_ones_own(tmp_path):
    given = Checkpoint(kind="test", networks={"own": Own(OwnSettings(3))})
    with pytest.raises(UnknownName, match="Own"):
        save_checkpoint(given, tmp_path / "w.safetensors")
    table = {"own": (OwnSettings, Own)}
    file = save_checkpoint(given, tmp_path / "w.safetensors", architectures=table)
    assert load_checkpoint(file, architectures=table).networks["own"].layer.weight.shape == (3, 3)
    with pytest.raises(CheckpointError, match="unknown architecture 'own'"):
        load_checkpoint(file)
    assert json.loads(json.dumps(read_header(file)))["kind"] == "test"


def test_half_precision_halves_the_file_and_rounds_the_weights(tmp_path):
    network = UNet(UNetSettings(widths=(16, 24)))
    checkpoint = Checkpoint(kind="transition", networks={"forecast": network})
    whole = save_checkpoint(checkpoint, tmp_path / "whole.safetensors")
    half = save_checkpoint(checkpoint, tmp_path / "half.safetensors", half=True)
    assert half.stat().st_size < 0.6 * whole.stat().st_size
    found = load_checkpoint(half).networks["forecast"].state_dict()
    for key, value in network.state_dict().items():
        assert found[key].dtype == torch.float32
        # float16 has 11 significant bits.
        assert torch.allclose(found[key], value, rtol=2**-11, atol=1e-7)
