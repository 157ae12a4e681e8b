"""onnxruntime-web (MIT), from npm: the files of it that a page runs, pinned by their hashes.

Two builds, of which a browser loads one: `wasm` for processors (14 MB, 3.7 MB as servers compress it), and `jspi`
for graphics cards, where the browser has WebGPU and lets WebAssembly wait for it (17 MB, 4.1 MB). One build for
both would be `asyncify`, of 27 MB. Both run on one thread: more need headers that static hosts do not send.
"""

import base64
import hashlib
import tarfile
from pathlib import Path
from typing import NamedTuple

from pdlab.data.cache import CACHE_REMEDY, cache_dir
from pdlab.data.download import download
from pdlab.errors import PdlabError, reason
from pdlab.files import atomic_folder, open_regular, read_bytes

VERSION = "1.30.0"
TARBALL = f"https://registry.npmjs.org/onnxruntime-web/-/onnxruntime-web-{VERSION}.tgz"
TARBALL_SHA256 = "d2228df7e4616bc3348bf504ee888f3bec43789a273f0a63f3e68d203ce3bf71"
TARBALL_BYTES = 33_106_585
#: From where a page takes the files by default.
CDN = f"https://cdn.jsdelivr.net/npm/onnxruntime-web@{VERSION}/dist/"
#: The host of it, which the page's Content-Security-Policy allows.
CDN_HOST = "https://cdn.jsdelivr.net"


class File(NamedTuple):
    """A file of the package: its size, and its hash as browsers check it."""

    name: str
    bytes: int
    integrity: str


#: By build: the module, and the WebAssembly that it runs.
BUILDS = {
    "wasm": (
        File(
            "ort.wasm.bundle.min.mjs",
            73_054,
            "sha384-PLWz+nHEVHpjwBsO0YVdvQj6n5814Iv8E3b8FG0Rp/uIAtjFMCKOpP66iPzedrIG",
        ),
        File(
            "ort-wasm-simd-threaded.wasm",
            14_239_897,
            "sha384-vjBJ1z7qrhkTyYsNqKeF6c7N+nOJSU94czEo+tvZcu8G75JparGq9kB+kTnEUNVM",
        ),
    ),
    "webgpu": (
        File(
            "ort.jspi.bundle.min.mjs",
            115_872,
            "sha384-9RUgRCKe1ziB7Sof69RRpoybxSmnC67IsfHFamx/k+9m39GbvHvw5Sets/Xpsro+",
        ),
        File(
            "ort-wasm-simd-threaded.jspi.wasm",
            16_758_545,
            "sha384-bMP/XSpH5FjIIaVnUc1eR3cDsGZGdO1ZPjcHGEtvMwOgZZFcOEN8VrGooR81HSFO",
        ),
    ),
}
FILES = [file for build in BUILDS.values() for file in build]


def integrity(content: bytes) -> str:
    """The hash of `content` as `integrity` attributes have it."""
    return "sha384-" + base64.b64encode(hashlib.sha384(content).digest()).decode()


def place(cache: Path | None = None) -> Path:
    """The folder of the files in `cache` (default: pdlab's)."""
    return (cache or cache_dir()) / f"onnxruntime-web-{VERSION}"


def fetch() -> dict[str, bytes]:
    """The files by name, from pdlab's cache, where they are fetched to from npm once.

    Raises PdlabError without a connection, and for a package that is not the pinned one.
    """
    folder = place()
    if not folder.exists():
        archive = folder.with_name(f"{folder.name}.tgz")
        download(TARBALL, archive, sha256=TARBALL_SHA256, most=TARBALL_BYTES)
        with atomic_folder(folder, CACHE_REMEDY) as inside:
            for name, content in taken(archive).items():
                (inside / name).write_bytes(content)
        archive.unlink(missing_ok=True)
    return cached(folder)


def cached(folder: Path) -> dict[str, bytes]:
    """The files in `folder`; PdlabError for one that is missing or not the pinned one."""
    found = {}
    for file in FILES:
        try:
            found[file.name] = read_bytes(folder / file.name, file.bytes)
        except OSError as error:
            raise PdlabError(f"{folder / file.name}: {reason(error)}; remove {folder} and run again") from None
        if integrity(found[file.name]) != file.integrity:
            raise PdlabError(f"{folder / file.name} is not the file of npm: remove {folder} and run again")
    return found


def taken(archive: Path) -> dict[str, bytes]:
    """The `FILES` in a tarball of npm, and nothing else of it: by name, kind and size; no path reaches the disk.

    PdlabError for a damaged one, or one that lacks a file.
    """
    wanted, found = {f"package/dist/{file.name}": file for file in FILES}, {}
    try:
        with open_regular(archive) as content, tarfile.open(fileobj=content, mode="r:gz") as tar:
            for member in tar:
                file = wanted.get(member.name)
                if file is not None and member.isreg() and member.size == file.bytes:
                    source = tar.extractfile(member)
                    assert source is not None  # a regular file always has content
                    found[file.name] = source.read(file.bytes)
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise PdlabError(f"{archive} is damaged ({reason(error)}): remove it and run again") from error
    if missing := [file.name for file in FILES if file.name not in found]:
        raise PdlabError(f"{archive} lacks {', '.join(missing)}: remove it and run again")
    return found
