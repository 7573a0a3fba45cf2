"""Every example runs at tiny size, and leaves the files that it promises."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from experiments import TINY, rows_of
from PIL import Image

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Return a function that runs an example with arguments in a folder, and returns that folder."""
    monkeypatch.syspath_prepend(EXAMPLES)
    env_file = tmp_path / "tiny.json"
    env_file.write_text(json.dumps(TINY))

    def run(name: str, *arguments: object, out: Path = tmp_path / "out", tiny: bool = True) -> Path:
        module = importlib.import_module(name)
        chosen = ["--env-file", str(env_file)] if tiny else []
        module.main([*chosen, "--out", str(out), *map(str, arguments)])
        return out

    return run


def assert_picture(path: Path) -> None:
    pixels = np.asarray(Image.open(path).convert("RGB"))
    assert pixels.std() > 1, f"{path} is blank"


@pytest.fixture
def weights(run, tmp_path):
    out = run("pretrain", "--images", "state", "--epochs", 1, "--updates", 1, out=tmp_path / "theta_0")
    return out / "theta_0.safetensors"


def test_pretrain_goes_through_both_stages(run, weights):
    out = run("pretrain", "--source-arg", "style=render", "--images", "train", "--epochs", 1, "--updates", 1)
    assert [row["stage"] for row in rows_of(out / "pretrain.csv")] == ["source", "source", "train", "train"]
    assert_picture(out / "pretrain.png")
    assert (out / "theta_0.safetensors").stat().st_size > 100_000


def test_pretrain_says_that_there_is_nothing_to_do(run):
    with pytest.raises(SystemExit):
        run("pretrain", "--images", "none")


def test_train_dqn_resumes_and_evaluate_compares(run, weights, tmp_path, capsys):
    weighted = ("--env-arg", f"weights={weights}")
    settings = (*weighted, "--batch-size", 4)
    train = run("train_dqn", *settings, "--episodes", 1, out=tmp_path / "dqn")
    run("train_dqn", *settings, "--episodes", 2, "--resume", out=tmp_path / "dqn")
    assert [row["steps"] for row in rows_of(train / "episodes.csv")] == ["2", "4"]
    with pytest.raises(SystemExit, match="dqn holds a training: --resume goes on with it; or choose another --out"):
        run("train_dqn", *settings, "--episodes", 2, out=tmp_path / "dqn")
    assert_picture(train / "episodes.png")

    policies = ["--policies", "uniform", "entropy", "bald", f"dqn={train / 'agent.safetensors'}", "--seeds", 0, 1]
    settings = [*weighted, "--budgets", 2, 4, "--epochs", 1, "--updates", 1]
    out = run("evaluate", *policies, *settings)
    rows = rows_of(out / "results.csv")
    assert {(row["policy"], row["seed"], row["budget"]) for row in rows} == {
        (policy, seed, budget) for policy in ("uniform", "entropy", "bald", "dqn") for seed in "01" for budget in "24"
    }
    for figure in ("val_miou", "test_miou"):
        assert_picture(out / f"{figure}.png")
    # What is finished is not done again, and an interrupted evaluation fills in what is missing.
    (out / "trials" / "bald-1.json").unlink()
    kept = {path: path.stat().st_mtime_ns for path in (out / "trials").glob("*.json")}
    run("evaluate", *policies, *settings)
    assert rows_of(out / "results.csv")[0].keys() == rows[0].keys()
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    again = rows_of(out / "results.csv")
    timings = ("acquire_s", "fit_s")
    assert [{k: v for k, v in row.items() if k not in timings} for row in again] == [
        {k: v for k, v in row.items() if k not in timings} for row in rows
    ]
    (train / "agent.safetensors").write_bytes((train / "agent.safetensors").read_bytes() + b" ")
    with pytest.raises(SystemExit, match=r"dqn-0.json is of another agent than .*agent.safetensors"):
        run("evaluate", *policies, *settings)
    with pytest.raises(SystemExit, match="other settings.*epochs|other settings.*fit"):
        run("evaluate", *policies, *weighted, "--budgets", 2, 4, "--epochs", 2, "--updates", 1)


def test_summary_of_known_figures(run):
    sys.path.insert(0, str(EXAMPLES))
    evaluate = importlib.import_module("evaluate")
    gains = [1.0, 2.0, 4.0]
    rows = [
        {"policy": policy, "seed": seed, "budget": 10, "val_miou": base, "test_miou": 50.0 + seed}
        for seed, gain in enumerate(gains)
        for policy, base in (("uniform", 40.0 + seed), ("dqn", 40.0 + seed + gain))
    ]
    uniform, dqn = evaluate.summarise(rows)
    assert uniform["val_miou_mean"] == 41.0
    assert uniform["val_miou_std"] == 1.0
    assert uniform["val_miou_p"] == ""
    assert dqn["val_miou_gain"] == round(7 / 3, 3)
    # By hand: t = mean / (std / sqrt(n)) = 2.3333 / (1.5275 / 1.7321) = 2.6458 with 2 degrees of freedom.
    assert dqn["val_miou_p"] == pytest.approx(0.1181, abs=1e-4)


def test_quickstart_can_be_run_again(run):
    run("quickstart", "--episodes", 1, "--seeds", 1, "--pretrain-epochs", 1)
    out = run("quickstart", "--episodes", 1, "--seeds", 1, "--pretrain-epochs", 1)
    final = [row for row in rows_of(out / "comparison.csv") if row["labelled"] == "4"]
    assert [row["policy"] for row in final] == ["uniform", "entropy", "dqn"]
    for name in ("comparison.png", "requests.png", "train/episodes.png"):
        assert_picture(out / name)


def test_custom_agent_and_ppo(run, tmp_path):
    assert len(rows_of(run("custom_agent", "--episodes", 2) / "episodes.csv")) == 2
    for algorithm in ("PPO", "A2C"):
        out = run("train_ppo", "--steps", 4, "--n-steps", 2, "--algorithm", algorithm, out=tmp_path / algorithm)
        assert len(rows_of(out / "episodes.csv")) == 2
        assert_picture(out / "episodes.png")


def test_custom_dataset(run, tmp_path):
    out = run("custom_dataset", "--budget", 8, tiny=False)
    assert [row["labelled"] for row in rows_of(out / "curves.csv")] == ["0", "4", "8"] * 2
    assert_picture(out / "last_request.png")
    on_streets = run("custom_dataset", "--env", "al_seg_env/SyntheticStreets-v0", "--budget", 4, out=tmp_path / "s")
    assert_picture(on_streets / "curves.png")


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_help(path, monkeypatch, capsys):
    if path.stem == "common":
        return
    monkeypatch.syspath_prepend(EXAMPLES)
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(path.stem).main(["--help"])
    assert stopped.value.code == 0
    assert "--env" in capsys.readouterr().out
