"""The paper's disjoint sets of images: D_S, D_T, D_R, D_V and the test set."""

from __future__ import annotations

import json
import logging
import os
import reprlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from al_seg_env.datasets.pairing import listed
from al_seg_env.datasets.segmentation_data import SegmentationData, labelled_images
from al_seg_env.storage import read_json, write_text
from al_seg_env.storage.validation import check, check_int

SPLITS = ("state", "train", "reward", "eval", "test")
FORMAT, VERSION = "al-seg-env splits", 1
NAMED_SPLITS: Mapping[str, Path] = {
    "ralis": Path(__file__).with_name("camvid_ralis.json"),
    "ralis_reward50": Path(__file__).with_name("camvid_ralis_reward50.json"),
}
"""Files of published splits, by name.

``"ralis"``: the splits of the paper's authors for CamVid, with 10 images in D_S, 100 in D_T and 257 in D_V. D_R is the
partition val, and the test set is the partition test. ``"ralis_reward50"``: the same with only 50 images of D_R.
"""

SplitChoice: TypeAlias = int | str | os.PathLike[str] | Mapping[str, Any]
"""Splits given by plain values; see :func:`resolve_splits`."""

logger = logging.getLogger("al_seg_env")
_SUBSETS = 1000  # random choices of D_S, of which the one most like D_T is taken
_SMOOTHING = 1e-6  # added to the share of each class, so that the KL divergence stays finite


