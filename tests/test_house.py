"""The house as the README draws it: imports point up its list; one name for one thing."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MODULES = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): ast.parse(file.read_text())
    for file in sorted((ROOT / "pdlab").rglob("*.py"))
}


def rooms() -> dict[str, int]:
    """The line of the README's picture on which each part of the package stands, by its name below `pdlab`."""
    picture = (ROOT / "README.md").read_text().partition("## The house\n")[2].partition("    app.py")[0]
    lines = re.findall(r"^      ((?:[\w./]+, )*[\w.]+[/y])\s", picture, re.MULTILINE)
    return {part.rstrip("/").removesuffix(".py"): k for k, line in enumerate(lines) for part in line.split(", ")}


def imported(tree: ast.Module) -> Iterator[str]:
    """The modules of the package that `tree` imports, at once or later, and `pdlab` itself for a name of it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are written from the package down"
            for name in node.names:
                below = f"{node.module}.{name.name}"
                if below != "pdlab.__version__":
                    yield below if below in MODULES else str(node.module)


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def test_every_module_has_a_room_and_every_room_a_module() -> None:
    assert {room(module) for module in MODULES} == set(rooms())


def test_imports_point_up_the_list_or_stay_in_their_room() -> None:
    order = rooms()
    pairs = [
        (module, other)
        for module, tree in MODULES.items()
        for other in imported(tree)
        if other.partition(".")[0] == "pdlab"
    ]
    assert len(pairs) > 300
    down = [f"{module} imports {other}" for module, other in pairs if order[room(other)] > order[room(module)]]
    assert down == []


def test_no_two_public_classes_share_a_name() -> None:
    found = defaultdict(list)
    for module, tree in MODULES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found[node.name].append(module)
    assert len(found) > 100
    assert {name: modules for name, modules in found.items() if len(modules) > 1} == {}
