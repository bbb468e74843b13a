"""A stand-in for the Hugging Face hub on the loopback address: what huggingface_hub's client asks of it, in memory."""

import base64
import hashlib
import json
import re
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

TOKEN = "hf_SecretOfTheTests0123456789"
INFO = re.compile(r"/api/models/([\w.-]+/[\w.-]+)(?:/revision/([^/]+))?")
LARGE = 4096  # bytes; larger files go by LFS


class Hub:
    """Models with their branches, each a list of commits: (id, files)."""

    def __init__(self) -> None:
        self.models: dict[str, dict] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.fail: dict[str, int] = {}  # part of a path -> status of its answers
        self.read_only = False

    def add(self, name: str, private: bool = True, files: dict[str, bytes] | None = None) -> None:
        self.models[name] = {"private": private, "branches": {}}
        self.commit(name, "main", {".gitattributes": b"* text\n", **(files or {})}, ())

    def commit(self, name: str, branch: str, added: dict[str, bytes], removed: object) -> str:
        branches = self.models[name]["branches"]
        before = self.files(name, branch) if branch in branches else {}
        files = {path: data for path, data in {**before, **added}.items() if path not in removed}
        number = sum(map(len, branches.values()))
        branches.setdefault(branch, []).append((hashlib.sha1(f"{name} {number}".encode()).hexdigest(), files))
        return branches[branch][-1][0]

    def find(self, name: str, revision: str = "main") -> tuple[str, dict[str, bytes]] | None:
        branches = self.models[name]["branches"]
        if revision in branches:
            return branches[revision][-1]
        return next((one for commits in branches.values() for one in commits if one[0] == revision), None)

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        found = self.find(name, revision)
        assert found is not None
        return found[1]


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, body: object = None, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def refuse(self, status: int, code: str = "") -> None:
        # A careless server: it repeats what it was sent.
        said = f"no: {self.headers.get('Authorization')}"
        self.answer(status, {"error": said}, X_Error_Code=code, X_Error_Message=said, X_HF_Warning=f"a; {said}")

    def do(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            while size := int(self.rfile.readline(), 16):
                self.body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path))
        for part, status in self.hub.fail.items():
            if part in path:
                return self.refuse(status)
        if self.headers.get("Authorization") not in (None, f"Bearer {TOKEN}"):
            return self.refuse(401)
        if path.startswith("/lfs/"):  # a signed address
            self.hub.objects[path.removeprefix("/lfs/")] = self.body
            return self.answer(200)
        if self.headers.get("Authorization") is None:
            return self.refuse(401, "RepoNotFound")
        return self.signed_in(path)

    do_GET = do_HEAD = do_POST = do_PUT = do  # noqa: N815 - names of http.server

    def signed_in(self, path: str) -> None:
        if path == "/api/whoami-v2":
            return self.answer(200, {"name": "someone", "type": "user", "auth": {}})
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if path == "/api/repos/create":
            asked = json.loads(self.body)
            name = f"{asked.get('organization') or 'someone'}/{asked['name']}"
            if not name.startswith("someone/") or self.hub.read_only:
                return self.refuse(403)
            self.hub.add(name, asked.get("visibility") != "public" and asked.get("private") is not False)
            return self.answer(200, {"url": f"http://{self.headers['Host']}/{name}"})
        found = re.match(r"(?:/api/models)?/([\w.-]+/[\w-]+)", path)
        if found is None or found[1] not in self.hub.models:
            return self.refuse(404, "RepoNotFound")
        return self.of_model(found[1], path)

    def of_model(self, name: str, path: str) -> None:
        if found := INFO.fullmatch(path):
            held = self.hub.find(name, found[2] or "main")
            if held is None:
                return self.refuse(404, "RevisionNotFound")
            siblings = [{"rfilename": file} for file in held[1]]
            private = self.hub.models[name]["private"]
            return self.answer(200, {"id": name, "sha": held[0], "private": private, "siblings": siblings})
        if found := re.search(r"/branch/(.+)$", path):
            if found[1] in self.hub.models[name]["branches"]:
                return self.refuse(409)
            self.hub.commit(name, found[1], self.hub.files(name), ())
            return self.answer(200)
        if found := re.search(r"/tree/([^/]+)$", path):
            return self.answer(200, [entry(file, data) for file, data in self.hub.files(name, found[1]).items()])
        if found := re.search(r"/resolve/([^/]+)/(.+)$", path):
            held = self.hub.find(name, found[1])
            if held is None or found[2] not in held[1]:
                return self.refuse(404, "EntryNotFound" if held else "RevisionNotFound")
            data = held[1][found[2]]
            return self.answer(200, data, ETag=f'"{hashlib.sha1(data).hexdigest()}"', X_Repo_Commit=held[0])
        if "/preupload/" in path:
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["size"] > LARGE else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(self.body)["files"]
            ]
            return self.answer(200, {"files": modes})
        if path.endswith("/info/lfs/objects/batch"):
            host = f"http://{self.headers['Host']}/lfs/"
            objects = [
                {**one, "actions": {"upload": {"href": f"{host}{one['oid']}?signature=secret", "header": {}}}}
                for one in json.loads(self.body)["objects"]
            ]
            return self.answer(200, {"objects": objects, "transfer": "basic"})
        if found := re.search(r"/commit/(.+)$", path):
            return self.of_commit(name, found[1])
        return self.refuse(404)

    def of_commit(self, name: str, branch: str) -> None:
        lines = [json.loads(line) for line in self.body.splitlines() if line]
        values = [(line["key"], line["value"]) for line in lines]
        parent = values[0][1].get("parentCommit")
        if self.hub.read_only:
            return self.refuse(403)
        if parent is not None and parent != self.hub.find(name, branch)[0]:
            return self.refuse(412)
        added = {value["path"]: base64.b64decode(value["content"]) for key, value in values if key == "file"}
        added |= {value["path"]: self.hub.objects[value["oid"]] for key, value in values if key == "lfsFile"}
        removed = {value["path"] for key, value in values if key == "deletedFile"}
        commit = self.hub.commit(name, branch, added, removed)
        url = f"http://{self.headers['Host']}/{name}/commit/{commit}"
        return self.answer(200, {"commitUrl": url, "commitOid": commit, "pullRequestUrl": None})


def entry(file: str, data: bytes) -> dict:
    return {"type": "file", "path": file, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}


@contextmanager
def serving(hub: Hub):
    """Serve a hub, and yield its address."""
    handler = type("Bound", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def write_token(folder: Path) -> Path:
    """Write the file that `hf auth login` writes."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "token").write_text(TOKEN)
    return folder / "token"
