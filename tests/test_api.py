"""One's own network on one's own images, from `import pdlab` alone; and what registers a user's own things."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import pdlab
from pdlab.diffusion.samplers import SAMPLERS, ddim, nfe
from pdlab.distillation.guided import guided_student
from pdlab.distillation.rounds import RoundObjective
from pdlab.networks.mlp import MLP, MLPConfig
from pdlab.training.checkpoint import read_header
from pdlab.training.loop import Upkeep
from pdlab.training.run import Run

README = Path(__file__).parent.parent / "README.md"


class Net(nn.Module):
    """A small convolutional network of 8×8 images, with classes or not."""

    def __init__(self, classes: int = 0, width: int = 8, channels: int = 3) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(channels, width, 3, padding=1), nn.Conv2d(width, channels, 3, padding=1)
        self.time = nn.Linear(1, width)
        self.label = nn.Embedding(classes, width) if classes else None

    def forward(self, z: Tensor, logsnr: Tensor, *labels: Tensor) -> Tensor:
        assert len(labels) == (self.label is not None)
        condition = self.time(logsnr[:, None] / 10)
        if self.label is not None:
            condition = condition + self.label(labels[0])
        return self.last(nn.functional.silu(self.first(z) + condition[:, :, None, None]))


def model(classes: int = 0, output: str = "v") -> pdlab.Denoiser:
    torch.manual_seed(0)
    return pdlab.Denoiser(Net(classes), output, num_classes=classes)


def images(n: int = 64) -> Tensor:
    return torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


LABELS = torch.arange(64) % 3


@pytest.mark.parametrize("classes", [0, 3])
def test_an_own_network_goes_the_whole_way(tmp_path: Path, classes: int) -> None:
    labels = LABELS if classes else None
    before = model(classes)
    run = tmp_path / "run"
    teacher = pdlab.train(before, images(), run, updates=6, labels=labels, quiet=True)
    assert all(torch.equal(a, b) for a, b in zip(before.parameters(), model(classes).parameters(), strict=True))
    assert any(
        not torch.equal(a, b) for a, b in zip(teacher.denoiser.parameters(), before.parameters(), strict=True)
    )
    students = pdlab.distill(teacher, images(), run, first=8, updates=4, labels=labels, quiet=True)
    assert list(students) == [4, 2, 1]
    assert [read_header(student.path)["info"]["teacher"] for student in students.values()] == [
        teacher.sha256,
        students[4].sha256,
        students[2].sha256,
    ]
    pdlab.save(tmp_path / "one", students[1])
    again = pdlab.load(tmp_path / "one", network=Net(classes))
    drawn = pdlab.sample(again, 5)
    assert drawn.shape == (5, 3, 8, 8)
    assert torch.equal(drawn, pdlab.sample(students[1], 5))
    assert torch.equal(drawn[:3], pdlab.sample(students[1], 3))
    more = None if labels is None else torch.arange(256) % 3
    rows = pdlab.evaluate(again, images(256), n=200, features="pixels", labels=more)
    expected = {"FD-pixels", "KD-pixels", "precision-pixels", "recall-pixels"}
    assert {row.metric for row in rows} == expected | ({"agreement-pixels"} if classes else set())
    assert rows[0].card.checkpoint == again.sha256


def test_a_teacher_from_elsewhere_is_kept_once_and_another_is_refused(tmp_path: Path) -> None:
    students = pdlab.distill(model(), images(), tmp_path, first=4, hops=4, updates=2, quiet=True)
    assert list(students) == [1]
    header = read_header(tmp_path / "teacher")
    assert header["info"]["preset"]["teacher"] is None
    assert "cost" not in header["info"]
    assert read_header(tmp_path / "student-0001")["info"]["hops"] == 4
    written = (tmp_path / "student-0001" / "model.json").stat().st_mtime_ns
    pdlab.distill(model(), images(), tmp_path, first=4, hops=4, updates=2, quiet=True)
    assert (tmp_path / "student-0001" / "model.json").stat().st_mtime_ns == written
    other = model()
    with torch.no_grad():
        next(other.parameters()).add_(1)
    with pytest.raises(pdlab.PdlabError, match="another teacher"):
        pdlab.distill(other, images(), tmp_path, first=4, hops=4, updates=2, quiet=True)


def test_going_further_down_in_the_same_run(tmp_path: Path) -> None:
    high = pdlab.distill(model(), images(), tmp_path, first=8, last=4, updates=2, quiet=True)
    low = pdlab.distill(model(), images(), tmp_path, first=8, last=1, updates=2, quiet=True)
    assert (list(high), list(low)) == ([4], [4, 2, 1])
    assert high[4].sha256 == low[4].sha256


def test_an_objective_of_ones_own_makes_other_students(tmp_path: Path) -> None:
    class Shifted(RoundObjective):
        def target(self, z, times, labels, guidance):  # type: ignore[no-untyped-def]
            x, eps, v = super().target(z, times, labels, guidance)
            return type(super().target(z, times, labels, guidance))(x + 1, eps, v)

    made = [
        pdlab.distill(model(output="x"), images(), tmp_path / name, first=2, updates=3, quiet=True, **extra)
        for name, extra in (("a", {}), ("b", {"objective": Shifted}))
    ]
    assert made[0][1].sha256 != made[1][1].sha256
    with pytest.raises(pdlab.PdlabError, match="objective"):  # the run says which it was
        pdlab.distill(model(output="x"), images(), tmp_path / "b", first=2, updates=3, quiet=True)


class Wrong(nn.Module):
    """Answers with something else."""

    def __init__(self, answer: str) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, z: Tensor, logsnr: Tensor) -> object:
        if self.answer == "fails":
            raise RuntimeError("two\nlines")
        return {"shape": z[:, :1], "dtype": z.long(), "tuple": (z,)}[self.answer]


BAD = {
    "output shape": (
        lambda: (pdlab.Denoiser(Wrong("shape"), "v"), images()),
        {},
        r"\[2, 1, 8, 8\].*\[2, 3, 8, 8\]",
    ),
    "output dtype": (lambda: (pdlab.Denoiser(Wrong("dtype"), "v"), images()), {}, "int64.*floating"),
    "no tensor": (lambda: (pdlab.Denoiser(Wrong("tuple"), "v"), images()), {}, "a tuple"),
    "an error": (lambda: (pdlab.Denoiser(Wrong("fails"), "v"), images()), {}, "Wrong.*fails on.*two lines"),
    "both": (lambda: (model(output="both"), images()), {}, r"\[2, 6, 8, 8\]"),
    "labels not taken": (lambda: (pdlab.Denoiser(Net(3), "v"), images()), {}, "Net.*fails on"),
    "no labels": (lambda: (model(3), images()), {}, "conditioned on 3 classes, but images has 0"),
    "too many classes": (
        lambda: (model(3), images()),
        {"labels": torch.arange(64)},
        "labels go up to 63, but only 3 classes",
    ),
    "labels of another number": (lambda: (model(3), images()), {"labels": LABELS[:9]}, "64 integers.*9"),
    "negative labels": (lambda: (model(3), images()), {"labels": LABELS - 1}, "from -1 on"),
    "out of range": (lambda: (model(), images() * 2), {}, r"not within \[-1, 1\]"),
    "not finite": (lambda: (model(), images() * torch.nan), {}, "not finite"),
    "integers": (lambda: (model(), torch.zeros(4, 3, 8, 8, dtype=torch.int32)), {}, "uint8, or floats"),
    "no images": (lambda: (model(), images()[0]), {}, r"\[N, C, H, W\]"),
    "other channels": (lambda: (model(), images()[:, :1]), {}, "Net.*fails on a batch of"),
    "a network alone": (lambda: (Net(), images()), {}, "Denoiser"),
    "hops": (lambda: (model(), images()), {"first": 6, "hops": 4}, "dividing by 4 6 steps"),
    "no halving": (lambda: (model(), images()), {"first": 6}, "halving 6 steps"),
    "a setting": (lambda: (model(), images()), {"rate": 1.0}, "unknown setting 'rate'"),
    "a bad value": (lambda: (model(), images()), {"lr": -1.0}, "lr"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_one_line_and_nothing_is_written(tmp_path: Path, what: str) -> None:
    make, extra, message = BAD[what]
    denoiser, data = make()
    with pytest.raises(pdlab.PdlabError, match=message) as caught:
        pdlab.distill(denoiser, data, tmp_path / "run", **{"first": 4, "updates": 1, "quiet": True, **extra})
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_labels_are_asked_for_and_refused_in_a_call() -> None:
    z = torch.zeros(2, 3, 8, 8)
    with pytest.raises(pdlab.PdlabError, match="no classes"):
        model()(z, 0.5, LABELS[:2])
    with pytest.raises(pdlab.PdlabError, match="give labels"):
        model(3)(z, 0.5)


def test_weights_do_not_load_into_another_network(tmp_path: Path) -> None:
    pdlab.save(tmp_path / "a", pdlab.Denoiser(Net(), "v", shape=(3, 8, 8)))
    with pytest.raises(pdlab.PdlabError, match=r"network Net describes.*first.bias is \[8\], not \[16\]"):
        pdlab.load(tmp_path / "a", network=Net(width=16))
    with pytest.raises(pdlab.PdlabError, match=r"tests\.test_api\.Net is a network of one's own.*--plugin"):
        pdlab.load(tmp_path / "a")
    with pytest.raises(pdlab.PdlabError, match=r"Denoiser\(…, shape="):
        pdlab.save(tmp_path / "b", model())
    assert not (tmp_path / "b").exists()


def test_a_sampler_may_be_a_function(tmp_path: Path) -> None:
    def twice(denoiser, noise, steps, *, clip=None, labels=None, guidance=None, draw=None):  # type: ignore[no-untyped-def]
        for step in ddim(denoiser, noise, steps, clip=clip, labels=labels, guidance=guidance):
            yield step._replace(z=step.z + draw(step.z))

    own = pdlab.Denoiser(Net(), "v", shape=(3, 8, 8))
    drawn = pdlab.sample(own, 300, 3, twice, precision="fp32")
    assert not torch.equal(drawn, pdlab.sample(own, 300, 3, precision="fp32"))
    assert torch.equal(drawn, pdlab.sample(own, 300, 3, twice, precision="fp32", batch=250))
    rows = pdlab.evaluate(own, images(256), 3, twice, n=200, features="pixels", precision="fp32")
    assert rows[0].card.sampler == {"name": "test_a_sampler_may_be_a_function.<locals>.twice"}
    assert nfe(twice, 3) == 3
    with pytest.raises(pdlab.PdlabError, match="unknown sampler 'none'"):
        pdlab.sample(own, 1, 3, "none")


def test_names_that_are_taken_are_refused() -> None:
    with pytest.raises(pdlab.PdlabError, match="a sampler 'ddim' already"):
        pdlab.register_sampler("ddim")(lambda *a, **k: iter(()))
    with pytest.raises(pdlab.PdlabError, match="a network 'unet' already"):
        pdlab.register_network("unet")(Net)
    with pytest.raises(pdlab.PdlabError, match="a data set 'digits' already"):
        pdlab.register_dataset("digits")(lambda wanted: None)  # type: ignore[arg-type, return-value]
    with pytest.raises(pdlab.PdlabError, match="must be a dataclass with a shape"):
        pdlab.register_network("other", int)(Net)
    assert SAMPLERS["ddim"] is ddim


def _blocks(heading: str) -> list[tuple[str, str]]:
    text = README.read_text().split(heading)[1].split("\n## ")[0]
    return re.findall(r"```(\w+)\n(.*?)```", text, re.S)


def _pictures(folder: Path, n: int = 40) -> None:
    rng = np.random.default_rng(0)
    for k in range(n):
        (folder / "ab"[k % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(folder / "ab"[k % 2] / f"{k}.png")


def test_the_readmes_lines_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they stand, but for the counts."""
    language, code = _blocks("## From Python: your own network")[0]
    assert language == "python"
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    _pictures(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PDLAB_CACHE", str(tmp_path / "cache"))
    short = code.replace("20_000", "3").replace("first=64", "first=4, updates=2")
    short = short.replace("n=5000", 'n=30, features="pixels"').replace("size=32", "size=8")
    short = short.replace('features="pixels")', "features=Mean())")
    found: dict[str, object] = {"MyNetwork": Net, "Mean": Mean}
    exec(compile(short, "README", "exec"), found)
    assert found["x"].shape == (16, 3, 8, 8)  # type: ignore[attr-defined]
    assert found["rows"][0].metric == "FD-mean"  # type: ignore[index]


class Mean:
    """A feature extractor of one's own: the mean of each channel."""

    name = label = "mean"
    dim = 3

    def __call__(self, images: Tensor) -> Tensor:
        return images.double().mean((2, 3))

    def describe(self) -> dict[str, object]:
        return {"name": "mean"}


def test_the_readmes_plugin_works_on_the_command_line(tmp_path: Path) -> None:
    blocks = _blocks("### Adding a sampler, a data set, a network, a preset")
    (tmp_path / "my.py").write_text(next(code for language, code in blocks if language == "python"))
    commands = next(code for language, code in blocks if language == "bash").splitlines()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PDLAB_CACHE": str(tmp_path / "cache")}

    def run(command: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-m", "pdlab.cli", *command.split()[1:]]
        return subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)

    assert [line.split()[1] for line in commands] == ["train", "distill", "sample", "app"]
    for line, short in zip(commands[:3], ("--updates 20", "--updates 5 --from 4", "--n 9"), strict=True):
        done = run(f"{line} {short}")
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "grid.png").exists()
    done = run("pdlab evaluate runs/b/student-0001 --features pixels --n 80 --plugin my.py")
    assert done.returncode == 0, done.stderr
    assert "my-preset" in run("pdlab presets --plugin my.py").stdout
    without = run("pdlab sample runs/b/student-0001 --out other.png")
    assert without.returncode == 2
    assert without.stderr.count("\n") == 1
    assert "--plugin" in without.stderr
    for text, why in (("1 / 0\n", "ZeroDivisionError"), ("def\n", "SyntaxError")):
        (tmp_path / "bad.py").write_text(text)
        failed = run("pdlab presets --plugin bad.py")
        assert (failed.returncode, failed.stderr.count("\n")) == (2, 1)
        assert why in failed.stderr
    assert "no Python file" in run("pdlab presets --plugin nowhere.py").stderr


