"""Requests that no page sends: 400 and one sentence for whoever sent them, no traceback for whoever serves."""

import json
import os
import random
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import gradio as gr
import psutil
import pytest
from fastapi.testclient import TestClient
from starlette.middleware import Middleware

from pdlab.app.ladders import Shelf
from pdlab.app.requests import Requests
from pdlab.app.server import build, launch

#: The ladder, a noise, no class, no guidance.
LINEAGE = ["shipped", 1, None, 0]
EVENTS = ("compare", "lab", "choose", "own_steps")


@pytest.fixture
def app(shelf: Shelf) -> gr.Blocks:
    return build(shelf)


@pytest.fixture
def client(app: gr.Blocks) -> TestClient:
    served = gr.routes.App.create_app(app, app_kwargs={"middleware": [Middleware(Requests, blocks=app)]})
    return TestClient(served, raise_server_exceptions=False)


def ask(client: TestClient, name: str, content: Any, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    answer = client.post(f"/gradio_api/run/{name}", content=body, headers={"content-type": "application/json"})
    assert "Traceback" not in capsys.readouterr().err
    return answer.status_code, str(answer.json().get("error"))


def test_what_no_page_sends_is_refused(app: gr.Blocks, client: TestClient, capsys) -> None:
    inputs = {event.api_name: len(event.inputs) for event in app.fns.values()}
    for name in EVENTS:
        n = inputs[name]
        for content, words in (
            ({"data": [None] * n}, "every value of the request is null"),
            ({"data": []}, f"takes {n} values, not 0"),
            ({"data": ["x"] * (n + 1)}, f"takes {n} values, not {n + 1}"),
            ({"data": {"a": 1}}, 'a list "data"'),
            ([1], 'a list "data"'),
            (b"{", "the request is damaged"),
            (b"[" * 200_000, "nested too deeply"),
            (b'{"data": "' + b"x" * (2 << 20) + b'"}', "at most"),
        ):
            status, error = ask(client, name, content, capsys)
            assert (status, words in error) == (400, True), (name, name, error)
    assert ask(client, "js_fn", {"data": []}, capsys) == (400, "there is no such event")
    assert ask(client, "atlantis", {"data": []}, capsys) == (400, "there is no such event")


def test_values_that_a_control_does_not_take_are_refused(app: gr.Blocks, client: TestClient, capsys) -> None:
    event = next(event for event in app.fns.values() if event.api_name == "compare")
    status, error = ask(client, "compare", {"data": ["shipped", *[None] * (len(event.inputs) - 1)]}, capsys)
    assert status == 400
    assert "a value is none that its control takes" in error


def test_a_null_beside_good_values_is_answered_without_a_traceback(
    app: gr.Blocks, client: TestClient, capsys
) -> None:
    inputs = next(event for event in app.fns.values() if event.api_name == "own_steps").inputs
    for k in range(1, len(inputs)):
        values = ["shipped", *(control.value for control in inputs[1:])]
        values[k] = None
        assert ask(client, "own_steps", {"data": values}, capsys)[0] in (200, 400)


def test_what_a_page_sends_is_answered(app: gr.Blocks, client: TestClient, capsys) -> None:
    status, _ = ask(client, "lineage", {"data": LINEAGE}, capsys)
    assert status == 200
    number = next(number for number, event in app.fns.items() if event.api_name == "lineage")
    status, _ = ask(client, "predict", {"data": LINEAGE, "fn_index": number}, capsys)
    assert status == 200
    for wrong in (10_000, "1", True, [1]):
        refused = ask(client, "predict", {"data": LINEAGE, "fn_index": wrong}, capsys)
        assert refused == (400, "there is no such event")


@pytest.mark.nightly
def test_thirty_clients_half_of_them_hostile(shelf: Shelf, capfd: pytest.CaptureFixture[str]) -> None:
    """For ten minutes ($PDLAB_SOAK seconds): pages are answered, nonsense is refused, memory does not grow."""
    app = launch(shelf=shelf, block=False)
    until = time.monotonic() + float(os.environ.get("PDLAB_SOAK", "600"))

    def post(name: str, content: bytes) -> int:
        address = f"{app.local_url}gradio_api/run/{name}"
        request = urllib.request.Request(address, content, {"content-type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    def client(number: int) -> int:
        draw, asked = random.Random(number), 0
        while time.monotonic() < until:
            page, nulls = (json.dumps({"data": data}).encode() for data in (LINEAGE, [None] * len(LINEAGE)))
            nonsense = [b"{", b"[" * 10_000, b'{"data": []}', nulls]
            content, expected = (page, 200) if number % 2 else (draw.choice(nonsense), 400)
            assert post("lineage", content) == expected, content[:50]
            asked += 1
        return asked

    process = psutil.Process()
    with ThreadPoolExecutor(30) as pool:
        clients = [pool.submit(client, number) for number in range(30)]
        time.sleep((until - time.monotonic()) / 5)
        before = process.memory_info().rss
        asked = [done.result() for done in clients]
    grown = process.memory_info().rss - before
    app.close(verbose=False)
    assert min(asked) > 0
    assert grown < 200 << 20
    assert "Traceback" not in capfd.readouterr().err
