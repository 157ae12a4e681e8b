"""Writing the page: what the browser loads at once, and what it loads when it is first used.

index.html, style.css, page.js, worker.js    the page itself
page.json                                    the ladder, every file's hash; sealed, as all JSON of ours
noise.bin                                    noises to begin with, float32
student-0001.onnx, student-0001.bin, …       one step as a graph, and the weights (see `packed`)
runtime/                                     onnxruntime-web, if the page is to ask no other host
"""

import base64
import copy
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from torch import Tensor
from typing_extensions import TypedDict

from pdlab import schema
from pdlab.adapters.graph import GraphSampler, onnx_runtime
from pdlab.adapters.step import step_graph
from pdlab.data import to_uint8
from pdlab.diffusion.denoiser import Denoiser
from pdlab.diffusion.samplers import sample
from pdlab.errors import PdlabError
from pdlab.files import check_place, replaced_folder, restore
from pdlab.web import packed, runtime
from pdlab.web.students import Students, students

PAGE, MANIFEST = Path(__file__).parent / "page", "page.json"
ASSETS = ("style.css", "page.js", "worker.js")
#: Most that packing may move an image, in grey levels of 255: half of what is promised of the page.
TOLERANCE = 1.0
#: The noise that is shown first, of the ladder that ships: a horse.
FIRST = 7
_ASK = "choose another DIR"


class Written(TypedDict):
    """page.json without its seal: what `page.js` reads, and the names of all other files."""

    ladder: dict[str, Any]
    runtime: dict[str, Any]
    files: list[str]


def write_site(
    ladder: str, out: Path, vendored: bool = False, say: Callable[[str], None] = lambda text: None
) -> dict[str, int]:
    """Write the page of `ladder` as the folder `out`; returns the bytes of every file, by its name.

    `vendored` puts onnxruntime-web beside the page, fetched once into pdlab's cache; without it the browser takes
    the same files from a CDN. `say` is told what is being done. A page at `out` is replaced when the new one is
    whole.

    Raises PdlabError for a ladder that there is not, an `out` that is something else than a page, a student that
    cannot be exported or whose images packing changes too much, where onnx is not installed, and, vendored, where
    npm cannot be reached.
    """
    check_page(out)
    onnx_runtime("pdlab export web")
    found = students(ladder)
    files = {f"runtime/{name}": content for name, content in runtime.fetch().items()} if vendored else {}
    if vendored:
        files["runtime/LICENSE"] = (PAGE / "LICENSE-onnxruntime").read_bytes()
    files |= {name: (PAGE / name).read_bytes() for name in ASSETS}
    files["noise.bin"] = found.noise.numpy().astype("<f4").tobytes()
    rungs = []
    for steps in found.steps:
        say(f"student of {steps} step{'s' if steps > 1 else ''}")
        rungs.append(_rung(found, steps, files))
    told = _told(found, rungs, files)
    files["index.html"] = _index(told, vendored).encode()
    base, builds = "runtime/" if vendored else runtime.CDN, {}
    for build, parts in runtime.BUILDS.items():
        builds[build] = [{"url": base + f.name, "integrity": f.integrity, "bytes": f.bytes} for f in parts]
    body = {"ladder": told, "runtime": {"version": runtime.VERSION, "builds": builds}, "files": sorted(files)}
    files[MANIFEST] = schema.sealed(body)
    with replaced_folder(out, lambda: check_page(out), _ASK) as folder:
        for name, content in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)
    return {name: len(content) for name, content in files.items()}


def check_page(out: Path) -> None:
    """Raise PdlabError unless `out` can be made, or is a page with no file in it that is not the page's."""
    restore(out)
    if not os.path.lexists(out):
        check_place(out, _ASK)
        return
    try:
        if out.is_symlink():
            raise PdlabError("a link")
        own = {MANIFEST, *schema.read(out / MANIFEST, Written)["files"]}
    except (OSError, PdlabError):
        raise PdlabError(f"{out} exists and is no page of pdlab: {_ASK}") from None
    own |= {str(parent) for name in own for parent in Path(name).parents}
    if foreign := sorted(name for path in out.rglob("*") if (name := str(path.relative_to(out))) not in own):
        raise PdlabError(f"{out} holds what is not the page's ({', '.join(foreign[:3])}): move it away, or {_ASK}")


def _rung(found: Students, steps: int, files: dict[str, bytes]) -> dict[str, Any]:
    """What the page is told of a student, whose graph and weights are put into `files`."""
    denoiser = copy.deepcopy(found.load(steps).denoiser).cpu().float()
    sampler = GraphSampler(denoiser, steps).eval().requires_grad_(False)
    graph = step_graph(sampler, found.shape)
    weights, layout = packed.pack(graph.weights), [packed.rows(part) for part in graph.weights]
    session = graph.session(onnx_runtime("pdlab export web"), packed.unpack(weights, layout))
    apart = 0.0
    for k in range(min(3, len(found.noise))):
        noise, condition = found.noise[k : k + 1], _condition(found, sampler.inputs, k)
        drawn = graph.draw(session, noise.numpy(), {name: part.numpy() for name, part in condition.items()})
        apart = max(apart, float(np.abs(drawn - _drawn(denoiser, noise, condition).numpy()).max()) * 127.5)
    if not apart <= TOLERANCE:
        raise PdlabError(
            f"with weights of 12 bits the student of {steps} steps draws other images, up to {apart:.2g} grey "
            "levels apart: its page cannot be made"
        )
    known = min(FIRST, len(found.noise) - 1)
    example = _drawn(denoiser, found.noise[known : known + 1], _condition(found, sampler.inputs, known))
    name = f"student-{steps:04d}"
    files |= {f"{name}.onnx": graph.content, f"{name}.bin": weights}
    return {
        "steps": steps,
        "graph": _entry(f"{name}.onnx", files),
        "weights": _entry(f"{name}.bin", files),
        "layout": layout,
        "inputs": graph.inputs,
        "times": [
            {key: {"dims": list(v.shape), "data": _base64(v.astype("<f4").tobytes())} for key, v in numbers.items()}
            for numbers in graph.times
        ],
        "example": _base64(to_uint8(example).numpy().tobytes()),
        "figures": found.figures.get(steps, []),
    }


def _condition(found: Students, inputs: Sequence[str], k: int) -> dict[str, Tensor]:
    given = {"label": torch.tensor([k % max(1, len(found.classes))]), "guidance": torch.tensor([found.shown])}
    return {name: part for name, part in given.items() if name in inputs}


def _drawn(denoiser: Denoiser, noise: Tensor, condition: dict[str, Tensor]) -> Tensor:
    return sample(denoiser, noise, labels=condition.get("label"), guidance=condition.get("guidance"))


def _told(found: Students, rungs: list[dict[str, Any]], files: dict[str, bytes]) -> dict[str, Any]:
    return {
        "name": found.name,
        "data": found.data,
        "shape": list(found.shape),
        "classes": found.classes,
        "shown": found.shown,
        "most": found.most,
        "noise": {**_entry("noise.bin", files), "count": len(found.noise)},
        "first": min(FIRST, len(found.noise) - 1),
        "rungs": rungs,
    }


def _index(told: dict[str, Any], vendored: bool) -> str:
    templates = Environment(
        loader=FileSystemLoader(PAGE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    hosts = "" if vendored else f" {runtime.CDN_HOST}"
    return templates.get_template("index.html.j2").render(**told, hosts=hosts, version=runtime.VERSION)


def _entry(name: str, files: dict[str, bytes]) -> dict[str, Any]:
    return {"url": name, "integrity": runtime.integrity(files[name]), "bytes": len(files[name])}


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
