"""A learner with a frozen encoder, whose features are computed once. It trains and runs only the layers after it."""

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

    The encoder stays in evaluation mode, with the weights and BatchNorm statistics that it has at construction. It runs
    in float32, once per image; see :class:`~al_seg_env.learner.feature_store.FeatureStore`. The rest is as in
    :class:`TorchLearner`, except that theta_0 and dropout are those of the layers after the encoder, and that batches
    are :class:`~al_seg_env.learner.feature_inputs.FeatureBatch`.

    If the network ends in a bilinear upsampling, as those of segmentation-models-pytorch do, only the pixels that are
    needed are upsampled. If the network also has an attribute ``reach``, the number of pixels around a pixel on which
    its logits depend (as :class:`~al_seg_env.learner.light.Light` has), it runs only on windows around these pixels,
    with equal results.

    Args:
        network: The whole network. It is not changed; the learner works on copies of its parts.
        num_classes: C, at most 255.
        encoder: Name of the network's attribute that holds its encoder.
        feature_precision: Precision in which features are stored: ``"bfloat16"``, ``"float16"`` or ``"float32"``. With
            ``"float32"``, logits in float32 equal those of the whole network bit for bit.
        cache: Folder for the features, shared by all processes; ``None`` keeps them in this process's memory.
        mean, std, output_stride, device: See :class:`TorchLearner`.
        options: Further arguments of :class:`TorchLearner`.

    Raises:
        ValueError: If the encoder is not found, or the network reads the image in other ways than through its encoder.
    """

    @torch.inference_mode(mode=False)  # what is made in inference mode can't be trained
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
        """Omit what is computed again when it is needed."""
        return {**super().__getstate__(), "_coarse_views": []}

    def _lay_out(self, prepare: Prepares) -> None:
        super()._lay_out(FeaturePreparation(self.device, self.dtype, prepare.memory_format))

    def _probe(self) -> Any:
        return self.encoder.probe

    def inputs(self, frames: Frames) -> FeatureInputs:
        """Return the inputs, which make this learner's batches."""
        return FeatureInputs(frames, self._store, self.reach)

    def _store(self, frames: Frames) -> FeatureStore:
        return FeatureStore.shared(frames, self.encoder, self.feature_precision, self.cache)

    @property
    def reach(self) -> int | None:
        """Number of pixels around a pixel on which its logits depend, if the network tells."""
        exact = self._upsampling is not None and not self._align_corners
        return getattr(self.network, "reach", None) if exact else None

    def whole_state_dict(self) -> dict[str, Tensor]:
        """Return weights and buffers of the whole network, including the encoder."""
        return self.encoder.joined_state_dict(self.network)

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of everything that training changes, with a text that identifies the encoder."""
        return {**super().state_dict(), "encoder": self._encoder_identity}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned, exactly.

        Raises:
            ValueError: If the weights were trained on the features of another encoder.
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
        """Yield the logits of the pixels of each group of boxes.

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
            # Group by group, so that the logits are still in the processor's cache when they are used.
            yield self._cut(coarse, views, [places.pop(0) for _ in group])

    @torch.inference_mode()
    def sample_boxes(
        self, batch: FeatureBatch, boxes: Sequence[Boxes], count: int, rng: np.random.Generator
    ) -> Iterator[Tensor]:
        """Yield the logits of boxes with random dropout masks; see :meth:`TorchLearner.sample`."""
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
        """Return the images or windows to run to predict boxes, and the boxes within them."""
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
        """Yield the logits ``(B, C, h, w)`` of views once, before upsampling."""
        prepared = self.prepare(views, self._grown(len(views)))
        with self._autocast():
            logits = self._coarse_view(self._predictor(prepared))(prepared)
        yield logits[: len(views)].float()

    def _coarse_samples(self, views: FeatureBatch, count: int, seed: int) -> Iterator[Tensor]:
        """Yield the logits of views before upsampling, with ``count`` dropout masks."""
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
        """Return the logits ``(C, P)`` of boxes in views, upsampled from the coarse ones."""
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
        """Return the cells ``(n, m)`` needed by every ``stride``-th pixel from each start on, with their weights."""
        different, which = np.unique(starts, return_inverse=True)
        corners = self._align_corners
        found = [needed_cells(cells, pixels, int(start), length, stride, corners) for start in different]
        where = torch.from_numpy(which)
        numbers, weights = (torch.stack(tables)[where].to(self.device) for tables in zip(*found, strict=True))
        return numbers, weights

    def _weights_on(self, images: FeatureBatch, coarse: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """Return the weights ``(n, cells)`` for the rows, and for the columns, that a grid selects from views."""
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
        # As many at once as stay in the processor's cache until their classes are counted.
        size = max(1, CACHED // (self.num_classes * len(rows) * len(columns)))
        for few in coarse.split(size):
            yield upsampled(few, rows, columns)

    def _training_logits(self, images: FeatureBatch, targets: Tensor, grid: Grid, seed: int) -> tuple[Tensor, Tensor]:
        if self._upsampling is None:
            return super()._training_logits(images, targets, grid, seed)
        network = self._coarse_view(self.network)
        with seeded(seed, self.device), self._autocast():
            coarse = network(self.prepare(images))
        # In each view, only the rows and columns of the grid that have a label are upsampled.
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
        """Return a single view twice, since stored features have no mirror image."""
        return images.repeated(2), torch.cat([targets, targets])

    def _coarse_view(self, network: nn.Module) -> nn.Module:
        """Return a network without its final upsampling, which shares the layers."""
        for known, view in self._coarse_views:
            if known is network:
                return view
        assert self._upsampling is not None
        view = copy.copy(network)
        head = list(network.get_submodule(HEAD).children())[: self._upsampling]
        view._modules = {**network._modules, HEAD: nn.Sequential(*head)}
        # There are two networks: the one that is trained, and the copy that predicts.
        self._coarse_views = [*self._coarse_views[-1:], (network, view)]
        return view

    def _grown(self, count: int) -> int:
        """Return the length to pad a batch to (at most an eighth more): a CPU creates new kernels for new lengths."""
        unit = 1 << max(0, count.bit_length() - 4)
        return -(-count // unit) * unit

    @torch.inference_mode()
    def _found_upsampling(self) -> int | None:
        """Return the index of the head's layer that upsamples the logits, if this learner can do it instead."""
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
    """Return where each row of marks ``(n, m)`` is true, in order. Rows with fewer true marks end with false ones."""
    most = int(marks.sum(dim=1).max())
    return marks.logical_not().to(torch.uint8).argsort(dim=1, stable=True)[:, :most]


class FeaturePreparation:
    """Reads the features of a batch onto the device. It is the counterpart of :class:`Preparation`.

    Args:
        device: Device of the result.
        dtype: Dtype of the result.
        memory_format: Memory layout of the maps.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, memory_format: torch.memory_format) -> None:
        self.device, self.dtype, self.memory_format = device, dtype, memory_format

    def __call__(self, batch: FeatureBatch, length: int | None = None) -> FeatureMaps:
        """Return the features of a batch, padded to a length with zeros."""
        maps = batch.gathered(length or len(batch), self.dtype, self.device)
        return maps if self.memory_format == torch.channels_last else maps.to(memory_format=self.memory_format)

    @staticmethod
    def undo(logits: Tensor, batch: FeatureBatch) -> Tensor:
        """Remove the padding from logits, and convert them to float32, so that later computations are exact."""
        height, width = batch.image_size
        return logits[: len(batch), :, :height, :width].float()
