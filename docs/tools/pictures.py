"""Make the pictures of the documentation that are not of an experiment: `make pictures`.

The moving picture is an episode of active learning on drawn streets: theta_0 is trained on the style ``render``, and
entropy selection chooses regions of the style ``street``. The pictures of the data sets show drawn scenes in their
sizes, classes, colours and regions, since their licences restrict or forbid copies.
"""

from __future__ import annotations

import runpy
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import gymnasium as gym
import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image, ImageDraw

import al_seg_env  # noqa: F401  (registers the environments)
from agents import EntropyPolicy
from al_seg_env import ArrayData, RegionSelectionEnv, SegmentationData, SyntheticStreets
from al_seg_env.datasets.camvid import CAMVID_CLASSES, CAMVID_PALETTE
from al_seg_env.datasets.cityscapes import CITYSCAPES_CLASSES, CITYSCAPES_PALETTE
from al_seg_env.datasets.segmentation_data import IGNORE_LABEL, palette_of
from al_seg_env.labelling.request import REQUEST_COLOUR
from al_seg_env.regions import RegionGrid
from al_seg_env.rendering import (
    FONT,
    GAP,
    TITLE_HEIGHT,
    class_key,
    colourise,
    labels_over,
    overlay_requests,
)
from al_seg_env.types import UInt8Array
from al_seg_experiment import Stage, pretrain

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "docs/pictures"
WORK = Path("build/pictures")
SIZE: dict[str, Any] = {"image_size": (144, 192), "region_size": (36, 48)}
SHOWN = 4
PLOT_HEIGHT = 220


def episode_frames(env: RegionSelectionEnv, seed: int = 0) -> list[Image.Image]:
    """Play an episode with entropy selection; return a frame per step, of the images with the most requests."""
    policy, steps = EntropyPolicy(), []
    observation, info = env.reset(seed=seed)
    terminated = False
    while True:
        every = env.inputs.whole(list(env.splits.eval))
        with torch.inference_mode():
            predicted = env.learner.predict(every).argmax(1).to("cpu", torch.uint8).numpy()
        steps.append((env.labels, info, dict(zip(env.splits.eval, predicted, strict=True))))
        if terminated:
            break
        action, _ = policy.predict(observation)
        observation, _, terminated, _, info = env.step(action)
    images, counts = np.unique(env.grid.image_of(env.labels.labelled), return_counts=True)
    shown = sorted(images[np.argsort(-counts, kind="stable")][:SHOWN].tolist())
    curve = [(info["labelled"], info["miou"]) for _, info, _ in steps]
    return [frame(env, *step, shown, curve[: number + 1], curve) for number, step in enumerate(steps)]


