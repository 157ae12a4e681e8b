"""Every notebook without its solutions, in this process: stubs tell their hint, nothing else fails, widgets move.

The solved version runs as a notebook of its own under nbmake, in a kernel, where the stubs are allowed to raise.
"""

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ipywidgets as ipw
import nbformat
import pytest
import torch

from pdlab import zoo
from pdlab.teaching.exercises import EXERCISES, NotYet

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
NAMES = [path.stem for path in NOTEBOOKS]


def cells(path: Path, kind: str = "code") -> list[dict[str, Any]]:
    found = json.loads(path.read_text())["cells"]
    return [{**cell, "source": "".join(cell["source"])} for cell in found if cell["cell_type"] == kind]


def tags(cell: dict[str, Any]) -> list[str]:
    return cell["metadata"].get("tags", [])


def defined(source: str) -> set[str]:
    """Names that a cell binds at its top level."""
    names = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        for part in ast.walk(node) if isinstance(node, ast.Assign) else ():
            if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
                names.add(part.id)
    return names


def used(source: str) -> set[str]:
    return {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)}


def test_there_are_nine() -> None:
    assert [name[:2] for name in NAMES] == [f"{k:02d}" for k in range(1, 10)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_form(path: Path) -> None:
    """Valid, for the kernel python3, without outputs; asks, lets bet, moves something, ends in one sentence."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    assert all(cell.execution_count is None and not cell.outputs for cell in notebook.cells if "outputs" in cell)
    code, text = cells(path), [cell["source"] for cell in cells(path, "markdown")]
    assert "PDLAB_FAST" in code[0]["source"]
    assert "PDLAB_DATA" in code[0]["source"]
    assert "**Question:**" in text[0]
    assert any("## A bet" in part for part in text)
    assert any("explore(" in cell["source"] for cell in code)
    assert notebook.cells[-1].source.splitlines()[-1].startswith("**Say it in one sentence:**")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_exercises_and_solutions_come_in_pairs(path: Path) -> None:
    code = cells(path)
    exercises = [k for k, cell in enumerate(code) if "exercise" in tags(cell)]
    assert exercises
    assert [k + 1 for k in exercises] == [k for k, cell in enumerate(code) if "solution" in tags(cell)]
    assert exercises == [k for k, cell in enumerate(code) if "raises-exception" in tags(cell)]
    for k in exercises:
        stub, solution = code[k], code[k + 1]
        assert "raise NotImplementedError" in stub["source"]
        assert solution["metadata"]["jupyter"]["source_hidden"]
        (check,) = {line for line in stub["source"].splitlines() if line.startswith("exercises.check(")}
        assert check in solution["source"]
        assert check.split('"')[1] in EXERCISES
        names = defined(stub["source"]) | defined(solution["source"])
        assert defined(stub["source"]) == defined(solution["source"])
        for other, cell in enumerate(code):
            assert other in (k, k + 1) or not names & used(cell["source"])


def test_every_exercise_is_in_a_notebook() -> None:
    everything = "".join(cell["source"] for path in NOTEBOOKS for cell in cells(path))
    assert [name for name in EXERCISES if f'exercises.check("{name}"' not in everything] == []


@pytest.fixture
def as_a_learner(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("PDLAB_FAST", "1")
    monkeypatch.chdir(FOLDER)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.usefixtures("as_a_learner")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_the_students_version(path: Path) -> None:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    moved = 0
    for cell in cells(path):
        if "solution" in tags(cell):
            continue
        if "exercise" in tags(cell):
            with pytest.raises(NotYet, match="is not written yet"):
                run(cell["source"], namespace)
            continue
        shown = run(cell["source"], namespace)
        if hasattr(shown, "_repr_png_"):
            assert shown._repr_png_()[0].startswith(b"\x89PNG")
        if isinstance(shown, ipw.Box):
            move(shown)
            moved += 1
    assert moved > 0


@pytest.mark.slow
@pytest.mark.usefixtures("as_a_learner")
def test_the_images_with_classes_are_shown_once_a_ladder_has_any(
    classes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The part on images of notebook 9, on a guided ladder of digits: pictures, a widget, and curves."""
    monkeypatch.setattr(zoo, "default", lambda: str(classes))
    (path,) = (path for path in NOTEBOOKS if path.name.startswith("09"))
    code = [cell["source"] for cell in cells(path)]
    start = next(k for k, source in enumerate(code) if "zoo.default()" in source)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    needed = ("import os", "import itertools", "def evaluations")
    for source in [*(s for s in code[:start] if s.startswith(needed[:2]) or needed[2] in s), *code[start:]]:
        shown = run(source, namespace)
        if isinstance(shown, ipw.Box):
            move(shown)
            namespace["moved"] = True
    assert namespace["moved"]
    assert "10 classes, w in [0, 2]" in (said := capsys.readouterr().out)
    assert "1 steps, w = 1: largest difference" in said
    rows = [axis.get_yticklabels()[0].get_text() for axis in namespace["class_rows"](2.0).axes]
    assert rows == ["teacher, DDIM, 4 steps", "student, 4 steps", "student, 2 steps", "student, 1 step"]
    names = {line.get_label() for line in namespace["image_tradeoff"]().axes[0].lines}
    models = ("teacher", "4 steps", "1 step")
    assert names == {f"{what}, {model}" for what in ("agreement", "recall") for model in models} | {
        "agreement, real"
    }


def run(source: str, namespace: dict[str, Any]) -> Any:
    """The value of the cell's last line, as a notebook shows it."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "<cell>", "exec"), namespace)
    if isinstance(last, ast.Expr):
        return eval(compile(ast.Expression(last.value), "<cell>", "eval"), namespace)
    return None


def move(box: ipw.Box) -> None:
    """Move every control of a widget; an error of its callback is raised here."""
    (image,) = (child for child in box.children if isinstance(child, ipw.Image))
    pictures = {bytes(image.value)}
    for control in box.children:
        if isinstance(control, ipw.Button):
            while not control.disabled:
                control.click()
                pictures.add(bytes(image.value))
        elif hasattr(control, "options"):
            start = control.value
            values = [option[1] if isinstance(option, tuple) else option for option in control.options]
            for value in (values[0], values[len(values) // 2], values[-1], start):
                control.value = value
                pictures.add(bytes(image.value))
    assert len(pictures) > 1, "nothing that was moved changed the picture"
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)
