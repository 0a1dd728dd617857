"""A hub on loopback: what huggingface_hub asks to make a repository, to commit small and large files, and to fetch them."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_fake"
COMMIT, OTHER_COMMIT = "c" * 40, "d" * 40


class FakeHub(ThreadingHTTPServer):
    """Repositories as `{repo id: {path: bytes}}`. `*.safetensors` and `*.pt` travel as LFS objects, as on the real one."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.revisions: dict[str, dict[str, bytes]] = {}  # by `REPO@REVISION`, beside the main one of `repositories`
        self.private: set[str] = set()
        self.objects: dict[str, bytes] = {}
        self.uploaded_as_objects: list[str] = []
        self.fetched: list[str] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    hub = FakeHub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


class Handler(BaseHTTPRequestHandler):
    server: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments) -> None:
        pass

    def answer(self, status: int, body: bytes | dict | list = b"", **headers: str) -> None:
        content = json.dumps(body).encode() if isinstance(body, dict | list) else body
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def refused(self) -> bool:
        if self.headers.get("Authorization") == f"Bearer {TOKEN}":
            return False
        self.answer(401, {"error": "Invalid username or password."})
        return True

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = unquote(urlsplit(self.path).path)
        if self.refused():
            return
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo_id = f"{asked.get('organization', 'someone')}/{asked['name']}"
            self.server.repositories.setdefault(repo_id, {})
            if asked.get("visibility") == "private":
                self.server.private.add(repo_id)
            self.answer(200, {"url": f"{self.server.endpoint}/{repo_id}"})
        elif path == "/api/validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
        elif path.endswith("/preupload/main"):
            files = json.loads(body)["files"]
            self.answer(200, {"files": [{"path": f["path"], "uploadMode": upload_mode(f["path"]), "shouldIgnore": False}
                                        for f in files]})  # fmt: skip
        elif path.endswith("/info/lfs/objects/batch"):
            objects = [
                {
                    "oid": o["oid"],
                    "size": o["size"],
                    "actions": {"upload": {"href": f"{self.server.endpoint}/put/{o['oid']}"}},
                }
                for o in json.loads(body)["objects"]
            ]
            self.answer(200, {"transfer": "basic", "objects": objects})
        elif path.endswith("/commit/main"):
            repo_id = path.removeprefix("/api/models/").removesuffix("/commit/main")
            self.commit(self.server.repositories[repo_id], [json.loads(line) for line in body.splitlines()])
            self.answer(200, {"commitUrl": f"{self.server.endpoint}/{repo_id}/commit/{COMMIT}", "commitOid": COMMIT})
        else:
            self.answer(404, {"error": path})

    def commit(self, repository: dict[str, bytes], lines: list[dict]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                repository[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.server.uploaded_as_objects.append(value["path"])
                repository[value["path"]] = self.server.objects[value["oid"]]

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        oid = self.path.removeprefix("/put/")
        assert hashlib.sha256(content).hexdigest() == oid
        self.server.objects[oid] = content
        self.answer(200)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if self.refused():
            return
        for named, files in self.server.revisions.items():
            repo_id, _, revision = named.partition("@")
            if path == f"/api/models/{repo_id}/revision/{revision}":
                siblings = [{"rfilename": name, "size": len(content)} for name, content in files.items()]
                self.answer(200, {"id": repo_id, "sha": OTHER_COMMIT, "siblings": siblings})
                return
            if path == f"/api/models/{repo_id}/tree/{OTHER_COMMIT}":
                self.answer(200, [entry(name, content) for name, content in files.items()])
                return
            prefix = f"/{repo_id}/resolve/{OTHER_COMMIT}/"
            if path.startswith(prefix) and (content := files.get(path.removeprefix(prefix))) is not None:
                etag = f'"{hashlib.sha256(content).hexdigest()}"'
                self.answer(200, content, ETag=etag, X_Repo_Commit=OTHER_COMMIT)
                return
        for repo_id, files in self.server.repositories.items():
            if path == f"/api/models/{repo_id}/tree/{COMMIT}":
                self.answer(200, [entry(name, content) for name, content in files.items()])
                return
            if path.startswith(f"/api/models/{repo_id}"):
                siblings = [{"rfilename": name, "size": len(content)} for name, content in files.items()]
                self.answer(200, {"id": repo_id, "sha": COMMIT, "siblings": siblings})
                return
            name = path.removeprefix(f"/{repo_id}/resolve/").removeprefix("main/").removeprefix(f"{COMMIT}/")
            if name != path and (content := files.get(name)) is not None:
                self.server.fetched += [name] if self.command == "GET" else []
                etag = f'"{hashlib.sha256(content).hexdigest()}"'
                self.answer(200, content, ETag=etag, X_Repo_Commit=COMMIT)
                return
        self.answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")


def upload_mode(path: str) -> str:
    return "lfs" if path.endswith((".safetensors", ".pt")) else "regular"


def entry(name: str, content: bytes) -> dict:
    oid = hashlib.sha256(content).hexdigest()
    pointer = {"oid": oid, "size": len(content), "pointerSize": 128} if upload_mode(name) == "lfs" else None
    return {"type": "file", "path": name, "size": len(content), "oid": oid[:40]} | ({"lfs": pointer} if pointer else {})
