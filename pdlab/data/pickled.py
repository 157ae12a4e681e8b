"""Reading the one kind of pickle that CIFAR-10 comes in, and nothing else a pickle can do.

A pickle is a program. This reader is Python's own, in Python, with only the instructions that a batch is written
with, a bound on how many of them run and on what they make, and inert stand-ins for the few names they may mention.
"""

import pickle
from collections.abc import Callable
from typing import Any, BinaryIO

MOST_INSTRUCTIONS = 1_000_000  # a batch of the official files has about 60,000
MOST_BYTES = 64 << 20

_WRITTEN = """
    PROTO FRAME STOP MARK POP POP_MARK
    NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4
    STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8
    UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8
    EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST LIST APPEND APPENDS EMPTY_DICT DICT SETITEM SETITEMS
    PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET GLOBAL STACK_GLOBAL REDUCE BUILD
"""
_INSTRUCTIONS = frozenset(getattr(pickle, name)[0] for name in _WRITTEN.split())

_read = pickle._Unpickler.dispatch


class PickledArray:
    """What a pickle says of a uint8 array, kept without numpy: numpy's own functions never see its arguments."""

    def __init__(self, expected: tuple[int, int]) -> None:
        self.expected = expected
        self.shape: tuple[int, ...] = ()
        self.order: Any = "C"
        self.content = b""

    def fill(self, shape: Any, fortran: bool, dtype: Any, content: Any) -> "PickledArray":
        """Take over the array's parts once they are plain and agree with one another."""
        rows, columns = self.expected
        if not isinstance(dtype, _UInt8) or not isinstance(content, bytes | bytearray):
            raise ValueError("it holds an array of something else than bytes")
        if shape != self.expected or len(content) != rows * columns:
            raise ValueError(f"its data is not an array of {rows:,} x {columns} bytes")
        self.shape, self.order, self.content = shape, "F" if fortran else "C", bytes(content)
        return self

    def __setstate__(self, state: Any) -> None:
        _version, shape, dtype, fortran, content = state
        self.fill(shape, fortran, dtype, content)


class _UInt8:
    """numpy's dtype, for the one dtype that a batch has."""

    def __init__(self, code: Any, *_: Any) -> None:
        if code not in ("u1", b"u1"):
            raise ValueError("it holds an array of something else than bytes")

    def __setstate__(self, state: Any) -> None:
        """Byte order, alignment and the like mean nothing for bytes."""


class _Dispatch(dict[int, Callable[[Any], None]]):
    """Instructions by their code; whatever is not in it is refused."""

    def __missing__(self, code: int) -> Callable[[Any], None]:
        raise ValueError("it holds an instruction that no batch needs; nothing was run")


class BatchUnpickler(pickle._Unpickler):
    """Reads a batch whose data are of `shape`, as Python 2 or 3 wrote it, and nothing else."""

    def __init__(self, file: BinaryIO, shape: tuple[int, int]) -> None:
        super().__init__(file, encoding="bytes")
        self._shape, self._left, self._bytes = shape, MOST_INSTRUCTIONS, MOST_BYTES
        self._arrays = 0

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for `module.name`; any other name is refused before it is looked up."""
        stand_in = self._stand_ins().get((module.replace("numpy._core.", "numpy.core."), name))  # since numpy 2
        if stand_in is None:
            raise ValueError(f"it asks for {module + '.' + name!r:.80}, which no batch needs; nothing was run")
        return stand_in

    def count(self) -> None:
        """One instruction more."""
        self._left -= 1
        if self._left < 0:
            raise ValueError(f"it holds more than {MOST_INSTRUCTIONS:,} instructions, and no batch needs so many")

    def _encode(self, text: Any, encoding: Any) -> bytes:
        """How Python 3 writes bytes in the old protocols."""
        if not isinstance(text, str) or encoding != "latin1":
            raise ValueError("it holds a text in an unexpected encoding")
        self._bytes -= len(text)
        if self._bytes < 0:
            raise ValueError("it makes far more bytes than a batch has")
        return text.encode("latin1")

    def _pixels(self) -> PickledArray:
        """The one array that a batch has."""
        self._arrays += 1
        if self._arrays > 1:
            raise ValueError("it holds more than one array")
        return PickledArray(self._shape)

    def _stand_ins(self) -> dict[tuple[str, str], Callable[..., Any]]:
        """Made anew for each name, so that nothing a pickle hangs on one outlives it."""

        def frombuffer(content: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> PickledArray:
            return self._pixels().fill(shape, order == "F", dtype, content)

        return {
            ("numpy", "dtype"): lambda *arguments: _UInt8(*arguments),
            ("numpy", "ndarray"): lambda: None,  # only ever named, as the first argument of the next
            ("numpy.core.multiarray", "_reconstruct"): lambda *_: self._pixels(),
            ("numpy.core.numeric", "_frombuffer"): frombuffer,
            ("_codecs", "encode"): lambda text, encoding: self._encode(text, encoding),
        }


def _counted(instruction: Callable[[Any], None]) -> Callable[[BatchUnpickler], None]:
    def run(reader: BatchUnpickler) -> None:
        reader.count()
        instruction(reader)

    return run


def _keyed(instruction: Callable[[Any], None]) -> Callable[[BatchUnpickler], None]:
    """Texts alone are keys: the hash of tuples within tuples can take for ever."""

    def run(reader: BatchUnpickler) -> None:
        stack: list[Any] = reader.stack  # type: ignore[attr-defined]
        pairs = stack[-2:] if instruction is _read[pickle.SETITEM[0]] else stack  # all since the last mark
        if not all(isinstance(key, str | bytes) for key in pairs[::2]):
            raise ValueError("it holds a dictionary with other keys than texts")
        instruction(reader)

    return run


_checked = {code: _keyed(_read[code]) for code in (pickle.SETITEM[0], pickle.SETITEMS[0], pickle.DICT[0])}
BatchUnpickler.dispatch = _Dispatch({code: _counted(_checked.get(code, _read[code])) for code in _INSTRUCTIONS})
