"""Monte Carlo dropout: finding the layers, and the part of a network that must run again for each sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from segmentation_models_pytorch.decoders.fpn.decoder import FPNDecoder
from segmentation_models_pytorch.decoders.pspnet.decoder import PSPDecoder
from torch import Tensor, nn


def is_dropout(module: nn.Module) -> bool:
    """Return whether a module is a dropout layer with a probability above 0."""
    return isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0


def split_at_dropout(network: nn.Module) -> tuple[Callable[[Any], Tensor], Callable[[Tensor], Any]]:
    """Return the part of a network that runs for every sample, and the part before it, which runs once."""
    encoder, decoder, head = (getattr(network, name, None) for name in ("encoder", "decoder", "segmentation_head"))
    if encoder is None or decoder is None or head is None:
        return network, lambda x: x
    if isinstance(decoder, FPNDecoder | PSPDecoder) and is_dropout(decoder.dropout):
        # These decoders end with dropout in place, so only the dropout and the head differ between samples.
        return lambda x: head(decoder.dropout(x.clone())), lambda x: decoder(encoder(x))
    if not any(map(is_dropout, decoder.modules())) and any(map(is_dropout, head.modules())):
        return head, lambda x: decoder(encoder(x))
    if any(is_dropout(module) for part in (decoder, head) for module in part.modules()):
        return lambda features: head(decoder(features)), encoder
    return network, lambda x: x


@contextmanager
def dropout_on(network: nn.Module) -> Iterator[None]:
    """Switch only the dropout layers to training mode, and restore them afterwards."""
    layers = [module for module in network.modules() if is_dropout(module) and not module.training]
    for layer in layers:
        layer.train()
    try:
        yield
    finally:
        for layer in layers:
            layer.eval()


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draw torch's random numbers from ``seed``, and restore the global random state afterwards."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        if device.type == "cpu":  # torch.manual_seed formats a stack trace each time, in case CUDA is used later
            torch.default_generator.manual_seed(seed % 2**63)
        else:
            torch.manual_seed(seed % 2**63)
        yield
