"""The page as files: weights that draw the same, a graph that WebGPU runs, and nothing but a page is replaced."""

import hashlib
import io
import json
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from pdlab import zoo
from pdlab.adapters.graph import GraphSampler, onnx_runtime
from pdlab.adapters.step import StepGraph, step_graph
from pdlab.data import to_uint8
from pdlab.diffusion.denoiser import Denoiser
from pdlab.diffusion.samplers import sample
from pdlab.errors import PdlabError
from pdlab.metrics.card import Row
from pdlab.training.checkpoint import load
from pdlab.web import packed, runtime, site
from pdlab.web.students import students
from tests.command import refused
from tests.data.conftest import Server

#: Of what the graphs need, the operators that onnxruntime-web 1.30 has for WebGPU (its docs/webgpu-operators.md).
WEBGPU = {
    *("Add", "AveragePool", "Clip", "Concat", "Conv", "Cos", "DepthToSpace", "Div", "Expand", "Gather", "Gemm"),
    *("InstanceNormalization", "LayerNormalization", "MatMul", "Mul", "Pow", "ReduceMean", "Reshape", "Resize"),
    *("Sigmoid", "Sin", "Slice", "Softmax", "Split", "Sqrt", "Squeeze", "Sub", "Transpose", "Unsqueeze"),
}


def graph_of(denoiser: Denoiser, shape: tuple[int, ...]) -> StepGraph:
    pytest.importorskip("onnxruntime")
    assert denoiser.steps is not None
    return step_graph(GraphSampler(denoiser, denoiser.steps).eval().requires_grad_(False), shape)


