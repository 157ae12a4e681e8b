"""The app as it is served: through Gradio's client, and in a browser."""

import contextlib
import shutil
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from gradio_client import Client
from gradio_client.exceptions import AppError
from playwright.sync_api import Browser, Page, expect

from pdlab import zoo
from pdlab.app import html
from pdlab.app.compute import Compute
from pdlab.app.ladders import Shelf
from pdlab.app.server import launch
from pdlab.app.views import bench, quickstart
from tests.browser import starting, watching

pytestmark = pytest.mark.slow
PATIENCE = 60_000  # milliseconds that a browser waits on a busy machine


class Served:
    """A running app, its address, shelf and queue."""

    def __init__(self, shelf: Shelf) -> None:
        self.shelf, self.compute = shelf, Compute()
        self.app = launch(shelf=shelf, compute=self.compute, block=False)
        self.address = str(self.app.local_url)


@pytest.fixture(scope="module")
def served(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zoo, "HOME", tmp_path_factory.mktemp("none"))
        made = Served(Shelf(built / "shipped"))
        yield made
        made.app.close(verbose=False)


@pytest.fixture(scope="module")
def served_guided(built_guided: Path, built: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A ladder with classes and guidance, the run that it was built by, and a ladder without either."""
    place = tmp_path_factory.mktemp("several")
    shutil.copytree(built_guided / "guided", place / "guided")
    shutil.copytree(built_guided / "run", place / "own", ignore=shutil.ignore_patterns(".*"))
    shutil.copytree(built / "shipped", place / "plain")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zoo, "HOME", tmp_path_factory.mktemp("none"))
        made = Served(Shelf(place))
        yield made
        made.app.close(verbose=False)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with starting() as start:
        yield start()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens pages; at the end none may have had an error, or asked another host for anything."""
    with watching(browser, PATIENCE) as watched:

        def open_page(served: Served, search: str = "", width: int = 1280) -> Page:
            page = watched((served.address, "data:", "blob:"), width)
            page.goto(served.address + search)
            return page

        yield open_page


def client_of(served: Served) -> Client:
    return Client(served.address, verbose=False, httpx_kwargs={"timeout": PATIENCE / 1000})


def shows(page: Page, selector: str, text: str = "") -> None:
    expect(page.locator(selector).first).to_contain_text(text, timeout=PATIENCE)


def settled(page: Page) -> None:
    """Until what the address says was restored."""
    expect(page.locator("body[data-restored]")).to_have_count(1, timeout=PATIENCE)


def test_nothing_but_its_own_files_is_served(served: Served) -> None:
    assert served.address.startswith("http://127.0.0.1:")
    for path in ("/etc/passwd", str(Path("pyproject.toml").resolve()), str(served.shelf.runs / "manifest.json")):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{served.address}gradio_api/file={path}")
        assert refused.value.code in (403, 404)


def test_a_live_run_by_the_client_is_what_python_draws(served: Served) -> None:
    client = client_of(served)
    said, pictures, table = client.predict("shipped", "4", "ddim", 4, 0, 2, 0, 16, api_name="/bench_live")
    ladder = served.shelf.ladder()
    names: dict[str, Any] = {}
    exec(bench.code(ladder, bench.Sampling.of(ladder, {"model": "4", "page": 2})), names)
    assert "Done: 4 of 4" in said
    assert html.picture(names["images"], "x").split('"')[3] in pictures
    assert "milliseconds a call" in table


@pytest.mark.parametrize(
    "wrong", [("../../etc",), ("shipped", "../teacher"), ("shipped", "4", "euler"), (None, None)]
)
def test_nonsense_is_refused_or_made_safe(served: Served, wrong: tuple[Any, ...]) -> None:
    client = client_of(served)
    right = ("shipped", "4", "ddim", 4, 0, 2, 0, 4)
    with contextlib.suppress(AppError):
        said, *_ = client.predict(*wrong, *right[len(wrong) :], api_name="/bench_live")
        assert "Done: 4 of 4" in said
    said, *_ = client.predict(*right, api_name="/bench_live")
    assert "Done: 4 of 4" in said


def test_thirty_clients_each_get_their_own(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    ladder = served.shelf.ladder()
    right, took = [], []

    def one(seed: int) -> None:
        client = client_of(served)
        started = time.monotonic()
        said, pictures, _ = client.predict("shipped", "4", "ddim", 4, 0, 0, seed, 16, api_name="/bench_live")
        took.append(time.monotonic() - started)
        names: dict[str, Any] = {}
        exec(bench.code(ladder, bench.Sampling.of(ladder, {"model": "4", "page": 0, "seed": seed})), names)
        right.append("Done: 4 of 4" in said and html.picture(names["images"], "x").split('"')[3] in pictures)

    clients = [threading.Thread(target=one, args=(seed,)) for seed in range(30)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    assert right == [True] * 30
    assert served.compute.load == 0
    assert served.shelf.loaded <= 4
    took.sort()
    with capsys.disabled():
        print(f"\n30 clients, 16 images in 4 steps each: p50 {took[14]:.2f} s, p95 {took[28]:.2f} s")


def test_the_first_view_and_every_tab(served: Served, visit: Callable[..., Page]) -> None:
    page = visit(served)
    expect(page.locator("#first img")).to_have_count(6, timeout=PATIENCE)
    settled(page)
    for title, selector, text in (
        ("FID curve", "#curve-plot", "FD-pixels of 100 samples"),
        ("Lineage", "table.sheet caption >> nth=-1", ""),
        ("Sampler bench", "#bench-model", "teacher"),
        ("Metrics", "#metrics-extractor", "pixels"),
        ("2-D lab", "#lab-picture", "perfect denoiser"),
        ("Tour", "ol.tour", "Guess which is which"),
        ("Compare", "#compare-rows", "distilled"),
    ):
        page.get_by_role("tab", name=title).click()
        shows(page, selector, text)
    for image in page.locator("img.pixels").all():
        assert image.get_attribute("alt")


def test_a_card_opens_from_the_table(served: Served, visit: Callable[..., Page]) -> None:
    page = visit(served, "?tab=curve")
    page.locator("button[data-key='distilled-4']").click()
    shows(page, "#curve-card", "1,797 images")


@pytest.mark.parametrize("tab", ["compare", "curve", "lineage", "bench", "metrics", "lab", "tour"])
def test_a_narrow_screen_needs_no_sideways_scrolling(served: Served, visit: Callable[..., Page], tab: str) -> None:
    page = visit(served, f"?tab={tab}", width=400)
    expect(page.locator("#first img")).to_have_count(6, timeout=PATIENCE)
    settled(page) if tab == "compare" else page.wait_for_timeout(1000)
    assert page.evaluate("document.documentElement.scrollWidth") <= 400


def test_the_state_is_in_the_address(served: Served, visit: Callable[..., Page]) -> None:
    page = visit(served, "?compare.steps=4,1&compare.rows=distilled&compare.zoom=4")
    settled(page)
    ticked = page.locator("#compare-steps input:checked")
    expect(ticked).to_have_count(2, timeout=PATIENCE)
    page.locator("#compare-steps").get_by_text("2", exact=True).click()
    page.wait_for_url("**compare.steps=*2*", timeout=PATIENCE)
    page.get_by_role("tab", name="Lineage").click()
    page.wait_for_url("**tab=lineage*", timeout=PATIENCE)
    again = visit(served, page.url.removeprefix(served.address))
    expect(again.get_by_role("tab", name="Lineage")).to_have_attribute("aria-selected", "true", timeout=PATIENCE)
    again.get_by_role("tab", name="Compare").click()
    expect(again.locator("#compare-steps input:checked")).to_have_count(3, timeout=PATIENCE)
    expect(again.locator("#compare-rows input:checked")).to_have_count(1)


def test_back_leads_to_the_tab_before(served: Served, visit: Callable[..., Page]) -> None:
    page = visit(served, "?lineage.noise=3")
    expect(page.locator("body[data-restored]")).to_have_count(1, timeout=PATIENCE)
    page.get_by_role("tab", name="Lineage").click()
    page.wait_for_url("**tab=lineage*", timeout=PATIENCE)
    page.get_by_role("tab", name="Metrics").click()
    page.wait_for_url("**tab=metrics*", timeout=PATIENCE)
    page.go_back()
    expect(page.locator("body[data-restored]")).to_have_count(1, timeout=PATIENCE)
    assert "tab=lineage" in page.url
    expect(page.get_by_role("tab", name="Lineage")).to_have_attribute("aria-selected", "true", timeout=PATIENCE)
    expect(page.locator("#lineage-noise input[type=number]")).to_have_value("3", timeout=PATIENCE)
    page.go_back()
    page.wait_for_function("!location.search.includes('tab=')", timeout=PATIENCE)
    expect(page.get_by_role("tab", name="Compare")).to_have_attribute("aria-selected", "true", timeout=PATIENCE)


def test_live_cells_and_the_python_that_is_shown(served: Served, visit: Callable[..., Page]) -> None:
    page = visit(served, "?compare.steps=2&compare.rows=dpm-solver%2B%2B")
    settled(page)
    shows(page, ".missing", "not drawn yet")
    page.locator("#compare-run").click()
    expect(page.locator("text=1 of 1 cells drawn on this machine.")).to_be_visible(timeout=PATIENCE)
    drawn = page.locator("img[alt*='DPM-Solver']").first
    page.locator("#compare-code button").first.click()
    code = page.locator("#compare-code .cm-content").inner_text()
    names: dict[str, Any] = {}
    exec(code, names)
    assert torch.is_tensor(names["images"])
    assert drawn.get_attribute("src") == html.picture(names["images"], "x").split('"')[3]


def test_another_model_comes_with_its_steps_and_nothing_of_the_one_before_is_left(
    served: Served, visit: Callable[..., Page]
) -> None:
    page = visit(served, "?tab=bench&bench.model=2&bench.steps=2")
    page.locator("#bench-run").click()
    shows(page, "#bench-pictures", "the student of 2 steps, ddim in 2 steps")
    page.locator("#bench-model").get_by_text("4", exact=True).click()
    page.wait_for_url("**bench.steps=4*", timeout=PATIENCE)
    assert "bench.model=4" in page.url
    expect(page.locator("#bench-steps input[type=number]")).to_have_value("4", timeout=PATIENCE)
    expect(page.locator("#bench-pictures img")).to_have_count(0, timeout=PATIENCE)
    page.locator("#bench-code button").first.click()
    expect(page.locator("#bench-code .cm-content")).to_contain_text("steps=4), z, 4", timeout=PATIENCE)
    assert not page.locator("text=was distilled for").count()


def test_a_changed_control_stops_what_is_drawn_for_the_old_one(
    served: Served, visit: Callable[..., Page], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pdlab.app.views import bench

    def slow(shelf: Any, ladder: Any, run: Any, show: Any) -> None:
        for k in range(10**6):
            show((f"Step {k} for seed {run.seed}", "<p>drawing</p>", ""))
            time.sleep(0.02)

    monkeypatch.setattr(bench, "work", slow)
    page = visit(served, "?tab=bench&bench.page=0&bench.seed=1")
    page.locator("#bench-run").click()
    shows(page, "#bench-pictures", "drawing")
    page.locator("#bench-run").click()  # a second press begins anew
    expect(page.locator("text=/Step .* for seed 1/")).to_be_visible(timeout=PATIENCE)
    assert served.compute.load == 1
    page.get_by_role("spinbutton", name="Seed").fill("2")
    page.keyboard.press("Enter")
    page.wait_for_url("**bench.seed=2*", timeout=PATIENCE)
    while served.compute.load:
        time.sleep(0.01)
    expect(page.locator("text=drawing")).to_have_count(0, timeout=PATIENCE)
    page.wait_for_timeout(500)
    assert not page.locator("text=/for seed 1/").count()
    assert not page.locator("text=Stopped").count()


def test_stopping_ends_the_work_within_a_second(
    served: Served, visit: Callable[..., Page], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pdlab.app.views import lab

    monkeypatch.setattr(lab, "TEACHING", lab.Optimization(updates=1_000_000, batch=8, lr=1e-3))
    page = visit(served, "?tab=lab")
    shows(page, "#lab-picture", "perfect denoiser")
    page.locator("#lab-teach").click()
    expect(page.locator("text=/Teacher: update/")).to_be_visible(timeout=PATIENCE)
    assert served.compute.load == 1
    started = time.monotonic()
    served.compute.stop(next(iter({job.owner for job in served.compute._jobs})))
    while served.compute.load:
        assert time.monotonic() - started < 1
        time.sleep(0.01)
    expect(page.locator("text=Stopped; nothing is being computed.")).to_be_visible(timeout=PATIENCE)
    page.locator("#lab-teach").click()
    expect(page.locator("text=/Teacher: update/")).to_be_visible(timeout=PATIENCE)
    page.locator("#lab-stop").click()
    expect(page.locator("text=Stopped; nothing is being computed.")).to_be_visible(timeout=PATIENCE)
    assert served.compute.load == 0


def test_a_closed_page_is_not_computed_for(
    served: Served, visit: Callable[..., Page], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pdlab.app.views import lab

    monkeypatch.setattr(lab, "TEACHING", lab.Optimization(updates=1_000_000, batch=8, lr=1e-3))
    page = visit(served, "?tab=lab")
    shows(page, "#lab-picture", "perfect denoiser")
    page.locator("#lab-teach").click()
    expect(page.locator("text=/Teacher: update/")).to_be_visible(timeout=PATIENCE)
    page.close()
    started = time.monotonic()
    while served.compute.load:
        assert time.monotonic() - started < 30
        time.sleep(0.05)


def test_the_tour_notices_what_was_used(served: Served, visit: Callable[..., Page]) -> None:
    page = visit(served, "?tab=tour")
    shows(page, "ol.tour", "to do")
    page.locator("button[data-target='lineage-noise']").click()
    page.locator("#lineage-noise input[type=number]").fill("7")
    page.locator("#lineage-noise input[type=number]").press("Enter")
    page.get_by_role("tab", name="Tour").click()
    shows(page, "li[data-stop='lineage-noise'] .done", "done")


def test_a_number_typed_beyond_its_bounds_is_brought_into_them(served: Served, visit: Callable[..., Page]) -> None:
    page = visit(served, "?tab=lineage")
    for typed, taken in (("999", "Noise 64 of 64"), ("-5", "Noise 1 of 64")):
        page.locator("#lineage-noise input[type=number]").fill(typed)
        page.locator("#lineage-noise input[type=number]").press("Enter")
        expect(page.locator("table.sheet caption").last).to_contain_text(taken, timeout=PATIENCE)


def test_the_guess_is_played(served: Served, visit: Callable[..., Page]) -> None:
    page = visit(served)
    expect(page.locator("#first img")).to_have_count(6, timeout=PATIENCE)
    page.locator("#guess button").first.click()
    page.locator("#guess-deal").click()
    shows(page, "#guess", "Which one is distilled?")
    page.get_by_role("button", name="The left one is distilled").click()
    shows(page, "#guess", "of 1 so far")


def test_without_a_ladder_the_quickstart_is_offered_and_shown(
    built: Path, visit: Callable[..., Page], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zoo, "HOME", tmp_path / "none")
    monkeypatch.chdir(tmp_path)

    def made(out: Path, **_: Any) -> None:
        shutil.copytree(built / "run", out, ignore=shutil.ignore_patterns(".*"))

    monkeypatch.setattr(quickstart, "quickstart", made)
    served = Served(Shelf())
    page = visit(served)
    shows(page, "#first", "There is no ladder to show yet")
    page.locator("#quickstart-run").click()
    shows(page, "#first", "ordinary sampler (DDIM)")
    assert list(served.shelf.ladders) == ["pdlab-quickstart"]
    served.app.close(verbose=False)


def test_a_class_and_a_guidance_by_the_client(served_guided: Served) -> None:
    client = client_of(served_guided)
    ladder = served_guided.shelf.ladder("guided")
    for model, steps in (("2", 2), ("teacher", 3)):
        said, pictures, table = client.predict(
            "guided", model, "ddim", steps, 0, 2, 0, 16, "7", 1.5, api_name="/bench_live"
        )
        assert f"Done: {steps} of {steps}" in said
        given = {"model": model, "steps": steps, "page": 2, "class": "7", "guidance": 1.5}
        names: dict[str, Any] = {}
        exec(bench.code(ladder, bench.Sampling.of(ladder, given)), names)
        assert html.picture(names["images"], "x").split('"')[3] in pictures
        assert "class 7, guidance 1.5" in pictures
        assert f"network calls</th><td>{steps if model == '2' else 2 * steps}<" in table
    with contextlib.suppress(AppError):  # Gradio's own refusal, or ours
        said, *_ = client.predict("guided", "2", "ddim", 2, 0, 2, 0, 16, "horse", 99, api_name="/bench_live")
        assert "there is no class horse: there are 0, 1" in said


def test_a_class_is_picked_and_guidance_moved(served_guided: Served, visit: Callable[..., Page]) -> None:
    page = visit(served_guided, "?model=guided&compare.rows=distilled&compare.steps=2")
    expect(page.locator("#first img")).to_have_count(30, timeout=PATIENCE)
    settled(page)
    expect(page.locator("#compare-rows input:checked")).to_have_count(1, timeout=PATIENCE)  # the address was read
    expect(page.locator("#compare-class input")).to_have_count(11)
    expect(page.locator("#compare-class input:checked")).to_have_value("all in turn")
    guidance = page.locator("#compare-guidance input[type=number]")
    expect(guidance).to_have_value("1")
    page.locator("#compare-class").get_by_text("7", exact=True).click()
    page.wait_for_url("**compare.class=7*", timeout=PATIENCE)
    guidance.fill("9")
    guidance.press("Enter")
    shows(page, ".missing", "not drawn yet")
    page.locator("#compare-run").click()
    expect(page.locator("text=1 of 1 cells drawn on this machine.")).to_be_visible(timeout=PATIENCE)
    drawn = page.locator("img[alt^='16 samples of 7, distilled']").first
    page.locator("#compare-code button").first.click()
    code = page.locator("#compare-code .cm-content").inner_text()
    assert "torch.full((16,), 7)" in code
    assert "guidance=2)" in code  # brought into what the students take
    names: dict[str, Any] = {}
    exec(code, names)
    assert drawn.get_attribute("src") == html.picture(names["images"], "x").split('"')[3]
    again = visit(served_guided, page.url.removeprefix(served_guided.address))
    settled(again)
    expect(again.locator("#compare-class input:checked")).to_have_value("7", timeout=PATIENCE)
    expect(again.locator("#compare-guidance input[type=number]")).to_have_value("2")
    expect(again.locator("img[alt^='16 samples of 7, distilled']").first).to_be_visible(timeout=PATIENCE)


def test_another_ladder_has_other_classes_or_none(served_guided: Served, visit: Callable[..., Page]) -> None:
    page = visit(served_guided, "?model=guided&compare.class=7&compare.guidance=2&lineage.class=3")
    settled(page)
    expect(page.locator("#compare-class input:checked")).to_have_value("7", timeout=PATIENCE)
    page.locator("#ladder").get_by_text("plain", exact=True).click()
    expect(page.locator("#first img")).to_have_count(6, timeout=PATIENCE)
    expect(page.locator("#compare-class")).to_have_count(0)
    expect(page.locator("#compare-guidance")).to_have_count(0)
    assert "class=" not in page.url
    assert "guidance=" not in page.url
    page.locator("#ladder").get_by_text("own", exact=True).click()
    expect(page.locator("#compare-class input:checked")).to_have_value("all in turn", timeout=PATIENCE)
    expect(page.locator("#compare-rows input")).to_have_count(6)


def test_a_class_that_there_is_not_is_refused(served_guided: Served, visit: Callable[..., Page]) -> None:
    page = visit(served_guided, "?model=guided&compare.class=horse")
    expect(page.locator("text=there is no class horse: there are 0, 1").first).to_be_visible(timeout=PATIENCE)
    page.locator("#compare-class").get_by_text("3", exact=True).click()
    expect(page.locator("text=all of class 3.").first).to_be_visible(timeout=PATIENCE)


def test_the_undistilled_teacher_takes_more_guidance(served_guided: Served, visit: Callable[..., Page]) -> None:
    page = visit(served_guided, "?model=guided&tab=bench&bench.model=2")
    guidance = page.locator("#bench-guidance input[type=range]")
    expect(guidance).to_have_attribute("max", "2", timeout=PATIENCE)
    page.locator("#bench-model").get_by_text("teacher", exact=True).click()
    expect(guidance).to_have_attribute("max", "4", timeout=PATIENCE)
    number = page.locator("#bench-guidance input[type=number]")
    number.fill("3.5")
    number.press("Enter")
    page.wait_for_url("**bench.guidance=3.5*", timeout=PATIENCE)
    page.locator("#bench-run").click()
    shows(page, "#bench-pictures", "all classes in turn, guidance 3.5")


def test_lineage_of_a_class_is_drawn_live(served_guided: Served, visit: Callable[..., Page]) -> None:
    page = visit(served_guided, "?model=guided&tab=lineage&lineage.noise=4")
    shows(page, "#lineage-images", "Noise 4 of 64, class 3, guidance 1")
    page.locator("#lineage-class").get_by_text("8", exact=True).click()
    shows(page, "#lineage-images", "press Draw live")
    page.locator("#lineage-draw").click()
    shows(page, "#lineage-images", "Noise 4 of 64, class 8, guidance 1")
    shows(page, "#lineage-images", "live")


def test_agreement_is_chosen_in_the_curve(served_guided: Served, visit: Callable[..., Page]) -> None:
    page = visit(served_guided, "?model=guided&tab=curve")
    shows(page, "#curve-plot", "FD-pixels of 100 samples against network calls, guidance 1")
    page.locator("#curve-metric").get_by_text("agreement-pixels", exact=True).click()
    shows(page, "#curve-plot", "agreement-pixels of 100 samples against network calls, guidance 1")
    page.locator("#curve-guidance").get_by_text("0", exact=True).click()
    shows(page, "#curve-plot", "agreement-pixels of 100 samples against network calls, guidance 0")


@pytest.mark.parametrize("tab", ["compare", "curve", "lineage", "bench"])
def test_classes_need_no_sideways_scrolling_either(
    served_guided: Served, visit: Callable[..., Page], tab: str
) -> None:
    page = visit(served_guided, f"?model=guided&tab={tab}", width=400)
    expect(page.locator("#first img")).to_have_count(30, timeout=PATIENCE)
    settled(page) if tab == "compare" else page.wait_for_timeout(1000)
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
