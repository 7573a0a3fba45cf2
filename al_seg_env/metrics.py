"""Confusion matrix, IoU per class and mean IoU, as the benchmarks count them: over a whole split at once."""

from __future__ import annotations

import torch
from torch import Tensor


def confusion_matrix(predicted: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """Count pixels by true and predicted class; pixels whose target is no class are left out.

    Args:
        predicted: Integer labels in ``[0, num_classes)``, any shape.
        target: Integer labels of the same shape; ``num_classes`` and above (so 255 too) are ignored.
        num_classes: C.

    Returns:
        ``(C, C)`` int64; rows are the truth, columns the prediction.
    """
    target = target.long()
    cells = torch.where(target < num_classes, target * num_classes + predicted, num_classes**2)
    counts = torch.bincount(cells.flatten(), minlength=num_classes**2 + 1)
    return counts[: num_classes**2].view(num_classes, num_classes)


def class_iou(confusion: Tensor) -> Tensor:
    """Return the intersection over union of each class.

    Args:
        confusion: ``(C, C)`` counts; rows are the truth.

    Returns:
        ``(C,)`` float64 in ``[0, 1]``; NaN for a class with no true pixel, which the benchmarks leave out.
    """
    confusion = confusion.double()
    intersection = confusion.diagonal()
    truth = confusion.sum(dim=1)
    union = truth + confusion.sum(dim=0) - intersection
    return torch.where(truth > 0, intersection / union.clamp(min=1), torch.nan)


def mean_iou(confusion: Tensor) -> float:
    """Return the mean IoU in ``[0, 1]`` over the classes that occur in the truth.

    Raises:
        ValueError: If no pixel of the split has a true label.
    """
    if not confusion.sum():
        raise ValueError("the mean IoU of a split without a single labelled pixel is undefined; check its masks")
    return float(class_iou(confusion).nanmean())