@dataclass(frozen=True)
class Splits:
    """Disjoint sets of image indices (paper, section 3 and 4.1).

    Attributes:
        state: D_S, the images whose predictions represent the state. Not empty.
        train: D_T, from which regions are acquired while an agent is trained. Empty only if ``eval`` is not.
        reward: D_R, on which the reward is measured. May be empty if there is no reward (``reward=None``).
        eval: D_V, from which a trained agent acquires. Empty only if ``train`` is not.
        test: Images for the final results; may be empty.

    Raises:
        ValueError: If a set has anything but indices, an index occurs twice (the message names all of them, with their
            sets), or a set is empty that must not be.
    """

    state: tuple[int, ...]
    train: tuple[int, ...]
    reward: tuple[int, ...]
    eval: tuple[int, ...]
    test: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name, ids in self._items():
            check(name, ids, isinstance(ids, Iterable) and not isinstance(ids, str), "indices of images")
            object.__setattr__(self, name, tuple(check_int(f"an index of {name}", i) for i in ids))
        problems = [
            f"{name} holds {again} more than once"
            for name, ids in self._items()
            if (again := [i for i, n in Counter(ids).items() if n > 1])
        ]
        for (one, a), (other, b) in combinations(self._items(), 2):
            if both := sorted(set(a) & set(b)):
                problems.append(f"{one} and {other} share {both}")
        if problems:
            raise ValueError(f"the splits must be disjoint, but {'; '.join(problems)}; keep each image in one split")
        if not self.state:
            raise ValueError("state must hold at least one image; give more images or other sizes")
        if not self.train and not self.eval:
            raise ValueError("train and eval are both empty; one of them must hold images to acquire from")

    @classmethod
    def draw(
        cls,
        data: SegmentationData,
        seed: int,
        *,
        sizes: Mapping[str, int | None],
        sources: Mapping[str, str | None] | None = None,
    ) -> Splits:
        """Draw splits at random, with a D_S that is representative of D_T (paper, section 4.1 and footnote 2).

        The images of state and train are drawn together, uniformly. Of 1000 random choices of the state among them, the
        one is taken whose distribution of pixels over classes is closest to that of the remaining images. The measure
        is the KL divergence of D_T from D_S, which penalises classes that D_S lacks most. 1e-6 is added to each share,
        and the first choice is taken on ties. Masks are read for these images alone.

        If some images have no mask (see ``labelled`` of :class:`SegmentationData`), reward, train and test are drawn
        from the images that have one. So is state if it is drawn together with train.

        Args:
            data: The images.
            seed: Equal seeds give equal splits; at least 0.
            sizes: The number of images in each split. None stands for all images of the source that other splits leave;
                only one split of each source can have it. Splits that are omitted are empty.
            sources: The partition of ``data`` from which each split is drawn; all images if omitted or None. State and
                train must have the same source.

        Raises:
            ValueError: If sizes or sources contradict each other, or the data have too few images.
        """
        sources = sources or {}
        _check_request(sizes, sources)
        rng = np.random.default_rng(check_int("seed", seed))
        state, train = sizes.get("state", 0), sizes.get("train", 0)
        wanted = {"state+train": None if state is None or train is None else state + train}
        wanted.update((name, sizes.get(name, 0)) for name in ("reward", "eval", "test"))
        drawn = _draw_groups(data, wanted, {**sources, "state+train": sources.get("state")}, rng, with_train=train != 0)
        group = drawn.pop("state+train")
        count = state if state is not None else len(group) - (train or 0)
        if not 0 < count <= len(group):
            raise ValueError(
                f"state={state} and train={train} are requested, but {len(group)} images are left of their source; "
                "expected at least 1 for state: request fewer images"
            )
        chosen = _like_the_rest(data, group, count, rng)
        return cls(
            state=tuple(sorted(chosen)),
            train=tuple(sorted(set(group) - set(chosen))),
            **{name: tuple(sorted(ids)) for name, ids in drawn.items()},
        )

    @classmethod
    def load(cls, path: str | Path, data: SegmentationData) -> Splits:
        """Read splits that :meth:`save` wrote. Images are found by name.

        Raises:
            OSError: If the file cannot be read.
            ValueError: If it is not a file of splits, or names images that ``data`` lacks. The message lists them.
        """
        content = _read(Path(path))
        index = {name: i for i, name in enumerate(data.names)}
        unknown = [name for split in SPLITS for name in content[split] if name not in index]
        if unknown:
            raise ValueError(
                f"{path} names {len(unknown)} images that the data do not have: {listed(unknown)}. "
                f"The data's {len(index)} images are named like {data.names[0]!r}; use the data that the splits are of"
            )
        count = Counter(name for split in SPLITS for name in content[split])
        if again := [name for name, n in count.items() if n > 1]:
            where = [f"{name} ({', '.join(s for s in SPLITS if name in content[s])})" for name in again]
            raise ValueError(f"{path} names images more than once: {listed(where)}; keep each in one split")
        try:
            return cls(**{split: tuple(index[name] for name in content[split]) for split in SPLITS})
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def save(self, path: str | Path, data: SegmentationData) -> None:
        """Write the splits as JSON with the images' names. An existing file is replaced atomically.

        Raises:
            ValueError: If ``data`` has no image with an index of the splits.
        """
        beyond = [i for _, ids in self._items() for i in ids if i >= len(data.names)]
        if beyond:
            raise ValueError(
                f"the splits have the indices {beyond}, but the data only {len(data.names)} images; save them with the "
                "data that they were drawn from"
            )
        lines = [f'"format": {json.dumps(FORMAT)}', f'"version": {VERSION}']
        for name, ids in self._items():
            lines.append(f'"{name}": {json.dumps([data.names[i] for i in ids], separators=(",", ":"))}')
        write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")

    def _items(self) -> list[tuple[str, tuple[int, ...]]]:
        return [(name, getattr(self, name)) for name in SPLITS]


def resolve_splits(
    data: SegmentationData,
    splits: SplitChoice,
    sizes: Mapping[str, int | None],
    sources: Mapping[str, str | None],
) -> Splits:
    """Return the splits that plain values describe.

    The logger ``al_seg_env`` warns if the data have partitions that the splits do not follow, unless ``splits`` gives
    the source of any split.

    Args:
        data: The images.
        splits: A seed to draw splits with; a file of :meth:`Splits.save`; one of :data:`NAMED_SPLITS`; or a mapping
            that overrides how single splits are drawn, such as
            ``{"seed": 0, "train": 50, "test": {"from": "test"}}``. Its values are a number of images, None for all that
            are left, or ``{"from": partition, "size": number}``. Without ``"size"``, the split gets all images of the
            partition that other splits leave; without ``"from"``, its partition is the one in ``sources``.
        sizes: Number of images of each split that is drawn, unless ``splits`` overrides it; see :meth:`Splits.draw`.
        sources: Partition of each split that is drawn, unless ``splits`` overrides it.

    Raises:
        ValueError: If ``splits`` is anything else, or contradicts the data.
    """
    if isinstance(splits, str | os.PathLike):
        path = Path(splits) if not isinstance(splits, str) else NAMED_SPLITS.get(splits, Path(splits))
        if not path.is_file():
            raise ValueError(
                f"splits {str(splits)!r} is neither a file nor one of the published splits {sorted(NAMED_SPLITS)}"
            )
        return Splits.load(path, data)
    if isinstance(splits, Mapping):
        seed = splits.get("seed", 0)
        sizes, sources = _request(data, {name: part for name, part in splits.items() if name != "seed"}, sizes, sources)
    elif isinstance(splits, int | np.integer) and not isinstance(splits, bool):
        seed = check_int("splits", splits)
    else:
        raise ValueError(f"splits is {reprlib.repr(splits)}; expected a seed, a file, a name or a mapping")
    drawn = Splits.draw(data, seed, sizes=sizes, sources=sources)
    if not isinstance(splits, Mapping) or not any(isinstance(part, Mapping) for part in splits.values()):
        _tell_what_is_not_followed(data, {sources.get(name) for name in SPLITS if getattr(drawn, name)})
    return drawn


