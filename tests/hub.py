"""A hub on this machine: the part of Hugging Face's HTTP interface that uploads and downloads need, with its rights."""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN, NAMESPACE, COMMIT = "hf_of_me", "me", "1" * 40


@dataclass
class Repository:
    """Its files by path, and what it was made with."""

    made_with: dict[str, Any]
    files: dict[str, bytes] = field(default_factory=dict)

    @property
    def private(self) -> bool:
        return self.made_with.get("visibility") == "private" or bool(self.made_with.get("private"))  # by client's age


class Hub(ThreadingHTTPServer):
    """Repositories by kind and name: `hub.repositories["models/me/shapes"]`. Large files go the way of git-lfs.

    What was asked for stands in `hub.asked`, as `GET /api/models/me/shapes`.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.asked: list[str] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def environment(self, token: str = TOKEN) -> dict[str, str]:
        """In which the hub's client asks here."""
        return {"HF_ENDPOINT": self.url, "HF_TOKEN": token, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._handle("GET")

    def do_HEAD(self) -> None:
        self._handle("HEAD")

    def do_POST(self) -> None:
        self._handle("POST")

    def do_PUT(self) -> None:
        self._handle("PUT")

    def _handle(self, method: str) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b"".join(iter(self._chunk, b""))
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(f"{method} {path}")
        if found := re.fullmatch(rf"/((?:datasets/|spaces/)?[^/]+/[^/]+)/resolve/(?:main|{COMMIT})/(.+)", path):
            name = found[1] if found[1].count("/") == 2 else f"models/{found[1]}"
            repository = self.server.repositories.get(name)
            if repository is None or (repository.private and not self._is_me()):
                self._send(404, b"{}", "RepoNotFound")
            elif found[2] in repository.files:
                self._send(200, repository.files[found[2]])
            else:
                self._send(404, b"{}", "EntryNotFound")
        else:
            status, answer = self._answer(method, path, body)
            self._send(status, json.dumps(answer).encode())

    def _is_me(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _send(self, status: int, payload: bytes, what: str = "") -> None:
        """With what the client asks of a file's headers; a range of it, if it asks for one."""
        headers = {"ETag": f'"{hashlib.sha256(payload).hexdigest()}"', "X-Repo-Commit": COMMIT}
        headers |= {"X-Error-Code": what} if what else {}
        if status == 200 and (found := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))):
            first, last = int(found[1]), min(int(found[2]), len(payload) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(payload)}"
            status, payload = 206, payload[first : last + 1]
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(payload)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(payload)

    def _chunk(self) -> bytes:
        data = self.rfile.read(int(self.rfile.readline(), 16))
        self.rfile.readline()
        return data

    def _answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        if method == "PUT":
            self.server.large[path.rsplit("/", 1)[-1]] = body
            return 200, {}
        found = re.fullmatch(rf"/api/(\w+/[^/]+/[^/]+)(?:/([\w-]+)/(?:main|{COMMIT})(/.*)?)?", path)
        repository = self.server.repositories.get(found[1]) if found else None
        reads = method in ("GET", "HEAD") or (found and found[2] == "paths-info")
        if not self._is_me() and not (reads and repository and not repository.private):
            return 401, {"error": "Invalid credentials"}
        if path == "/api/validate-yaml":
            return 200, {}
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path.endswith("/objects/batch"):
            oids = [(file["oid"], file["size"]) for file in json.loads(body)["objects"]]
            actions = {oid: {"upload": {"href": f"{self.server.url}/large/{oid}"}} for oid, _ in oids}
            return 200, {"objects": [{"oid": oid, "size": size, "actions": actions[oid]} for oid, size in oids]}
        if found is None or repository is None:
            return 404, {"error": "Repository not found"}
        return self._in_repository(repository, found[2], body, found[3])

    def _create(self, wanted: dict[str, Any]) -> tuple[int, Any]:
        if wanted["organization"] != NAMESPACE:
            return 403, {"error": "You don't have the rights to create a repository under this namespace"}
        name, kind = f"{NAMESPACE}/{wanted['name']}", wanted.get("type") or "model"
        if f"{kind}s/{name}" in self.server.repositories:
            return 409, {"url": f"{self.server.url}/{name}"}
        self.server.repositories[f"{kind}s/{name}"] = Repository(wanted)
        return 200, {"url": f"{self.server.url}/{'spaces/' if kind == 'space' else ''}{name}"}

    def _in_repository(
        self, repository: Repository, verb: str | None, body: bytes, folder: str | None
    ) -> tuple[int, Any]:
        if verb in (None, "revision"):
            of_it = {"tags": [], "downloads": 0, "likes": 0, "siblings": [{"rfilename": p} for p in repository.files]}
            return 200, {"id": "it", "sha": COMMIT, "private": repository.private, **of_it}
        if verb == "tree":
            within = f"{folder.strip('/')}/" if folder and folder != "/" else ""
            files = [(path, data) for path, data in repository.files.items() if path.startswith(within)]
            if "recursive=true" in self.path.lower():
                return 200, [_entry(path, data) for path, data in files]
            folders = {within + path[len(within) :].split("/")[0] for path, _ in files} - dict(files).keys()
            here = [_entry(path, data) for path, data in files if "/" not in path[len(within) :]]
            return 200, [*here, *({"type": "directory", "path": path, "oid": "0"} for path in sorted(folders))]
        if verb == "paths-info":
            asked = parse_qs(body.decode()).get("paths", [])
            return 200, [_entry(path, data) for path, data in repository.files.items() if path in asked]
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
        return 200, {"success": True, "commitOid": COMMIT, "commitUrl": f"{self.server.url}/me/it/commit/{COMMIT}"}


def _entry(path: str, data: bytes) -> dict[str, Any]:
    return {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha256(data).hexdigest()}


def _sizes(files: list[dict[str, Any]]) -> list[tuple[str, int]]:
    return [(file["path"], file["size"]) for file in files]
