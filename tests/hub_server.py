"""A hub of models on this machine: repositories in memory, over HTTP, as huggingface_hub asks for them."""

import base64
import contextlib
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MAIN = "1" * 40  # the name of any commit that is sent


class LocalHub:
    """`repos`: {OWNER/NAME: {revision: {path: bytes}}}. `token`: who has it may write. `asked`: paths, in order."""

    def __init__(self, token="hf_right"):
        self.repos, self.private, self.token, self.asked, self.fails_with = {}, set(), token, [], None

    def add(self, repo: str, files: dict, revision: str = "main") -> None:
        self.repos.setdefault(repo, {})[revision] = dict(files)

    def commit_of(self, repo: str, revision: str) -> str | None:
        """A revision's commit; the name of a commit is one as well."""
        names = {name: hashlib.sha1(f"{repo}{name}".encode()).hexdigest() for name in self.repos[repo]}
        return next((commit for name, commit in names.items() if revision in (name, commit)), None)

    def files(self, repo: str, revision: str) -> dict:
        return next(
            files
            for name, files in self.repos[repo].items()
            if self.commit_of(repo, name) == self.commit_of(repo, revision)
        )


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, code, content=b"", **headers):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def handle_one(self):
        hub, path = self.server.hub, self.path.split("?")[0]
        hub.asked.append(f"{self.command} {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if hub.fails_with:
            return self.answer(hub.fails_with, {"error": "the hub is ill"})
        may_write = self.headers.get("Authorization") == f"Bearer {hub.token}"
        if self.command == "POST":
            if not may_write:
                return self.answer(401, {"error": "Invalid username or password."})
            return self.write(hub, path, body)
        found = re.fullmatch(r"/(?:api/models/)?([\w.-]+/[\w.-]+)(?:/(\w+)/([^/]+)(?:/(.*))?)?", path)
        repo, what, revision, name = found.groups() if found else (None, None, None, None)
        if repo not in hub.repos or (repo in hub.private and not may_write):
            return self.answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        commit = hub.commit_of(repo, revision or "main")
        if commit is None:
            return self.answer(404, {"error": "Invalid rev id"}, X_Error_Code="RevisionNotFound")
        files = hub.files(repo, commit)
        if what == "tree":
            known = ((k, len(v), hashlib.sha1(v).hexdigest()) for k, v in files.items())
            return self.answer(200, [{"type": "file", "path": k, "size": n, "oid": oid} for k, n, oid in known])
        if what == "resolve":
            if name not in files:
                return self.answer(404, b"", X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
            etag = hashlib.sha1(files[name]).hexdigest()
            return self.answer(200, files[name], ETag=f'"{etag}"', X_Repo_Commit=commit, Accept_Ranges="bytes")
        return self.answer(
            200,
            {"id": repo, "sha": commit, "private": repo in hub.private, "siblings": [{"rfilename": k} for k in files]},
        )

    def write(self, hub, path, body):
        """What a commit takes: the repository, the card's head, how files come, the files."""
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            if repo in hub.repos:
                return self.answer(409, {"error": "it is there", "url": f"{self.server.address}/{repo}"})
            hub.repos[repo] = {"main": {}}
            if asked.get("private") or asked.get("visibility") == "private":
                hub.private.add(repo)
            return self.answer(200, {"url": f"{self.server.address}/{repo}"})
        if path == "/api/validate-yaml":  # the head of a card
            return self.answer(200, {"errors": [], "warnings": []})
        repo, what = re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)/(\w+)/main", path).groups()
        if what == "preupload":
            asked = json.loads(body)["files"]
            return self.answer(200, {"files": [f | {"uploadMode": "regular", "shouldIgnore": False} for f in asked]})
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                value = line["value"]
                hub.repos[repo]["main"][value["path"]] = base64.b64decode(value["content"])
        return self.answer(200, {"commitUrl": f"{self.server.address}/{repo}/commit/{MAIN}", "commitOid": MAIN})

    do_GET = do_HEAD = do_POST = handle_one


@contextlib.contextmanager
def serving(hub: LocalHub):
    """The address at which a hub answers."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.hub, server.address = hub, f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server.address
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
