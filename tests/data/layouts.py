"""Small stand-ins for CIFAR-10 in its official layouts."""

import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np

COUNT = 20  # images in a batch; the real one has 10,000
NAMES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
FOLDERS = {"py": "cifar-10-batches-py", "bin": "cifar-10-batches-bin"}
ARCHIVES = {"py": "cifar-10-python.tar.gz", "bin": "cifar-10-binary.tar.gz"}

Batch = tuple[np.ndarray, list[int]]


def batches() -> dict[str, Batch]:
    rng = np.random.default_rng(0)
    return {
        name: (rng.integers(0, 256, (COUNT, 3072), dtype=np.uint8), [int(v) for v in rng.integers(0, 10, COUNT)])
        for name in NAMES
    }


def write(place: Path, kind: str, protocol: int = 4) -> Path:
    """A layout's folder below `place`; protocol -1 writes the pickles as Python 2 did."""
    folder = place / FOLDERS[kind]
    folder.mkdir(parents=True)
    for name, (rows, labels) in batches().items():
        if kind == "bin":
            records = np.concatenate([np.array(labels, np.uint8)[:, None], rows], axis=1)
            records.tofile(folder / f"{name}.bin")
        elif protocol < 0:
            (folder / name).write_bytes(python2_pickle(rows, labels))
        else:
            content = {"batch_label": name, "labels": labels, "data": rows, "filenames": ["a.png"] * COUNT}
            (folder / name).write_bytes(pickle.dumps(content, protocol=protocol))
    meta = folder / ("batches.meta.txt" if kind == "bin" else "batches.meta")
    meta.write_bytes(b"not read")
    return folder


def pack(folder: Path, kind: str) -> Path:
    archive = folder.parent / ARCHIVES[kind]
    (folder / "readme.html").write_text("see the web page")
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, folder.name)
    return archive


def python2_pickle(rows: np.ndarray, labels: list[int]) -> bytes:
    """What Python 2's cPickle wrote, protocol 2: byte strings throughout, numpy under its old names."""

    def text(value: bytes) -> bytes:
        return b"T" + struct.pack("<i", len(value)) + value

    def number(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    dtype = b"cnumpy\ndtype\n(" + text(b"u1") + number(0) + number(1) + b"tR"
    dtype += b"(" + number(3) + text(b"|") + b"NNN" + number(-1) + number(-1) + number(0) + b"tb"
    shape = number(rows.shape[0]) + number(rows.shape[1]) + b"\x86"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + number(0) + b"\x85" + text(b"b") + b"tR"
    array += b"(" + number(1) + shape + dtype + b"\x89" + text(rows.tobytes()) + b"tb"
    listed = b"](" + b"".join(number(label) for label in labels) + b"e"
    return b"\x80\x02}(" + text(b"data") + array + text(b"labels") + listed + b"u."
