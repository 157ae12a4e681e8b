"""A ladder with classes and guidance: what is asked for is what is drawn, said, counted and printed as Python."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pdlab import zoo
from pdlab.app import html
from pdlab.app.condition import ALL, Condition
from pdlab.app.ladders import MOST_GUIDANCE, PAGE, Shelf, ShownLadder
from pdlab.app.tabs.binding import condition_values
from pdlab.app.views import bench, cells, compare, curve, first, lineage, metrics
from pdlab.app.views.cells import KINDS, Cell
from pdlab.app.views.compare import Comparison
from pdlab.data import to_uint8
from pdlab.diffusion.samplers import sample
from pdlab.distillation.guided import GUIDED
from pdlab.errors import PdlabError
from pdlab.metrics.card import by_sampler
from tests.app.test_state import NONSENSE
from tests.app.test_views import Reader, run_code

DIGITS = [str(k) for k in range(10)]
SEVEN = Condition(7, 1.5)


@pytest.fixture(params=["guided", "run"])
def either(request: pytest.FixtureRequest, guided_shelf: Shelf) -> ShownLadder:
    return guided_shelf.ladder(request.param)


def test_what_a_ladder_knows_of_classes_and_guidance(
    guided: ShownLadder, guided_run: ShownLadder, ladder: ShownLadder
) -> None:
    for one in (guided, guided_run):
        assert one.classes == DIGITS
        assert (one.takes(None), one.takes(2), one.most) == (MOST_GUIDANCE, 2.0, 2.0)
        assert one.counts == [8, 4, 2, 1]  # 8: the teacher's 4 steps, guided
    assert (guided.shown, guided.guided) == (1.0, False)
    assert (guided_run.shown, guided_run.guided) == (0.0, True)
    assert (ladder.classes, ladder.most, ladder.shown) == ([], 0.0, 0.0)


def test_stage_one_does_not_stand_in_for_the_teacher(guided_run: ShownLadder) -> None:
    assert guided_run.checkpoint(None).denoiser.guidance_max == 0
    assert guided_run.checkpoint(GUIDED).denoiser.guidance_max == 2
    assert list(cells.kinds(guided_run)) == list(KINDS)


def test_snapshots_of_a_teacher_are_not_the_teacher(
    guided_run: ShownLadder, built_guided: Path, tmp_path: Path
) -> None:
    for name in ("teacher", "student-0001"):
        shutil.copytree(built_guided / "run" / name, tmp_path / "r" / name)
    shutil.copytree(built_guided / "run" / GUIDED, tmp_path / "r" / "teacher@5")
    (tmp_path / "r" / "teacher@5" / "model.json").write_text("{")
    found = Shelf(tmp_path / "r").ladder("r")
    assert found.checkpoint(None).sha256 == guided_run.checkpoint(None).sha256


def test_numbers_are_clamped_and_unknown_classes_refused(guided: ShownLadder, ladder: ShownLadder) -> None:
    assert Condition.of(guided, {}) == Condition(None, 1.0)
    assert Condition.of(guided, {"class": "7", "guidance": "9"}) == Condition(7, 2.0)
    assert Condition.of(guided, {"class": ALL, "guidance": -3}) == Condition(None, 0.0)
    assert Condition.of(guided, {"guidance": float("nan")}) == Condition(None, 1.0)
    assert Condition.of(ladder, {"class": "7", "guidance": 2}) == Condition()
    for value in NONSENSE:
        assert 0 <= Comparison.of(guided, {"guidance": value}).condition.guidance <= 2
        assert curve.CurveChoice.of(guided, {"guidance": value}).guidance in (0.0, 1.0)
    for wrong in ("horse", "10", 7, ["7"], {}, object(), "<script>"):
        with pytest.raises(PdlabError, match=r"there is no class .*: there are 0, 1, 2"):
            Condition.of(guided, {"class": wrong})
    assert bench.Sampling.of(guided, {"model": "teacher", "guidance": 9}).condition.guidance == MOST_GUIDANCE
    assert bench.Sampling.of(guided, {"model": "2", "guidance": 9}).condition.guidance == 2


def test_controls_are_there_for_who_has_classes(guided: ShownLadder, ladder: ShownLadder) -> None:
    classes, guidance = condition_values(guided, Condition(7, 1.5))
    assert (classes["visible"], classes["choices"], classes["value"]) == (True, [ALL, *DIGITS], "7")
    assert (guidance["visible"], guidance["maximum"], guidance["value"]) == (True, 2.0, 1.5)
    assert not any(update["visible"] for update in condition_values(ladder, Condition()))
    assert not condition_values(guided, Condition(), 0.0)[1]["visible"]  # of a model that takes none


@pytest.mark.parametrize("condition", [Condition(None, 0.0), Condition(None, 1.0), SEVEN])
@pytest.mark.parametrize("kind", KINDS)
def test_a_cell_is_what_its_python_draws(
    guided_shelf: Shelf, either: ShownLadder, kind: str, condition: Condition, show: Any
) -> None:
    cell = Cell(kind, 2, page=1, nu=0.5 if kind == "ancestral" else 0.0, condition=condition)
    if kind == GUIDED and not either.guided:
        assert cell.missing(either) == "no such model"
        return
    drawn = cells.draw(guided_shelf, either, cell, show)
    assert torch.equal(run_code(cells.code(either, cell))["images"], drawn.images)
    assert (cells.drawn(guided_shelf, either, cell) or drawn).seconds is not None


def test_a_cell_is_drawn_with_the_right_labels_and_weight(
    guided_shelf: Shelf, guided: ShownLadder, show: Any
) -> None:
    noise = guided.noise[PAGE : 2 * PAGE]
    for cell, steps, labels, w in (
        (Cell("ddim", 4, 1, condition=SEVEN), 2, torch.full((16,), 7), 1.5),
        (Cell("distilled", 2, 1, condition=SEVEN), 2, torch.full((16,), 7), 1.5),
        (Cell("ddim", 4, 1, condition=Condition()), 4, torch.arange(16, 32) % 10, 0.0),
        (Cell("distilled", 1, 1, condition=Condition(guidance=2)), 1, torch.arange(16, 32) % 10, 2.0),
    ):
        images = cells.draw(guided_shelf, guided, cell, show).images
        expected = to_uint8(sample(guided.checkpoint(cell.which).denoiser, noise, steps, labels=labels, guidance=w))
        assert torch.equal(images, expected)


@pytest.mark.parametrize("w", [0.0, 1.0])
def test_live_and_precomputed_agree(guided_shelf: Shelf, guided: ShownLadder, w: float, show: Any) -> None:
    for kind in ("ddim", "distilled"):
        cell = Cell(kind, 2, page=3, condition=Condition(guidance=w))
        stored = cells.drawn(guided_shelf, guided, cell)
        assert stored is not None
        assert stored.seconds is None
        live = cells.draw(guided_shelf, guided, cell, show)
        assert (live.images.int() - stored.images.int()).abs().max() <= 1
    assert cells.stored(guided, replace(cell, condition=replace(cell.condition, label=3))) is None
    assert cells.stored(guided, replace(cell, condition=Condition(guidance=0.5))) is None


def test_a_guided_step_of_the_teacher_is_two_calls_and_a_student_s_one(guided: ShownLadder) -> None:
    w = Condition(guidance=1.0)
    for kind in KINDS:
        for calls in (2, 4, 8, 64):
            cell = Cell(kind, calls, condition=w)
            assert cell.nfe <= calls
            assert cell.each == (1 if kind in ("distilled", GUIDED) else 2)
    assert (Cell("ddim", 8, condition=w).steps, Cell("ddim", 8, condition=w).nfe) == (4, 8)
    assert (Cell("heun", 8, condition=w).steps, Cell("heun", 8, condition=w).nfe) == (2, 6)
    assert (Cell("distilled", 2, condition=w).steps, Cell("distilled", 2, condition=w).nfe) == (2, 2)
    assert "two calls" in Cell("ddim", 1, condition=w).missing(guided)
    assert "up to 2" in Cell("distilled", 1, condition=Condition(guidance=3.0)).missing(guided)


def test_a_figure_is_of_exactly_the_cell(guided: ShownLadder) -> None:
    for w in (0.0, 1.0):
        for what in ("frechet", "agreement"):
            measured = by_sampler(guided.report, w, what)  # type: ignore[arg-type]
            for kind in ("ddim", "distilled", "heun", "dpm-solver++"):
                cell = Cell(kind, 2 if kind == "distilled" else 8, condition=Condition(guidance=w))
                assert cells.figure(guided, cell, what) == measured[kind][cell.calls]  # type: ignore[arg-type]
    assert cells.figure(guided, Cell("distilled", 2, condition=Condition(7, 1.0))) is None
    assert cells.figure(guided, Cell("distilled", 2, condition=Condition(None, 0.5))) is None


def test_the_first_view_has_a_class_a_column(guided_shelf: Shelf, guided: ShownLadder) -> None:
    text = first.view(guided_shelf, guided)
    assert guided_shelf.loaded == 0
    rows = [("2 network calls", "ddim"), ("2 network calls", "distilled"), ("1 network call", "distilled")]
    assert Reader(text).alts == [f"{name}, {calls}, {KINDS[kind]}" for calls, kind in rows for name in DIGITS]
    for name in DIGITS:
        assert f'<th scope="col">{name}</th>' in text
    assert "1 network call, ordinary sampler (DDIM): guided, a step takes two calls" in text
    assert "guidance 1 towards the class" in text
    assert "takes two network calls" in text
    row = by_sampler(guided.report, 1.0)["ddim"][2]
    share = by_sampler(guided.report, 1.0, "agreement")["ddim"][2]
    assert f"FD {row.value:.3g}, agreement {share.value:.3g}" in text
    stored = zoo.samples(guided._key, 1.0)["distilled", 1]  # type: ignore[attr-defined]
    assert html.picture(stored[7:8], "x").split('"')[3] in text


def test_the_first_view_of_a_run_says_what_is_missing(guided_shelf: Shelf, guided_run: ShownLadder) -> None:
    assert first.view(guided_shelf, guided_run).count("not drawn yet") == 4


def test_the_guess_is_of_equally_many_calls(guided_shelf: Shelf, guided: ShownLadder) -> None:
    for seed in range(8):
        guess = first.deal(guided, seed=seed)
        assert guess.calls == 2  # in one the teacher cannot be guided
        asked, _ = first.question(guided_shelf, guided, guess)
        assert "2 network calls" in asked
        assert all("in turn" in alt for alt in Reader(asked).alts)


def test_compare_draws_a_class_and_says_what_it_cost(guided_shelf: Shelf, either: ShownLadder, show: Any) -> None:
    given = {"rows": ["ddim", "distilled", GUIDED], "steps": [2, 1], "class": "7", "guidance": 1.5, "zoom": 4}
    what = Comparison.of(either, given)
    assert what.condition == SEVEN
    compare.work(guided_shelf, either, what, show)
    text, grid, table, pair = show[-1]
    count = 5 if either.guided else 3
    assert text == f"{count} of {count} cells drawn on this machine."
    assert "guided, a step takes two calls" in grid
    assert "all of class 7." in grid
    assert "Guidance 1.5. Guided, a step of an undistilled model takes two network calls" in grid
    assert all("4 samples of 7, " in alt for alt in Reader(grid).alts)
    assert "ordinary sampler (DDIM)</th><td>1</td><td>2</td>" in table
    assert "distilled</th><td>2</td><td>2</td>" in table
    assert "2 network calls of 7" in pair  # the fewest that both can
    for part in (table, pair):
        Reader(part)


def test_compare_says_which_class_is_where(guided_shelf: Shelf, guided: ShownLadder) -> None:
    grid, table, *_ = compare.view(guided_shelf, guided, Comparison.of(guided, {"page": 2}))
    assert "row by row: 6, 7, 8, 9 / 0, 1, 2, 3 / 4, 5, 6, 7 / 8, 9, 0, 1." in grid
    assert Reader(grid).alts[0].startswith("16 samples of 6, 7, 8, 9, 0, 1, 2, 3, 4, 5 in turn, ")
    assert "agreement-pixels, n = 100" in table


def test_compare_of_what_cannot_be_says_so(guided_shelf: Shelf, guided: ShownLadder, show: Any) -> None:
    what = Comparison.of(guided, {"rows": ["ddim"], "steps": [1]})
    compare.work(guided_shelf, guided, what, show)
    assert show[-1][0] == "None of these cells can be drawn."
    assert "No column" in show[-1][3]


@pytest.mark.parametrize(
    ("given", "calls"),
    [
        ({"model": "2", "class": "7", "guidance": 1.5}, 2),
        ({"model": "teacher", "guidance": 4, "steps": 3, "page": 4, "images": 64}, 6),
        (
            {
                "model": "teacher",
                "sampler": "heun",
                "guidance": 2,
                "steps": 3,
                "class": "3",
                "page": 0,
                "images": 4,
            },
            10,
        ),
        ({"model": "teacher", "guidance": 0, "steps": 3, "page": 0, "seed": 5}, 3),
        ({"model": GUIDED, "guidance": 2, "steps": 3, "class": "0"}, 3),
    ],
)
def test_the_bench_draws_what_its_python_draws(
    guided_shelf: Shelf, either: ShownLadder, given: dict[str, Any], calls: int, show: Any
) -> None:
    what = bench.Sampling.of(either, given)
    if what.model != given["model"]:
        assert not either.guided
        return
    bench.work(guided_shelf, either, what, show)
    _, pictures, table = show[-1]
    assert html.picture(run_code(bench.code(either, what))["images"], "x").split('"')[3] in pictures
    assert f"network calls</th><td>{calls}</td>" in table
    assert what.condition.text(either) in pictures


def test_the_bench_says_what_guidance_costs(guided_run: ShownLadder) -> None:
    def warning(**given: Any) -> str:
        return bench.warning(bench.Sampling.of(guided_run, given))

    assert "two network calls" in warning(model="teacher", guidance=1)
    assert warning(model="teacher", guidance=0) == ""
    assert "one network call a prediction" in warning(model=GUIDED, guidance=1)
    assert warning(model="2", guidance=1) == ""


def test_lineage_shows_what_is_stored_and_draws_the_rest(
    guided_shelf: Shelf, guided: ShownLadder, show: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = lineage.NoiseChoice.of(guided, {"noise": 38})
    pictures, bars, code = lineage.view(guided_shelf, guided, stored)
    assert "Noise 38 of 64, class 7, guidance 1, from 4 steps to 1." in pictures
    assert "precomputed" in pictures
    assert all("noise 38 of 7, " in alt for alt in Reader(pictures).alts)
    images = lineage.trail(guided_shelf, guided, stored)
    assert torch.equal(images[4], guided.samples["ddim", 4, 1.0][37])
    check_python(code, lineage.drift(images), bars, capsys)

    asked = lineage.NoiseChoice.of(guided, {"noise": 38, "class": "3", "guidance": 1.5})
    assert "press Draw live" in lineage.view(guided_shelf, guided, asked)[0]
    lineage.draw(guided_shelf, guided, asked, show)
    _, pictures, bars = show[-1]
    assert "class 3, guidance 1.5" in pictures
    assert ">live<" in pictures
    assert "takes two network calls" in pictures
    found = lineage.drift(lineage.trail(guided_shelf, guided, asked))
    check_python(lineage.code(guided, asked), found, bars, capsys)


def test_the_lineage_of_a_run_begins_at_stage_one(
    guided_shelf: Shelf, guided_run: ShownLadder, show: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    choice = lineage.NoiseChoice.of(guided_run, {"noise": 2, "guidance": 2})
    lineage.draw(guided_shelf, guided_run, choice, show)
    assert "the teacher, its guidance distilled, then each student" in show[-1][1]
    images = lineage.trail(guided_shelf, guided_run, choice)
    z, labels = guided_run.noise[:16], torch.arange(16) % 10
    again = to_uint8(sample(guided_run.checkpoint(GUIDED).denoiser, z, 4, labels=labels, guidance=2.0))
    assert torch.equal(images[4], again[1])
    check_python(lineage.code(guided_run, choice), lineage.drift(images), show[-1][2], capsys)


def check_python(code: str, found: Any, bars: str, capsys: pytest.CaptureFixture[str]) -> None:
    run_code(code)
    printed = capsys.readouterr().out.splitlines()
    assert printed == [f"{name} {127.5 * float(length)}" for name, length in found.lengths.items()]
    for length in found.lengths.values():
        assert f"{127.5 * float(length):.2f}" in bars


@pytest.mark.parametrize("w", [0.0, 1.0])
@pytest.mark.parametrize("what", ["frechet", "agreement", "precision", "recall"])
def test_the_curve_has_every_kind_of_figure_at_every_weight(
    guided: ShownLadder, w: float, what: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    metric = {"frechet": "FD-pixels"}.get(what, f"{what}-pixels")
    choice = curve.CurveChoice.of(guided, {"metric": metric, "guidance": f"{w:g}"})
    assert curve.weights(guided, metric, choice.n) == [0.0, 1.0]
    assert choice.guidance == w
    rows = curve.chosen(guided, choice)
    assert {row.card.guidance for row in rows.values()} == {w}
    expected = by_sampler(guided.report, w, what)
    assert {row.value for row in rows.values()} == {r.value for line in expected.values() for r in line.values()}
    plot, table, *_ = curve.view(guided, choice)
    Reader(plot)
    Reader(table)
    assert f"guidance {w:g}" in plot
    assert ("takes two network calls" in plot) == (w > 0)
    assert ('class="floor"' in plot) == (next(iter(rows.values())).card.real is not None)
    assert curve.MEANS[what] in plot
    run_code(curve.code(guided, choice))
    assert len(capsys.readouterr().out.splitlines()) == len(rows)


def test_the_curve_begins_at_the_guidance_that_is_shown(guided: ShownLadder) -> None:
    assert curve.CurveChoice.of(guided, {}).guidance == 1.0
    assert curve.CurveChoice.of(guided, {"guidance": "7"}).guidance == 1.0


def test_figures_of_other_cards_or_classes_share_no_axis(guided: ShownLadder) -> None:
    choice = curve.CurveChoice.of(guided, {})
    rows = list(guided.report["rows"])
    one = next(row for row in rows if row["metric"] == choice.metric and row["card"]["guidance"] == 1.0)
    other = {**one, "model": "other", "value": 0.0}
    for change in (
        {"classes": ["7"]},
        {"rounding": "none"},
        {"reference": {**one["card"]["reference"], "size": 3}},
    ):
        guided.__dict__["report"] = {"rows": [*rows, {**other, "card": {**one["card"], **change}}]}
        assert 0.0 not in {row.value for row in curve.chosen(guided, choice).values()}


def test_the_metrics_of_a_run_with_classes_are_of_all_in_turn(
    guided_shelf: Shelf, guided_run: ShownLadder, show: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    choice = metrics.FeatureChoice.of({"n": 128})
    metrics.work(guided_shelf, guided_run, choice, show)
    run_code(metrics.code(guided_run, choice))
    assert f"<td>{float(capsys.readouterr().out.split()[1]):.4g}</td>" in show[-1][1]
