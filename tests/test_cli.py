"""The command line as users meet it: whole runs, and one clear line for everything that can go wrong."""

import io
import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from pdlab import cli
from pdlab.errors import PdlabError
from pdlab.files import alone, digest_of
from pdlab.training.checkpoint import load
from pdlab.training.presets import PRESETS, override, preset
from tests import sealed
from tests.command import Result, refused

TINY = ["--set", "network.width=32", "--set", "network.blocks=1", "--batch", "32", "--device", "cpu"]
SHARED_CIFAR = Path(__file__).resolve().parents[2] / "shared" / "cifar10"


@pytest.fixture
def teacher(pdlab, tmp_path: Path) -> Path:
    assert pdlab("train", "digits", "--run", tmp_path / "r", "--updates", 20, *TINY).code == 0
    return tmp_path / "r" / "teacher"


def test_train_distill_sample_evaluate(pdlab, teacher: Path, tmp_path: Path) -> None:
    run = teacher.parent
    result = pdlab("distill", teacher, "--run", run, "--from", 8, "--updates", 5, "--batch", 32)
    assert result.code == 0
    assert "distillation" in result.out
    students = [run / f"student-000{n}" for n in (4, 2, 1)]
    assert [load(path).denoiser.steps for path in students] == [4, 2, 1]
    lineage = [load(teacher).sha256, *(load(path).sha256 for path in students)]
    assert [load(path).info["teacher"] for path in students] == lineage[:-1]
    updates = [load(path).info["optimization"]["updates"] for path in students]
    assert updates == [5, 10, 10]
    assert load(students[1]).info["cost"]["forward_evaluations"] == 3 * 10 * 32

    assert pdlab("sample", students[1], "--out", tmp_path / "grid.png", "--n", 9).code == 0
    with Image.open(tmp_path / "grid.png") as image:
        assert image.size[0] >= 256
    assert pdlab("sample", teacher, "--steps", 3, "--out", tmp_path / "s.npz", "--n", 7).code == 0
    assert np.load(tmp_path / "s.npz")["arr_0"].shape == (7, 8, 8, 1)

    out = tmp_path / "report.json"
    result = pdlab(
        "evaluate", teacher, students[0], "--features", "pixels", "--n", 100, "--steps", "2,4", "--out", out
    )
    assert result.code == 0
    rows = json.loads(out.read_text())["rows"]
    assert [(r["model"], r["steps"], r["metric"]) for r in rows] == [
        (model, steps, metric)
        for model in ("teacher", "distilled")
        for steps in (2, 4)
        for metric in ("FD-pixels", "KD-pixels", "precision-pixels", "recall-pixels")
    ]
    card = rows[0]["card"]
    assert card["n"] == 100
    assert card["checkpoint"] == load(teacher).sha256
    assert card["reference"]["size"] == 1797
    assert card["real"]["value"] > 0
    assert "with replacement" in card["real"]["how"]
    assert "distilled for 4 steps" in result.err  # and asked for 2


def test_classes_and_guidance(pdlab, tmp_path: Path) -> None:
    given = ("network.num_classes=10", "network.null_class=true", "teacher.label_drop=0.1")
    conditional = [part for setting in given for part in ("--set", setting)]
    fast = ("--updates", 100, "--lr", "1e-2", "--set", "teacher.ema=0")
    assert pdlab("train", "digits", "--run", tmp_path / "r", *TINY, *fast, *conditional).code == 0
    teacher, out = tmp_path / "r" / "teacher", tmp_path / "s.npz"
    draw = ("sample", teacher, "--steps", 2, "--n", 5, "--out", out)

    assert pdlab(*draw, "--class", "7", "--class", "3, 1", "--guidance", 1.5).code == 0
    assert np.load(out)["arr_1"].tolist() == [7, 3, 1, 7, 3]
    guided = np.load(out)["arr_0"]
    assert pdlab(*draw, "--class", "7,3,1").code == 0
    assert not np.array_equal(np.load(out)["arr_0"], guided)
    assert pdlab(*draw).code == 0
    assert np.load(out)["arr_1"].tolist() == [0, 1, 2, 3, 4]
    assert pdlab("sample", teacher, "--steps", 1, "--n", 20, "--out", tmp_path / "g.png").code == 0
    with Image.open(tmp_path / "g.png") as image:
        assert image.width > 4 * image.height  # ten columns, two rows
    out.unlink()
    refused(pdlab(*draw, "--class", "ship"), "no class ship", "0, 1, 2", "9")
    refused(pdlab(*draw, "--guidance", "inf"), "finite")
    assert not out.exists()

    how = ("--features", "pixels", "--n", 100, "--steps", 2, "--out", tmp_path / "e.json")
    result = pdlab("evaluate", teacher, *how, "--guidance", 0.5)
    assert result.code == 0
    assert "agreement-pixels: higher is better" in result.out
    rows = {row["metric"]: row for row in json.loads((tmp_path / "e.json").read_text())["rows"]}
    assert list(rows) == [f"{kind}-pixels" for kind in ("FD", "KD", "agreement", "precision", "recall")]
    card = rows["agreement-pixels"]["card"]
    assert (card["guidance"], card["nfe"], card["classes"]) == (0.5, 4, [str(k) for k in range(10)])
    assert 0.8 < card["real"]["value"] <= 1


