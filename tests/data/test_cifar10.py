import dataclasses
import os
import pickle
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pdlab.data import ImageSource, cifar10, load
from pdlab.errors import PdlabError
from pdlab.files import digest_of
from tests.data.conftest import Server
from tests.data.layouts import ARCHIVES, COUNT, FOLDERS, NAMES, batches, pack, write

SHARED = Path(__file__).parents[3] / "shared" / "cifar10"

pytestmark = pytest.mark.usefixtures("small_batches")


def images(root: Path | None = None, split: str = "train", **options: Any) -> ImageSource:
    source = load("cifar10", split, root, **options)
    assert isinstance(source, ImageSource)
    return source


def is_ours(source: ImageSource) -> bool:
    """Are these the images and labels of `batches()`, in their order?"""
    chosen = [batches()[name] for name in NAMES if name.startswith("test") == (source.split == "test")]
    rows = np.concatenate([pixels for pixels, _ in chosen])
    labels = [label for _, some in chosen for label in some]
    same = torch.equal(source.images, torch.from_numpy(rows.reshape(-1, 3, 32, 32)))
    return same and source.labels.tolist() == labels


def refuses(root: Path | None, split: str = "train", **options: Any) -> str:
    with pytest.raises(PdlabError) as caught:
        load("cifar10", split, root, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def official(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Declares the archives that lie in a folder to be the official ones."""

    def declare(place: Path) -> None:
        layouts = [
            dataclasses.replace(layout, sha256=digest_of(place / layout.archive))
            if (place / layout.archive).exists()
            else layout
            for layout in cifar10.LAYOUTS
        ]
        monkeypatch.setattr(cifar10, "LAYOUTS", tuple(layouts))

    return declare


# Layouts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("given", ["folder", "parent"])
@pytest.mark.parametrize("kind", ["py", "bin"])
def test_reads_a_layout(tmp_path: Path, kind: str, given: str, split: str) -> None:
    folder = write(tmp_path, kind)
    source = images(folder if given == "folder" else tmp_path, split)
    assert is_ours(source)
    assert len(source) == (5 if split == "train" else 1) * COUNT
    assert (source.name, source.split, source.shape, source.num_classes) == ("cifar10", split, (3, 32, 32), 10)
    assert source.classes[3] == "cat"


def test_both_layouts_have_one_digest(tmp_path: Path) -> None:
    write(tmp_path / "1", "py")
    write(tmp_path / "2", "bin")
    assert images(tmp_path / "1").digest == images(tmp_path / "2").digest
    assert images(tmp_path / "1").digest != images(tmp_path / "1", "test").digest


@pytest.mark.parametrize("protocol", [-1, 0, 1, 2, 3, 4, 5])
def test_reads_pickles_of_every_protocol_and_of_python_2(tmp_path: Path, protocol: int) -> None:
    write(tmp_path, "py", protocol)
    assert is_ours(images(tmp_path))


def test_reads_arrays_under_their_old_and_new_module_names(tmp_path: Path) -> None:
    folder = write(tmp_path, "py", protocol=2)
    written = {b"cnumpy.core.": b"cnumpy._core.", b"cnumpy._core.": b"cnumpy.core."}
    for name in NAMES:
        content = (folder / name).read_bytes()
        old = next(prefix for prefix in written if prefix in content)
        (folder / name).write_bytes(content.replace(old, written[old]))
    assert is_ours(images(tmp_path))


def test_reads_columnwise_arrays_and_byte_keys(tmp_path: Path) -> None:
    folder = write(tmp_path, "py")
    for protocol, name in ((2, "data_batch_1"), (4, "data_batch_2"), (5, "data_batch_3")):
        rows, labels = batches()[name]
        content = {b"data": np.asfortranarray(rows), b"labels": labels}
        (folder / name).write_bytes(pickle.dumps(content, protocol=protocol))
    assert is_ours(images(tmp_path))


# Where it is looked for --------------------------------------------------------------------------------------


def test_found_in_the_environments_folder_then_in_the_cache(
    tmp_path: Path, private_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PDLAB_DATA", str(tmp_path / "data"))
    write(private_cache / "cifar10", "bin")
    assert is_ours(images())
    folder = write(tmp_path / "data", "bin")
    (folder / "data_batch_1.bin").unlink()
    assert str(folder) in refuses(None)  # so this one comes first


def test_a_given_root_is_the_only_place(
    tmp_path: Path, private_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(private_cache / "cifar10", "bin")
    write(tmp_path / "data", "bin")
    monkeypatch.setenv("PDLAB_DATA", str(tmp_path / "data"))
    assert "not found" in refuses(tmp_path / "empty")


def test_not_found_says_where_it_looked_and_how_to_get_it(
    tmp_path: Path, private_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PDLAB_DATA", str(tmp_path / "data"))
    message = refuses(None)
    for hint in (str(tmp_path / "data"), str(private_cache / "cifar10"), "--data DIR", "--download"):
        assert hint in message
    assert os.listdir(tmp_path) == []


# Archives ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["py", "bin"])
def test_an_official_archive_is_unpacked_once(tmp_path: Path, official: Any, kind: str) -> None:
    folder = write(tmp_path, kind)
    archive = pack(folder, kind)
    shutil.rmtree(folder)
    official(tmp_path)
    assert is_ours(images(tmp_path))
    assert sorted(os.listdir(tmp_path)) == sorted([FOLDERS[kind], ARCHIVES[kind]])
    archive.unlink()
    assert is_ours(images(tmp_path, "test"))


def test_what_torchvision_left_behind(tmp_path: Path) -> None:
    folder = write(tmp_path, "py")
    pack(folder, "py").write_bytes(b"the archive is not looked at when its content lies beside it")
    assert is_ours(images(tmp_path))


@pytest.mark.parametrize("kind", ["py", "bin"])
@pytest.mark.parametrize("damage", ["truncated", "altered"])
def test_a_damaged_archive_is_named(tmp_path: Path, official: Any, kind: str, damage: str) -> None:
    folder = write(tmp_path, kind)
    archive = pack(folder, kind)
    shutil.rmtree(folder)
    official(tmp_path)
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 1
    archive.write_bytes(content if damage == "altered" else content[:-1000])
    message = refuses(tmp_path)
    assert str(archive) in message
    assert "sha256" in message
    assert os.listdir(tmp_path) == [archive.name]


def test_downloaded_when_asked_for(
    private_cache: Path, tmp_path: Path, server: Server, official: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "elsewhere"
    server.content = pack(write(place, "bin"), "bin").read_bytes()
    official(place)
    monkeypatch.setattr(cifar10, "URL", server.address + "/")
    assert "--download" in refuses(None)
    assert server.asked == 0
    assert is_ours(images(download=True))
    assert is_ours(images(split="test", download=True))
    assert is_ours(images())
    assert server.asked == 1
    assert (private_cache / "cifar10" / FOLDERS["bin"]).is_dir()
    assert is_ours(images(tmp_path / "mine", download=True))
    assert (tmp_path / "mine" / FOLDERS["bin"]).is_dir()


# Damage ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["py", "bin"])
def test_a_truncated_or_missing_file_is_named(tmp_path: Path, kind: str) -> None:
    folder = write(tmp_path, kind)
    file = folder / ("data_batch_3" + (".bin" if kind == "bin" else ""))
    file.write_bytes(file.read_bytes()[:-1000])
    assert str(file) in refuses(tmp_path)
    assert is_ours(images(tmp_path, "test"))
    file.unlink()
    assert str(file) in refuses(tmp_path)


def test_binary_files_of_a_wrong_size_or_label_are_named(tmp_path: Path) -> None:
    file = write(tmp_path, "bin") / "data_batch_2.bin"
    content = file.read_bytes()
    file.write_bytes(content + b"\0")
    assert f"{len(content) + 1:,} bytes" in refuses(tmp_path)
    file.write_bytes(b"\x0a" + content[1:])
    assert "labels" in refuses(tmp_path)
    file.write_bytes(b"")
    assert str(file) in refuses(tmp_path)


ROWS, LABELS = batches()["data_batch_4"]
WRONG: dict[str, Any] = {
    "not a dictionary": [1, 2],
    "nothing": {},
    "no labels": {"data": ROWS},
    "fine labels": {"data": ROWS, "fine_labels": LABELS},
    "too few rows": {"data": ROWS[:-1], "labels": LABELS},
    "too short rows": {"data": ROWS[:, :-1], "labels": LABELS},
    "another type": {"data": ROWS.astype(np.int16), "labels": LABELS},
    "objects": {"data": ROWS.astype(object), "labels": LABELS},
    "no array": {"data": ROWS.tobytes(), "labels": LABELS},
    "an unfilled array": {"data": ROWS[:0], "labels": LABELS},
    "too few labels": {"data": ROWS, "labels": LABELS[:-1]},
    "a label out of range": {"data": ROWS, "labels": [10, *LABELS[1:]]},
    "a negative label": {"data": ROWS, "labels": [-1, *LABELS[1:]]},
    "a huge label": {"data": ROWS, "labels": [2**70, *LABELS[1:]]},
    "labels of text": {"data": ROWS, "labels": ["1"] * COUNT},
}


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("protocol", [2, 5])
def test_a_pickle_of_something_else_is_named(tmp_path: Path, kind: str, protocol: int) -> None:
    file = write(tmp_path, "py") / "data_batch_4"
    file.write_bytes(pickle.dumps(WRONG[kind], protocol=protocol))
    assert f"{file} is not a batch of CIFAR-10" in refuses(tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"", b"garbage", b"\x80\x02r\xff\xff\xff\x7f.", b"\x80\x02" + b"(" * 100_000, b"\x80\x02\x82\x01."],
    ids=["empty", "garbage", "huge memo", "deep", "extension"],
)
def test_a_file_that_is_no_pickle_is_named(tmp_path: Path, content: bytes) -> None:
    file = write(tmp_path, "py") / "data_batch_4"
    file.write_bytes(content)
    assert f"{file} is not a batch of CIFAR-10" in refuses(tmp_path)


def test_a_file_that_is_far_too_large_is_not_read(tmp_path: Path) -> None:
    file = write(tmp_path, "py") / "data_batch_4"
    with file.open("r+b") as stream:
        stream.truncate(1 << 30)  # sparse: takes no room
    assert "more than the" in refuses(tmp_path)


MALICE = {
    "a memo of gigabytes": b"\x80\x02Nr\x00\x00\x00\x08.",
    "tuples within tuples as a key": b"\x80\x02}" + b"".join([b")", *[b"q\x00h\x00\x86"] * 200]) + b"Ns.",
    "a text encoded again and again": b"\x80\x02X\x00\x00\x80\x00"
    + b"a" * (8 << 20)
    + b"q\x00"
    + b"c_codecs\nencode\nq\x01X\x06\x00\x00\x00latin1q\x02"
    + b"("
    + b"h\x01h\x00h\x02\x86R" * 500
    + b"l.",
    "millions of lists": b"\x80\x02" + b"]" * (20 << 20) + b".",
    "more bytes than there are": b"\x80\x05\x8e\xff\xff\xff\xff\xff\x00\x00\x00.",
}


@pytest.mark.parametrize("kind", MALICE)
def test_a_small_pickle_cannot_ask_for_much(tmp_path: Path, kind: str) -> None:
    file = write(tmp_path, "py") / "data_batch_1"
    file.write_bytes(MALICE[kind])
    tracemalloc.start()
    assert f"{file} is not a batch of CIFAR-10" in refuses(tmp_path)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 400 << 20


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_what_is_no_file_is_not_opened(tmp_path: Path, kind: str) -> None:
    file = write(tmp_path, "bin") / "data_batch_1.bin"
    file.unlink()
    {"pipe": os.mkfifo, "folder": os.mkdir, "device": lambda path: path.symlink_to("/dev/zero")}[kind](file)
    assert f"{file} is not a file but a {kind}" in refuses(tmp_path)


# Malice ------------------------------------------------------------------------------------------------------


class Call:
    """Pickles to a call of `function`, which happens when it is loaded."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def malice(kind: str, mark: Path) -> Any:
    """A batch that leaves the file `mark` when it is read by `pickle.load`."""
    code = f"open({str(mark)!r}, 'w').close() or __import__('numpy').ndarray"
    array = ROWS.__reduce__()
    payload: dict[str, Any] = {
        "system": Call(os.system, f"touch '{mark}'"),
        "eval": Call(eval, code),
        "exec": Call(exec, code),
        "nested": Call(array[0], Call(eval, code), *array[1][1:]),
        "getattr": Call(getattr, Call(eval, code), "size"),
        "subprocess": Call(subprocess.check_call, ["touch", str(mark)]),
        "numpy": Call(np.savetxt, str(mark), [1.0]),
    }
    return {"data": ROWS, "labels": LABELS, "more": payload[kind]}


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("kind", ["system", "eval", "exec", "nested", "getattr", "subprocess", "numpy"])
def test_a_malicious_pickle_runs_nothing(tmp_path: Path, kind: str, protocol: int) -> None:
    file = write(tmp_path, "py") / "data_batch_4"
    mark = tmp_path / "mark"
    content = pickle.dumps(malice(kind, mark), protocol=protocol)
    pickle.loads(content)
    assert mark.exists(), "the payload of this test does not work"
    mark.unlink()

    file.write_bytes(content)
    message = refuses(tmp_path)
    assert str(file) in message
    assert "nothing was run" in message
    assert not mark.exists()


@pytest.mark.parametrize(
    "name",
    [
        b"cnumpy\nload\n",
        b"cnumpy.core.multiarray\n_reconstruct.__globals__\n",
        b"cnumpy\nndarray.tofile\n",
        b"cos\nsystem\n",
    ],
)
def test_no_other_name_is_even_looked_up(tmp_path: Path, name: bytes) -> None:
    file = write(tmp_path, "py") / "data_batch_4"
    file.write_bytes(b"\x80\x04" + name + b".")
    assert "nothing was run" in refuses(tmp_path)


def test_a_hostile_pickle_changes_nothing_for_the_next(tmp_path: Path) -> None:
    file = write(tmp_path, "py") / "data_batch_4"
    good = file.read_bytes()
    # BUILD with a state hangs attributes on whatever a name stands for
    for name in (b"cnumpy\ndtype\n", b"cnumpy.core.numeric\n_frombuffer\n", b"cnumpy\nndarray\n"):
        file.write_bytes(b"\x80\x02" + name + b"}(X\x0c\x00\x00\x00__defaults__Nub.")
        refuses(tmp_path)
        file.write_bytes(b"\x80\x02" + name + b"N}(X\x08\x00\x00\x00__call__Nu\x86b.")
        refuses(tmp_path)
    file.write_bytes(good)
    assert is_ours(images(tmp_path))


def test_half_the_side_is_the_mean_of_every_two_by_two(tmp_path: Path) -> None:
    write(tmp_path, "bin")
    full, half = load("cifar10", root=tmp_path), load("cifar10-16px", root=tmp_path)
    assert (half.name, half.split, half.shape, half.num_classes) == ("cifar10-16px", "train", (3, 16, 16), 10)
    blocks = full.images.numpy().reshape(-1, 3, 16, 2, 16, 2).astype(float).mean((3, 5))
    assert np.array_equal(half.images.numpy(), np.rint(blocks).astype(np.uint8))
    assert torch.equal(half.labels, full.labels)
    assert half.digest != full.digest


# The data set itself -----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="the CIFAR-10 images are not here")
def test_both_layouts_of_the_real_images_are_identical(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar10, "PER_BATCH", 10_000)
    for kind in ("py", "bin"):
        subprocess.run([sys.executable, SHARED / "unpack.py", tmp_path / kind, f"--{kind}"], check=True)
    for split, count in (("train", 50_000), ("test", 10_000)):
        pickled, binary = images(tmp_path / "py", split), images(tmp_path / "bin", split)
        assert pickled.images.shape == (count, 3, 32, 32)
        assert torch.equal(pickled.images, binary.images)
        assert torch.equal(pickled.labels, binary.labels)
        assert torch.equal(torch.bincount(pickled.labels), torch.full((10,), count // 10))
        assert pickled.digest == binary.digest
        # Red, green and blue planes, rows upright: the known means of the data set
        if split == "train":
            means = pickled.images.double().mean(dim=(0, 2, 3)) / 255
            assert means.tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=1e-4)
