"""Exchange with Label Studio over its API: requests become brush tasks, and submitted annotations become answers."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from al_seg_env.datasets.segmentation_data import IGNORE_LABEL, SegmentationData, palette_of
from al_seg_env.labelling.brush import IMAGE, LABELS, MODEL_VERSION, brush_results, decode_brush, label_config
from al_seg_env.labelling.label_folder import file_name
from al_seg_env.labelling.oracles import LabelsPending, PeopleOracle
from al_seg_env.labelling.request import Answer, Context, Request
from al_seg_env.regions import Box
from al_seg_env.storage import read_json, write_json
from al_seg_env.storage.validation import check
from al_seg_env.types import Size

URL_VARIABLE, TOKEN_VARIABLE = "LABEL_STUDIO_URL", "LABEL_STUDIO_API_KEY"
DEFAULT_URL = "http://localhost:8080"
PROJECT_FILE = "label-studio.json"
TIMEOUT_SECONDS = 60.0
RETRY_SECONDS = (0.5, 1.0, 2.0, 4.0)
"""Seconds to wait before each further attempt."""
PAGE_SIZE, SENT_AT_ONCE = 100, 20
MAX_BYTES = 2**28
"""Most bytes of a response of the server."""
TITLE_LENGTHS = (3, 50)
"""Least and greatest length of a project's title in Label Studio."""
_TASK = "al_seg_env"  # key in a task's data that identifies the task's region and pixels


class NoAnswer(ConnectionError):
    """Label Studio can't be reached, or responds with an error. Nothing is lost: try again later."""


