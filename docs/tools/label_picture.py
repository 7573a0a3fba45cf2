"""Make the picture of the labelling page: a labelling session on drawn streets, and a browser in which someone paints.

The first regions are answered by what was drawn. It needs the extras ``page`` and ``dev``, and Chromium:
``python docs/tools/label_picture.py``.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from al_seg_env import Answer, LabelsPending, SyntheticStreets
from al_seg_env.datasets.segmentation_data import palette_of
from al_seg_env.labelling.page.desk import Desk
from al_seg_env.labelling.page.server import PageServer
from al_seg_env.labelling.request import Request
from al_seg_env.registration import STREETS_THETA_0
from al_seg_env.types import UInt8Array
from al_seg_experiment.label_session import LabelSession, SessionSettings

OUT = Path(__file__).resolve().parents[2] / "docs/pictures/label_page.webp"
CHROMIUM = "/usr/bin/chromium"
SIZE = (360, 480)
ANSWERED, CLASSES_SHOWN, PATIENCE = 8, 4, 300_000
ON_SCREEN = """([x, y]) => { const box = canvas.getBoundingClientRect(), ratio = window.devicePixelRatio;
    return [box.left + ((task.left + x) * view.scale + view.x) / ratio,
            box.top + ((task.top + y) * view.scale + view.y) / ratio]; }"""
OPTIONS: dict[str, Any] = {
    "encoder": "tu-tf_mobilenetv3_small_minimal_100",
    "encoder_weights": None,
    "weights": str(STREETS_THETA_0),
    "network_options": {"decoder_pyramid_channels": 64, "decoder_segmentation_channels": 32},
}


class HalfDrawn(Desk):
    """Answers the first requests with what was drawn, and leaves the others to people."""

    drawn: SyntheticStreets

    def exchange(self, requests: Sequence[Request]) -> None:
        """Answer, or hand the requests out."""
        if len(self.labels.regions()) >= ANSWERED:
            super().exchange(requests)
        for request in requests:
            mask = request.region.crop(self.drawn.mask(int(request.name)))
            self.labels.write(request.region, Answer(mask))


def label(folder: Path) -> HalfDrawn:
    """Run a session until people are needed; return who hands out its requests."""
    drawn = SyntheticStreets(16, SIZE, 3, "street")
    (folder / "photos").mkdir()
    for index in range(len(drawn.names)):
        Image.fromarray(drawn.image(index)).save(folder / "photos" / f"{index:04}.png")
    colours = palette_of(drawn).tolist()
    classes = [{"name": name, "color": colour} for name, colour in zip(drawn.classes, colours, strict=True)]
    (folder / "classes.json").write_text(json.dumps({"classes": classes}))
    settings = SessionSettings(
        str(folder / "photos"), str(folder / "classes.json"), budget=48, reward_images=8, options=OPTIONS
    )
    desks: list[HalfDrawn] = []

    def opened(data: Any, where: Path) -> HalfDrawn:
        desk = HalfDrawn(data, where)
        desk.drawn = drawn
        desks.append(desk)
        return desk

    try:
        LabelSession(folder / "session", settings).run(opened)
    except LabelsPending:
        return desks[0]
    raise RuntimeError("the session ended before anyone was asked")


def shown(page: Page, other_than: str | None = None) -> str:
    """Wait for a region; return what it is called by."""
    while (task := page.evaluate("task && task.id")) in (None, other_than):
        page.wait_for_timeout(100)
    return str(task)


def paint(page: Page, desk: HalfDrawn) -> None:
    """Choose a region with several classes, and click what was drawn into its superpixels."""
    task = shown(page)
    while len(np.unique(drawn_in(desk, task))) < CLASSES_SHOWN:
        page.keyboard.press("n")
        task = shown(page, task)
    page.keyboard.press("s")
    while not page.evaluate("task.segments !== null"):
        page.wait_for_timeout(100)
    labels, segments = drawn_in(desk, task), desk.superpixels(task)
    for segment in range(segments.max()):  # all but the last one
        rows, columns = np.nonzero(segments == segment)
        page.keyboard.press(str((np.bincount(labels[rows, columns]).argmax() + 1) % 10))
        middle = len(rows) // 2
        x, y = page.evaluate(ON_SCREEN, [int(columns[middle]) + 0.5, int(rows[middle]) + 0.5])
        page.mouse.click(x, y)
    page.wait_for_timeout(1500)  # it is kept


def drawn_in(desk: HalfDrawn, task: str) -> UInt8Array:
    """Return what was drawn in a region, ``(h, w)`` uint8."""
    request = desk.task(task).request
    labels: UInt8Array = request.region.crop(desk.drawn.mask(int(request.name)))
    return labels


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as started:
        desk = label(Path(folder))
        with PageServer(desk, port=0) as server:
            browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"], timeout=PATIENCE)
            page = browser.new_page(viewport={"width": 1000, "height": 860}, color_scheme="light")
            page.goto(server.address)
            paint(page, desk)
            Image.open(BytesIO(page.screenshot())).convert("RGB").save(OUT, quality=88, method=6)
            browser.close()


if __name__ == "__main__":
    main()
