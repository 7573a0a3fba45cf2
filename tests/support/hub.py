"""A stand-in for the Hugging Face Hub: one process, in memory, and only the requests that the client sends here."""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "stand-in"
COMMIT = "0" * 40


class Hub(ThreadingHTTPServer):
    """Repositories by name, each a dict of files; a commit replaces files of the same names."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories, self.private, self.messages = {}, set(), []

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def answer(self, content=None, status=200, body=None, **headers):
        body = json.dumps(content).encode() if body is None else body
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self):
        sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        hub, path = self.server, self.path.partition("?")[0]
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer({"error": "Invalid username or password."}, 401)
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            wanted = json.loads(sent)
            name = f"{wanted['organization']}/{wanted['name']}" if wanted.get("organization") else wanted["name"]
            status = 409 if name in hub.repositories else 200
            hub.repositories.setdefault(name, {})
            hub.private |= {name} if wanted.get("private") or wanted.get("visibility") == "private" else set()
            return self.answer({"url": f"{hub.address}/{name}"}, status)
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", path):
            files = [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(sent)["files"]]
            return self.answer({"files": files})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            for line in map(json.loads, sent.splitlines()):
                if line["key"] == "header":
                    hub.messages.append(line["value"]["summary"])
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    hub.repositories[found[1]][line["value"]["path"]] = content
            return self.answer({"commitUrl": f"{hub.address}/{found[1]}/commit/{COMMIT}", "commitOid": COMMIT})
        return self.answer({"error": f"not here: {path}"}, 404)

    def do_GET(self):
        hub, path = self.server, self.path.partition("?")[0]
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/main)?", path):
            files = [{"rfilename": name} for name in hub.repositories.get(found[1], ())]
            return self.answer({"id": found[1], "sha": COMMIT, "siblings": files, "private": False, "tags": []})
        if found := re.fullmatch(rf"/api/models/([^/]+/[^/]+)/tree/{COMMIT}", path):
            files = hub.repositories[found[1]].items()
            return self.answer([{"type": "file", "path": k, "size": len(v), "oid": digest(v)} for k, v in files])
        if found := re.fullmatch(rf"/([^/]+/[^/]+)/resolve/(?:main|{COMMIT})/(.+)", path):
            body = hub.repositories[found[1]][found[2]]
            return self.answer(body=body, ETag=f'"{digest(body)}"', X_Repo_Commit=COMMIT)
        return self.answer({"error": f"not here: {path}"}, 404)

    do_HEAD = do_GET


def digest(content):
    return hashlib.sha256(content).hexdigest()


@contextmanager
def hub():
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
