"""A network divided into the encoder, which runs once per image, and the rest, which is trained."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from al_seg_env.learner.hardware import is_out_of_memory
from al_seg_env.learner.preparation import Preparation
from al_seg_env.storage import tree_digest
from al_seg_env.types import Size

PROBE_SIZE = (192, 192)  # at least; rounded up to the output stride
TOLERANCE = 1e-3
Shape = tuple[int, ...]


@dataclass(frozen=True)
class FeatureMaps:
    """An encoder's outputs for B images, which are the input of a network with a frozen encoder.

    Attributes:
        maps: The encoder's outputs that the rest of the network reads, ``(B, ...)`` each.
        image_size: ``(height, width)`` of the encoder's input, which is padded to the output stride.
    """

    maps: tuple[Tensor, ...]
    image_size: Size

    @property
    def shape(self) -> torch.Size:
        """Shape of the images, ``(B, 3, H, W)``, which some networks read."""
        return torch.Size((len(self), 3, *self.image_size))

    @property
    def device(self) -> torch.device:
        """Device of the maps."""
        return self.maps[0].device

    def __len__(self) -> int:
        return len(self.maps[0])

    def __getitem__(self, rows: slice) -> FeatureMaps:
        return FeatureMaps(tuple(values[rows] for values in self.maps), self.image_size)

    def float(self) -> FeatureMaps:
        """Return the maps in float32."""
        return FeatureMaps(tuple(values.float() for values in self.maps), self.image_size)

    def to(self, *args: Any, memory_format: torch.memory_format = torch.preserve_format) -> FeatureMaps:
        """Convert the maps like :meth:`torch.Tensor.to`. The memory format applies to maps of four dimensions."""
        moved = (
            values.to(*args, memory_format=memory_format) if values.dim() == 4 else values.to(*args)
            for values in self.maps
        )
        return FeatureMaps(tuple(moved), self.image_size)


class GivenFeatures(nn.Module):
    """Replaces an encoder in a network, and returns the encoder's output from given :class:`FeatureMaps`.

    Outputs that the network does not read are zeros of the right shape that take no memory.

    Args:
        template: The encoder's output, with each tensor replaced by its number.
        shapes: Shapes of all outputs of the encoder for one image of ``image_size``.
        image_size: ``(height, width)`` of that image.
        read: Numbers of the outputs in the given feature maps, in their order.
        output_stride: Output stride of the encoder, which some networks read.
    """

    def __init__(
        self, template: Any, shapes: Sequence[Shape], image_size: Size, read: Sequence[int], output_stride: int
    ) -> None:
        super().__init__()
        self.template, self.shapes, self.image_size = template, tuple(shapes), image_size
        self.read, self.output_stride = tuple(read), output_stride

    def forward(self, given: FeatureMaps) -> Any:
        """Return the encoder's output."""
        maps = dict(zip(self.read, given.maps, strict=True))
        outputs = [maps[n] if n in maps else self._absent(n, given) for n in range(len(self.shapes))]
        return _filled(self.template, outputs)

    def _absent(self, number: int, given: FeatureMaps) -> Tensor:
        shape = self.shapes[number]
        if len(shape) == 3:
            sides = (
                side * new // old for side, new, old in zip(shape[1:], given.image_size, self.image_size, strict=True)
            )
            shape = (shape[0], *sides)
        return given.maps[0].new_zeros(()).expand(len(given), *shape)


