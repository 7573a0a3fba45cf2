"""Label Studio: its run lengths, and regions that go there and come back whatever happens to either side."""

import base64
import io
import json
import os
import pickle
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
from fakes import CLASSES, numbered_data
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from studio import PERSONAL, TOKEN, Studio

from al_seg_env import ArrayData, LabelsPending
from al_seg_env.labelling import label_studio
from al_seg_env.labelling.brush import brush_results, decode_brush, encode_brush, label_config, write_tasks
from al_seg_env.labelling.label_studio import LabelStudioOracle, NoAnswer
from al_seg_env.labelling.request import requests_of
from al_seg_env.regions import Box

pytest.importorskip("httpx")

DATA = numbered_data(3)
CHROMIUM = Path("/usr/bin/chromium")
BOXES = [Box(1, 8, 16, 10, 20), Box(2, 0, 8, 0, 10)]


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(label_studio, "RETRY_SECONDS", (0.0, 0.0, 0.0))


@pytest.fixture
def studio():
    with Studio().serve() as server:
        yield server


@pytest.fixture
def oracle(studio, tmp_path):
    return LabelStudioOracle(DATA, tmp_path, studio.url, TOKEN)


def asked_for(boxes=BOXES, data=DATA):
    return requests_of(data, boxes, data.mask)


def pending(oracle, requests=None):
    with pytest.raises(LabelsPending) as caught:
        oracle.answer(asked_for() if requests is None else requests)
    return caught.value


def task_numbers(waiting):
    return [int(url.rpartition("=")[2]) for url in waiting.missing]


def assert_true(oracle, boxes=BOXES):
    """Assert that the answers are the data's own masks."""
    for box, answer in zip(boxes, oracle.answer(asked_for(boxes)), strict=True):
        np.testing.assert_array_equal(answer.mask, box.crop(DATA.mask(box.image)))


def accept(studio, numbers):
    """Submit the pre-labels, which are right."""
    for number in numbers:
        studio.submit(number, studio.tasks[number]["predictions"][0]["result"])


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32))
def test_brush_there_and_back(height, width, seed):
    inside = np.random.default_rng(seed).random((height, width)) < 0.5
    np.testing.assert_array_equal(decode_brush(encode_brush(inside), (height, width)), inside)


def test_brush_with_runs_longer_than_one_length_can_say():
    for inside in (np.ones((300, 400), bool), np.arange(300)[:, None] + np.zeros((1, 400)) > 200, np.eye(200) > 0):
        np.testing.assert_array_equal(decode_brush(encode_brush(inside), inside.shape), inside)


def label_studio_rle(rgba):
    """Encode as Label Studio's editor does: literal bytes where they differ, and runs of the smallest size that fits.

    Written from the description of the format.
    """
    text = f"{rgba.size:032b}" + f"{7:05b}" + "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16))
    for value, group in groupby(rgba.reshape(-1).tolist()):
        length = len(list(group))
        if length == 1:
            text += f"000{0:03b}{value:08b}"
            continue
        while length:
            part = min(length, 2**16)
            index, size = next((i, size) for i, size in enumerate((3, 4, 8, 16)) if part <= 2**size)
            text += f"1{index:02b}{part - 1:0{size}b}{value:08b}"
            length -= part
    text += "0" * (-len(text) % 8)
    return [int(text[i : i + 8], 2) for i in range(0, len(text), 8)]


def test_a_painted_stroke_counts_where_it_is_more_than_half_opaque():
    rng = np.random.default_rng(0)
    rgba = rng.integers(0, 256, (13, 7, 4)).astype(np.uint8)
    rgba[4:9] = [200, 10, 30, 255]
    np.testing.assert_array_equal(decode_brush(label_studio_rle(rgba), (13, 7)), rgba[..., 3] > 127)
    # Two literal bytes, by hand: a bit for "literal", two for the length's size, the length less one, and the bytes.
    text = f"{4:032b}" + "00111" + "0010" + "0011" + "0111" + "1111" + "000" + "011" + f"{1:08b}{2:08b}{3:08b}{200:08b}"
    text += "0" * (-len(text) % 8)
    assert decode_brush([int(text[i : i + 8], 2) for i in range(0, len(text), 8)], (1, 1)).all()


