"""The page in a browser: it draws what Python draws, asks its host alone, and says in a line what went wrong."""

import contextlib
import functools
import http.server
import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
import pytest
import torch
from playwright.sync_api import Browser, Page, Route, expect
from torch import Tensor

from pdlab import zoo
from pdlab.data import to_uint8
from pdlab.diffusion.samplers import sample
from pdlab.metrics.card import Row
from pdlab.training.checkpoint import load
from pdlab.web import runtime
from pdlab.web.site import write_site
from pdlab.web.students import students
from tests.browser import starting, watching

pytestmark = pytest.mark.slow
PATIENCE = 120_000  # milliseconds that a browser waits on a busy machine
MOST_BYTES = 8 << 20  # of weights, before there is a picture
READ = "canvas => [...canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data]"


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A static host."""

    def log_message(self, *args: object) -> None:
        """Nothing."""


@contextlib.contextmanager
def hosted(folder: Path) -> Iterator[str]:
    """The address that `folder` is served at."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def vendored(ladder: str, folder: Path, fetched: dict[str, bytes]) -> None:
    pytest.importorskip("onnxruntime")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime, "fetch", lambda: fetched)
        write_site(ladder, folder, vendored=True)


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory, fetched: dict[str, bytes]) -> Iterator[str]:
    """The ladder that ships, with the runtime beside it."""
    vendored(zoo.default(), place := tmp_path_factory.mktemp("pages") / "shipped", fetched)
    with hosted(place) as address:
        yield address


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, fetched: dict[str, bytes], plain_run: Path) -> Iterator[str]:
    """Grey images without classes."""
    vendored(str(plain_run), place := tmp_path_factory.mktemp("pages") / "plain", fetched)
    with hosted(place) as address:
        yield address


@pytest.fixture(scope="module")
def cdn(tmp_path_factory: pytest.TempPathFactory, fetched: dict[str, bytes], guided_run: Path) -> Iterator[str]:
    """A small ladder, its runtime where it is by default."""
    pytest.importorskip("onnxruntime")
    write_site(str(guided_run), place := tmp_path_factory.mktemp("pages") / "cdn")
    with hosted(place) as address:
        yield address


@pytest.fixture(scope="module")
def chromium() -> Iterator[Callable[..., Browser]]:
    """Starts Chromium with more arguments."""
    with starting() as start:
        yield start


@pytest.fixture(scope="module")
def browser(chromium: Callable[..., Browser]) -> Browser:
    return chromium()


