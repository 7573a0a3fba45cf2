"""The server of the labelling page: a few fixed files and a small JSON API. It opens no path given by a request."""

from __future__ import annotations

import hmac
import ipaddress
import json
import logging
import math
import secrets
import socket
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from al_seg_env.labelling.page.desk import Desk, Task, TaskTakenError, TaskUnknownError
from al_seg_env.labelling.request import Answer
from al_seg_env.storage.validation import check, check_int
from al_seg_env.types import IntArray, Size, UInt8Array

HOST, PORT = "127.0.0.1", 8765
EVERYWHERE = ("", "0.0.0.0", "::")
LEAST_TOKEN = 16
"""Minimum number of characters of a token."""
STATIC = Path(__file__).parent / "static"
FILES = {
    "/": ("page.html", "text/html"),
    "/page.js": ("page.js", "text/javascript"),
    "/page.css": ("page.css", "text/css"),
}
SMALL_BODY = 4096
"""Most bytes of a request's body in addition to its mask."""
MAX_NAME, MAX_CLICKS, MAX_SECONDS = 100, 10**9, 1e9
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}

logger = logging.getLogger("al_seg_env")


def make_app(desk: Desk, token: str | None = None, hosts: tuple[str, ...] = ("127.0.0.1", "localhost", "::1")) -> Any:
    """Return the page as an ASGI application.

    Args:
        desk: Distributes the requests.
        token: Secret that all requests need, as ``/?token=...``, which sets a cookie, or as ``Authorization: Bearer
            ...``. None is needed if omitted.
        hosts: Host names that requests may use if there is no token, so that other sites' pages can't reach the server
            through a host name of their own (DNS rebinding).
    """

    def page_file(name: str, kind: str) -> Callable[[Request], Awaitable[Response]]:
        content = (STATIC / name).read_bytes()

        async def show(request: Request) -> Response:
            return Response(content, media_type=kind)

        return show

    def session(request: Request) -> Response:
        return JSONResponse({"classes": desk.classes(), "progress": desk.progress()})

    async def next_task(request: Request) -> Response:
        person = (await _body(request, SMALL_BODY)).get("person", "")

        def found() -> Response:
            task = desk.next(person)
            return JSONResponse(
                {"task": None if task is None else _described(task, desk.draft(task.id)), "progress": desk.progress()}
            )

        return await run_in_threadpool(found)

    def context(request: Request) -> Response:
        return Response(desk.task(request.path_params["id"]).context, media_type="image/jpeg")

    def superpixels(request: Request) -> Response:
        return JSONResponse({"runs": runs_of(desk.superpixels(request.path_params["id"]))})

    def with_work(use: Callable[[str, str, Answer], None]) -> Callable[[Request], Awaitable[Response]]:
        async def handle(request: Request) -> Response:
            name = request.path_params["id"]
            size = desk.task(name).request.region.size
            body = await _body(request, SMALL_BODY + 8 * size[0] * size[1])

            def done() -> Response:
                use(body.get("person", ""), name, _work(body, size))
                return JSONResponse({"progress": desk.progress()})

            return await run_in_threadpool(done)

        return handle

    def without_work(use: Callable[[str, str], None]) -> Callable[[Request], Awaitable[Response]]:
        async def handle(request: Request) -> Response:
            person = (await _body(request, SMALL_BODY)).get("person", "")
            await run_in_threadpool(use, person, request.path_params["id"])
            return JSONResponse({"progress": desk.progress()})

        return handle

    routes = [Route(path, page_file(*file)) for path, file in FILES.items()]
    routes += [
        Route("/api/session", session),
        Route("/api/next", next_task, methods=["POST"]),
        Route("/api/tasks/{id}/context.jpg", context),
        Route("/api/tasks/{id}/superpixels", superpixels),
        Route("/api/tasks/{id}/draft", with_work(desk.keep), methods=["POST"]),
        Route("/api/tasks/{id}/answer", with_work(desk.submit), methods=["POST"]),
        Route("/api/tasks/{id}/hold", without_work(desk.hold), methods=["POST"]),
        Route("/api/tasks/{id}/skip", without_work(desk.skip), methods=["POST"]),
    ]
    statuses = {TaskUnknownError: 404, TaskTakenError: 409, _TooLargeError: 413, ValueError: 400, ImportError: 501}
    handlers: dict[Any, Any] = {kind: _refusal(status) for kind, status in statuses.items()}
    handlers[OSError] = _refusal(507)  # such as a full disk
    return _Guard(Starlette(routes=routes, exception_handlers=handlers), token, hosts)


