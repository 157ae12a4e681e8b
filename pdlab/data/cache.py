"""Where pdlab keeps what it fetched or prepared."""

import os
from pathlib import Path

import platformdirs


def cache_dir() -> Path:
    """$PDLAB_CACHE, or the user's cache folder of this system. It need not exist yet."""
    chosen = os.environ.get("PDLAB_CACHE")
    return Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("pdlab", appauthor=False)
