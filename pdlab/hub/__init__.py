"""Checkpoints to the Hugging Face Hub, and from there.

    config.json          model.json of the checkpoint, byte for byte
    model.safetensors    its weights
    README.md            the model card (`page`), with samples.png and, where figures are known, report.json

What is pulled is as little trusted as any file: only the first two are taken, by these names, into a folder of
ours, each up to the size that it can have; they are checked as `load` checks every checkpoint, before the folder
takes its name. Nothing leaves this machine but by `push`. Tokens are huggingface_hub's business (HF_TOKEN, `hf auth
login`), and so is the hub's address (HF_ENDPOINT).
"""

import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from pdlab import memory, schema
from pdlab.data.cache import cache_dir
from pdlab.errors import PdlabError, extra, reason
from pdlab.files import atomic_folder, check_new_folder, read_bytes
from pdlab.hub.page import write_page
from pdlab.networks.registry import twin
from pdlab.training.checkpoint import Checkpoint, load, most_weights
from pdlab.training.machine import Machine

CONFIG, WEIGHTS = "config.json", "model.safetensors"
TIMEOUT = 30.0  # seconds without an answer, or a byte
_CHUNK = 1 << 20
_COMMIT = re.compile("[0-9a-f]{40}")
_REMEDY = "choose another DIR"
#: Of a pipeline, what is taken: older ones have network and scheduler side by side.
_PIPELINE = re.compile(
    r"((unet|transformer|vae)/)?(config\.json|diffusion_pytorch_model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?)"
    r"|(scheduler/)?scheduler_config\.json"
)
_MOST_SETTINGS, _MOST_WEIGHTS = 1 << 20, 64 << 30
#: Writes a file of the hub's names to a path, of up to so many bytes.
Fetch = Callable[[str, Path, int], None]


def push(
    name: str,
    checkpoint: Checkpoint,
    machine: Machine,
    *,
    public: bool = False,
    replace: bool = False,
    licence: str = "unknown",
    report: Path | None = None,
) -> str:
    """Put `checkpoint`, which lies in a folder, on the hub as `name`, OWNER/NAME; returns its address.

    A repository that is not there yet is made, private unless `public`. One that holds files is added to, or has
    those of the same names replaced, only if `replace` says so. `licence` is one of the hub's identifiers; the
    figures are those of `report`, or of report.json beside the checkpoint, that are this model's.

    Raises PdlabError where there is no token, or the hub cannot be reached or refuses.
    """
    hub = _library(name)
    if checkpoint.path is None:
        raise PdlabError("this model lies nowhere yet: pdlab.save(path, model) keeps it")
    if checkpoint.adapter:
        raise PdlabError(
            f"{checkpoint.path} is an adapter of another checkpoint: pdlab.save('whole', pdlab.load(path)) merges "
            "them, and whole can be pushed"
        )
    if not re.fullmatch("[a-z0-9][a-z0-9.-]{0,99}", licence):
        raise PdlabError(f"--license {licence!r:.60} is no identifier of the hub, such as apache-2.0 or cc-by-4.0")
    with _asking(name):
        if hub.get_token() is None:
            raise PdlabError("the hub wants to know who you are: hf auth login, or set HF_TOKEN")
        api = hub.HfApi()
        there = _there(hub, api, name)
        if there and not replace:
            raise PdlabError(f"{name} holds {', '.join(there[:3])} already: choose another NAME, or give --replace")
    with tempfile.TemporaryDirectory(prefix="pdlab-") as scratch:
        folder = Path(scratch)
        copied = _copier(checkpoint.path)
        copied("model.json", folder / CONFIG, schema.MOST_JSON)
        copied(WEIGHTS, folder / WEIGHTS, most_weights(checkpoint.path, twin(checkpoint.denoiser)))
        write_page(folder, name, checkpoint, machine, licence, report)
        files = sorted(path for path in folder.iterdir() if path.is_file())
        with _asking(name):
            if there is None:
                api.create_repo(name, private=not public, exist_ok=True)
            operations = [hub.CommitOperationAdd(path.name, str(path)) for path in files]
            api.create_commit(name, operations, commit_message=f"pdlab push: {checkpoint.sha256[:12]}")
    return f"{api.endpoint}/{name}"