class LabelStudioOracle(PeopleOracle):
    """Sends requests to Label Studio as tasks, and reads the annotations that people submit there.

    A task shows a region outlined in its surroundings, with the network's prediction as brush labels to be corrected.
    Labels outside the outline are ignored, and where two labels overlap, the later one counts. A blank annotation is an
    answer, too, which labels nothing. A skipped task keeps waiting, and a deleted task is sent again.

    Tasks are identified by their region and pixels, so none is sent twice, whichever side restarts. Answers are kept in
    ``folder/answers``, at the originals' resolution. Later changes to an annotation are not read.

    Args:
        data: The images.
        folder: Folder of the answers, and of the project's number.
        url: Address of the server, such as ``"http://localhost:8080"``.
        token: A user's access token, of either kind.
        project: Number of the project, or its title. If no project has this title and these classes, it is created.

    Raises:
        ImportError: If httpx is not installed.
        ValueError: If an argument is malformed, or the folder holds labels of other images, sizes or classes.
    """

    def __init__(
        self, data: SegmentationData, folder: str | Path, url: str, token: str, project: str | int = "al-seg-env"
    ) -> None:
        _httpx()
        check("url", url, url.startswith(("http://", "https://")), "the address of a server, such as " + DEFAULT_URL)
        check("token", "", bool(token.strip()), "an access token of Label Studio (Account & Settings)")
        if isinstance(project, str):
            least, most = TITLE_LENGTHS
            check(
                "project", project, least <= len(project) <= most, f"a number, or a title of {least} to {most} letters"
            )
        super().__init__(data, folder)
        self.url, self.token, self.project = url.rstrip("/"), token.strip(), project
        self._tasks: dict[str, list[int]] = {}  # numbers of the tasks, by region and pixels
        self._shown: dict[Box, tuple[str, Size, Box]] = {}  # a region's task, its size, and the region in it

    @classmethod
    def from_environment(cls, data: SegmentationData, folder: Path, url: str | None = None) -> LabelStudioOracle:
        """Return the oracle of a labelling session, whose project has the name of the session's folder.

        The environment variable ``LABEL_STUDIO_API_KEY`` is the token.

        Args:
            data: The images.
            folder: Folder of the answers.
            url: Address of the server; the environment variable ``LABEL_STUDIO_URL`` if omitted.

        Raises:
            ValueError: If there is no token.
        """
        token = os.environ.get(TOKEN_VARIABLE, "")
        if not token:
            raise ValueError(
                f"the environment variable {TOKEN_VARIABLE} is not set; expected an access token: copy it in Label "
                "Studio from Account & Settings"
            )
        title = f"al-seg-env: {folder.resolve().parent.name}"[: TITLE_LENGTHS[1]]
        return cls(data, folder, url or os.environ.get(URL_VARIABLE, DEFAULT_URL), token, title)

    def exchange(self, requests: Sequence[Request]) -> None:
        """Read the submitted annotations, and create tasks for the requests that are still missing.

        Raises:
            LabelsPending: If any request is still missing.
            NoAnswer: If the server is stopped, or fails repeatedly.
            ValueError: If the token is refused, the project is gone or has other classes, or an annotation can't be
                used. The other answers are kept.
        """
        with _connected(self.url, self.token) as server:
            project = self._project_number(server)
            skipped = self._take_in(server, project, requests)
            missing = self.missing(requests)
            if missing:
                _again(partial(self._send, server, project, missing), partial(self._list, server, project))
        if missing:
            page = f"{self.url}/projects/{project}/data"
            note = f" ({skipped} of them were skipped: submit these, blank if nothing can be told)" if skipped else ""
            raise LabelsPending(
                [f"{page}?task={self._tasks[self._of(request)[0]][0]}" for request in missing],
                f"label and submit them in Label Studio, {page}{note}",
            )

    def _of(self, request: Request) -> tuple[str, Size, Box]:
        """Return the identity of a request's task, the size of its picture, and the region's box in the picture."""
        if request.region not in self._shown:
            context = request.context()
            digest = hashlib.blake2b(repr((context.box[1:], context.pixels.shape)).encode(), digest_size=8)
            digest.update(np.ascontiguousarray(context.pixels).tobytes())
            name = file_name(self.data, request.region).removesuffix(".png")
            self._shown[request.region] = f"{name} {digest.hexdigest()}", _size(context), context.box
        return self._shown[request.region]

    def _project_number(self, server: _Server) -> int:
        """Return the number of the project, created if necessary, after checking that its labels are the classes."""
        path = self.folder / PROJECT_FILE
        number = self.project if isinstance(self.project, int) else None
        if number is None and path.exists():
            known = read_json(path, "expected the project of the tasks")
            try:
                number = int(known["project"]) if known["url"] == self.url else None
            except (LookupError, TypeError, ValueError) as error:
                raise ValueError(
                    f"{path} can't be used ({error}); remove it, and the project is found again"
                ) from error
        if number is None:
            number = _again(lambda: self._found(server) or self._made(server))
            write_json(path, {"url": self.url, "project": number})
            return number
        try:
            project = server.get(f"/api/projects/{number}/")
        except LookupError as error:
            raise ValueError(
                f"{self.url} has no project {number}; restore it from a copy of the server's data, or remove {path} to "
                "send all tasks that are not answered to a new one"
            ) from error
        if problem := self._wrong_labels(project):
            raise ValueError(
                f"the labelling interface of {self.url}/projects/{number} was changed: {problem}. Put this into its "
                f"settings, under Labeling Interface: {label_config(self.data.classes, palette_of(self.data))}"
            )
        return number

    def _found(self, server: _Server) -> int | None:
        """Return the number of the first project with this title and these classes."""
        for project in server.pages("/api/projects/", "results", "count", {}):
            if project.get("title") == self.project and not self._wrong_labels(project):
                return int(project["id"])
        return None

    def _made(self, server: _Server) -> int:
        config = label_config(self.data.classes, palette_of(self.data))
        content = {"title": self.project, "label_config": config, "show_collab_predictions": True}
        return int(server.post("/api/projects/", content)["id"])

    def _wrong_labels(self, project: Any) -> str | None:
        """Return how a project's labels differ from the classes; ``None`` if they don't."""
        try:
            tags = list(ElementTree.fromstring(project["label_config"]).iter())
        except (LookupError, TypeError, ElementTree.ParseError) as error:
            return f"it can't be read ({error})"
        if not any(tag.tag == "Image" and tag.get("name") == IMAGE and tag.get("value") == "$image" for tag in tags):
            return f'there is no <Image name="{IMAGE}" value="$image"/>'
        labels = [tag for tag in tags if tag.tag == "BrushLabels" and tag.get("name") == LABELS]
        if not labels or labels[0].get("toName") != IMAGE:
            return f'there is no <BrushLabels name="{LABELS}" toName="{IMAGE}">'
        names = [label.get("alias") or label.get("value") for label in labels[0].iter("Label")]
        if sorted(map(str, names)) != sorted(self.data.classes):
            return f"the labels are {names}, expected {list(self.data.classes)}"
        return None

    def _list(self, server: _Server, project: int) -> None:
        """List the project's tasks."""
        self._tasks = {}
        for task in server.pages("/api/tasks/", "tasks", "total", {"project": project, "fields": "task_only"}):
            data = task.get("data")
            if isinstance(data, dict) and isinstance(data.get(_TASK), str):
                self._tasks.setdefault(data[_TASK], []).append(int(task["id"]))

    def _take_in(self, server: _Server, project: int, requests: Sequence[Request]) -> int:
        """Store the annotations that were submitted for these requests, and return how many tasks were skipped."""
        if any(self._of(request)[0] not in self._tasks for request in requests):
            self._list(server, project)
        skipped, problems = 0, []
        for request in requests:
            key = self._of(request)[0]
            annotations: list[Any] = []
            for number in self._tasks.get(key, [])[:]:
                try:
                    task = server.get(f"/api/tasks/{number}/")
                except LookupError:
                    self._tasks[key].remove(number)
                    continue
                if not isinstance(task.get("data"), dict) or task["data"].get(_TASK) != key:
                    self._tasks[key].remove(number)  # someone changed the task
                    continue
                annotations += task.get("annotations") or []
            submitted = [each for each in annotations if not each.get("was_cancelled")]
            if submitted:
                newest = max(submitted, key=lambda each: (str(each.get("updated_at", "")), int(each["id"])))
                try:
                    self.labels.write(request.region, self._read(request, newest))
                except ValueError as error:
                    problems.append(f"{self.url}/tasks/{self._tasks[key][0]}: annotation {newest.get('id')} {error}")
            skipped += bool(annotations) and not submitted
        if problems:
            raise ValueError(f"{'; '.join(problems)}. Correct or delete these annotations in Label Studio")
        return skipped

    def _read(self, request: Request, annotation: Any) -> Answer:
        """Return an annotation's labels for the region."""
        _, size, box = self._of(request)
        mask = np.full(size, IGNORE_LABEL, np.uint8)
        try:
            for result in annotation["result"]:
                if result.get("type") != "brushlabels":
                    continue
                found = int(result["original_height"]), int(result["original_width"])
                if found != size:
                    raise ValueError(
                        f"is of an image of {found[0]} x {found[1]} pixels, expected {size[0]} x {size[1]}"
                    )
                (name,) = result["value"]["brushlabels"]
                if name not in request.classes:
                    raise ValueError(f"has the label {name!r}, expected one of {list(request.classes)}")
                mask[decode_brush(result["value"]["rle"], size)] = request.classes.index(name)
        except (LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"can't be read ({type(error).__name__}: {error})") from error
        seconds, by = annotation.get("lead_time"), annotation.get("completed_by")
        if isinstance(by, dict):
            by = by.get("email") or by.get("id")
        timed = isinstance(seconds, int | float) and np.isfinite(seconds) and seconds >= 0
        return Answer(
            box.crop(mask).copy(),
            seconds=float(seconds) if timed else None,
            by=None if by is None else str(by),
        )

    def _send(self, server: _Server, project: int, requests: Sequence[Request]) -> None:
        """Create a task for each request that has none."""
        unsent = [request for request in requests if not self._tasks.get(self._of(request)[0])]
        self.labels.bind([request.region for request in unsent])
        for first in range(0, len(unsent), SENT_AT_ONCE):
            sent = unsent[first : first + SENT_AT_ONCE]
            tasks = [self._task(request) for request in sent]
            made = server.post(f"/api/projects/{project}/import", tasks, return_task_ids="true")
            numbers = made.get("task_ids") or []
            if len(numbers) != len(sent):
                raise NoAnswer(f"{self.url} did not say which tasks it made; expected {len(sent)} numbers")
            for request, number in zip(sent, numbers, strict=True):
                self._tasks.setdefault(self._of(request)[0], []).append(int(number))

    def _task(self, request: Request) -> dict[str, Any]:
        key, size, box = self._of(request)
        content = io.BytesIO()
        Image.fromarray(request.context().pixels).save(content, format="jpeg", quality=95)
        picture = "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()
        task: dict[str, Any] = {"data": {"image": picture, "name": request.name, _TASK: key}}
        if (predicted := request.prelabel()) is not None:
            mask = np.full(size, IGNORE_LABEL, np.uint8)
            box.crop(mask)[...] = predicted
            task["predictions"] = [
                {"model_version": MODEL_VERSION, "result": brush_results(mask, request.classes)},
            ]
        return task


