"""The labelling page's server: who gets what, what is kept, who gets in, and what is refused."""

import json

import numpy as np
import pytest
from fakes import numbered_data

from al_seg_env import Answer, LabelsPending
from al_seg_env.labelling.label_folder import LabelFolder
from al_seg_env.labelling.page.desk import LEASE_SECONDS, Desk
from al_seg_env.labelling.request import requests_of
from al_seg_env.regions import Box

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
from starlette.testclient import TestClient

from al_seg_env.labelling.page.server import PageServer, make_app, mask_of, runs_of

ANNA, BERT = "a" * 16, "b" * 16
BOXES = [Box(0, 0, 16, 0, 20), Box(1, 16, 32, 20, 40), Box(2, 0, 16, 20, 40)]
SIZE = (16, 20)
TOKEN = "correct horse battery staple"


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class Office:
    """A desk with three requests, a client of its page, and a clock."""

    def __init__(self, folder, **options):
        self.data, self.clock = numbered_data(4), Clock()
        self.desk = Desk(self.data, folder, self.clock)
        self.requests = requests_of(self.data, BOXES, predict=self.data.mask)
        self.client = TestClient(make_app(self.desk, **options), base_url="http://localhost")
        with pytest.raises(LabelsPending, match="3 regions|2 regions|1 region"):
            self.desk.answer(self.requests)

    def next(self, person):
        response = self.client.post("/api/next", json={"person": person})
        assert response.status_code == 200
        return response.json()["task"]

    def send(self, person, task, what, mask, /, **changes):
        body = {"person": person, "by": None, "seconds": 2.5, "clicks": 3, "runs": runs_of(mask), **changes}
        return self.client.post(f"/api/tasks/{task['id']}/{what}", json=body)


@pytest.fixture
def office(tmp_path):
    return Office(tmp_path)


def drawn(seed):
    return np.random.default_rng(seed).choice(np.array([0, 1, 2, 255], np.uint8), SIZE)


def test_what_is_painted_is_what_the_environment_gets(office, tmp_path):
    painted = []
    for seed in range(3):
        task = office.next(ANNA)
        assert (task["height"], task["width"], task["draft"]) == (*SIZE, None)
        painted.append(drawn(seed))
        assert office.send(ANNA, task, "answer", painted[-1], by="Anna").status_code == 200
    assert office.next(ANNA) is None
    answers = office.desk.answer(office.requests)
    for answer, mask in zip(answers, painted, strict=True):
        np.testing.assert_array_equal(answer.mask, mask)
        assert (answer.seconds, answer.clicks, answer.by) == (2.5, 3, "Anna")
    # It is where the folder oracle's answers are.
    folder = LabelFolder(tmp_path / "answers", office.data, manifest=tmp_path / "manifest.json")
    np.testing.assert_array_equal(folder.read(BOXES[1]).mask, painted[1])
    progress = office.client.get("/api/session").json()["progress"]
    counts = sum(np.bincount(mask[mask != 255], minlength=3) for mask in painted)
    assert progress["class_pixels"] == counts.tolist()
    assert (progress["labelled"], progress["waiting"]) == (3, 0)


def test_a_request_is_shown_with_surroundings_and_prediction(office):
    task = office.next(ANNA)
    np.testing.assert_array_equal(mask_of(task["prelabel"], SIZE), BOXES[0].crop(office.data.mask(0)))
    picture = office.client.get(f"/api/tasks/{task['id']}/context.jpg")
    assert picture.content == office.desk.task(task["id"]).context
    assert (task["top"], task["left"], task["context_size"]) == (0, 0, [32, 40])
    colours = office.client.get("/api/session").json()["classes"]
    assert [each["name"] for each in colours] == list(office.data.classes)


def test_people_get_different_regions_until_a_lease_ends(office):
    first, second = office.next(ANNA), office.next(BERT)
    assert first["id"] != second["id"]
    assert office.next(ANNA)["id"] == first["id"]
    assert office.next("c" * 16)["id"] not in (first["id"], second["id"])
    assert office.next("d" * 16) is None
    mask = drawn(0)
    assert office.send(ANNA, first, "draft", mask).status_code == 200
    office.clock.now += LEASE_SECONDS - 1
    assert office.client.post(f"/api/tasks/{second['id']}/hold", json={"person": BERT}).status_code == 200
    office.clock.now += 2
    # Anna was not heard of; whoever takes over goes on with what she painted.
    taken = office.next("d" * 16)
    assert taken["id"] == first["id"]
    np.testing.assert_array_equal(mask_of(taken["draft"], SIZE), mask)
    late = office.send(ANNA, first, "draft", drawn(1))
    assert late.status_code == 409
    assert "someone else has this region" in late.json()["error"]
    assert office.next(BERT)["id"] == second["id"]


