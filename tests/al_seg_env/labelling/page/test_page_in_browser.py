"""A person in a browser paints what is requested, with mouse and keyboard, and the environment goes on."""

import json
import re
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from fakes import closed_form_env, numbered_data

from al_seg_env import ArrayData, LabelsPending
from al_seg_env.labelling.request import requests_of
from al_seg_env.regions import Box

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("playwright.sync_api")
from playwright.sync_api import sync_playwright

from al_seg_env.labelling.page.desk import LEASE_SECONDS, Desk
from al_seg_env.labelling.page.server import PageServer

CHROMIUM = Path("/usr/bin/chromium")
PATIENCE = 300_000
"""Milliseconds that a busy machine may take."""
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"there is no {CHROMIUM}"),
]


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"], timeout=PATIENCE)
        yield chromium
        chromium.close()


class Shop:
    """A page that hands out halves of six photographs, each dark on the left and bright on the right."""

    def __init__(self, folder, browser):
        pixels = np.random.default_rng(0).integers(0, 40, (3, 60, 160, 3)).astype(np.uint8)
        pixels[:, :, 40:80] += 200
        pixels[:, :, 120:] += 200
        self.data = ArrayData(pixels, (pixels[..., 0] > 128).astype(np.uint8), ["dark", "bright"])
        self.now, self.browser = 0.0, browser
        self.desk = Desk(self.data, folder, clock=lambda: self.now)
        boxes = [Box(image, 0, 60, left, left + 80) for image in range(3) for left in (0, 80)]
        self.requests = requests_of(self.data, boxes, self.data.mask)
        with pytest.raises(LabelsPending):
            self.desk.answer(self.requests)

    @contextmanager
    def person(self, **options):
        """A person with a browser of their own, at the page, who has a region."""
        context = self.browser.new_context(viewport={"width": 1000, "height": 700}, **options)
        context.set_default_timeout(PATIENCE)
        page = context.new_page()
        failures = []
        page.on("pageerror", lambda error: failures.append(error))
        page.goto(self.server.address)
        wait_for_region(page)
        yield page
        context.close()
        assert not failures

    def draft(self, task):
        return self.desk.draft(task).mask


@pytest.fixture(scope="module")
def open_shop(tmp_path_factory, browser):
    shop = Shop(tmp_path_factory.mktemp("shop"), browser)
    with PageServer(shop.desk, port=0) as shop.server:
        yield shop


@pytest.fixture
def shop(open_shop):
    yield open_shop
    open_shop.now += LEASE_SECONDS + 1  # whoever has left gives the region back


def painted(page):
    """Return what is painted, ``(h, w)`` uint8."""
    return np.array(page.evaluate("Array.from(task.mask)"), np.uint8).reshape(
        page.evaluate("[task.height, task.width]")
    )


def until_kept(page):
    until(page, "task.version > 0 && task.version === task.saved")


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


def test_superpixels_undo_and_redo(shop):
    with shop.person() as page:
        task = page.evaluate("task.id")
        page.keyboard.press("x")
        page.keyboard.press("2")
        page.keyboard.press("s")
        until(page, "task.segments !== null")
        (at, (x, y)) = point(page, 60.5, 30.5)
        page.mouse.click(*at)
        segments = shop.desk.superpixels(task)
        expected = np.where(segments == segments[int(y), int(x)], 1, 255)
        assert 100 < (expected == 1).sum() < 2000
        assert not (expected[:, :39] == 1).any()  # the dark half is another superpixel's
        np.testing.assert_array_equal(painted(page), expected)
        page.keyboard.press("t")  # the rest as predicted, which is the truth here
        filled = painted(page)
        np.testing.assert_array_equal(filled, shop.desk.task(task).prelabel)
        nothing = np.full_like(expected, 255)
        for key, mask in (("u", expected), ("Control+z", nothing), ("r", expected), ("Control+y", filled)):
            page.keyboard.press(key)
            np.testing.assert_array_equal(painted(page), mask)
        until_kept(page)
    np.testing.assert_array_equal(shop.draft(task), filled)