def _request(
    data: SegmentationData,
    parts: Mapping[str, Any],
    sizes: Mapping[str, int | None],
    sources: Mapping[str, str | None],
) -> tuple[dict[str, int | None], dict[str, str | None]]:
    """Return sizes and sources, overridden by the ``parts`` of a mapping; see :func:`resolve_splits`."""
    sizes, sources = dict(sizes), dict(sources)
    whole = []
    for name, part in parts.items():
        if not isinstance(part, Mapping):
            sizes[name] = part
            continue
        source, sizes[name] = part.get("from", sources.get(name)), part.get("size")
        if not part or not set(part) <= {"from", "size"} or not isinstance(source, str | None):
            raise ValueError(
                f"splits: {name} is {reprlib.repr(dict(part))}; expected a number of images, None, or "
                '{"from": partition, "size": number}'
            )
        sources[name] = source
        if sizes[name] is None and source is not None:
            whole.append(name)
    for name in whole:
        others = [size for other, size in sizes.items() if other != name and sources.get(other) == sources[name]]
        numbers = [size for size in others if isinstance(size, int)]
        if len(numbers) == len(others):
            # A number, so that this split is drawn before splits that take images of any partition.
            sizes[name] = max(0, len(_source_ids(data, sources[name])) - sum(numbers))
    return sizes, sources


def _tell_what_is_not_followed(data: SegmentationData, followed: set[str | None]) -> None:
    """Warn of partitions that no split was drawn from, because test images may then be among the training images."""
    partitions: Mapping[str, Sequence[int]] = getattr(data, "partitions", {})
    others = sorted(set(partitions) - followed)
    if not others:
        return
    if None in followed:
        logger.warning(
            "the data's partitions %s are not followed: their images are drawn for any split. To follow them, name "
            'them in splits, as in {"test": {"from": %r}}; in an image folder, train, val and test are followed',
            others,
            others[-1],
        )
    else:
        logger.warning("the images of the data's partitions %s are in no split", others)


def _check_request(sizes: Mapping[str, int | None], sources: Mapping[str, str | None]) -> None:
    if unknown := sorted(map(repr, (set(sizes) | set(sources)) - set(SPLITS))):
        raise ValueError(f"splits has the unknown names {', '.join(unknown)}; expected names out of {list(SPLITS)}")
    for name, size in sizes.items():
        if size is not None:
            check_int(f"{name} (images of this split, None for the rest)", size)
    for name, source in sources.items():
        check(f"the source of {name}", source, isinstance(source, str | None), "the name of a partition, or None")
    if sizes.get("train", 0) != 0 and sources.get("state") != sources.get("train"):
        raise ValueError(
            f"state and train must share a source, got {sources.get('state')!r} and {sources.get('train')!r}"
        )
    rests = Counter(sources.get(name) for name, size in sizes.items() if size is None)
    if twice := [source for source, n in rests.items() if n > 1]:
        names = ", ".join("all images" if source is None else repr(source) for source in twice)
        raise ValueError(f"only one split can take the rest (None) of a source, but several do of: {names}")


def _source_ids(data: SegmentationData, source: str | None) -> Sequence[int]:
    if source is None:
        return range(len(data.names))
    partitions: Mapping[str, Sequence[int]] = getattr(data, "partitions", {})
    if source not in partitions:
        raise ValueError(f"the data have no partition {source!r}; they have {sorted(partitions)}")
    return partitions[source]


