"""A feature from the predictions of networks that were trained on other images."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
import torch
from torch import Tensor

from al_seg_env.datasets.frames import Frames
from al_seg_env.datasets.splits import Splits
from al_seg_env.learner.contract import Learner
from al_seg_env.learner.inputs import Inputs
from al_seg_env.observation.composition import ClassEntropy, MaxProbability, MeanProbability, looked_up
from al_seg_env.observation.features import Prediction, feature_bounds
from al_seg_env.observation.observer import Observer
from al_seg_env.regions import RegionGrid
from al_seg_env.storage import load_tree, save_tree, tree_digest, well_formed
from al_seg_env.types import FloatArray, Size

KIND = "forecast"
PARTS = (MeanProbability(), MaxProbability(), ClassEntropy())


def save_forecast(
    path: str | Path, networks: Sequence[tuple[Mapping[str, Any], Collection[str]]], classes: Sequence[str]
) -> None:
    """Write networks for :class:`Forecast`.

    Args:
        path: The file.
        networks: For each network, the learner's ``state_dict()`` and the names of the images it was trained on.
        classes: Names of the classes that the networks were trained for.
    """
    parts = [{"state": dict(state), "images": sorted(images)} for state, images in networks]
    save_tree(path, KIND, {"networks": parts, "classes": list(classes)})


class Forecast:
    """Predictions for a region by networks that were trained beforehand, on whole labelled images.

    The feature has the mean and the maximum of each class's probability over the region, and the class's share of the
    mean entropy. It is the mean over all networks that were not trained on the region's image. So an agent that is
    trained on images of D_T learns from predictions for images that a network has not seen, as it is with images of D_V
    (cross-fitting; Chernozhukov et al., 2018). However, one network predicts an image of D_T, and all networks an image
    of D_V, whose mean is smoother. All networks predict images of D_S, which all may have seen. The feature does not
    depend on the weights that are trained in an episode.

    Args:
        path: File that :func:`save_forecast` wrote. Without it, only the bounds can be used.
        frames: The images.
        inputs: Makes the learner's batches of the images.
        grid: The grid of regions.
        learner: The learner, a copy of which runs with the networks' weights.
        splits: The environment's splits.
        stride: Regions are described by every n-th of their pixels per row and column.

    Raises:
        ValueError: If the file can't be read, or its networks are of another learner or of other classes, are not
            finite, were trained on images that are not in D_S or D_T, or were all trained on the same image of D_T.
    """

    MOST_KEPT = 4096
    """Number of images whose forecast is kept."""

    def __init__(
        self,
        path: str | Path | None,
        frames: Frames,
        inputs: Inputs,
        grid: RegionGrid,
        learner: Learner,
        splits: Splits,
        stride: int = 1,
    ) -> None:
        self.grid, self.name, self.digest = grid, KIND, ""
        self._nothing = np.zeros(learner.num_classes, np.int64)
        self._networks: list[tuple[Mapping[str, Any], frozenset[int]]] = []
        self._of_image: dict[int, Tensor] = {}
        if path is None:
            return
        tree = load_tree(path, KIND)
        with well_formed(path):
            states = [part["state"] for part in tree["networks"]]
            names = [frozenset(part["images"]) for part in tree["networks"]]
            classes = tree.get("classes", list(frames.data.classes))  # files from before have none
        if classes != list(frames.data.classes):
            raise ValueError(
                f"{path}: its networks were trained for the classes {classes}, but the data have "
                f"{list(frames.data.classes)}; use a forecast that was trained for the data's classes"
            )
        if not all(map(_is_finite, states)):
            raise ValueError(f"{path}: its networks have weights that are not finite; train them again")
        self.digest = tree_digest(tree)
        self.name = f"{KIND}_{self.digest[:8]}"
        trained_on = _images_of(names, frames.data.names, splits, path)
        self._learner = copy.deepcopy(learner)
        for state, images in zip(states, trained_on, strict=True):
            try:
                self._learner.load_state_dict(state)
            except (ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
                why = shorten(str(error), 200)
                raise ValueError(f"{path}: its networks do not match the environment's network: {why}") from error
            self._networks.append((state, images))
        self._observer = Observer(
            frames,
            inputs,
            grid,
            self._learner,
            state_images=(),
            candidate_images=(),
            n_pools=1,
            pool_size=1,
            features=PARTS,
            similarity=None,
            scores=(),
            known_counts=self._nothing,
            stride=stride,
        )

    def __copy__(self) -> Forecast:
        """Return a copy that shares networks and forecasts until one of the two uses another precision."""
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> Forecast:
        return copy.copy(self)  # nothing in it depends on an episode

    def __getstate__(self) -> dict[str, Any]:
        """Omit what can be computed again."""
        return {**self.__dict__, "_of_image": {}}

    def adopt(self, numerics: Mapping[str, Any]) -> None:
        """Use another precision and layout from now on; see :class:`~al_seg_env.learner.contract.Learner`."""
        if self._networks and dict(self._learner.numerics) != dict(numerics):
            # New objects, because copies share the old ones.
            learner, self._observer, self._of_image = copy.deepcopy(self._learner), copy.copy(self._observer), {}
            learner.numerics = numerics
            self._learner = self._observer.learner = learner

    def bounds(self, num_classes: int, region_size: Size) -> tuple[FloatArray, FloatArray]:
        """Return bounds of ``(3 C,)``."""
        return feature_bounds(PARTS, num_classes, region_size)

    def __call__(self, prediction: Prediction) -> Tensor:
        """Return ``(M, 3 C)``.

        Raises:
            ValueError: If the object was made without a file.
        """
        if not self._networks:
            raise ValueError(
                f"region_features names {KIND!r}, which needs {KIND}=, a file of networks that were trained "
                "beforehand; make one with al_seg_experiment.train_forecast, or omit the feature"
            )
        assert prediction.image_of is not None
        images = np.unique(prediction.image_of).tolist()
        if len(self._of_image) + len(images) > self.MOST_KEPT:
            self._of_image.clear()
        self._prepare([image for image in images if image not in self._of_image])
        return looked_up(self._of_image.__getitem__, prediction)

    def _prepare(self, images: Sequence[int]) -> None:
        """Forecast the regions of some images, ``(R, 3 C)`` each.

        Images run one by one: the other images of a batch change the last bits of a convolution, and an episode must
        not depend on which images earlier episodes used.
        """
        forecasts: dict[int, list[Tensor]] = {image: [] for image in images}
        for state, trained_on in self._networks:
            unseen = [image for image in images if image not in trained_on or self._known_to_all(image)]
            if unseen:
                self._learner.load_state_dict(state)
            for image in unseen:
                described = self._observer.described(self.grid.regions_of([image]), self._nothing)
                forecasts[image].append(torch.from_numpy(described))
        for image, parts in forecasts.items():
            self._of_image[image] = torch.stack(parts).mean(dim=0)

    def _known_to_all(self, image: int) -> bool:
        return all(image in trained_on for _, trained_on in self._networks)


def _is_finite(state: Any) -> bool:
    """Return whether all numbers in a learner's state are."""
    if isinstance(state, Mapping):
        return all(map(_is_finite, state.values()))
    return not isinstance(state, Tensor) or bool(torch.isfinite(state).all())


def _images_of(
    networks: Sequence[frozenset[str]], names: Sequence[str], splits: Splits, path: str | Path
) -> list[frozenset[int]]:
    """Return the indices of the images that each network was trained on, or raise a ValueError if they are wrong."""
    known = {names[image]: image for image in (*splits.state, *splits.train)}
    if others := sorted(frozenset[str]().union(*networks) - set(known)):
        raise ValueError(
            f"{path}: its networks were trained on {others[0]!r}, which is not an image of D_S or D_T "
            f"({len(others)} such images); use a forecast that was trained with these data and splits"
        )
    if seen := [name for name in (names[i] for i in splits.train) if all(name in images for images in networks)]:
        raise ValueError(
            f"{path}: all of its networks were trained on {seen[0]!r} of D_T ({len(seen)} such images), so none can "
            "forecast it; use a forecast that was trained with these splits"
        )
    return [frozenset(known[name] for name in images) for images in networks]