def test_zoom_and_pan_and_painting_there(shop):
    with shop.person() as page:
        page.keyboard.press("x")
        at, (x, y) = point(page, 20.0, 30.0)
        page.mouse.move(*at)
        page.mouse.wheel(0, -800)
        until(
            page, "view.scale > 3 * Math.min(canvas.width / task.context_size[1], canvas.height / task.context_size[0])"
        )
        # What is below the pointer stays there.
        np.testing.assert_allclose(
            page.evaluate("([x, y]) => { const p = placeOf({ clientX: x, clientY: y }); return [p.x, p.y]; }", at),
            (x, y),
            atol=1e-6,
        )
        page.mouse.down(button="right")
        page.mouse.move(at[0] + 40, at[1] + 24)
        page.mouse.up(button="right")
        (moved, _) = point(page, x, y)
        np.testing.assert_allclose(moved, (at[0] + 40, at[1] + 24), atol=1)
        assert (painted(page) == 255).all()
        page.evaluate("resize(3)")
        page.keyboard.press("1")
        (begin, start), (finish, end) = point(page, 18.0, 28.0), point(page, 24.0, 31.0)
        page.mouse.move(*begin)
        page.mouse.down()
        page.mouse.move(*finish)
        page.mouse.up()
        np.testing.assert_array_equal(painted(page) == 0, stroke((60, 80), start, end, 3))
        page.keyboard.press("h")
        assert page.evaluate(
            "view.scale === Math.min(canvas.width / task.context_size[1], canvas.height / task.context_size[0])"
        )


def test_people_get_different_regions_and_skip_some(shop):
    with shop.person() as one, shop.person() as other:
        first, second = one.evaluate("task.id"), other.evaluate("task.id")
        assert first != second
        one.keyboard.press("x")
        one.keyboard.press("f")
        one.keyboard.press("n")
        third = wait_for_region(one, first)
        assert third not in (first, second)
        assert (shop.draft(first) == 0).all()  # what was painted is there for whoever gets it
        seen = [first, third]
        while seen[-1] != first:
            one.keyboard.press("n")
            seen.append(wait_for_region(one, seen[-1]))
        assert second not in seen
        assert len(set(seen)) == len(seen) - 1 >= 4  # what was skipped comes again when all others were shown


@pytest.fixture
def new_shop(tmp_path, browser):
    shop = Shop(tmp_path, browser)
    with PageServer(shop.desk, port=0) as shop.server:
        yield shop


def test_two_people_at_once_share_the_work(new_shop):
    with new_shop.person() as one, new_shop.person() as other:
        people = {"Ann": one, "Ben": other}
        seen = {}
        for name, page in people.items():
            page.fill("#by", name)
            page.focus("#view")
            seen[name] = [page.evaluate("task.id")]
        while len(seen["Ann"]) + len(seen["Ben"]) < len(new_shop.requests):
            for page, key in zip(people.values(), "12", strict=True):
                page.keyboard.press(key)
                page.keyboard.press("f")
            for page in people.values():  # both before either has got the next region
                page.keyboard.press("Enter")
            for name, page in people.items():
                seen[name].append(wait_for_region(page, seen[name][-1]))
        one.keyboard.press("f")
        one.keyboard.press("Enter")
        until(one, "task === null")
        until(one, "at('message').textContent === 'Others have the regions that are left. Yours come next.'")
        other.keyboard.press("2")
        other.keyboard.press("f")
        other.keyboard.press("Enter")
        for page in people.values():
            until(page, "at('message').textContent.startsWith('The network is learning.')")
    assert len({*seen["Ann"], *seen["Ben"]}) == len(new_shop.requests) == len(seen["Ann"]) + len(seen["Ben"])
    for label, (name, tasks) in enumerate(seen.items()):
        for task in tasks:
            answer = new_shop.desk.labels.read(new_shop.desk.task(task).request.region)
            assert (answer.mask == label).all()
            assert answer.by == name


