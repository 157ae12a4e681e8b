"""Guided distillation against a mixture with classes, whose guided denoiser is known in closed form."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pdlab.data import load as load_data
from pdlab.data.source import Source
from pdlab.diffusion.denoiser import Denoiser
from pdlab.diffusion.mixture import GaussianMixture
from pdlab.diffusion.samplers import sample
from pdlab.distillation.guided import GUIDED, GuidedObjective, guided_student
from pdlab.distillation.rounds import Ladder, RoundObjective, distill
from pdlab.errors import PdlabError
from pdlab.networks.mlp import MLP, MLPConfig
from pdlab.networks.registry import conditioning
from pdlab.training.checkpoint import load
from pdlab.training.loop import Stopped, Upkeep, fit
from pdlab.training.machine import Machine
from pdlab.training.objective import TIMES
from pdlab.training.presets import Optimization, Preset, override, preset
from pdlab.training.run import Run
from pdlab.training.teacher import train

W_MAX = 3.0
CPU = Machine("cpu", "fp32")


def mixture() -> GaussianMixture:
    means = torch.tensor([[0.7, 0.0], [-0.5, 0.6], [-0.5, -0.6], [0.0, 0.2]])
    return GaussianMixture(means, torch.tensor([0.15, 0.1, 0.1, 0.2]), classes=torch.tensor([0, 1, 1, 2]))


class Points(Source):
    """Labelled draws of the mixture."""

    name, split, shape, num_classes, bounded, digest = "points", "train", (2,), 3, False, "points"

    def __init__(self) -> None:
        self.mixture = mixture()

    def to(self, device: torch.device | str) -> "Points":
        return self

    def draw(self, n: int, generator: torch.Generator, flip: bool = False) -> tuple[Tensor, Tensor]:
        k = torch.randint(4, (n,), generator=generator)
        noise = torch.randn(n, 2, generator=generator)
        return self.mixture.means[k] + self.mixture.stds[k, None] * noise, torch.tensor([0, 1, 1, 2])[k]


def denoiser(config: MLPConfig, output: str = "v") -> Denoiser:
    torch.manual_seed(0)
    return Denoiser(MLP(config), output, bounded=False, **conditioning(config))


class Exact(nn.Module):
    """The guided mixture as one network that is told w."""

    def __init__(self) -> None:
        super().__init__()
        self.mixture = mixture()

    def forward(self, z: Tensor, logsnr: Tensor, labels: Tensor, guidance: Tensor) -> Tensor:
        w = guidance[:, None]
        return (1 + w) * self.mixture(z, logsnr, labels) - w * self.mixture(z, logsnr)


def exact() -> Denoiser:
    return Denoiser(Exact(), "x", bounded=False, num_classes=3, guidance_max=W_MAX)


@pytest.mark.parametrize("weighting", ["truncated", "snr+1"])
def test_stage_ones_target_is_the_guided_mixture(weighting: str) -> None:
    """The exact guided denoiser has no loss; one that guides everyone alike, or not at all, has."""
    objective = GuidedObjective(mixture().denoiser(), weighting)
    x, labels = Points().draw(512, torch.Generator().manual_seed(0))

    def loss(student: Denoiser) -> float:
        return float(objective(student, x, labels, torch.Generator().manual_seed(1)).mean())

    class Alike(Exact):
        def forward(self, z: Tensor, logsnr: Tensor, labels: Tensor, guidance: Tensor) -> Tensor:
            return super().forward(z, logsnr, labels, guidance.mean().expand(len(z)))

    assert loss(exact()) < 1e-10
    assert loss(Denoiser(Alike(), "x", bounded=False, num_classes=3, guidance_max=W_MAX)) > 1e-3


def test_weights_cover_the_range_one_for_each_example() -> None:
    seen: list[Tensor] = []

    class Spy(Exact):
        def forward(self, z: Tensor, logsnr: Tensor, labels: Tensor, guidance: Tensor) -> Tensor:
            seen.append(guidance)
            return super().forward(z, logsnr, labels, guidance)

    student = Denoiser(Spy(), "x", bounded=False, num_classes=3, guidance_max=W_MAX)
    x, labels = Points().draw(4000, torch.Generator().manual_seed(0))
    GuidedObjective(mixture().denoiser(), "truncated")(student, x, labels, torch.Generator().manual_seed(1))
    counts = torch.histc(seen[0], 10, 0, W_MAX)
    assert counts.sum() == 4000
    assert counts.min() > 320


def test_the_student_begins_as_its_teacher_at_any_weight() -> None:
    teacher = denoiser(MLPConfig((2,), width=32, blocks=2, num_classes=3, null_class=True))
    for parameter in teacher.network.parameters():
        nn.init.normal_(parameter, std=0.3)
    student = guided_student(teacher, W_MAX)
    assert (student.guidance_max, student.null_class, student.num_classes) == (W_MAX, False, 3)
    z, labels = torch.randn(3, 2), torch.tensor([0, 1, 2])
    assert torch.equal(student(z, 0.5, labels, 2.0).x, teacher(z, 0.5, labels).x)
    with pytest.raises(PdlabError, match="null class"):
        guided_student(denoiser(MLPConfig((2,), num_classes=3)), W_MAX)
    with pytest.raises(PdlabError, match="above 0"):
        guided_student(teacher, 0.0)


def test_without_its_branch_a_guided_round_is_an_ordinary_one_bit_for_bit() -> None:
    """At w = 0 and the branch at 0: losses and the gradients of all shared weights."""
    ordinary = denoiser(MLPConfig((2,), width=32, blocks=2, num_classes=3))
    for parameter in ordinary.network.parameters():
        nn.init.normal_(parameter, std=0.3)
    config = MLPConfig((2,), width=32, blocks=2, num_classes=3, guidance_max=W_MAX)
    guided = denoiser(config)
    guided.network.load_state_dict(ordinary.network.state_dict(), strict=False)
    x, labels = Points().draw(64, torch.Generator().manual_seed(0))
    gradients = []
    for pupil in (ordinary, guided):
        objective = RoundObjective(pupil, 4, "truncated")
        losses = objective(pupil, x, labels, torch.Generator().manual_seed(1))
        losses.mean().backward()
        gradients.append(
            [losses, *(pupil.network.get_parameter(n).grad for n, _ in ordinary.network.named_parameters())]
        )
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.slow
def test_a_whole_guided_ladder_ends_where_the_exact_guided_flow_does() -> None:
    """Stage one, then 8 steps to 1 for all weights at once; guidance applied again would land elsewhere."""
    config = MLPConfig((2,), width=96, blocks=3, embedding_channels=64, num_classes=3, guidance_max=W_MAX)
    student = denoiser(config)
    settings = Optimization(updates=800, batch=256, lr=4e-3, warmup=50, anneal=True, ema=0.99)
    trained = fit(student, GuidedObjective(mixture().denoiser(), "truncated"), Points(), settings, CPU)
    student.network.load_state_dict(trained.weights)

    g = torch.Generator().manual_seed(9)
    noise, labels = torch.randn(1500, 2, generator=g), torch.arange(1500) % 3
    weights = W_MAX * torch.rand(1500, generator=g)

    def ends(model: Denoiser, steps: int, w: Tensor = weights) -> Tensor:
        return sample(model, noise, steps, labels=labels, guidance=w)

    def distance(a: Tensor, b: Tensor) -> float:
        return float((a - b).norm(dim=1).median())

    perfect = mixture().denoiser()
    truth, unguided = ends(perfect, 8), ends(perfect, 8, 0 * weights)
    compounded = ends(perfect, 8, (1 + weights) ** 2 - 1)
    assert distance(ends(student, 8), truth) < 0.02  # stage one: the same sampler, in one call a step
    rounds = Ladder(student, Points(), CPU)
    for steps in (4, 2, 1):
        rounds.descend(steps, Optimization(updates=300, batch=256, lr=2e-3, anneal=True))
        rounds.promote()
        end = ends(rounds.student, steps)
        assert distance(end, truth) < 0.03
        for elsewhere in (compounded, unguided, ends(perfect, steps)):
            assert distance(elsewhere, truth) > 0.06


def settings() -> Preset:
    changes = {
        "network.num_classes": "10",
        "network.null_class": "true",
        "network.width": "32",
        "network.blocks": "1",
        "teacher.label_drop": "0.1",
        "teacher.updates": "12",
        "teacher.batch": "16",
        "guidance_max": "2",
        "guide.updates": "12",
        "guide.batch": "16",
        "distill.updates": "8",
        "distill.batch": "16",
        "distill.ema": "0.5",
        "first_steps": "4",
    }
    return override(preset("digits"), changes)


@pytest.mark.parametrize(("one", "other"), [("stratified", "independent"), ("independent", "stratified")])
def test_every_stage_draws_its_times_as_its_settings_say(
    one: str, other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []
    for name, draw in list(TIMES.items()):
        monkeypatch.setitem(TIMES, name, lambda *how, n=name, d=draw: (drawn.append(n), d(*how))[1])
    own, digits = override(settings(), {"teacher.times": one, "guide.times": other, "distill.times": one}), "digits"
    with Run(tmp_path) as run:
        teacher = load(train(own, load_data(digits), run, CPU))
        distill(teacher, load_data(digits), own, run, CPU, first=4)
    assert drawn == [one] * 12 + [other] * 12 + [one] * (2 * 8 + 2 * 8)


def test_a_run_makes_the_guided_student_then_its_rounds(tmp_path: Path) -> None:
    digits = load_data("digits")
    with Run(tmp_path) as run:
        teacher = load(train(settings(), digits, run, CPU))
        paths = distill(teacher, digits, settings(), run, CPU, first=4)
    assert [path.name for path in paths] == [GUIDED, "student-0002", "student-0001"]
    guided, *students = (load(path) for path in paths)
    assert guided.info["model"] == GUIDED
    assert guided.info["teacher"] == teacher.sha256
    assert guided.denoiser.steps is None
    assert [s.info["teacher"] for s in students] == [guided.sha256, students[0].sha256]
    for model in (guided, *students):
        assert model.denoiser.guidance_max == 2
        assert not model.denoiser.null_class
        assert model.info["preset"]["guidance_max"] == 2
        assert model.info["cost"]["forward_evaluations"] == 3 * model.info["cost"]["images"]
    with pytest.raises(PdlabError, match=r"3 is outside.*\[0, 2\]"):
        sample(students[0].denoiser, torch.randn(1, 1, 8, 8), labels=torch.tensor([1]), guidance=3.0)
    # A guided student is a teacher like any other: it is not guided again.
    with Run(tmp_path / "again") as run:
        again = distill(guided, digits, settings(), run, CPU, first=4)
    assert [load(path).sha256 for path in again] == [s.sha256 for s in students]


def test_an_interrupted_stage_one_goes_on_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digits, sums = load_data("digits"), []
    for name in ("whole", "halved"):
        with Run(tmp_path / name) as run:
            teacher = load(train(settings(), digits, run, CPU))
            if name == "halved":
                kept = run.save_state

                def save_and_stop(*args: object, kept=kept) -> None:  # type: ignore[no-untyped-def]
                    kept(*args)
                    raise Stopped("here")

                monkeypatch.setattr(run, "save_state", save_and_stop)
                with pytest.raises(Stopped):
                    distill(teacher, digits, settings(), run, CPU, first=4, upkeep=Upkeep(save_every=0))
                assert not (run.path / GUIDED).exists()
                monkeypatch.undo()
            paths = distill(teacher, digits, settings(), run, CPU, first=4)
            sums.append([load(path).sha256 for path in paths])
    assert sums[0] == sums[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"guidance_max": "1"}, "null_class"),
        ({"teacher.label_drop": "0.1"}, "null_class"),
        ({"network.num_classes": "10", "network.null_class": "true", "teacher.label_drop": "1"}, "label_drop"),
        ({"guidance_max": "-1"}, "guidance_max"),
        ({"guidance_max": "inf"}, "guidance_max"),
        ({"guide.updates": "0"}, "updates"),
    ],
)
def test_settings_that_cannot_be_guided_are_refused(changes: dict[str, str], message: str) -> None:
    with pytest.raises(PdlabError, match=message):
        override(preset("digits"), changes)


def test_labels_are_dropped_in_their_share() -> None:
    from pdlab.training.objective import DiffusionObjective

    seen: list[Tensor] = []

    class Spy(nn.Module):
        def forward(self, z: Tensor, logsnr: Tensor, labels: Tensor) -> Tensor:
            seen.append(labels)
            return z

    model = Denoiser(Spy(), "x", num_classes=3, null_class=True)
    x, labels = torch.zeros(8000, 2), torch.arange(8000) % 3
    DiffusionObjective("snr+1", 0.1)(model, x, labels, torch.Generator().manual_seed(0))
    DiffusionObjective("snr+1")(model, x, labels, torch.Generator().manual_seed(0))
    dropped = seen[0] == 3
    assert abs(float(dropped.float().mean()) - 0.1) < 0.015
    assert torch.equal(seen[0][~dropped], labels[~dropped])
    assert torch.equal(seen[1], labels)


def test_a_moving_average_within_a_round_is_what_the_student_ends_as() -> None:
    config = MLPConfig((2,), width=16, blocks=1, num_classes=3)
    plain = Optimization(updates=20, batch=32, lr=1e-2)
    teacher = denoiser(config)
    for parameter in teacher.network.parameters():
        nn.init.normal_(parameter, std=0.3)
    rounds = Ladder(teacher, Points(), CPU)
    rounds.descend(4, plain)
    last = {name: p.clone() for name, p in rounds.student.network.state_dict().items()}
    trained = rounds.descend(4, dataclasses.replace(plain, ema=0.9))
    ended = rounds.student.network.state_dict()
    assert all(torch.equal(ended[name], trained.weights[name]) for name in ended)
    assert any(not torch.equal(ended[name], last[name]) for name in ended)