@pytest.fixture(scope="module")
def imitated(chromium: Callable[..., Browser]) -> Browser:
    """One with WebGPU on a graphics card that the processor imitates."""
    how = ("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan,WebGPU")
    return chromium(*how)


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens pages; at the end none may have had an error but those that a test awaits, or asked another host."""
    with watching(browser, PATIENCE) as watched:

        def open_page(
            address: str,
            state: dict[str, object] | None = None,
            *,
            width: int = 1280,
            dark: bool = False,
            cdn: bool = False,
        ) -> Page:
            allowed = (address, "data:", f"blob:{address}", *([runtime.CDN] if cdn else []))
            page = watched(allowed, width, console=not cdn, color_scheme="dark" if dark else "light")
            if not cdn:  # there, files are missing on purpose
                page.goto(f"{address}#{urlencode(state or {})}")
            return page

        yield open_page


def drawn(page: Page) -> None:
    """Until the large picture is there."""
    page.locator("#picture[data-drawn], #status.error").first.wait_for(timeout=PATIENCE)
    assert page.locator("#status.error").count() == 0, page.inner_text("#status")


def quiet(page: Page) -> None:
    """Until all pictures are of what the controls say."""
    expect(page.locator("body[data-quiet=true]")).to_have_count(1, timeout=PATIENCE)


def image(page: Page, selector: str = "#picture") -> Tensor:
    """The picture on a canvas, int `[3, H, W]`."""
    found = page.locator(selector)
    height, width = (int(str(found.get_attribute(side))) for side in ("height", "width"))
    pixels = torch.tensor(found.evaluate(READ)).reshape(height, width, 4)
    assert bool((pixels[..., 3] == 255).all())
    return pixels[..., :3].permute(2, 0, 1)


def apart(page: Page, expected: Tensor, selector: str = "#picture") -> int:
    """The widest difference from images in [-1, 1] `[1, C, H, W]`, in grey levels of 255."""
    return int((image(page, selector) - to_uint8(expected)[0].int()).abs().max())


def ours(steps: int, noise: Tensor, label: int, guidance: float) -> Tensor:
    with torch.no_grad():
        return sample(zoo.load(zoo.default(), steps), noise[None], labels=torch.tensor([label]), guidance=guidance)


def arc(a: Tensor, b: Tensor, mix: float) -> Tensor:
    angle = math.acos(float((a * b).sum() / a.norm() / b.norm()))
    return (math.sin((1 - mix) * angle) * a + math.sin(mix * angle) * b) / math.sin(angle)


@pytest.mark.parametrize(
    ("steps", "a", "b", "mix", "label", "guidance"),
    [(1, 3, 4, 0, 3, 1.5), (1, 0, 19, 0.35, 8, 0), (2, 12, 5, 1, 2, 3), (4, 9, 8, 0.5, 9, 0.7), (8, 1, 2, 0, 1, 3)],
)
def test_images_are_those_of_python(
    shipped: str,
    visit: Callable[..., Page],
    steps: int,
    a: int,
    b: int,
    mix: float,
    label: int,
    guidance: float,
) -> None:
    told = {"from": a, "to": b, "mix": mix, "class": label, "guidance": guidance, "steps": steps}
    page = visit(shipped, told)
    drawn(page)
    z = zoo.noise(zoo.default())
    noise = arc(z[a], z[b], mix) if 0 < mix < 1 else z[b if mix else a]
    assert apart(page, ours(steps, noise, label, guidance)) <= 2
    caption = page.inner_text("#caption")
    for text in (
        f"student of {steps} step",
        zoo.classes(zoo.default())[label],
        f"guidance {guidance:.1f}",
        " ms in",
    ):
        assert text in caption


def test_all_students_and_classes_draw_from_the_same_noise(shipped: str, visit: Callable[..., Page]) -> None:
    page = visit(shipped, {"from": 6, "class": 6})
    quiet(page)
    expect(page.locator("[data-time='8']")).to_have_text("not loaded")
    page.click("#load")
    expect(page.locator("#load")).to_be_hidden(timeout=PATIENCE)
    quiet(page)
    z, shown = zoo.noise(zoo.default())[6], zoo.manifest(zoo.default())["guidance"]["shown"]
    rungs = students(zoo.default()).steps
    for steps in rungs:
        assert apart(page, ours(steps, z, 6, shown), f"[data-rung='{steps}']") <= 2
        expect(page.locator(f"[data-time='{steps}']")).to_contain_text(" ms here")
        expect(page.locator(f"[data-figure='{steps}']")).to_contain_text("FD-EffNetLite0 ")
    for k in (0, 6, 9):
        assert apart(page, ours(1, z, k, shown), f"[data-class='{k}']") <= 2
    page.locator("#guidance").fill("0")
    expect(page.locator("#measured")).to_contain_text("at guidance 0;")
    rows = [Row.from_dict(row) for row in zoo.report(zoo.default())["rows"]]
    there = {r.steps: r for r in rows if (r.kind, r.model, r.card.guidance) == ("frechet", "distilled", 0)}
    for steps in rungs:  # none of another guidance stands among them
        known = f"FD-EffNetLite0 {there[steps].value:.0f}" if steps in there else ""
        expect(page.locator(f"[data-figure='{steps}']")).to_have_text(known)


def test_little_is_loaded_before_there_is_a_picture(shipped: str, visit: Callable[..., Page]) -> None:
    sizes: dict[str, int] = {}
    page = visit(shipped)
    page.on(
        "response",
        lambda answer: sizes.update({answer.url.rpartition("/")[2]: int(answer.headers["content-length"])}),
    )
    page.reload()
    drawn(page)
    assert {"student-0001.bin", "page.js", "ort-wasm-simd-threaded.wasm"} <= set(sizes)
    assert not any(name.startswith("student") and "0001" not in name for name in sizes)
    own = sum(size for name, size in sizes.items() if not name.startswith("ort"))
    assert own <= MOST_BYTES


@pytest.mark.parametrize("width", [400, 1280])
def test_it_fits_small_and_large_in_light_and_dark(shipped: str, visit: Callable[..., Page], width: int) -> None:
    colours = []
    for dark in (False, True):
        page = visit(shipped, width=width, dark=dark)
        drawn(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        scale = page.evaluate("document.getElementById('picture').getBoundingClientRect().width / 32")
        assert scale == int(scale) >= 8
        assert page.evaluate("getComputedStyle(document.getElementById('picture')).imageRendering") == "pixelated"
        names = "main, #status, #measured, .classes span, .choice :checked + span, .choice :disabled + span, #play"
        pairs = page.locator(names).evaluate_all(
            "all => all.map(one => { let at = one; const colour = getComputedStyle(one).color;"
            "while (getComputedStyle(at).backgroundColor === 'rgba(0, 0, 0, 0)') at = at.parentElement;"
            "return [colour, getComputedStyle(at).backgroundColor]; })"
        )
        assert len(pairs) > 15
        assert min(contrast(*pair) for pair in pairs) >= 4.5
        colours.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        unnamed = page.locator("input, button, canvas:not([aria-hidden])").evaluate_all(
            "all => all.filter(one => !(one.ariaLabel || one.innerText || one.labels?.length)).map(one => one.id)"
        )
        assert unnamed == []
    assert colours[0] != colours[1]


def contrast(a: str, b: str) -> float:
    """The ratio of two colours, as WCAG has it."""

    def light(colour: str) -> float:
        parts = [int(part) / 255 for part in colour.removeprefix("rgb(").rstrip(")").split(",")]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    low, high = sorted((light(a), light(b)))
    return (high + 0.05) / (low + 0.05)


def test_it_is_used_by_keyboard(shipped: str, visit: Callable[..., Page]) -> None:
    page = visit(shipped)
    drawn(page)
    page.locator("#play").focus()
    page.keyboard.press("Space")
    expect(page.locator("#play")).to_have_text("Stop")
    expect(page.locator("#caption")).to_contain_text("images a second", timeout=PATIENCE)
    page.keyboard.press("Space")
    expect(page.locator("#play")).to_have_text("Play")
    quiet(page)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "mix"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    before = image(page)
    page.keyboard.press("Home")
    page.keyboard.press("End")
    expect(page.locator("#mix")).to_have_value("1")
    quiet(page)
    assert not torch.equal(image(page), before)
    page.locator("input[name='class']:checked").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#caption")).to_contain_text(zoo.classes(zoo.default())[8], timeout=PATIENCE)
    state = page.url.partition("#")[2]
    assert "class=8" in state
    assert "mix=1" in state
    page.locator("#another-to").press("Enter")
    quiet(page)
    assert "to=17" not in page.url  # a noise that this browser drew
    again = visit(shipped)
    again.goto(page.url)
    again.reload()
    quiet(again)
    assert torch.equal(image(again), image(page))


def test_noise_that_a_browser_draws_is_normal(shipped: str, visit: Callable[..., Page]) -> None:
    """Seen through a third of it, as grey levels."""
    page = visit(shipped, {"from": 123456, "to": 123457})
    drawn(page)
    a, b = (image(page, f"#{end}-picture").double().flatten() / 127.5 - 1 for end in ("from", "to"))
    for values in (3 * a, 3 * b):
        assert abs(float(values.mean())) < 4 / math.sqrt(len(values))
        assert abs(float(values.std()) - 1) < 0.04
        assert abs(float((values.abs() < 1).double().mean()) - 0.6827) < 0.03
    assert abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) < 0.06


def test_a_run_of_grey_images_without_classes(plain: str, plain_run: Path, visit: Callable[..., Page]) -> None:
    page = visit(plain, {"from": 2})
    quiet(page)
    with torch.no_grad():
        expected = sample(load(plain_run / "student-0002").denoiser, students(str(plain_run)).noise[2:3])
    assert apart(page, expected.expand(1, 3, 6, 4)) <= 2
    assert page.locator("[name=class], #guidance, [data-rung]").count() == 0
    assert "2 network calls · " in page.inner_text("#caption")


def through(
    page: Page, fetched: dict[str, bytes], change: Callable[[bytes], bytes] = lambda content: content
) -> None:
    """The CDN, played by what was fetched."""

    def answer(route: Route) -> None:
        content = change(fetched[route.request.url.removeprefix(runtime.CDN)])
        route.fulfill(body=content, headers={"Access-Control-Allow-Origin": "*"})

    page.route(f"{runtime.CDN}**", answer)


def test_by_default_the_runtime_comes_from_the_cdn(
    cdn: str, fetched: dict[str, bytes], visit: Callable[..., Page]
) -> None:
    page = visit(cdn, cdn=True)
    through(page, fetched)
    page.goto(cdn)
    quiet(page)
    expect(page.locator("#status")).to_contain_text("draws here what it draws in PyTorch")
    expect(page.locator("#measured")).to_contain_text("No distance of these students was measured")


def test_a_graphics_card_draws_the_same(cdn: str, fetched: dict[str, bytes], imitated: Browser) -> None:
    page = imitated.new_page()
    page.set_default_timeout(PATIENCE)
    through(page, fetched)
    page.goto(cdn)
    drawn(page)
    expect(page.locator("input[value='wasm']")).to_be_checked()  # an imitated one is chosen by hand alone
    quiet(page)
    before, there = image(page), page.locator("input[value='webgpu']")
    if there.is_disabled():
        pytest.skip(f"this Chromium has no WebGPU: {page.inner_text('#engine-note')}")
    there.check(force=True)
    quiet(page)
    drawn(page)
    expect(page.locator("#caption")).to_contain_text("(graphics card)")
    assert int((image(page) - before).abs().max()) <= 2


def test_a_runtime_of_another_hash_is_not_run(
    cdn: str, fetched: dict[str, bytes], visit: Callable[..., Page]
) -> None:
    page = visit(cdn, cdn=True)
    through(page, fetched, lambda content: content + b" ")
    page.goto(cdn)
    expect(page.locator("#status.error")).to_contain_text("onnxruntime-web could not be loaded", timeout=PATIENCE)
    expect(page.locator("#status")).to_contain_text(f"{runtime.CDN}ort")
    expect(page.locator("#status")).to_contain_text("make it again with --vendored")
    assert page.locator("#picture[data-drawn]").count() == 0
    assert page.locator("form[inert]").count() == 1


def test_a_student_that_is_damaged_leaves_the_others(
    cdn: str, fetched: dict[str, bytes], visit: Callable[..., Page]
) -> None:
    page = visit(cdn, cdn=True)
    through(page, fetched)
    page.route(
        "**/student-0002.bin", lambda route: route.fulfill(body=b"version https://git-lfs.github.com/spec/v1")
    )
    page.goto(cdn)
    quiet(page)
    page.locator("input[name='steps'][value='2']").check(force=True)
    expect(page.locator("#status.error")).to_contain_text(
        "the student of 2 steps could not be loaded", timeout=PATIENCE
    )
    expect(page.locator("input[name='steps'][value='1']")).to_be_checked()
    quiet(page)
    page.unroute("**/student-0002.bin")
    page.locator("input[name='steps'][value='2']").check(force=True)
    expect(page.locator("#caption")).to_contain_text("student of 2 steps", timeout=PATIENCE)
