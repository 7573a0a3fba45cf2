"""What people are shown, and what their answers cost."""

import numpy as np
import pytest
from fakes import CLASSES, closed_form_env, numbered_data, same

from al_seg_env import Answer, load_state, save_state
from al_seg_env.datasets.originals import Original
from al_seg_env.labelling.oracles import ask
from al_seg_env.labelling.request import REQUEST_COLOUR, requests_of
from al_seg_env.regions import Box


class Large:
    """Images of 32 x 40 that were 64 x 80."""

    def __init__(self, count=9):
        self.small = numbered_data(count)
        self.classes, self.names, self.image_size = CLASSES, self.small.names, (32, 40)
        self.image, self.mask = self.small.image, self.small.mask
        self.read = []

    def full(self, index):
        self.read.append(index)
        return self.small.image(index).repeat(2, axis=0).repeat(2, axis=1)

    def original(self, index):
        return Original((64, 80), (32, 40), lambda: self.full(index))


def test_a_request_shows_the_original_in_its_surroundings():
    data = Large()
    (request,) = requests_of(data, [Box(1, 8, 16, 10, 20)])
    assert (request.region, request.name, request.size) == (Box(1, 16, 32, 20, 40), "image 1", (64, 80))
    assert request.classes == CLASSES
    assert request.palette.shape == (3, 3)
    assert request.prelabel() is None
    np.testing.assert_array_equal(request.pixels(), data.full(1)[16:32, 20:40])
    context = request.context(margin=0.5)
    assert context.pixels.shape == (32, 40, 3)
    assert context.box == Box(1, 8, 24, 10, 30)
    np.testing.assert_array_equal(context.pixels[8:24, 10:30], request.pixels())
    assert (context.pixels[7, 9:31] == REQUEST_COLOUR).all()
    np.testing.assert_array_equal(context.pixels[:7], data.full(1)[8:15, 10:50])
    corner = requests_of(data, [Box(1, 0, 8, 0, 10)])[0].context()
    assert corner.box == Box(1, 0, 16, 0, 20)
    assert corner.pixels.shape == (32, 40, 3)


def test_an_image_is_read_and_predicted_once_for_all_of_its_requests():
    data, predicted = Large(), []

    def predict(image):
        predicted.append(image)
        return np.full((32, 40), 2, np.uint8)

    requests = requests_of(data, [Box(1, 0, 8, 0, 10), Box(1, 8, 16, 0, 10)], predict)
    assert (data.read, predicted) == ([], [])
    for request in requests:
        request.context()
        assert (request.prelabel() == np.full((16, 20), 2)).all()
    assert (data.read, predicted) == ([1], [1])


class Person:
    """Labels the truth in the original's pixels; regions cost what they are told."""

    def __init__(self, data, **effort):
        self.data, self.effort, self.asked = data, effort, []

    def answer(self, requests):
        self.asked += requests
        masks = [self.data.mask(request.region.image).repeat(2, 0).repeat(2, 1) for request in requests]
        return [Answer(request.region.crop(mask), **self.effort) for request, mask in zip(requests, masks, strict=True)]


def test_answers_in_originals_train_as_the_truth_does():
    data = Large()
    env, expected = (closed_form_env(data=data, oracle=oracle) for oracle in (Person(data), None))
    for one in (env, expected):
        one.reset(seed=0)
    assert same(env.step(np.array([1, 2, 3])), expected.step(np.array([1, 2, 3])))
    assert env.labels.costs.tolist() == [[16 * 20, -1, -1]] * 3


def test_the_prelabel_is_what_the_network_predicts_now():
    class Lazy(Person):
        def answer(self, requests):
            self.asked += requests
            return [Answer(request.prelabel()) for request in requests]

    data = Large()
    person = Lazy(data)
    env = closed_form_env(data=data, oracle=person)
    env.reset(seed=0)
    for action in (np.array([1, 2, 3]), np.array([0, 0, 0])):
        seen = env.learner.seen.copy()
        env.step(action)
        for request in person.asked[-3:]:
            labels = env.learner.logits_of(request.region.image, (32, 40), seen).argmax(0).numpy()
            np.testing.assert_array_equal(request.prelabel()[::2, ::2], request.box.crop(labels))


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (lambda r: [np.zeros(r[0].region.size, np.uint8)], "is ndarray; expected an Answer"),
        (lambda r: [Answer(np.zeros(r[0].box.size, np.uint8))], r"expected uint8 \(16, 20\), found uint8 \(8, 10\)"),
        (lambda r: [Answer(np.full(r[0].region.size, 9, np.uint8))], r"labels \[9\] are not classes"),
        (lambda r: [], "the oracle returned 0 masks; expected 1"),
    ],
)
def test_a_wrong_answer_is_refused(answers, message):
    class Wrong:
        answer = staticmethod(answers)

    with pytest.raises(ValueError, match=message):
        ask(Wrong(), requests_of(Large(), [Box(1, 8, 16, 10, 20)]))


@pytest.mark.parametrize(
    ("unit", "budget", "steps", "spent"),
    [("seconds", 10, 2, 15.0), ("clicks", 21, 3, 27.0), ("pixels", 320 * 3, 1, 960.0), ("regions", 7, 3, None)],
)
def test_budgets_in_what_labels_cost(unit, budget, steps, spent):
    data = Large()
    env = closed_form_env(data=data, oracle=Person(data, seconds=2.5, clicks=3), budget=budget, budget_unit=unit)
    env.reset(seed=0)
    for step in range(steps):
        *_, terminated, _, info = env.step(np.zeros(3, np.int64))
        assert terminated == (step == steps - 1)
        assert info["next_active"] == (0 if terminated else 1 if unit == "regions" and step == 1 else 3)
    assert info.get("spent") == spent


def test_costs_travel_with_the_state(tmp_path):
    data = Large()
    options = {"data": data, "oracle": Person(data, seconds=2.5), "budget": 30, "budget_unit": "seconds"}
    env = closed_form_env(**options)
    env.reset(seed=0)
    env.step(np.zeros(3, np.int64))
    save_state(tmp_path / "state", env.get_state())
    other = closed_form_env(**options)
    other.set_state(load_state(tmp_path / "state"))
    assert other.labels.spent("seconds") == 7.5
    assert same(other.step(np.ones(3, np.int64)), env.step(np.ones(3, np.int64)))
    before = env.get_state()
    del before["labels"]["costs"], before["answers"]["costs"]  # as earlier versions wrote it
    other.set_state(before)
    assert (other.labels.costs == -1).all()


def test_an_oracle_that_does_not_tell_what_it_cost_is_named():
    data = Large()
    env = closed_form_env(data=data, oracle=Person(data), budget_unit="seconds")
    env.reset(seed=0)
    with pytest.raises(ValueError, match="budget_unit is 'seconds', but Person does not tell"):
        env.step(np.zeros(3, np.int64))