def test_a_killed_script_ends_with_the_same_bits(tmp_path: Path) -> None:
    script = textwrap.dedent("""
        import sys, torch, pdlab
        from pdlab.training.loop import Upkeep
        from tests.test_api import images, model
        torch.set_num_threads(1)
        settings = {"updates": int(sys.argv[2]), "batch": 16, "upkeep": Upkeep(save_every=0.02), "quiet": True}
        print(pdlab.distill(model(), images(), sys.argv[1], first=2, **settings)[1].sha256)
    """)

    def start(run: str) -> subprocess.Popen[str]:
        words = [sys.executable, "-c", script, str(tmp_path / run), "150"]
        return subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=README.parent)

    whole, _ = start("whole").communicate()
    killed = start("killed")
    deadline = time.monotonic() + 120
    while len(list((tmp_path / "killed" / "progress").glob("student-0001-*"))) < 2:
        assert killed.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    again, _ = start("killed").communicate()
    assert again == whole != ""


def test_a_network_without_a_way_in_for_guidance_is_refused_it(tmp_path: Path) -> None:
    own = pdlab.Denoiser(Net(4), "v", num_classes=3, null_class=True, shape=(3, 8, 8))
    with pytest.raises(pdlab.PdlabError, match="Net has no way in for a guidance weight"):
        guided_student(own, 2.0)
    with pytest.raises(pdlab.PdlabError, match="no way in"):
        pdlab.distill(own, images(), tmp_path / "run", first=4, labels=LABELS, guidance_max=2.0, quiet=True)
    assert not (tmp_path / "run").exists()


