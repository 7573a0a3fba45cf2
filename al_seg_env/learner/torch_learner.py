"""The segmentation network f, its optimiser and its initial weights theta_0."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from al_seg_env.datasets.segmentation_data import IGNORE_LABEL
from al_seg_env.functional import class_map
from al_seg_env.learner.cpu_tuning import tune_for_cpu
from al_seg_env.learner.dropout import dropout_on, is_dropout, seeded, split_at_dropout
from al_seg_env.learner.folding import InferenceCopy
from al_seg_env.learner.hardware import to_device, within_memory
from al_seg_env.learner.precision import DTYPES, resolve_numerics
from al_seg_env.learner.preparation import Preparation, Prepares
from al_seg_env.metrics import confusion_matrix
from al_seg_env.storage.validation import LARGEST_BATCH, check, check_choice, check_device, check_int, check_number

T = TypeVar("T")
Grid = tuple[slice, slice]
"""Rows and columns of images."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _logits_alone(module: nn.Module, inputs: Any, output: Any) -> Any:
    """Extract the logits from the dict that torchvision's segmentation networks return."""
    return output["out"] if isinstance(output, Mapping) and "out" in output else output


class TorchLearner:
    """A :class:`Learner` around any ``nn.Module`` that maps ``(B, 3, H, W)`` to logits ``(B, C, H, W)``.

    The network's weights at construction are theta_0. Optimisation follows appendix B: SGD with momentum, and the cross
    entropy over the labelled pixels.

    If a batch does not fit into memory, it is split into halves, with a warning. If that happens in :meth:`predict`,
    :meth:`sample` or :meth:`evaluate`, ``batch_size`` is lowered accordingly.

    Args:
        network: The network. Its input is normalised, and padded at the bottom and right (by repeating the edge) to a
            multiple of ``output_stride``. Its logits are cropped back.
        num_classes: C, at most 255, because masks are uint8 and 255 stands for unlabelled.
        learning_rate: Learning rate of SGD. Appendix B: 1e-3 on CamVid, 1e-4 on Cityscapes.
        momentum: Momentum of SGD. The paper gives none; the released code's is 0.95.
        weight_decay: Weight decay of SGD. Appendix B: 1e-4.
        learning_rate_decay: Factor on the learning rate after each update (released code: 0.998^2).
        max_grad_norm: Norm to clip gradients to (released code: 4); ``None`` does not clip.
        mean, std: Normalisation per channel, for images in [0, 1].
        output_stride: Number that must divide the sides of the network's input.
        device: Device of the network; ``"auto"`` uses a CUDA GPU if there is one.
        precision: ``"float32"``, ``"bfloat16"`` (autocast) or ``"auto"``, which measures which one is faster; see
            :func:`~al_seg_env.learner.precision.resolve_numerics`. The choice is in ``dtype``.
        channels_last: Memory layout. ``None`` measures it if the precision is ``"auto"``, and is ``True`` otherwise.
        batch_size: Images per forward pass outside training.
        fold_batchnorm: Whether to predict with a copy whose BatchNorm layers are folded into convolutions.
        label_stride: An update learns from every n-th labelled pixel per row and column, starting at a random one. The
            paper's 1 uses all of them.
        tune_cpu: Whether to replace layers of ``network`` that are slow on a CPU, and to change settings of this
            process that make it faster; see :func:`~al_seg_env.learner.cpu_tuning.tune_for_cpu`. It has no effect on
            other devices.

    Raises:
        ValueError: If an argument is out of range, the network was made within ``torch.inference_mode()``, or device or
            precision cannot be used.
    """

    @torch.inference_mode(mode=False)  # what is made in inference mode can't be trained
    def __init__(
        self,
        network: nn.Module,
        num_classes: int,
        *,
        learning_rate: float = 1e-3,
        momentum: float = 0.95,
        weight_decay: float = 1e-4,
        learning_rate_decay: float = 1.0,
        max_grad_norm: float | None = None,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        output_stride: int = 1,
        device: str | torch.device = "auto",
        precision: str = "auto",
        channels_last: bool | None = None,
        batch_size: int = 4,
        fold_batchnorm: bool = True,
        label_stride: int = 1,
        tune_cpu: bool = False,
    ) -> None:
        self.num_classes = check_int("num_classes", num_classes, 1, IGNORE_LABEL)
        self.batch_size = check_int("batch_size", batch_size, 1, LARGEST_BATCH)
        self._batch_unit = max(1, self.batch_size // 8)
        check_optimisation(learning_rate, momentum, weight_decay, learning_rate_decay, max_grad_norm)
        check_switches(channels_last, fold_batchnorm, tune_cpu)
        check_int("output_stride", output_stride, 1)
        self.label_stride = check_int("label_stride", label_stride, 1)
        _check_normalisation(mean, std)
        _check_trainable(network)
        self.device = check_device("device", device)
        if tune_cpu and self.device.type == "cpu":
            tune_for_cpu(network)
        network.register_forward_hook(_logits_alone)
        self.dtype, self.channels_last = resolve_numerics(network, self.device, precision, channels_last, self._probe())
        self.max_grad_norm = max_grad_norm
        self.fold_batchnorm = fold_batchnorm
        self.network = network.eval()
        self._lay_out(Preparation(mean, std, output_stride, self.device, torch.contiguous_format))
        self.optimizer = torch.optim.SGD(
            network.parameters(), lr=learning_rate, momentum=momentum, weight_decay=weight_decay
        )
        self.learning_rate_decay = learning_rate_decay
        self._initial = self.state_dict()

    def __getstate__(self) -> dict[str, Any]:
        """Omit what is computed again when it is needed."""
        return {**self.__dict__, "_inference": None}

    def _lay_out(self, prepare: Prepares) -> None:
        """Move the network to its device and memory layout, and prepare images for the same."""
        self.memory_format = torch.channels_last if self.channels_last else torch.contiguous_format
        self.network.to(self.device, memory_format=self.memory_format)  # type: ignore[call-overload]
        self.prepare: Prepares = prepare
        prepare.memory_format = self.memory_format
        self._inference: InferenceCopy | None = None

    def _probe(self) -> Any:
        """Return a batch to measure precisions with; ``None`` for random images."""
        return None

    @property
    def numerics(self) -> Mapping[str, Any]:
        """Precision and memory layout in use. Two runs are only equal bit for bit if they share both."""
        name = next(name for name, dtype in DTYPES.items() if dtype == self.dtype)
        return {"precision": name, "channels_last": self.channels_last}

    @numerics.setter
    def numerics(self, numerics: Mapping[str, Any]) -> None:
        self.dtype, self.channels_last = DTYPES[numerics["precision"]], bool(numerics["channels_last"])
        self._lay_out(self.prepare)

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next update; part of the learner's state."""
        return float(self.optimizer.param_groups[0]["lr"])

    @learning_rate.setter
    def learning_rate(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    @property
    def has_dropout(self) -> bool:
        """Whether the network has a dropout layer with a probability above 0."""
        return any(is_dropout(module) for module in self.network.modules())

    def reset(self) -> None:
        """Return to theta_0: weights, BatchNorm statistics, momentum, learning rate."""
        self.load_state_dict(self._initial)

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of weights, buffers and optimiser, including the learning rate."""
        return {
            "network": {k: v.detach().clone() for k, v in self.network.state_dict().items()},
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
        }

    @torch.inference_mode(mode=False)  # what is copied in inference mode can't be trained
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned, exactly."""
        current, given = self.network.state_dict(keep_vars=True), state["network"]
        if current.keys() == given.keys() and all(current[key].shape == given[key].shape for key in current):
            with torch.no_grad():  # takes a third of the time of load_state_dict
                for key, value in current.items():
                    value.copy_(given[key])
        else:
            self.network.load_state_dict(given)  # raises an error that says what differs
        # The optimiser keeps the tensors that it is given, and would change the caller's copy.
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))

    @torch.inference_mode(mode=False)  # which turns gradients on, whatever the caller has turned off
    def fit_step(self, images: Any, targets: Tensor, rng: np.random.Generator) -> float:
        """Update the weights once with the mean cross entropy over the labelled pixels.

        A batch without labelled pixels changes nothing, and its loss is 0.

        Args:
            images: ``(n, 3, h, w)`` uint8.
            targets: ``(n, h, w)`` uint8, 255 where nothing is labelled.
            rng: Seeds the dropout of this update.

        Returns:
            The loss before the update.

        Raises:
            FloatingPointError: If the loss or a gradient is not finite. Nothing has changed then.
            MemoryError: If half a batch does not fit into memory, either. Nothing has changed then.
        """
        seed = int(rng.integers(2**63))
        grid = _random_grid(self.label_stride, rng)
        labelled = _labelled(targets, grid)
        if not labelled:
            return 0.0
        buffers = {name: buffer.clone() for name, buffer in self.network.named_buffers()}
        self.optimizer.zero_grad(set_to_none=True)
        self.network.train()
        try:
            backward = partial(self._backward, grid=grid, labelled=labelled, seed=seed, buffers=buffers)
            loss = sum(within_memory(backward, (images, targets), "fit_batch_size or crop_size"))
            limit = math.inf if self.max_grad_norm is None else self.max_grad_norm
            norm = nn.utils.clip_grad_norm_(self.network.parameters(), limit).item()
            if not math.isfinite(loss + norm):
                raise FloatingPointError(
                    f"the segmentation network's loss is {loss} and its gradient's norm {norm}; the update was not "
                    "made. Lower the learning rate, set max_grad_norm, or use precision='float32'"
                )
        except Exception:
            self._restore(buffers)
            raise
        finally:
            self.network.eval()
        self.optimizer.step()
        for group in self.optimizer.param_groups:
            group["lr"] *= self.learning_rate_decay
        return loss

    def _backward(
        self, images: Any, targets: Tensor, grid: Grid, labelled: int, seed: int, buffers: Mapping[str, Tensor]
    ) -> float:
        """Add a part's gradients, weighted by its share of the labelled pixels, and return its share of the loss.

        If that fails, gradients are cleared and buffers are restored.
        """
        share = _labelled(targets, grid) / labelled
        if not share:
            return 0.0
        try:
            try:
                logits, target = self._training_logits(images, targets, grid, seed)
            except ValueError:
                if len(images) > 1:
                    raise
                self._restore(buffers)
                logits, target = self._training_logits(*self._accompanied(images, targets), grid, seed)
            loss = share * F.cross_entropy(logits, to_device(target, self.device).long(), ignore_index=IGNORE_LABEL)
            loss.backward()
            return loss.item()
        except Exception:
            self.optimizer.zero_grad(set_to_none=True)
            self._restore(buffers)
            raise

    def _training_logits(self, images: Any, targets: Tensor, grid: Grid, seed: int) -> tuple[Tensor, Tensor]:
        """Return the logits, with gradients, and the targets of at least all labelled pixels on a grid."""
        with seeded(seed, self.device), self._autocast():
            logits = self.network(self.prepare(images))
        rows, columns = grid
        return self.prepare.undo(logits, images)[:, :, rows, columns], targets[:, rows, columns]

    def _accompanied(self, images: Any, targets: Tensor) -> tuple[Any, Tensor]:
        """Return a single crop together with its mirror image, which a random flip could have given, too.

        BatchNorm after global pooling raises an error for a single crop, which has only one value per channel.
        """
        return torch.cat([images, images.flip(3)]), torch.cat([targets, targets.flip(2)])

    def _restore(self, buffers: Mapping[str, Tensor]) -> None:
        for name, buffer in self.network.named_buffers():
            buffer.copy_(buffers[name])

    @torch.inference_mode()
    def predict(self, images: Any) -> Tensor:
        """Return logits ``(B, C, H, W)`` float32 for images ``(B, 3, H, W)`` uint8.

        Raises:
            MemoryError: If half a batch does not fit into memory, either.
        """
        return _joined(self._within_memory(self._logits, (images,)))

    def _logits(self, images: Tensor) -> Tensor:
        prepared = self.prepare(images, self._grown(len(images)))
        with self._autocast():
            logits = self._predictor(prepared)(prepared)
        return self.prepare.undo(logits, images)

    @torch.inference_mode()
    def sample(self, images: Any, count: int, rng: np.random.Generator) -> Iterator[Tensor]:
        """Yield ``count`` tensors of logits ``(B, C, H, W)`` with random dropout masks (section 4.2).

        If the network has an ``encoder``, as those of segmentation-models-pytorch do, and dropout after it, the encoder
        runs once, and dropout inside the encoder stays off. Only the layers after it run for every sample. BatchNorm
        stays in evaluation mode.

        Raises:
            ValueError: If the network has no dropout, since all samples would be equal.
            MemoryError: If half a batch does not fit into memory, either.
        """
        self._check_samples(count)
        yield from self._in_turn(partial(self._samples, count=count, seed=int(rng.integers(2**63))), images)

    def _check_samples(self, count: int) -> None:
        if not self.has_dropout:
            raise ValueError(
                f"{type(self.network).__name__} has no dropout, so its samples would all be equal; choose a "
                "network with dropout (FPN, PSPNet, DeepLabV3Plus) or omit the score that needs samples"
            )
        check_int("count", count, 1)

    def _in_turn(self, samples: Callable[[Any], Iterator[Tensor]], batch: Any) -> Iterator[Tensor]:
        """Yield the samples of a batch, joined from those of its halves if memory does not suffice."""

        def start(part: Any) -> tuple[Tensor, Iterator[Tensor]]:
            """Return the first sample, which shows whether memory suffices, and the others."""
            these = samples(part)
            return next(these), these

        first, others = zip(*self._within_memory(start, (batch,)), strict=True)
        yield _joined(first)
        del first  # its memory is needed for the others
        for later in zip(*others, strict=True):
            yield _joined(later)

    def _samples(self, images: Any, count: int, seed: int) -> Iterator[Tensor]:
        prepared = self.prepare(images, self._grown(len(images)))
        network = self._predictor(prepared)
        rest, inputs = split_at_dropout(network)
        with self._autocast():
            features = inputs(prepared)
        for index in range(count):
            # The caller's random state is restored between two yields.
            with seeded(seed + index, self.device), self._autocast(), dropout_on(network):
                logits = rest(features)
            yield self.prepare.undo(logits, images)

    @torch.inference_mode()
    def evaluate(self, batches: Iterable[tuple[Any, Tensor]], stride: int = 1) -> Tensor:
        """Return the confusion matrix ``(C, C)`` int64 over all ``(images, masks)`` batches, on the CPU.

        Args:
            batches: The images, and their masks ``(B, H, W)`` uint8.
            stride: Count only every n-th pixel per row and column, starting at the middle of the first n.

        Raises:
            FloatingPointError: If logits are not finite.
        """
        total = torch.zeros(self.num_classes, self.num_classes, dtype=torch.int64, device=self.device)
        labelled = torch.zeros((), dtype=torch.int64, device=self.device)
        for batch in batches:
            for confusion, pixels in self._within_memory(partial(self._count, stride=stride), batch):
                total += confusion
                labelled += pixels
        if not bool(total.sum() == labelled):  # pixels whose logits are not finite have no class, and are not counted
            raise FloatingPointError(
                "the segmentation network's logits are not finite, so its training has diverged. Lower the learning "
                "rate, set max_grad_norm, or use precision='float32'"
            )
        return total.cpu()

    def _within_memory(self, run: Callable[..., T], batch: tuple[Tensor, ...]) -> list[T]:
        """Return ``[run(*batch)]``, or the results of two halves, whose length then becomes ``batch_size``."""
        parts = within_memory(run, batch, "batch_size")
        if len(parts) > 1:
            self.batch_size = min(self.batch_size, -(-len(batch[0]) // 2))
        return parts

    def _count(self, images: Any, masks: Tensor, stride: int) -> tuple[Tensor, Tensor]:
        """Return the confusion matrix of a batch, and the number of its labelled pixels."""
        grid = slice(stride // 2, None, stride)
        classes = torch.cat([class_map(logits) for logits in self._logits_on(images, grid)])
        target = to_device(masks[:, grid, grid].contiguous(), self.device)
        return confusion_matrix(classes, target, self.num_classes), (target < self.num_classes).sum()

    def _logits_on(self, images: Any, grid: slice) -> Iterator[Tensor]:
        """Yield the logits on the rows and columns of ``grid``, for a few whole images at a time."""
        yield self.predict(images)[:, :, grid, grid]

    def _grown(self, count: int) -> int:
        """Return the length to pad a batch to, one of eight, because a CPU creates new kernels for new lengths."""
        grown = -(-count // self._batch_unit) * self._batch_unit
        return max(count, min(grown, self.batch_size))

    def _predictor(self, prepared: Tensor) -> nn.Module:
        """Return the network to predict with: a faster copy with the same weights, or the network itself."""
        if not self.fold_batchnorm:
            return self.network
        if self._inference is None or self._inference.source is not self.network:
            self._inference = InferenceCopy(self.network, prepared, self.dtype, self.memory_format)
        return self._inference.updated()

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)


def _random_grid(stride: int, rng: np.random.Generator) -> Grid:
    """Return every n-th row and column, starting at a random one."""
    if stride == 1:
        return slice(None), slice(None)
    first_row, first_column = rng.integers(stride, size=2).tolist()
    return slice(first_row, None, stride), slice(first_column, None, stride)


def _labelled(targets: Tensor, grid: Grid) -> int:
    """Return the number of labelled pixels on a grid. NumPy counts them 14 times faster than torch."""
    rows, columns = grid
    return int(np.count_nonzero(targets.cpu().numpy()[:, rows, columns] != IGNORE_LABEL))


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def check_optimisation(
    learning_rate: float,
    momentum: float,
    weight_decay: float,
    learning_rate_decay: float,
    max_grad_norm: float | None,
) -> None:
    """Raise a ValueError that names the first of a learner's settings that is out of range."""
    check_number("learning_rate", learning_rate, above=0)
    check_number("momentum", momentum, least=0, below=1)
    check_number("weight_decay", weight_decay, least=0)
    check_number("learning_rate_decay", learning_rate_decay, above=0, most=1)
    if max_grad_norm is not None:
        check_number("max_grad_norm", max_grad_norm, above=0)


def check_switches(channels_last: bool | None, fold_batchnorm: bool, tune_cpu: bool) -> None:
    """Raise a ValueError that names the first of a learner's switches that is not a boolean."""
    check_choice("channels_last", channels_last, (True, False, None))
    check_choice("fold_batchnorm", fold_batchnorm, (True, False))
    check_choice("tune_cpu", tune_cpu, (True, False))


def _check_trainable(network: nn.Module) -> None:
    if any(tensor.is_inference() for tensor in (*network.parameters(), *network.buffers())):
        raise ValueError(
            "the network was made within torch.inference_mode(), so it can't be trained; make it, and load its "
            "weights, outside"
        )


def _check_normalisation(mean: Sequence[float], std: Sequence[float]) -> None:
    for name, values, above in (("mean", mean, -math.inf), ("std", std, 0.0)):
        three = isinstance(values, Sequence | np.ndarray) and not isinstance(values, str) and len(values) == 3
        check(name, values, three, "three numbers, one per channel")
        for value in values:
            check_number(name, value, above=above)
