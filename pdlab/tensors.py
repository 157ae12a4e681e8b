"""Tensors on disk: a folder of two files, written whole or not at all.

    FOLDER/STEM.safetensors    the tensors
    FOLDER/STEM.json           everything else, sealed, with the sha256 of the tensors

The folder is filled under a temporary name, flushed to disk and renamed. Nothing is pickled, and nothing that a
file says is believed: kinds, sizes and hashes are checked before memory is taken.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from pdlab import memory, schema
from pdlab.errors import Damaged, PdlabError, reason
from pdlab.files import atomic_folder, read_bytes

Shapes = Mapping[str, torch.Size]
_MOST_HEADER = 4 << 20  # of a safetensors file: names and shapes
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write_folder(
    path: Path, stem: str, tensors: Mapping[str, Tensor], header: Mapping[str, Any], remedy: str
) -> str:
    """Write `tensors` and `header` as a new folder `path`; returns the sha256 of the tensors.

    Raises PdlabError, which ends in `remedy`, when it cannot be written; nothing is left then.
    """
    with atomic_folder(path, remedy) as folder:
        digest = _write_hashed(folder / f"{stem}.safetensors", tensors)
        (folder / f"{stem}.json").write_bytes(schema.sealed({"sha256": digest, **header}))
    return digest


def _write_hashed(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write what `safetensors.torch.save_file` would, one tensor after the other; returns its sha256.

    The library's own writer hands out no bytes, and a state of gigabytes would have to be read again for its hash.
    """
    entries: dict[str, Any] = {}
    end = 0
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # so that each is aligned
    for name in order:
        begin, end = end, end + tensors[name].numel() * tensors[name].element_size()
        kind, shape = _DTYPES[tensors[name].dtype], list(tensors[name].shape)
        entries[name] = {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}
    header = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    digest = hashlib.sha256()
    with path.open("xb") as file:
        for part in (len(header).to_bytes(8, "little"), header):
            digest.update(part)
            file.write(part)
        for name in order:
            data = tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
            digest.update(data)
            file.write(data)
    return digest.hexdigest()


def read_tensors(
    path: Path, sha256: str, expected: Shapes | None = None, what: str = "its JSON"
) -> dict[str, Tensor]:
    """The tensors of a safetensors file, read once; of the shapes `expected` by `what`, if given.

    Raises Damaged for a wrong size or hash, PdlabError for other shapes, OSError as `open` has it.
    """
    size = path.stat().st_size
    if expected is not None and size > (most := most_bytes(expected)):
        raise Damaged(path, f"it has {size:,} bytes, and its tensors take at most {most:,}")
    memory.check(2 * size, str(path), "close other programs, or use a larger machine")
    content = read_bytes(path, size)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise Damaged(path, "its sha256 is not the one in the JSON beside it")
    try:
        tensors = safetensors.torch.load(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise PdlabError(f"{path} holds no tensors: {reason(error)}") from None
    if expected is not None and (wrong := _differing(shapes_of(tensors), expected)):
        raise PdlabError(f"{path} does not hold the tensors that {what} describes: {wrong}")
    return tensors


def most_bytes(expected: Shapes) -> int:
    """What a safetensors file of tensors of these shapes can have at most."""
    return _MOST_HEADER + 8 * sum(shape.numel() for shape in expected.values())


def shapes_of(tensors: Mapping[str, Tensor]) -> Shapes:
    """The shapes of tensors by name."""
    return {name: tensor.shape for name, tensor in tensors.items()}


def _differing(found: Shapes, expected: Shapes) -> str | None:
    for name in sorted({*found, *expected}):
        if found.get(name) != expected.get(name):
            one, other = (list(s[name]) if name in s else "absent" for s in (found, expected))
            return f"{name} is {one}, not {other}"
    return None