def test_all_is_done_by_keyboard_alone(new_shop):
    """Nothing but keys: tools, their size, classes, zoom, the name and each button by Tab."""
    with new_shop.person() as page:
        press = page.keyboard.press

        def tab_to(name):
            for _ in range(40):
                press("Tab")
                if page.evaluate("document.activeElement.id") == name:
                    assert page.evaluate("document.activeElement.matches(':focus-visible')")
                    return
            raise AssertionError(f"{name} can't be reached")

        size, middle = (60, 80), (40.5, 30.5)
        assert page.evaluate("document.activeElement.id") == "view"
        task = page.evaluate("task.id")
        while page.evaluate("Number(at('size').value)") > 5:
            press("[")
        press("]")
        diameter = page.evaluate("Number(at('size').value)")
        press(".")  # the second class
        page.keyboard.down(" ")
        for _ in range(4):
            press("Shift+ArrowRight")
        page.keyboard.up(" ")
        expected = np.full(size, 255)
        expected[stroke(size, middle, (44.5, 30.5), diameter)] = 1
        np.testing.assert_array_equal(painted(page), expected)
        press("e")
        press(" ")
        erased = np.where(stroke(size, (44.5, 30.5), (44.5, 30.5 + 1e-9), diameter), 255, expected)
        np.testing.assert_array_equal(painted(page), erased)
        press("u")
        np.testing.assert_array_equal(painted(page), expected)
        press("+")
        assert page.evaluate("view.scale") > page.evaluate("fit(), view.scale")
        press("s")
        until(page, "task.segments !== null")
        press(",")  # the first class
        press(" ")
        segments = new_shop.desk.superpixels(task)
        expected[segments == segments[30, 44]] = 0
        np.testing.assert_array_equal(painted(page), expected)
        tab_to("predict")
        press("Enter")
        truth = new_shop.desk.task(task).prelabel
        np.testing.assert_array_equal(painted(page), np.where(expected == 255, truth, expected))
        assert page.evaluate("document.activeElement.id") == "view"
        tab_to("by")
        page.keyboard.type("Nora 1")  # in a field, letters and digits are a name
        tab_to("submit")
        press(" ")
        following = wait_for_region(page, task)
        tab_to("skip")
        press("Enter")
        wait_for_region(page, following)
    answer = new_shop.desk.labels.read(new_shop.desk.task(task).request.region)
    np.testing.assert_array_equal(answer.mask, np.where(expected == 255, truth, expected))
    assert answer.by == "Nora 1"


def test_a_browser_that_is_closed_in_mid_stroke(shop):
    with shop.person() as page:
        task = page.evaluate("task.id")
        page.keyboard.press("x")
        page.keyboard.press("2")
        page.mouse.move(*point(page, 20, 20)[0])
        page.mouse.down()
        page.mouse.move(*point(page, 30, 20)[0])
        until_kept(page)
        kept = painted(page)
        assert page.evaluate("stroke !== null")
        person = page.evaluate("person")
        page.mouse.move(*point(page, 30, 40)[0])
        state = page.context.storage_state()
    assert 0 < (kept == 1).sum() <= (shop.draft(task) == 1).sum()
    assert (shop.draft(task)[kept == 1] == 1).all()
    with shop.person(storage_state=state) as page:
        assert page.evaluate("[person, task.id]") == [person, task]
        assert (painted(page)[kept == 1] == 1).all()


def luminance(colour):
    """Return the relative luminance of ``rgb(r, g, b)`` (WCAG 2.1)."""
    values = np.array([float(each) for each in re.findall(r"[\d.]+", colour)[:3]]) / 255
    linear = np.where(values <= 0.03928, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_dark(shop, scheme):
    colours = """(selector) => { const style = getComputedStyle(document.querySelector(selector));
        return [style.color, style.backgroundColor]; }"""
    with shop.person(color_scheme=scheme) as page:
        panel = page.evaluate(colours, "aside")
        assert (luminance(panel[1]) < 0.1) == (scheme == "dark")
        for selector in ("aside", "h2", "#progress", "#notice", "#submit", "#skip", "#palette [aria-checked=true]"):
            text, back = page.evaluate(colours, selector)
            back = panel[1] if back == "rgba(0, 0, 0, 0)" else back
            light, dark = sorted((luminance(text), luminance(back)), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, selector
