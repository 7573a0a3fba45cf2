"""Confusion matrix against scikit-learn, and IoU by hand."""

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix as sklearn_confusion
from sklearn.metrics import jaccard_score

from al_seg_env.metrics import class_iou, confusion_matrix, mean_iou


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_confusion_matrix_and_iou_equal_sklearn(dtype):
    rng = np.random.default_rng(0)
    target = rng.choice([0, 1, 2, 4, 255], size=(3, 20, 30))  # class 3 is absent
    predicted = rng.integers(0, 5, size=target.shape)
    found = confusion_matrix(torch.from_numpy(predicted), torch.from_numpy(target).to(dtype), 5)
    known = target != 255
    expected = sklearn_confusion(target[known], predicted[known], labels=range(5))
    np.testing.assert_array_equal(found, expected)
    iou = jaccard_score(target[known], predicted[known], labels=[0, 1, 2, 4], average=None)
    np.testing.assert_allclose(class_iou(found)[[0, 1, 2, 4]], iou)
    assert mean_iou(found) == pytest.approx(iou.mean())


def test_iou_by_hand_leaves_an_absent_class_out():
    truth, predicted = torch.tensor([0, 0, 0, 1, 255, 255]), torch.tensor([0, 0, 1, 1, 0, 2])
    confusion = confusion_matrix(predicted, truth, 3)
    assert confusion.tolist() == [[2, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert class_iou(confusion).tolist()[:2] == pytest.approx([2 / 3, 1 / 2])
    assert class_iou(confusion)[2].isnan()
    assert mean_iou(confusion) == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_a_mean_over_some_classes_leaves_out_those_that_do_not_occur():
    confusion = torch.tensor([[2, 2, 0], [0, 1, 0], [0, 0, 0]])
    assert mean_iou(confusion, [1]) == mean_iou(confusion, [2, 1]) == pytest.approx(1 / 3)
    assert mean_iou(confusion, [0, 1, 2]) == mean_iou(confusion)
    with pytest.raises(ValueError, match=r"the mean IoU of the classes \[2\] is undefined: no pixel of the split has"):
        mean_iou(confusion, [2])


def test_a_class_predicted_but_absent_counts_against_the_others_only():
    confusion = confusion_matrix(torch.tensor([0, 1]), torch.tensor([0, 0]), 2)
    assert mean_iou(confusion) == 0.5


def test_a_split_without_labels_has_no_mean_iou():
    confusion = confusion_matrix(torch.zeros(4, dtype=torch.int64), torch.full((4,), 255), 3)
    with pytest.raises(ValueError, match="without a single labelled pixel"):
        mean_iou(confusion)
