"""What tabs show, without Gradio: right pictures, right figures, and Python that gives the same."""

import re
from html.parser import HTMLParser
from typing import Any

import pytest
import torch
from markupsafe import Markup

from pdlab.app import chart, html
from pdlab.app.ladders import Shelf, ShownLadder
from pdlab.app.views import bench, cells, compare, curve, first, lab, lineage, metrics, tour
from pdlab.app.views.cells import KINDS, Cell
from pdlab.app.views.compare import Comparison
from pdlab.data import to_uint8
from pdlab.diffusion.samplers import sample
from pdlab.distillation.guided import GUIDED
from pdlab.errors import PdlabError
from pdlab.metrics.card import by_sampler


class Reader(HTMLParser):
    """Every image has text, every tag is closed, and nothing is asked of another host."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.alts: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        given = dict(attrs)
        if tag == "img":
            assert given["src"].startswith("data:image/png;base64,")
            assert given["alt"]
            self.alts.append(given["alt"])
        elif tag not in ("input", "br"):
            self.open.append(tag)
        assert not str(given.get("href", "data:")).startswith("http")

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def run_code(code: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(code, "<copied>", "exec"), names)
    return names


def test_the_first_view_loads_no_model_and_shows_both_rows(shelf: Shelf, ladder: ShownLadder) -> None:
    text = first.view(shelf, ladder)
    assert shelf.loaded == 0
    assert Reader(text).alts == [
        f"16 samples, {KINDS[kind]}, {html.steps_text(n)}" for kind in ("ddim", "distilled") for n in (4, 2, 1)
    ]
    found = by_sampler(ladder.report)
    for kind in ("ddim", "distilled"):
        for n in (4, 2, 1):
            assert f"<small>FD {found[kind][n].value:.3g}</small>" in text
    assert "100 samples" in text
    assert "precomputed" in text
    assert f"score {ladder.report['real']['frechet']['value']:.3g}" in text


def test_what_one_visitor_drew_changes_no_other_s_first_view(shelf: Shelf, ladder: ShownLadder) -> None:
    before = first.view(shelf, ladder)
    cells.draw(shelf, ladder, first.cell(ladder, "distilled", 1), lambda frame: None)
    assert first.view(shelf, ladder) == before


def test_the_first_view_of_a_run_says_what_is_missing(shelf: Shelf, run: ShownLadder) -> None:
    assert first.view(shelf, run).count("not drawn yet") == 6


def test_the_guess_is_judged_rightly_and_hides_the_truth(shelf: Shelf, ladder: ShownLadder) -> None:
    seen = set()
    for seed in range(8):
        guess = first.deal(ladder, seed=seed)
        seen.add(guess.distilled_left)
        asked, same = first.question(shelf, ladder, guess)
        assert same == guess
        assert Reader(asked).alts == [f"16 samples, {side}, one of the two" for side in ("Left", "Right")]
        assert "<small>" not in asked
        truth = "left" if guess.distilled_left else "right"
        told, scored = first.question(shelf, ladder, guess, truth)
        assert (scored.right, scored.asked) == (1, 1)
        assert "Right. 1 of 1" in told
        Reader(told)
        _, scored = first.question(shelf, ladder, guess, "right" if truth == "left" else "left")
        assert (scored.right, scored.asked) == (0, 1)
    assert seen == {True, False}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != GUIDED])
@pytest.mark.parametrize("clip", [True, False])
def test_a_cell_is_what_its_python_draws(
    shelf: Shelf, ladder: ShownLadder, kind: str, clip: bool, show: Any
) -> None:
    cell = Cell(kind, 4, page=1, clip=clip, nu=0.5 if kind == "ancestral" else 0.0)
    drawn = cells.draw(shelf, ladder, cell, show)
    assert drawn.seconds is not None
    assert torch.equal(run_code(cells.code(ladder, cell))["images"], drawn.images)
    assert cells.drawn(shelf, ladder, cell) is drawn


def test_live_and_precomputed_agree(shelf: Shelf, ladder: ShownLadder, show: Any) -> None:
    for kind in ("ddim", "distilled"):
        stored = cells.drawn(shelf, ladder, Cell(kind, 2, page=3))
        assert stored is not None
        assert stored.seconds is None
        live = cells.draw(shelf, ladder, Cell(kind, 2, page=3), show)
        assert torch.equal(live.images, stored.images)


def test_a_cell_makes_no_more_calls_than_its_column() -> None:
    for kind in KINDS:
        for calls in (1, 2, 4, 8, 64):
            assert Cell(kind, calls).nfe <= calls
    assert Cell("heun", 8).nfe == 7


def test_a_figure_is_of_exactly_the_cell(ladder: ShownLadder) -> None:
    assert cells.figure(ladder, Cell("ddim", 4)) == by_sampler(ladder.report)["ddim"][4]
    assert cells.figure(ladder, Cell("distilled", 4)) == by_sampler(ladder.report)["distilled"][4]
    assert cells.figure(ladder, Cell("ddim", 4, clip=False)) is None
    best = by_sampler(ladder.report)["ancestral"][4].card.sampler["nu"]
    assert cells.figure(ladder, Cell("ancestral", 4, nu=best)) is not None
    assert cells.figure(ladder, Cell("ancestral", 4, nu=0.5)) is None


def test_compare_draws_what_is_missing_and_then_shows_it(shelf: Shelf, ladder: ShownLadder, show: Any) -> None:
    what = Comparison.of(ladder, {"rows": ["distilled", "heun"], "steps": [8, 4], "left": "heun"})
    before = compare.view(shelf, ladder, what)
    assert before[0].count("not drawn yet") == 2
    assert "no such student" in before[0]  # of 8 steps
    assert "not drawn yet" in before[2]
    compare.work(shelf, ladder, what, show)
    text, grid, table, pair = show[-1]
    assert text == "3 of 3 cells drawn on this machine."
    assert "not drawn" not in grid + pair
    assert grid.count(">live<") == 3
    assert len(Reader(grid).alts) == 3
    Reader(table)
    assert len(Reader(pair).alts) == 2
    assert "Heun" in table
    assert ">7<" in table


def test_compare_of_nothing_says_so(shelf: Shelf, ladder: ShownLadder) -> None:
    assert "Choose" in compare.view(shelf, ladder, Comparison.of(ladder, {"rows": []}))[0]


def test_the_curve_its_table_and_its_csv_are_the_report(ladder: ShownLadder) -> None:
    choice = curve.CurveChoice.of(ladder, {})
    assert (choice.metric, choice.n) == ("FD-pixels", 100)
    rows = curve.chosen(ladder, choice)
    measured = {key: row.value for key, row in rows.items()}
    for kind, column in by_sampler(ladder.report).items():
        for row in column.values():
            assert measured[f"{kind}-{row.card.nfe}"] == row.value
    plot, table, card, _ = curve.view(ladder, choice)
    for part in (plot, table, card):
        Reader(part)
    keys = set(re.findall(r'data-key="([^"]+)"', table))
    assert keys == set(rows)
    assert set(re.findall(r'data-key="([^"]+)"', plot)) == keys
    lines = curve.as_csv(rows).splitlines()
    assert len(lines) == len(rows) + 1
    assert "distilled,,0,4,4,FD-pixels" in "\n".join(lines)


def test_figures_of_other_cards_are_not_mixed(ladder: ShownLadder) -> None:
    assert curve.options(ladder) == {"FD-pixels": [70, 100], "KD-pixels": [100]}
    searched = curve.chosen(ladder, curve.CurveChoice.of(ladder, {"metric": "FD-pixels", "n": 70}))
    assert {row.card.n for row in searched.values()} == {70}
    assert {row.card.sampler["name"] for row in searched.values()} == {"ancestral"}


def test_a_card_opens(ladder: ShownLadder) -> None:
    choice = curve.CurveChoice.of(ladder, {})
    text = curve.card(curve.chosen(ladder, choice), "distilled-4")
    for part in ("100, seed 0", "1,797 images", "uint8, to nearest", "4 steps"):
        assert part in text
    assert "Press a point" in curve.card(curve.chosen(ladder, choice), "nonsense-4")


def test_a_run_without_a_report_says_how_to_measure(run: ShownLadder) -> None:
    assert "pdlab evaluate" in curve.view(run, curve.CurveChoice.of(run, {}))[0]


def test_the_curve_s_python_prints_its_figures(ladder: ShownLadder, capsys: pytest.CaptureFixture[str]) -> None:
    choice = curve.CurveChoice.of(ladder, {})
    run_code(curve.code(ladder, choice))
    lines = capsys.readouterr().out.splitlines()
    value = by_sampler(ladder.report)["distilled"][4].value
    assert any(line.startswith("distilled ddim 4 ") and line.endswith(str(value)) for line in lines)


def test_lineage_adds_up_and_its_python_prints_it(
    shelf: Shelf, ladder: ShownLadder, capsys: pytest.CaptureFixture[str]
) -> None:
    choice = lineage.NoiseChoice.of(ladder, {"noise": 5})
    images = lineage.trail(shelf, ladder, choice)
    assert list(images) == [8, 4, 2, 1]
    assert torch.equal(images[8], ladder.samples["ddim", 8, 0.0][4])
    assert torch.equal(images[2], ladder.samples["distilled", 2, 0.0][4])
    found = lineage.drift(images)
    assert found.residual < 1e-9
    pictures, bars, code = lineage.view(shelf, ladder, choice)
    assert len(Reader(pictures).alts) == 8
    Reader(bars)
    run_code(code)
    printed = capsys.readouterr().out.splitlines()
    for name, length in found.lengths.items():
        assert f"{name} {127.5 * float(length)}" in printed
        assert f"{127.5 * float(length):.2f}" in bars


def test_lineage_of_a_run_is_drawn_live(shelf: Shelf, run: ShownLadder, show: Any, capsys: Any) -> None:
    choice = lineage.NoiseChoice.of(run, {"noise": 20})
    assert "Nothing is precomputed" in lineage.view(shelf, run, choice)[0]
    lineage.nearest(shelf, run, choice, show)
    assert "press Draw live" in show[-1][0]
    lineage.draw(shelf, run, choice, show)
    text, pictures, bars = show[-1]
    assert text == "7 models and step counts drawn on this machine."
    assert len(Reader(pictures).alts) == 8
    assert ">live<" in pictures
    assert ">live<" in bars
    run_code(lineage.code(run, choice))
    printed = capsys.readouterr().out.splitlines()
    found = lineage.drift(lineage.trail(shelf, run, choice))
    assert printed == [f"{name} {127.5 * float(length)}" for name, length in found.lengths.items()]


def test_the_nearest_training_image_is_the_nearest(shelf: Shelf, ladder: ShownLadder, show: Any) -> None:
    lineage.nearest(shelf, ladder, lineage.NoiseChoice.of(ladder, {"noise": 3}), show)
    text, picture = show[-1]
    assert "1,797 images of digits" in text
    source = ladder.images()
    assert source is not None
    image = ladder.samples["distilled", 1, 0.0][2].float()
    index = int((source.images.float() - image).flatten(1).norm(dim=1).argmin())
    assert f"training image {index}" in picture
    Reader(picture)


@pytest.mark.parametrize(
    "given",
    [
        {"model": "4"},
        {"model": "teacher", "sampler": "heun", "steps": 3, "page": 4, "images": 64},
        {"model": "teacher", "sampler": "ancestral", "steps": 5, "nu": 0.3, "page": 0, "seed": 7, "images": 4},
    ],
)
@pytest.mark.parametrize("kind", ["shipped", "run"])
def test_the_bench_draws_what_its_python_draws(shelf: Shelf, kind: str, given: dict[str, Any], show: Any) -> None:
    ladder = shelf.ladder(kind)
    what = bench.Sampling.of(ladder, given)
    bench.work(shelf, ladder, what, show)
    assert len(show) == 1 + what.steps
    text, pictures, table = show[-1]
    assert text.startswith(f"Done: {what.steps} of {what.steps}")
    assert len(Reader(pictures).alts) == 1 + what.steps
    Reader(table)
    images = run_code(bench.code(ladder, what))["images"]
    assert html.picture(images, "x").split('"')[3] in pictures


def test_the_film_strip_stays_short(show: Any, shelf: Shelf, ladder: ShownLadder) -> None:
    bench.work(shelf, ladder, bench.Sampling.of(ladder, {"model": "teacher", "steps": 40, "images": 1}), show)
    alts = Reader(show[-1][1]).alts
    assert len(alts) == 13
    assert alts[1] == "x̂ of step 1"
    assert alts[-1] == "x̂ of step 40"


def test_a_student_out_of_its_element_is_warned_of(ladder: ShownLadder) -> None:
    assert bench.warning(bench.Sampling.of(ladder, {"model": "4"})) == ""
    assert "distilled for 4 steps" in bench.warning(bench.Sampling.of(ladder, {"model": "4", "steps": 8}))


def test_the_bias_of_few_samples_falls_with_n(shelf: Shelf, run: ShownLadder, show: Any) -> None:
    choice = metrics.FeatureChoice.of({"n": 256})
    metrics.work(shelf, run, choice, show)
    text, charts = show[-1]
    Reader(charts)
    assert text == "4 sizes measured on this machine."
    values = [float(value) for value in re.findall(r"</th><td>([\d.e+-]+)</td>", charts)]
    assert len(values) == 4
    assert values == sorted(values, reverse=True)
    before = shelf.features.size
    metrics.work(shelf, run, choice, show)
    assert shelf.features.size == before


def test_the_stored_bias_is_what_is_measured_live(
    shelf: Shelf, ladder: ShownLadder, run: ShownLadder, show: Any
) -> None:
    choice = metrics.FeatureChoice.of({"n": 128})
    metrics.work(shelf, ladder, choice, show)
    live, stored = show[-1][1], metrics.stored(ladder, choice)
    assert stored == live.replace(html.source(True), html.source(False))
    assert "precomputed" in stored
    assert "press Measure" in metrics.stored(run, choice)


@pytest.mark.parametrize("kind", ["shipped", "run"])
def test_the_metrics_python_gives_the_last_point(shelf: Shelf, kind: str, show: Any, capsys: Any) -> None:
    ladder = shelf.ladder(kind)
    choice = metrics.FeatureChoice.of({"n": 128})
    metrics.work(shelf, ladder, choice, show)
    run_code(metrics.code(ladder, choice))
    printed = capsys.readouterr().out.split()
    assert printed[0] == ("128" if kind == "run" else "32")  # the tiny ladder's pool has 64 samples
    assert f"<td>{float(printed[1]):.4g}</td>" in show[-1][1]


def test_every_metric_has_its_card(ladder: ShownLadder, run: ShownLadder) -> None:
    text = metrics.cards(ladder)
    Reader(text)
    assert "<summary>FD-pixels" in text
    assert "<summary>KD-pixels" in text
    assert "no report" in metrics.cards(run)


def test_the_lab_teaches_halves_and_keeps_its_ledger(monkeypatch: pytest.MonkeyPatch, show: Any) -> None:
    monkeypatch.setattr(lab, "TEACHING", lab.Optimization(updates=20, batch=32, lr=4e-3, ema=0.9))
    monkeypatch.setattr(lab, "ROUND", lab.Optimization(updates=4, batch=32, lr=1e-3, anneal=True))
    monkeypatch.setattr(lab, "_EVERY", 0.0)
    spec, sessions = lab.Spec.of({"first": 4}), []
    lab.teach(spec, show, sessions.append)
    (session,) = sessions
    assert len(show) > 10
    assert "trained" in show[-1][0]
    for left in (2, 1):
        assert session.next_steps == left
        lab.halve(session, show)
    text, picture, tables = show[-1]
    assert "last halving" in text
    Reader(picture)
    Reader(tables)
    assert "student, 1 step" in picture
    for part in ("discretisation", "4 → 2", "2 → 1", "data against data"):
        assert part in tables
    with pytest.raises(PdlabError, match="1 step already"):
        lab.halve(session, show)


def test_the_lab_s_python_trains_the_same(monkeypatch: pytest.MonkeyPatch, show: Any) -> None:
    monkeypatch.setattr(
        lab, "TEACHING", lab.Optimization(updates=6, batch=32, lr=4e-3, warmup=2, anneal=True, ema=0.9)
    )
    monkeypatch.setattr(lab, "ROUND", lab.Optimization(updates=3, batch=32, lr=1e-3, anneal=True))
    for distribution in lab.DISTRIBUTIONS:
        spec = lab.Spec.of({"distribution": distribution, "points": "0 1; 1 0", "first": 4, "output": "x"})
        sessions: list[lab.Session] = []
        lab.teach(spec, show, sessions.append)
        lab.halve(sessions[0], show)
        lab.halve(sessions[0], show)
        student = run_code(lab.code(spec))["rounds"].student
        z = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(sample(student.eval(), z, 1), sample(sessions[0].students[-1], z))


def test_own_points_are_asked_for() -> None:
    spec = lab.Spec.of({"distribution": lab.OWN, "points": "1 1"})
    assert "at least 2 points" in lab.preview(spec)
    Reader(lab.preview(spec))


def test_eps_is_not_distilled(monkeypatch: pytest.MonkeyPatch, show: Any) -> None:
    monkeypatch.setattr(lab, "TEACHING", lab.Optimization(updates=2, batch=8, lr=1e-3))
    sessions: list[lab.Session] = []
    lab.teach(lab.Spec.of({"output": "eps"}), show, sessions.append)
    with pytest.raises(PdlabError, match="eps network is not halved"):
        lab.halve(sessions[0], show)


def test_a_round_is_of_the_teacher_that_the_controls_describe() -> None:
    of = lab.Spec.of
    assert "no teacher yet" in lab.why_not(None, of({}))
    session = lab.Session(of({"distribution": "five clouds", "first": 8}), lab.lab.new_network("v", 0))
    assert lab.why_not(session, of({"first": 8})) == ""
    assert "another distribution" in lab.why_not(session, of({"distribution": "spiral", "first": 8}))
    assert "another output and weighting" in lab.why_not(
        session, of({"output": "x", "weighting": "snr", "first": 8})
    )
    assert "another number of steps" in lab.why_not(session, of({"first": 4}))
    session.students.append(session.teacher)  # from then on the steps are the ladder's own
    assert lab.why_not(session, of({"first": 4})) == ""


def test_the_tour_has_seven_stops() -> None:
    text = tour.view()
    Reader(text)
    assert text.count("data-stop") == len(tour.STOPS) == 7


def test_charts_have_a_point_a_value_and_bounds_that_hold_them() -> None:
    series = [chart.Curve("a", {1: 10.0, 4: 0.5}, 0), chart.Curve("b <", {2: 3.0}, 1)]
    text = chart.curves(series, "t", "x", "y", floor=0.1)
    Reader(text)
    assert text.count("<title>") == 3
    assert "b &lt;" in text
    heights = [float(y) for y in re.findall(r'<line class="grid"[^>]*y1="([\d.]+)"', text)]
    assert min(heights) >= 0
    assert max(heights) <= 360
    assert chart.curves([], "t", "x", "y") == ""


def test_a_picture_is_lossless() -> None:
    images = to_uint8(torch.randn(4, 3, 8, 8))
    assert Reader(html.picture(images, 'a "quoted" one')).alts == ['a "quoted" one']


def test_text_is_escaped_once_and_markup_left_as_it_is() -> None:
    text, mark = '<b> & "c"', Markup("<i>m</i>")
    escaped = "&lt;b&gt; &amp; &#34;c&#34;"
    for made in (
        html.table((text, mark), [(text, text, None, mark)], text),
        html.sheet((text,), [(text, [mark]), (mark, [text])], text),
        html.note(text) + html.note(text, "error") + mark,
    ):
        Reader(made)
        assert "<b>" not in made
        assert "<i>m</i>" in made
        assert "None" not in made
        assert made.count("&lt;b&gt;") == made.count(escaped) >= 2