def test_models_without_classes_take_none(pdlab, teacher: Path, tmp_path: Path) -> None:
    draw = ("sample", teacher, "--steps", 2, "--out", tmp_path / "s.npz")
    refused(pdlab(*draw, "--class", "3"), "without classes")
    refused(pdlab(*draw, "--guidance", "1"), "no null class")
    how = ("--features", "pixels", "--n", 100, "--out", tmp_path / "r.json")
    refused(pdlab("evaluate", teacher, *how, "--guidance", "1"), "no null class")
    assert not list(tmp_path.glob("*.[nj]*"))


def test_the_same_seed_gives_the_same_samples(pdlab, teacher: Path, tmp_path: Path) -> None:
    for name, seed, n in (("a", 1, 300), ("b", 1, 260), ("c", 2, 260)):
        pdlab("sample", teacher, "--steps", 2, "--seed", seed, "--n", n, "--out", tmp_path / f"{name}.npz")
    a, b, c = (np.load(tmp_path / f"{name}.npz")["arr_0"] for name in "abc")
    assert np.array_equal(a[:260], b)  # the first samples do not depend on how many
    assert not np.array_equal(b, c)


def test_toys_train_and_draw(pdlab, tmp_path: Path) -> None:
    assert pdlab("train", "toy", "--run", tmp_path / "r", "--updates", 5, *TINY, "--dataset", "spiral").code == 0
    path = tmp_path / "r" / "teacher"
    assert pdlab("sample", path, "--steps", 4, "--out", tmp_path / "p.png").code == 0
    assert pdlab("sample", path, "--steps", 4, "--out", tmp_path / "p.npz", "--n", 5).code == 0
    assert np.load(tmp_path / "p.npz")["arr_0"].shape == (5, 2)
    refused(pdlab("evaluate", path, "--out", tmp_path / "r.json"), "images only")


