"""Checkpoints: exact round trips, damage noticed, nothing half-written."""

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pdlab.diffusion.denoiser import Denoiser
from pdlab.diffusion.schedule import CosineSchedule
from pdlab.errors import PdlabError
from pdlab.networks.mlp import MLPConfig
from pdlab.networks.registry import build, conditioning
from pdlab.networks.unet import UNetConfig
from pdlab.training.checkpoint import load, save
from pdlab.training.cost import Cost
from pdlab.training.presets import preset, to_dict
from tests import sealed

TINY_UNET = UNetConfig(
    image_size=8, channels=8, multipliers=(1, 2), blocks=1, attention=(4,), embedding_channels=16, num_classes=3
)
INFO = {
    "model": "distilled",
    "preset": to_dict(preset("digits")),
    "data": {"name": "digits", "split": "train", "shape": [1, 8, 8], "num_classes": 10, "digest": "a" * 64},
    "ema": True,
    "seed": 0,
    "teacher": None,
    "device": "CPU, 1 thread",
    "cost": dataclasses.asdict(Cost(1, 1, 1, 1.0, 1.0)),
}
TINY_MLP = MLPConfig((1, 8, 8), width=16, blocks=1, embedding_channels=8)


def denoiser(config: UNetConfig | MLPConfig = TINY_MLP, output: str = "v", steps: int | None = None) -> Denoiser:
    torch.manual_seed(0)
    schedule = CosineSchedule(-math.inf, 18.0)
    return Denoiser(build(config, output), output, schedule, steps=steps, **conditioning(config))


@pytest.mark.parametrize("output", ["x", "both"])
@pytest.mark.parametrize("config", [TINY_UNET, TINY_MLP], ids=["unet", "mlp"])
def test_round_trip(config: UNetConfig | MLPConfig, output: str, tmp_path: Path) -> None:
    original = denoiser(config, output, steps=4)
    for parameter in original.parameters():
        torch.nn.init.normal_(parameter)
    digest = save(tmp_path / "a", original, INFO)
    read = load(tmp_path / "a")
    assert read.sha256 == digest
    assert read.info == json.loads(json.dumps(INFO))
    assert (read.denoiser.steps, read.denoiser.output) == (4, output)
    assert read.denoiser.schedule == original.schedule
    assert read.denoiser.network.config == original.network.config
    z = torch.randn(2, *read.shape)
    labels = torch.tensor([0, 2]) if config is TINY_UNET else None
    for a, b in zip(original.eval()(z, 0.7, labels), read.denoiser(z, 0.7, labels), strict=True):
        assert torch.equal(a, b)


def test_equal_weights_have_equal_names(tmp_path: Path) -> None:
    assert save(tmp_path / "a", denoiser(), {}) == save(tmp_path / "b", denoiser(), INFO)


def test_others_can_read_what_one_saved(tmp_path: Path) -> None:
    """As they could any new file; safetensors makes its files private."""
    save(tmp_path / "a", denoiser(), {})
    (tmp_path / "new").touch()
    modes = {p.stat().st_mode & 0o777 for p in [tmp_path / "new", *(tmp_path / "a").iterdir()]}
    assert modes == {(tmp_path / "new").stat().st_mode & 0o777}


def test_nothing_is_pickled(tmp_path: Path) -> None:
    save(tmp_path / "a", denoiser(), {})
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["model.json", "model.safetensors"]
    assert not list(tmp_path.glob(".*"))


def flip_a_byte(folder: Path) -> None:
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def edit(folder: Path, **changes: object) -> None:
    sealed.edit(folder / "model.json", lambda header: header.update(changes))


def network(folder: Path, **changes: object) -> None:
    sealed.edit(folder / "model.json", lambda header: header["network"].update(changes))


def device(file: Path) -> None:
    file.unlink()
    file.symlink_to("/dev/zero")


DAMAGE = {
    "a byte flipped": (flip_a_byte, "damaged"),
    "weights truncated": (truncate, "damaged"),
    "weights missing": (lambda f: (f / "model.safetensors").unlink(), "has no model.safetensors"),
    "header missing": (lambda f: (f / "model.json").unlink(), "has no model.json"),
    "header cut": (lambda f: (f / "model.json").write_text('{"format": 2, "sha'), "is damaged"),
    "header of another program": (lambda f: (f / "model.json").write_text("[1]"), "not a JSON object"),
    "future format": (lambda f: edit(f, format=99), "is of format 99, and this version of pdlab"),
    "other network": (
        lambda f: edit(f, network={"kind": "mlp", "shape": [3]}),
        "does not hold the tensors",
    ),
    "a network of gigabytes": (lambda f: network(f, width=20_000), "does not hold the tensors"),
    "a network of millions of blocks": (
        lambda f: network(f, blocks=3_000_000),
        "blocks must be less than",
    ),
    "a pipe": (lambda f: ((f / "model.safetensors").unlink(), os.mkfifo(f / "model.safetensors")), "but a pipe"),
    "a device": (lambda f: device(f / "model.json"), "but a device"),
    "8 TB": (lambda f: os.truncate(f / "model.safetensors", 8 << 40), "has 8,796,093,022,208 bytes"),
    "unknown kind": (
        lambda f: edit(f, network={"kind": "gan"}),
        "kind must be one of diffusers, mlp, own, unet, not 'gan'",
    ),
    "a kind that is a list": (lambda f: network(f, kind=[]), "must be an object with the kind of network"),
    "unknown output": (lambda f: edit(f, output="y"), "unknown output"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_one_clear_line_and_a_good_neighbour_is_offered(damage: str, tmp_path: Path) -> None:
    spoil, message = DAMAGE[damage]
    save(tmp_path / "student-0008", denoiser(), {})
    save(tmp_path / "student-0004", denoiser(), {})
    spoil(tmp_path / "student-0004")
    with pytest.raises(PdlabError, match=message) as error:
        load(tmp_path / "student-0004")
    assert str(error.value).count("\n") == 0
    assert "student-0008" in str(error.value)


def test_missing_and_run_folders(tmp_path: Path) -> None:
    with pytest.raises(PdlabError, match="there is no checkpoint"):
        load(tmp_path / "nothing")
    save(tmp_path / "teacher", denoiser(), {})
    with pytest.raises(PdlabError, match=r"run with several checkpoints: name one of .*teacher"):
        load(tmp_path)


FULL_DISK = """
import resource, sys, signal
from pathlib import Path
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write past the limit then fails as on a full disk
from tests.training.test_checkpoint import denoiser
from pdlab.training.checkpoint import save
from pdlab.errors import PdlabError
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
try:
    save(Path(sys.argv[1]), denoiser(), {})
except PdlabError as error:
    print(error)
    sys.exit(2)
"""


def test_a_full_disk_loses_nothing_that_was_there(tmp_path: Path) -> None:
    before = save(tmp_path / "student-0008", denoiser(), {})
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / "student-0004")]
    result = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert result.returncode == 2, result.stderr
    assert "cannot write" in result.stdout
    assert result.stdout.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["student-0008"]  # no half of the new one either
    assert load(tmp_path / "student-0008").sha256 == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_no_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(PdlabError, match="permission denied"):
        save(tmp_path / "a", denoiser(), {})
    tmp_path.chmod(0o700)


def test_a_path_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PdlabError, match="cannot write"):
        save(tmp_path / "file" / "a", denoiser(), {})


def test_dropout_is_only_in_training_networks() -> None:
    assert build(TINY_MLP, "v", 0.3).config.dropout == 0.3
    assert build(dataclasses.replace(TINY_MLP, dropout=0.3), "v").config.dropout == 0