def pull(name: str, folder: Path | None = None, network: nn.Module | None = None) -> Path:
    """Fetch the checkpoint `name`, OWNER/NAME, of the hub into the new `folder` (default: NAME); returns that.

    `network` is for one's own, as in `load`. Raises PdlabError where the hub cannot be reached or has no such
    checkpoint, and for one that `load` would refuse; nothing is left then.
    """
    hub = _library(name)
    folder = folder or Path(name.rpartition("/")[2])
    check_new_folder(folder, _REMEDY)
    with _asking(name):
        commit = _commit(hub.HfApi().model_info(name, timeout=TIMEOUT), name)
    _as_checkpoint(_fetcher(hub, name, commit), folder, network, name)
    return folder


def from_pretrained(name_or_folder: str | Path, network: nn.Module | None = None) -> Checkpoint:
    """The checkpoint in a folder, or on the hub as OWNER/NAME: that is fetched once, into the cache of pdlab.

    A folder is a checkpoint of ours, or a copy of what `push` put on the hub. `network` takes the weights of one's
    own. Raises PdlabError as `load` and `pull` do.
    """
    place = Path(name_or_folder)
    if place.is_dir():
        if (place / "model.json").exists() or not (place / CONFIG).exists():
            return load(place, network)
        with tempfile.TemporaryDirectory(prefix="pdlab-") as scratch:
            found = _as_checkpoint(_copier(place), Path(scratch) / "model", network, str(place))
        found.path = None
        return found
    name = str(name_or_folder)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise PdlabError(f"there is no folder {name:.200}, and on the hub a name is OWNER/NAME")
    hub = _library(name)
    with _asking(name):
        commit = _commit(hub.HfApi().model_info(name, timeout=TIMEOUT), name)
    kept = cache_dir() / "hub" / name.replace("/", "--") / commit
    if kept.is_dir():
        return load(kept, network)
    return _as_checkpoint(_fetcher(hub, name, commit), kept, network, name)


def pull_pipeline(name: str) -> Path:
    """Fetch the pipeline of diffusers `name`, OWNER/NAME, into the cache of pdlab, once; returns its folder.

    Only settings, and weights in safetensors, are taken, of its network, its scheduler and its autoencoder. Raises
    PdlabError where the hub cannot be reached or has no such pipeline; nothing is left then.
    """
    hub = _library(name)
    with _asking(name):
        found = hub.HfApi().model_info(name, timeout=TIMEOUT)
    commit = _commit(found, name)
    wanted = [file.rfilename for file in found.siblings or [] if _PIPELINE.fullmatch(file.rfilename)]
    if not any(file.endswith("config.json") for file in wanted):
        raise PdlabError(f"{name} is no pipeline of diffusers: it has neither unet/config.json nor one of its own")
    kept = cache_dir() / "hub" / f"pipeline--{name.replace('/', '--')}" / commit
    if not kept.is_dir():
        fetch = _fetcher(hub, name, commit)
        with atomic_folder(kept, "set PDLAB_CACHE to another folder") as inside:
            for file in wanted:
                (inside / file).parent.mkdir(exist_ok=True)
                fetch(file, inside / file, _MOST_SETTINGS if file.endswith(".json") else _MOST_WEIGHTS)
    return kept


def _as_checkpoint(fetch: Fetch, folder: Path, network: nn.Module | None, what: str) -> Checkpoint:
    """What `fetch` brings as the checkpoint `folder`, whole and checked, or not at all."""
    with atomic_folder(folder, _REMEDY) as inside:
        try:
            fetch(CONFIG, inside / "model.json", schema.MOST_JSON)
            fetch(WEIGHTS, inside / WEIGHTS, most_weights(inside, network))
            found = load(inside, network)
        except PdlabError as error:
            raise PdlabError(str(error).replace(str(inside), what)) from None
    found.path = folder
    return found


