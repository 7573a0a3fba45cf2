"""Running experiments: the whole of a tiny one, killed or not, side by side, on Ray, and grown afterwards."""

import csv
import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from experiments import TINY_EXPERIMENT as TINY
from experiments import rows_of
from fakes import make
from PIL import Image
from processes import in_child

from agents import UniformPolicy
from al_seg_env.learner.fitting import evaluate
from al_seg_experiment import Experiment, Stage, load_experiment, pieces, run, status
from al_seg_experiment.__main__ import main
from al_seg_experiment.experiment import METHODS
from al_seg_experiment.policies import make_policy
from al_seg_experiment.pretraining import pretrain
from al_seg_experiment.protocol import train_query
from al_seg_experiment.records import refuse_differences
from al_seg_experiment.report import report


def test_a_whole_experiment(whole):
    rows = rows_of(whole / "results.csv")
    found = {(row["method"], row["seed"], row["budget"]) for row in rows}
    expected = {(m, s, b) for m in ("uniform", "dqn", "rare") for s in "01" for b in "024"}
    assert found == expected | {("full", seed, "32") for seed in "01"}
    for row in rows:
        assert 0 <= float(row["val_miou"]) <= 100
        asked = [int(value) for key, value in row.items() if key.startswith("asked_") and value]
        if row["method"] != "full":
            most = int(row["budget"]) * 16 * 20
            assert sum(asked) == 0 == most or 0.9 * most < sum(asked) <= most  # some pixels are void
    # Methods start from the same theta_0, so that differences are paired.
    assert len({(row["val_miou"], row["test_miou"]) for row in rows if row["budget"] == "0"}) == 1
    for trial in ("uniform-0", "dqn-1"):
        picture = np.asarray(Image.open(whole / "trials" / trial / "requests.png"))
        assert picture.std() > 1
        assert json.loads((whole / "trials" / trial / "piece.json").read_text())["seed"] == int(trial[-1])
    assert not list(whole.rglob("*.part"))
    assert not list(whole.rglob("acquired-*"))
    assert len(rows_of(whole / "query" / "0" / "episodes.csv")) == 2


@pytest.mark.slow
def test_an_agent_trained_in_two_environments_side_by_side(whole, tmp_path):
    """In processes of their own; interrupted after two of four episodes, it ends with the same agent."""
    weights = whole / "query_theta_0" / "theta_0.safetensors"

    def train(folder, episodes):
        folder.mkdir(exist_ok=True)
        query = {**TINY["query"], "envs": 2, "episodes": episodes, "refit": {"gradient_steps": 3}}
        experiment = load_experiment({**TINY, "query": query})
        assert in_child(lambda: train_query(experiment, weights, folder, 0)) == 0

    train(tmp_path / "whole", 4)
    train(tmp_path / "parts", 2)
    assert [row["steps"] for row in rows_of(tmp_path / "parts" / "episodes.csv")] == ["4", "4"]
    train(tmp_path / "parts", 4)
    first, second = (tmp_path / name / "episodes.csv" for name in ("whole", "parts"))
    assert first.read_text() == second.read_text()
    assert [row["steps"] for row in rows_of(first)] == ["4", "4", "8", "8"]
    assert len({row["return"] for row in rows_of(first)}) > 2  # the environments are seeded apart
    first, second = (tmp_path / name / "agent.safetensors" for name in ("whole", "parts"))
    assert first.read_bytes() == second.read_bytes()


def test_a_result_is_what_a_user_would_measure(whole):
    """Acquiring, training and testing again by hand gives the stored figures."""
    from al_seg_env.learner.fitting import fit_to_convergence

    result = json.loads((whole / "trials" / "uniform-1" / "result-2.json").read_text())
    experiment = load_experiment(TINY)

    def by_hand():
        arguments = {**experiment.arguments, "weights": str(whole / "theta_0" / "theta_0.safetensors")}
        env = make(**{"network_options": {}, "batch_size": None, **arguments, "split": "eval", "budget": 4}).unwrapped
        policy = UniformPolicy(1)
        observation, info = env.reset(seed=1)
        _, _, _, _, info = env.step(policy.predict(observation)[0])
        assert info["miou"] == result["acquired_miou"]
        rng = np.random.default_rng([1, 2])
        labels = env.labels
        fit = fit_to_convergence(
            env.learner,
            env.frames,
            env.grid,
            labels.labelled,
            labels.mask,
            env.splits.reward,
            experiment.fit.settings,
            rng,
        )
        assert fit.best_epoch == result["best_epoch"]
        assert evaluate(env.learner, env.frames, env.splits.test).miou == result["test_miou"]

    network = {"decoder_pyramid_channels": 64, "decoder_segmentation_channels": 32}  # SyntheticStreets-v0's own
    experiment.arguments["network_options"] = network
    experiment.arguments.update(encoder="tu-tf_mobilenetv3_small_minimal_100", learning_rate=2e-3, max_grad_norm=4.0)
    experiment.arguments.pop("batch_size", None)
    assert in_child(by_hand) == 0


