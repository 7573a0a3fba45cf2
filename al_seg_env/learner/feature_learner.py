"""A learner whose encoder is frozen: it trains and runs only what follows, on features that are computed once."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from al_seg_env.datasets.frames import Frames
from al_seg_env.datasets.segmentation_data import IGNORE_LABEL
from al_seg_env.functional import CACHED
from al_seg_env.learner.dropout import dropout_on, seeded, split_at_dropout
from al_seg_env.learner.feature_inputs import FeatureBatch, FeatureInputs
from al_seg_env.learner.feature_store import FEATURE_DTYPES, FeatureStore
from al_seg_env.learner.frozen_encoder import FeatureMaps, divided
from al_seg_env.learner.preparation import Preparation, Prepares
from al_seg_env.learner.torch_learner import IMAGENET_MEAN, IMAGENET_STD, Grid, TorchLearner
from al_seg_env.learner.upsampling import final_upsampling, needed_cells, spaced_weights, upsampled
from al_seg_env.regions import Boxes, cut_boxes
from al_seg_env.storage.validation import check_choice, check_device
from al_seg_env.types import IntArray

HEAD = "segmentation_head"
TOLERANCE = 1e-4


class FeatureLearner(TorchLearner):
    """A :class:`Learner` that trains a network's decoder and head, on stored features of its frozen encoder.

    The encoder stays in evaluation mode with the weights and BatchNorm statistics that it has at construction. It runs
    in float32, once per image; see :class:`~al_seg_env.learner.feature_store.FeatureStore`. All else is as in
    :class:`TorchLearner`: theta_0 are the weights of what follows the encoder, dropout lies there, and batches are
    :class:`~al_seg_env.learner.feature_inputs.FeatureBatch`.

    A network that ends in a bilinear upsampling, as those of segmentation-models-pytorch do, predicts only those pixels
    that are needed. One that states by an attribute ``reach`` how many pixels around a pixel its logits depend on
    (:class:`~al_seg_env.learner.light.Light` does) also runs on windows around what is needed only, with equal results.

    Args:
        network: The whole network. It is not changed; the learner works on copies of its parts.
        num_classes: C, at most 255.
        encoder: Name of the network's attribute that holds its encoder.
        feature_precision: In which features are stored: ``"bfloat16"``, ``"float16"``, or ``"float32"``, with which
            logits in float32 are those of the whole network, bit for bit.
        cache: Folder for the features, which all processes share; ``None`` keeps them in this process's memory.
        mean, std, output_stride, device: See :class:`TorchLearner`.
        options: Further arguments of :class:`TorchLearner`.

    Raises:
        ValueError: If the encoder is not found, or the network needs more of an image than the encoder's output.
    """

    def __init__(
        self,
        network: nn.Module,
        num_classes: int,
        *,
        encoder: str = "encoder",
        feature_precision: str = "bfloat16",
        cache: str | Path | None = None,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        output_stride: int = 1,
        device: str | torch.device = "auto",
        **options: Any,
    ) -> None:
        check_choice("feature_precision", feature_precision, tuple(FEATURE_DTYPES))
        prepare = Preparation(mean, std, output_stride, check_device("device", device), torch.channels_last)
        self.encoder, rest = divided(network, encoder, prepare)
        self.feature_precision, self.cache = feature_precision, None if cache is None else str(cache)
        self._coarse_views: list[tuple[nn.Module, nn.Module]] = []
        super().__init__(rest, num_classes, mean=mean, std=std, output_stride=output_stride, device=device, **options)
        self._upsampling = self._found_upsampling()

    def __getstate__(self) -> dict[str, Any]:
        """Omit what is made again when it is needed."""
        return {**super().__getstate__(), "_coarse_views": []}

    def _lay_out(self, prepare: Prepares) -> None:
        super()._lay_out(FeaturePreparation(self.device, self.dtype, prepare.memory_format))

    def _probe(self) -> Any:
        return self.encoder.probe

    def inputs(self, frames: Frames) -> FeatureInputs:
        """Return what makes this learner's batches of images."""
        return FeatureInputs(frames, self._store, self.reach)

    def _store(self, frames: Frames) -> FeatureStore:
        return FeatureStore.shared(frames, self.encoder, self.feature_precision, self.cache)

    @property
    def reach(self) -> int | None:
        """How many pixels around a pixel its logits depend on, if the network states it."""
        exact = self._upsampling is not None and not self._align_corners
        return getattr(self.network, "reach", None) if exact else None

    def whole_state_dict(self) -> dict[str, Tensor]:
        """Return weights and buffers of the whole network, its encoder's too."""
        return self.encoder.joined_state_dict(self.network)

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of what training changes, and what identifies the encoder."""
        return {**super().state_dict(), "encoder": self._encoder_identity}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned, exactly.

        Raises:
            ValueError: If it is of a learner with another encoder, whose features the weights were trained on.
        """
        if state.get("encoder") != self._encoder_identity:
            raise ValueError(
                f"the weights were trained on features of encoder {state.get('encoder')}, but this learner's is "
                f"{self._encoder_identity}; use the same encoder weights and feature_precision, and trainable='decoder'"
            )
        super().load_state_dict(state)

    @property
    def _encoder_identity(self) -> str:
        return f"{self.encoder.digest} in {self.feature_precision}"

    @torch.inference_mode()
    def predict_boxes(self, batch: FeatureBatch, groups: Sequence[Sequence[Boxes]]) -> Iterator[Tensor]:
        """Yield the logits of the pixels of one group of boxes after another.

        See :class:`~al_seg_env.learner.contract.PredictsBoxes`.
        """
        if self._upsampling is None:
            logits = self.predict(batch)
            for group in groups:
                yield cut_boxes(logits, group)
            return
        views, places = self._views_of(batch, [boxes for group in groups for boxes in group])
        coarse = next(self._in_turn(self._coarse, views))
        for group in groups:
            # Group by group, so that what is computed of them next is still near the processor.
            yield self._cut(coarse, views, [places.pop(0) for _ in group])

    @torch.inference_mode()
    def sample_boxes(
        self, batch: FeatureBatch, boxes: Sequence[Boxes], count: int, rng: np.random.Generator
    ) -> Iterator[Tensor]:
        """Yield the logits of some boxes under random dropout masks; see :meth:`TorchLearner.sample`."""
        if self._upsampling is None:
            for logits in self.sample(batch, count, rng):
                yield cut_boxes(logits, boxes)
            return
        self._check_samples(count)
        views, places = self._views_of(batch, boxes)
        samples = partial(self._coarse_samples, count=count, seed=int(rng.integers(2**63)))
        for coarse in self._in_turn(samples, views):
            yield self._cut(coarse, views, places)

    def _views_of(self, batch: FeatureBatch, boxes: Sequence[Boxes]) -> tuple[FeatureBatch, list[Boxes]]:
        """Return what has to run to predict some boxes, and these boxes in its images."""
        windows = batch.inputs.windows(batch, boxes)
        if windows is None:
            return batch, list(boxes)
        ends = np.cumsum([len(group.images) for group in boxes])
        rows = np.split(np.arange(len(windows)), ends[:-1])
        corners = windows.corners
        return windows, [
            group._replace(images=views, tops=group.tops - corners[views, 0], lefts=group.lefts - corners[views, 1])
            for views, group in zip(rows, boxes, strict=True)
        ]

    def _coarse(self, views: FeatureBatch) -> Iterator[Tensor]:
        """Yield the logits ``(B, C, h, w)`` of views once, not upsampled."""
        prepared = self.prepare(views, self._grown(len(views)))
        with self._autocast():
            logits = self._coarse_view(self._predictor(prepared))(prepared)
        yield logits[: len(views)].float()

    def _coarse_samples(self, views: FeatureBatch, count: int, seed: int) -> Iterator[Tensor]:
        """Yield such logits under ``count`` dropout masks."""
        prepared = self.prepare(views, self._grown(len(views)))
        network = self._coarse_view(self._predictor(prepared))
        rest, inputs = split_at_dropout(network)
        with self._autocast():
            features = inputs(prepared)
        for index in range(count):
            with seeded(seed + index, self.device), self._autocast(), dropout_on(network):
                logits = rest(features)
            yield logits[: len(views)].float()

    def _cut(self, coarse: Tensor, views: FeatureBatch, boxes: Sequence[Boxes]) -> Tensor:
        """Return the logits ``(C, P)`` of boxes in views from those that are not upsampled."""
        parts = []
        for group in boxes:
            (rows, row_weights), (columns, column_weights) = (
                self._cells(starts, length, cells, pixels, group.stride)
                for starts, length, cells, pixels in zip(
                    (group.tops, group.lefts), group.size, coarse.shape[2:], views.encoded_size, strict=True
                )
            )
            images = torch.from_numpy(group.images).to(coarse.device)
            around = coarse.movedim(1, 0)[:, images[:, None, None], rows[:, :, None], columns[:, None]]  # (C, n, h, w)
            parts.append(upsampled(around, row_weights, column_weights).flatten(1))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _cells(self, starts: IntArray, length: int, cells: int, pixels: int, stride: int) -> tuple[Tensor, Tensor]:
        """Return the cells ``(n, m)`` that every ``stride``-th pixel from each start on needs, and their weights."""
        different, which = np.unique(starts, return_inverse=True)
        corners = self._align_corners
        found = [needed_cells(cells, pixels, int(start), length, stride, corners) for start in different]
        where = torch.from_numpy(which)
        numbers, weights = (torch.stack(tables)[where].to(self.device) for tables in zip(*found, strict=True))
        return numbers, weights

    def _weights_on(self, images: FeatureBatch, coarse: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """Return the weights ``(n, cells)`` of the rows, and of the columns, that a grid takes of some views."""
        rows, columns = (
            spaced_weights(
                cells, pixels, taken.start or 0, len(range(side)[taken]), taken.step or 1, self._align_corners
            ).to(self.device)
            for taken, side, cells, pixels in zip(
                grid, images.image_size, coarse.shape[2:], images.encoded_size, strict=True
            )
        )
        return rows, columns

    def _logits_on(self, images: FeatureBatch, grid: slice) -> Iterator[Tensor]:
        if self._upsampling is None:
            yield from super()._logits_on(images, grid)
            return
        coarse = next(self._in_turn(self._coarse, images))
        rows, columns = self._weights_on(images, coarse, (grid, grid))
        # As many at once as stay near the processor until their classes are counted.
        size = max(1, CACHED // (self.num_classes * len(rows) * len(columns)))
        for few in coarse.split(size):
            yield upsampled(few, rows, columns)

    def _training_logits(self, images: FeatureBatch, targets: Tensor, grid: Grid, seed: int) -> tuple[Tensor, Tensor]:
        if self._upsampling is None:
            return super()._training_logits(images, targets, grid, seed)
        network = self._coarse_view(self.network)
        with seeded(seed, self.device), self._autocast():
            coarse = network(self.prepare(images))
        # Of each view, only the rows and columns of the grid that hold a label are upsampled.
        targets = targets[:, grid[0], grid[1]]
        labelled = targets != IGNORE_LABEL
        rows, columns = (_held(labelled.any(dim=side)) for side in (2, 1))
        row_weights, column_weights = (
            weights[held.to(self.device)][:, None]
            for weights, held in zip(self._weights_on(images, coarse, grid), (rows, columns), strict=True)
        )
        view = torch.arange(len(targets))[:, None, None]
        return upsampled(coarse, row_weights, column_weights), targets[view, rows[:, :, None], columns[:, None]]

    def _accompanied(self, images: FeatureBatch, targets: Tensor) -> tuple[FeatureBatch, Tensor]:
        """Return a lone view twice: stored features have no mirror image."""
        return images.repeated(2), torch.cat([targets, targets])

    def _coarse_view(self, network: nn.Module) -> nn.Module:
        """Return a network without its final upsampling; the layers are the same."""
        for known, view in self._coarse_views:
            if known is network:
                return view
        assert self._upsampling is not None
        view = copy.copy(network)
        head = list(network.get_submodule(HEAD).children())[: self._upsampling]
        view._modules = {**network._modules, HEAD: nn.Sequential(*head)}
        # There are two: the network that is trained, and the copy that predicts.
        self._coarse_views = [*self._coarse_views[-1:], (network, view)]
        return view

    def _grown(self, count: int) -> int:
        """Return the length to grow a batch to: each new one costs a CPU new kernels; at most an eighth is added."""
        unit = 1 << max(0, count.bit_length() - 4)
        return -(-count // unit) * unit

    @torch.inference_mode()
    def _found_upsampling(self) -> int | None:
        """Return which layer of the head upsamples the logits, if that can be left to this learner."""
        head = getattr(self.network, HEAD, None)
        found = final_upsampling(head) if isinstance(head, nn.Module) else None
        if found is None:
            return None
        self._upsampling, layer = found
        self._align_corners = bool(layer.align_corners)
        given = self.encoder.probe
        expected = self.network(given)
        coarse = self._coarse_view(self.network)(given)
        rows, columns = (
            spaced_weights(cells, pixels, 0, pixels, 1, self._align_corners).to(self.device)
            for cells, pixels in zip(coarse.shape[2:], given.image_size, strict=True)
        )
        found_logits = upsampled(coarse, rows, columns)
        if found_logits.shape == expected.shape and bool(
            (found_logits - expected).abs().max() <= TOLERANCE * expected.abs().max()
        ):
            return self._upsampling
        return None


def _held(marks: Tensor) -> Tensor:
    """Return where each row of marks ``(n, m)`` is true, in order; rows with fewer than others end with what is not."""
    most = int(marks.sum(dim=1).max())
    return marks.logical_not().to(torch.uint8).argsort(dim=1, stable=True)[:, :most]


class FeaturePreparation:
    """Reads the features of a batch onto the device; the counterpart of :class:`Preparation`.

    Args:
        device: Where the result lies.
        dtype: Of the result.
        memory_format: How maps lie there.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, memory_format: torch.memory_format) -> None:
        self.device, self.dtype, self.memory_format = device, dtype, memory_format

    def __call__(self, batch: FeatureBatch, length: int | None = None) -> FeatureMaps:
        """Return the features of a batch, grown to a length with zeros."""
        maps = batch.gathered(length or len(batch), self.dtype, self.device)
        return maps if self.memory_format == torch.channels_last else maps.to(memory_format=self.memory_format)

    @staticmethod
    def undo(logits: Tensor, batch: FeatureBatch) -> Tensor:
        """Crop what was grown off logits; float32, so that what follows is exact."""
        height, width = batch.image_size
        return logits[: len(batch), :, :height, :width].float()
