"""A faster copy of a network for predictions: BatchNorm is folded into convolutions, and weights are rounded once."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn

from al_seg_env.learner.hardware import is_out_of_memory

Pair = tuple[str, str]
"""Names of a convolution, and of the BatchNorm that is the only layer to read its output."""

TOLERANCE = 1e-3


class InferenceCopy:
    """A copy of a network in evaluation mode that is kept up to date with the network's weights.

    If a BatchNorm is the only layer that reads a convolution's output, it is folded into the convolution:
    ``w' = w g / s`` and ``b' = (b - mean) g / s + beta``, with ``s = sqrt(var + eps)``. The convolutions keep their
    weights in the precision that they run in. If the copy's results differ from the network's, the network itself is
    used.

    Args:
        network: The network, which must be in evaluation mode.
        images: A prepared batch ``(B, 3, H, W)``, run to find the pairs of layers.
        dtype: Precision of the convolutions.
        memory_format: Memory layout of the convolutions' weights.
    """

    def __init__(
        self, network: nn.Module, images: Tensor, dtype: torch.dtype, memory_format: torch.memory_format
    ) -> None:
        self.source, self._dtype, self._memory_format = network, dtype, memory_format
        self._seen: list[tuple[dict[str, Any], str, Tensor, int]] = []
        self._pairs: list[Pair] = []
        self.network = network
        try:
            pairs = _verified_pairs(network, images)
        except (RuntimeError, ValueError, TypeError, AttributeError) as error:
            if is_out_of_memory(error):
                raise
            pairs = []  # the network cannot be copied, or does not run on these images
        if pairs:
            self._pairs = pairs
            self.network = self._folded()

    @torch.no_grad()
    def updated(self) -> nn.Module:
        """Return the network to predict with, brought up to date with the weights if they have changed."""
        if self.network is self.source:
            return self.network
        # Iterating over all modules for every batch would take longer than a small network.
        current = all(held[key] is tensor and tensor._version == version for held, key, tensor, version in self._seen)
        if not self._seen or not current:
            self._copy_weights()
            self._seen = [
                (held, key, tensor, tensor._version)
                for module in self.source.modules()
                for held in (module._parameters, module._buffers)
                for key, tensor in held.items()
                if tensor is not None
            ]
        return self.network

    def _folded(self) -> nn.Module:
        """Return a copy without the folded layers. The weights of its convolutions are not set yet."""
        network = _fold(copy.deepcopy(self.source), self._pairs)
        network.requires_grad_(False)
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                module.to(dtype=self._dtype, memory_format=self._memory_format)  # type: ignore[call-overload]
        return network

    def _copy_weights(self) -> None:
        modules, targets = dict(self.source.named_modules()), dict(self.network.named_modules())
        norms = dict(self._pairs)
        for name, target in targets.items():
            if isinstance(target, nn.Conv2d):
                norm = modules[norms[name]] if name in norms else None
                weight, bias = _folded_weights(modules[name], norm)
                target.weight.copy_(weight)
                if bias is not None and target.bias is not None:
                    target.bias.copy_(bias)
            elif name in modules:
                for key, value in (*target.named_parameters(recurse=False), *target.named_buffers(recurse=False)):
                    value.copy_(getattr(modules[name], key))


def _folded_weights(conv: nn.Module, norm: nn.Module | None) -> tuple[Tensor, Tensor | None]:
    """Return weight and bias of a convolution followed by a BatchNorm in evaluation mode."""
    assert isinstance(conv, nn.Conv2d)
    if norm is None:
        return conv.weight, conv.bias
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var + norm.eps).rsqrt()
    shift = -norm.running_mean if conv.bias is None else conv.bias - norm.running_mean
    if norm.affine:
        scale = scale * norm.weight
    shift = shift * scale
    return conv.weight * scale.view(-1, 1, 1, 1), shift + norm.bias if norm.affine else shift


def _fold(network: nn.Module, pairs: list[Pair]) -> nn.Module:
    """Fold each pair of a network in place, with the network's current weights."""
    modules = dict(network.named_modules())
    for conv_name, norm_name in pairs:
        conv, norm = modules[conv_name], modules[norm_name]
        weight, bias = _folded_weights(conv, norm)
        assert isinstance(conv, nn.Conv2d)
        assert bias is not None
        conv.weight, conv.bias = nn.Parameter(weight.detach()), nn.Parameter(bias.detach())
        rest = nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else nn.Identity()
        parent, _, child = norm_name.rpartition(".")
        setattr(modules[parent], child, rest)
    return network


@torch.no_grad()
def _verified_pairs(network: nn.Module, images: Tensor) -> list[Pair]:
    """Return the pairs that can be folded, or none if a copy with folded pairs gives other results.

    The copies that are compared have random BatchNorm statistics. With those of a new network, 0 and 1, even folding a
    wrong pair would change nothing.
    """
    trial = copy.deepcopy(network).float()
    for module in trial.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    generator = torch.Generator().manual_seed(0)
    for module in trial.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None and module.running_var is not None:
            tensors = [module.running_mean, module.running_var]
            tensors += [module.weight, module.bias] if module.affine else []
            for tensor, (low, high) in zip(tensors, ((-0.1, 0.1), (0.5, 1.5), (0.5, 1.5), (-0.1, 0.1)), strict=False):
                tensor.copy_(torch.empty(tensor.shape).uniform_(low, high, generator=generator))
    with torch.autocast(images.device.type, enabled=False):
        pairs, expected = _find_pairs(trial, images[:1].float())
        if not pairs:
            return []
        found = _fold(trial, pairs)(images[:1].float())
    close = (found - expected).abs().max() <= TOLERANCE * expected.abs().max()
    return pairs if bool(close) else []


def _find_pairs(network: nn.Module, images: Tensor) -> tuple[list[Pair], Tensor]:
    """Run a network. Return each BatchNorm whose input is a convolution's output, and the network's output."""
    calls: list[tuple[str, Tensor, Tensor]] = []
    hooks = [
        module.register_forward_hook(_recorder(calls, name))
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d)
    ]
    output = network(images)
    for hook in hooks:
        hook.remove()
    modules = dict(network.named_modules())
    called = [name for name, _, _ in calls]
    convs = {id(result): name for name, _, result in calls if isinstance(modules[name], nn.Conv2d)}
    pairs = [
        (convs[id(given)], name)
        for name, given, _ in calls
        if type(modules[name]) in (nn.BatchNorm2d, BatchNormAct2d)
        and id(given) in convs
        and called.count(name) == called.count(convs[id(given)]) == 1
        and modules[name].track_running_stats
    ]
    return pairs, output


def _recorder(calls: list[tuple[str, Tensor, Tensor]], name: str) -> Callable[..., None]:
    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        calls.append((name, inputs[0], output))  # kept alive so that ids stay unique

    return record
