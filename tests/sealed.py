"""Other content under a seal that is right: what only a schema can refuse."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pdlab import schema


def edit(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Let `change` alter the content of the sealed JSON `file`, and seal it anew."""
    body = json.loads(file.read_text())
    del body["seal"]
    change(body)
    file.write_bytes(schema.sealed(body))
