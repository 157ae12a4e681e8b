"""Where pdlab keeps what it fetched or prepared."""

import os
from pathlib import Path

import platformdirs

#: What to do when the cache cannot be written, for `pdlab.files.atomic_file`.
CACHE_REMEDY = "set PDLAB_CACHE to a folder that can be written"


def cache_dir() -> Path:
    """$PDLAB_CACHE, or the user's cache folder of this system. It need not exist yet."""
    chosen = os.environ.get("PDLAB_CACHE")
    return Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("pdlab", appauthor=False)