def test_label_studio_s_own_code_agrees():
    brush = pytest.importorskip("label_studio_sdk.converter.brush")
    rng = np.random.default_rng(1)
    for inside in (rng.random((11, 19)) < 0.5, np.eye(30) > 0, np.ones((150, 200), bool)):
        decoded = brush.decode_rle(encode_brush(inside)).reshape(*inside.shape, 4)
        np.testing.assert_array_equal(decoded, np.repeat(inside[..., None] * 255, 4, axis=-1))
        encoded = brush.mask2rle(inside.astype(np.uint8) * 255)
        np.testing.assert_array_equal(decode_brush(encoded, inside.shape), inside)


@pytest.mark.parametrize(
    ("encoded", "message"),
    [
        ("text", "are not a list of bytes"),
        ([[1]], "are not a list of bytes"),
        ([0.5], "are not a list of bytes"),
        ([300], "are not a list of bytes"),
        ([-1], "are not a list of bytes"),
        ([], "are not a list of bytes|end too early"),
        (encode_brush(np.ones((2, 2), bool)), r"of 16 bytes of 8 bits, expected 3 x 5 x 4 of 8"),
        (encode_brush(np.ones((3, 5), bool))[:8], "end too early"),
        (encode_brush(np.eye(3, 5) > 0)[:12], "end too early"),
        ([0, 0, 0, 60, 57, 27, 255, 255, 255, 255], "go beyond the image"),
        ([0, 0, 0, 60, 57, 27, 248, 64], "end too early"),
    ],
)
def test_odd_run_lengths_are_refused(encoded, message):
    with pytest.raises(ValueError, match=message):
        decode_brush(encoded, (3, 5))


def decoded(results, size):
    """Return the mask that brush labels show."""
    mask = np.full(size, 255, np.uint8)
    for result in results:
        (name,) = result["value"]["brushlabels"]
        mask[decode_brush(result["value"]["rle"], size)] = CLASSES.index(name)
    return mask


def drawn_masks():
    rng = np.random.default_rng(0)
    labels, predicted = (rng.choice(np.array([0, 1, 2, 255], np.uint8), (13, 17)) for _ in range(2))
    blank = np.full((8, 9), 255, np.uint8)
    return [("a", "/a", labels, None), ("b", "/b", blank, blank % 3), ("c", "/c", labels, predicted)]


def test_tasks_hold_labels_and_predictions(tmp_path):
    write_tasks(tmp_path / "tasks.json", drawn_masks(), CLASSES)
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    assert [sorted(task) for task in tasks] == [
        ["annotations", "data"],
        ["data", "predictions"],
        ["annotations", "data", "predictions"],
    ]
    for task, (name, url, labels, predicted) in zip(tasks, drawn_masks(), strict=True):
        assert task["data"] == {"image": url, "name": name}
        for kind, mask in (("annotations", labels), ("predictions", predicted)):
            if kind in task:
                np.testing.assert_array_equal(decoded(task[kind][0]["result"], mask.shape), mask)
    write_tasks(tmp_path / "none.json", [], CLASSES)
    assert json.loads((tmp_path / "none.json").read_text()) == []


def test_regions_go_to_label_studio_and_come_back(studio, oracle):
    waiting = pending(oracle)
    (project,) = studio.projects.values()
    assert project["label_config"] == label_config(CLASSES, DATA.palette)
    assert waiting.missing == [f"{studio.url}/projects/{project['id']}/data?task={n}" for n in task_numbers(waiting)]
    for number, request in zip(task_numbers(waiting), asked_for(), strict=True):
        context, data = request.context(), studio.tasks[number]["data"]
        shown = Image.open(io.BytesIO(base64.b64decode(data["image"].partition(",")[2])))
        assert (shown.height, shown.width) == context.pixels.shape[:2]
        assert data["name"] == request.name
    accept(studio, task_numbers(waiting)[:1])
    assert task_numbers(pending(oracle)) == task_numbers(waiting)[1:]
    accept(studio, task_numbers(waiting)[1:])
    assert_true(oracle)
    answer = oracle.answer(asked_for())[0]
    assert (answer.seconds, answer.by) == (2.5, "1")
    assert len(studio.tasks) == 2
    assert pickle.loads(pickle.dumps(oracle)).labels.regions() == BOXES


