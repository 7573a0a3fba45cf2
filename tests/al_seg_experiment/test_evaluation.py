"""The steps of an experiment by themselves: policies by name and as functions, folders that belong to one job."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from experiments import TINY, assert_picture, rows_of
from fakes import closed_form_env
from processes import in_child
from torch import nn

from agents import EntropyPolicy, UniformPolicy
from al_seg_env import SyntheticStreets, make_env
from al_seg_env.learner.fitting import FitSettings
from al_seg_env.learner.weights import weights_digest
from al_seg_env.registration import make_again
from al_seg_env.storage import folder_lock, write_png
from al_seg_experiment import (
    Stage,
    acquire,
    acquisition,
    evaluate,
    evaluation,
    load_experiment,
    pretrain,
    train_agent,
    train_forecast,
)
from al_seg_experiment.acquisition import is_acquired
from al_seg_experiment.folders import claimed
from al_seg_experiment.plotting import plot_lines
from al_seg_experiment.policies import make_policy, parse_policy
from al_seg_experiment.trial_results import read_result, set_damaged_aside, write_result

ID = "al_seg_env/SyntheticStreets-v0"
FIT = {"crop_size": (32, 32), "batch_size": 4, "max_epochs": 1}


def tiny(**arguments):
    return gym.make(ID, **{**TINY, "device": "cpu", **arguments})


def my_policy(env, seed):
    """Return a policy of one's own."""
    assert env.config.split == "eval"
    return UniformPolicy(seed + 1)


def test_policies_are_compared_as_functions_and_by_name(tmp_path):
    env = tiny()
    mine = {"mine": partial(my_policy), "uniform": lambda env, seed: UniformPolicy(seed)}
    results = evaluate(env, mine, tmp_path / "functions", seeds=[0, 3], budgets=[4, 2], fit=FIT)
    rows = rows_of(results)
    assert {(row["method"], row["seed"], row["budget"]) for row in rows} == {
        (method, seed, budget) for method in mine for seed in "03" for budget in "024"
    }
    at_start = {(row["val_miou"], row["test_miou"]) for row in rows if row["budget"] == "0"}
    assert len(at_start) == 1
    by_name = evaluate(env, ["uniform"], tmp_path / "names", seeds=[0, 3], budgets=[2, 4], fit=FIT)
    assert rows_of(by_name) == [row for row in rows if row["method"] == "uniform"]
    # The policy that a name stands for may not change.
    with pytest.raises(
        ValueError, match=r"uniform-0/made_with.json is of another configuration: policy is '.*lambda.*' th"
    ):
        evaluate(env, ["uniform"], tmp_path / "functions", seeds=[0], budgets=[2, 4], fit=FIT)


