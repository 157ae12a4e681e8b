"""Checkpoints to the hub and back, on a stand-in for it; and whatever it may answer."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

import pdlab
from pdlab import hub as module
from pdlab import zoo
from pdlab.metrics.card import Row
from pdlab.networks.mlp import MLP, MLPConfig
from pdlab.training.checkpoint import load, save
from pdlab.training.machine import Machine
from tests.adapters.test_graph import UNET
from tests.command import refused
from tests.hub.standin import COMMIT, TOKEN, Hub, running
from tests.made import denoiser_of, unet

constants = pytest.importorskip("huggingface_hub").constants
NAME = "someone/few-steps"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("PDLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    with running() as stand_in:
        monkeypatch.setattr(constants, "ENDPOINT", stand_in.address)
        template = f"{stand_in.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield stand_in


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    save(place := tmp_path_factory.mktemp("hub") / "student", denoiser_of(UNET, steps=2))
    return place


def uploaded(hub: Hub, student: Path) -> None:
    hub.put(
        NAME,
        config_json=(student / "model.json").read_bytes(),
        model_safetensors=(student / "model.safetensors").read_bytes(),
    )


def nothing_left(place: Path) -> bool:
    """But for folders of the cache, which may be empty."""
    there = [path for path in place.rglob("*") if path.is_file() or path.relative_to(place).parts[0] != "cache"]
    return there == []


def test_what_is_pushed_is_pulled(hub: Hub, student: Path, tmp_path: Path, pdlab: Any) -> None:
    said = pdlab("push", NAME, student, "--license", "apache-2.0", "--device", "cpu")
    assert said.code == 0, said.err
    assert set(hub.files[NAME]) == {"config.json", "model.safetensors", "README.md", "samples.png"}
    assert hub.private[NAME] is True
    assert hub.files[NAME]["samples.png"].startswith(b"\x89PNG")
    said = pdlab("pull", NAME)
    assert said.code == 0, said.err
    assert {path.name for path in (tmp_path / "few-steps").iterdir()} == {"model.json", "model.safetensors"}
    assert load(tmp_path / "few-steps").sha256 == load(student).sha256
    assert pdlab("pull", NAME, tmp_path / "again").code == 0
    refused(pdlab("pull", NAME), "cannot write few-steps", "choose another DIR")


def test_public_is_asked_for_and_files_are_replaced_only_if_it_is_said(
    hub: Hub, student: Path, tmp_path: Path, pdlab: Any
) -> None:
    assert pdlab("push", NAME, student, "--public").code == 0
    assert hub.private[NAME] is False
    hub.files[NAME] |= {"config.json": b"theirs", "notes.txt": b"kept"}
    refused(pdlab("push", NAME, student), "README.md, config.json", "--replace")
    assert hub.files[NAME]["config.json"] == b"theirs"
    assert pdlab("push", NAME, student, "--replace").code == 0
    assert hub.files[NAME]["config.json"] == (student / "model.json").read_bytes()
    assert hub.files[NAME]["notes.txt"] == b"kept"
    hub.files["someone/empty"], hub.private["someone/empty"] = {}, True  # a push that ended too early
    assert pdlab("push", "someone/empty", student).code == 0


def test_from_pretrained(hub: Hub, student: Path, tmp_path: Path) -> None:
    uploaded(hub, student)
    found = pdlab.from_pretrained(NAME)
    assert torch.equal(pdlab.sample(found, 3, seed=1), pdlab.sample(load(student), 3, seed=1))
    asked = len(hub.asked)
    again = pdlab.from_pretrained(NAME)
    assert again.path == found.path == tmp_path / "cache" / "hub" / "someone--few-steps" / COMMIT
    assert [line for line in hub.asked[asked:] if "resolve" in line or "cdn" in line] == []
    for place in (tmp_path / "copy", student):
        if place != student:
            place.mkdir()
            for file, content in hub.files[NAME].items():
                (place / file).write_bytes(content)
        assert pdlab.from_pretrained(place).sha256 == found.sha256
    (tmp_path / "copy" / "model.safetensors").unlink()
    for wrong, message in (
        (tmp_path / "copy", "model.safetensors cannot be read: no such file"),
        (tmp_path, "several checkpoints|is not a checkpoint"),
        ("no-such-folder", "there is no folder no-such-folder, and on the hub a name is OWNER/NAME"),
        ("../up/here", "there is no folder"),
        ("someone/..", "is no name on the hub"),
    ):
        with pytest.raises(pdlab.PdlabError, match=message):
            pdlab.from_pretrained(wrong)


class Net(nn.Module):
    """A network of one's own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, z: torch.Tensor, logsnr: torch.Tensor) -> torch.Tensor:
        return self.layer(z)