def _copier(place: Path) -> Fetch:
    def fetch(file: str, to: Path, most: int) -> None:
        try:
            content = read_bytes(place / file, most)
        except OSError as error:
            raise PdlabError(f"{place / file} cannot be read: {reason(error)}") from None
        to.write_bytes(content)

    return fetch


def _fetcher(hub: Any, name: str, commit: str) -> Fetch:
    def fetch(file: str, to: Path, most: int) -> None:
        url = hub.hf_hub_url(name, file, revision=commit)
        headers = hub.utils.build_hf_headers() | {"Accept-Encoding": "identity"}
        with _asking(name), hub.utils.get_session().stream("GET", url, headers=headers, timeout=TIMEOUT) as answer:
            hub.utils.hf_raise_for_status(answer)
            length = answer.headers.get("Content-Length", "")
            told = int(length) if length.isdecimal() and len(length) < 20 else most
            if told > most:
                raise PdlabError(f"{file} of {name} has {told:,} bytes, more than the {most:,} that belong there")
            memory.check(2 * told if length else 0, f"{file} of {name}", "use a larger machine")
            left = most
            with to.open("xb") as out:
                for chunk in answer.iter_raw(_CHUNK):
                    left -= len(chunk)
                    if left < 0:
                        raise PdlabError(f"{file} of {name} has more than the {most:,} bytes that belong there")
                    out.write(chunk)

    return fetch


def _there(hub: Any, api: Any, name: str) -> list[str] | None:
    """The files that stand in a repository; None where there is none."""
    try:
        found = api.model_info(name, timeout=TIMEOUT).siblings or []
    except hub.errors.RepositoryNotFoundError as error:
        if error.response.status_code != 404:
            raise
        return None
    return sorted(file.rfilename for file in found if file.rfilename != ".gitattributes")


def _commit(found: Any, name: str) -> str:
    if not isinstance(found.sha, str) or not _COMMIT.fullmatch(found.sha):
        raise PdlabError(f"the hub names no commit of {name}: put something there first")
    return str(found.sha)


def _library(name: str) -> Any:
    """huggingface_hub. PdlabError where it is missing, and for a `name` that is none of the hub's."""
    with extra("hub", "the Hugging Face Hub"):
        import huggingface_hub as hub
        import huggingface_hub.errors
        import huggingface_hub.utils
    try:
        hub.utils.validate_repo_id(name)
        if "/" not in name:
            raise ValueError
    except ValueError:
        raise PdlabError(
            f"{name!r:.120} is no name on the hub: it is OWNER/NAME, of letters, digits, - _ ."
        ) from None
    return hub


@contextmanager
def _asking(name: str) -> Iterator[None]:
    """What huggingface_hub, and what it speaks HTTP with, raise, as one line with its remedy."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    hub = constants.ENDPOINT
    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            why = f"{hub} refuses {name} ({status}), private, not yours or missing: hf auth login, or HF_TOKEN"
        elif status == 404:
            why = f"{hub} has no {name}, or no such file in it: see its page, or log in if it is private"
        else:
            why = f"{hub} answered {status} for {name}: try again later"
        raise PdlabError(why) from None
    except OfflineModeIsEnabled:
        raise PdlabError(f"{name} is on the hub, and HF_HUB_OFFLINE forbids to ask it: unset that") from None
    except Exception as error:
        if not type(error).__module__.startswith("httpx") and not isinstance(error, ValueError | RuntimeError):
            raise
        raise PdlabError(
            f"cannot reach {hub} for {name} ({reason(error)[:200]}): check the connection and HF_ENDPOINT; nothing "
            "was changed here"
        ) from None
