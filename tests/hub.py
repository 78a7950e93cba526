"""A hub on this machine: the part of Hugging Face's HTTP interface that an upload needs, with its rights."""

import base64
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN, NAMESPACE = "hf_of_me", "me"


@dataclass
class Repository:
    """Its files by path, and what it was made with."""

    made_with: dict[str, Any]
    files: dict[str, bytes] = field(default_factory=dict)

    @property
    def private(self) -> bool:
        return self.made_with.get("visibility") == "private" or bool(self.made_with.get("private"))  # by client's age


class Hub(ThreadingHTTPServer):
    """Repositories by kind and name: `hub.repositories["models/me/shapes"]`. Large files go the way of git-lfs."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._handle("GET")

    def do_POST(self) -> None:
        self._handle("POST")

    def do_PUT(self) -> None:
        self._handle("PUT")

    def _handle(self, method: str) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b"".join(iter(self._chunk, b""))
        status, answer = self._answer(method, unquote(urlsplit(self.path).path), body)
        payload = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def _chunk(self) -> bytes:
        data = self.rfile.read(int(self.rfile.readline(), 16))
        self.rfile.readline()
        return data

    def _answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        if method == "PUT":
            self.server.large[path.rsplit("/", 1)[-1]] = body
            return 200, {}
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return 401, {"error": "Invalid credentials"}
        if path == "/api/validate-yaml":
            return 200, {}
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path.endswith("/objects/batch"):
            oids = [(file["oid"], file["size"]) for file in json.loads(body)["objects"]]
            actions = {oid: {"upload": {"href": f"{self.server.url}/large/{oid}"}} for oid, _ in oids}
            return 200, {"objects": [{"oid": oid, "size": size, "actions": actions[oid]} for oid, size in oids]}
        kind_and_name, verb = re.fullmatch(r"/api/(\w+/[^/]+/[^/]+)(?:/(\w+)/main)?", path).groups()
        if kind_and_name not in self.server.repositories:
            return 404, {"error": "Repository not found"}
        return self._in_repository(self.server.repositories[kind_and_name], verb, body)

    def _create(self, wanted: dict[str, Any]) -> tuple[int, Any]:
        if wanted["organization"] != NAMESPACE:
            return 403, {"error": "You don't have the rights to create a repository under this namespace"}
        name, kind = f"{NAMESPACE}/{wanted['name']}", wanted.get("type") or "model"
        if f"{kind}s/{name}" in self.server.repositories:
            return 409, {"url": f"{self.server.url}/{name}"}
        self.server.repositories[f"{kind}s/{name}"] = Repository(wanted)
        return 200, {"url": f"{self.server.url}/{'spaces/' if kind == 'space' else ''}{name}"}

    def _in_repository(self, repository: Repository, verb: str | None, body: bytes) -> tuple[int, Any]:
        if verb is None:
            return 200, {"id": "it", "private": repository.private, "tags": [], "downloads": 0, "likes": 0}
        if verb == "tree":
            files = repository.files.items()
            return 200, [{"type": "file", "path": path, "size": len(data), "oid": "0"} for path, data in files]
        if verb == "preupload":
            modes = {path: "lfs" if size > 100_000 else "regular" for path, size in _sizes(json.loads(body)["files"])}
            return 200, {"files": [{"path": p, "uploadMode": mode, "shouldIgnore": False} for p, mode in modes.items()]}
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                repository.files[value["path"]] = self.server.large[value["oid"]]
            elif line["key"] == "deletedFile":
                del repository.files[value["path"]]
        return 200, {"success": True, "commitOid": "1" * 40, "commitUrl": f"{self.server.url}/me/it/commit/{'1' * 40}"}


def _sizes(files: list[dict[str, Any]]) -> list[tuple[str, int]]:
    return [(file["path"], file["size"]) for file in files]