def test_the_newest_annotation_counts_and_later_labels_lie_over_earlier_ones(studio, oracle):
    (number,) = task_numbers(pending(oracle, asked_for(BOXES[:1])))
    context = asked_for()[0].context()
    size = context.pixels.shape[:2]
    below, above = np.full(size, 0, np.uint8), np.full(size, 255, np.uint8)
    context.box.crop(above)[:2] = 2
    painted = brush_results(below, CLASSES) + brush_results(above, CLASSES)
    studio.submit(number, painted, updated_at="2026-03-01")
    studio.submit(number, [{"type": "choices", "value": {}}], updated_at="2026-02-01")
    studio.submit(number, [], was_cancelled=True, updated_at="2026-04-01")
    (answer,) = oracle.answer(asked_for(BOXES[:1]))
    expected = np.zeros(BOXES[0].size, np.uint8)
    expected[:2] = 2
    np.testing.assert_array_equal(answer.mask, expected)


def test_a_blank_annotation_is_an_answer_and_a_skipped_task_waits(studio, oracle):
    numbers = task_numbers(pending(oracle))
    studio.submit(numbers[0], [])
    studio.submit(numbers[1], [], was_cancelled=True)
    waiting = pending(oracle)
    assert task_numbers(waiting) == numbers[1:]
    assert "1 of them were skipped: submit these, blank if nothing can be told" in str(waiting)
    studio.submit(numbers[1], [], completed_by=None, lead_time=None)
    for answer in oracle.answer(asked_for()):
        assert (answer.mask == 255).all()


def test_both_sides_are_started_again(studio, tmp_path):
    numbers = task_numbers(pending(LabelStudioOracle(DATA, tmp_path, studio.url, TOKEN)))
    assert task_numbers(pending(LabelStudioOracle(DATA, tmp_path, studio.url, TOKEN))) == numbers
    (tmp_path / "label-studio.json").unlink()
    assert task_numbers(pending(LabelStudioOracle(DATA, tmp_path, studio.url, TOKEN))) == numbers
    (project,) = studio.projects
    named = LabelStudioOracle(DATA, tmp_path / "other", studio.url, PERSONAL, project)
    assert task_numbers(pending(named)) == numbers
    accept(studio, numbers)
    assert_true(LabelStudioOracle(DATA, tmp_path, studio.url, TOKEN))
    assert len(studio.projects) == 1


def test_a_stopped_server(tmp_path):
    studio = Studio()
    with studio.serve():
        oracle = LabelStudioOracle(DATA, tmp_path, studio.url, TOKEN)
        numbers = task_numbers(pending(oracle))
        accept(studio, numbers)
    with pytest.raises(NoAnswer, match=r"127\.0\.0\.1:\d+ does not answer .*; start Label Studio, or correct its addr"):
        oracle.answer(asked_for())
    with studio.serve():
        assert_true(oracle)


def test_more_than_a_thousand_tasks(studio, oracle, tmp_path):
    boxes = [Box(image, top, top + 1, left, left + 1) for image in range(3) for top in range(32) for left in range(11)]
    numbers = task_numbers(pending(oracle, asked_for(boxes)))
    assert len(set(numbers)) == len(boxes) == 1056
    again = LabelStudioOracle(DATA, tmp_path, studio.url, TOKEN)
    studio.requests.clear()
    assert task_numbers(pending(again, asked_for(boxes))) == numbers
    assert studio.requests.count(("GET", "/api/tasks/")) == 11
    assert not [path for method, path in studio.requests if method == "POST"]


def test_deleted_and_changed_tasks_are_sent_again(studio, oracle):
    numbers = task_numbers(pending(oracle))
    del studio.tasks[numbers[0]]
    studio.tasks[numbers[1]]["data"] = {"image": "another"}
    accept(studio, numbers[1:])
    waiting = pending(oracle)
    assert not set(task_numbers(waiting)) & set(numbers)
    accept(studio, task_numbers(waiting))
    assert_true(oracle)


@pytest.mark.parametrize("mishap", ["drop", "late", 500, 503, 429])
@pytest.mark.parametrize("position", range(5))
def test_every_request_may_fail_and_nothing_is_sent_twice(studio, oracle, mishap, position):
    studio.mishaps = [None] * position + [mishap]
    waiting = pending(oracle)
    assert len(studio.projects) == 1
    assert sorted(studio.tasks) == sorted(task_numbers(waiting))
    accept(studio, task_numbers(waiting))
    studio.mishaps = [None] * position + [mishap]
    assert_true(oracle)


def test_a_server_that_always_fails(studio, oracle):
    studio.mishaps = [500] * 100
    with pytest.raises(NoAnswer, match=r"answers 500 \(.*a mishap.*\); see its log, then try again: nothing is lost"):
        oracle.answer(asked_for())
    studio.mishaps = []
    accept(studio, task_numbers(pending(oracle)))
    assert_true(oracle)


