"""Chromium for tests, and a page of it whose errors and requests are watched."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@contextmanager
def starting() -> Iterator[Callable[..., Browser]]:
    """What starts Chromium with more arguments; skips the test where there is none."""
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    with sync_playwright() as playwright:
        running: list[Browser] = []

        def start(*more: str) -> Browser:
            args = ["--no-sandbox", *more]
            running.append(playwright.chromium.launch(executable_path=CHROMIUM, args=args))
            return running[-1]

        yield start
        for browser in running:
            browser.close()


@contextmanager
def watching(browser: Browser, patience: float) -> Iterator[Callable[..., Page]]:
    """Opens pages, `patience` in milliseconds; at the end none had an error, or asked for what is not `allowed`.

    Errors in the console are none where a test awaits them (`console`).
    """
    pages: list[Page] = []
    wrong: list[str] = []

    def open_page(allowed: tuple[str, ...], width: int, console: bool = True, **more: Any) -> Page:
        page = browser.new_page(viewport={"width": width, "height": 900}, **more)
        page.set_default_timeout(patience)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: None if request.url.startswith(allowed) else wrong.append(request.url))
        if console:
            page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.close()
    assert wrong == []
