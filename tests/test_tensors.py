import hashlib
from pathlib import Path

import pytest
import safetensors.torch
import torch

from pdlab.tensors import write_folder


def test_tensors_are_hashed_on_their_way_to_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is safetensors' own, byte for byte, and is not read again for its hash."""
    tensors = {
        "b/é": torch.randn(3, 4),
        "a": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "step": torch.tensor(2.0),
        "none": torch.zeros(0, 2),
        "half": torch.ones(3).half(),
        "bf16": torch.ones(5).bfloat16(),
        "n": torch.tensor(3),
        "mask": torch.tensor([True]),
    }
    with monkeypatch.context() as patched:
        patched.setattr("pdlab.files.open_regular", None)
        digest = write_folder(tmp_path / "state", "state", tensors, {}, "")
    written = (tmp_path / "state" / "state.safetensors").read_bytes()
    assert hashlib.sha256(written).hexdigest() == digest
    safetensors.torch.save_file({n: t.contiguous() for n, t in tensors.items()}, tmp_path / "theirs")
    assert written == (tmp_path / "theirs").read_bytes()
