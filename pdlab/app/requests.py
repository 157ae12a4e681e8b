"""What comes from a client is checked before Gradio sees it: nonsense is the client's error, answered in words.

Pages of ours send an object whose "data" has one value for each input of an event, the ladder's name first.
Anything else is answered with 400 and one sentence, and is not printed as an error of the server's.
"""

import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from contextvars import ContextVar
from typing import Any

import gradio as gr

from pdlab import schema
from pdlab.errors import PdlabError

MOST_BYTES = 1 << 20
_PATH = re.compile(r".*/(?:run|call|api)/(?P<name>[^/]+)/?|.*/queue/join/?")

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
Receive = Callable[[], Awaitable[Message]]

#: Why Gradio could not take the values of the request that is being answered, as soon as it is known.
_refused: ContextVar[list[str]] = ContextVar("_refused")


class Requests:
    """Middleware (ASGI) around the server of `blocks`."""

    def __init__(self, app: Any, blocks: gr.Blocks) -> None:
        self._app, self._blocks = app, blocks

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """See the module."""
        path = _PATH.fullmatch(scope.get("path", "")) if scope["type"] == "http" else None
        if path is None or scope["method"] != "POST":
            return await self._app(scope, receive, send)
        content, more = b"", True
        while more and len(content) <= MOST_BYTES:
            message = await receive()
            content += message.get("body", b"")
            more = message.get("more_body", False)
        if why := self._wrong(content, path["name"]):
            return await _answer(send, why)

        sent = False

        async def replay() -> Message:
            nonlocal sent
            if sent:
                return await receive()
            sent = True
            return {"type": "http.request", "body": content, "more_body": False}

        why_not: list[str] = []
        _refused.set(why_not)
        answered = False

        async def translated(message: Message) -> None:
            nonlocal answered
            if not why_not:
                await send(message)
            elif not answered:
                answered = True
                await _answer(send, why_not[0])

        return await self._app(scope, replay, translated)

    def _wrong(self, content: bytes, name: str | None) -> str | None:
        """What is wrong with a request to the event whose number it holds, as a page's does, or to `name`."""
        if len(content) > MOST_BYTES:
            return f"a request has at most {MOST_BYTES:,} bytes"
        try:
            body = schema.parse(content, "the request")
        except PdlabError as error:
            return str(error)
        values = body.get("data") if isinstance(body, dict) else None
        if not isinstance(values, list):
            return 'a request is an object with a list "data"'
        events = self._blocks.fns
        number = body.get("fn_index")
        if number is None:
            event = next((e for e in events.values() if e.api_name == name), None) if name else None
        else:
            event = events.get(number) if type(number) is int else None
        if event is None or event.fn is None:  # such as a script of the page's
            return "there is no such event"
        if len(values) != len(event.inputs):
            return f"this event takes {len(event.inputs)} values, not {len(values)}"
        if values and all(value is None for value in values):
            return "every value of the request is null: send at least the ladder's name"
        return None


def quiet(blocks: gr.Blocks) -> None:
    """Let values that a control of `blocks` does not take be the client's error, without a traceback."""
    preprocess = blocks.preprocess_data

    async def checked(*args: Any, **kwargs: Any) -> Any:
        try:
            return await preprocess(*args, **kwargs)
        except Exception as error:
            why = f"a value is none that its control takes: {str(error).splitlines()[0] if str(error) else error!r}"
            _refused.get([]).append(why)
            raise gr.Error(why, print_exception=False) from error

    blocks.preprocess_data = checked  # type: ignore[method-assign]


async def _answer(send: Send, why: str) -> None:
    content = json.dumps({"error": why}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": 400, "headers": headers})
    await send({"type": "http.response.body", "body": content})