def test_trials_share_environments_and_are_those_in_environments_of_their_own(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(
        evaluation, "make_again", lambda env, **arguments: made.append(arguments) or make_again(env, **arguments)
    )
    monkeypatch.setattr(evaluation, "KEPT_ENVIRONMENTS", 2)
    settings = {"budgets": [2, 4], "fit": FIT}
    together = evaluate(tiny(), ["uniform", "bald", "rare"], tmp_path / "together", seeds=[0, 1, 2], **settings)
    # One to check the arguments, one for uniform choice and theta_0, one for BALD, and a third is not kept.
    assert made == [{}, {}, parse_policy("bald").arguments, *[parse_policy("rare").arguments] * 3]
    alone = []
    for method, seed in [(method, seed) for method in ("bald", "rare", "uniform") for seed in (0, 1, 2)]:
        alone += rows_of(evaluate(tiny(), [method], tmp_path / f"{method}-{seed}", seeds=[seed], **settings))
    assert rows_of(together) == alone


def test_a_damaged_result_is_made_again(tmp_path):
    env = tiny()
    results = evaluate(env, ["uniform"], tmp_path, seeds=[0], budgets=[2, 4], fit=FIT)
    before = results.read_bytes()
    damaged = tmp_path / "trials" / "uniform-0" / "result-2.json"
    damaged.write_text(damaged.read_text()[:40])
    with pytest.warns(UserWarning, match=r"result-2.json is damaged .* set aside as result-2.damaged, and made again"):
        evaluate(env, ["uniform"], tmp_path, seeds=[0], budgets=[2, 4], fit=FIT)
    assert results.read_bytes() == before
    numerics = (tmp_path / "numerics.json").read_text()
    for content in ("[]", "{}", '{"precision": "float32"}', numerics.replace("float32", "bfloat16")):
        (tmp_path / "numerics.json").write_text(content)
        with pytest.raises(
            ValueError, match=r"numerics\.json.*(is malformed|it holds|it has no digest|its digest does not match)"
        ):
            evaluate(env, ["uniform"], tmp_path, seeds=[0], budgets=[2, 4], fit=FIT)


def test_a_result_before_the_one_that_was_interrupted_is_made_again(tmp_path, monkeypatch):
    """The acquisition that is stored is of the later budget, from which the earlier one cannot be fitted."""
    settings = {"seeds": [0], "budgets": [2, 4], "fit": FIT}
    whole = evaluate(tiny(), ["uniform"], tmp_path / "whole", **settings)
    fitted, fit_and_test = [], acquisition.fit_to_convergence

    def interrupted(*arguments, **options):
        fitted.append(1)
        if len(fitted) == 2:
            raise KeyboardInterrupt
        return fit_and_test(*arguments, **options)

    monkeypatch.setattr(acquisition, "fit_to_convergence", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(tiny(), ["uniform"], tmp_path / "run", **settings)
    trial = tmp_path / "run" / "trials" / "uniform-0"
    assert (trial / "acquired-4.safetensors").exists()
    (trial / "result-2.json").write_text("{")
    with pytest.warns(UserWarning, match=r"set aside as result-2.damaged, and made again"):
        again = evaluate(tiny(), ["uniform"], tmp_path / "run", **settings)
    assert again.read_bytes() == whole.read_bytes()


def test_fits_from_theta_0_take_labels_that_were_there_before(tmp_path):
    """With a share of known images, other images are trained on, so the figures differ."""
    found = []
    for replay in (0.0, 0.5):
        fit = {**FIT, "updates": 2, "replay": replay}
        evaluate(tiny(), ["uniform"], tmp_path / str(replay), seeds=[0], budgets=[4], fit=fit)
        found.append(read_result(tmp_path / str(replay) / "trials" / "uniform-0" / "result-4.json")["val_iou"])
    assert found[0] != found[1]


def test_a_trial_of_an_environment_made_of_objects(tmp_path):
    """Acquisition needs no registered id; what is requested is what a user would count."""
    env = closed_form_env(split="eval", budget=6)
    fit = FitSettings(crop_size=None, max_epochs=1)
    acquire(env, UniformPolicy(0), tmp_path, method="mine", seed=5, budgets=[3, 6], fit=fit)
    result = read_result(tmp_path / "result-6.json")
    assert (result["method"], result["seed"], result["budget"]) == ("mine", 5, 6)
    assert result["acquired_miou"] == pytest.approx(env.unwrapped._info(env._episode)["miou"])
    counts = np.bincount(np.concatenate([env.labels.mask(i).ravel() for i in env.splits.eval]), minlength=256)
    assert list(result["asked"].values()) == counts[:3].tolist()
    assert_picture(tmp_path / "requests.png")
    for budgets in ([6, 3], [3, 3, 6], [], [3]):
        with pytest.raises(ValueError, match=r"budgets is .*; expected increasing numbers of regions"):
            acquire(env, UniformPolicy(0), tmp_path / "new", method="mine", seed=5, budgets=budgets, fit=fit)


def test_theta_0_is_trained_once_and_the_same_everywhere(tmp_path):
    stages = [Stage(images="state", epochs=1, updates=1)]
    weights = [pretrain(env, stages, tmp_path / str(i)) for i, env in enumerate([tiny(), tiny().spec])]
    assert weights_digest(weights[0]) == weights_digest(weights[1])
    stored = weights[0].stat().st_mtime_ns, (tmp_path / "0" / "stage-0.safetensors").stat().st_mtime_ns
    pretrain(tiny(), stages, tmp_path / "0")
    assert (tmp_path / "0" / "stage-0.safetensors").stat().st_mtime_ns == stored[1]
    with pytest.raises(ValueError, match=r"0/made_with.json is of another configuration: seed is 0 there, 1 here"):
        pretrain(tiny(), stages, tmp_path / "0", seed=1)
    with pytest.raises(ValueError, match=r"arguments.pool_size is 2 there, 3 here"):
        pretrain(tiny(pool_size=3), stages, tmp_path / "0")


def test_an_agent_is_trained_with_short_names_for_schedules(tmp_path):
    agent = train_agent(
        tiny(budget=2), tmp_path, episodes=1, batch_size=2, epsilon_steps=4, learning_rate_decay=0.5, plot=False
    )
    policy = make_policy("dqn", tiny().unwrapped, 0, agent)
    assert policy.epsilon(4) == pytest.approx(0.05)
    assert not (tmp_path / "episodes.png").exists()
    longer = {"batch_size": 2, "epsilon_steps": 4, "learning_rate_decay": 0.5, "plot": False}
    train_agent(tiny(budget=2), tmp_path, episodes=2, **longer)  # the same rates, for longer
    assert len((tmp_path / "episodes.csv").read_text().splitlines()) == 3
    with pytest.raises(ValueError, match="episodes is 3; expected a multiple of envs .2., which play side by side"):
        train_agent(tiny(), tmp_path / "side by side", episodes=3, envs=2)
    with pytest.raises(ValueError, match="epsilon and epsilon_steps both set"):
        train_agent(tiny(), tmp_path / "other", episodes=1, epsilon_steps=4, epsilon=0.5)


def test_heuristics_play_beside_the_training(tmp_path):
    def train(episodes, **given):
        return train_agent(tiny(budget=2), tmp_path, episodes=episodes, batch_size=2, plot=False, **given)

    train(1, references=["entropy", "uniform"])
    rows = rows_of(tmp_path / "references.csv")
    assert [row["method"] for row in rows] == ["entropy"] * 5 + ["uniform"] * 5
    env = tiny(budget=2, split="train", scores=["entropy"]).unwrapped
    observation, _ = env.reset(seed=0)  # by hand, the first of them
    action = observation["score_entropy"].argmax(axis=1)
    assert float(rows[0]["return"]) == pytest.approx(env.step(action)[1], abs=1e-4)
    before = (tmp_path / "references.csv").read_bytes()
    train(2, references=["entropy", "uniform", "margin"])  # those that are there are not played again
    assert (tmp_path / "references.csv").read_bytes().startswith(before)
    assert len(rows_of(tmp_path / "references.csv")) == 15
    episodes = tmp_path / "episodes.csv"
    before = episodes.read_bytes()
    for content in (b"", before[:-9], None):  # though nothing is left to train
        episodes.unlink() if content is None else episodes.write_bytes(content)
        train(2)
        assert episodes.read_bytes() == before
    lines = (tmp_path / "references.csv").read_text().splitlines(keepends=True)
    (tmp_path / "references.csv").write_text("".join(lines[:-1]))
    with pytest.raises(
        ValueError, match=r"references.csv has the episodes \[1, 2, 3, 4\] of margin; expected 5: remove"
    ):
        train(2, references=["margin"])
    with pytest.raises(ValueError, match=r"references is \['dqn'\]; expected a list of different ones out of 'uni"):
        train(3, references=["dqn"])


def test_a_folder_belongs_to_one_process_and_one_job(tmp_path):
    with claimed(tmp_path / "job", "pretrain", {"a": 1}) as folder:
        assert json.loads((folder / "made_with.json").read_text())["job"] == "pretrain"

        def second():
            with (
                pytest.raises(ValueError, match=r"job is in use by process \d+"),
                claimed(folder, "pretrain", {"a": 1}),
            ):
                pass

        assert in_child(second) == 0
    with claimed(folder, "pretrain", {"a": 0}):  # nothing was made with 1
        pass
    with claimed(folder, "pretrain", {"a": 1}):
        (folder / "stage-0.part").touch()
    for job, made_with, message in (
        ("pretrain", {"a": 2}, "a is 1 there, 2 here"),
        ("pretrain", {"a": 1, "b": (1, 2)}, r"b is missing there, \[1, 2\] here"),
        ("evaluate", {"a": 1}, "job is 'pretrain' there, 'evaluate' here"),
    ):
        with pytest.raises(ValueError, match=f"another configuration: {message}"), claimed(folder, job, made_with):
            pass
    (folder / "made_with.json").write_text("{")
    with pytest.raises(ValueError, match="made_with.json can't be read"), claimed(folder, "pretrain", {"a": 1}):
        pass
    with folder_lock(folder):  # no lock is left behind
        pass


@pytest.mark.parametrize(
    ("job", "name"),
    [("pretrain", "theta_0.safetensors"), ("pretrain", "pretrain.csv"), ("forecast", "forecast.csv")]
    + [("evaluate", "results.csv"), ("evaluate", "report"), ("train", "agent.safetensors"), ("train", "episodes.csv")]
    + [("pretrain", "stage-0.safetensors"), ("forecast", "network-0.safetensors")]
    + [("evaluate", "trials"), ("evaluate", "theta_0/result-0.json")],
)
def test_somebodys_files_are_not_replaced(tmp_path, job, name):
    is_folder = name in ("report", "trials")
    if is_folder:
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    work = {
        "pretrain": lambda: pretrain(tiny(), [Stage(images="state", epochs=1, updates=1)], tmp_path),
        "forecast": lambda: train_forecast(tiny(), tmp_path),
        "evaluate": lambda: evaluate(tiny(), ["uniform"], tmp_path, seeds=[0], budgets=[2]),
        "train": lambda: train_agent(tiny(), tmp_path, episodes=1),
    }
    with pytest.raises(ValueError, match=f"{name} would be replaced, and nothing there says that al-seg-env wrote it"):
        work[job]()
    assert [path.name for path in tmp_path.iterdir()] == [Path(name).parts[0]]
    assert is_folder or (tmp_path / name).read_text() == "mine"


def test_results_without_their_record_are_not_continued(tmp_path):
    """They might have been made with other settings."""
    with claimed(tmp_path, "pretrain", {"seed": 0}, ["stage-*"]):
        (tmp_path / "stage-0.safetensors").touch()
    (tmp_path / "made_with.json").unlink()
    for seed in (0, 1):
        with (
            pytest.raises(ValueError, match=r"stage-0.safetensors would be replaced, and .* \(no made_with.json\)"),
            claimed(tmp_path, "pretrain", {"seed": seed}, ["stage-*"]),
        ):
            pass


@pytest.mark.parametrize(("old", "new"), [('"val_miou": 50.25', '"val_miou": 51.25'), ('"road": 40', '"road": 41')])
def test_a_result_with_a_changed_figure_is_made_again(tmp_path, old, new):
    path = tmp_path / "result-4.json"
    figures = {"val_miou": 50.25, "val_iou": {"road": 40, "sky": None}, "seconds": {"fitting": 1.5}}
    write_result(path, "uniform", 0, 4, figures)
    assert {**read_result(path, "uniform", 0), **figures} == read_result(path)
    path.write_text(path.read_text().replace('"fitting": 1.5', '"fitting": 2.5'))  # clock readings may differ
    assert read_result(path)["seconds"] == {"fitting": 2.5}
    path.write_text(path.read_text().replace(old, new))
    with pytest.warns(
        UserWarning, match="result-4.json is damaged .*its digest does not match its content.*made again"
    ):
        assert set_damaged_aside(tmp_path, "uniform", 0)
    assert [file.name for file in tmp_path.iterdir()] == ["result-4.damaged"]


def test_a_damaged_picture_is_drawn_again(tmp_path):
    (tmp_path / "result-4.json").touch()
    write_png(tmp_path / "requests.png", np.zeros((9, 9, 3), np.uint8))
    assert is_acquired(tmp_path, [4])
    picture = (tmp_path / "requests.png").read_bytes()
    for content in (b"", picture[:-30], picture[:40]):
        (tmp_path / "requests.png").write_bytes(content)
        assert not is_acquired(tmp_path, [4])


def test_a_record_of_somebodys_is_not_replaced(tmp_path):
    record = tmp_path / "made_with.json"
    record.write_text('{"made with": "love"}')
    with pytest.raises(ValueError, match="made_with.json holds .*; expected 'al-seg-env experiment'"):
        train_forecast(tiny(), tmp_path)
    assert record.read_text() == '{"made with": "love"}'


def test_policies_by_name(tmp_path):
    agent = tmp_path / "agent.safetensors"
    agent.write_bytes(b"")
    entropy = parse_policy("entropy")
    assert (entropy.name, entropy.policy, entropy.arguments) == ("entropy", "entropy", {"scores": ["entropy"]})
    assert parse_policy(f"mine={agent}").agent == agent
    assert parse_policy("mine=own_policies:own_policy").policy == "own_policies:own_policy"
    made = make_policy("own_policies:own_policy", None, 1)
    assert isinstance(made, UniformPolicy)
    assert isinstance(make_policy("entropy", None, 1), EntropyPolicy)
    for wrong, message in (
        ("entropi", "policy 'entropi' is unknown; expected one of uniform, entropy"),
        ("a/b=x:y", "its name is of letters"),
        ("=x:y", "its name is of letters"),
        ("mine=nowhere.safetensors", "there is no file 'nowhere.safetensors'"),
        ("mine=nowhere", "there is no file 'nowhere'"),
    ):
        with pytest.raises(ValueError, match=message):
            parse_policy(wrong)
    with pytest.raises(ValueError, match="'nowhere:nothing' can't be imported: .*; expected module:function"):
        make_policy("nowhere:nothing", None, 0)


def test_lines_are_drawn_in_the_colours_of_the_report(tmp_path):
    path: Path = tmp_path / "new" / "lines.png"
    lines = {"uniform": ([0, 1], [1, 2]), "b": ([0, 1], [2, 1], [0.1, 0.2])}
    plot_lines(path, lines, xlabel="x", ylabel="y", marks={"kept": ([1], [2])})
    assert_picture(path)


def exchange(one, other):
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


def flip_a_number(path):
    content = bytearray(path.read_bytes())
    content[-9] ^= 64
    path.write_bytes(content)


def test_stages_that_are_damaged_or_exchanged_are_trained_again(tmp_path):
    # Without early stopping, so that each stage changes the weights, whatever the last bits of a processor.
    stages = [Stage(images=images, epochs=1, updates=2, early_stopping=False) for images in ("state", "train")]
    whole = pretrain(tiny(), stages, tmp_path / "run").read_bytes()
    first, second = (tmp_path / "run" / f"stage-{number}.safetensors" for number in (0, 1))
    for change, said in (
        (lambda: flip_a_number(first), "stage-0.safetensors and .* are not of one training"),
        (lambda: exchange(first, second), "stage-1.safetensors and .* are not of one training"),
        (
            lambda: [exchange(a, b) for a, b in ((first, second), (history(first), history(second)))],
            "stage-0.safetensors and .* are not of one training of this stage",
        ),
        (lambda: history(second).write_bytes(b""), "stage-1.history.safetensors is damaged"),
    ):
        change()
        with pytest.warns(UserWarning, match=f"{said}.*; they are set aside, and the stage is trained again"):
            assert pretrain(tiny(), stages, tmp_path / "run").read_bytes() == whole


def test_a_stage_of_another_training_is_not_taken_for_ones_own(tmp_path):
    """Though the two files match each other and the stage: the images, the seed or the stage before were others."""
    # Without early stopping, so that each stage changes the weights, whatever the last bits of a processor.
    stages = [Stage(images=images, epochs=1, updates=2, early_stopping=False) for images in ("state", "train")]
    whole = pretrain(tiny(), stages, tmp_path / "run").read_bytes()
    pretrain(tiny(data_seed=1), stages, tmp_path / "images")
    pretrain(tiny(), stages, tmp_path / "seed", seed=1)
    pretrain(tiny(), [stages[0].model_copy(update={"updates": 3}), stages[1]], tmp_path / "before")
    for other, number in (("images", 0), ("seed", 0), ("images", 1), ("before", 1)):
        for name in (f"stage-{number}.safetensors", f"stage-{number}.history.safetensors"):
            shutil.copy(tmp_path / other / name, tmp_path / "run" / name)
        with pytest.warns(UserWarning, match=f"stage-{number}.safetensors and .* are not of one training"):
            assert pretrain(tiny(), stages, tmp_path / "run").read_bytes() == whole


def history(path):
    return path.with_name(f"{path.stem}.history.safetensors")


def test_files_of_one_trial_in_the_folder_of_another(tmp_path, monkeypatch):
    """Each is whole by itself; figures of another seed must not pass for this one's."""
    fit = FitSettings(crop_size=None, max_epochs=1)

    def trial(seed, folder):
        env = closed_form_env(split="eval", budget=6)
        acquire(env, UniformPolicy(seed), folder, method="uniform", seed=seed, budgets=[3, 6], fit=fit)
        return {budget: without_clocks(read_result(folder / f"result-{budget}.json")) for budget in (3, 6)}

    whole = trial(1, tmp_path / "whole")
    with monkeypatch.context() as interrupted:
        interrupted.setattr(acquisition, "write_result", lambda *_: pytest.fail("interrupted"))
        for seed in (0, 1):
            with pytest.raises(pytest.fail.Exception):
                trial(seed, tmp_path / str(seed))
    exchange(*(tmp_path / seed / "acquired-3.safetensors" for seed in "01"))
    with pytest.warns(UserWarning, match=r"acquired-3.safetensors is of the trial .*'seed': 0.*; expected .*'seed': 1"):
        assert trial(1, tmp_path / "1") == whole

    (tmp_path / "1" / "result-4.json").write_bytes((tmp_path / "1" / "result-3.json").read_bytes())
    for name, said in (("result-4", "it is of {'name': 'result-3'"), ("result-3", "expected {.*'seed': 2}")):
        with pytest.raises(ValueError, match=f"{name}.json is damaged or no result .*{said}"):
            read_result(tmp_path / "1" / f"{name}.json", "uniform", 1 if name == "result-4" else 2)
    with pytest.warns(UserWarning, match=r"result-4.json is damaged .*set aside as result-4.damaged"):
        assert set_damaged_aside(tmp_path / "1", "uniform", 1)


def without_clocks(result):
    return {name: value for name, value in result.items() if name != "seconds"}


def test_folders_of_trials_and_numerics_belong_to_their_results(tmp_path):
    env = tiny()
    again = partial(evaluate, env, ["uniform"], tmp_path, seeds=[0], budgets=[2], fit=FIT)
    again()
    shutil.copytree(tmp_path / "trials" / "uniform-0", tmp_path / "trials" / "uniform-1")
    with pytest.raises(ValueError, match="uniform-1 holds results of uniform-0; give the folder back its name"):
        again()
    shutil.rmtree(tmp_path / "trials" / "uniform-1")
    (tmp_path / "numerics.json").write_text("{")
    with pytest.raises(ValueError, match="numerics.json is not JSON .*; restore it"):
        again()
    (tmp_path / "numerics.json").unlink()
    with pytest.raises(ValueError, match="numerics.json is missing: .*restore it"):
        again()


def small_network(num_classes):
    return nn.Conv2d(3, num_classes, 1)


def own_streets(scores=(), **options):
    own = {name: value for name, value in TINY.items() if name not in ("image_size", "images", "weights")}
    return make_env(SyntheticStreets(24, (32, 40)), network=small_network, scores=[*scores], **{**own, **options})


class Doubled(gym.RewardWrapper):
    def reward(self, reward):
        return 1000.0


def test_a_network_of_ones_own_is_trained_and_compared(tmp_path):
    gym.register("tests/Own-v0", entry_point=own_streets)
    weights = pretrain("tests/Own-v0", [Stage(images="state", epochs=1, updates=1)], tmp_path / "theta_0")
    env = gym.make("tests/Own-v0", weights=str(weights))
    rows = rows_of(evaluate(env, ["uniform", "entropy"], tmp_path / "out", seeds=[0], budgets=[4], fit=FIT))
    assert [row["method"] for row in rows] == ["entropy", "entropy", "uniform", "uniform"]
    given = {"arguments": {}, "env": f"{__name__}:tests/Own-v0", "methods": ["uniform", "entropy"], "query_theta_0": []}
    assert load_experiment({**given, "name": "own", "seeds": [0], "budgets": [2, 4], "theta_0": []}).env == given["env"]
    # A function among the arguments is known by its name.
    made_with = json.loads((tmp_path / "out" / "made_with.json").read_text())
    assert "network" not in made_with["arguments"]
    named = gym.make(ID, **{**TINY, "network": small_network})
    evaluate(named, ["uniform"], tmp_path / "named", seeds=[0], budgets=[2], fit=FIT)
    made_with = json.loads((tmp_path / "named" / "made_with.json").read_text())
    assert made_with["arguments"]["network"] == f"{__name__}:small_network"


def test_a_reward_of_ones_own_needs_an_id(tmp_path):
    with pytest.raises(ValueError, match="is wrapped in Doubled, which is lost"):
        train_agent(Doubled(gym.make(ID, **TINY)), tmp_path / "lost", episodes=1)
    gym.register("tests/Doubled-v0", entry_point=lambda **options: Doubled(make_again(ID, **options)))
    train_agent(gym.make("tests/Doubled-v0", **{**TINY, "budget": 2}), tmp_path / "kept", episodes=1, plot=False)
    assert float(rows_of(tmp_path / "kept" / "episodes.csv")[0]["return"]) == 1000.0
    with pytest.raises(ValueError, match="envs is 2, and tests/Doubled-v0 is wrapped in Doubled; expected envs=1"):
        train_agent("tests/Doubled-v0", tmp_path / "side by side", episodes=2, envs=2)


@pytest.mark.parametrize(
    ("policies", "seeds", "message"),
    [
        (
            [UniformPolicy(0)],
            [0],
            "policies is .*; expected names, or a mapping from names to functions",
        ),
        ({"mine": 3}, [0], r"policies\['mine'\] is 3; expected a function from environment and seed to a policy"),
        ({"mine": lambda env, seed: None}, [0], "the policy is a NoneType .*; expected an object with predict"),
        ({"mine": lambda env, seed: Bare()}, [0], "the policy is a Bare .*deterministic.*; expected an object with"),
        (["uniform"], 2, "seeds is 2; expected a list of whole numbers"),
    ],
)
def test_policies_that_cannot_play_are_named(policies, seeds, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        evaluate(tiny(), policies, tmp_path, seeds=seeds, budgets=[2], fit=FIT)


class Bare:
    def predict(self, observation):
        return np.zeros(2, np.int64), None