class FrozenEncoder:
    """The frozen encoder of a network, in evaluation mode with fixed BatchNorm statistics; made by :func:`divided`.

    It runs in float32, image by image, so that the features of an image do not depend on other images in a batch.
    Nothing changes it, so copies are the same object.

    Attributes:
        name: Name of the network's attribute that holds the encoder.
        read: Numbers of the outputs that the network reads; no others are returned.
        digest: Text that identifies this encoder, its weights and its normalisation.
        probe: Features of two random images, to try the rest of the network with.
    """

    def __init__(self, encoder: nn.Module, name: str, prepare: Preparation) -> None:
        self.module = copy.deepcopy(encoder).eval().requires_grad_(False)
        self.module.to(prepare.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.name, self.prepare = name, prepare
        self.digest = tree_digest(
            {
                "structure": str(encoder),
                "weights": dict(encoder.state_dict()),
                "normalisation": [prepare.mean, prepare.std],
                "output_stride": prepare.output_stride,
            }
        )
        sides = tuple(-(-side // prepare.output_stride) * prepare.output_stride for side in PROBE_SIZE)
        random = torch.Generator().manual_seed(0)
        self.images = torch.randint(256, (2, 3, *sides), dtype=torch.uint8, generator=random)
        with torch.inference_mode():
            output = self.module(prepare(self.images[:1]))
        outputs: list[Tensor] = []
        self.template = _numbered(output, outputs, name)
        self.shapes = [tuple(values.shape[1:]) for values in outputs]
        self.read = tuple(range(len(outputs)))
        self.probe = self(self.images)

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenEncoder:
        return self

    def joined_state_dict(self, rest: nn.Module) -> dict[str, Tensor]:
        """Return weights and buffers of the whole network, given the other part that :func:`divided` returned."""
        return {**{f"{self.name}.{key}": value for key, value in self.module.state_dict().items()}, **rest.state_dict()}

    def __call__(self, images: Tensor) -> FeatureMaps:
        """Return the features of images ``(B, 3, H, W)`` uint8, in float32."""
        prepared = self.prepare(images)
        parts = []
        with torch.inference_mode():
            for image in prepared.split(1):
                outputs: list[Tensor] = []
                _numbered(self.module(image), outputs, self.name)
                parts.append([outputs[n] for n in self.read])
        maps = tuple(torch.cat(values) for values in zip(*parts, strict=True))
        return FeatureMaps(maps, (prepared.shape[2], prepared.shape[3]))


def divided(network: nn.Module, name: str, prepare: Preparation) -> tuple[FrozenEncoder, nn.Module]:
    """Divide a network at its encoder.

    Args:
        network: The whole network. It is not changed; copies of its parts are returned.
        name: Name of the network's attribute that holds its encoder, such as ``"encoder"`` or ``"backbone"``.
        prepare: Converts images to the encoder's input.

    Returns:
        The encoder, and the network without it, which takes :class:`FeatureMaps` in place of images.

    Raises:
        ValueError: If there is no such attribute, or the network reads the image other than through its encoder.
    """
    module = _named(network, name)
    encoder = FrozenEncoder(module, name, prepare)
    size = (encoder.images.shape[2], encoder.images.shape[3])
    stub = GivenFeatures(encoder.template, encoder.shapes, size, encoder.read, prepare.output_stride)
    # The copy has the stub in place of the encoder wherever the network refers to the encoder.
    rest: nn.Module = copy.deepcopy(network, {id(module): stub}).eval()
    rest.to(prepare.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    whole = copy.deepcopy(network, {id(module): encoder.module}).eval()
    whole.to(prepare.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    reason = "from the encoder's output, the rest of the network computes other logits than the whole network"
    try:
        stub.read = encoder.read = _outputs_read(rest, encoder.probe)
        encoder.probe = FeatureMaps(tuple(encoder.probe.maps[n] for n in encoder.read), size)
        with torch.inference_mode():
            expected = whole(prepare(encoder.images[:1]))
            difference = (rest(encoder.probe[:1]) - expected).abs().max()
        if bool(difference <= TOLERANCE * expected.abs().max()):  # 0 on a CPU
            return encoder, rest
    except (AttributeError, IndexError, RuntimeError, TypeError) as error:
        if is_out_of_memory(error):
            raise
        reason = f"the rest of the network fails without the image ({error})"
    raise ValueError(
        f"{type(network).__name__} cannot be divided at its encoder {name!r}: {reason}; use trainable='all'"
    )


def _outputs_read(rest: nn.Module, given: FeatureMaps) -> tuple[int, ...]:
    """Return the numbers of the encoder's outputs that the logits depend on."""
    leaves = tuple(values.detach().clone().requires_grad_() for values in given.maps)
    logits: Tensor = rest(FeatureMaps(leaves, given.image_size))
    if not logits.requires_grad:
        return tuple(range(len(leaves)))
    gradients = torch.autograd.grad(logits.sum(), leaves, allow_unused=True)
    return tuple(n for n, gradient in enumerate(gradients) if gradient is not None)


def _named(network: nn.Module, name: str) -> nn.Module:
    """Return the encoder."""
    encoder = getattr(network, name, None) if isinstance(name, str) and name.isidentifier() else None
    if not isinstance(encoder, nn.Module):
        children = ", ".join(child for child, _ in network.named_children()) or "none"
        raise ValueError(
            f"encoder is {name!r}, but {type(network).__name__} has no module of this name (it has {children}); name "
            "the module to freeze, or use trainable='all'"
        )
    return encoder


def _numbered(output: Any, tensors: list[Tensor], name: str) -> Any:
    """Return an output with each tensor replaced by its number, and append the tensors to ``tensors``."""
    if isinstance(output, Tensor):
        tensors.append(output)
        return len(tensors) - 1
    if isinstance(output, Mapping):
        return {key: _numbered(value, tensors, name) for key, value in output.items()}
    if isinstance(output, list | tuple):
        values = [_numbered(value, tensors, name) for value in output]
        return values if isinstance(output, list) else tuple(values)
    if output is None:
        return None
    raise ValueError(
        f"encoder {name!r} returned a {type(output).__name__}; expected a tensor, or lists and mappings of tensors: "
        "use trainable='all'"
    )


def _filled(template: Any, tensors: Sequence[Tensor]) -> Any:
    """Return the output of which :func:`_numbered` made the template, with these tensors."""
    if isinstance(template, int):
        return tensors[template]
    if isinstance(template, dict):
        return {key: _filled(value, tensors) for key, value in template.items()}
    if isinstance(template, list):
        return [_filled(value, tensors) for value in template]
    if isinstance(template, tuple):
        return tuple(_filled(value, tensors) for value in template)
    return None