def test_a_slow_server(studio, oracle, monkeypatch):
    monkeypatch.setattr(label_studio, "TIMEOUT_SECONDS", 0.05)
    studio.mishaps = ["hang"] * 100
    with pytest.raises(NoAnswer, match="does not answer .*Timeout"):
        oracle.answer(asked_for())
    studio.released.set()


def test_a_token_that_is_refused(studio, tmp_path):
    for token in ("wrong", "a.b.c"):
        oracle = LabelStudioOracle(DATA, tmp_path, studio.url, token)
        with pytest.raises(ValueError, match=r"refuses the token \(401: .*\); copy it again from Account & Settings"):
            oracle.answer(asked_for())


def test_a_personal_token_is_renewed(studio, tmp_path):
    oracle = LabelStudioOracle(DATA, tmp_path, studio.url, PERSONAL)
    studio.mishaps = [None, None, 401]
    accept(studio, task_numbers(pending(oracle)))
    assert_true(oracle)


def test_a_changed_label_config(studio, oracle):
    accept(studio, task_numbers(pending(oracle)))
    (project,) = studio.projects.values()
    good = project["label_config"]
    for config, message in (
        (
            good.replace('"car"', '"lorry"'),
            r"the labels are \['road', 'lorry', 'sky'\], expected \['road', 'car', 'sky'\]",
        ),
        (good.replace("BrushLabels", "PolygonLabels"), 'there is no <BrushLabels name="labels"'),
        (good.replace("$image", "$picture"), 'there is no <Image name="image" value="\\$image"/>'),
        ("<View>", "it can't be read"),
    ):
        project["label_config"] = config
        with pytest.raises(ValueError, match=f"was changed: {message}.*Put this into its settings.*<View>"):
            oracle.answer(asked_for())
    project["label_config"] = good.replace("#", "#0")  # other colours don't matter
    assert_true(oracle)


def test_a_project_that_is_gone(studio, oracle, tmp_path):
    pending(oracle)
    studio.projects.clear()
    with pytest.raises(ValueError, match=r"has no project \d+; restore it .*, or remove .*label-studio\.json"):
        oracle.answer(asked_for())


def test_another_project_of_the_same_title_is_left_alone(studio, oracle):
    studio.projects[99999] = {"id": 99999, "title": "al-seg-env", "label_config": "<View></View>"}
    pending(oracle)
    assert len(studio.projects) == 2
    assert all(task["project"] != 99999 for task in studio.tasks.values())


def test_an_odd_annotation_is_named_and_the_others_are_kept(studio, oracle):
    numbers = task_numbers(pending(oracle))
    accept(studio, numbers)
    result = studio.tasks[numbers[0]]["predictions"][0]["result"]
    for change, message in (
        ({"original_width": 999}, "is of an image of 24 x 999 pixels, expected 24 x 30"),
        (
            {"value": {"rle": result[0]["value"]["rle"], "brushlabels": ["lorry"]}},
            "has the label 'lorry', expected one",
        ),
        ({"value": {"rle": [1], "brushlabels": ["road"]}}, "has run lengths that end too early"),
        ({"value": {}}, "can't be read"),
    ):
        studio.submit(numbers[0], [{**result[0], **change}])
        with pytest.raises(ValueError, match=rf"/tasks/{numbers[0]}: annotation \d+ {message}.*Correct or delete"):
            oracle.answer(asked_for())
        assert oracle.labels.regions() == BOXES[1:]
        studio.tasks[numbers[0]]["annotations"].pop()
    assert_true(oracle)


def test_an_image_that_was_replaced_is_another_task(studio, tmp_path):
    accept(studio, task_numbers(pending(LabelStudioOracle(DATA, tmp_path / "a", studio.url, TOKEN))))
    other = numbered_data(3, seed=5)
    waiting = pending(LabelStudioOracle(other, tmp_path / "b", studio.url, TOKEN), asked_for(data=other))
    assert len(waiting.missing) == 2


