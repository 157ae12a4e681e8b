"""The one printer: what it is given is text, never markup, and no character of it can stop it."""

import io
import sys
from typing import Any

from rich.console import Console
from rich.text import Text


def prepare() -> None:
    """Let both streams print anything: what their encoding lacks is escaped, and a closed one swallows it."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, io.StringIO())
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def output() -> Console:
    """Standard output."""
    return Console(markup=False, highlight=False, emoji=False)


def errors() -> Console:
    """Standard error."""
    return Console(stderr=True, markup=False, highlight=False, emoji=False)


def say(message: str, console: Console | None = None, **options: Any) -> None:
    """`message` as it is, on standard output or on `console`."""
    (console or output()).print(Text(printable(message)), soft_wrap=True, **options)


def line(message: str) -> None:
    """`message` as one line on standard error."""
    print(" ".join(printable(message).splitlines()), file=sys.stderr)


def printable(text: str) -> str:
    """`text` without control characters (a file's name may hold what moves a terminal's cursor) and surrogates."""
    escaped = "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)
    return escaped.encode("utf-8", "backslashreplace").decode()
