"""Students that are adapters: rounds, runs, what is on disk, and what a wrong or missing base says."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import pdlab
from pdlab.data import load as load_data
from pdlab.diffusion.denoiser import Denoiser
from pdlab.distillation.rounds import BASE, Ladder, distill
from pdlab.errors import PdlabError
from pdlab.networks.mlp import MLP, MLPConfig
from pdlab.tensors import read_tensors, write_folder
from pdlab.training.checkpoint import Checkpoint, load, read_header
from pdlab.training.loop import Upkeep
from pdlab.training.machine import Machine
from pdlab.training.presets import Optimization, Preset, override, preset
from pdlab.training.run import Run
from pdlab.training.teacher import train
from tests import sealed, test_kill
from tests.command import refused
from tests.test_base import bare

CPU = Machine("cpu", "fp32")
FEW = Optimization(updates=20, batch=32, lr=1e-2)
SMALL: Preset = override(
    preset("digits"),
    {
        **{"network.width": "64", "network.blocks": "2", "network.embedding_channels": "16"},
        **{"teacher.updates": "20", "distill.updates": "5", "teacher.batch": "16", "distill.batch": "16"},
    },
)
DIGITS = load_data("digits")
RANK = 2


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    with Run(tmp_path_factory.mktemp("teacher") / "run") as run:
        return load(train(SMALL, DIGITS, run, CPU))


@pytest.fixture(scope="module")
def made(teacher: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of students of 4, 2 and 1 steps."""
    path = tmp_path_factory.mktemp("lora") / "run"
    students(teacher, path)
    return path


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "moved"))


def students(teacher: Checkpoint, path: Path, last: int = 1, rank: int | None = RANK, **how: object) -> list[Path]:
    with Run(path) as run:
        return distill(teacher, DIGITS, SMALL, run, CPU, first=8, last=last, rank=rank, **how)  # type: ignore[arg-type]


def weights(denoiser: Denoiser) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in denoiser.network.state_dict().items()}


def test_a_round_changes_the_adapter_alone_and_the_next_goes_on_from_it() -> None:
    torch.manual_seed(0)
    teacher = Denoiser(MLP(MLPConfig((1, 8, 8), width=32, blocks=2)), "v")
    for p in teacher.network.parameters():
        nn.init.normal_(p, std=0.1)
    before, z = weights(teacher), torch.randn(4, 1, 8, 8)
    rounds = Ladder(teacher, DIGITS, CPU, rank=RANK)
    base = {name: t for name, t in weights(rounds.student).items() if name.endswith("base_layer.weight")}
    start = {name: p.detach().clone() for name, p in rounds.adapter.items()}
    with torch.no_grad():
        assert torch.equal(rounds.student(z, 0.5).x, teacher(z, 0.5).x)
    rounds.descend(4, FEW)
    assert not any(torch.equal(start[name], p) for name, p in rounds.adapter.items())
    assert all(torch.equal(weights(rounds.student)[name], tensor) for name, tensor in base.items())
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(rounds.teacher).items())
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(teacher).items())
    rounds.promote()
    with torch.no_grad():
        torch.testing.assert_close(rounds.teacher(z, 0.5).x, rounds.student(z, 0.5).x, rtol=1e-4, atol=1e-5)
        assert (rounds.teacher(z, 0.5).x - teacher(z, 0.5).x).abs().max() > 1e-3
    assert rounds.teacher.steps == 4
    rounds.descend(2, Optimization(updates=1, batch=8, lr=1e-30))
    merged = weights(rounds.teacher)
    rounds.promote()
    assert all(torch.equal(merged[name], tensor) for name, tensor in weights(rounds.teacher).items())


def test_a_rung_is_the_base_and_one_adapter(made: Path, teacher: Checkpoint) -> None:
    assert (made / BASE / "model.safetensors").read_bytes() == (teacher.path / "model.safetensors").read_bytes()  # type: ignore[operator]
    parent, base = teacher.sha256, weights(teacher.denoiser)
    for steps in (4, 2, 1):
        path = made / f"student-{steps:04d}"
        header = read_header(path)
        assert header["adapter"] == {"rank": RANK, "base": BASE, "sha256": teacher.sha256}
        assert header["info"]["teacher"] == parent
        student = load(path)
        parent, now = student.sha256, weights(student.denoiser)
        assert student.denoiser.steps == steps
        assert now.keys() == base.keys()
        for name, tensor in now.items():
            change = tensor - base[name]
            if tensor.ndim == 2:
                a, b = (student.adapter[f"{name.removesuffix('.weight')}.lora_{half}.weight"] for half in "AB")
                torch.testing.assert_close(change, b @ a, rtol=1e-3, atol=1e-6)
                assert 1 <= torch.linalg.matrix_rank(change, tol=1e-5) <= RANK
        size = (path / "model.safetensors").stat().st_size
        assert size < 0.15 * (made / BASE / "model.safetensors").stat().st_size


