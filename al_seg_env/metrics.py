"""Confusion matrix, IoU per class and mean IoU, as the benchmarks count them: over a whole split at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def confusion_matrix(predicted: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """Count pixels by true and predicted class; pixels whose target is not a class are ignored.

    Args:
        predicted: Integer labels, any shape; ``num_classes`` and above are ignored too.
        target: Integer labels of the same shape; ``num_classes`` and above (so 255 too) are ignored.
        num_classes: C.

    Returns:
        ``(C, C)`` int64; rows are the truth, columns the prediction.

    >>> predicted = torch.tensor([0, 1, 1, 1])
    >>> target = torch.tensor([0, 0, 1, 255])  # the last pixel has no label
    >>> confusion_matrix(predicted, target, num_classes=2)
    tensor([[1, 1],
            [0, 1]])
    """
    # An extra row and column collect what is ignored, which is cheaper than selecting pixels.
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

    Class 0 has one pixel in common of two in the union, and so has class 1; class 2 does not occur:

    >>> class_iou(torch.tensor([[1, 1, 0], [0, 1, 0], [0, 0, 0]]))
    tensor([0.5000, 0.5000,    nan], dtype=torch.float64)
    """
    confusion = confusion.double()
    intersection = confusion.diagonal()
    truth = confusion.sum(dim=1)
    union = truth + confusion.sum(dim=0) - intersection
    return torch.where(truth > 0, intersection / union.clamp(min=1), torch.nan)


def mean_iou(confusion: Tensor, classes: Sequence[int] = ()) -> float:
    """Return the mean IoU in ``[0, 1]`` over the classes that occur in the truth.

    Args:
        confusion: ``(C, C)`` counts over a whole split; rows are the truth.
        classes: Indices of the classes to average; all if empty.

    Raises:
        ValueError: If no pixel of the split has a true label of one of these classes.

    >>> confusion = torch.tensor([[2, 2, 0], [0, 1, 0], [0, 0, 0]])  # IoU 1/2, 1/3, undefined
    >>> mean_iou(confusion, classes=[0])
    0.5
    """
    if not confusion.sum():
        raise ValueError("the mean IoU of a split without a single labelled pixel is undefined; check its masks")
    iou = class_iou(confusion)
    averaged = iou[list(classes)] if classes else iou
    if averaged.isnan().all():
        raise ValueError(
            f"the mean IoU of the classes {list(classes)} is undefined: no pixel of the split has one of them"
        )
    return float(averaged.nanmean())