class PageServer:
    """Serves the page in its own thread while its ``with`` block runs.

    Args:
        desk: Distributes the requests.
        host: Address to listen on. By default, only this machine can reach it.
        port: Port to listen on; 0 for any free one.
        token: Secret that all requests need. If other machines can reach the page, one is generated if omitted.

    Attributes:
        address: Address to open in a browser.

    Raises:
        ValueError: If the token is too short, or the port is not a valid port number.
        OSError: If the port is in use.
    """

    def __init__(self, desk: Desk, host: str = HOST, port: int = PORT, token: str | None = None) -> None:
        if token is None and not _is_loopback(host):
            token = secrets.token_urlsafe(24)
        # The error message must not contain the token.
        if token is not None:
            fits = len(token) >= LEAST_TOKEN and token.isascii() and token.isprintable()
            check("token", "*" * len(token), fits, f"at least {LEAST_TOKEN} characters of ASCII")
        self._socket = _listen(host, check_int("port", port, 0, 65535))
        port = self._socket.getsockname()[1]
        shown = socket.gethostname() if host in EVERYWHERE else f"[{host}]" if ":" in host else host
        self.address = f"http://{shown}:{port}/" + ("" if token is None else f"?token={quote(token, safe='')}")
        desk.where = self.address.partition("?")[0]  # messages end up in logs
        hosts = ("127.0.0.1", "localhost", "::1", host)
        config = uvicorn.Config(make_app(desk, token, hosts), access_log=False, log_level="warning", lifespan="off")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="labelling page", daemon=True
        )

    def __enter__(self) -> PageServer:
        """Start the server."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the server, after requests in progress have been stored."""
        self._server.should_exit = True
        self._thread.join(timeout=10)
        self._socket.close()


def runs_of(values: IntArray | UInt8Array) -> list[int]:
    """Return an array as run lengths, row by row: each value is followed by the number of its repetitions.

    >>> runs_of(np.array([[7, 7], [7, 0]]))
    [7, 3, 0, 1]
    """
    flat = np.asarray(values, np.int64).reshape(-1)
    starts = np.flatnonzero(np.diff(flat, prepend=flat[0] - 1))
    lengths = np.diff(starts, append=len(flat))
    runs: list[int] = np.stack([flat[starts], lengths], axis=1).reshape(-1).tolist()
    return runs


def mask_of(runs: Any, size: Size) -> UInt8Array:
    """Return the mask, ``(h, w)`` uint8, that run lengths describe.

    Raises:
        ValueError: If ``runs`` is not a list of integers, is of another size, or has values that are not labels.
    """
    height, width = size
    if not isinstance(runs, list) or len(runs) % 2 or len(runs) > 2 * height * width:
        raise ValueError("runs is not a list of labels and lengths")
    if not all(type(value) is int for value in runs):
        raise ValueError("runs has entries that are not integers")
    labels, lengths = runs[::2], runs[1::2]
    if any(not 0 <= label <= 255 for label in labels):
        raise ValueError("runs holds a label outside of 0 to 255")
    if any(length < 1 for length in lengths) or sum(lengths) != height * width:
        raise ValueError(f"runs is of another size than {height} x {width} pixels")
    return np.repeat(np.array(labels, np.uint8), lengths).reshape(size)


class _TooLargeError(ValueError):
    """A request's body is larger than any valid one."""


