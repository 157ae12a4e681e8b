"""What a build leaves: lineage, figures that can be measured again, images that can be drawn again."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from PIL import Image

from pdlab import data, zoo
from pdlab.data import to_uint8
from pdlab.diffusion.samplers import nfe, sample
from pdlab.errors import PdlabError
from pdlab.files import digest_of
from pdlab.metrics.bias import sample_size_bias
from pdlab.metrics.card import Row, comparable
from pdlab.metrics.evaluate import Yardstick, evaluate, generate, noise
from pdlab.metrics.features import extractor
from pdlab.training.checkpoint import load
from pdlab.training.log import Log
from pdlab.training.machine import Machine
from pdlab.zoo import build as building
from pdlab.zoo.page import page
from pdlab.zoo.recipe import LadderRecipe, adjusted, recipe
from tests.zoo.conftest import RECIPE, SETTINGS, Ladder, build_digits


def test_lineage_goes_from_every_student_to_the_teacher(ladder: Ladder) -> None:
    rungs = ladder.manifest["rungs"]
    assert [rung["steps"] for rung in rungs] == [None, 4, 2, 1]
    assert [rung["teacher"] for rung in rungs] == [None, *(rung["sha256"] for rung in rungs[:-1])]
    for rung in rungs:
        assert digest_of(ladder.path / rung["file"]) == rung["sha256"]
        assert rung["images"] > 0
        assert rung["seconds"] > 0
        assert rung["device"] == "CPU, 1 thread"
        known = zoo.checkpoint(ladder.name, rung["steps"]).info["preset"]
        assert known == json.loads(json.dumps(ladder.manifest["settings"]))


def test_weights_are_the_runs_in_float16(ladder: Ladder) -> None:
    for rung in ladder.manifest["rungs"]:
        full = load(ladder.run / rung["name"])
        assert rung["float32"] == full.sha256
        assert zoo.load(ladder.name, rung["steps"]).steps == rung["steps"]
        for name, tensor in zoo.load(ladder.name, rung["steps"]).network.state_dict().items():
            assert tensor.dtype == torch.float32
            assert torch.equal(tensor, full.denoiser.network.state_dict()[name].half().float())


def test_every_reading_is_measured_with_its_card(ladder: Ladder) -> None:
    rows = [Row.from_dict(row) for row in zoo.report(ladder.name)["rows"]]
    found = {(r.model, r.card.sampler["name"], r.steps, r.metric) for r in rows}
    expected = {("distilled", "ddim", n) for n in (1, 2, 4)} | {("teacher", "ddim", n) for n in (1, 2, 4, 8, 16)}
    expected |= {("teacher", "ancestral", n) for n in (1, 2, 4)} | {("teacher", "dpm-solver++", n) for n in (2, 4)}
    expected |= {("teacher", "heun", 2)}
    assert found == {(*reading, metric) for reading in expected for metric in ("FD-pixels", "KD-pixels")}
    assert len(rows) == len(found)
    for row in rows:
        assert row.card.n == 100
        assert row.card.nfe == nfe(row.card.sampler["name"], row.steps)
        assert row.spread is not None
        assert comparable(row.card, next(r for r in rows if r.metric == row.metric).card) == []


def test_the_best_nu_is_the_least_of_the_search(ladder: Ladder) -> None:
    report = zoo.report(ladder.name)
    search = [Row.from_dict(row) for row in report["nu_search"]]
    assert {row.card.n for row in search} == {70}
    for steps, nu in report["best_nu"].items():
        values = {row.card.sampler["nu"]: row.value for row in search if row.steps == int(steps)}
        assert set(values) == {0.0, 1.0}
        assert values[nu] == min(values.values())
        kept = [Row.from_dict(r) for r in report["rows"] if r["card"]["sampler"]["name"] == "ancestral"]
        assert {row.card.sampler["nu"] for row in kept if row.steps == int(steps)} == {nu}


def test_a_rung_measured_again_gives_its_figure(ladder: Ladder) -> None:
    rung = next(rung for rung in ladder.manifest["rungs"] if rung["steps"] == 2)
    source = data.load("digits")
    yardstick = Yardstick(source, extractor("pixels"), 100, None, ("frechet", "kernel"))
    again = evaluate(zoo.checkpoint(ladder.name, 2), 2, yardstick, Machine("cpu", "fp32"))
    committed = {row["metric"]: Row.from_dict(row) for row in rung["rows"]}
    for row in again:
        assert row.value == pytest.approx(committed[row.metric].value, rel=1e-4)
        assert row.spread == pytest.approx(committed[row.metric].spread, rel=1e-3)


def test_memorising_would_show(ladder: Ladder) -> None:
    memorising = zoo.report(ladder.name)["memorising"]
    assert set(memorising["models"]) == {
        *(f"teacher, {n} steps" for n in (1, 2, 4, 8, 16)),
        *(f"student-{n:04d}" for n in (1, 2, 4)),
    }
    for quantiles in memorising["models"].values():
        values = [quantiles[q] for q in sorted(quantiles, key=float)]
        assert values == sorted(values)
        assert values[0] > 0


def test_samples_are_drawn_again_from_the_shipped_noise(ladder: Ladder) -> None:
    z, drawn = zoo.noise(ladder.name), zoo.samples(ladder.name)
    assert torch.equal(z, noise((1, 8, 8), 64, 0))
    assert set(drawn) == {("ddim", n) for n in (1, 2, 4, 8)} | {("distilled", n) for n in (1, 2, 4)}
    assert torch.equal(to_uint8(sample(zoo.load(ladder.name, 4), z)), drawn["distilled", 4])
    assert torch.equal(to_uint8(sample(zoo.load(ladder.name), z, 8)), drawn["ddim", 8])


def test_the_pool_holds_the_teachers_samples(ladder: Ladder) -> None:
    pool, how = zoo.pool(ladder.name), ladder.manifest["pool"]
    assert pool.images.shape == (64, 1, 8, 8)
    assert "teacher" in pool.name
    options = {key: value for key, value in how["sampler"].items() if key != "name"}
    parts = generate(
        zoo.load(ladder.name),
        (1, 8, 8),
        64,
        how["steps"],
        how["sampler"]["name"],
        seed=how["seed"],
        options=options,
    )
    assert torch.equal(torch.cat([to_uint8(part) for part in parts]), pool.images)


def test_the_bias_of_few_samples_is_that_of_the_pool(ladder: Ladder) -> None:
    kept = zoo.report(ladder.name)["bias"]
    assert list(kept) == ["pixels"]
    assert kept["pixels"]["label"] == "pixels"
    features = extractor("pixels")(zoo.pool(ladder.name).images)
    again = [asdict(point) for point in sample_size_bias(features)]
    assert [point["n"] for point in again] == [32]
    assert kept["pixels"]["points"] == [pytest.approx(point) for point in again]


def test_colour_images_survive_the_mosaic(tmp_path: Path) -> None:
    images = torch.randint(0, 256, (6, 3, 4, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    sheet = building.tiled(images, 3)
    assert sheet.shape == (8, 15, 3)
    assert (sheet[4:8, 5:10] == images[4].permute(1, 2, 0).numpy()).all()


def test_the_page_says_how_and_what(ladder: Ladder) -> None:
    text = (ladder.path / "README.md").read_text()
    report = zoo.report(ladder.name)
    assert text == page(ladder.manifest, report)
    student = next(r for r in report["rows"] if r["model"] == "distilled" and r["steps"] == 4)
    for part in (
        f"{student['value']:.3g} ±",
        "pdlab zoo build tiny",
        "of 100 samples",
        "not measured",
        "CPU, 1 thread",
    ):
        assert part in text
    with Image.open(ladder.path / "samples.png") as picture:
        assert picture.width > picture.height > 200


class Stopping(Log):
    """A log that interrupts the build after a number of figures."""

    def __init__(self, after: int) -> None:
        super().__init__(quiet=True)
        self.left = after

    def advance(self, stage: str, done: int, total: int, status: str = "") -> None:
        if "figures" in stage:
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt


def test_a_stopped_build_goes_on(ladder: Ladder, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        build_digits(tmp_path, Stopping(2))
    assert not (tmp_path / "ladder").exists()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "figures").iterdir()}
    assert 2 <= len(kept) < 10
    again = build_digits(tmp_path)
    assert all(path.stat().st_mtime_ns == before for path, before in kept.items())
    assert [r["sha256"] for r in again.manifest["rungs"]] == [r["sha256"] for r in ladder.manifest["rungs"]]
    first, second = (zoo.report(one.name)["rows"] for one in (ladder, again))
    assert [row["value"] for row in first] == pytest.approx([row["value"] for row in second], rel=1e-6)
    assert not list(tmp_path.glob(".ladder*"))


def test_a_ladder_is_replaced_and_nothing_else_is(ladder: Ladder, tmp_path: Path) -> None:
    (tmp_path / "ladder").mkdir()
    (tmp_path / "ladder" / "thesis.tex").write_text("years")
    with pytest.raises(PdlabError, match="is no ladder"):
        build_digits(tmp_path)
    assert (tmp_path / "ladder" / "thesis.tex").read_text() == "years"
    shutil.rmtree(tmp_path / "ladder")
    shutil.copytree(ladder.run, tmp_path / "run")
    shutil.copytree(ladder.path, tmp_path / "ladder")
    (tmp_path / "ladder" / "teacher" / "thesis.tex").write_text("years")
    with pytest.raises(PdlabError, match=r"holds what is not the ladder's \(teacher/thesis.tex\)"):
        build_digits(tmp_path)
    assert (tmp_path / "ladder" / "teacher" / "thesis.tex").read_text() == "years"
    (tmp_path / "ladder" / "teacher" / "thesis.tex").unlink()
    before = (tmp_path / "ladder" / "manifest.json").read_bytes()
    build_digits(tmp_path)
    assert (tmp_path / "ladder" / "manifest.json").read_bytes() != before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ladder", "run"]


@pytest.mark.parametrize("content", ["{}", "[]", "{", '{"format": 1, "rungs": []}'])
def test_a_folder_with_a_manifest_of_another_kind_is_kept(content: str, tmp_path: Path) -> None:
    (tmp_path / "ladder").mkdir()
    (tmp_path / "ladder" / "manifest.json").write_text(content)
    (tmp_path / "ladder" / "thesis.tex").write_text("years")
    with pytest.raises(PdlabError, match="exists and is not replaced"):
        build_digits(tmp_path)
    assert (tmp_path / "ladder" / "thesis.tex").read_text() == "years"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("run", "out"), [("same", "same"), ("par/run", "par"), ("run", "run/ladder")])
def test_run_and_ladder_lie_apart(run: str, out: str, tmp_path: Path) -> None:
    with pytest.raises(PdlabError, match="lie inside one another"):
        build_digits(tmp_path, run=run, out=out)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("target", ["ladder", "nowhere"])
def test_a_link_is_no_place_for_a_ladder(target: str, tmp_path: Path) -> None:
    (tmp_path / "ladder").symlink_to(target)  # to itself, or to nothing
    with pytest.raises(PdlabError, match="exists and is no ladder"):
        build_digits(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["ladder"]


def test_a_ladder_between_its_two_renames_is_put_back(ladder: Ladder, tmp_path: Path) -> None:
    shutil.copytree(ladder.path, tmp_path / ".ladder.old")
    building.check_replaceable(tmp_path / "ladder")
    assert zoo.manifest(str(tmp_path / "ladder")) == zoo.manifest(ladder.name)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"device": 3}'])
def test_a_damaged_figure_is_measured_anew(content: bytes, ladder: Ladder, tmp_path: Path) -> None:
    shutil.copytree(ladder.run, tmp_path / "run")
    figures = [
        *(tmp_path / "run" / "figures").glob("teacher-ddim-0001-*"),
        tmp_path / "run/figures/throughput.json",
    ]
    for file in figures:
        file.write_bytes(content)
    made = build_digits(tmp_path).manifest
    assert [rung["rows"] for rung in made["rungs"]] == [rung["rows"] for rung in ladder.manifest["rungs"]]
    for file in figures:
        assert len(file.read_bytes()) > 100


def test_two_builders_of_one_ladder(tmp_path: Path) -> None:
    with building._alone(tmp_path / "ladder"), pytest.raises(PdlabError, match="another pdlab builds"):
        build_digits(tmp_path)


def test_another_run_is_not_mixed_in(ladder: Ladder, tmp_path: Path) -> None:
    shutil.copytree(ladder.run, tmp_path / "run")
    with pytest.raises(PdlabError, match="seed was 0, is 1"):
        build_digits(tmp_path, seed=1)
    shutil.rmtree(tmp_path / "run" / "teacher")
    shutil.rmtree(tmp_path / "run" / "student-0004")
    shutil.copytree(ladder.run / "student-0002", tmp_path / "run" / "teacher")
    with pytest.raises(PdlabError, match="distilled for 2 steps"):
        build_digits(tmp_path)


def test_the_longest_rungs_are_dropped_first(
    ladder: Ladder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = [ladder.run / rung["name"] for rung in ladder.manifest["rungs"]]
    size = (trained[0] / "model.safetensors").stat().st_size // 2
    monkeypatch.setattr(building, "MOST_BYTES", 3 * size)
    names = [path.name for path in building.pack("tiny", SETTINGS, trained, tmp_path / "packed")]
    assert names == ["teacher", "student-0002", "student-0001"]


def test_weights_beyond_float16_are_refused(ladder: Ladder, tmp_path: Path) -> None:
    model = load(ladder.run / "teacher")
    with torch.no_grad():
        next(model.denoiser.network.parameters()).fill_(1e5)
    building.save(tmp_path / "teacher", model.denoiser, model.info)
    with pytest.raises(PdlabError, match="float16's range"):
        building.pack("tiny", SETTINGS, [tmp_path / "teacher"], tmp_path / "packed")


def test_recipes() -> None:
    settings, how = recipe("cifar10-gpu")
    assert (settings.name, how.n, how.ddim) == ("cifar10-gpu", 10_000, 16)
    assert recipe("cifar10-paper")[1] == LadderRecipe()
    assert adjusted(RECIPE, 80, 64) == LadderRecipe(n=80, ddim=16, others=4, nus=(0.0, 1.0), nu_n=70, pool=64)
    assert adjusted(RECIPE, 66, 64).nu_n == 66
    with pytest.raises(PdlabError, match="1281 samples or more"):
        adjusted(how, 1280, 1280)
    with pytest.raises(PdlabError, match="unknown preset"):
        recipe("cifar100")


def test_json_is_strict(ladder: Ladder) -> None:
    """No NaN or infinity, which other languages' parsers refuse."""

    def refuse(name: str) -> None:
        raise AssertionError(name)

    for file in ("manifest.json", "report.json"):
        json.loads((ladder.path / file).read_text(), parse_constant=refuse)