def test_a_finished_experiment_does_nothing_and_a_larger_one_keeps_it(whole, tmp_path, monkeypatch):
    folder = tmp_path / "copy"
    shutil.copytree(whole, folder)  # moved to another place
    kept = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    experiment = load_experiment(TINY)
    with monkeypatch.context() as patch:
        patch.setattr("al_seg_experiment.runner.run_piece", lambda *_: pytest.fail("a piece is run again"))
        run(experiment, folder)
    changed = {path.name for path, at in kept.items() if path.stat().st_mtime_ns != at}
    assert changed <= {"experiment.json", "results.csv", ".lock"}  # which filelock removed only in some versions
    assert {row["state"] for row in status(experiment, folder)} == {"finished"}
    mine = {"methods": {"uniform": None, "mine": {"policy": "own_policies:own_policy"}}}
    larger = load_experiment({**TINY, **mine, "full": True})
    assert in_child(lambda: run(larger, folder)) == 0
    rows = rows_of(folder / "results.csv")
    assert {row["method"] for row in rows} == {"full", "uniform", "mine"}
    assert [row for row in rows if row["method"] == "uniform"] == [
        row for row in rows_of(whole / "results.csv") if row["method"] == "uniform"
    ]


def test_a_damaged_acquisition_is_set_aside_and_made_again(whole, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(whole, folder)
    trial = folder / "trials" / "uniform-0"
    (trial / "result-4.json").unlink()
    (trial / "finished.json").unlink()
    (trial / "acquired-2.safetensors").write_bytes(b"half")
    experiment = load_experiment(TINY)

    def again():
        with pytest.warns(UserWarning, match="acquired-2.safetensors is damaged.* acquired again"):
            run(experiment, folder)

    assert in_child(again) == 0
    assert (folder / "results.csv").read_bytes() == (whole / "results.csv").read_bytes()


def test_decoded_images_can_be_kept_in_the_experiments_folder(whole, tmp_path):
    data = np.random.default_rng(0)
    root = tmp_path / "data"
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
    for number in range(24):
        Image.fromarray(data.integers(0, 256, (32, 40, 3), np.uint8)).save(root / "images" / f"{number}.png")
        Image.fromarray(data.integers(0, 3, (32, 40)).astype(np.uint8)).save(root / "masks" / f"{number}.png")
    arguments = {key: value for key, value in TINY["arguments"].items() if key not in ("images", "image_size")}
    arguments |= {"root": str(root), "classes": ["a", "b", "c"], "encoder": "tu-tf_mobilenetv3_small_minimal_100"}
    arguments |= {"learning_rate": 1e-4, "max_grad_norm": 1.0}
    stages = [{"epochs": 1, "updates": 1}]
    content = {
        **TINY,
        "env": "al_seg_env/ImageFolder-v0",
        "arguments": arguments,
        "theta_0": stages,
        "cache": True,
    }
    experiment = load_experiment({**content, "methods": ["uniform"], "seeds": [0], "full": False})
    assert in_child(lambda: run(experiment, tmp_path / "run")) == 0
    assert len(list((tmp_path / "run" / "cache").rglob("*.image.npy"))) > 10


def test_results_of_another_configuration_are_refused(whole):
    changed = load_experiment({**TINY, "budgets": [2, 6]})
    with pytest.raises(ValueError, match=r"another configuration: budgets is \[2, 4\] there, \[2, 6\] here. Choose"):
        run(changed, whole)
    deep = load_experiment(TINY, {"arguments.pool_size": 4})
    with pytest.raises(ValueError, match=r"arguments.pool_size is 2 there, 4 here"):
        run(deep, whole)
    method = load_experiment({**TINY, "methods": {"uniform": {"policy": "uniform", "arguments": {"pool_size": 3}}}})
    with pytest.raises(
        ValueError, match=r"uniform-0/piece.json is of another .*method.arguments.pool_size is missing there"
    ):
        run(method, whole)  # though the piece is finished


def test_a_folder_from_before_an_entry_existed_goes_on_with_its_default(tmp_path, whole):
    folder = tmp_path / "older"
    shutil.copytree(whole, folder)
    stored = json.loads((folder / "experiment.json").read_text())
    del stored["query"]["refit"], stored["query"]["envs"], stored["cpus"], stored["fit"]["min_updates"]
    (folder / "experiment.json").write_text(json.dumps(stored))
    assert all(row["state"] == "finished" for row in status(load_experiment(TINY), folder))
    run(load_experiment(TINY), folder)
    assert (folder / "results.csv").read_bytes() == (whole / "results.csv").read_bytes()
    (folder / "experiment.json").write_text(json.dumps(stored))
    query = {**TINY["query"], "refit": {"gradient_steps": 1}}
    with pytest.raises(ValueError, match=r"query.refit.* there, "):
        run(load_experiment({**TINY, "query": query}), folder)


def test_a_folder_of_another_version_is_refused(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "copy")
    path = tmp_path / "copy" / "experiment.json"
    for content in (json.dumps({**json.loads(path.read_text()), "version": 1}), "{", "[]", "3"):
        path.write_text(content)
        with pytest.raises(ValueError, match="experiment.json"):
            run(load_experiment(TINY), tmp_path / "copy")


def test_what_never_began_may_be_changed_and_data_may_move(whole, tmp_path):
    elsewhere = {"env": "al_seg_env/CamVid-v0", "arguments": {"root": str(tmp_path / "none")}}
    wrong = load_experiment({**TINY, **elsewhere, "theta_0": []})
    with pytest.raises(ValueError, match="lacks train"):
        run(wrong, tmp_path / "run")
    right = load_experiment({**TINY, "theta_0": [], "methods": ["uniform"], "seeds": [0], "full": False})
    assert in_child(lambda: run(right, tmp_path / "run")) == 0
    places = {"arguments": {"root": "/here"}, "theta_0": [{"arguments": {"root": "/here"}}]}
    moved = json.loads(json.dumps(places).replace("here", "there"))
    refuse_differences(places, moved, tmp_path)
    with pytest.raises(ValueError, match="arguments.seed is 1 there, 2 here"):
        refuse_differences({"arguments": {"seed": 1}}, {"arguments": {"seed": 2}}, tmp_path)


def test_an_experiment_that_was_not_read_is_checked_before_it_runs(tmp_path):
    experiment = Experiment(name="x", theta_0=(Stage(images="eval"),), arguments={"pool_size": 0})
    with pytest.raises(ValueError, match=r"2 mistakes:\n.*pool_size is 0.*\n.*images is 'eval'"):
        run(experiment, tmp_path / "run")
    assert not list((tmp_path / "run").glob("*.json"))


def test_data_are_compared_before_anything_runs(tmp_path):
    arguments = {**TINY["arguments"], "splits": {"seed": 0, "state": 2, "train": 8, "reward": 3, "eval": 6}}
    query = {**TINY["query"], "arguments": {"splits": arguments["splits"], "entropy_bins": 4}}
    wrong = {"query": query, "budgets": [2, 4, 200], "methods": {"dqn": None, "x": {"policy": "nowhere:x"}}}
    wrong["theta_0"] = [{"arguments": {"data_seed": 1, "image_size": [64, 64]}}]
    with pytest.raises(ValueError, match="the experiment has 5 mistakes") as refusal:
        run(load_experiment({**TINY, **wrong}), tmp_path / "run")
    for words in (
        "budgets: 200 regions are to be labelled, and D_V has 32",
        "policy 'nowhere:x' can't be imported",
        "theta_0[0]: its images are (64, 64)",
        "its splits train the agent on images of the experiment's D_V or test set",
        "the agent would be trained (there) with other features than it plays 'dqn' with (here)",
    ):
        assert words in str(refusal.value)
    assert not list((tmp_path / "run").glob("*.json"))


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="holds other files and no experiment, such as thesis.txt; choose"):
        run(load_experiment(TINY), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    mine = tmp_path / "mine" / "experiment.json"  # which may be the very file that is run
    mine.parent.mkdir()
    mine.write_text(json.dumps(TINY))
    with pytest.raises(ValueError, match="experiment.json holds .*; expected 'al-seg-env experiment'"):
        run(load_experiment(mine), mine.parent)
    assert json.loads(mine.read_text()) == TINY
    assert list(mine.parent.iterdir()) == [mine]


def test_the_command_line_runs_shows_and_reports(whole, tmp_path, capsys):
    whole = shutil.copytree(whole, tmp_path / "copy")
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(TINY))
    assert main(["status", str(file), "--out", str(whole)]) == 0
    assert "13 of 13 pieces finished" in capsys.readouterr().out
    assert main(["report", str(file), "--out", str(whole)]) == 0
    text = (whole / "report" / "REPORT.md").read_text()
    for name in ("figure_4_val.png", "figure_D1.png", "table_1_test.png", "figure_training.png"):
        assert name in text
        assert np.asarray(Image.open(whole / "report" / name).convert("RGB")).std() > 1
    (tmp_path / "mine.csv").write_text("method,seed,budget,test_miou\nuniform,0,10,40\ndqn,0,10,41\n")
    assert main(["report", str(tmp_path / "mine.csv"), "--out", str(tmp_path / "by_hand")]) == 0
    assert "41" in (tmp_path / "by_hand" / "figure_4_test.md").read_text()
    assert main(["report", str(file), "--out", str(tmp_path / "none")]) == 2
    assert "none does not exist; expected the folder of an experiment" in capsys.readouterr().err
    assert main(["run", "camvid_smal"]) == 2
    assert "the presets are camvid_frozen, " in capsys.readouterr().err


