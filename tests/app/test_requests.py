"""Requests that no page sends: 400 and one sentence for whoever sent them, no traceback for whoever serves."""

import json
from typing import Any

import gradio as gr
import pytest
from fastapi.testclient import TestClient
from starlette.middleware import Middleware

from pdlab.app.ladders import Shelf
from pdlab.app.requests import Requests
from pdlab.app.server import build

EVENTS = ("compare", "curve", "lineage", "bench", "metrics", "lab", "choose", "restore", "own_steps")


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


def test_what_a_page_sends_is_answered(app: gr.Blocks, client: TestClient, capsys) -> None:
    event = next(event for event in app.fns.values() if event.api_name == "lineage")
    status, _ = ask(client, "lineage", {"data": ["shipped", *[1] * (len(event.inputs) - 1)]}, capsys)
    assert status == 200