def test_a_network_of_ones_own(hub: Hub, tmp_path: Path, pdlab: Any) -> None:
    own = module.Checkpoint(__import__("pdlab").Denoiser(Net(), "x", shape=(1, 4, 4), steps=1))
    place = tmp_path / "own"
    own.sha256, own.path = save(place, own.denoiser), place
    refused(pdlab("push", NAME, place), "a network of one's own", "--plugin")
    module.push(NAME, own, module.Machine("cpu"))
    refused(pdlab("pull", NAME), "a network of one's own", "--plugin")
    assert not (tmp_path / "few-steps").exists()
    assert module.from_pretrained(NAME, network=Net()).sha256 == own.sha256
    assert "Net" in hub.files[NAME]["README.md"].decode()


def test_the_card_has_lineage_and_every_figure(hub: Hub, pdlab: Any) -> None:
    name = zoo.default()
    model = zoo.checkpoint(name, 4)
    said = pdlab("push", NAME, f"{name}:4", "--license", "cc-by-4.0")
    assert said.code == 0, said.err
    text = hub.files[NAME]["README.md"].decode()
    _, head, body = text.split("---\n", 2)
    assert yaml.safe_load(head) == {
        "library_name": "pdlab",
        "license": "cc-by-4.0",
        "tags": ["diffusion", "pdlab", "progressive-distillation"],
    }
    for part in (model.sha256, model.info["teacher"], "in 8 steps", model.info["data"]["digest"], "airplane"):
        assert part in body, part
    rows = [Row.from_dict(row) for row in json.loads(hub.files[NAME]["report.json"])["rows"]]
    own = [row for row in map(Row.from_dict, zoo.report(name)["rows"]) if row.card.checkpoint == model.sha256]
    assert [asdict(row) for row in rows] == [asdict(row) for row in own] != []
    assert body.count("| FD-EffNetLite0 |") == len([row for row in own if row.metric == "FD-EffNetLite0"])


@pytest.mark.parametrize(
    "name", ["", "x", "a/b/c", "../x", "a/..", "/etc/passwd", "a/b c", "a/\udcff", "https://a/b"]
)
@pytest.mark.parametrize("command", ["push", "pull"])
def test_a_name_that_is_none(command: str, name: str, hub: Hub, student: Path, tmp_path: Path, pdlab: Any) -> None:
    refused(pdlab(command, name, *([student] if command == "push" else [])), "is no name on the hub")
    assert hub.asked == []
    assert nothing_left(tmp_path)


