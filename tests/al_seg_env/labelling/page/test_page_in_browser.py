"""A person in a browser paints what is requested, with mouse and keyboard, and the environment goes on."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
from fakes import closed_form_env, numbered_data

from al_seg_env import LabelsPending

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("playwright.sync_api")
from playwright.sync_api import sync_playwright

from al_seg_env.labelling.page.desk import Desk
from al_seg_env.labelling.page.server import PageServer

CHROMIUM = Path("/usr/bin/chromium")
PATIENCE = 300_000
"""Milliseconds that a busy machine may take."""
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"there is no {CHROMIUM}"),
]


@pytest.fixture
def browser():
    with sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"], timeout=PATIENCE)
        yield chromium
        chromium.close()


def point(page, x, y):
    """Return the pixel of the screen at a point of the region, and the point of the region that it is exactly."""
    at = page.evaluate(
        "([x, y]) => { const box = canvas.getBoundingClientRect(), ratio = window.devicePixelRatio || 1;"
        " return [Math.round(box.left + ((task.left + x) * view.scale + view.x) / ratio),"
        " Math.round(box.top + ((task.top + y) * view.scale + view.y) / ratio)]; }",
        [x, y],
    )
    exact = page.evaluate("([x, y]) => { const p = placeOf({ clientX: x, clientY: y }); return [p.x, p.y]; }", at)
    return at, exact


def until(page, condition):
    """Wait for what playwright's own function can't, since the page forbids to run texts as code."""
    end = time.monotonic() + PATIENCE / 1000
    while not page.evaluate(condition):
        assert time.monotonic() < end, condition
        page.wait_for_timeout(100)


def wait_for_region(page, other_than=None):
    until(page, f"task !== null && task.id !== {json.dumps(other_than)}")
    return page.evaluate("task.id")


def stroke(size, start, end, diameter):
    """Return the pixels whose centres lie within half the diameter of a line, ``(h, w)`` bool."""
    centres = np.stack(np.mgrid[: size[1], : size[0]], axis=-1).transpose(1, 0, 2) + 0.5
    start, end = np.array(start), np.array(end)
    share = ((centres - start) @ (end - start) / ((end - start) @ (end - start))).clip(0, 1)
    return np.linalg.norm(centres - (start + share[..., None] * (end - start)), axis=-1) <= diameter / 2


def test_a_person_labels_a_whole_step(tmp_path, browser):
    desk = Desk(data := numbered_data(9), tmp_path)
    env = closed_form_env(data, oracle=desk)
    env.reset(seed=0)
    action = env.action_space.sample()
    with pytest.raises(LabelsPending) as pending:
        env.step(action)
    count = len(pending.value.missing)
    expected = {}
    with PageServer(desk, port=0) as server:
        context = browser.new_context(viewport={"width": 1000, "height": 700})
        context.set_default_timeout(PATIENCE)
        page = context.new_page()
        failures, outside = [], []
        page.on("pageerror", lambda error: failures.append(error))
        page.on("request", lambda request: outside.append(request.url))
        page.goto(server.address)
        # With the mouse: a stroke of the second class; the browser is closed; the rest is of the first.
        first = wait_for_region(page)
        height, width = page.evaluate("[task.height, task.width]")
        page.evaluate("resize(4)")
        page.keyboard.press("2")
        (begin, start), (finish, end) = point(page, 3.0, 4.0), point(page, 9.0, 6.0)
        page.mouse.move(*begin)
        page.mouse.down()
        page.mouse.move(*finish)
        page.mouse.up()
        until(page, "task.version > 0 && task.version === task.saved")
        page.close()
        page = context.new_page()
        page.on("pageerror", lambda error: failures.append(error))
        page.goto(server.address)
        assert wait_for_region(page) == first
        page.keyboard.press("f")
        page.keyboard.press("x")
        page.keyboard.press("u")
        painted = np.array(page.evaluate("Array.from(task.mask)"), np.uint8).reshape(height, width)
        np.testing.assert_array_equal(painted == 1, stroke((height, width), start, end, 4))
        assert (painted != 255).all()
        expected[first] = painted
        page.keyboard.press("Enter")
        # With the keyboard alone: a stroke of the third class from the middle to the right, two pixels long.
        while len(expected) < count:
            task = wait_for_region(page, list(expected)[-1])
            height, width = page.evaluate("[task.height, task.width]")
            page.evaluate("resize(2)")
            page.keyboard.press("3")
            page.keyboard.down(" ")
            page.keyboard.press("Shift+ArrowRight")
            page.keyboard.press("Shift+ArrowRight")
            page.keyboard.up(" ")
            page.keyboard.press("1")
            page.keyboard.press("f")
            painted = np.array(page.evaluate("Array.from(task.mask)"), np.uint8).reshape(height, width)
            middle = (width // 2 + 0.5, height // 2 + 0.5)
            np.testing.assert_array_equal(painted == 2, stroke((height, width), middle, (middle[0] + 2, middle[1]), 2))
            expected[task] = painted
            page.keyboard.press("Enter")
        until(page, "task === null")
        assert not failures
        assert all(url.startswith((server.address, "data:", "blob:")) for url in outside)
    for task, mask in expected.items():
        np.testing.assert_array_equal(desk.labels.read(desk.task(task).request.region).mask, mask)
    _, _, _, _, info = env.step(action)
    assert info["labelled"] == count