@pytest.mark.parametrize("shape", [(40, 7, 3, 3), (40,), (2, 1), (1,), ()])
def test_packed_weights_are_within_half_a_number(shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    values.ravel()[0] = 0
    others = np.zeros((3, 5), np.float32)
    found = packed.unpack(packed.pack([values, others]), [packed.rows(values), packed.rows(others)])
    table = values.reshape(packed.rows(values))
    assert (np.abs(found[0] - table) <= 0.501 * np.abs(table).max(1, keepdims=True) / packed.MOST).all()
    assert (found[1] == 0).all()
    if len(shape) < 2:
        assert np.abs(found[0] - table).max() <= 1e-6 * np.abs(table).max()


def test_steps_of_the_graph_draw_what_the_student_draws(guided_run: Path) -> None:
    denoiser = load(guided_run / "student-0002").denoiser
    graph = graph_of(denoiser, (3, 8, 8))
    assert len(graph.times) == 2
    session = graph.session(onnx_runtime("this test"), graph.weights)
    noise, label, guidance = torch.randn(1, 3, 8, 8), torch.tensor([2]), torch.tensor([1.3])
    drawn = graph.draw(session, noise.numpy(), {"label": label.numpy(), "guidance": guidance.numpy()})
    with torch.no_grad():
        expected = sample(denoiser, noise, labels=label, guidance=guidance)
    assert np.abs(drawn - expected.numpy()).max() < 1e-5


@pytest.mark.slow
def test_what_a_graph_computes_webgpu_computes(guided_run: Path, plain_run: Path) -> None:
    onnx = pytest.importorskip("onnx")
    for place, shape in ((guided_run, (3, 8, 8)), (plain_run, (1, 6, 4))):
        graph = graph_of(load(place / "student-0002").denoiser, shape)
        model = onnx.load_from_string(graph.content)
        (opset,) = model.opset_import
        assert (opset.domain, 18 <= opset.version <= 20) == ("", True)
        kinds = {node.op_type for node in model.graph.node}
        assert kinds <= WEBGPU
        if place is guided_run:
            assert "InstanceNormalization" in kinds
            assert "Sin" in kinds  # of the guidance; the phases of the time are far too large for a graphics card
            assert sum(node.op_type == "Sin" for node in model.graph.node) == 1
        assert {value.name for value in model.graph.input} == {"z", *graph.inputs[1:], *graph.times[0]}


@pytest.mark.slow
def test_what_is_written_is_what_the_page_says(guided_run: Path, tmp_path: Path, pdlab) -> None:
    pytest.importorskip("onnxruntime")
    out = tmp_path / "page"
    said = pdlab("export", "web", guided_run, out)
    assert said.code == 0, said.err
    assert f"http.server -d {out}" in " ".join(said.out.split())
    page = json.loads((out / "page.json").read_text())
    there = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert there == {"page.json", *page["files"]}
    ladder = page["ladder"]
    entries = [part for rung in ladder["rungs"] for part in (rung["graph"], rung["weights"])] + [ladder["noise"]]
    for entry in entries:
        content = (out / entry["url"]).read_bytes()
        assert (runtime.integrity(content), len(content)) == (entry["integrity"], entry["bytes"])
    assert [rung["steps"] for rung in ladder["rungs"]] == [1, 2]
    assert ladder["classes"] == ["0", "1", "2"]
    assert [entry["url"] for entry in page["runtime"]["builds"]["wasm"]] == [
        runtime.CDN + file.name for file in runtime.BUILDS["wasm"]
    ]
    html = (out / "index.html").read_text()
    assert f"connect-src 'self' {runtime.CDN_HOST};" in html
    noise = np.frombuffer((out / "noise.bin").read_bytes(), "<f4").reshape(-1, *ladder["shape"])
    k = ladder["first"]
    with torch.no_grad():
        drawn = sample(
            load(guided_run / "student-0001").denoiser,
            torch.from_numpy(noise[k : k + 1].copy()),
            labels=torch.tensor([k % 3]),
            guidance=ladder["shown"],
        )
    assert site._base64(to_uint8(drawn).numpy().tobytes()) == ladder["rungs"][0]["example"]


def test_only_a_page_is_replaced(plain_run: Path, tmp_path: Path, pdlab) -> None:
    pytest.importorskip("onnxruntime")
    out = tmp_path / "page"
    for _ in range(2):
        assert pdlab("export", "web", plain_run, out).code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["page"]
    (tmp_path / "link").symlink_to(out)
    refused(pdlab("export", "web", plain_run, tmp_path / "link"), "link exists and is no page of pdlab")
    (out / "thesis.tex").write_text("years")
    refused(
        pdlab("export", "web", plain_run, out), "holds what is not the page's (thesis.tex)", "choose another DIR"
    )
    (out / "page.json").write_text("{}")
    refused(pdlab("export", "web", plain_run, out), "exists and is no page of pdlab")
    assert (out / "thesis.tex").read_text() == "years"
    (tmp_path / "file").write_text("x")
    refused(pdlab("export", "web", plain_run, tmp_path / "file"), "exists and is no page of pdlab")
    refused(pdlab("export", "web", plain_run, tmp_path / "file" / "page"), "cannot write")


def test_what_cannot_be_a_page_is_said_in_a_line(
    plain_run: Path, tmp_path: Path, pdlab, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    out = tmp_path / "page"
    refused(pdlab("export", "web", "cifar11", out), "there is no ladder 'cifar11'", *zoo.names())
    (tmp_path / "empty").mkdir()
    refused(pdlab("export", "web", tmp_path / "empty", out), "holds no student of up to 64 steps")
    monkeypatch.setattr(packed, "MOST", 3)
    refused(pdlab("export", "web", plain_run, out), "draws other images", "its page cannot be made")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    refused(pdlab("export", "web", plain_run, out), "pip install 'pdlab[export]'")
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_without_a_network_nothing_is_written(
    plain_run: Path, tmp_path: Path, pdlab, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setenv("PDLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(runtime, "TARBALL", "http://127.0.0.1:9/onnxruntime-web.tgz")
    monkeypatch.setattr("pdlab.data.download.RETRIES", 0)
    refused(
        pdlab("export", "web", plain_run, tmp_path / "page", "--vendored"), "cannot fetch", "check the connection"
    )
    assert not (tmp_path / "page").exists()


def tarball(path: Path, members: dict[str, bytes | None]) -> Path:
    """An archive of npm's kind; None is a link."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content or b"")
            if content is None:
                member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(member, io.BytesIO(content or b""))
    return path


def test_only_the_files_are_taken_from_the_tarball(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = {f"package/dist/{name}": name.encode() for name in ("a.mjs", "b.wasm")}
    files = [runtime.File(Path(k).name, len(v), runtime.integrity(v)) for k, v in wanted.items()]
    monkeypatch.setattr(runtime, "FILES", files)
    archive = tmp_path / "a.tgz"
    more = {"package/dist/c.js": b"c", "../out": b"x", "/tmp/out": b"x", "package/../a.mjs": b"x"}
    assert runtime.taken(tarball(archive, {**more, **wanted})) == {"a.mjs": b"a.mjs", "b.wasm": b"b.wasm"}
    assert [path.name for path in tmp_path.iterdir()] == ["a.tgz"]
    for wrong in (None, b"longer", b""):
        with pytest.raises(PdlabError, match=r"lacks a\.mjs"):
            runtime.taken(tarball(archive, {**wanted, "package/dist/a.mjs": wrong}))
    archive.write_bytes(archive.read_bytes()[:-30])
    with pytest.raises(PdlabError, match="is damaged"):
        runtime.taken(archive)


def test_the_tarball_is_fetched_once_and_not_kept(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PDLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(runtime, "FILES", [runtime.File("a.mjs", 5, runtime.integrity(b"a.mjs"))])
    server.content = tarball(tmp_path / "a.tgz", {"package/dist/a.mjs": b"a.mjs", "b": b"b"}).read_bytes()
    monkeypatch.setattr(runtime, "TARBALL", server.address)
    monkeypatch.setattr(runtime, "TARBALL_BYTES", len(server.content))
    monkeypatch.setattr(runtime, "TARBALL_SHA256", hashlib.sha256(server.content).hexdigest())
    for _ in range(2):
        assert runtime.fetch() == {"a.mjs": b"a.mjs"}
    assert server.asked == 1
    there = [path.relative_to(tmp_path / "cache") for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert there == [runtime.place().relative_to(tmp_path / "cache") / "a.mjs"]


def test_a_file_that_was_changed_in_the_cache_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "FILES", [runtime.File("a.mjs", 5, runtime.integrity(b"a.mjs"))])
    (tmp_path / "a.mjs").write_bytes(b"a.mjs")
    assert runtime.cached(tmp_path) == {"a.mjs": b"a.mjs"}
    (tmp_path / "a.mjs").write_bytes(b"b.mjs")
    with pytest.raises(PdlabError, match="is not the file of npm"):
        runtime.cached(tmp_path)


def test_the_shipped_ladder_is_shown_with_its_figures() -> None:
    found = students(zoo.default())
    made = zoo.manifest(found.name)["guidance"]
    rows = [Row.from_dict(row) for row in zoo.report(found.name)["rows"]]
    assert found.steps == [1, 2, 4, 8, 16]
    assert len(found.noise) == 2 * len(found.classes)
    for steps in found.steps:
        of = (row for row in rows if (row.kind, row.model, row.steps) == ("frechet", "distilled", steps))
        measured = sorted({row.card.guidance for row in of} & set(made["stored"]))
        assert [figure["guidance"] for figure in found.figures[steps]] == measured
        assert made["shown"] in measured
        assert all(figure["value"] > figure["real"] > 0 for figure in found.figures[steps])