def test_who_may_not_is_told_to_log_in(
    hub: Hub, student: Path, tmp_path: Path, pdlab: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploaded(hub, student)
    hub.private[NAME] = True
    for token in ("hf_other", None):
        monkeypatch.delenv("HF_TOKEN") if token is None else monkeypatch.setenv("HF_TOKEN", token)
        refused(pdlab("pull", NAME), "refuses someone/few-steps (401)", "hf auth login", "HF_TOKEN")
        refused(pdlab("push", "someone/new", student), "hf auth login")
    refused(pdlab("pull", "someone/nothing"), "has no someone/nothing")
    assert "someone/new" not in hub.files
    assert nothing_left(tmp_path)


@pytest.mark.parametrize("part", ["/api/models", "/resolve/", "/cdn/"])
@pytest.mark.parametrize(
    ("status", "words"), [(403, "(403)"), (404, "has no"), (500, "answered 500"), (503, "try again later")]
)
def test_a_hub_out_of_order(
    part: str, status: int, words: str, hub: Hub, student: Path, tmp_path: Path, pdlab: Any
) -> None:
    uploaded(hub, student)
    hub.faults[part] = status
    refused(pdlab("pull", NAME), words, hub.address)
    with pytest.raises(__import__("pdlab").PdlabError):
        module.from_pretrained(NAME)
    assert nothing_left(tmp_path)


@pytest.mark.parametrize(
    ("part", "status"), [("/api/models", 500), ("/api/repos/create", 403), ("/preupload/", 403), ("/commit/", 500)]
)
def test_a_push_that_breaks_off(
    part: str, status: int, hub: Hub, student: Path, tmp_path: Path, pdlab: Any
) -> None:
    hub.faults[part] = status
    refused(pdlab("push", NAME, student), str(status))
    assert hub.files.get(NAME, {}) == {}
    assert nothing_left(tmp_path)
    hub.faults.clear()
    assert pdlab("push", NAME, student).code == 0


def test_a_hub_that_cannot_be_reached(
    hub: Hub, student: Path, tmp_path: Path, pdlab: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    refused(pdlab("pull", NAME), "cannot reach http://127.0.0.1:9", "check the connection and HF_ENDPOINT")
    refused(pdlab("push", NAME, student), "cannot reach http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused(pdlab("pull", NAME), "HF_HUB_OFFLINE")
    assert nothing_left(tmp_path)


def flipped(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize(
    ("part", "fault", "words"),
    [
        ("/cdn/", flipped, "sha256 is not the one in the JSON"),
        ("/cdn/", lambda content: content[:-9], "cannot reach"),
        ("/cdn/", lambda content: content + bytes(9 << 20), "bytes that belong there"),
        ("config.json", flipped, "damaged"),
        ("config.json", lambda content: content[: len(content) // 2], "cannot reach"),
        ("config.json", lambda content: content + bytes(17 << 20), "bytes that belong there"),
        ("config.json", lambda content: b"[]".ljust(len(content)), "not a JSON object"),
        ("config.json", lambda content: content.replace(b'"steps": 2', b'"steps": 3'), "does not match its seal"),
    ],
)
def test_what_was_tampered_with_or_broke_off(
    part: str, fault: Any, words: str, hub: Hub, student: Path, tmp_path: Path, pdlab: Any
) -> None:
    uploaded(hub, student)
    hub.faults[part] = fault
    said = pdlab("pull", NAME)
    refused(said, words)
    assert ".pdlab-tmp" not in said.err
    assert nothing_left(tmp_path)
    hub.faults.clear()
    assert pdlab("pull", NAME).code == 0


def test_other_files_are_not_taken_and_what_the_hub_says_is_not_believed(
    hub: Hub, student: Path, tmp_path: Path, pdlab: Any
) -> None:
    uploaded(hub, student)
    hub.files[NAME] |= {"../../up.txt": b"x", "/abs.txt": b"x", "model.bin": b"x", "pipeline.py": b"x"}
    assert pdlab("pull", NAME, "in/here").code == 0
    assert {path.name for path in (tmp_path / "in").rglob("*")} == {"here", "model.json", "model.safetensors"}
    for sha in ("../../../x", "", None, "0" * 39):
        hub.lies["sha"] = sha
        refused(pdlab("pull", NAME), "names no commit")
    hub.lies["sha"] = "f" * 40
    refused(pdlab("pull", NAME), "has no")
    del hub.files[NAME]["model.safetensors"]
    hub.lies.clear()
    refused(pdlab("pull", NAME), "has no")
    assert not (tmp_path / "few-steps").exists()


def test_a_bad_push_is_refused_before_anything_is_made(hub: Hub, student: Path, tmp_path: Path, pdlab: Any) -> None:
    refused(pdlab("push", NAME, tmp_path / "nothing"), "there is no checkpoint")
    refused(pdlab("push", NAME, student, "--license", "My own: no\nyes"), "is no identifier")
    (tmp_path / "bad.json").write_text('{"rows": [{"model": 1}]}')
    refused(pdlab("push", NAME, student, "--report", tmp_path / "bad.json"), "not a row")
    (tmp_path / "bad.json").write_text("[1]")
    refused(pdlab("push", NAME, student, "--report", tmp_path / "bad.json"), "is no report")
    assert not any(line.startswith(("POST", "PUT")) for line in hub.asked)
    with pytest.raises(module.PdlabError, match="lies nowhere yet"):
        module.push(NAME, module.Checkpoint(load(student).denoiser), module.Machine("cpu"))


@pytest.mark.parametrize("place", ["", ".", "x" * 300, "/proc/x", "/dev/null/x", "token"])
def test_a_folder_that_cannot_be_made(place: str, hub: Hub, student: Path, tmp_path: Path, pdlab: Any) -> None:
    uploaded(hub, student)
    (tmp_path / "token").write_text("kept")
    refused(pdlab("pull", NAME, place), "cannot write", "choose another DIR")
    with pytest.raises(module.PdlabError, match="null byte"):
        module.pull(NAME, Path("a\0b"))
    assert [path.name for path in tmp_path.iterdir()] == ["token"]


@pytest.mark.slow
def test_the_address_and_the_token_are_the_environments(hub: Hub, student: Path, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.address,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    for words in (("push", NAME, str(student)), ("pull", NAME)):
        command = [sys.executable, "-m", "pdlab.cli", *words]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "few-steps" / "model.json").exists()


def test_a_pipeline_of_diffusers_is_fetched_when_asked(hub: Hub, tmp_path: Path, pdlab: Any) -> None:
    """An older one, whose parts have no folders, beside files that nobody wants."""
    diffusers = pytest.importorskip("diffusers")
    made = tmp_path / "made"
    unet(in_channels=1, out_channels=1).save_pretrained(made)
    diffusers.DDPMScheduler().save_pretrained(made)
    hub.put(NAME)
    hub.files[NAME] = {file.name: file.read_bytes() for file in made.iterdir()}
    hub.files[NAME] |= {"diffusion_pytorch_model.bin": b"pickled", "../outside/config.json": b"{}"}
    order = ("distill", f"diffusers:{NAME}", "--run", "run", "--from", 2, "--dataset", "digits", "--batch", 4)
    order += ("--updates", 1, "--set", "guide.updates=1", "--set", "guide.batch=4")
    refused(pdlab(*order), "there is no folder someone/few-steps", "--download")
    assert hub.asked == []
    done = pdlab(*order, "--download")
    assert done.code == 0, done.err
    assert (tmp_path / "run" / "student-0001" / "model.json").exists()
    taken = {path.name for path in (tmp_path / "cache" / "hub").rglob("*") if path.is_file()}
    assert taken == {"config.json", "diffusion_pytorch_model.safetensors", "scheduler_config.json"}
    asked = len(hub.asked)
    assert pdlab(*order, "--download").code == 0
    assert len(hub.asked) == asked + 1  # which commit it is
    hub.put("someone/else", readme_md=b"")
    refused(pdlab("distill", "diffusers:someone/else", "--run", "b", "--download"), "no pipeline of diffusers")
    hub.faults["diffusion_pytorch_model.safetensors"] = 500
    hub.files["someone/other"], hub.private["someone/other"] = hub.files[NAME], False
    refused(pdlab("distill", "diffusers:someone/other", "--run", "b", "--download"), "answered 500")
    assert not list((tmp_path / "cache" / "hub").glob("*other*/*"))


def test_latents_go_there_without_a_picture(hub: Hub, tmp_path: Path) -> None:
    torch.manual_seed(0)
    denoiser = denoiser_of(UNET, steps=2)
    denoiser.bounded = False
    save(tmp_path / "latents", denoiser)
    module.push(NAME, load(tmp_path / "latents"), Machine("cpu"))
    assert set(hub.files[NAME]) == {"config.json", "model.safetensors", "README.md"}
    assert "samples.png" not in hub.files[NAME]["README.md"].decode()


def test_an_adapter_goes_there_whole(hub: Hub, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    torch.manual_seed(0)
    teacher = pdlab.Denoiser(MLP(MLPConfig(shape=(1, 4, 4), width=8, blocks=1)), "x")
    students = pdlab.distill(
        teacher, torch.rand(8, 1, 4, 4), "run", first=2, updates=1, batch=4, lora=1, quiet=True
    )
    with pytest.raises(pdlab.PdlabError, match="is an adapter of another checkpoint"):
        module.push(NAME, students[1], Machine("cpu"))
    assert hub.asked == []
    pdlab.save("whole", students[1])
    module.push(NAME, pdlab.load("whole"), Machine("cpu"))
    pulled = pdlab.from_pretrained(NAME).denoiser.state_dict()
    assert all(torch.equal(pulled[name], tensor) for name, tensor in students[1].denoiser.state_dict().items())
