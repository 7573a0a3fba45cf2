"""What makes a choice of regions a good one: what it knows of their content, or how much it values each class?

In each draw, D_T is split into two halves. Regions are chosen in one of them, step by step from K pools of N, and
theta_0 is fitted to their labels. Measured are the mean IoU on D_R and, to see what holds elsewhere, on the other half
of D_T. D_V and the test set are not read, so a design may be chosen by these figures.

A choice has a content, which is what it expects a region to hold of each class: the forecast; the forecast and a
correction that a network learns from the labels of the other half; what a network learns from these labels and all
features, without starting from the forecast; or the ground truth. With "new", only what exceeds the prediction of
theta_0 counts. It has a worth of the classes: equal, rarity, or that of an agent. Rarity weights the content as it is,
like the method forecast_rarity; the others weight by how much the content raises the logarithmic label levels, one pool
after the other, like CandidatePolicy.

    python benchmarks/choice_parts.py --env-arg weights=runs/pretrain/theta_0.safetensors --agent runs/agent.safetensors

Prints the means, and writes OUT/choice_parts.csv with a row for each choice and draw.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm
from tyro.conf import arg

from agents import CandidatePolicy, SubActionDQN
from agents.dqn import CandidateNetwork
from al_seg_env import RegionSelectionEnv
from al_seg_env.command_line import EnvironmentOptions, run
from al_seg_env.labelling.label_state import LabelState
from al_seg_env.learner.fitting import FitSettings, evaluate, fit_to_convergence
from al_seg_env.observation.composition import label_levels
from al_seg_env.observation.scores import cell_counts, class_rarity
from al_seg_env.storage import write_csv

FloatArray = npt.NDArray[np.float64]
BATCH_SIZE, LEARNING_RATE, WEIGHT_DECAY = 256, 2e-3, 0.05  # of the network that predicts content
MEASURED = ("reward", "other_half")


@dataclass(frozen=True)
class Options(EnvironmentOptions):
    """What is measured."""

    draws: int = 8
    """Splits of D_T into halves."""
    steps: int = 3
    """Steps of an episode."""
    agent: Annotated[Path | None, arg(metavar="PATH")] = None
    """File of a SubActionDQN whose worth of the classes is one of those compared."""
    updates: int = 150
    """Updates of a fit."""
    batch_size: int = 48
    """Regions in an update of a fit, half of them labelled before."""
    fit_rate: float = 0.1
    """The highest learning rate of a fit."""
    gradient_steps: int = 2000
    """Updates of the network that predicts content."""
    seed: int = 0
    """Seed of the first draw."""
    out: Path = Path("runs/choice_parts")
    """Folder of the results."""


@dataclass(frozen=True)
class Regions:
    """All n regions of D_T at theta_0."""

    ids: npt.NDArray[np.int64]  # (n,)
    features: npt.NDArray[np.float32]  # (n, F)
    held: FloatArray  # (n, C), the classes' shares in the ground truth
    predicted: FloatArray  # (n, C), their mean probabilities
    forecast: FloatArray | None  # (n, C), those of the forecast


def main(options: Options) -> None:
    env = options.make_unwrapped(split="train", sub_rewards=True)
    env.reset(seed=options.seed)
    regions = described(env)
    worths = {"equal": np.ones(len(env.data.classes))}
    if options.agent is not None:
        policy = SubActionDQN.load(options.agent, device="cpu").policy
        if not isinstance(policy, CandidatePolicy):
            raise ValueError(f"--agent {options.agent} has no worth of the classes; expected one with CandidatePolicy")
        worths["agent"] = policy.worth.numpy().astype(np.float64)
    theta_0 = env.learner.state_dict()
    rows: list[dict[str, Any]] = []
    for draw in tqdm(range(options.draws), desc="draws"):
        rng = np.random.default_rng([options.seed, draw])
        images = rng.permutation(env.splits.train)
        half, others = images[: len(images) // 2], images[len(images) // 2 :]
        elsewhere = np.isin(env.grid.image_of(regions.ids), others)
        contents = expected_contents(regions, elsewhere, options.gradient_steps, draw)
        for (content, worth), scored in choices(env, regions, contents, worths).items():
            labels = acquired(env, half, scored, regions, options, np.random.default_rng([options.seed, draw]))
            env.learner.load_state_dict(theta_0)
            settings = FitSettings(None, options.batch_size, updates=options.updates, learning_rate=options.fit_rate)
            fit_to_convergence(
                env.learner, env.frames, env.grid, labels.labelled, labels.mask, env.splits.reward, settings,
                np.random.default_rng([options.seed, draw]), known=env.labelled_before,
            )  # fmt: skip
            measured = dict(zip(MEASURED, (env.splits.reward, others.tolist()), strict=True))
            miou = {name: round(evaluate(env.learner, env.frames, each).miou, 3) for name, each in measured.items()}
            rows.append({"content": content, "worth": worth, "draw": draw, **miou})
        write_csv(options.out / "choice_parts.csv", rows)
    for content, worth in dict.fromkeys((row["content"], row["worth"]) for row in rows):
        of = [row for row in rows if (row["content"], row["worth"]) == (content, worth)]
        means = {name: round(float(np.mean([row[name] for row in of])), 2) for name in MEASURED}
        print({"content": content, "worth": worth, **means})


def described(env: RegionSelectionEnv) -> Regions:
    """Describe all regions of D_T at theta_0."""
    ids, n_classes = env.grid.regions_of(env.splits.train), len(env.data.classes)
    env.inputs.prepare(env.splits.train)
    features = env.observer.described(ids, np.zeros(n_classes, np.int64))
    counts = np.concatenate([cell_counts(env.frames, env.grid, [image], n_classes) for image in env.splits.train])
    predicted = features[:, env.feature_columns("mean_probability")]
    forecast = None
    if "forecast" in env.config.region_features:
        first = env.feature_columns("forecast").start
        forecast = features[:, first : first + n_classes].astype(np.float64)
    return Regions(ids, features, counts / np.prod(env.grid.region_size), predicted.astype(np.float64), forecast)


def expected_contents(regions: Regions, known: npt.NDArray[np.bool_], steps: int, seed: int) -> dict[str, FloatArray]:
    """Return what choices expect of each class, (n, C); they may learn from the labels of known regions, (n,) bool."""
    new = np.maximum(regions.held - regions.predicted, 0)
    found = {"new, true": new, "new, learnt": learnt(regions.features, new, known, steps, seed)}
    if regions.forecast is not None:
        base = np.maximum(regions.forecast - regions.predicted, 0)
        corrected = base + learnt(regions.features, new - base, known, steps, seed)
        found |= {"forecast": regions.forecast, "new, forecast": base, "new, forecast and learnt": corrected}
    return {name: np.maximum(content, 0) for name, content in found.items()}


def learnt(
    features: npt.NDArray[np.float32], targets: FloatArray, known: npt.NDArray[np.bool_], steps: int, seed: int
) -> FloatArray:
    """Return what a network that is trained on the known regions predicts of all, (n, C)."""
    torch.manual_seed(seed)
    n_features, n_classes = features.shape[1], targets.shape[1]
    network = CandidateNetwork(n_features + n_classes, labelled=(n_features, n_features + n_classes)).train()
    x = torch.from_numpy(np.concatenate([features, np.zeros((len(features), n_classes), np.float32)], axis=1))
    y = torch.from_numpy(targets.astype(np.float32))
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    from_these = torch.from_numpy(np.flatnonzero(known))
    for _ in range(steps):
        batch = from_these[torch.randint(len(from_these), (BATCH_SIZE,))]
        optimizer.zero_grad()
        loss = network.normalized_errors(network.values(x[batch]), y[batch]).square().mean()
        torch.autograd.backward(loss)
        optimizer.step()
    with torch.no_grad():
        return network.eval().values(x).numpy().astype(np.float64)


def choices(
    env: RegionSelectionEnv, regions: Regions, contents: Mapping[str, FloatArray], worths: Mapping[str, FloatArray]
) -> dict[tuple[str, str], tuple[FloatArray, FloatArray, bool]]:
    """Return content, worth, and whether the rise of the label levels counts, by the names of content and worth."""
    found = {(name, worth): (contents[name], worths[worth], True) for name in contents for worth in worths}
    counts = cell_counts(env.frames, env.grid, env.labelled_before, len(env.data.classes)).sum(axis=0)
    rarity = np.array(class_rarity(counts))
    if "forecast" in contents:
        found["forecast", "rarity"] = (contents["forecast"], rarity, False)
    found["true", "rarity"] = (regions.held, rarity, False)
    return found


def acquired(
    env: RegionSelectionEnv,
    images: npt.NDArray[np.int64],
    choice: tuple[FloatArray, FloatArray, bool],
    regions: Regions,
    options: Options,
    rng: np.random.Generator,
) -> LabelState:
    """Return the labels of the regions that a choice takes from these images."""
    content, worth, levels = choice
    row_of = {int(region): row for row, region in enumerate(regions.ids)}
    amounts = np.exp(label_levels(env.observer.known_counts, env.grid.region_size).astype(np.float64))  # (C,)
    labels = LabelState(env.grid, sorted(images.tolist()), len(env.data.classes))
    for step in range(options.steps):
        chosen = []
        for pool in labels.draw_pools(rng, env.config.regions_per_step, env.config.pool_size):
            if len(pool):
                offered = content[[row_of[int(region)] for region in pool]]  # (N, C)
                values = (np.log1p(offered / amounts) if levels else offered) @ worth
                best = int(values.argmax())
                amounts = amounts + offered[best]
                chosen.append(int(pool[best]))
        masks = [env.grid.box(region).crop(env.frames.mask(env.grid.box(region).image)) for region in chosen]
        labels = labels.with_labels(chosen, masks, step)
    return labels


if __name__ == "__main__":
    sys.exit(run(main, Options, description=__doc__))