def test_an_address_where_something_else_answers(studio, tmp_path):
    studio.answer = lambda *_: (200, b"<html>")
    with pytest.raises(ValueError, match="answers no JSON .*; expected Label Studio's API"):
        LabelStudioOracle(DATA, tmp_path, studio.url, TOKEN).answer(asked_for())
    studio.answer = lambda *_: (302, b"")
    with pytest.raises(ValueError, match="answers 302: ; expected Label Studio's API"):
        LabelStudioOracle(DATA, tmp_path, studio.url, TOKEN).answer(asked_for())
    with pytest.raises(ValueError, match="url is 'localhost:8080'; expected the address of a server"):
        LabelStudioOracle(DATA, tmp_path, "localhost:8080", TOKEN)
    with pytest.raises(ValueError, match="token is ''; expected an access token"):
        LabelStudioOracle(DATA, tmp_path, studio.url, " ")
    with pytest.raises(ValueError, match="project is 'a'; expected a number, or a title of 3 to 50"):
        LabelStudioOracle(DATA, tmp_path, studio.url, TOKEN, "a")


def test_an_answer_that_is_too_long(studio, oracle, monkeypatch):
    monkeypatch.setattr(label_studio, "MAX_BYTES", 10)
    with pytest.raises(ValueError, match="answers more than 10 bytes"):
        oracle.answer(asked_for())


def test_the_environment_names_server_and_token(tmp_path, monkeypatch):
    monkeypatch.delenv("LABEL_STUDIO_API_KEY", raising=False)
    with pytest.raises(ValueError, match="LABEL_STUDIO_API_KEY is not set; expected an access token"):
        LabelStudioOracle.from_environment(DATA, tmp_path / "street" / "labels")
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", TOKEN)
    monkeypatch.setenv("LABEL_STUDIO_URL", "http://studio.example/")
    oracle = LabelStudioOracle.from_environment(DATA, tmp_path / "street" / "labels")
    assert (oracle.url, oracle.project) == ("http://studio.example", "al-seg-env: street")


@pytest.fixture
def real_server():
    if "LABEL_STUDIO_API_KEY" not in os.environ:
        pytest.skip("make test-label-studio runs it")
    return os.environ.get("LABEL_STUDIO_URL", label_studio.DEFAULT_URL), os.environ["LABEL_STUDIO_API_KEY"]


@pytest.mark.label_studio
def test_a_real_server(real_server, tmp_path, monkeypatch):
    import httpx

    monkeypatch.setattr(label_studio, "PAGE_SIZE", 10)
    url, token = real_server
    headers = {"Authorization": f"Token {token}"}
    title = f"test {os.urandom(8).hex()}"
    oracle = LabelStudioOracle(DATA, tmp_path, url, token, title)
    boxes = [Box(image, top, top + 8, 10, 20) for image in range(3) for top in range(4, 8)]
    numbers = task_numbers(pending(oracle, asked_for(boxes)))
    assert len(set(numbers)) == len(boxes)
    # Another process finds the same tasks, in two pages of the list.
    again = LabelStudioOracle(DATA, tmp_path / "again", url, token, title)
    assert task_numbers(pending(again, asked_for(boxes))) == numbers
    try:
        for number in numbers[2:]:
            task = httpx.get(f"{url}/api/tasks/{number}/", headers=headers).json()
            content = {"result": task["predictions"][0]["result"], "lead_time": 3.0}
            made = httpx.post(f"{url}/api/tasks/{number}/annotations/", headers=headers, json=content)
            assert made.status_code == 201, made.text
        skipped = {"result": [], "was_cancelled": True}
        httpx.post(f"{url}/api/tasks/{numbers[0]}/annotations/", headers=headers, json=skipped).raise_for_status()
        httpx.delete(f"{url}/api/tasks/{numbers[1]}/", headers=headers).raise_for_status()
        waiting = pending(oracle, asked_for(boxes))
        assert "1 of them were skipped" in str(waiting)
        assert task_numbers(waiting)[0] == numbers[0]
        assert task_numbers(waiting)[1] not in numbers
        for number in task_numbers(waiting):
            task = httpx.get(f"{url}/api/tasks/{number}/", headers=headers).json()
            content = {"result": task["predictions"][0]["result"], "lead_time": 3.0}
            httpx.post(f"{url}/api/tasks/{number}/annotations/", headers=headers, json=content).raise_for_status()
        assert_true(oracle, boxes)
        assert oracle.answer(asked_for(boxes))[5].seconds == 3.0
        with pytest.raises(ValueError, match="refuses the token"):
            LabelStudioOracle(DATA, tmp_path / "wrong", url, "wrong", title).answer(asked_for())
    finally:
        number = json.loads((tmp_path / "label-studio.json").read_text())["project"]
        httpx.delete(f"{url}/api/projects/{number}/", headers=headers)
    with pytest.raises(ValueError, match=f"has no project {number}"):
        oracle.answer(asked_for([Box(0, 3, 9, 3, 9)]))


