"""A ladder with classes whose teacher grew and whose students take a guidance weight."""

from pathlib import Path

import pytest
import torch

from pdlab import zoo
from pdlab.data import ImageSource
from pdlab.diffusion.samplers import sample
from pdlab.errors import PdlabError
from pdlab.metrics.card import by_sampler
from pdlab.training.checkpoint import load
from pdlab.training.log import Log
from pdlab.training.machine import Machine
from pdlab.training.presets import Preset, override, preset
from pdlab.zoo.build import build
from pdlab.zoo.recipe import LadderRecipe, recipe
from tests.zoo.conftest import Ladder

KINDS = ("frechet", "kernel", "agreement", "precision", "recall")
RECIPE = LadderRecipe(
    n=70,
    ddim=4,
    others=4,
    nus=(),
    nu_n=70,
    pool=16,
    guidances=(0.0, 1.0, 2.0),
    shown=1.0,
    kinds=KINDS,
    briefly=True,
    on_the_way=2,
)
CLASSES = ("dark", "light", "striped")
TINY = {
    "network.num_classes": "3",
    "network.in_channels": "1",
    "network.embedding_channels": "16",
    "network.time_channels": "8",
    "network.group_size": "4",
    "network.head_dim": "8",
    "network.attention": "2",
    "teacher.updates": "6",
    "teacher.batch": "8",
    "teacher.warmup": "1",
    "guide.updates": "3",
    "guide.batch": "8",
    "distill.updates": "2",
    "distill.batch": "8",
    "first_steps": "4",
    "precision": "fp32",
}


