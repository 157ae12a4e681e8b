"""For all tests: one thread (tiny networks are slower on two), a cache of the tests' own, and the command line."""

import os
import sys
import tempfile
import warnings

import pytest
import torch

from pdlab import cli
from pdlab.data.cache import cache_dir
from tests.command import Result

torch.set_num_threads(1)
# What was fetched before the tests, which fetch nothing; their workers inherit it.
os.environ.setdefault("PDLAB_FETCHED", str(cache_dir()))
# Before any import reads it, and inherited by the commands that tests start.
os.environ["PDLAB_CACHE"] = tempfile.mkdtemp(prefix="pdlab-tests-")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What runs at night is skipped by day."""
    if "nightly" not in config.option.markexpr:
        for item in items:
            if item.get_closest_marker("nightly"):
                item.add_marker(pytest.mark.skip(reason="runs with -m nightly"))


@pytest.fixture
def pdlab(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs a command in this process, through the entry point."""
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # main() replaces it

    def run(*args: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["pdlab", *map(str, args)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        captured = capsys.readouterr()
        return Result(int(stopped.value.code or 0), captured.out, captured.err)

    return run