def test_a_late_draft_does_not_hide_that_of_whoever_has_the_region(office, tmp_path):
    task = office.next(BERT)
    office.send(BERT, task, "draft", drawn(0))
    office.clock.now += LEASE_SECONDS + 1
    assert office.next(ANNA)["id"] == task["id"]
    assert office.send(BERT, task, "draft", drawn(1)).status_code == 409
    np.testing.assert_array_equal(mask_of(office.next(ANNA)["draft"], SIZE), drawn(1))  # she has painted nothing yet
    assert office.send(ANNA, task, "draft", drawn(2)).status_code == 200
    assert office.send(BERT, task, "draft", drawn(3)).status_code == 409
    for desk in (office, Office(tmp_path)):  # also after a restart
        np.testing.assert_array_equal(mask_of(desk.next(ANNA)["draft"], SIZE), drawn(2))
    kept = LabelFolder(tmp_path / "drafts" / BERT, office.data, manifest=tmp_path / "manifest.json")
    np.testing.assert_array_equal(kept.read(BOXES[0]).mask, drawn(3))
    office.clock.now += LEASE_SECONDS + 1
    assert office.send(BERT, task, "draft", drawn(4)).status_code == 200  # his again
    np.testing.assert_array_equal(mask_of(office.next(BERT)["draft"], SIZE), drawn(4))


def test_two_answers_to_one_region_are_both_kept(office, tmp_path):
    task = office.next(ANNA)
    office.clock.now += LEASE_SECONDS + 1
    assert office.next(BERT)["id"] == task["id"]
    assert office.send(BERT, task, "answer", drawn(0)).status_code == 200
    late = office.send(ANNA, task, "answer", drawn(1))
    assert late.status_code == 409
    kept = LabelFolder(tmp_path / "drafts" / ANNA, office.data, manifest=tmp_path / "manifest.json")
    np.testing.assert_array_equal(kept.read(BOXES[0]).mask, drawn(1))
    np.testing.assert_array_equal(office.desk.labels.read(BOXES[0]).mask, drawn(0))


def test_what_is_skipped_comes_last(office):
    first = office.next(ANNA)
    assert office.client.post(f"/api/tasks/{first['id']}/skip", json={"person": ANNA}).status_code == 200
    for seed in range(2):
        task = office.next(ANNA)
        assert task["id"] != first["id"]
        office.send(ANNA, task, "answer", drawn(seed))
    assert office.next(ANNA)["id"] == first["id"]


def test_a_restart_loses_nothing_and_goes_on(office, tmp_path):
    done, begun = office.next(ANNA), office.next(BERT)
    office.send(ANNA, done, "answer", drawn(0))
    office.send(BERT, begun, "draft", drawn(1), clicks=7)
    again = Office(tmp_path)
    task = again.next(BERT)
    assert task["id"] == begun["id"]
    np.testing.assert_array_equal(mask_of(task["draft"], SIZE), drawn(1))
    assert (task["clicks"], task["seconds"]) == (7, 2.5)
    assert again.desk.progress()["labelled"] == 1
    assert again.send(ANNA, done, "answer", drawn(2)).status_code == 404
    assert again.send(BERT, begun, "answer", drawn(3)).status_code == 200
    assert not list((tmp_path / "drafts").rglob("*.png"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"runs": [0, 319]}, "another size"),
        ({"runs": [0, 400]}, "another size"),
        ({"runs": [0, -1, 0, 321]}, "another size"),
        ({"runs": [3, 320]}, "label"),
        ({"runs": [256, 320]}, "label"),
        ({"runs": [True, 320]}, "integers"),
        ({"runs": [0.0, 320]}, "integers"),
        ({"runs": [0]}, "list of labels"),
        ({"runs": "0, 320"}, "list of labels"),
        ({"runs": None}, "list of labels"),
        ({"seconds": -1}, "seconds"),
        ({"seconds": None}, "seconds"),
        ({"clicks": 1.5}, "clicks"),
        ({"by": "n" * 101}, "by is not a name"),
        ({"person": "../../../etc"}, "person"),
        ({"person": None}, "person"),
    ],
)
@pytest.mark.parametrize("what", ["draft", "answer"])
def test_malformed_work_is_refused(office, tmp_path, what, changes, message):
    task = office.next(ANNA)
    response = office.send(ANNA, task, what, drawn(0), **changes)
    assert response.status_code == 400
    assert message in response.json()["error"]
    assert not list(tmp_path.rglob("*.png"))