def frame(env, labels, info, predicted, shown, curve, whole_curve) -> Image.Image:  # type: ignore[no-untyped-def]
    """Draw one step: labels on the left, predictions on the right, the curve so far below."""
    (height, width), palette = env.grid.image_size, palette_of(env.data)
    half = 2 * (width + GAP)
    key = class_key(env.data, 2 * half - GAP)
    rows = SHOWN // 2
    top = TITLE_HEIGHT + rows * (height + GAP)
    canvas = Image.new("RGB", (2 * half - GAP, top + key.height + PLOT_HEIGHT), "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((2, 1), f"{info['labelled']} regions labelled; requested now: yellow", "black", FONT)
    draw.text((half + 2, 1), f"prediction; mean IoU {info['miou']:.1f} %", "black", FONT)
    requested = [env.grid.box(region) for region in info["chosen"]]
    for position, image in enumerate(shown):
        row, column = divmod(position, 2)
        left, upper = column * (width + GAP), TITLE_HEIGHT + row * (height + GAP)
        overlay = labels_over(env.frames.image(image).numpy(), labels.mask(image), palette)
        canvas.paste(Image.fromarray(overlay), (left, upper))
        canvas.paste(Image.fromarray(colourise(predicted[image], palette)), (half + left, upper))
        for box in requested:
            if box.image == image:
                corners = (left + box.left, upper + box.top, left + box.right - 1, upper + box.bottom - 1)
                draw.rectangle(corners, None, REQUEST_COLOUR, 3)
    canvas.paste(key, (0, top))
    canvas.paste(plot(canvas.width, curve, whole_curve), (0, top + key.height))
    return canvas


def plot(width: int, curve: list[tuple[int, float]], whole_curve: list[tuple[int, float]]) -> Image.Image:
    """Draw mean IoU against labels, on axes that hold the whole curve."""
    figure, axes = plt.subplots(figsize=(width / 100, PLOT_HEIGHT / 100), dpi=100, layout="constrained")
    axes.plot(*zip(*curve, strict=True), "o-", color="C0")
    budgets, values = zip(*whole_curve, strict=True)
    margin = 0.08 * (max(values) - min(values))
    axes.set(
        xlabel="regions labelled",
        ylabel="mean IoU [%]",
        xlim=(-0.02 * budgets[-1], 1.02 * budgets[-1]),
        ylim=(min(values) - margin, max(values) + margin),
        xticks=budgets[::2],
    )
    axes.grid(alpha=0.3)
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    plt.close(figure)
    return Image.open(buffer).convert("RGB").resize((width, PLOT_HEIGHT))


DRAWN = ("road", "sidewalk", "building", "pole", "sign", "vegetation", "sky", "person", "car", "bicycle")
CAMVID_NAMES = (
    "Road", "Pavement", "Building", "Pole", "SignSymbol", "Tree", "Sky", "Pedestrian", "Car", "Bicyclist"
)  # fmt: skip
CITYSCAPES_NAMES = (*DRAWN[:4], "traffic sign", *DRAWN[5:])


def drawn_as(
    classes: Sequence[str], palette: Sequence[Sequence[int]], names: Sequence[str], size: tuple[int, int], style: str
) -> ArrayData:
    """Return two drawn scenes whose classes are those of another data set; ``names`` are theirs of ``DRAWN``."""
    scenes = SyntheticStreets(2, size, 3, style)
    label = np.full(256, IGNORE_LABEL, np.uint8)
    label[: len(names)] = [classes.index(name) for name in names]
    masks = [label[scenes.mask(index)] for index in range(2)]
    return ArrayData([scenes.image(i) for i in range(2)], masks, classes, palette=np.array(palette, np.uint8))


def grid_picture(data: SegmentationData, region_size: tuple[int, int], width: int = 400) -> Image.Image:
    """Draw an image and its labels with the borders of the regions, and the colours of the classes."""
    height = round(width * data.image_size[0] / data.image_size[1])
    scale = width / data.image_size[1]
    key = class_key(data, 2 * width + GAP)
    canvas = Image.new("RGB", (key.width, height + GAP + key.height), "white")
    draw = ImageDraw.Draw(canvas)
    labels = colourise(data.mask(0), palette_of(data))
    grid = RegionGrid(data.image_size, region_size)
    for left, pixels, resample in (
        (0, data.image(0), Image.Resampling.LANCZOS),
        (width + GAP, labels, Image.Resampling.NEAREST),
    ):
        canvas.paste(Image.fromarray(pixels).resize((width, height), resample), (left, 0))
        for box in map(grid.box, range(grid.regions_per_image)):
            corners = (box.left * scale, box.top * scale, box.right * scale - 1, box.bottom * scale - 1)
            draw.rectangle([round(c) + (left, 0)[i % 2] for i, c in enumerate(corners)], None, "white")
    canvas.paste(key, (0, height + GAP))
    return canvas


def data_pictures() -> dict[str, Image.Image]:
    """Return a picture for the page of each registered environment."""
    camvid = drawn_as(CAMVID_CLASSES, CAMVID_PALETTE, CAMVID_NAMES, (360, 480), "street")
    cityscapes = drawn_as(CITYSCAPES_CLASSES, CITYSCAPES_PALETTE, CITYSCAPES_NAMES, (1024, 2048), "street")
    gta5 = drawn_as(CITYSCAPES_CLASSES, CITYSCAPES_PALETTE, CITYSCAPES_NAMES, (1052, 1914), "render")
    cells = runpy.run_path(str(ROOT / "examples/custom_dataset.py"))["Cells"](4)
    return {
        "synthetic_streets": grid_picture(SyntheticStreets(4), (24, 32)),
        "camvid": grid_picture(camvid, (90, 80)),
        "cityscapes": grid_picture(cityscapes, (128, 128)),
        "gta5": grid_picture(gta5, (263, 479)),
        "image_folder": grid_picture(cells, (16, 20)),
    }


def save(picture: Image.Image | UInt8Array | None, name: str) -> None:
    """Write a picture into the documentation."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)  # type: ignore[arg-type]
    image.save(OUT / f"{name}.webp", quality=80, method=6)


def main() -> None:
    OUT.mkdir(exist_ok=True)
    for name, picture in data_pictures().items():
        save(picture, name)
    learning: dict[str, Any] = {"learning_rate": 0.005, "fit_iterations": 8, "crop_labels": "all"}
    env = gym.make("al_seg_env/SyntheticStreets-v0", weights=None, learning_rate=0.02, **SIZE)
    renderings = Stage(arguments={"style": "render"}, images="all", epochs=12, patience=12, updates=20)
    theta_0 = pretrain(env, [renderings], WORK / "theta_0")
    env = gym.make(
        "al_seg_env/SyntheticStreets-v0",
        weights=str(theta_0),
        scores=["entropy"],
        split="eval",
        splits={"seed": 0, "eval": 24},
        budget=192,
        render_mode="rgb_array",
        **SIZE,
        **learning,
    )
    streets: RegionSelectionEnv = env.unwrapped  # type: ignore[assignment]
    frames = episode_frames(streets)
    save(streets.render(), "render")
    save(overlay_requests(streets.data, streets.frames, streets.grid, streets.labels), "requests")
    save(frames[-1], "episode_end")
    durations = [1200, *[600] * (len(frames) - 2), 3000]
    frames[0].save(
        OUT / "episode.webp", save_all=True, append_images=frames[1:], duration=durations, loop=0, quality=70, method=6
    )


if __name__ == "__main__":
    main()