def test_variants_have_their_own_pieces():
    variants = {
        "1H": {"arguments": {"entropy_pools": ["max"], "similarity": []}},
        "wide": {"arguments": {"learning_rate": 0.1}, "budgets": [8]},
        "../x": {"agent": {"loss": "huber"}},
    }
    experiment = load_experiment({**TINY, "variants": variants, "query": {"per_seed": False}})
    names = [piece.name for piece in pieces(experiment)]
    assert len(names) == len(set(names)) == 2 + 2 + 3 * (1 + 1 + 2 * 4)  # "wide" trains a theta_0 of its own
    assert not any(".." in name for name in names)
    needs = {piece.name: piece.needs for piece in pieces(experiment)}
    assert needs["variants/1H/trials/dqn-1"] == ("theta_0", "variants/1H/query/0")
    assert needs["variants/wide/trials/dqn-1"] == ("variants/wide/theta_0", "variants/wide/query/0")
    assert experiment.of_variant("wide").budgets == (8,)
    assert experiment.of_variant("../x").query.agent == {"loss": "huber"}
    assert experiment.of_variant("1H").arguments["similarity"] == []


@pytest.mark.slow
def test_variants_are_run_and_compared(tmp_path):
    variants = {
        "all": {},
        "1H": {"arguments": {"entropy_pools": ["max"], "similarity": []}},
        "huber": {"agent": {"loss": "huber"}},
    }
    theta_0 = [{"epochs": 1, "updates": 1}]
    small = {**TINY, "methods": ["dqn"], "seeds": [0], "theta_0": theta_0, "full": False}
    experiment = load_experiment({**small, "variants": variants})
    assert in_child(lambda: run(experiment, tmp_path / "run")) == 0
    assert {(row["variant"], row["budget"]) for row in rows_of(tmp_path / "run" / "results.csv")} == {
        (variant, budget) for variant in variants for budget in "024"
    }
    text = report(tmp_path / "run").read_text()
    assert "table_E" in text
    assert "difference to the variant all" in text  # the experiment's first, not the first by name
    training = tmp_path / "run" / "report" / "figure_training.png"
    assert np.asarray(Image.open(training).convert("RGB")).std() > 1
    found = rows_of(training.with_suffix(".csv"))
    assert [(row["variant"], row["episode"]) for row in found] == [(name, str(n)) for name in variants for n in (1, 2)]


