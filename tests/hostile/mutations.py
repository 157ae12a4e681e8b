"""Damage and malice: strategies for what can become of a file that pdlab wrote."""

import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from pdlab import files, schema
from tests.hostile.harness import contents

#: Values of every type, and some of no sense, for a field that holds another.
VALUES: list[Any] = [
    *[None, True, False, 0, 1, -1, 3, 2**31, 2**63, 2**70, 10**400, 0.5, -0.5, 1e308, 5e-324],
    *["", "x", "[/b]", "../x", "\x1b[2J", "\ud800", "9" * 5000, "mlp", "unet", "eps", "both"],
    *[[], [1], [[]], [1, 2, 3], [10**6, 10**6, 10**6], {}, {"a": 1}],
]
BLOCK = 4096
Path_ = tuple[str | int, ...]


@dataclass(frozen=True)
class Mutation:
    """What is done to a file, in words, and how; `valid` if what comes out may rightly be accepted."""

    words: str
    apply: Callable[[Path], None]
    valid: bool = False


def of_file(path: Path) -> st.SearchStrategy[Mutation]:
    """Any mutation of the file `path`."""
    size = path.stat().st_size
    kinds = [
        st.builds(
            flipped, st.integers(0, max(0, (size - 1) // BLOCK)), st.integers(0, BLOCK - 1), st.integers(1, 255)
        ),
        st.builds(cut, st.integers(0, max(0, size - 1))),
        st.builds(extended, st.binary(min_size=1, max_size=64)),
        st.sampled_from([EMPTY, GONE, FOLDER, PIPE, LOOP, DEVICE, HUGE, NESTED, NOT_UTF8]),
    ]
    if path.suffix == ".json":
        fields = list(_fields(json.loads(path.read_text())))
        of_field = st.builds(retyped, st.sampled_from(fields), st.sampled_from(VALUES), st.booleans())
        kinds += [of_field] * 6
        kinds += [st.builds(removed, st.sampled_from(fields), st.booleans())] * 2
        kinds += [st.builds(added, st.sampled_from(fields), st.sampled_from(VALUES), st.booleans())] * 2
    return st.one_of(kinds)


def flipped(block: int, at: int, bits: int) -> Mutation:
    """One byte in one block has other bits."""

    def apply(path: Path) -> None:
        content = bytearray(path.read_bytes())
        if content:
            content[min(block * BLOCK + at, len(content) - 1)] ^= bits
        path.write_bytes(content)

    return Mutation(f"byte {block * BLOCK + at} ^ {bits}", apply)


def cut(size: int) -> Mutation:
    """Only the first `size` bytes are left."""
    return Mutation(f"cut to {size} bytes", lambda path: os.truncate(path, size))


def extended(more: bytes) -> Mutation:
    """Something stands behind the end."""
    return Mutation(f"extended by {more!r}", lambda path: path.write_bytes(path.read_bytes() + more) and None)


def retyped(field: Path_, value: Any, sealed: bool) -> Mutation:
    """One field of a JSON file has another value, under a seal that is right or not."""
    return _edited(f"{field} = {value!r:.40}", lambda parent: parent.__setitem__(field[-1], value), field, sealed)


def removed(field: Path_, sealed: bool) -> Mutation:
    """One field of a JSON file is missing."""
    return _edited(f"without {field}", lambda parent: parent.__delitem__(field[-1]), field, sealed)


def added(field: Path_, value: Any, sealed: bool) -> Mutation:
    """There is a field too many beside one of a JSON file."""

    def add(parent: Any) -> None:
        parent.append(value) if isinstance(parent, list) else parent.__setitem__("one too many", value)

    return _edited(f"{value!r:.40} beside {field}", add, field, sealed)


def _edited(words: str, change: Callable[[Any], None], field: Path_, sealed: bool) -> Mutation:
    def apply(path: Path) -> None:
        body = json.loads(path.read_text())
        parent = body
        for key in field[:-1]:
            parent = parent[key]
        change(parent)
        if sealed:
            body["seal"] = schema._seal(body)
        path.write_text(json.dumps(body))

    return Mutation(f"{words}{', sealed' if sealed else ''}", apply, valid=sealed)


def _fields(value: Any, at: Path_ = ()) -> Iterator[Path_]:
    """The way to every field, at most two of the items of a list."""
    items = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, part in items:
        yield (*at, key)
        yield from _fields(part, (*at, key))


def _instead(words: str, make: Callable[[Path], object]) -> Mutation:
    def apply(path: Path) -> None:
        path.unlink()
        make(path)

    return Mutation(words, apply)


EMPTY = Mutation("empty", lambda path: os.truncate(path, 0))
GONE = Mutation("gone", lambda path: path.unlink())
FOLDER = _instead("a folder", lambda path: path.mkdir())
PIPE = _instead("a pipe", os.mkfifo)
LOOP = _instead("a link to itself", lambda path: path.symlink_to(path.name))
DEVICE = _instead("a device", lambda path: path.symlink_to("/dev/zero"))
HUGE = Mutation("8 TB", lambda path: os.truncate(path, 8 << 40))
NESTED = _instead("nested", lambda path: path.write_text("[" * 200_000))
NOT_UTF8 = _instead("not UTF-8", lambda path: path.write_bytes(b'{"a": "\xff"}'))


@dataclass
class Sandbox:
    """A copy of `original` in which one file at a time is spoiled and put back."""

    original: Path
    path: Path

    def __post_init__(self) -> None:
        shutil.copytree(self.original, self.path)
        self._whole = contents(self.original)

    def names(self) -> list[str]:
        """The files to spoil, by their name in the folder."""
        inside = (path for path in sorted(self.original.rglob("*")) if path.is_file() and path.name != ".lock")
        return [str(path.relative_to(self.original)) for path in inside]

    def restore(self) -> None:
        """Everything as it was."""
        now = contents(self.path)
        for name in sorted(now.keys() | self._whole.keys()):  # a folder before what is in it
            if now.get(name) == self._whole.get(name):
                continue
            files.discard(self.path / name)
            if (self.original / name).is_dir():
                (self.path / name).mkdir()
            elif name in self._whole:
                shutil.copy2(self.original / name, self.path / name)
        assert contents(self.path) == self._whole

    def same(self, name: str) -> bool:
        """Whether a file means the same as before, e.g. where a space of its JSON became another."""
        old, new = self.original / name, self.path / name
        try:
            if not stat.S_ISREG(new.lstat().st_mode) or new.stat().st_size > 64 << 20:
                return False
            return bool(json.loads(old.read_bytes()) == json.loads(new.read_bytes()))
        except (OSError, ValueError, RecursionError):
            return False
