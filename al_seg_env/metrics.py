"""Confusion matrix, IoU per class and mean IoU, as the benchmarks count them: over a whole split at once."""

from __future__ import annotations

import torch
from torch import Tensor


def confusion_matrix(predicted: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """Count pixels by true and predicted class; pixels whose target is no class are left out.

    Args:
        predicted: Integer labels, any shape; ``num_classes`` and above are left out too.
        target: Integer labels of the same shape; ``num_classes`` and above (so 255 too) are ignored.
        num_classes: C.

    Returns:
        ``(C, C)`` int64; rows are the truth, columns the prediction.
    """
    # A last row and column take what is left out, so that no pixel has to be looked for.
    columns = num_classes + 1
    cells = target.clamp(max=num_classes).to(torch.int32) * columns + predicted.clamp(max=num_classes)
    counts = torch.bincount(cells.flatten(), minlength=columns**2)
    return counts.view(columns, columns)[:num_classes, :num_classes]


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