@pytest.mark.label_studio
def test_a_real_server_imports_tasks(real_server, tmp_path):
    import httpx

    write_tasks(tmp_path / "tasks.json", drawn_masks(), CLASSES)
    url, token = real_server
    with httpx.Client(base_url=url, headers={"Authorization": f"Token {token}"}, timeout=60) as client:
        content = {"title": f"test {os.urandom(8).hex()}", "label_config": label_config(CLASSES, DATA.palette)}
        project = client.post("/api/projects/", json=content).raise_for_status().json()["id"]
        files = {"file": ("tasks.json", (tmp_path / "tasks.json").read_bytes(), "application/json")}
        client.post(f"/api/projects/{project}/import", files=files).raise_for_status()
        listed = client.get("/api/tasks/", params={"project": project}).raise_for_status().json()["tasks"]
        assert len(listed) == 3
        for each in listed:
            task = client.get(f"/api/tasks/{each['id']}/").raise_for_status().json()
            (expected,) = [mask for mask in drawn_masks() if mask[0] == task["data"]["name"]]
            for kind, mask in (("annotations", expected[2]), ("predictions", expected[3])):
                if task[kind]:
                    np.testing.assert_array_equal(decoded(task[kind][0]["result"], mask.shape), mask)
                else:
                    assert mask is None or (mask == 255).all()
        client.delete(f"/api/projects/{project}/").raise_for_status()


@pytest.mark.label_studio
@pytest.mark.browser
def test_a_person_paints_in_a_real_server(real_server, tmp_path):
    playwright = pytest.importorskip("playwright.sync_api")
    url, token = real_server
    pixels = np.random.default_rng(0).integers(0, 256, (1, 180, 240, 3)).astype(np.uint8)
    data = ArrayData(pixels, np.zeros((1, 180, 240), np.uint8), CLASSES)
    oracle = LabelStudioOracle(data, tmp_path, url, token, f"test {os.urandom(8).hex()}")
    requests = requests_of(data, [Box(0, 60, 120, 80, 160)])
    (address,) = pending(oracle, requests).missing
    strokes = {2: ((90, 80), (150, 80)), 0: ((90, 105), (150, 110))}  # by class; the image's x and y
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.set_default_timeout(120_000)
        page.goto(f"{url}/user/login")
        page.fill("input[name=email]", os.environ.get("LABEL_STUDIO_USERNAME", "labeller@localhost.local"))
        page.fill("input[name=password]", os.environ.get("LABEL_STUDIO_PASSWORD", token))
        page.click("button[type=submit]")
        page.wait_for_url(lambda address: "login" not in address)
        page.goto(address)
        page.locator("canvas").nth(1).wait_for()
        page.wait_for_timeout(3000)  # it is laid out again once the image is there
        shown = page.locator("img[src^=blob]").bounding_box()
        scale = shown["width"] / requests[0].context().pixels.shape[1]
        for label, ends in strokes.items():
            page.keyboard.press(str(label + 1))
            start, end = ((shown["x"] + x * scale, shown["y"] + y * scale) for x, y in ends)
            page.mouse.move(*start)
            page.mouse.down()
            page.mouse.move(*end, steps=10)
            page.mouse.up()
            page.wait_for_timeout(1000)
            page.keyboard.press("u")  # so that the next class is not given to this stroke
            page.wait_for_timeout(1000)
        with page.expect_response(lambda each: "/annotations" in each.url and each.request.method == "POST"):
            page.get_by_role("button", name="Submit").click()
        browser.close()
    (answer,) = oracle.answer(requests)
    y, x = np.mgrid[60:120, 80:160] + 0.5
    for label, ((x0, y0), (x1, y1)) in strokes.items():
        share = (((x - x0) * (x1 - x0) + (y - y0) * (y1 - y0)) / ((x1 - x0) ** 2 + (y1 - y0) ** 2)).clip(0, 1)
        distance = np.hypot(x - x0 - share * (x1 - x0), y - y0 - share * (y1 - y0)) - 7.5 / scale  # half of 15 pixels
        assert (answer.mask[distance < -1.0] == label).all()
        assert (answer.mask[distance > 1.0] != label).all()
    assert answer.seconds > 0