class Usual(nn.Module):
    """What networks have beside trained weights: frozen frequencies, running statistics, what no loss reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.frequencies = nn.Parameter(torch.linspace(0.1, 1, 4), requires_grad=False)
        self.unused = nn.Parameter(torch.zeros(3))
        self.time, self.norm = nn.Linear(4, 8), nn.BatchNorm2d(8)
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, z: Tensor, logsnr: Tensor) -> Tensor:
        condition = self.time((logsnr[:, None] * self.frequencies).sin())
        return self.last((self.norm(self.first(z)) + condition[:, :, None, None]).relu())


def test_what_a_network_has_beside_trained_weights_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    own = pdlab.Denoiser(Usual(), "x")
    whole = pdlab.train(own, images(), tmp_path / "whole", updates=8, batch=8, quiet=True)
    norm = whole.denoiser.network.get_submodule("norm")
    assert norm.num_batches_tracked == 8
    assert norm.running_var.ne(1).any()

    save = Run.save_state

    def saved_and_interrupted(run: Run, stage: str, k: int, *rest: Any) -> None:
        save(run, stage, k, *rest)
        if k == 5:
            raise KeyboardInterrupt

    cut, often = tmp_path / "cut", Upkeep(save_every=0)
    with monkeypatch.context() as patched:
        patched.setattr(Run, "save_state", saved_and_interrupted)
        with pytest.raises(KeyboardInterrupt):
            pdlab.train(own, images(), cut, updates=8, batch=8, quiet=True, upkeep=often)
    assert [state.name for state in (cut / "progress").iterdir() if state.name.endswith("5")]
    again = pdlab.train(own, images(), cut, updates=8, batch=8, quiet=True)
    assert again.sha256 == whole.sha256
    students = pdlab.distill(whole, images(), tmp_path / "whole", first=2, updates=3, quiet=True)
    after = students[1].denoiser.network.state_dict()
    for name in ("frequencies", "unused", "norm.running_var", "norm.num_batches_tracked"):
        assert torch.equal(after[name], whole.denoiser.network.state_dict()[name]), name


def test_steps_and_numbers_below_one_are_refused() -> None:
    own = pdlab.Denoiser(Net(), "v", shape=(3, 8, 8))
    with pytest.raises(pdlab.PdlabError, match="steps must be at least 1, not 0"):
        pdlab.sample(own, 4, 0)
    with pytest.raises(pdlab.PdlabError, match="n must be at least 1, not 0"):
        pdlab.sample(own, 0, 2)
    with pytest.raises(pdlab.PdlabError, match="no step count of its own"):
        pdlab.sample(own, 4)


def test_training_leaves_the_process_s_random_numbers_alone(tmp_path: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    own = model()
    torch.manual_seed(3)
    pdlab.train(own, images(), tmp_path, updates=2, quiet=True)
    assert torch.equal(torch.rand(2), expected)


def test_labels_need_not_have_every_class(tmp_path: Path) -> None:
    students = pdlab.distill(model(5), images(), tmp_path, first=2, updates=1, labels=LABELS, quiet=True)
    assert students[1].classes == ["0", "1", "2", "3", "4"]


def test_a_registered_network_learns_to_be_told_the_guidance(tmp_path: Path) -> None:
    config = MLPConfig(shape=(3, 8, 8), width=16, blocks=1, num_classes=3, null_class=True)
    torch.manual_seed(0)
    own = pdlab.Denoiser(MLP(config), "x", num_classes=3, null_class=True)
    teacher = pdlab.train(own, images(), tmp_path, updates=4, labels=LABELS, label_drop=0.2, quiet=True)
    students = pdlab.distill(
        teacher, images(), tmp_path, first=4, updates=2, labels=LABELS, guidance_max=2.0, quiet=True
    )
    assert read_header(tmp_path / "guided")["info"]["teacher"] == teacher.sha256
    assert pdlab.sample(students[1], 4, classes=["2"], guidance=1.5).shape == (4, 3, 8, 8)
    with pytest.raises(pdlab.PdlabError, match=r"guidance 3 is outside"):
        pdlab.sample(students[1], 4, guidance=3.0)
    again = pdlab.distill(
        teacher, images(), tmp_path, first=4, updates=2, labels=LABELS, guidance_max=2.0, quiet=True
    )
    assert [s.sha256 for s in again.values()] == [s.sha256 for s in students.values()]