def test_every_known_policy_can_be_made():
    env = make(scores=["privileged_rarity"], region_features=["class_entropy"]).unwrapped
    special = {"forecast_rarity": make(region_features=["forecast"]).unwrapped}
    for name in METHODS:
        if name != "dqn":
            assert hasattr(make_policy(name, special.get(name, env), 0, None), "predict")
    with pytest.raises(ValueError, match="can't be imported"):
        make_policy("nowhere:nothing", env, 0, None)


@pytest.mark.slow
@pytest.mark.ray
def test_ray_runs_pieces_and_a_killed_worker_is_replaced(whole, tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    pid_file = tmp_path / "pid"
    mine = {
        **TINY,
        "methods": {"uniform": None, "killed": {"policy": "kill_once:policy"}},
        "seeds": [0],
        "full": False,
    }
    (tmp_path / "kill_once.py").write_text(
        "import os, pathlib, signal\n"
        "from agents import UniformPolicy\n"
        "def policy(env, seed):\n"
        f"    mark = pathlib.Path({str(pid_file)!r})\n"
        "    if not mark.exists():\n"
        "        mark.write_text(str(os.getpid()))\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return UniformPolicy(seed)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[1] / "support")])
    environment = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    options = {"num_cpus": 2, "include_dashboard": False, "log_to_driver": False, "object_store_memory": 100 * 2**20}
    try:
        ray.init(runtime_env={"env_vars": environment}, **options)
    except Exception as error:  # where processes, ports or shared memory are not to be had
        pytest.skip(f"Ray can't start here: {error}")
    try:
        results = run(load_experiment(mine), tmp_path / "on_ray", ray_address="local")
    finally:
        ray.shutdown()
    assert pid_file.exists()
    rows = rows_of(results)
    assert {(row["method"], row["budget"]) for row in rows} == {(m, b) for m in ("uniform", "killed") for b in "024"}
    uniform, killed = ([{**row, "method": ""} for row in rows if row["method"] == m] for m in ("uniform", "killed"))
    assert killed == uniform  # the same policy
    whole_rows = [row for row in rows_of(whole / "results.csv") if (row["method"], row["seed"]) == ("uniform", "0")]
    assert [row["val_miou"] for row in rows if row["method"] == "uniform"] == [row["val_miou"] for row in whole_rows]


def test_methods_with_settings_play_agents_of_their_own():
    experiment = load_experiment(
        {
            **TINY,
            "methods": {
                "dqn": None,
                "shared": {"policy": "dqn", "agent": {"credit": "shared"}},
                "again": {"policy": "dqn"},
            },
            "seeds": [0, 1],
            "query": {"arguments": {"sub_rewards": True}, "agent": {"credit": "sub_rewards"}},
        }
    )
    found = {piece.name: piece for piece in pieces(experiment)}
    assert [name for name in found if "query/" in name] == ["query/0", "query/shared-0", "query/1", "query/shared-1"]
    assert found["trials/dqn-1"].needs[1:] == found["trials/again-1"].needs[1:] == ("query/1",)
    assert found["trials/shared-1"].needs[1:] == ("query/shared-1",)
    assert experiment.query_of("shared").agent["credit"] == "shared"
    assert experiment.query_of("dqn").agent["credit"] == experiment.query_of("").agent["credit"] == "sub_rewards"
    with pytest.raises(ValueError, match=r"methods\['uniform'\]: policy 'uniform' is not trained"):
        load_experiment({**TINY, "methods": {"uniform": {"agent": {"gamma": 0.5}}}})
    with pytest.raises(
        ValueError, match=r"methods\['shared'\].agent: unknown argument 'gama' \(did you mean 'gamma'\?\)"
    ):
        load_experiment({**TINY, "methods": {"shared": {"policy": "dqn", "agent": {"gama": 0.5}}}})


def test_a_stage_without_early_stopping_makes_all_its_updates():
    def history(**stage):
        env = make(budget=4)
        stages = [Stage(images="state", epochs=2, updates=3, batch_size=2, **stage)]
        with tempfile.TemporaryDirectory() as folder:
            pretrain(env, stages, folder)
            return [row["epoch"] for row in csv.DictReader((Path(folder) / "pretrain.csv").open())]

    assert history() == ["0", "1", "2"]
    assert history(early_stopping=False, learning_rate=0.1) == ["0", "1"]
