"""The base: what `pip install pdlab` brings suffices to train, distil, sample and measure; extras are asked for."""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pdlab.errors import PdlabError
from tests.command import Result, refused

#: What the extras bring, and what of the base only figures, networks for features and downloads need.
EXTRAS = ("gradio", "starlette", "pandas", "IPython", "jupyterlab", "ipywidgets", "diffusers", "sklearn")
EXTRAS += ("onnx", "onnxscript", "onnxruntime", "huggingface_hub", "peft", "transformers")
LATER = ("matplotlib", "torchvision", "torch_fidelity", "efficientnet_lite_pytorch", "scipy", "pooch")

# As if they were not installed: nothing finds them, whoever looks and however.
BARE = """
import runpy, sys

class Bare:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in absent else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)

absent = sys.argv.pop(1).split(",")
sys.meta_path[:] = [Bare(finder) for finder in sys.meta_path]
sys.argv[0] = "pdlab"
runpy.run_module("pdlab.cli", run_name="__main__")
"""


def bare(*command: object, without: tuple[str, ...] = EXTRAS + LATER) -> Result:
    """A command where the packages `without` are not installed."""
    done = subprocess.run(
        [sys.executable, "-c", BARE, ",".join(without), *map(str, command)], capture_output=True, text=True
    )
    return Result(done.returncode, done.stdout, done.stderr)


def works(*command: object) -> None:
    done = bare(*command)
    assert done.code == 0, done.err


@pytest.mark.slow
def test_the_base_trains_distils_samples_and_measures(tmp_path: Path) -> None:
    run, few = tmp_path / "run", ("--batch", 32, "--device", "cpu")
    small = ("--set", "network.width=32", "--set", "network.blocks=1")
    works("train", "digits", "--run", run, "--updates", 10, *small, *few)
    works("distill", run / "teacher", "--run", run, "--from", 4, "--to", 2, "--updates", 3, *few)
    works("sample", run / "student-0002", "--out", tmp_path / "grid.png", "--n", 4, "--device", "cpu")
    report = tmp_path / "report.json"
    works("evaluate", run / "student-0002", "--features", "pixels", "--n", 100, "--out", report, "--device", "cpu")
    assert {row["steps"] for row in json.loads(report.read_text())["rows"]} == {2}
    works("train", "toy", "--run", tmp_path / "toy", "--updates", 5, *few)
    points = tmp_path / "points.npz"
    works("sample", tmp_path / "toy" / "teacher", "--steps", 2, "--n", 5, "--out", points, "--device", "cpu")
    assert np.load(points)["arr_0"].shape == (5, 2)
    works("zoo")


@pytest.mark.parametrize(
    ("command", "needed", "name"),
    [("app", "gradio", "app"), ("bench", "diffusers", "bench"), ("pull a/b", "huggingface_hub", "hub")],
)
def test_what_needs_an_extra_names_it(command: str, needed: str, name: str) -> None:
    refused(bare(*command.split(), without=(needed,)), f"needs {needed}: pip install 'pdlab[{name}]'")


def test_what_moves_in_a_notebook_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    monkeypatch.delitem(sys.modules, "pdlab.teaching.widgets", raising=False)
    with pytest.raises(PdlabError, match=re.escape("needs ipywidgets: pip install 'pdlab[notebooks]'")):
        importlib.import_module("pdlab.teaching.widgets")


def test_import_is_light() -> None:
    code = "import sys, pdlab; print([name for name in sys.argv[1:] if name in sys.modules])"
    command = [sys.executable, "-c", code, *EXTRAS, *LATER]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "[]"
