"""Building a learner around a network of segmentation-models-pytorch."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from pathlib import Path
from typing import Any, TypeAlias

import segmentation_models_pytorch as smp
import timm
import torch
from segmentation_models_pytorch.decoders.fpn.decoder import FPNDecoder
from torch import Tensor, nn

from al_seg_env.datasets.segmentation_data import check_classes
from al_seg_env.learner.cpu_tuning import run_forks_on_one_thread
from al_seg_env.learner.feature_learner import FeatureLearner
from al_seg_env.learner.feature_store import FEATURE_DTYPES
from al_seg_env.learner.light import Light
from al_seg_env.learner.precision import DTYPES
from al_seg_env.learner.torch_learner import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    TorchLearner,
    check_optimisation,
    check_switches,
)
from al_seg_env.learner.weights import is_weights_file, load_fitting, load_weights, read_tensors
from al_seg_env.storage.validation import LARGEST_BATCH, check, check_choice, check_int, check_text
from al_seg_env.types import Size

PIXELS_PER_PASS = 3 * 2**19
DEEP = 4  # factor on the batch size if only a head on deep strides runs
NetworkMaker: TypeAlias = Callable[[int], nn.Module]
"""Returns a network for a number of classes."""
CLASSIFIERS = ("classifier.", "fc.", "head.")  # entries of ImageNet weights that are not the encoder's


@dataclass(frozen=True)
class LearnerConfig:
    """A segmentation network of segmentation-models-pytorch and its optimisation, as plain, validated values.

    Attributes:
        architecture: Name of an smp architecture, such as ``"FPN"`` (appendix B) or ``"Unet"``; or ``"Light"``, see
            :class:`~al_seg_env.learner.light.Light`.
        encoder: Name of an smp encoder, such as ``"resnet50"`` (appendix B).
        encoder_weights: ``None``; a name that smp knows (``"imagenet"``, downloaded when used); or a file
            (``.safetensors``, ``.pth``) with the weights of the encoder, or of a whole network with such an encoder.
        network_options: Further arguments of the architecture, such as ``{"decoder_pyramid_channels": 64}``.
        weights: File of theta_0 that :func:`save_weights` or ``examples/pretrain.py`` wrote; or a folder that
            segmentation-models-pytorch's ``save_pretrained`` or :func:`~al_seg_env.learner.weights.save_smp` wrote.
        weights_seed: Seed of the random initialisation.
        batch_size: Images per forward pass outside training; by default :func:`default_batch_size` for the image
            size.
        learning_rate, momentum, weight_decay, learning_rate_decay, max_grad_norm, label_stride, device, precision,
            channels_last, fold_batchnorm: See :class:`~al_seg_env.learner.torch_learner.TorchLearner`.
        trainable: ``"all"``, or ``"decoder"``, which freezes the encoder: its features of each image are computed once,
            and only the layers after it are trained and run; see
            :class:`~al_seg_env.learner.feature_learner.FeatureLearner`.
        feature_precision: Precision in which the features are stored; see the same class.
        tune_cpu: Prepare the network and this process for running on a CPU;
            :func:`~al_seg_env.learner.cpu_tuning.tune_for_cpu` lists the changes.

    Raises:
        ValueError: If a setting is out of range.
    """

    architecture: str = "FPN"
    encoder: str = "resnet50"
    encoder_weights: str | None = None
    network_options: Mapping[str, Any] = field(default_factory=dict)
    weights: str | None = None
    weights_seed: int = 0
    learning_rate: float = 1e-3
    momentum: float = 0.95
    weight_decay: float = 1e-4
    learning_rate_decay: float = 1.0
    max_grad_norm: float | None = None
    device: str = "auto"
    precision: str = "auto"
    channels_last: bool | None = None
    batch_size: int | None = None
    fold_batchnorm: bool = True
    label_stride: int = 1
    trainable: str = "all"
    feature_precision: str = "bfloat16"
    tune_cpu: bool = True

    def __post_init__(self) -> None:
        for name in ("architecture", "encoder", "device"):
            check_text(name, getattr(self, name))
        for name in ("encoder_weights", "weights"):
            value = getattr(self, name)
            if isinstance(value, os.PathLike):
                object.__setattr__(self, name, os.fspath(value))
            elif value is not None:
                check_text(name, value)
        options = self.network_options
        named = isinstance(options, Mapping) and all(isinstance(key, str) for key in options)
        check("network_options", options, named, "a mapping from argument to value")
        check_int("weights_seed", self.weights_seed, 0, 2**63 - 1)
        if self.batch_size is not None:
            check_int("batch_size", self.batch_size, 1, LARGEST_BATCH)
        check_int("label_stride", self.label_stride, 1)
        check_choice("trainable", self.trainable, ("all", "decoder"))
        check_choice("feature_precision", self.feature_precision, tuple(FEATURE_DTYPES))
        check_choice("precision", self.precision, ("auto", *DTYPES))
        check_optimisation(
            self.learning_rate, self.momentum, self.weight_decay, self.learning_rate_decay, self.max_grad_norm
        )
        check_switches(self.channels_last, self.fold_batchnorm, self.tune_cpu)

    @torch.inference_mode(mode=False)  # what is made in inference mode can't be trained
    def build(
        self,
        classes: Sequence[str],
        image_size: Size = (360, 480),
        cache: str | Path | None = None,
        network: NetworkMaker | None = None,
    ) -> TorchLearner:
        """Return a learner.

        Args:
            classes: Names of the classes, at most 255.
            image_size: Size of the images, which determines the default ``batch_size``.
            cache: Folder for the features of a frozen encoder, shared by all processes; by default they are kept in
                memory.
            network: Returns a network of one's own for a number of classes, which maps normalised images
                ``(B, 3, H, W)`` to logits ``(B, C, H, W)``, instead of that of ``architecture`` and ``encoder``.

        Raises:
            ValueError: If a name is unknown, weights don't match the network, or there are too many classes.
        """
        classes = check_classes(classes)
        if self.tune_cpu:
            run_forks_on_one_thread()  # a forked worker would hang when weights are copied
        made = build_network(self, len(classes)) if network is None else _made_by(network, len(classes), self)
        if self.weights is not None:
            load_weights(made, self.weights, classes)
        mean, std = normalisation(self.encoder)
        build: Callable[..., TorchLearner] = TorchLearner
        deep = self.trainable == "decoder" and self.architecture.lower() == "light"
        if self.trainable == "decoder":
            build = partial(FeatureLearner, feature_precision=self.feature_precision, cache=cache)
        return build(
            made,
            len(classes),
            learning_rate=self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            learning_rate_decay=self.learning_rate_decay,
            max_grad_norm=self.max_grad_norm,
            mean=mean,
            std=std,
            output_stride=int(getattr(getattr(made, "encoder", None), "output_stride", 32)),
            device=self.device,
            precision=self.precision,
            channels_last=self.channels_last,
            batch_size=default_batch_size(image_size, deep) if self.batch_size is None else self.batch_size,
            fold_batchnorm=self.fold_batchnorm,
            label_stride=self.label_stride,
            tune_cpu=self.tune_cpu,
        )


def default_batch_size(image_size: Size, deep: bool = False) -> int:
    """Return the number of images per forward pass: more if they are small, up to 64, to amortise the cost of layers.

    Args:
        image_size: ``(height, width)`` in pixels.
        deep: Whether only layers on deep strides run, whose feature maps are far smaller than an image.
    """
    fitting = PIXELS_PER_PASS * (DEEP if deep else 1) // (image_size[0] * image_size[1])
    return 1 << min(6, max(0, fitting.bit_length() - 1))


def build_network(config: LearnerConfig, num_classes: int) -> nn.Module:
    """Return an smp model with ``num_classes`` output channels."""
    by_file = config.encoder_weights is not None and is_weights_file(config.encoder_weights)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.weights_seed)
        try:
            create = Light if config.architecture.lower() == "light" else partial(smp.create_model, config.architecture)
            network: nn.Module = create(
                encoder_name=config.encoder,
                encoder_weights=None if by_file or config.weights is not None else config.encoder_weights,
                classes=num_classes,
                **config.network_options,
            )
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"segmentation-models-pytorch cannot build architecture={config.architecture!r}, encoder="
                f"{config.encoder!r}, encoder_weights={config.encoder_weights!r}, network_options="
                f"{dict(config.network_options)}: {error}"
            ) from error
        except OSError as error:
            raise ValueError(
                f"encoder_weights {config.encoder_weights!r} of {config.encoder!r} could not be downloaded ({error}); "
                "use a local file instead, or None"
            ) from error
    if by_file and config.weights is None:
        assert config.encoder_weights is not None
        tensors = read_tensors(config.encoder_weights)
        inner = "encoder."
        of_network = {key.removeprefix(inner): value for key, value in tensors.items() if key.startswith(inner)}
        tensors = of_network or {key: value for key, value in tensors.items() if not key.startswith(CLASSIFIERS)}
        load_fitting(network.get_submodule("encoder"), tensors, config.encoder_weights)
    decoder = getattr(network, "decoder", None)
    if isinstance(decoder, FPNDecoder) and decoder.merge.policy == "add":
        decoder.merge = _Sum()
    return network


def _made_by(network: NetworkMaker, num_classes: int, config: LearnerConfig) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.weights_seed)
        made = network(num_classes)
    if not isinstance(made, nn.Module):
        raise ValueError(f"network returned a {type(made).__name__} for {num_classes} classes; expected an nn.Module")
    return made


def network_with(config: LearnerConfig, weights: str | Path, classes: Sequence[str]) -> nn.Module:
    """Return the network of a configuration with the weights that :func:`load_weights` reads.

    Raises:
        ValueError: If the weights cannot be read, or don't match the network.
    """
    network = build_network(replace(config, weights=str(weights)), len(classes))
    load_weights(network, weights, classes)
    return network


class _Sum(nn.Module):
    """Adds feature maps, as smp's FPN does, without stacking them first."""

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return the sum of maps of one shape."""
        return reduce(torch.add, maps)


def normalisation(encoder: str) -> tuple[Sequence[float], Sequence[float]]:
    """Return mean and standard deviation of the images that an encoder's ImageNet weights were trained on."""
    name = encoder.removeprefix("timm-").removeprefix("tu-")
    pretrained = timm.get_pretrained_cfg(name, allow_unregistered=True) if name != encoder else None
    return (IMAGENET_MEAN, IMAGENET_STD) if pretrained is None else (pretrained.mean, pretrained.std)
