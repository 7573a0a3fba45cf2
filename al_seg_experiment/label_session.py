"""A labelling session in a folder: images without masks, a policy that selects regions, people who label them."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from al_seg_env.datasets import ImageFolder, SegmentationData, Splits
from al_seg_env.datasets.folder import read_classes
from al_seg_env.datasets.originals import fitted
from al_seg_env.datasets.pairing import SUFFIXES
from al_seg_env.datasets.splits import read_names
from al_seg_env.env import RegionSelectionEnv
from al_seg_env.labelling.answered_data import AnsweredData
from al_seg_env.labelling.cvat import CvatOracle
from al_seg_env.labelling.label_folder import MANIFEST, LabelFolder
from al_seg_env.labelling.label_studio import LabelStudioOracle
from al_seg_env.labelling.oracles import AnswersRequests, FolderOracle, LabelsPending, ShowsProgress
from al_seg_env.labelling.request import requests_of
from al_seg_env.learner.fitting import FitSettings, fit_to_convergence
from al_seg_env.learner.weights import save_weights
from al_seg_env.regions import Box, RegionGrid, sixteenth
from al_seg_env.registration import check_options, make_env
from al_seg_env.storage import folder_lock, load_tree, read_json, save_tree, well_formed, write_json
from al_seg_env.storage.locking import LOCK
from al_seg_env.storage.validation import check, check_choice, check_int
from al_seg_env.types import Size
from al_seg_experiment.folders import refuse_others
from al_seg_experiment.policies import AGENT_SUFFIX, make_policy, parse_policy
from al_seg_experiment.records import file_digest

SESSION, SESSION_FORMAT, SESSION_VERSION = "session.json", "al-seg-env labelling", 1
STATE, STATE_KIND = "state.safetensors", "labelling session"
THETA_0, NETWORK, SPLITS = "theta_0.safetensors", "network.safetensors", "splits.json"
LABELS = "labels"
LONGER_SIDE = 512
THETA_0_UPDATES = 300
POLL_SECONDS = 2.0
NETWORK_OPTIONS: Mapping[str, Any] = {
    "encoder": "timm-tf_efficientnet_lite0",
    "encoder_weights": "imagenet",
    "trainable": "decoder",
    "learning_rate": 0.01,
    "fit_iterations": 8,
}
"""What differs from an environment's defaults: a frozen encoder, so that a step takes seconds on a CPU."""
KNOWS_TRUTH = ("rare", "greedy")
"""Policies that know what the people have yet to say."""
WEIGHS_CLASSES = ("foreground", "rarity", "rarity_entropy", "location_entropy", "rarity_regression", "balanced_margin")
"""Policies that need labelled images, to know how often each class occurs."""
TOOLS: dict[str, Callable[[SegmentationData, Path], AnswersRequests]] = {
    "folder": FolderOracle,
    "cvat": CvatOracle,
    "label-studio": LabelStudioOracle.from_environment,
}
"""Makes the oracle of a session by the name of the tool that people label with, given data and folder."""

logger = logging.getLogger("al_seg_env")