class _Guard:
    """Admits only requests with the token or, if there is no token, with one of the server's own host names."""

    def __init__(self, app: ASGIApp, token: str | None, hosts: tuple[str, ...]) -> None:
        self.app, self.token, self.hosts = app, token, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            return

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                extra = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *extra]}
            await send(message)

        response = self._refuse(Request(scope))
        await (self.app if response is None else response)(scope, receive, send_with_headers)

    def _refuse(self, request: Request) -> Response | None:
        if request.method == "POST" and request.headers.get("content-type") != "application/json":
            return _error(415, "the content type is not application/json")  # which another site's form can't send
        if self.token is None:
            name = urlsplit(f"//{request.headers.get('host', '')}").hostname
            return None if name in self.hosts else _error(403, "the server is not called by this name")
        # Cookies don't distinguish ports, so each page on this machine needs a different name.
        server = request.scope.get("server") or ("", 0)
        cookie = f"al_seg_env_{server[1]}"
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        if self._is_token(given if kind.lower() == "bearer" else request.cookies.get(cookie, "")):
            return None
        if request.url.path == "/" and self._is_token(request.query_params.get("token", "")):
            response = RedirectResponse("/", status_code=303)
            response.set_cookie(cookie, self.token, httponly=True, samesite="strict", max_age=30 * 86400)
            return response
        return _error(401, "the token is missing or wrong; open the address that al-seg-env label printed")

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), str(self.token).encode())


def _refusal(status: int) -> Callable[[Request, Exception], Response]:
    def refuse(request: Request, error: Exception) -> Response:
        if status == 507:
            logger.error("%s", error)
            return _error(status, f"it could not be stored ({error}); it is kept in the browser: make room, and wait")
        return _error(status, str(error))

    return refuse


def _error(status: int, message: str) -> Response:
    return JSONResponse({"error": message}, status_code=status)


async def _body(request: Request, limit: int) -> dict[str, Any]:
    """Return the JSON object in a request's body, which may have at most ``limit`` bytes."""
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > limit:
            raise _TooLargeError(f"more than {limit} bytes were sent")
    try:
        body = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the request is not JSON ({error})") from error
    if not isinstance(body, dict):
        raise ValueError("the request is not a JSON object")
    return body


def _work(body: dict[str, Any], size: Size) -> Answer:
    """Return the answer in a request's body."""
    given: list[Any] = [body.get(name) for name in ("seconds", "clicks", "by")]
    seconds, clicks, by = given
    if not (type(seconds) in (int, float) and math.isfinite(seconds) and 0 <= seconds <= MAX_SECONDS):
        raise ValueError("seconds is not a number of at least 0")
    if not (type(clicks) is int and 0 <= clicks <= MAX_CLICKS):
        raise ValueError("clicks is not a whole number of at least 0")
    if not (by is None or (isinstance(by, str) and len(by) <= MAX_NAME)):
        raise ValueError(f"by is not a name of at most {MAX_NAME} characters")
    return Answer(mask_of(body.get("runs"), size), seconds=round(float(seconds), 1), clicks=clicks, by=by or None)


def _described(task: Task, draft: Answer | None) -> dict[str, Any]:
    """Return the description of a region that is sent to the page."""
    height, width = task.request.region.size
    return {
        "id": task.id,
        "image": task.request.name,
        "height": height,
        "width": width,
        "top": task.box.top,
        "left": task.box.left,
        "context_size": list(task.context_size),
        "prelabel": None if task.prelabel is None else runs_of(task.prelabel),
        "draft": None if draft is None else runs_of(draft.mask),
        "seconds": 0.0 if draft is None or draft.seconds is None else draft.seconds,
        "clicks": 0 if draft is None or draft.clicks is None else draft.clicks,
    }


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _listen(host: str, port: int) -> socket.socket:
    """Return a listening socket, or raise an error that names the options."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, port))
            listening.listen()  # at once: until then, another process could bind the same port
        except BaseException:
            listening.close()
            raise
    except (OSError, OverflowError, UnicodeError) as error:
        raise OSError(
            f"the page can't listen on {host}, port {port} ({error}); choose others: --host, --port"
        ) from error
    return listening
