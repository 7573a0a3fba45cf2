"""The console script: every command at tiny size, resumed and refused, and its mistakes."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from importlib.metadata import version

import pytest
from experiments import TINY, TINY_EXPERIMENT, assert_picture, rows_of

import al_seg_env.__main__
from al_seg_experiment import __main__ as experiment_module
from al_seg_experiment.cli import main

STAGE = ("--images", "state", "--epochs", 1, "--updates", 1)


@pytest.fixture
def env_file(tmp_path):
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps({**TINY, "device": "cpu"}))
    return ("--env-file", path)


def call(*arguments):
    return main([str(argument) for argument in arguments])


@pytest.mark.slow
def test_from_theta_0_to_a_comparison(tmp_path, env_file, capsys):
    theta_0, agent, out = (tmp_path / name for name in ("theta_0", "agent", "out"))
    source = ("--source-arg", "style=render", "--source-arg", "data_seed=1")
    assert call("pretrain", *env_file, *source, *STAGE, "--out", theta_0) == 0
    assert {row["stage"] for row in rows_of(theta_0 / "pretrain.csv")} == {"0", "1"}
    assert_picture(theta_0 / "pretrain.png")
    assert capsys.readouterr().out.strip() == str(theta_0 / "theta_0.safetensors")

    weighted = (*env_file, "--env-arg", f"weights={theta_0 / 'theta_0.safetensors'}")
    train = ("train", *weighted, "--batch-size", 4, "--epsilon-steps", 2, "--agent-arg", "train_freq=2", "--out", agent)
    assert call(*train, "--episodes", 1) == 0
    assert call(*train, "--episodes", 2) == 2
    assert "agent holds a training: resume it" in capsys.readouterr().err
    assert call(*train, "--episodes", 2, "--resume") == 0
    assert [row["steps"] for row in rows_of(agent / "episodes.csv")] == ["2", "4"]
    assert call(*train, "--episodes", 3, "--resume", "--gamma", 0.5) == 2
    assert "gamma is 0.99 there, 0.5 here" in capsys.readouterr().err

    policies = ("--policies", "uniform", f"dqn={agent / 'agent.safetensors'}")
    evaluate = ("evaluate", *weighted, *policies, "--budgets", 2, 4, "--epochs", 1, "--updates", 1, "--out", out)
    assert call(*evaluate, "--seeds", 0) == 0
    first = rows_of(out / "results.csv")
    assert {(row["method"], row["budget"]) for row in first} == {
        (method, budget) for method in ("uniform", "dqn") for budget in "024"
    }
    assert_picture(out / "report" / "figure_4_test.png")
    kept = {path: path.stat().st_mtime_ns for path in out.glob("trials/*/result-*.json")}

    # An equal theta_0, made again elsewhere, is the same; so is the folder's configuration.
    again = tmp_path / "again"
    assert call("pretrain", *env_file, *source, *STAGE, "--out", again) == 0
    (theta_0 / "theta_0.safetensors").write_bytes((again / "theta_0.safetensors").read_bytes())
    (out / "trials" / "uniform-0" / "result-4.json").unlink()
    assert call(*evaluate, "--seeds", 0, 1, "--full", 1) == 0
    rows = rows_of(out / "results.csv")
    assert [row for row in rows if row["seed"] == "0" and row["method"] != "full"] == first
    assert {row["seed"] for row in rows if row["method"] == "full"} == {"0"}
    assert all(path.stat().st_mtime_ns == at for path, at in kept.items() if path.parent.name != "uniform-0")

    capsys.readouterr()
    assert call(*evaluate, "--patience", 3) == 2
    assert "out/made_with.json is of another configuration: fit.patience is 8 there, 3 here" in capsys.readouterr().err
    assert call("pretrain", *env_file, *STAGE, "--out", theta_0) == 2
    assert "theta_0/made_with.json is of another configuration: stages is" in capsys.readouterr().err


def test_an_experiment_is_run_shown_and_reported(tmp_path, capsys):
    short = {**TINY_EXPERIMENT, "methods": ["uniform"], "seeds": [0], "theta_0": [], "full": False}
    file = tmp_path / "tiny.json.yaml"
    file.write_text(json.dumps(short))  # JSON is YAML
    out = ("--out", tmp_path / "out")
    assert call("experiment", "report", file, *out) == 2
    assert "out does not exist; expected the folder of an experiment" in capsys.readouterr().err
    assert call("experiment", "run", file, *out, "--set", "budgets=[2]") == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out" / "report" / "REPORT.md")
    assert call("experiment", "status", file, *out, "--set", "budgets=[2]") == 0
    assert "3 of 3 pieces finished" in capsys.readouterr().out
    for command in ("status", "run", "report"):  # the folder alone says what was begun
        assert call("experiment", command, tmp_path / "out") == 0
    assert str(tmp_path / "out" / "report" / "REPORT.md") in capsys.readouterr().out
    assert call("experiment", "report", tmp_path / "out" / "results.csv", "--out", tmp_path / "by_hand") == 0
    assert_picture(tmp_path / "by_hand" / "figure_4_val.png")
    assert experiment_module.main(["status", str(file), *map(str, out), "--set", "budgets=[2]"]) == 0


COMMANDS = (
    ("pretrain",),
    ("train",),
    ("evaluate",),
    ("experiment", "run"),
    ("experiment", "status"),
    ("experiment", "report"),
)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_shows_every_option_with_its_default(command, capsys):
    assert call(*command, "--help") == 0
    text = capsys.readouterr().out
    options = len(re.findall("(?m)^[│ ] --", text))
    assert options > 1
    assert text.count("(default:") + text.count("(repeatable)") == options
    assert "--out PATH" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Expected one of {experiment, pretrain, train, evaluate, label, suggest, export, share, push}."),
        (("experiment",), "Expected one of {run, status, report}."),
        (("experiment", "run"), "Missing from al-seg-env experiment run: FILE"),
        (("experiment", "run", "camvid_smal"), "'camvid_smal' is neither a file nor a preset"),
        (("experiment", "status", "synthetic_small", "--set", "seeds"), "--set is 'seeds'; expected NAME=VALUE"),
        (("experiment", "report", "nowhere.csv"), "nowhere.csv"),
        (("pretrain", "--images", "none"), "nothing to train on: give --source-arg, or --images train or state"),
        (("pretrain", "--env", "al_seg_env/Streets-v0"), "environment 'al_seg_env/Streets-v0' is unknown"),
        (("pretrain", "--env", "al_seg_env/CamVid-v0"), "missing 1 required keyword-only argument: 'root'"),
        (
            ("pretrain", "--env-arg", "lerning_rate=1"),
            "unknown options ['lerning_rate'] (did you mean 'learning_rate'?); known",
        ),
        (("pretrain", "--updates", "-1"), "updates is -1; expected greater than or equal to 1"),
        (("pretrain", "--learning-rate", "nan"), "learning_rate is nan; expected a finite number"),
        (("pretrain", "--seed", "-1"), "seed is -1; expected a whole number of at least 0"),
        (("train", "--envs", "0"), "envs is 0; expected a whole number of at least 1"),
        (("train", "--epsilon-steps", "0"), "epsilon_steps is 0; expected a whole number of at least 1"),
        (("train", "--checkpoint-every", "0"), "checkpoint_every is 0; expected a whole number of at least 1"),
        (("train", "--agent-arg", "gama=1"), "--agent-arg has 'gama'; known are credit, device"),
        (("train", "--agent-arg", "gamma=1"), "--agent-arg has 'gamma'; it has an option of its own"),
        (("train", "--exploration", "none"), "invalid choice 'none'"),
        (("train", "--gamma", "2"), "gamma is 2.0"),
        (("evaluate", "--policies", "entropie"), "policy 'entropie' is unknown; expected one of uniform, entropy"),
        (("evaluate", "--policies", "dqn"), "policy 'dqn' is unknown"),
        (("evaluate", "--policies", "a=nowhere.safetensors"), "there is no file 'nowhere.safetensors'"),
        (("evaluate", "--policies", "full=a:b"), "and not 'full'"),
        (
            ("evaluate", "--policies", "uniform", "uniform"),
            "policies are ['uniform', 'uniform']; expected at least one",
        ),
        (("evaluate", "--seeds", "1", "1"), "seeds is [1, 1]; expected different whole numbers"),
        (("evaluate", "--budgets", "3", "4"), "budgets is [3, 4]; 3 and 4 are both reached with 4 regions"),
        (("evaluate", "--budgets", "0"), "budgets is 0; expected a whole number from 1 to"),
        (("evaluate", "--full", "-1"), "full is -1; expected a whole number from 0 to 3"),
        (("evaluate", "--fit-arg", "update=3"), "fit has the unknown entry 'update' (did you mean 'updates'?); known"),
        (("evaluate", "--fit-arg", "fits=0"), "fits is 0; expected a whole number of at least 1"),
        (("evaluate", "--fit-arg", "patience=3"), "--fit-arg has 'patience'; it has an option of its own, --patience"),
        (("evaluate", "--fit-arg", "updates=3", "--epochs", "5"), "--epochs is for epochs, and --fit-arg updates=..."),
        (("evaluate", "--env-arg", "split=train"), "split is 'train'; expected 'eval', which is what this job"),
        (
            ("train", "--env-arg", "budget_unit=pixels"),
            "budget_unit is 'pixels'; expected 'regions'",
        ),
        (("train", "--env-arg", "split=eval"), "split is 'eval'; expected 'train', which is what this job acquires"),
        (("train", "--gradient-steps", "0"), "gradient_steps is 0; expected at least 1, or a refit at the end"),
        (("train", "--env-arg", "forecast=x"), "forecast is 'x'; expected None, since region_features does not name"),
        (("pretrain", "--images", "state", "--source-images", "eval"), "--source-images is eval, but no first stage"),
        (("experiment", "report", "results.csv", "--set", "seeds=[1]"), "--set is for an experiment, and results.csv"),
        (("evaluate", "--env-arg", "weights=nowhere.safetensors"), "'nowhere.safetensors': there is no such file"),
    ],
)
def test_a_mistake_is_one_line_and_the_status_2(arguments, message, env_file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tiny = () if arguments[:1] in ((), ("experiment",)) or "al_seg_env/CamVid-v0" in arguments else env_file
    assert call(*arguments, *tiny) == 2
    error = capsys.readouterr().err
    last = error.splitlines()[-1]
    assert last.startswith("al-seg-env: ")
    assert message in last
    assert "Traceback" not in error


def test_after_a_mistake_the_same_folder_can_be_used(env_file, tmp_path, capsys):
    pretrain = ("pretrain", *env_file, *STAGE, "--out", tmp_path / "out")
    assert call(*pretrain, "--source-arg", "style=sketch") == 2
    assert "style is 'sketch'; expected one of 'street', 'render'" in capsys.readouterr().err
    assert call(*pretrain) == 0
    assert call(*pretrain, "--source-arg", "style=render") == 2
    assert "out/made_with.json is of another configuration: stages is" in capsys.readouterr().err


def test_the_version_is_that_of_the_installed_package(capsys):
    assert call("--version") == 0
    assert capsys.readouterr().out == f"al-seg-env {version('al-seg-env')}\n"
    assert call("--help") == 0
    assert "--version" in capsys.readouterr().out


def test_help_may_be_cut_off_by_its_reader():
    program = subprocess.Popen(
        [sys.executable, "-m", "al_seg_env", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    program.stdout.close()
    assert (program.wait(), program.stderr.read()) == (0, "")


@pytest.mark.parametrize("module", ["al_seg_env", "al_seg_experiment"])
def test_the_modules_are_programs(module, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    monkeypatch.delitem(sys.modules, f"{module}.__main__")  # which would be run a second time
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    assert not ended.value.code
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: python -m {module}")
    assert "report" in shown


def test_policies_are_found_in_the_current_folder(monkeypatch, tmp_path, capsys):
    """A console script does not look there by itself, as ``python -m`` does."""
    (tmp_path / "policies_of_ones_own.py").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[1:])
    monkeypatch.setattr(sys, "argv", ["al-seg-env", "evaluate", "--policies", "mine=policies_of_ones_own:missing"])
    assert al_seg_env.__main__.main() == 2
    assert "module 'policies_of_ones_own' has no attribute 'missing'" in capsys.readouterr().err


def test_what_the_commands_need_is_named_where_it_is_missing(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "al_seg_experiment.cli", None)
    monkeypatch.setattr(sys, "argv", ["al-seg-env", "train"])
    assert al_seg_env.__main__.main() == 2
    assert capsys.readouterr().err.startswith("al-seg-env: import of al_seg_experiment.cli halted")
