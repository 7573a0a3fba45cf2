"""Training to convergence."""

import itertools
import shutil

import numpy as np
import pytest
import torch
from fakes import IMAGE_SIZE, ClosedFormLearner, numbered_data, tiny_network
from sklearn.metrics import confusion_matrix

from al_seg_env import TorchLearner
from al_seg_env.datasets.frames import Frames
from al_seg_env.learner import fitting
from al_seg_env.learner.fitting import FitSettings, evaluate, fit_to_convergence
from al_seg_env.metrics import mean_iou
from al_seg_env.regions import RegionGrid
from al_seg_env.storage import tree_digest

GRID = RegionGrid(IMAGE_SIZE, (8, 10))


class Scripted(ClosedFormLearner):
    """Its mean IoU after each epoch is what a script says."""

    def __init__(self, mious):
        super().__init__()
        self.mious, self.epoch, self.weights, self.batches = iter(mious), -1, -1, []

    def fit_step(self, images, targets, rng):
        self.batches.append(len(images))
        self.weights = self.epoch
        return 0.0

    def evaluate(self, batches):
        self.epoch += 1
        self.weights = self.epoch
        miou = next(self.mious)
        return torch.tensor([[miou, 100 - miou], [0, 0]])  # the second class is absent

    def state_dict(self):
        return {"weights": self.weights}

    def load_state_dict(self, state):
        self.weights = state["weights"]


def fit(learner, regions=tuple(range(10)), data=None, validation=(5,), **settings):
    frames = Frames(numbered_data() if data is None else data)
    return fit_to_convergence(
        learner,
        frames,
        GRID,
        regions,
        frames.mask,
        validation,
        FitSettings(crop_size=(16, 16), **settings),
        np.random.default_rng(0),
    )


@pytest.mark.parametrize(
    ("mious", "patience", "epochs", "best"),
    [
        ([10, 20, 30, 29, 30, 28, 99], 3, 5, 2),  # an equal value is no improvement
        ([50, 40, 30, 60, 99], 2, 2, 0),  # the weights from before the first epoch
        ([10, 20, 30, 40, 50, 60, 70], 3, 6, 6),  # max_epochs
        ([10, 20, 15, 25, 20, 20], 2, 5, 3),
    ],
)
def test_it_stops_by_patience_and_keeps_the_best_weights(mious, patience, epochs, best):
    learner = Scripted(mious)
    result = fit(learner, patience=patience, max_epochs=6)
    assert result.history == pytest.approx(mious[: epochs + 1])
    assert (result.best_epoch, learner.weights) == (best, best)
    assert result.best_miou == pytest.approx(mious[best])


@pytest.mark.parametrize(
    ("regions", "min_updates", "batches"), [(10, 1, [4, 4, 2]), (3, 1, [3]), (3, 3, [4, 4, 1]), (10, 3, [4, 4, 2])]
)
def test_an_epoch_goes_over_all_regions_and_makes_enough_updates(regions, min_updates, batches):
    learner = Scripted([1, 1])
    fit(learner, range(regions), batch_size=4, min_updates=min_updates, max_epochs=1)
    assert learner.batches == batches


def learnable(count=4):
    """Masks that can be read off the second channel."""
    data = numbered_data(count)
    for number in range(count):
        data.mask(number)[...] = np.minimum(data.image(number)[..., 1] // 86, 2)
    return data


def test_it_improves_a_real_network_and_leaves_it_with_its_best_figures():
    data = learnable()
    learner = TorchLearner(tiny_network(dropout=0.1), 3, learning_rate=0.1, device="cpu", precision="float32")
    result = fit(learner, range(32), data, (2, 3), batch_size=8, max_epochs=8)
    assert result.best_miou > result.history[0] + 20
    assert result.best_miou == max(result.history)
    assert evaluate(learner, Frames(data), (2, 3)).miou == result.best_miou


def test_it_is_repeatable():
    data, results = learnable(), []
    for _ in range(2):
        learner = TorchLearner(tiny_network(), 3, learning_rate=0.1, device="cpu", precision="float32")
        results.append(fit(learner, range(16), data, (2, 3), batch_size=8, max_epochs=3).history)
    assert results[0] == results[1]


def test_evaluate_equals_sklearn_over_all_pixels_at_once():
    data = numbered_data(void=0.3)
    learner = TorchLearner(tiny_network(), 3, batch_size=2, device="cpu", precision="float32")
    frames = Frames(data)
    evaluation = evaluate(learner, frames, (1, 4, 7))
    predicted = learner.predict(frames.images((1, 4, 7))).argmax(dim=1).numpy().ravel()
    truth = np.stack([data.mask(number) for number in (1, 4, 7)]).ravel()
    known = truth != 255
    expected = confusion_matrix(truth[known], predicted[known], labels=range(3))
    np.testing.assert_array_equal(evaluation.confusion, expected)
    assert evaluation.miou == pytest.approx(100 * mean_iou(torch.from_numpy(expected)))


def test_a_class_that_the_split_lacks_has_no_figure():
    evaluation = evaluate(Scripted([40]), Frames(numbered_data()), (5,))
    assert evaluation.class_iou == [pytest.approx(40.0), None]


def test_there_must_be_something_to_train_on():
    with pytest.raises(ValueError, match="there is no labelled region to train on; acquire some first"):
        fit(Scripted([1]), regions=())


@pytest.mark.parametrize("settings", [{"max_epochs": 4, "patience": 4}, {"updates": 4}])
def test_a_training_goes_on_with_its_own_file_only(tmp_path, monkeypatch, settings):
    monkeypatch.setattr(fitting, "CHECKPOINT_SECONDS", 0)
    frames = Frames(numbered_data())

    def training(seed, path, stop_at=99):
        learner = TorchLearner(tiny_network(), 3, batch_size=4, device="cpu", precision="float32")
        steps, fit_step = itertools.count(1), learner.fit_step

        def counted(*views):
            if next(steps) == stop_at:
                raise InterruptedError
            return fit_step(*views)

        monkeypatch.setattr(learner, "fit_step", counted)
        made = FitSettings(crop_size=(16, 16), batch_size=4, **settings)
        rng = np.random.default_rng(seed)
        fit_to_convergence(learner, frames, GRID, (0, 1, 2), frames.mask, (5,), made, rng, checkpoint=path)
        return tree_digest(learner.state_dict())

    whole = training(1, tmp_path / "whole.part")
    for seed in (0, 1):
        with pytest.raises(InterruptedError):
            training(seed, tmp_path / f"{seed}.part", stop_at=3)
    shutil.copy(tmp_path / "0.part", tmp_path / "wrong.part")
    with pytest.warns(UserWarning, match=r"starts again from the beginning: .*wrong.part belongs to another training"):
        assert training(1, tmp_path / "wrong.part") == whole
    assert training(1, tmp_path / "1.part") == whole
    assert not list(tmp_path.glob("1.part"))


@pytest.mark.parametrize(
    ("settings", "idle"),
    [({"fits": 3, "replay": 0.2}, "replay, fits"), ({"updates": 9, "patience": 3}, "patience")],
)
def test_settings_without_effect_are_named(settings, idle):
    with pytest.warns(UserWarning, match=f"^{idle} has no effect, since updates is (None|9); omit it"):
        FitSettings(**settings)
