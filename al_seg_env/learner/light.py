"""A light segmentation network for frozen encoders, which reads only deep strides."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from segmentation_models_pytorch.base import SegmentationModel
from segmentation_models_pytorch.encoders import get_encoder
from torch import Tensor, nn

from al_seg_env.storage.validation import check, check_choice, check_int

DEEPEST = 32
STRIDES = (16, 8, 4)


class Light(SegmentationModel):  # type: ignore[misc] # smp is untyped
    """A head of a few layers on an encoder's deep strides, by default 16 and 32, with the interface of smp's networks.

    The strides are projected to ``width`` channels and added at the finest stride. A 3 x 3 convolution and residual
    dilated convolutions follow, then dropout, and a last layer whose logits are upsampled. docs/design/light_head.md
    has its results. There is no normalisation, so that an update on windows equals one on whole images. If the
    magnitude of an encoder's features differs much from that of efficientnet-lite's, 2.7 on average, adapt the learning
    rate.

    Args:
        encoder_name: Name of an smp encoder.
        encoder_weights: Name of the encoder's weights, or ``None``.
        classes: C.
        width: Number of channels.
        stride: The finest stride that is read, 16, 8 or 4. With 8, the strides 8, 16 and 32 are read. Each halving
            gives four times as many cells. Objects smaller than a cell are mostly missed.
        dilations: Dilations of the residual convolutions in cells of the finest stride, which may be empty. Each
            convolution extends the receptive field by its dilation in each direction.
        dropout: Share of channels that are dropped before the last layer.
        in_channels: Channels of an image.

    Attributes:
        reach: Number of pixels around a pixel on which its logits depend, given the encoder's features.

    Raises:
        ValueError: If the encoder's deepest stride is not 32, ``stride`` is none of these, or ``dilations`` are not
            positive whole numbers.
    """

    requires_divisible_input_shape = True

    def __init__(
        self,
        encoder_name: str = "timm-tf_efficientnet_lite0",
        encoder_weights: str | None = None,
        classes: int = 1,
        *,
        width: int = 96,
        stride: int = STRIDES[0],
        dilations: Sequence[int] = (),
        dropout: float = 0.1,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        self.encoder = get_encoder(encoder_name, in_channels=in_channels, depth=5, weights=encoder_weights)
        if self.encoder.output_stride != DEEPEST:
            raise ValueError(
                f"architecture 'Light' needs an encoder of output stride {DEEPEST}; {encoder_name!r} has "
                f"{self.encoder.output_stride}"
            )
        self.stride = check_choice("stride", stride, STRIDES)
        read = self.encoder.out_channels[-2 - STRIDES.index(stride) :]
        self.decoder = LightDecoder(read, width, dilations)
        self.segmentation_head = nn.Sequential(
            nn.Dropout2d(dropout),
            nn.Conv2d(width, classes, 1),
            nn.Upsample(scale_factor=stride, mode="bilinear", align_corners=False),
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
        """Number of pixels around a pixel on which its logits depend.

        Upsampling adds half a cell of the finest stride and half a cell of the deepest one to the convolutions' reach.
        """
        return self.stride // 2 + self.stride * self.decoder.cells_around + DEEPEST // 2


class LightDecoder(nn.Module):
    """The part of :class:`Light` that is trained, except for the last layer.

    Args:
        channels: Numbers of channels of the encoder's last outputs, which are read.
        width: Number of channels.
        dilations: Dilations of the residual convolutions.

    Attributes:
        cells_around: Number of cells of the finest stride around a cell on which its values depend.
    """

    def __init__(self, channels: Sequence[int], width: int, dilations: Sequence[int]) -> None:
        super().__init__()
        listed = isinstance(dilations, Sequence) and not isinstance(dilations, str)
        check("dilations", dilations, listed, "a list of whole numbers of at least 1")
        dilations = [check_int("dilations", dilation, 1) for dilation in dilations]
        self.projections = nn.ModuleList(nn.Conv2d(count, width, 1) for count in channels)
        self.neighbours = nn.Conv2d(width, width, 3, padding=1)
        self.further = nn.ModuleList(
            nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation) for dilation in dilations
        )
        self.cells_around = 1 + sum(dilations)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return ``(B, width, H / stride, W / stride)``, where ``stride`` is the finest one."""
        read = features[-len(self.projections) :]
        together, *deeper = (project(values) for project, values in zip(self.projections, read, strict=True))
        for values in deeper:
            together = together + F.interpolate(values, together.shape[2:], mode="bilinear", align_corners=False)
        seen = torch.relu(self.neighbours(torch.relu(together)))
        for convolution in self.further:
            seen = seen + torch.relu(convolution(seen))
        return seen
