"""A stand-in for a Label Studio server: its API as far as it is used, and people who label there."""

import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

TOKEN, PERSONAL = "0123456789abcdef", "head.body.signature"


class Studio:
    """What the server keeps; it is started and stopped by :meth:`serve`.

    Attributes:
        requests: What came in: method and path of each.
        mishaps: What is done to the requests to come, one each: ``None``, a status to answer with, ``"drop"`` to end
            the connection, ``"hang"`` to do so once ``released`` is set, or ``"late"`` to do as told and then end it.
    """

    def __init__(self):
        self.projects, self.tasks = {}, {}
        self.requests, self.mishaps, self.access = [], [], {"first"}
        self.numbers = iter(range(1, 10**6))
        self.port, self.released = 0, threading.Event()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    @contextmanager
    def serve(self):
        server = ThreadingHTTPServer(("127.0.0.1", self.port), type("Handler", (_Handler,), {"studio": self}))
        self.port = server.server_port
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            thread.join()
            server.server_close()

    def submit(self, task, result, **more):
        number = next(self.numbers)
        annotation = {"id": number, "result": result, "was_cancelled": False, "updated_at": f"2026-01-01T{number:06}"}
        self.tasks[task]["annotations"].append({**annotation, "lead_time": 2.5, "completed_by": {"id": 1}, **more})

    def answer(self, method, path, query, content):
        """Return a status and what is answered."""
        if path == "/api/projects/":
            if method == "POST":
                number = next(self.numbers)
                self.projects[number] = {"id": number, **content}
                return 201, self.projects[number]
            return self.page(self.projects.values(), query, "results", "count")
        if found := re.fullmatch(r"/api/projects/(\d+)/", path):
            project = self.projects.get(int(found[1]))
            return (404, {"detail": "Not found."}) if project is None else (200, project)
        if found := re.fullmatch(r"/api/projects/(\d+)/import", path):
            made = []
            for task in content:
                number = next(self.numbers)
                self.tasks[number] = {"id": number, "project": int(found[1]), "annotations": [], **task}
                made.append(number)
            return 201, {"task_count": len(made), "task_ids": made}
        if path == "/api/tasks/":
            tasks = [task for task in self.tasks.values() if str(task["project"]) == query["project"]]
            return self.page(tasks, query, "tasks", "total")
        if found := re.fullmatch(r"/api/tasks/(\d+)/", path):
            task = self.tasks.get(int(found[1]))
            return (404, {"detail": "Not found."}) if task is None else (200, task)
        return 404, {"detail": "Not found."}

    def page(self, items, query, name, total):
        items, first = list(items), (int(query["page"]) - 1) * int(query["page_size"])
        shown = items[first : first + int(query["page_size"])]
        if first and not shown:
            return 404, {"detail": "Invalid page."}
        return 200, {name: shown, total: len(items)}


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        studio, address = self.studio, urlsplit(self.path)
        content = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "null")
        studio.requests.append((self.command, address.path))
        mishap = studio.mishaps.pop(0) if studio.mishaps else None
        if mishap == "hang":
            studio.released.wait()
        if mishap in ("drop", "hang"):
            return
        authorisation = self.headers.get("Authorization", "")
        if isinstance(mishap, int):
            status, answer = mishap, {"detail": "a mishap"}
        elif address.path == "/api/token/refresh":
            access = f"access {len(studio.requests)}"
            studio.access.add(access)
            status, answer = (200, {"access": access}) if content == {"refresh": PERSONAL} else (401, {})
        elif authorisation != f"Token {TOKEN}" and authorisation.removeprefix("Bearer ") not in studio.access:
            status, answer = 401, {"detail": "Invalid token."}
        else:
            query = {name: values[0] for name, values in parse_qs(address.query).items()}
            status, answer = studio.answer(self.command, address.path, query, content)
        if mishap == "late":
            return
        text = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_POST = do_GET

    def log_message(self, *_):
        pass