@dataclass(frozen=True)
class SessionSettings:
    """The settings of a session, stored in its folder and the same whenever it resumes.

    Attributes:
        images: Folder of the images, which may have sub-folders; or of ``images`` and ``masks``.
        classes: File of the classes, see :class:`~al_seg_env.datasets.ImageFolder`.
        masks: Folder of the masks of those images that have one.
        image_size: ``(height, width)`` that the network sees; if omitted, 512 pixels on the longer side.
        policy: What selects regions: a name such as ``"entropy"``, or ``"NAME=file"`` of a trained agent.
        budget: Total number of regions to label.
        regions_per_step: Regions requested at once.
        reward_images: If no image is labelled: number of images in which one random region is labelled first, as D_R.
        seed: Seed of splits, pools and training.
        options: Further options of :func:`~al_seg_env.make_env`.

    Raises:
        ValueError: If a setting is out of range.
    """

    images: str
    classes: str
    masks: str | None = None
    image_size: Size | None = None
    policy: str = "entropy"
    budget: int = 200
    regions_per_step: int = 8
    reward_images: int = 0
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, least in {"budget": 1, "regions_per_step": 1, "reward_images": 0, "seed": 0}.items():
            check_int(name, getattr(self, name), least)
        try:
            check_options(self.options)
        except TypeError as error:
            raise ValueError(str(error)) from error
        if own := sorted({"budget", "regions_per_step", "split", "oracle"} & set(self.options)):
            raise ValueError(f"options has {own}; these are settings of the session itself, such as --budget")
        if self.reward_images and self.options.get("reward_classes"):
            raise ValueError(
                "options has reward_classes, but with reward_images D_R is one region of each of a few images, which "
                "may lack these classes; omit one of the two"
            )

    @property
    def _inner(self) -> str:
        return "images" if (Path(self.images) / "images").is_dir() else "."

    def check_out(self, out: str | Path) -> None:
        """Refuse a folder for results that lies among the images: its pictures would be taken for images."""
        images = (Path(self.images) / self._inner).resolve()
        apart = not Path(out).resolve().is_relative_to(images)
        check("out", str(out), apart, f"a folder that is not among the images in {images}")

    def data(self) -> ImageFolder:
        """Open the images.

        Raises:
            ValueError: If there are none, or some can't be read.
        """
        root, masks = Path(self.images), Path("masks" if self.masks is None else self.masks).resolve()
        check("images", self.images, root.is_dir(), "a folder of images")
        check("masks", self.masks, self.masks is None or masks.is_dir(), "a folder of masks, or none")
        images = self._inner
        if self.masks is None:
            masks = root.resolve() / "masks"
        classes, palette, ignored = read_classes(self.classes)

        def opened(size: Size | None) -> ImageFolder:
            return ImageFolder(
                root,
                images=images,
                masks=str(masks),
                classes=classes,
                palette=palette,
                ignore_labels=ignored,
                missing_masks="unlabelled",
                image_size=size,
            )

        found = opened(self.image_size)
        if self.image_size is None and max(found.image_size) > LONGER_SIDE:
            return opened(fitted(found.image_size, (LONGER_SIDE, LONGER_SIDE)))
        return found