def test_again_returns_at_once_and_other_settings_are_refused(pdlab, teacher: Path) -> None:
    before = load(teacher).sha256
    assert pdlab("train", "digits", "--run", teacher.parent, "--updates", 20, *TINY).code == 0
    assert load(teacher).sha256 == before
    refused(
        pdlab("train", "digits", "--run", teacher.parent, "--updates", 21, *TINY), "teacher.updates was 20, is 21"
    )


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["train", "mnist"], ["unknown preset 'mnist'", "cifar10-gpu"]),
        (["train", "cifar10-gpu", "--data", "nowhere"], ["nowhere", "--data"]),
        (["train", "digits", "--output", "score"], ["unknown output", "x, eps, v, both"]),
        (["train", "digits", "--set", "lr"], ["FIELD=VALUE"]),
        (["train", "digits", "--set", "teacher.rate=1"], ["unknown field"]),
        (["train", "digits", "--updates", "0"], ["--updates", "see pdlab train --help"]),
        (["train", "digits", "--updates", "many"], ["--updates"]),
        (["train", "digits", "--dataset", "moons"], ["1×8×8", "moons"]),
        (["train", "digits", "--device", "tpu"], ["--device"]),
        (["train", "digits", "--output", "eps", "--set", "logsnr_min=-inf"], ["alpha = 0", "x, v or both"]),
        (["train", "imagenet64"], ["--data"]),
        (["train", "digits", "--set", "network.width=-3"], ["network: width", "-3"]),
        (["train", "digits", "--set", "network.width=0"], ["network: width"]),
        (["train", "digits", "--set", "network.width=99999999"], ["network: width"]),
        (["train", "digits", "--set", "network.width=1048576"], ["GiB of memory", "smaller network"]),
        (["train", "digits", "--set", "network.blocks=-1"], ["network: blocks"]),
        (["train", "digits", "--set", "network.blocks=3000000"], ["network: blocks"]),
        (["train", "digits", "--set", "network.embedding_channels=-2"], ["embedding_channels"]),
        (["train", "digits", "--set", "network.embedding_channels=7"], ["multiple of 2"]),
        (["train", "digits", "--set", "network.dropout=2"], ["network: dropout"]),
        (["train", "digits", "--set", "teacher.dropout=2"], ["teacher: dropout"]),
        (["train", "digits", "--set", "teacher.weight_decay=-1"], ["weight_decay"]),
        (["train", "digits", "--set", "teacher.clip=-1"], ["clip"]),
        (["train", "digits", "--set", "teacher.warmup=-5"], ["warmup"]),
        (["train", "digits", "--set", "first_steps=0"], ["first_steps"]),
        (["train", "digits", "--set", "size=-1"], ["size"]),
        (["train", "digits", "--set", "size=100000000000"], ["size"]),
        (["train", "digits", "--set", "name=[/x]"], ["name", "[/x]"]),
        (["train", "digits", "--set", "name=../x"], ["name"]),
        (["train", "digits", "--lr", "inf"], ["lr", "finite"]),
        (["train", "digits", "--updates", "1000000000000"], ["--updates"]),
        (["train", "digits", "--batch", "1000000000000"], ["--batch"]),
        (["train", "digits", "--batch", "1000000000"], ["batch of 1,000,000,000", "GiB", "smaller --batch"]),
        (["train", "digits", "--data", "~nosuch/x"], ["~nosuch", "no such home folder"]),
        (["train", "digits", "--save-every", "nan"], ["--save-every"]),
    ],
)
def test_bad_input_writes_nothing(pdlab, tmp_path: Path, monkeypatch, args: list[str], words: list[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PDLAB_DATA", raising=False)
    refused(pdlab(*args, "--run", "r"), *words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--from", "48"], ["halving 48", "--from 32 --to 1"]),
        (["--from", "8", "--to", "3"], ["does not give 3"]),
        (["--from", "1"], ["--from"]),
        (["--set", "network.width=64"], ["network.width", "distill.*"]),
        (["--dataset", "moons"], ["trained on digits, not on moons"]),
        (["--dataset", "mnist"], ["unknown data set"]),
        (["--from", str(2**70)], ["--from"]),
        (["--updates", "99999999"], ["updates"]),
        (["--set", "distill.lr=-1"], ["distill: lr"]),
        (["--batch", "1000000000"], ["GiB", "smaller --batch"]),
    ],
)
def test_bad_distillation_writes_nothing(pdlab, teacher: Path, tmp_path: Path, args, words) -> None:
    refused(pdlab("distill", teacher, "--run", tmp_path / "d", *args), *words)
    assert not (tmp_path / "d").exists()


def test_a_student_is_distilled_from_its_own_steps(pdlab, teacher: Path, tmp_path: Path) -> None:
    assert pdlab("distill", teacher, "--run", teacher.parent, "--from", 8, "--to", 4, "--updates", 1).code == 0
    student = teacher.parent / "student-0004"
    refused(
        pdlab("distill", student, "--run", tmp_path / "d", "--from", 16), "distilled for 4 steps: give --from 4"
    )
    assert not (tmp_path / "d").exists()


def test_bad_checkpoints(pdlab, teacher: Path, tmp_path: Path) -> None:
    out = tmp_path / "g.png"
    refused(pdlab("sample", tmp_path / "none", "--out", out), "there is no checkpoint")
    refused(pdlab("sample", teacher.parent, "--out", out), "name one of")
    refused(pdlab("sample", teacher, "--out", out), "give steps (--steps)")
    refused(pdlab("sample", teacher, "--steps", 2, "--out", tmp_path / "g.gif"), ".png", ".npz")
    refused(
        pdlab("evaluate", teacher, "--features", "pixels", "--n", 64, "--out", tmp_path / "r.json"), "too few", "65"
    )
    refused(pdlab("evaluate", teacher, "--steps", "4,x", "--out", tmp_path / "r.json"), "1,2,4")
    (teacher / "model.safetensors").write_bytes(b"x")
    refused(pdlab("sample", teacher, "--steps", 2, "--out", out), "damaged")
    assert not out.exists()
    assert not (tmp_path / "r.json").exists()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["sample", "--steps", 10**12], ["--steps"]),
        (["sample", "--steps", 2, "--n", 10**18], ["--n"]),
        (["sample", "--steps", 2, "--n", 10**9], ["1,000,000,000 samples", "GiB", "smaller --n"]),
        (["sample", "--steps", 2, "--sampler", "ancestral", "--nu", "nan"], ["--nu"]),
        (["sample", "--steps", 2, "--seed", 2**70], ["--seed"]),
        (["evaluate", "--features", "pixels", "--n", 10**13], ["--n"]),
        (["evaluate", "--features", "pixels", "--n", 10**9], ["GiB", "smaller --n"]),
        (["evaluate", "--features", "pixels", "--n", 100, "--steps", 10**12], ["--steps"]),
    ],
)
def test_more_than_there_is_is_refused_with_the_number(pdlab, teacher: Path, tmp_path: Path, args, words) -> None:
    out = tmp_path / ("g.npz" if args[0] == "sample" else "g.json")
    refused(pdlab(args[0], teacher, "--out", out, *args[1:]), *words)
    assert not out.exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda info: info["cost"].pop("flops"),
        lambda info: info["cost"].update(more=1),
        lambda info: info["cost"].update(seconds=-1.0),
        lambda info: info.pop("seed"),
        lambda info: info["preset"].update(first_steps=2.5),
        lambda info: info["preset"]["teacher"].update(batch=-3),
        lambda info: info["preset"]["network"].pop("shape"),
        lambda info: info["data"].update(digest=7),
        lambda info: info.update(more=[]),
    ],
)
def test_what_a_checkpoint_says_of_itself_is_checked_first(pdlab, teacher: Path, tmp_path: Path, change) -> None:
    sealed.edit(teacher / "model.json", lambda header: change(header["info"]))
    for args in (
        ["sample", teacher, "--steps", 1, "--out", tmp_path / "a.npz"],
        ["evaluate", teacher, "--features", "pixels", "--n", 65, "--steps", 1, "--out", tmp_path / "a.json"],
        ["distill", teacher, "--run", tmp_path / "d"],
    ):
        refused(pdlab(*args), "model.json: info")
    assert not [name for name in ("a.npz", "a.json", "d") if (tmp_path / name).exists()]


