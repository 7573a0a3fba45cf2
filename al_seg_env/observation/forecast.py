"""What networks that were trained on other images make of a region."""

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


def save_forecast(path: str | Path, networks: Sequence[tuple[Mapping[str, Any], Collection[str]]]) -> None:
    """Write networks for :class:`Forecast`.

    Args:
        path: The file.
        networks: Of each, the learner's ``state_dict()`` and the names of the images whose labels it was trained on.
    """
    parts = [{"state": dict(state), "images": sorted(images)} for state, images in networks]
    save_tree(path, KIND, {"networks": parts})


class Forecast:
    """What networks that were trained beforehand, on whole labelled images, make of a region: never on its own image.

    Mean and maximum of each class's probability over the region, and its share of the mean entropy; the mean over all
    networks whose training did not include the region's image. So an agent that is trained on images of D_T reads of
    them what it will read of D_V: the forecast of a network that has not seen the image (cross-fitting; Chernozhukov et
    al., 2018). Images that all networks were trained on, as those of D_S may be, are forecast by all. It does not
    depend on the weights that are trained in an episode.

    Args:
        path: What :func:`save_forecast` wrote; without it, there are bounds and nothing else.
        frames: The images.
        inputs: Makes the learner's batches of them.
        grid: The grid of regions.
        learner: A copy of it runs with the networks' weights.
        splits: Of the environment.
        stride: Regions are described by every n-th of their pixels per row and column.

    Raises:
        ValueError: If the file can't be read, its networks are of another learner, or were trained on images of D_R,
            D_V or the test set.
    """

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
            names = [set(part["images"]) for part in tree["networks"]]
        self.digest = tree_digest(tree)
        self.name = f"{KIND}_{self.digest[:8]}"
        all_names = frames.data.names
        unseen = {all_names[i] for i in (*splits.reward, *splits.eval, *splits.test)}
        if leaked := sorted(unseen.intersection(*[set().union(*names)])):
            raise ValueError(
                f"{path}: its networks were trained on {leaked[0]!r}, which is an image of D_R, D_V or the test set "
                f"here ({len(leaked)} such images); use a forecast that was trained with these splits"
            )
        self._learner = copy.deepcopy(learner)
        known = {name: index for index, name in enumerate(all_names)}
        for state, trained_on in zip(states, names, strict=True):
            try:
                self._learner.load_state_dict(state)
            except Exception as error:  # what a learner raises is not known here
                why = shorten(str(error), 200)
                raise ValueError(f"{path}: its networks do not fit this one: {why}") from error
            self._networks.append((state, frozenset(known[name] for name in trained_on if name in known)))
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

    def __deepcopy__(self, memo: dict[int, Any]) -> Forecast:
        return self  # nothing in it depends on an episode

    def bounds(self, num_classes: int, region_size: Size) -> tuple[FloatArray, FloatArray]:
        """Return bounds of ``(3 C,)``."""
        return feature_bounds(PARTS, num_classes, region_size)

    def __call__(self, prediction: Prediction) -> Tensor:
        """Return ``(M, 3 C)``.

        Raises:
            ValueError: If there is no file.
        """
        if not self._networks:
            raise ValueError(
                f"region_features names {KIND!r}, which needs {KIND}=, a file of networks that were trained "
                "beforehand; make one with al_seg_experiment.train_forecast, or omit the feature"
            )
        assert prediction.image_of is not None
        self._prepare(sorted({int(image) for image in prediction.image_of} - set(self._of_image)))
        return looked_up(self._of_image.__getitem__, prediction)

    def _prepare(self, images: Sequence[int]) -> None:
        """Forecast the regions of some images, ``(R, 3 C)`` each.

        Image by image: which images share a batch changes the last bits of a convolution, and an episode must not
        depend on which images those before it looked at.
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
