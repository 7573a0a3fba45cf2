"""Ranking the regions of unlabelled images once, by which to label first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw

from agents import SubActionDQN
from al_seg_env.config import EnvConfig
from al_seg_env.datasets import SegmentationData, Splits
from al_seg_env.datasets.frames import Frames
from al_seg_env.datasets.originals import original_of, regions_outside
from al_seg_env.datasets.segmentation_data import labelled_images
from al_seg_env.labelling.label_state import LabelState
from al_seg_env.labelling.request import requests_of
from al_seg_env.learner.building import LearnerConfig
from al_seg_env.learner.inputs import inputs_of
from al_seg_env.observation.features import paper_features
from al_seg_env.observation.observer import Observer
from al_seg_env.observation.scores import cell_counts
from al_seg_env.regions import RegionGrid, sixteenth
from al_seg_env.registration import LEARNER_OPTIONS, make_env, named_scores
from al_seg_env.storage import write_csv, write_png
from al_seg_env.storage.validation import check, check_int
from al_seg_env.types import IntArray, UInt8Array

SHOWN, COLUMNS, WIDTH, HEIGHT, TITLE = 12, 4, 320, 240, 18


class Ranking(NamedTuple):
    """The values of regions.

    Attributes:
        grid: Grid of the regions.
        regions: Region ids, ``(n,)`` int64.
        values: The higher, the sooner the region should be labelled, ``(n,)`` float32.
    """

    grid: RegionGrid
    regions: IntArray
    values: npt.NDArray[np.float32]


def suggest(
    data: SegmentationData,
    out: str | Path,
    *,
    score: str = "entropy",
    agent: str | Path | None = None,
    count: int = 200,
    per_image: int | None = None,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Path:
    """Rank the regions of images without a mask, under a network, and write the top ones as a list and a picture.

    ``suggestions.csv`` has the columns rank, score, image, path, top, left, height and width, in the originals' pixels.
    ``suggestions.png`` shows the first twelve in their surroundings.

    Args:
        data: The images.
        out: Folder for the results.
        score: Name of an acquisition score; see :func:`~al_seg_env.registration.named_scores`. Those that weight
            classes by their labelled pixels count those of the images that have masks.
        agent: File of a trained agent, whose values Q(s, a) (Eq. 1) rank all regions at once, before any is labelled,
            instead of the score. The images of its D_S must be among ``data``; they are not ranked.
        count: Most regions to list.
        per_image: Most regions to list per image.
        options: Options of :func:`~al_seg_env.make_env`, such as ``architecture`` or ``cache``; those of an episode
            have no effect. By default a region is a sixteenth of the image, or as large as the agent's.
        seed: Seed of dropout samples.

    Returns:
        The list.

    Raises:
        ValueError: If a name is unknown, a number is below 1, all images have masks, or options, agent and images do
            not match.
    """
    check_int("count", count, 1)
    if per_image is not None:
        check_int("per_image", per_image, 1)
    labelled = set(labelled_images(data))
    images = [image for image in range(len(data.names)) if image not in labelled]
    if not images:
        raise ValueError(f"all {len(data.names)} images have masks; there is nothing to suggest: add images without")
    ranking, by = (by_score, score) if agent is None else (by_agent, str(agent))
    grid, regions, values = ranking(data, images, by, options or {}, seed)
    of_image = dict.fromkeys(images, 0)
    chosen: list[int] = []
    for place in np.argsort(-values, kind="stable").tolist():
        image = int(grid.image_of(regions[place]))
        if len(chosen) < count and (per_image is None or of_image[image] < per_image):
            of_image[image] += 1
            chosen.append(place)
    rows = []
    for rank, place in enumerate(chosen, 1):
        box = grid.box(int(regions[place]))
        original = original_of(data, box.image)
        region = original.region(box)
        row = {
            "rank": rank,
            "score": f"{values[place]:.6g}",
            "image": data.names[box.image],
            "path": original.path or "",
        }
        rows.append({**row, "top": region.top, "left": region.left, "height": region.size[0], "width": region.size[1]})
    write_csv(Path(out) / "suggestions.csv", rows)
    shown = requests_of(data, [grid.box(int(regions[place])) for place in chosen[:SHOWN]])
    titles = [f"{row['rank']}. {row['image']}  {row['score']}" for row in rows]
    write_png(Path(out) / "suggestions.png", _sheet([(request.context().pixels) for request in shown], titles))
    return Path(out) / "suggestions.csv"


def by_score(
    data: SegmentationData, images: Sequence[int], score: str, options: Mapping[str, Any], seed: int
) -> Ranking:
    """Return the values of an acquisition score; see :func:`suggest`."""
    grid = RegionGrid(data.image_size, options.get("region_size") or sixteenth(data.image_size))
    cache = options.get("cache")
    settings = LearnerConfig(**{name: value for name, value in options.items() if name in LEARNER_OPTIONS})
    network = settings.build(data.classes, grid.image_size, cache)
    frames = Frames.shared(data, cache)
    inputs = inputs_of(network, frames)
    nothing = _nothing_labelled(data, grid, images)
    regions = nothing.unlabelled

    def counts(privileged: bool) -> IntArray:
        labelled = labelled_images(data)
        known = not privileged and len(labelled) > 0
        needed = "uses the ground truth of the images that it ranks" if privileged else "needs labelled images"
        check("score", score, known, f"another one, such as 'entropy': it {needed}, and there are none")
        return cell_counts(frames, grid, labelled, len(data.classes))

    observer = Observer(
        frames,
        inputs,
        grid,
        network,
        state_images=images[:1],
        candidate_images=images,
        keep_candidates=False,
        n_pools=1,
        pool_size=len(regions),
        features=paper_features(EnvConfig(entropy_pools=(), similarity=())),
        similarity=None,
        scores=named_scores([score], counts=counts),
        known_counts=np.zeros(len(data.classes), np.int64),
        progress="images in batches",
    )
    inputs.prepare(images)
    observation = observer.observe([regions], nothing, np.random.default_rng(seed), initial=False)
    return Ranking(grid, regions, observation[f"score_{score}"][0])


def by_agent(
    data: SegmentationData, images: Sequence[int], agent: str, options: Mapping[str, Any], seed: int
) -> Ranking:
    """Return an agent's values in the first step of an episode whose only pool holds all regions.

    The arguments are those of :func:`suggest`.
    """
    player = SubActionDQN.load(agent, buffer_size=1)  # a step as large as this one is never stored
    layout = player.layout or {}
    place = {name: image for image, name in enumerate(data.names)}
    names = layout.get("state_images", ())
    if missing := [name for name in names if name not in place]:
        raise ValueError(
            f"{agent} looks at the {len(names)} images of its D_S to see how good the network is, of which "
            f"{len(missing)} are not here ({', '.join(map(repr, missing[:3]))}); put them among the images"
        )
    state = [place[name] for name in names]
    candidates = [image for image in images if image not in state]
    if not candidates:
        raise ValueError(
            f"all images without a mask are in the D_S of {agent}; there is nothing to suggest: add images"
        )
    before = [image for image in labelled_images(data) if image not in state]
    region_size = options.get("region_size") or layout.get("region_size") or sixteenth(data.image_size)
    nothing = _nothing_labelled(data, RegionGrid(data.image_size, region_size), candidates)
    one_pool = {"regions_per_step": 1, "pool_size": nothing.unlabelled_count, "budget": 1, "pool_images": None}
    env = make_env(
        data,
        splits=Splits(state=tuple(state), train=tuple(before), reward=(), eval=tuple(candidates)),
        **{**options, "region_size": region_size, "split": "eval", "reward": None, **one_pool},
    )
    player.set_env(env)
    observation, _ = env.reset(seed=seed)
    player.policy.set_training_mode(False)
    with torch.inference_mode():
        values = player.policy.q_values(player.policy.obs_to_tensor(observation)[0])[0, 0]
    return Ranking(env.grid, env.pools[0], values.cpu().numpy())


def _nothing_labelled(data: SegmentationData, grid: RegionGrid, images: Sequence[int]) -> LabelState:
    return LabelState(grid, images, len(data.classes), regions_outside(data, grid, images))


def _sheet(pictures: list[UInt8Array], titles: list[str]) -> UInt8Array:
    """Return pictures side by side, each under its title, ``(h, w, 3)`` uint8."""
    rows = -(-len(pictures) // COLUMNS)
    canvas = Image.new("RGB", (COLUMNS * WIDTH, rows * (HEIGHT + TITLE)), "white")
    draw = ImageDraw.Draw(canvas)
    for place, (pixels, title) in enumerate(zip(pictures, titles, strict=False)):
        left, top = place % COLUMNS * WIDTH, place // COLUMNS * (HEIGHT + TITLE)
        draw.text((left + 3, top + 3), title[:50], fill="black")
        picture = Image.fromarray(pixels)
        picture.thumbnail((WIDTH - 4, HEIGHT - 4))
        canvas.paste(picture, (left + 2, top + TITLE + 2))
    return np.asarray(canvas)
