"""How much memory there is, asked before any is taken."""

import psutil

from pdlab.errors import PdlabError


def check(needed: int, what: str, remedy: str) -> None:
    """Raise PdlabError, with both numbers and the `remedy`, where `needed` bytes for `what` are not free."""
    free = psutil.virtual_memory().available
    if needed > free:
        raise PdlabError(f"{what} would need {_size(needed)} of memory, and {_size(free)} are free: {remedy}")


def _size(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.0f} MiB"
