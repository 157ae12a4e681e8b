"""Files and installed packages that register samplers, data sets, networks and presets of a user's own."""

import importlib.metadata
import importlib.util
import sys
from pathlib import Path

from pdlab.errors import PdlabError, reason

#: Entry points of this group are modules that register something when they are imported.
GROUP = "pdlab"


def load_file(path: Path) -> None:
    """Run the Python file `path`, once. Raises PdlabError where it cannot be read, or fails."""
    name = f"pdlab_plugin_{path.stem}"
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, path) if path.is_file() else None
    if spec is None or spec.loader is None:
        raise PdlabError(f"--plugin {path} is no Python file: give one that calls pdlab.register_…")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise PdlabError(f"--plugin {path} fails: {_why(error)}") from error


def load_installed() -> None:
    """Import what installed packages offer under the entry points `GROUP`."""
    for entry in importlib.metadata.entry_points(group=GROUP):
        try:
            entry.load()
        except Exception as error:
            raise PdlabError(f"the plugin {entry.value} fails: {_why(error)}; repair or uninstall it") from error


def _why(error: Exception) -> str:
    return str(error) if isinstance(error, PdlabError) else f"{type(error).__name__}: {reason(error)}"
