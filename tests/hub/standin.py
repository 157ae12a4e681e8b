"""A stand-in for the Hugging Face Hub: what huggingface_hub asks of it, and how it can go wrong."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_good"
COMMIT = "0123456789" * 4


class Hub:
    """Repositories by name: their files, and whether they are private.

    `faults[part of a path]` is a status that is answered there, or a function of the content that would be served.
    """

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.blobs: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.faults: dict[str, int | Callable[[bytes], bytes]] = {}
        self.lies: dict[str, Any] = {}  # fields of what is said of a repository
        self.address = ""

    def put(self, name: str, **files: bytes) -> None:
        self.files[name] = {file.replace("_", ".", 1): content for file, content in files.items()}
        self.private[name] = False


@contextmanager
def running() -> Iterator[Hub]:
    hub = Hub()

    class Handler(_Handler):
        of = hub

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.handle_error = lambda *_: None  # type: ignore[method-assign]  # who has heard enough hangs up
        hub.address = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    of: Hub

    def do_GET(self) -> None:
        if self._fault() or (known := self._repository("/api/models/([^/]+/[^/]+)()(?:/revision/.*)?")) is None:
            return
        if known:
            name, _ = known
            siblings = [{"rfilename": file} for file in [".gitattributes", *self.of.files[name]]]
            said = {"id": name, "sha": COMMIT, "siblings": siblings, "private": self.of.private[name]}
            return self._json(said | self.of.lies)
        found = self._repository(f"/([^/]+/[^/]+)/resolve/{COMMIT}/(.+)")
        if found:
            name, file = found
            if file not in self.of.files[name]:
                return self._json({"error": "no such entry"}, 404, "EntryNotFound")
            if file.endswith(".safetensors"):  # as a content delivery network has it
                self.send_response(302)
                self.send_header("Location", f"{self.of.address}/cdn/{name}/{file}")
                self.send_header("Content-Length", "0")
                return self.end_headers()
            return self._content(self.of.files[name][file])
        if found is not None:
            part = re.fullmatch("/cdn/([^/]+/[^/]+)/(.+)", self.path)
            self._content(self.of.files[part[1]][part[2]]) if part else self._json({"error": "unknown"}, 404)

    def do_PUT(self) -> None:
        if not self._fault():
            self.of.blobs[self.path.rpartition("/")[2]] = self._body()
            self._json({})

    def do_POST(self) -> None:
        body = self._body()
        if self._fault():
            return
        if self.path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if not self._known():
            return self._json({"error": "who are you?"}, 401)
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            if name in self.of.files:
                return self._json({"error": "there already", "url": f"{self.of.address}/{name}"}, 409)
            self.of.files[name] = {}
            self.of.private[name] = asked.get("private", asked.get("visibility") == "private")
            return self._json({"url": f"{self.of.address}/{name}"})
        if self.path.endswith("/preupload/main"):
            files = [file["path"] for file in json.loads(body)["files"]]
            modes = ["lfs" if file.endswith(".safetensors") else "regular" for file in files]
            return self._json(
                {
                    "files": [
                        {"path": file, "uploadMode": mode, "shouldIgnore": False}
                        for file, mode in zip(files, modes, strict=True)
                    ]
                }
            )
        if self.path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            for part in objects:
                part["actions"] = {"upload": {"href": f"{self.of.address}/upload/{part['oid']}"}}
            return self._json({"objects": objects, "transfer": "basic"})
        if found := re.fullmatch("/api/models/([^/]+/[^/]+)/commit/main", self.path):
            for line in body.splitlines():
                item = json.loads(line)
                value = item["value"]
                if item["key"] == "file":
                    self.of.files[found[1]][value["path"]] = base64.b64decode(value["content"])
                elif item["key"] == "lfsFile":
                    content = self.of.blobs[value["oid"]]
                    assert hashlib.sha256(content).hexdigest() == value["oid"]
                    self.of.files[found[1]][value["path"]] = content
            address = f"{self.of.address}/{found[1]}/commit/{COMMIT}"
            return self._json({"commitUrl": address, "commitOid": COMMIT})
        self._json({"error": f"unknown: {self.path}"}, 404)

    do_HEAD = do_GET

    def log_message(self, *arguments: Any) -> None:
        pass

    def _known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _repository(self, pattern: str) -> tuple[str, str] | tuple[()] | None:
        """The repository and the rest of what is asked for; () for another path, None if it was answered."""
        found = re.fullmatch(pattern, self.path.partition("?")[0])
        if not found:
            return ()
        if found[1] not in self.of.files:
            self._json({"error": "Repository not found"}, 404, "RepoNotFound")
            return None
        if self.of.private[found[1]] and not self._known():
            self._json({"error": "Repository not found"}, 401, "RepoNotFound")
            return None
        return found[1], found[2]

    def _fault(self) -> bool:
        self.of.asked.append(f"{self.command} {self.path}")
        for part, fault in self.of.faults.items():
            if part in self.path and isinstance(fault, int):
                self._json({"error": "out of order"}, fault)
                return True
        return False

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _json(self, value: Any, status: int = 200, code: str = "") -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _content(self, content: bytes) -> None:
        length = len(content)
        for part, fault in self.of.faults.items():
            if part in self.path and callable(fault):
                content = fault(content)
        self.send_response(200)
        if len(content) <= length:  # one that is longer comes without its length, as it might go on for ever
            self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(content)
        self.close_connection = True
