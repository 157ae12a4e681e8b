"""Where pdlab keeps what it fetched or prepared."""

import os
from pathlib import Path

import platformdirs

from pdlab.errors import PdlabError
from pdlab.files import place

#: What to do when the cache cannot be written, for `pdlab.files.atomic_file`.
CACHE_REMEDY = "set PDLAB_CACHE to a folder that can be written"


def cache_dir() -> Path:
    """$PDLAB_CACHE, or the user's cache folder of this system. It need not exist yet."""
    if chosen := os.environ.get("PDLAB_CACHE"):
        return place(chosen, "PDLAB_CACHE")
    found = platformdirs.user_cache_path("pdlab", appauthor=False)
    if not found.is_absolute():  # neither HOME nor an entry in the list of users
        raise PdlabError(f"there is no home folder for a cache: {CACHE_REMEDY}")
    return found
