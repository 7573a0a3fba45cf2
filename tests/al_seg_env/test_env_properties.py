"""Whole episodes over folders of images, of any size, number of classes, regions, pools and budget."""

import json
import tempfile
from pathlib import Path

import numpy as np
from fakes import ClosedFormLearner
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from al_seg_env import Entropy, EnvConfig, RegionSelectionEnv, Splits
from al_seg_env.datasets import IGNORE_LABEL, ImageFolder


def write_folder(root, rng, count, size, classes, void):
    """Write images and masks of random pixels, ``void`` of them unlabelled; return the masks."""
    for folder in ("images", "masks"):
        Path(root, folder).mkdir()
    masks = rng.integers(0, classes, size=(count, *size), dtype=np.uint8)
    masks[rng.random(masks.shape) < void] = IGNORE_LABEL
    for number, mask in enumerate(masks):
        image = rng.integers(0, 256, size=(*size, 3), dtype=np.uint8)
        Image.fromarray(image).save(f"{root}/images/{number}.png")
        Image.fromarray(mask).save(f"{root}/masks/{number}.png")
    Path(root, "classes.json").write_text(json.dumps([f"class {c}" for c in range(classes)]))
    return masks


@st.composite
def settings_of(draw, size, images):
    """Settings that fit ``images`` images of ``size`` to acquire from."""
    region = draw(st.one_of(st.none(), st.tuples(*(st.integers(1, side) for side in size))))
    rows, columns = (-(-side // part) for side, part in zip(size, region or size, strict=True))
    regions = images * rows * columns
    pools = draw(st.integers(1, min(regions, 6)))
    budget = draw(st.one_of(st.integers(1, regions), st.just(regions)))
    return EnvConfig(
        split=draw(st.sampled_from(["train", "eval"])),
        region_size=region,
        regions_per_step=pools,
        pool_size=draw(st.integers(1, min(regions // pools, 5))),
        budget=min(budget, 25),
        fit_iterations=draw(st.integers(0, 2)),
        fit_batch_size=draw(st.integers(1, 4)),
        crop_size=draw(st.one_of(st.none(), st.tuples(st.integers(1, 30), st.integers(1, 30)))),
        fit_regions=draw(st.sampled_from(["new", "all"])),
        crop_labels=draw(st.sampled_from(["new", "all"])),
        first_reward=draw(st.sampled_from(["gain", "miou"])),
        class_distribution=draw(st.sampled_from(["shares", "counts"])),
        entropy_pools=draw(st.sampled_from([(), ("max",), ("min", "avg", "max")])),
        entropy_bins=draw(st.integers(1, 9)),
        similarity=draw(st.sampled_from([(), ("labelled",), ("labelled", "unlabelled")])),
        kl_bins=draw(st.integers(1, 8)),
        kl_edges=draw(st.sampled_from(["fixed", "row"])),
        kl_own=draw(st.booleans()),
        pool_images=draw(st.one_of(st.none(), st.integers(1, 4))),
    )


SIDES = st.one_of(st.just(1), st.integers(1, 17))


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    size=st.tuples(SIDES, SIDES),
    classes=st.one_of(st.sampled_from([1, 2, 254, 255]), st.integers(1, 255)),
    images=st.integers(1, 3),
    void=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_an_episode_stays_in_its_spaces_and_counts_every_label(data, size, classes, images, void, seed):
    config = data.draw(settings_of(size, images))
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as root:
        masks = write_folder(root, rng, 2 * images + 2, size, classes, void)
        splits = Splits((0,), tuple(range(2, 2 + images)), (1,), tuple(range(2 + images, 2 + 2 * images)))
        learner = ClosedFormLearner(classes)
        env = RegionSelectionEnv(ImageFolder(root), splits, learner, config=config, scores=[Entropy()])
        play_and_check(env, masks, rng, seed)


def play_and_check(env, masks, rng, seed):
    """Play an episode with random actions and check all that is known of it beforehand."""
    config, classes = env.config, env.learner.num_classes
    observation, info = env.reset(seed=seed)
    assert env.observation_space.contains(observation)
    chosen, counts, terminated = [], np.zeros(classes, np.int64), False
    while not terminated:
        assert info["next_active"] == min(config.regions_per_step, config.budget - len(chosen))
        assert len(np.unique(np.concatenate(env.pools))) == sum(map(len, env.pools))
        observation, reward, terminated, truncated, info = env.step(rng.integers(env.action_space.nvec))
        assert env.observation_space.contains(observation)
        assert np.isfinite(reward)
        assert not truncated
        labels = np.concatenate([labels_of(env, masks, region) for region in info["chosen"]])
        np.testing.assert_array_equal(info["label_counts"], np.bincount(labels, minlength=256)[:classes])
        chosen += info["chosen"]
        counts += info["label_counts"]
        assert info["labelled"] == len(chosen) == len(set(chosen)) == len(env.labels)
        assert terminated == (len(chosen) == config.budget)
    assert not any(values.any() for values in observation.values())
    acquired = env.splits.train if config.split == "train" else env.splits.eval
    assert {env.grid.box(region).image for region in chosen} <= set(acquired)
    known = np.concatenate([env.labels.mask(image).reshape(-1) for image in acquired])
    np.testing.assert_array_equal(np.bincount(known, minlength=256)[:classes], counts)


def labels_of(env, masks, region):
    """Return the true labels of a region, as one dimension, straight from the masks that were written."""
    box = env.grid.box(region)
    return masks[box.image, box.top : box.bottom, box.left : box.right].reshape(-1)
