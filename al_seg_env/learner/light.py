"""A light segmentation network for frozen encoders: it reads deep strides only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from segmentation_models_pytorch.base import SegmentationModel
from segmentation_models_pytorch.encoders import get_encoder
from torch import Tensor, nn

from al_seg_env.storage.validation import check, check_int

STRIDE = 16


class Light(SegmentationModel):  # type: ignore[misc] # smp is untyped
    """A head of a few layers on the strides 16 and 32 of an encoder, with the interface of smp's networks.

    Both strides are projected to ``width`` channels and added at stride 16, a convolution looks at the neighbours,
    residual convolutions look further, and after dropout a last layer gives logits, which are upsampled 16 times.
    docs/design/light_head.md has what it reaches. There is no normalisation, so that an update on windows equals one on
    whole images; where an encoder's features are much larger or smaller than those of efficientnet-lite, whose mean
    size is 2.7, choose the learning rate accordingly.

    Args:
        encoder_name: Name of an smp encoder.
        encoder_weights: Name of its weights, or ``None``.
        classes: C.
        width: Channels.
        dilations: Of the residual convolutions, one after another, in cells of stride 16; each of them lets logits see
            so much further. There may be none.
        dropout: Share of channels that are dropped before the last layer.
        in_channels: Channels of an image.

    Attributes:
        reach: Pixels around a pixel that its logits depend on, given the encoder's features.

    Raises:
        ValueError: If the encoder has no strides 16 and 32, or ``dilations`` are no positive whole numbers.
    """

    requires_divisible_input_shape = True

    def __init__(
        self,
        encoder_name: str = "timm-tf_efficientnet_lite0",
        encoder_weights: str | None = None,
        classes: int = 1,
        *,
        width: int = 96,
        dilations: Sequence[int] = (),
        dropout: float = 0.1,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        self.encoder = get_encoder(encoder_name, in_channels=in_channels, depth=5, weights=encoder_weights)
        if self.encoder.output_stride != 2 * STRIDE:
            raise ValueError(
                f"architecture 'Light' needs an encoder of output stride 32; {encoder_name!r} has "
                f"{self.encoder.output_stride}"
            )
        self.decoder = LightDecoder(self.encoder.out_channels, width, dilations)
        self.segmentation_head = nn.Sequential(
            nn.Dropout2d(dropout),
            nn.Conv2d(width, classes, 1),
            nn.Upsample(scale_factor=STRIDE, mode="bilinear", align_corners=False),
        )
        self.classification_head = None
        self.name = f"light-{encoder_name}"
        for module in (*self.decoder.modules(), *self.segmentation_head.modules()):
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @property
    def reach(self) -> int:
        """Half a cell of stride 16 and half a cell of stride 32, for the two upsamplings, and what is between them."""
        return STRIDE // 2 + STRIDE * self.decoder.cells_around + STRIDE


class LightDecoder(nn.Module):
    """The part of :class:`Light` that is trained, except for the last layer.

    Args:
        channels: Of all the encoder's outputs, of which the last two, of strides 16 and 32, are read.
        width: Channels.
        dilations: Of the residual convolutions.

    Attributes:
        cells_around: How many cells of stride 16 around a cell its values depend on.
    """

    def __init__(self, channels: Sequence[int], width: int, dilations: Sequence[int]) -> None:
        super().__init__()
        listed = isinstance(dilations, Sequence) and not isinstance(dilations, str)
        check("dilations", dilations, listed, "a list of whole numbers of at least 1")
        dilations = [check_int("dilations", dilation, 1) for dilation in dilations]
        self.projections = nn.ModuleList(nn.Conv2d(count, width, 1) for count in channels[-2:])
        self.neighbours = nn.Conv2d(width, width, 3, padding=1)
        self.further = nn.ModuleList(
            nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation) for dilation in dilations
        )
        self.cells_around = 1 + sum(dilations)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return ``(B, width, H / 16, W / 16)``."""
        fine, deep = (project(values) for project, values in zip(self.projections, features[-2:], strict=True))
        together = fine + F.interpolate(deep, size=fine.shape[2:], mode="bilinear", align_corners=False)
        seen = torch.relu(self.neighbours(torch.relu(together)))
        for convolution in self.further:
            seen = seen + torch.relu(convolution(seen))
        return seen