def test_weights_that_are_not_finite_are_refused(pdlab, teacher: Path, tmp_path: Path) -> None:
    weights = safetensors.torch.load_file(teacher / "model.safetensors")
    weights["first.bias"][0] = float("nan")
    safetensors.torch.save_file(weights, teacher / "model.safetensors")
    digest = digest_of(teacher / "model.safetensors")
    sealed.edit(teacher / "model.json", lambda header: header.update(sha256=digest))
    refused(pdlab("sample", teacher, "--steps", 1, "--out", tmp_path / "a.npz"), "first.bias", "finite")


@pytest.mark.parametrize("name", ["[/b]", "[red]", ":smile:", "\x1b[2J", "\udcff"])
def test_a_name_is_text(pdlab, teacher: Path, tmp_path: Path, name: str) -> None:
    run = tmp_path / name
    result = pdlab("train", "digits", "--run", run, "--updates", 1, *TINY)
    assert result.code == 0, result.err
    assert (run / "teacher" / "model.json").exists()
    again = pdlab("sample", run / "teacher", "--steps", 1, "--n", 1, "--out", run / "a.npz")
    assert again.code == 0, again.err
    assert "\x1b" not in result.out + again.out
    assert (name in result.out) == name.isprintable()


def test_a_name_that_is_too_long(pdlab, tmp_path: Path) -> None:
    refused(pdlab("sample", "a" * 5000, "--steps", 1, "--out", tmp_path / "a.npz"), "cannot be the name")
    refused(pdlab("train", "digits", "--run", tmp_path / ("a" * 300), *TINY), "cannot write to", "name too long")