def images(side: int) -> ImageSource:
    """Ninety pictures of three kinds, the small ones the means of the large."""
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(90) % 3
    pictures = torch.randint(0, 60, (90, 1, 4, 4), generator=g) + 120 * (labels == 1)[:, None, None, None]
    pictures[labels == 2] += 150 * (torch.arange(4) % 2)
    large = pictures.to(torch.uint8).repeat_interleave(side // 4, 2).repeat_interleave(side // 4, 3)
    return ImageSource(large, labels, CLASSES, f"kinds-{side}px")


def settings(name: str, **more: str) -> Preset:
    return override(preset(name), TINY | more)


@pytest.fixture(scope="module")
def guided(tmp_path_factory: pytest.TempPathFactory) -> Ladder:
    place = tmp_path_factory.mktemp("guided")
    small = settings("cifar10-cpu-classes", **{"network.image_size": "4", "network.channels": "8"})
    small = override(small, {"network.multipliers": "2"})
    grown = {"network.image_size": "8", "network.channels": "8", "network.multipliers": "1,2"}
    large = settings("cifar10-cpu", **grown)
    run, out = place / "run", place / "ladder"
    made = build(
        "kinds",
        large,
        RECIPE,
        images(8),
        images(8),
        run,
        out,
        Machine("cpu", "fp32"),
        earlier=[(small, images(4))],
        features="pixels",
        log=Log(run, quiet=True),
        seconds=0.1,
    )
    return Ladder(run, out, made)


def test_the_teacher_grew_and_its_cost_is_of_both_stages(guided: Ladder) -> None:
    small = load(guided.run / "cifar10-cpu-classes" / "teacher")
    teacher = load(guided.run / "teacher")
    assert teacher.info["grown_from"]["sha256"] == small.sha256
    stages = [load(guided.run / name) for name in ("guided", "student-0002", "student-0001")]
    flops = zoo.report(guided.name)["cost"]["distillation"]["flops"]
    assert flops == pytest.approx(sum(stage.info["cost"]["flops"] for stage in stages))
    cost = zoo.report(guided.name)["cost"]["teacher"]
    assert cost["images"] == 2 * 6 * 8
    assert cost["flops"] == small.info["cost"]["flops"] + teacher.info["cost"]["flops"]


def test_stage_one_stays_in_the_run_and_the_lineage_leads_through_it(guided: Ladder) -> None:
    assert [rung["name"] for rung in guided.manifest["rungs"]] == ["teacher", "student-0002", "student-0001"]
    packed = {path.name: load(path) for path in (guided.run / "packed").iterdir()}
    assert packed["guided"].info["teacher"] == packed["teacher"].sha256
    assert packed["student-0002"].info["teacher"] == packed["guided"].sha256
    assert not (guided.path / "guided").exists()


def test_noises_have_classes_and_samples_are_stored_at_two_weights(guided: Ladder) -> None:
    name = guided.name
    assert zoo.classes(name) == list(CLASSES)
    labels, noise = zoo.labels(name), zoo.noise(name)
    assert labels is not None
    assert labels.tolist() == [k % 3 for k in range(64)]
    assert guided.manifest["guidance"] == {"shown": 1.0, "stored": [0.0, 1.0], "most": 3.0}
    from pdlab.data.source import to_uint8

    for w in (0.0, 1.0):
        stored = zoo.samples(name, w)
        assert set(stored) == {("ddim", n) for n in (1, 2, 4)} | {("distilled", n) for n in (1, 2)}
        for kind, steps in (("ddim", 2), ("distilled", 2)):
            model = zoo.load(name, steps if kind == "distilled" else None)
            again = to_uint8(sample(model, noise, steps, labels=labels, guidance=w))
            assert (again.int() - stored[kind, steps].int()).abs().max() <= 1
    assert torch.equal(zoo.samples(name)["distilled", 1], zoo.samples(name, 1.0)["distilled", 1])
    with pytest.raises(PdlabError, match=r"no samples at guidance 2 in store: there are 0, 1"):
        zoo.samples(name, 2.0)


def test_every_kind_of_figure_is_there_at_every_weight(guided: Ladder) -> None:
    report = zoo.report(guided.name)
    for w in RECIPE.guidances:
        for kind in KINDS:
            values = by_sampler(report, w, kind)  # type: ignore[arg-type]
            assert set(values["distilled"]) == {1, 2}
            calls = 2 if w else 1  # guided, an undistilled model is evaluated twice a step
            if w != RECIPE.shown:
                assert set(values) == {"distilled", "dpm-solver++"}
                assert set(values["dpm-solver++"]) == {calls * 4}
                continue
            assert set(values["ddim"]) == {calls * n for n in (1, 2, 4)}
            assert set(values["dpm-solver++"]) == {calls * n for n in (2, 4)}
            assert "heun" not in values  # as the recipe is brief
    assert report["real"]["agreement"]["value"] > 0.8  # the kinds are easily told apart


def test_the_teacher_was_measured_on_its_way(guided: Ladder) -> None:
    progress = zoo.report(guided.name)["progress"]
    assert [seen for seen, _ in progress["points"]] == [3 * 8, 6 * 8]
    assert progress["figure"].startswith("KD")
    assert (guided.path / "progress.png").exists()
    assert "(progress.png)" in (guided.path / "README.md").read_text()


def test_the_pool_says_which_class_was_asked_for(guided: Ladder) -> None:
    pool = zoo.pool(guided.name)
    assert pool.classes == CLASSES
    assert pool.labels is not None
    assert pool.labels.tolist() == [k % 3 for k in range(16)]


def test_the_page_and_the_command_line_speak_of_classes_and_guidance(guided: Ladder, pdlab, tmp_path: Path) -> None:
    page = (guided.path / "README.md").read_text()
    for words in ("At guidance 1;", "At guidance 0;", "agreement-pixels", "precision-pixels", "| guidance 0 |"):
        assert words in page
    rung = f"{guided.path}:2"
    out = tmp_path / "grid.png"
    result = pdlab(
        "sample", rung, "--class", "light", "--class", "striped", "--guidance", 1.5, "--n", 6, "--out", out
    )
    assert result.code == 0
    assert out.exists()
    refused = pdlab("sample", rung, "--guidance", 3.5, "--out", tmp_path / "no.png")
    assert refused.code == 2
    assert "[0, 3]" in refused.err
    refused = pdlab("sample", rung, "--class", "horse", "--out", tmp_path / "no.png")
    assert refused.code == 2
    assert "dark, light, striped" in refused.err
    assert not (tmp_path / "no.png").exists()


def test_the_shipped_recipe_is_the_gpus_and_can_be_another() -> None:
    settings, how = recipe("cifar10")
    assert (settings.name, how.grown_from, how.n) == ("cifar10-gpu", (), 10_000)
    settings, how = recipe("cifar10", "cifar10-cpu")
    assert (settings.name, how.grown_from, how.n) == (
        "cifar10-cpu",
        ("cifar10-cpu-16px", "cifar10-cpu-classes"),
        10_000,
    )