def _draw_groups(
    data: SegmentationData,
    sizes: Mapping[str, int | None],
    sources: Mapping[str, str | None],
    rng: np.random.Generator,
    with_train: bool,
) -> dict[str, list[int]]:
    """Return disjoint lists of indices, drawn uniformly, of these ``sizes`` (None: all that is left)."""
    drawn: dict[str, list[int]] = {}
    taken: set[int] = set()
    labelled = set(labelled_images(data))
    need_labels: set[str] = set()
    if len(labelled) < len(data.names):
        need_labels = {"reward", "test"} | ({"state+train"} if with_train else set())
    # Partitions come before "all images", and numbers before "the rest", so that every request is met if possible.
    # If some images have no labels, splits that need labels come first.
    for name in sorted(sizes, key=lambda n: (n not in need_labels, sizes[n] is None, sources.get(n) is None)):
        size, source = sizes[name], sources.get(name)
        left = [i for i in _source_ids(data, source) if i not in taken and (i in labelled or name not in need_labels)]
        if size is not None and size > len(left):
            of = "all images" if source is None else f"partition {source!r}"
            of = f"the labelled ones of {of}" if name in need_labels else of
            raise ValueError(
                f"{name}: {size} images are requested, but {len(left)} are left of {of}; request fewer images: "
                f'splits={{"{name.split("+")[-1]}": ...}}, or sizes of Splits.draw'
            )
        drawn[name] = [int(left[i]) for i in rng.permutation(len(left))[:size]]
        taken.update(drawn[name])
    return drawn


def _like_the_rest(data: SegmentationData, group: Sequence[int], count: int, rng: np.random.Generator) -> list[int]:
    """Return ``count`` images of ``group`` whose class distribution is close to that of the others."""
    if count == len(group):
        return list(group)
    pixels = np.stack([_class_counts(data, i) for i in group])  # (n, C)
    order = rng.random((_SUBSETS, len(group))).argsort(axis=1)  # (subsets, n)
    member = np.zeros(order.shape)
    np.put_along_axis(member, order[:, :count], 1.0, axis=1)
    of_state = member @ pixels  # (subsets, C)
    p, q = _shares(pixels.sum(axis=0) - of_state), _shares(of_state)
    divergence = (p * np.log(p / q)).sum(axis=1)
    best = int(divergence.argmin())
    return [group[i] for i in order[best, :count]]


def _class_counts(data: SegmentationData, image: int) -> npt.NDArray[np.float64]:
    mask = np.asarray(data.mask(image))
    if mask.dtype != np.uint8:
        raise ValueError(
            f"mask {data.names[image]!r} is of {mask.dtype}; expected uint8, with 255 for unlabelled pixels"
        )
    return np.bincount(mask.reshape(-1), minlength=256)[: len(data.classes)].astype(np.float64)


def _shares(pixels: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the smoothed distribution for counts of pixels per class, both ``(..., C)``."""
    shares = pixels / np.maximum(pixels.sum(axis=-1, keepdims=True), 1.0) + _SMOOTHING
    return shares / shares.sum(axis=-1, keepdims=True)


def read_names(path: str | Path) -> list[str]:
    """Return the names of all images in a file of :meth:`Splits.save`.

    Raises:
        OSError, ValueError: If it cannot be read, or is anything else.
    """
    content = _read(Path(path))
    return [name for split in SPLITS for name in content[split]]


def _read(path: Path) -> dict[str, list[str]]:
    """Return the names in each split of a file, or raise a ValueError that says what is wrong with it."""
    expected = f'expected {{"format": "{FORMAT}", "version": {VERSION}, "state": [names], "train": [names], ...}}'
    content = read_json(path, expected)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path} is not a file of splits; {expected}")
    if content.get("version") != VERSION:
        found = reprlib.repr(content.get("version"))
        raise ValueError(f"{path} has the version {found}; this release reads {VERSION}")
    if missing := [split for split in SPLITS if split not in content]:
        raise ValueError(f"{path} lacks the splits {missing}; {expected}")
    if unknown := sorted(set(content) - {*SPLITS, "format", "version"}):
        raise ValueError(f"{path} holds the unknown keys {reprlib.repr(unknown)}; {expected}")
    for split in SPLITS:
        if not isinstance(content[split], list) or not all(isinstance(n, str) for n in content[split]):
            raise ValueError(f"{path}: {split} is not a list of names; {expected}")
    return {split: content[split] for split in SPLITS}