def test_output_that_cannot_be_written(teacher: Path) -> None:
    """A pipe closed by its reader ends without a word, a full device in one line."""
    command = f"{sys.executable} -m pdlab.cli zoo"
    closed = subprocess.run(["bash", "-c", f"{command} | true"], capture_output=True, text=True)
    assert closed.stderr == ""
    full = subprocess.run(["bash", "-c", f"{command} > /dev/full"], capture_output=True, text=True)
    assert (full.returncode, full.stderr.count("\n")) == (2, 1)
    assert "no space left on device" in full.stderr
    mute = subprocess.run(["bash", "-c", f"{command} paint 2>&-"], capture_output=True, text=True)
    assert mute.returncode == 2


def test_an_environment_that_the_app_cannot_start_in_is_said() -> None:
    command = [sys.executable, "-m", "pdlab.cli", "app"]
    environment = {**os.environ, "GRADIO_SERVER_PORT": "banana"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "unset GRADIO_" in result.stderr


def test_another_thread_count_is_said(pdlab, teacher: Path) -> None:
    run = teacher.parent
    assert pdlab("distill", teacher, "--run", run, "--from", 4, "--to", 2, "--updates", 1, "--batch", 4).code == 0
    torch.set_num_threads(2)
    try:  # which also shows that a run that stopped at 2 steps goes on to 1
        result = pdlab("distill", teacher, "--run", run, "--from", 4, "--to", 1, "--updates", 1, "--batch", 4)
    finally:
        torch.set_num_threads(1)
    assert result.code == 0, result.err
    assert "begun on CPU, 1 thread, going on with CPU, 2 threads" in " ".join(result.err.split())
    assert "not the same bits" in " ".join(result.err.split())


def test_precision_is_part_of_a_run(pdlab, teacher: Path) -> None:
    args = ["distill", teacher, "--run", teacher.parent, "--from", 2, "--updates", 1, "--batch", 4]
    assert pdlab(*args, "--precision", "fp32").code == 0
    refused(pdlab(*args, "--precision", "bf16"), "precision was fp32, is bf16")


def test_something_in_the_way_is_said_before_training(pdlab, tmp_path: Path) -> None:
    (tmp_path / "r" / "teacher").mkdir(parents=True)
    refused(pdlab("train", "digits", "--run", tmp_path / "r", "--updates", 1, *TINY), "teacher is in the way")
    assert not (tmp_path / "r" / "train.json").exists()


@pytest.mark.parametrize("kind", ["pipe", "socket", "folder"])
def test_what_is_no_file_does_not_block(pdlab, teacher: Path, tmp_path: Path, monkeypatch, kind: str) -> None:
    neighbour = tmp_path / "r" / "student-0002"
    shutil.copytree(teacher, neighbour)
    for file in (neighbour / "model.json", teacher / "model.json"):
        file.unlink()
        if kind == "socket":
            monkeypatch.chdir(file.parent)  # a socket's path must be short
            with socket.socket(socket.AF_UNIX) as bound:
                bound.bind(file.name)
        else:
            (os.mkfifo if kind == "pipe" else os.mkdir)(file)
    refused(
        pdlab("sample", teacher, "--steps", 1, "--out", tmp_path / "a.npz"),
        f"model.json is not a file but a {kind}",
    )


def test_nan(pdlab, tmp_path: Path) -> None:
    result = pdlab("train", "digits", "--run", tmp_path / "r", "--updates", 50, *TINY, "--lr", "1e38")
    refused(result, "not finite at update", "lower lr")
    assert not (tmp_path / "r" / "teacher").exists()


def test_no_write_permission(pdlab, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(pdlab("train", "digits", "--run", tmp_path / "file" / "r", *TINY), "cannot write to")
    refused(pdlab("train", "digits", "--run", "/proc/pdlab", *TINY), "cannot write to", "--run")


def archive(folder: Path, content: bytes) -> Path:
    """A file with the name of the official archive."""
    folder.mkdir()
    (folder / "cifar-10-python.tar.gz").write_bytes(content)
    return folder


def tar_of(name: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


class Bomb:
    """A pickle that would leave a file behind when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):  # type: ignore[no-untyped-def]
        return (Path.touch, (self.path,))


def test_hostile_and_damaged_archives(pdlab, tmp_path: Path) -> None:
    good = tar_of("cifar-10-batches-py/data_batch_1", b"x" * 1000)
    tampered = bytearray(good)
    tampered[-20] ^= 1
    for name, content in (("truncated", good[:-30]), ("tampered", bytes(tampered)), ("other", good)):
        folder = archive(tmp_path / name, content)
        refused(pdlab("train", "cifar10-gpu", "--data", folder, "--run", tmp_path / "r"), "cifar-10-python.tar.gz")
    batches = tmp_path / "evil" / "cifar-10-batches-py"
    batches.mkdir(parents=True)
    for k in range(1, 6):
        (batches / f"data_batch_{k}").write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    (batches / "test_batch").write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    refused(pdlab("train", "cifar10-gpu", "--data", tmp_path / "evil", "--run", tmp_path / "r"), "data_batch_1")
    assert not (tmp_path / "exploded").exists()
    assert not (tmp_path / "r").exists()


def test_help_and_version_from_the_shell() -> None:
    """The installed module, started as a user's shell starts it."""
    command = [sys.executable, "-m", "pdlab.cli"]
    result = subprocess.run([*command, "--help"], capture_output=True, text=True)
    assert result.returncode == 0
    for name in ("quickstart", "train", "distill", "sample", "evaluate", "bench"):
        assert name in result.stdout
    assert subprocess.run([*command, "--version"], capture_output=True, text=True).stdout.startswith("pdlab ")
    result = subprocess.run([*command, "paint"], capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "No such command 'paint'" in result.stderr


@pytest.mark.slow
@pytest.mark.skipif(not SHARED_CIFAR.exists(), reason="needs CIFAR-10 beside the repository, in ../shared")
def test_cifar10_from_the_command_line(tmp_path: Path) -> None:
    """20 updates of cifar10-gpu, stage one and one round, on real images; the loss falls."""
    subprocess.run([sys.executable, SHARED_CIFAR / "unpack.py", tmp_path, "--bin"], check=True)
    run = tmp_path / "r"
    command = [sys.executable, "-m", "pdlab.cli"]
    common = ["--data", tmp_path, "--run", run, "--batch", "32", "--device", "cpu"]
    train = [*command, "train", "cifar10-gpu", *common, "--updates", "20", "--set", "teacher.warmup=5"]
    subprocess.run(train, check=True)
    rounds = ["--from", "8", "--to", "4", "--updates", "4", "--set", "guide.updates=2", "--set", "guide.batch=32"]
    subprocess.run([*command, "distill", run / "teacher", *common, *rounds], check=True)
    guided, student = load(run / "guided"), load(run / "student-0004")
    assert guided.info["teacher"] == load(run / "teacher").sha256
    assert student.info["teacher"] == guided.sha256
    losses = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    of_teacher = [entry["loss"] for entry in losses if entry["stage"] == "teacher"]
    assert len(of_teacher) >= 2
    assert of_teacher[-1] < 0.8 * of_teacher[0]


def test_presets_are_listed_and_shown_as_what_set_takes(pdlab) -> None:
    listed = pdlab("presets").out
    assert all(name in listed for name in PRESETS)
    for name in ("digits", "imagenet64"):
        lines = dict(line.split("=", 1) for line in pdlab("presets", name).out.splitlines())
        changes = {field: value for field, value in lines.items() if value not in ("None", "")}
        assert override(preset(name), changes) == preset(name)
    refused(pdlab("presets", "mnist"), "unknown preset 'mnist'")


def test_a_folder_is_resized_as_the_preset_says(pdlab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []

    def load(name: str, split: str, root: Path, size: int, download: bool, resize: str) -> None:
        asked.append((name, size, resize))
        raise PdlabError("enough")

    monkeypatch.setattr("pdlab.data.load", load)
    for name in ("lsun128", "imagenet64"):
        refused(pdlab("train", name, "--run", tmp_path / "r", "--data", tmp_path), "enough")
        model = SimpleNamespace(preset=preset(name), info={"data": {"name": "folder"}})
        with pytest.raises(PdlabError, match="enough"):  # as `distill` and `evaluate` take their teacher's data
            cli._data_of(model, tmp_path, None, False)
    assert asked == [("folder", 128, "bilinear")] * 2 + [("folder", 64, "box")] * 2


def test_a_teacher_grows_from_a_smaller_one(pdlab, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for k in range(8):
        Image.fromarray(np.full((16, 16, 3), 30 * k, np.uint8)).save(folder / f"{k}.png")
    shape = {"blocks": 1, "attention": "4", "embedding_channels": 16, "patch": 2, "group_size": 4, "head_dim": 8}
    small = {"image_size": 8, "channels": 8, "multipliers": "1,2", "attention": "2", **shape, "num_classes": 0}
    small |= {"attention": "2", "null_class": "false", "image_levels": 1}
    large = small | {"image_size": 16, "multipliers": "1,1,2", "image_levels": 2}

    def train(run: str, network: dict[str, object], size: int, *more: object) -> Result:
        sets = [f"network.{name}={value}" for name, value in network.items()]
        sets += [f"size={size}", "teacher.label_drop=0", "guidance_max=0", "teacher.warmup=1", "teacher.ema=0"]
        options = [part for text in sets for part in ("--set", text)]
        common = ["--dataset", "folder", "--data", folder, "--updates", 2, "--batch", 4, "--device", "cpu"]
        return pdlab("train", "cifar10-cpu", "--run", tmp_path / run, *common, *options, *more)

    assert train("small", small, 8).code == 0
    teacher = tmp_path / "small" / "teacher"
    assert (
        train("large", large, 16, "--grow-from", teacher, "--lr", 1e-9, "--set", "teacher.optimizer=adamw").code
        == 0
    )
    grown = load(tmp_path / "large" / "teacher")
    assert grown.info["grown_from"]["sha256"] == load(teacher).sha256
    with torch.no_grad():
        flat = torch.full((1, 3, 16, 16), 0.5)
        x = grown.denoiser(flat, 0.05).x
    assert (x[:, :, ::2, ::2] - x[:, :, 1::2, 1::2]).abs().max() < 1e-5  # the small one's pixels, 2×2 times each
    refused(train("other", large | {"blocks": 2}, 16, "--grow-from", teacher), "cannot grow", "blocks is 2, not 1")
    refused(train("other", large, 16, "--grow-from", teacher, "--output", "v"), "predicts x")
    assert not (tmp_path / "other" / "train.json").exists()
    refused(train("large", large, 16, "--lr", 1e-9, "--set", "teacher.optimizer=adamw"), "grow_from")


def test_snapshots_on_the_way_are_checkpoints_like_the_last(pdlab, tmp_path: Path) -> None:
    train = ["train", "digits", "--run", tmp_path / "r", "--updates", 12, "--snapshot-every", 4, *TINY]
    assert pdlab(*train).code == 0
    names = sorted(path.name for path in (tmp_path / "r").iterdir() if path.is_dir() and path.name[0] == "t")
    assert [name for name in names if name.startswith("teacher")] == ["teacher", "teacher@4", "teacher@8"]
    snapshot = load(tmp_path / "r" / "teacher@8")
    assert snapshot.info["cost"]["images"] == 8 * 32
    assert snapshot.info["ema"]
    plain = ["train", "digits", "--run", tmp_path / "plain", "--updates", 12, *TINY]
    assert pdlab(*plain).code == 0
    assert load(tmp_path / "plain" / "teacher").sha256 == load(tmp_path / "r" / "teacher").sha256
    for name in ("teacher@4", "teacher@8"):
        with Image.open(tmp_path / "r" / f"{name}.png") as image:
            assert image.size == (497, 497)  # 8 × 8 digits of 8 pixels with gaps between, enlarged
    out = tmp_path / "grid.png"
    assert pdlab("sample", tmp_path / "r" / "teacher@4", "--steps", 2, "--n", 4, "--out", out).code == 0


def test_two_evaluations_of_one_report_are_told(pdlab, teacher: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    evaluate = ["evaluate", teacher, "--steps", 1, "--features", "pixels", "--n", 70, "--out", out]
    with alone(out, "busy"):
        refused(pdlab(*evaluate), "another pdlab writes", "another --out")
    assert pdlab(*evaluate).code == 0
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
