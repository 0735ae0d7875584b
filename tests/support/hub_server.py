"""Hugging Face Hub on loopback: the endpoints that the real client needs, and scripted faults.

Repositories are commits of files in memory; large files are objects by SHA-256, as in git-lfs. Requests and
uploads are recorded, so that tests can detect repeated uploads.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_" + "loopbackSecretToken0123456789abcd"
_API = r"/api/datasets/(?P<repo>[^/]+/[^/]+)"


@dataclass
class Commit:
    sha: str
    files: dict[str, tuple[str, bytes | str]]  # path -> ("regular", data) or ("lfs", oid)


@dataclass
class Repo:
    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    history: list[tuple[str, str]] = field(default_factory=list)  # branch and commit, in order

    def at(self, revision: str) -> Commit | None:
        sha = self.branches.get(revision) or self.tags.get(revision) or revision
        return self.commits.get(sha)

    def commit(self, branch: str, files: dict[str, tuple[str, bytes | str]]) -> Commit:
        sha = hashlib.sha1(f"{branch}{len(self.commits)}{sorted(files)}".encode()).hexdigest()
        made = self.commits[sha] = Commit(sha, files)
        self.branches[branch] = sha
        self.history.append((branch, sha))
        return made


@dataclass
class Fault:
    """Fault of the first `times` requests whose method and path match."""

    pattern: str
    status: int | None = None
    drop: bool = False
    times: int = 1
    also: Callable[[], None] | None = None


class HubServer:
    """Server, started by `with HubServer() as hub`; `hub.url` is its endpoint."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.stored: list[str] = []
        self.duplicated: list[str] = []
        self.faults: list[Fault] = []
        self.lock = threading.Lock()
        self.serving: set[threading.Thread] = set()
        server = self

        class Handler(_Handler):
            hub = server

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"

    def __enter__(self) -> HubServer:
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.http.shutdown()
        self.http.server_close()

    def served(self) -> None:
        """Wait until no connection is open, so that all data of a killed client is stored."""
        for thread in list(self.serving):
            thread.join(300)

    def content(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        """Return the files of a revision."""
        commit = self.repos[repo].at(revision)
        assert commit is not None
        return {
            path: self.objects[str(held)] if kind == "lfs" else bytes(held)  # type: ignore[arg-type]
            for path, (kind, held) in commit.files.items()
            if path != ".gitattributes"
        }

    def fault(self, request: str) -> Fault | None:
        with self.lock:
            for one in self.faults:
                if one.times > 0 and re.search(one.pattern, request):
                    one.times -= 1
                    return one
        return None


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *said: object) -> None:
        pass

    def setup(self) -> None:
        self.hub.serving.add(threading.current_thread())
        super().setup()

    def _serve(self) -> None:
        request = f"{self.command} {self.path}"
        fault = self.hub.fault(request)
        if fault and fault.also:
            fault.also()
        if fault and fault.drop:
            self.rfile.read(int(self.headers.get("Content-Length", "0")) // 2)
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        body = self._body()
        with self.hub.lock:
            self.hub.requests.append(request)
            if fault and fault.status:
                self._answer(fault.status, {"error": "made to fail"}, {"Retry-After": "0"})
                return
            self._route(body)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            data = b""
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return data
        return self.rfile.read(int(self.headers.get("Content-Length", "0")))

    def _answer(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, said in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, said)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _missing(self, code: str) -> None:
        self._answer(404, {"error": code}, {"X-Error-Code": code})

    def _route(self, body: bytes) -> None:
        path = urlsplit(self.path).path
        for method, pattern, name in _ROUTES:
            found = re.fullmatch(pattern, path)
            if not found or self.command not in method:
                continue
            parts = {key: unquote(value or "") for key, value in found.groupdict().items()}
            if name not in {"store", "yaml"} and self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self._answer(401, {"error": f"Invalid token {self.headers.get('Authorization')}"})
                return
            if "repo" in parts and parts["repo"] not in self.hub.repos:
                self._missing("RepoNotFound")
                return
            getattr(self, f"_on_{name}")(parts, body)
            return
        self._answer(404, {"error": f"no route for {self.path}"})

    # What each endpoint does.

    def _on_create(self, parts: dict[str, str], body: bytes) -> None:
        said = json.loads(body)
        repo = f"{said['organization']}/{said['name']}"
        if repo in self.hub.repos:
            url = f"{self.hub.url}/datasets/{repo}"
            self._answer(409, {"error": "You already created this repo", "url": url})
            return
        made = self.hub.repos[repo] = Repo(
            private=said.get("visibility") == "private" or said.get("private", False)
        )
        made.commit("main", {".gitattributes": ("regular", b"*.tar filter=lfs\n*.parquet filter=lfs\n")})
        self._answer(200, {"url": f"{self.hub.url}/datasets/{repo}", "id": repo})

    def _on_yaml(self, parts: dict[str, str], body: bytes) -> None:
        import yaml

        head = json.loads(body)["content"].split("---")[1]
        good = isinstance(yaml.safe_load(head), dict)
        self._answer(200 if good else 400, {"warnings": [], "errors": [] if good else [{"message": "bad"}]})

    def _on_info(self, parts: dict[str, str], body: bytes) -> None:
        repo = self.hub.repos[parts["repo"]]
        commit = repo.at(parts.get("revision") or "main")
        if commit is None:
            self._missing("RevisionNotFound")
            return
        siblings = [{"rfilename": path} for path in commit.files]
        self._answer(
            200,
            {
                "id": parts["repo"],
                "sha": commit.sha,
                "private": repo.private,
                "tags": [],
                "siblings": siblings,
            },
        )

    def _entry(self, path: str, file: tuple[str, bytes | str]) -> dict[str, Any]:
        kind, held = file
        if kind == "lfs":
            size, oid = len(self.hub.objects[str(held)]), str(held)
            pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {size}\n"
            lfs = {"oid": oid, "size": size, "pointerSize": len(pointer)}
            return {
                "type": "file",
                "path": path,
                "size": size,
                "oid": _blob(pointer.encode()),
                "lfs": lfs,
                "xetHash": str(oid),
            }
        assert isinstance(held, bytes)
        return {"type": "file", "path": path, "size": len(held), "oid": _blob(held)}

    def _on_tree(self, parts: dict[str, str], body: bytes) -> None:
        commit = self.hub.repos[parts["repo"]].at(parts["revision"])
        if commit is None:
            self._missing("RevisionNotFound")
            return
        below = parts["path"].strip("/")
        deep = "recursive=true" in self.path.lower()
        entries: dict[str, dict[str, Any]] = {}
        for path, file in commit.files.items():
            if below and not path.startswith(f"{below}/"):
                continue
            folders = path[len(below) :].strip("/").split("/")[:-1]
            for depth in range(1, len(folders) + 1):
                name = "/".join([*([below] if below else []), *folders[:depth]])
                entries[name] = {"type": "directory", "path": name, "oid": _blob(name.encode()), "size": 0}
            if deep or not folders:
                entries[path] = self._entry(path, file)
        if not deep:
            depth = below.count("/") + 1 if below else 0
            entries = {name: one for name, one in entries.items() if name.count("/") == depth}
        if below and not entries:
            self._missing("EntryNotFound")
            return
        self._answer(200, list(entries.values()))

    def _on_paths(self, parts: dict[str, str], body: bytes) -> None:
        commit = self.hub.repos[parts["repo"]].at(parts["revision"])
        assert commit is not None
        text = body.decode()
        said = json.loads(text) if text.startswith("{") else parse_qs(text)
        found = []
        for path in said.get("paths", []):
            if path in commit.files:
                found.append(self._entry(path, commit.files[path]))
            elif any(name.startswith(f"{path}/") for name in commit.files):
                found.append({"type": "directory", "path": path, "oid": _blob(path.encode()), "size": 0})
        self._answer(200, found)

    def _on_refs(self, parts: dict[str, str], body: bytes) -> None:
        repo = self.hub.repos[parts["repo"]]

        def listed(refs: dict[str, str], kind: str) -> list[dict[str, str]]:
            return [
                {"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": sha}
                for name, sha in refs.items()
            ]

        self._answer(
            200,
            {"branches": listed(repo.branches, "heads"), "tags": listed(repo.tags, "tags"), "converts": []},
        )

    def _on_branch(self, parts: dict[str, str], body: bytes) -> None:
        repo, name = self.hub.repos[parts["repo"]], parts["name"]
        if self.command == "DELETE":
            del repo.branches[name]
        elif name in repo.branches:
            self._answer(409, {"error": "branch exists"})
            return
        else:
            start = repo.at(json.loads(body or b"{}").get("startingPoint", "main"))
            assert start is not None
            repo.branches[name] = start.sha
        self._answer(200, {})

    def _on_tag(self, parts: dict[str, str], body: bytes) -> None:
        repo = self.hub.repos[parts["repo"]]
        if self.command == "DELETE":
            del repo.tags[parts["name"]]
        else:
            commit, tag = repo.at(parts["name"]), json.loads(body)["tag"]
            assert commit is not None
            if tag in repo.tags:
                self._answer(409, {"error": "tag exists"})
                return
            repo.tags[tag] = commit.sha
        self._answer(200, {})

    def _on_preupload(self, parts: dict[str, str], body: bytes) -> None:
        commit = self.hub.repos[parts["repo"]].at(parts["revision"])
        assert commit is not None
        files = []
        for file in json.loads(body)["files"]:
            path = file["path"]
            mode = "lfs" if path.endswith((".tar", ".parquet")) else "regular"
            held = commit.files.get(path)
            oid = None if held is None else held[1] if mode == "lfs" else _blob(held[1])  # type: ignore[arg-type]
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._answer(200, {"files": files})

    def _on_batch(self, parts: dict[str, str], body: bytes) -> None:
        objects = []
        for one in json.loads(body)["objects"]:
            if one["oid"] not in self.hub.objects:
                one["actions"] = {"upload": {"href": f"{self.hub.url}/store/{one['oid']}", "header": {}}}
            objects.append(one)
        self._answer(200, {"transfer": "basic", "objects": objects})

    def _on_duplicate(self, parts: dict[str, str], body: bytes) -> None:
        files = json.loads(body)["files"]
        self.hub.duplicated += [file["filename"] for file in files]
        self._answer(200, {"failed": []})

    def _on_store(self, parts: dict[str, str], body: bytes) -> None:
        if hashlib.sha256(body).hexdigest() != parts["oid"]:
            self._answer(400, {"error": "other bytes than announced"})
            return
        self.hub.objects[parts["oid"]] = body
        self.hub.stored.append(parts["oid"])
        self._answer(200, {})

    def _on_commit(self, parts: dict[str, str], body: bytes) -> None:
        repo, branch = self.hub.repos[parts["repo"]], parts["revision"]
        head = repo.at(branch)
        assert head is not None
        files = dict(head.files)
        for line in body.splitlines():
            said = json.loads(line)
            value = said["value"]
            if said["key"] == "header" and value.get("parentCommit", head.sha) != head.sha:
                self._answer(412, {"error": "A commit has happened since"})
                return
            if said["key"] == "file":
                files[value["path"]] = ("regular", base64.b64decode(value["content"]))
            elif said["key"] == "lfsFile":
                assert value["oid"] in self.hub.objects
                files[value["path"]] = ("lfs", value["oid"])
            elif said["key"] == "deletedFile":
                del files[value["path"]]
        commit = repo.commit(branch, files)
        self._answer(
            200,
            {
                "commitUrl": f"{self.hub.url}/datasets/{parts['repo']}/commit/{commit.sha}",
                "commitOid": commit.sha,
            },
        )

    def _on_resolve(self, parts: dict[str, str], body: bytes) -> None:
        commit = self.hub.repos[parts["repo"]].at(parts["revision"])
        if commit is None:
            self._missing("RevisionNotFound")
            return
        if parts["path"] not in commit.files:
            self._missing("EntryNotFound")
            return
        kind, held = commit.files[parts["path"]]
        data = self.hub.objects[str(held)] if kind == "lfs" else held
        assert isinstance(data, bytes)
        etag = str(held) if kind == "lfs" else _blob(data)
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes"}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted:
            first, last = int(wanted[1]), min(int(wanted[2] or len(data) - 1), len(data) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            self._answer(206, data[first : last + 1], headers)
            return
        self._answer(200, data, headers)


def _blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


_ROUTES = (
    ("POST", r"/api/repos/create", "create"),
    ("POST", r"/api/validate-yaml", "yaml"),
    ("GET", _API, "info"),
    ("GET", _API + r"/revision/(?P<revision>[^/]+)", "info"),
    ("GET", _API + r"/tree/(?P<revision>[^/]+)(?P<path>/.*)?", "tree"),
    ("POST", _API + r"/paths-info/(?P<revision>[^/]+)", "paths"),
    ("GET", _API + r"/refs", "refs"),
    (("POST", "DELETE"), _API + r"/branch/(?P<name>[^/]+)", "branch"),
    (("POST", "DELETE"), _API + r"/tag/(?P<name>[^/]+)", "tag"),
    ("POST", _API + r"/lfs-files/duplicate", "duplicate"),
    ("POST", _API + r"/preupload/(?P<revision>[^/]+)", "preupload"),
    ("POST", _API + r"/commit/(?P<revision>[^/]+)", "commit"),
    ("POST", r"/datasets/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch", "batch"),
    ("PUT", r"/store/(?P<oid>[0-9a-f]+)", "store"),
    # Datasets, and models without a prefix.
    (
        ("GET", "HEAD"),
        r"(?:/datasets)?/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)",
        "resolve",
    ),
)