def _size(context: Context) -> Size:
    return context.pixels.shape[0], context.pixels.shape[1]


class _Server:
    """Label Studio's API."""

    def __init__(self, client: Any, url: str, token: str) -> None:
        self.client, self.url, self.token = client, url, token
        self._access: str | None = None  # access token, valid for minutes, for which a personal token is exchanged

    def get(self, path: str, **query: Any) -> Any:
        """Return the content at a path, and try again if that fails."""
        return _again(lambda: self._call("GET", path, query))

    def post(self, path: str, content: Any, **query: Any) -> Any:
        """Send content only once, because it may have arrived even if the request fails."""
        return self._call("POST", path, query, content)

    def pages(self, path: str, items: str, total: str, query: dict[str, Any]) -> list[Any]:
        """Return all items of a paginated list, and start again if the list changes meanwhile."""
        while True:
            found: dict[int, Any] = {}
            counts = set()
            for page in range(1, 10**6):
                try:
                    content = self.get(path, **query, page=page, page_size=PAGE_SIZE)
                except LookupError:  # the page does not exist
                    break
                counts.add(int(content[total]))
                found |= {int(item["id"]): item for item in content[items]}
                if not content[items] or len(found) >= content[total]:
                    break
            if len(counts) <= 1:
                return list(found.values())

    def _call(self, method: str, path: str, query: dict[str, Any], content: Any = None) -> Any:
        personal = self.token.count(".") == 2
        if personal and self._access is None and path != "/api/token/refresh":
            self._access = self._call("POST", "/api/token/refresh", {}, {"refresh": self.token})["access"]
        authorisation = f"Bearer {self._access}" if personal else f"Token {self.token}"
        status, text = self._exchange(method, path, query, content, authorisation)
        if status == 401 and personal and self._access is not None:
            self._access = self._call("POST", "/api/token/refresh", {}, {"refresh": self.token})["access"]
            status, text = self._exchange(method, path, query, content, f"Bearer {self._access}")
        shown = text[:300].decode("utf-8", "replace")
        if status in (401, 403):
            raise ValueError(
                f"{self.url} refuses the token ({status}: {shown}); copy it again from Account & Settings, and see "
                "that its kind is allowed in the organization's settings"
            )
        if status == 404:
            raise LookupError(f"{self.url}{path} does not exist ({shown})")
        if status >= 500 or status == 429:
            raise NoAnswer(f"{self.url} answers {status} ({shown}); see its log, then try again: nothing is lost")
        if status not in (200, 201):
            raise ValueError(f"{self.url}{path} answers {status}: {shown}; expected Label Studio's API")
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{self.url}{path} answers no JSON ({shown}); expected Label Studio's API") from error

    def _exchange(
        self, method: str, path: str, query: dict[str, Any], content: Any, authorisation: str
    ) -> tuple[int, bytes]:
        """Return the status and the content of a response, or raise a ValueError if it is too long."""
        httpx = _httpx()
        text = bytearray()
        try:
            with self.client.stream(
                method, self.url + path, params=query, json=content, headers={"Authorization": authorisation}
            ) as response:
                for part in response.iter_bytes():
                    text += part
                    if len(text) > MAX_BYTES:
                        raise ValueError(f"{self.url}{path} answers more than {MAX_BYTES} bytes")
                return response.status_code, bytes(text)
        except httpx.InvalidURL as error:
            raise ValueError(f"url is {self.url!r} ({error}); expected the address of a server") from error
        except httpx.HTTPError as error:
            raise NoAnswer(
                f"{self.url} does not answer ({type(error).__name__}: {error}); start Label Studio, or correct its "
                "address, then try again: nothing is lost"
            ) from error


@contextmanager
def _connected(url: str, token: str) -> Iterator[_Server]:
    with _httpx().Client(timeout=TIMEOUT_SECONDS) as client:
        yield _Server(client, url, token)


def _again(action: Callable[[], Any], between: Callable[[], Any] = lambda: None) -> Any:
    """Return the result of an action. If the server fails, wait and try again, once after each pause."""
    for seconds in RETRY_SECONDS:
        try:
            return action()
        except NoAnswer:
            time.sleep(seconds)
            between()  # after sending, check what has arrived
    return action()


def _httpx() -> Any:
    try:
        import httpx
    except ImportError as error:
        raise ImportError('Label Studio needs httpx: pip install "al-seg-env[label-studio]"') from error
    return httpx