class LabelSession:
    """Select regions, have people label them, and train on them, until the budget is spent; every step is stored.

    ::

        OUT/session.json             settings
        OUT/splits.json              which images are D_S, D_T, D_R, D_V
        OUT/theta_0.safetensors      the network before the first request, if some images were labelled
        OUT/network.safetensors      the network after the last step
        OUT/state.safetensors        the state of the session
        OUT/labels/                  requests and answers; see the oracles

    Args:
        out: The folder.
        settings: Settings of a new session; those in the folder if omitted.

    Raises:
        ValueError: If the folder holds none, or different ones.
    """

    def __init__(self, out: str | Path, settings: SessionSettings | None = None) -> None:
        self.out = Path(out)
        self.settings = _bound(self.out, settings)
        self.data = self.settings.data()

    @property
    def label_folder(self) -> LabelFolder:
        """The answers so far."""
        exchange = self.out / LABELS
        return LabelFolder(exchange / "answers", self.data, manifest=exchange / MANIFEST)

    def run(self, tool: str | Callable[[SegmentationData, Path], AnswersRequests], wait: bool = False) -> bool:
        """Continue until people are needed, or the budget is spent.

        Args:
            tool: A name from :data:`TOOLS`, or a function that makes an oracle from data and folder.
            wait: Whether to look for answers every few seconds instead of ending.

        Returns:
            Whether the budget is spent.

        Raises:
            LabelsPending: If labels are missing, unless ``wait``.
            ValueError: If images, options or answers do not match; the session is then unchanged.
        """
        make = tool if callable(tool) else TOOLS[check_choice("tool", tool, tuple(TOOLS))]
        with folder_lock(self.out):
            if not (self.out / STATE).exists():  # a session that has begun goes on
                self._check_policy()
            if not _begun(self.out) and any(self._changed_names()):
                _remove_splits(self.out)
            self.check_names()
            self.check_answers()
            self._tell_ignored()
            oracle = make(self.data, self.out / LABELS)
            data = self._with_reward(oracle, wait)
            env = self.make_env(data, oracle=oracle)
            _write_settings(self.out, self.settings)  # the budget may be another now, and the files moved
            if env.splits.train and "weights" not in self.options:
                self._fit_theta_0(env)
                env = self.make_env(data, oracle=oracle)
            return self._play(env, oracle, wait)

    @property
    def options(self) -> dict[str, Any]:
        """Options of :func:`~al_seg_env.make_env`."""
        settings = self.settings
        options = {
            **NETWORK_OPTIONS,
            "split": "eval",
            "budget": settings.budget,
            "regions_per_step": settings.regions_per_step,
            **self._policy.arguments,
            **settings.options,
        }
        if (self.out / THETA_0).exists():
            options["weights"] = str(self.out / THETA_0)
        return options

    def make_env(self, data: SegmentationData, **options: Any) -> RegionSelectionEnv:
        """Return the session's environment, at theta_0.

        Args:
            data: The session's data, or the same with answers.
            options: Options that override the session's.
        """
        path, reward = self.out / SPLITS, self._reward_images
        if reward and not path.exists():
            _splits_with_reward(len(data.names), reward, self.settings.seed).save(path, data)
        splits = str(path) if path.exists() else self.settings.seed
        with_reward = "miou" if reward or self.data.labelled else None
        env = make_env(data, splits=splits, **{"reward": with_reward, **self.options, **options})
        if not path.exists():
            env.splits.save(path, data)
        return env

    @property
    def _policy(self) -> Any:
        policy = self.settings.policy
        return parse_policy(f"agent={policy}" if policy.endswith(AGENT_SUFFIX) and "=" not in policy else policy)

    def _check_policy(self) -> None:
        """Refuse a policy that needs labels which a session does not have."""
        policy = self._policy.policy
        truthful = policy not in KNOWS_TRUTH
        check("policy", policy, truthful, "one that does not need the ground truth of what it requests, like 'entropy'")
        known = policy not in WEIGHS_CLASSES or len(self.data.labelled) > 0
        check("policy", policy, known, "one that needs no labelled images, such as 'entropy', or masks of some images")

    def _tell_ignored(self) -> None:
        """Say which files in the images' folder are not read, since a photograph among them would be missed."""
        folder, classes = Path(self.settings.images) / self.settings._inner, Path(self.settings.classes).resolve()
        files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
        others = [path for path in files if path.suffix.lower() not in SUFFIXES and path.resolve() != classes]
        kinds = Counter(path.suffix.lower() or "without suffix" for path in others)
        if kinds:
            listed = ", ".join(f"{kind} ({count})" for kind, count in sorted(kinds.items()))
            logger.warning("%d images; %d other files are not read: %s", len(self.data.names), kinds.total(), listed)

    @property
    def _reward_images(self) -> list[int]:
        """Images whose first regions become D_R."""
        if self.data.labelled or not self.settings.reward_images:
            return []
        if (self.out / SPLITS).exists():
            return list(Splits.load(self.out / SPLITS, self.data).reward)
        count = min(self.settings.reward_images, max(1, len(self.data.names) // 2))
        drawn = np.random.default_rng(self.settings.seed).choice(len(self.data.names), count, replace=False)
        return sorted(drawn.tolist())

    @property
    def _grid(self) -> RegionGrid:
        size = self.settings.options.get("region_size") or sixteenth(self.data.image_size)
        return RegionGrid(self.data.image_size, (int(size[0]), int(size[1])))

    def _first_boxes(self) -> list[Box]:
        """Return a random region of each image that becomes D_R."""
        grid, rng = self._grid, np.random.default_rng([self.settings.seed, 1])
        boxes = []
        for image in self._reward_images:
            original = self.data.original(image)
            boxes.append(rng.choice([i for i in grid.regions_of([image]) if original.holds(grid.box(i))]))
        return [grid.box(region) for region in boxes]

    def check_names(self) -> None:
        """Refuse added or removed images once something was requested: D_R and the pools are of the earlier ones.

        Raises:
            ValueError: If there are any. The message names them.
        """
        added, gone = self._changed_names()
        if not (added or gone) or not _begun(self.out):
            return
        problems = []
        if added:
            names = ", ".join(map(repr, added[:3]))
            problems.append(f"has {len(added)} images that were not there when it began ({names}): remove them")
        if gone:
            names = ", ".join(map(repr, gone[:3]))
            problems.append(f"lacks {len(gone)} images that were there when it began ({names}): restore them")
        raise ValueError(
            f"the session in {self.out} can't continue: {self.settings.images} {'; it '.join(problems)}. For other "
            "images begin a session of their own, with another --out"
        )

    def _changed_names(self) -> tuple[list[str], list[str]]:
        """Return the names of the images that were added since the session began, and of those that are gone."""
        before: Sequence[str] | None = None
        if (self.out / STATE).exists():
            before = load_tree(self.out / STATE, STATE_KIND).get("names")  # states from before it was stored lack it
        if before is None and (self.out / SPLITS).exists():
            before = read_names(self.out / SPLITS)
        now = {*self.data.names}
        return ([], []) if before is None else (sorted(now - {*before}), sorted({*before} - now))

    def check_answers(self) -> None:
        """Raise a ValueError that names answers that the session has used, and that are missing now."""
        path, folder = self.out / STATE, self.label_folder
        if not path.exists() or not folder.manifest.exists():
            return
        kept = load_tree(path, STATE_KIND)
        with well_formed(path):
            boxes = [*self._first_boxes(), *map(self._grid.box, kept["state"]["labels"]["regions"].tolist())]
            regions = [self.data.original(box.image).region(box) for box in boxes]
        if missing := [str(folder.path(region)) for region in regions if not folder.has(region)]:
            raise ValueError(
                f"answers that the session has used are missing: {', '.join(missing[:5])} ({len(missing)} in all); "
                f"restore them, or remove {path}, and al-seg-env label requests them again"
            )

    def network(self) -> Path | None:
        """Return the file of the network after the last step, ``None`` before the first.

        Raises:
            ValueError: If it is missing, or not the one that the last step has left.
        """
        path, state = self.out / NETWORK, self.out / STATE
        if state.exists():
            kept = load_tree(state, STATE_KIND)
            noted = kept.get("network")  # of states from before it was stored, there is none
            if noted is not None and (not path.exists() or file_digest(path) != noted):
                raise ValueError(f"{path} is not what the last step has left; al-seg-env label writes it again")
        return path if path.exists() else None

    def _with_reward(self, oracle: AnswersRequests, wait: bool) -> SegmentationData:
        """Return the data with the first regions labelled, once people have done so."""
        images = self._reward_images
        if not images:
            return self.data
        self.make_env(self.data, reward=None)  # before anyone paints: what does not work can still be changed
        _write_settings(self.out, self.settings)
        requests = requests_of(self.data, self._first_boxes())
        _until_answered(lambda: oracle.answer(requests), wait)
        return AnsweredData(self.data, self.label_folder, images=images)

    def _fit_theta_0(self, env: RegionSelectionEnv) -> None:
        """Train the network on D_T, whose labels exist from the start."""
        logger.info("the network is trained on the %d labelled images of D_T", len(env.splits.train))
        env.reset(seed=self.settings.seed)
        fit_to_convergence(
            env.learner,
            env.frames,
            env.grid,
            env.grid.regions_of(env.splits.train).tolist(),
            env.frames.mask,
            env.splits.reward,
            FitSettings(updates=THETA_0_UPDATES, batch_size=8, replay=0.0, crop_size=None),
            np.random.default_rng(self.settings.seed),
            "theta_0",
        )
        save_weights(env.learner, self.out / THETA_0, self.data.classes)

    def _play(self, env: RegionSelectionEnv, oracle: AnswersRequests, wait: bool) -> bool:
        """Play the episode, from its stored state."""
        policy = make_policy(self._policy.policy, env, self.settings.seed, self._policy.agent)
        observation, info = env.reset(seed=self.settings.seed)
        action = None
        if (self.out / STATE).exists():
            kept = load_tree(self.out / STATE, STATE_KIND)
            with well_formed(f"{self.out / STATE}, in a session with {self.out / THETA_0} and {self.out / SPLITS}"):
                observation, info = env.set_state(kept["state"])
            action = kept["action"]
            if len(env.labels):  # the state has the network, too, whatever became of its file
                self._keep_trained(env, action)
        terminated = info["next_active"] == 0
        self._show(oracle, env, info)
        with (
            tqdm(total=env.config.budget, initial=int(self._spent(env)), desc="labelled", leave=False) as bar,
            logging_redirect_tqdm([logger]),  # messages stand above the bar
        ):
            while not terminated:
                if action is None:
                    action, _ = policy.predict(observation, deterministic=True)
                    # The requests are fixed: a session that resumes repeats them.
                    self._keep(env, action)
                observation, _, terminated, _, info = _until_answered(partial(env.step, action), wait)
                action = None
                self._keep_trained(env, action)
                bar.update(int(self._spent(env)) - bar.n)
                self._show(oracle, env, info)
                if info.get("rewarded", True):
                    bar.set_postfix(miou=f"{info['miou']:.1f}")
        return True

    def _keep_trained(self, env: RegionSelectionEnv, action: Any) -> None:
        save_weights(env.learner, self.out / NETWORK, self.data.classes)
        self._keep(env, action)

    def _keep(self, env: RegionSelectionEnv, action: Any) -> None:
        network = self.out / NETWORK
        digest = file_digest(network) if network.exists() else None
        kept = {"state": env.get_state(), "names": list(self.data.names), "action": action, "network": digest}
        save_tree(self.out / STATE, STATE_KIND, kept)

    def _show(self, oracle: AnswersRequests, env: RegionSelectionEnv, info: Mapping[str, Any]) -> None:
        if isinstance(oracle, ShowsProgress):
            miou = float(info["miou"]) if info.get("rewarded", True) else None
            oracle.show_progress(self._spent(env), env.config.budget, env.config.budget_unit, miou)

    def _spent(self, env: RegionSelectionEnv) -> float:
        return env.labels.spent(env.config.budget_unit)


def _until_answered(ask: Callable[[], Any], wait: bool) -> Any:
    """Return the question's result; while its labels are pending, ask again every few seconds if told to wait."""
    told: set[str] | None = None
    while True:
        try:
            return ask()
        except LabelsPending as pending:
            if not wait:
                raise
            # At first everything, and then only what is wrong with answers that came later.
            news = [pending.told] if told is None else [each for each in pending.problems if each not in told]
            for message in news:
                logger.warning("%s", message)
            told = {*(told or ()), *pending.problems}
            time.sleep(POLL_SECONDS)


def _splits_with_reward(count: int, reward: Sequence[int], seed: int) -> Splits:
    """Return splits in which only D_R is labelled: a twentieth of the others is D_S, the rest D_V."""
    others = [image for image in range(count) if image not in set(reward)]
    order = np.random.default_rng(seed).permutation(others).tolist()
    first = max(1, len(others) // 20)
    return Splits(state=tuple(sorted(order[:first])), train=(), reward=tuple(reward), eval=tuple(sorted(order[first:])))


def _bound(out: Path, settings: SessionSettings | None) -> SessionSettings:
    """Return a session's settings; given ones are stored if it is new, else compared with the stored ones."""
    path = out / SESSION
    if not path.exists():
        check(
            "out",
            str(out),
            settings is not None,
            f"the folder of a labelling session, with its {SESSION}; begin one with al-seg-env label",
        )
        assert settings is not None
        settings.check_out(out)
        refuse_others(out, (SPLITS, THETA_0, NETWORK, STATE), (f"{LABELS}/{MANIFEST}", LOCK))
        settings.data()  # so that a mistake leaves nothing behind
        _write_settings(out, settings)
        return settings
    content = read_json(path, "expected the settings of a labelling session")
    try:
        known = content.pop("format"), content.pop("version")
        if known != (SESSION_FORMAT, SESSION_VERSION):
            raise ValueError(f"it is {known[0]!r}, version {known[1]!r}")
        size = content.pop("image_size")
        stored = SessionSettings(**content, image_size=None if size is None else (int(size[0]), int(size[1])))
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} can't be used ({error}); restore it, or choose another folder") from error
    if settings is None or settings == stored or _continues(settings, stored):
        return settings or stored  # others are stored once an environment could be made with them
    if not _begun(out):
        settings.data()  # so that a mistake leaves the session as it is
        _remove_splits(out)
        _write_settings(out, settings)
        return settings
    changed = [name for name, value in asdict(settings).items() if value != asdict(stored)[name]]
    raise ValueError(
        f"{path} is of a session with other settings: "
        + "; ".join(f"{name} is {asdict(stored)[name]!r} there, {asdict(settings)[name]!r} here" for name in changed)
        + ". Repeat the settings that it was begun with, or choose another folder with --out"
    )


def _write_settings(out: Path, settings: SessionSettings) -> None:
    write_json(out / SESSION, {"format": SESSION_FORMAT, "version": SESSION_VERSION, **asdict(settings)})


def _remove_splits(out: Path) -> None:
    """Remove what was made of other settings or images, so that it is made again."""
    for made in (SPLITS, THETA_0):
        (out / made).unlink(missing_ok=True)


def _begun(out: Path) -> bool:
    """Return whether anything was requested or answered; until then, settings that fail can be corrected."""
    labels = out / LABELS
    return (out / STATE).exists() or (labels.is_dir() and any(labels.iterdir()))


def _continues(settings: SessionSettings, stored: SessionSettings) -> bool:
    """Return whether the differences are allowed: another budget, or moved files."""
    changed: dict[str, Any] = {"budget": stored.budget, "images": stored.images, "classes": stored.classes}
    if settings.masks and stored.masks:
        changed["masks"] = stored.masks
    return replace(settings, **changed) == stored