def test_the_backward_pass_of_what_stays_is_not_counted(made: Path, teacher: Checkpoint, tmp_path: Path) -> None:
    (full,) = students(teacher, tmp_path / "full", last=4, rank=None)
    costs = [load(path).info["cost"] for path in (full, made / "student-0004")]
    assert costs[0]["images"] == costs[1]["images"]
    assert 0.8 < costs[1]["flops"] / costs[0]["flops"] < 1


def test_a_base_of_the_run_is_not_copied(teacher: Checkpoint, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(teacher.path.parent, run)  # type: ignore[union-attr]
    (student,) = students(load(run / "teacher"), run, last=4)
    assert read_header(student)["adapter"]["base"] == "teacher"
    assert not (run / BASE).exists()
    assert load(student).denoiser.steps == 4


def test_going_on_ends_with_the_same_bits(made: Path, teacher: Checkpoint, tmp_path: Path) -> None:
    """After a finished round, and after a stop in the middle of one."""
    students(teacher, tmp_path / "run", last=4)

    class Enough(Exception):
        pass

    def stop(_: Denoiser) -> dict[str, float]:
        raise Enough

    with pytest.raises(Enough):
        students(teacher, tmp_path / "run", last=2, upkeep=Upkeep(save_every=0, measure=stop, measure_every=3))
    assert sorted(path.name for path in (tmp_path / "run" / "progress").iterdir()) == [
        "student-0002-00000001",
        "student-0002-00000002",
    ]
    students(teacher, tmp_path / "run")
    for name in ("student-0004", "student-0002", "student-0001"):
        assert load(tmp_path / "run" / name).sha256 == load(made / name).sha256


@pytest.mark.slow
def test_a_killed_run_ends_with_the_weights_of_an_unkilled_one(
    teacher: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(test_kill, "KILLS", 3)
    command = ["distill", str(teacher.path), *test_kill.DISTILL, "--lora", "4"]
    test_kill.finish(command, tmp_path / "whole")
    assert len(test_kill.kill_until_done(command, tmp_path / "killed", seed=1)) >= 3
    for name in ("student-0004", "student-0002", "student-0001"):
        assert load(tmp_path / "killed" / name).sha256 == load(tmp_path / "whole" / name).sha256


def test_another_rank_is_another_run(copied: Path, teacher: Checkpoint) -> None:
    for rank, words in ((3, "lora was 2, is 3"), (None, "lora was 2, is None")):
        with pytest.raises(PdlabError, match=words):
            students(teacher, copied, rank=rank)


def test_an_adapter_is_not_adapted_but_distilled_whole(made: Path, tmp_path: Path) -> None:
    rung = load(made / "student-0002")
    with pytest.raises(PdlabError, match=r"is an adapter itself: .*pdlab\.save"), Run(tmp_path / "a") as run:
        distill(rung, DIGITS, SMALL, run, CPU, first=2, rank=RANK)
    with Run(tmp_path / "b") as run:
        (one,) = distill(rung, DIGITS, SMALL, run, CPU, first=2)
    assert load(one).adapter == {}
    pdlab.save(tmp_path / "whole", rung)
    z = torch.randn(2, 1, 8, 8)
    assert torch.equal(load(tmp_path / "whole").denoiser(z, 0.5).x, rung.denoiser(z, 0.5).x)
    with Run(tmp_path / "c") as run:
        distill(load(tmp_path / "whole"), DIGITS, SMALL, run, CPU, first=2, rank=RANK)


class Own(nn.Module):
    """Of 3 × 8 × 8, with a norm that counts its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(3, 24, 3, padding=1), nn.BatchNorm2d(24), nn.Conv2d(24, 3, 1)

    def forward(self, z: Tensor, logsnr: Tensor) -> Tensor:
        out: Tensor = self.last(nn.functional.silu(self.norm(self.first(z)) + logsnr[:, None, None, None] / 10))
        return out


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_network_of_ones_own(tmp_path: Path, optimizer: str) -> None:
    images = torch.rand(64, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    network = Own()
    network.outer_layers = ("first",)
    how = {"batch": 16, "ema": 0.9, "quiet": True, "optimizer": optimizer}
    teacher = pdlab.train(pdlab.Denoiser(network, "v"), images, tmp_path / "run", updates=6, **how)  # type: ignore[arg-type]
    made = pdlab.distill(teacher, images, tmp_path / "run", first=4, lora=RANK, updates=4, **how)  # type: ignore[arg-type]
    again = pdlab.load(tmp_path / "run" / "student-0001", network=Own())
    assert again.sha256 == made[1].sha256
    a, b = (pdlab.sample(model, 3) for model in (made[1], again))
    assert torch.equal(a, b)
    assert not torch.equal(pdlab.sample(teacher, 3, 1), b)


def rewritten(rung: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """The rung with other tensors, sealed and hashed as it should be."""
    header, tensors = read_header(rung), read_tensors(rung / "model.safetensors", read_header(rung)["sha256"])
    change(tensors)
    shutil.rmtree(rung)
    write_folder(rung, "model", tensors, {k: v for k, v in header.items() if k != "sha256"}, "")


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def standing(rung: Path, **changes: object) -> None:
    sealed.edit(rung / "model.json", lambda header: header["adapter"].update(changes))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "another byte": (lambda r: flip(r / "model.safetensors"), "is damaged"),
    "another byte in the base": (
        lambda r: flip(r.parent / BASE / "model.safetensors"),
        "is not the checkpoint that",
    ),
    "no base": (lambda r: shutil.rmtree(r.parent / BASE), "take the whole folder of the run"),
    "a base that is a file": (
        lambda r: (shutil.rmtree(r.parent / BASE), (r.parent / BASE).touch()),
        "is not the checkpoint that",
    ),
    "another base": (lambda r: standing(r, sha256="0" * 64), "put that of sha256 000000000000… there"),
    "an adapter as a base": (
        lambda r: standing(r, base="student-0004", sha256=load(r.parent / "student-0004").sha256),
        "does not hold the tensors that its JSON describes",
    ),
    "a base elsewhere": (lambda r: standing(r, base="../run/base"), "adapter.base string must match pattern"),
    "a base above": (lambda r: standing(r, base=".."), "adapter.base string must match pattern"),
    "another rank": (lambda r: standing(r, rank=3), r"lora_A.weight is \[2, .*\], not \[3, "),
    "no rank": (lambda r: standing(r, rank=0), "adapter.rank"),
    "a rank of gigabytes": (lambda r: standing(r, rank=10**9), "adapter.rank"),
    "another shape": (
        lambda r: rewritten(r, lambda t: t.update({"first.lora_B.weight": torch.zeros(9, RANK)})),
        r"first.lora_B.weight is \[9, 2\], not \[64, 2\]",
    ),
    "one tensor less": (lambda r: rewritten(r, lambda t: t.pop("first.bias")), "first.bias is absent"),
    "nan": (lambda r: rewritten(r, lambda t: t["first.bias"].fill_(torch.nan)), "other things than finite numbers"),
    "whole numbers": (
        lambda r: rewritten(r, lambda t: t.update({"first.bias": torch.zeros(64, dtype=torch.int64)})),
        "other things than finite numbers",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_one_clear_line(damage: str, copied: Path) -> None:
    spoil, message = DAMAGE[damage]
    assert load(copied / "student-0002").denoiser.steps == 2  # moved as a whole it is whole
    spoil(copied / "student-0002")
    with pytest.raises(PdlabError, match=message) as error:
        load(copied / "student-0002")
    assert "\n" not in str(error.value)
    if damage in ("another byte in the base", "no base", "a base that is a file"):  # they all stand on it
        assert "newest good" not in str(error.value)


def test_a_rung_of_another_rank_is_not_gone_on_from(copied: Path, teacher: Checkpoint, tmp_path: Path) -> None:
    students(teacher, tmp_path / "other", last=4, rank=3)
    for name in ("student-0004", "student-0002", "student-0001"):
        shutil.rmtree(copied / name)
    shutil.copytree(tmp_path / "other" / "student-0004", copied / "student-0004")
    with pytest.raises(PdlabError, match="is no student of this run's --lora: remove it"):
        students(teacher, copied)


def test_another_checkpoint_in_the_place_of_the_base(teacher: Checkpoint, tmp_path: Path) -> None:
    pdlab.save(tmp_path / "run" / BASE, Denoiser(MLP(MLPConfig((1, 8, 8), width=8)), "x", shape=(1, 8, 8)))
    with pytest.raises(PdlabError, match=r"is another checkpoint than .*: choose another --run"):
        students(teacher, tmp_path / "run")
    assert not (tmp_path / "run" / "distill.json").exists()


def test_a_rung_is_read_without_peft_and_made_only_with_it(teacher: Checkpoint, made: Path, tmp_path: Path) -> None:
    without = ("peft", "transformers", "accelerate")
    done = bare("sample", made / "student-0001", "--out", tmp_path / "x.npz", "--n", 2, without=without)
    assert done.code == 0, done.err
    command = ("distill", teacher.path, "--run", tmp_path / "run", "--from", 4, "--lora", 2)
    refused(bare(*command, without=without), "an adapter (--lora) needs peft: pip install 'pdlab[lora]'")
    assert not (tmp_path / "run").exists()


def test_the_command_line(pdlab, teacher: Checkpoint, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    run, few = tmp_path / "run", ("--updates", 2, "--batch", 8, "--device", "cpu")
    done = pdlab("distill", teacher.path, "--run", run, "--from", 4, "--to", 2, "--lora", 2, *few)
    assert done.code == 0, done.err
    assert read_header(run / "student-0002")["adapter"]["rank"] == 2
    for rank in ("0", "4097", str(10**9), "2.5"):
        refused(
            pdlab("distill", teacher.path, "--run", tmp_path / "no", "--from", 4, "--lora", rank, *few), "--lora"
        )


QUIET = """
import socket, sys
def refuse(*args, **how):
    raise AssertionError("it goes out")
socket.socket.connect = socket.getaddrinfo = refuse
from pdlab.networks import lora
from pdlab.networks.mlp import MLP, MLPConfig
assert "peft" not in sys.modules and "transformers" not in sys.modules
lora.inject(MLP(MLPConfig((2,), width=8)), 2)
"""


def test_peft_comes_late_and_says_and_asks_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", QUIET], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