def test_bodies_are_bounded(office):
    task = office.next(ANNA)
    path = f"/api/tasks/{task['id']}/answer"
    sent = {"content": b" " * (4097 + 8 * 320), "headers": {"content-type": "application/json"}}
    assert office.client.post(path, **sent).status_code == 413
    for content in (b"", b"[]", b"{", b"[" * 2000, b"\xff", b"1" * 4000 + b"1" * 400):
        response = office.client.post(path, content=content, headers={"content-type": "application/json"})
        assert response.status_code == 400, content[:20]
    assert office.client.post("/api/next", json={"person": "a" * 5000}).status_code == 413


@pytest.mark.parametrize(
    "path",
    [
        "/../manifest.json",
        "/%2e%2e/manifest.json",
        "/static/page.js",
        "/api/tasks/..%2f..%2fmanifest.json/context.jpg",
        "/api/tasks/%2e%2e/context.jpg",
        "/manifest.json",
        "//etc/passwd",
    ],
)
def test_no_file_but_the_page_is_served(office, path):
    response = office.client.get(path)
    assert response.status_code == 404
    assert b"al-seg-env labels" not in response.content


def test_only_those_with_the_token_get_in(tmp_path):
    office = Office(tmp_path, token=TOKEN)
    paths = ["/", "/page.js", "/page.css", "/api/session", "/api/tasks/x/context.jpg", "/nothing"]
    for path in paths:
        for wrong in ("", TOKEN[:-1], TOKEN + "x", "ü"):
            bearer = {"authorization": f"Bearer {wrong}".encode()}
            assert office.client.get(path, headers=bearer).status_code == 401
            assert office.client.get(path, params={"token": wrong}, follow_redirects=False).status_code == 401
    assert office.client.post("/api/next", json={"person": ANNA}).status_code == 401
    assert office.client.get("/api/session", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200
    opened = office.client.get("/", params={"token": TOKEN}, follow_redirects=False)
    assert (opened.status_code, opened.headers["location"]) == (303, "/")
    assert {"HttpOnly", "SameSite=strict"} <= set(opened.headers["set-cookie"].split("; "))
    assert office.next(ANNA) is not None  # by the cookie


def test_other_sites_pages_can_do_nothing(office):
    task = office.next(ANNA)
    body = json.dumps({"person": ANNA, "seconds": 1, "clicks": 1, "runs": [0, 320]})
    path = f"/api/tasks/{task['id']}/answer"
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        assert office.client.post(path, content=body, headers={"content-type": kind}).status_code == 415
    # A name that someone made to lead to this machine is not the server's.
    assert office.client.get("/api/session", headers={"host": "evil.example"}).status_code == 403
    policy = office.client.get("/").headers["content-security-policy"]
    assert "default-src 'self'" in policy


def test_a_full_disk_is_said_and_nothing_is_lost(office, monkeypatch):
    task = office.next(ANNA)
    with monkeypatch.context() as full:

        def write(*_, **__):
            raise OSError(28, "No space left on device")

        full.setattr("al_seg_env.labelling.label_folder.write_png", write)
        response = office.send(ANNA, task, "answer", drawn(0))
    assert response.status_code == 507
    assert "No space left on device" in response.json()["error"]
    assert office.next(ANNA)["id"] == task["id"]
    assert office.send(ANNA, task, "answer", drawn(0)).status_code == 200


def test_superpixels_cover_the_region(office):
    pytest.importorskip("skimage")
    task = office.next(ANNA)
    runs = office.client.get(f"/api/tasks/{task['id']}/superpixels").json()["runs"]
    assert sum(runs[1::2]) == SIZE[0] * SIZE[1]


def test_an_answer_that_was_put_into_the_folder_counts(office, tmp_path):
    task = office.next(ANNA)
    office.desk.labels.write(BOXES[0], Answer(drawn(4)))
    assert office.next(BERT)["id"] != task["id"]
    assert office.send(ANNA, task, "draft", drawn(5)).status_code == 409


def test_where_others_can_reach_the_page_it_asks_for_a_token(office):
    page = PageServer(office.desk, host="0.0.0.0", port=0)
    with page:
        assert len(page.address.partition("?token=")[2]) >= 32
    local = PageServer(office.desk, port=0)
    with local:
        assert local.address.startswith("http://127.0.0.1:")
        assert "token" not in local.address
        port = int(local.address.rstrip("/").rpartition(":")[2])
        with pytest.raises(OSError, match=f"port {port} .*choose others: --host, --port"):
            PageServer(office.desk, port=port)
    with pytest.raises(ValueError, match="token is .*expected at least 16 characters"):
        PageServer(office.desk, port=0, token="short")
    for port in (-1, 65536, 0.5):
        with pytest.raises(ValueError, match="port is .*; expected a whole number from 0 to 65535"):
            PageServer(office.desk, port=port)


@pytest.mark.parametrize("seed", range(5))
def test_runs_describe_masks(seed):
    mask = drawn(seed)
    np.testing.assert_array_equal(mask_of(runs_of(mask), SIZE), mask)
