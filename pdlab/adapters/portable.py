"""The code of a network as one file that needs PyTorch and diffusers, and not this package.

It is made of the package's own files, as they stand but for their imports of one another and for the checks of
settings that came out of a file of ours and were checked.
"""

import ast
import inspect
import typing
from collections.abc import Iterator
from types import ModuleType

from pdlab.adapters import step_network
from pdlab.networks import embedding, final, mlp, unet

#: The files that each kind of network stands in, in the order in which they need one another.
FILES: dict[str, tuple[ModuleType, ...]] = {"unet": (embedding, final, unet), "mlp": (embedding, final, mlp)}
_HEAD = '''"""A network of pdlab (progressive distillation of diffusion models) for diffusers; Apache-2.0."""

from __future__ import annotations


class PdlabError(ValueError):
    """Something is wrong, and what to do is said."""


NETWORKS = {}


def register_network(name, config):
    """Remember how a network is made of its configuration."""

    def add(make):
        NETWORKS[name] = (make, config)
        return make

    return add


'''
_LEFT_OUT = ("pdlab", "pydantic", "__future__")

Edit = tuple[tuple[int, int], tuple[int, int], str]  # from (line, column) to (line, column): another text


def portable(kind: str) -> str:
    """The source of a module with `StepNetwork` for networks of `kind`, a key of `FILES`."""
    return _HEAD + "\n\n".join(_edited(module) for module in (*FILES[kind], step_network))


def _edited(module: ModuleType) -> str:
    source = inspect.getsource(module)
    lines = source.splitlines(keepends=True)
    for (row, column), (last, end), text in sorted(_edits(ast.parse(source), module), reverse=True):
        # Columns are of UTF-8.
        head, tail = lines[row - 1].encode()[:column].decode(), lines[last - 1].encode()[end:].decode()
        lines[row - 1 : last] = [head + text + tail] if (head + text).strip() else []
    return "".join(lines)


def _edits(tree: ast.Module, module: ModuleType) -> Iterator[Edit]:
    for node in ast.walk(tree):
        ours = isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] in _LEFT_OUT
        if isinstance(node, ast.ImportFrom | ast.Expr) and (ours or ast.unparse(node) == "schema.check(self)"):
            yield _replaced(node, "")
        elif isinstance(node, ast.ClassDef) and node.name.endswith("Config"):  # types without their bounds
            plain = typing.get_type_hints(getattr(module, node.name))
            for field in node.body:
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                    hint = plain[field.target.id]
                    bare = isinstance(hint, type) and typing.get_origin(hint) is None
                    yield _replaced(field.annotation, hint.__name__ if bare else str(hint))


def _replaced(node: ast.expr | ast.stmt, text: str) -> Edit:
    assert node.end_lineno is not None
    assert node.end_col_offset is not None
    return (node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset), text
