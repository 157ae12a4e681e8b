"""Tensors on disk that know when they are damaged: safetensors with a hash of their content inside."""

import hashlib
import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pdlab.data.cache import CACHE_REMEDY
from pdlab.errors import PdlabError, reason
from pdlab.files import atomic_file, open_regular


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write `tensors` (on the CPU) and `metadata` to `path`, atomically; PdlabError if that cannot be done."""
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    data = save(tensors, metadata={**metadata, "sha256": _hash(tensors, metadata)})
    with atomic_file(path, CACHE_REMEDY) as file:
        file.write(data)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and metadata that `write_tensors` wrote; PdlabError if the file is missing or damaged."""
    try:
        open_regular(path).close()  # a pipe in its place would block for ever
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, RuntimeError) as error:  # the last: more than can be mapped
        raise PdlabError(f"cannot read {path}: {reason(error)}") from error
    if metadata.pop("sha256", None) != _hash(tensors, metadata):
        raise PdlabError(f"{path} is damaged: its content does not match its hash; delete it")
    return tensors, metadata


def _hash(tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.numpy().reshape(-1).data)
    return digest.hexdigest()
