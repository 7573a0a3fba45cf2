"""Every example runs at tiny size, and leaves the files that it promises."""

from __future__ import annotations

import importlib.util
import json
import re
import runpy
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from experiments import TINY, assert_picture, rows_of
from PIL import Image
from scipy.io import savemat

from al_seg_env import ImageFolder
from al_seg_env.command_line import run

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def example(tmp_path, monkeypatch):
    """Return a function that runs an example with arguments, and returns the folder of its results."""
    env_file = tmp_path / "tiny.json"
    env_file.write_text(json.dumps(TINY))

    def play(name: str, *arguments: object, out: str = "out", tiny: bool = True, status: int = 0) -> Path:
        module = loaded(name, monkeypatch)
        chosen = ["--env-file", str(env_file)] if tiny else []
        argv = [*chosen, "--out", str(tmp_path / out), *map(str, arguments)]
        assert run(module.main, module.Options, argv, description=module.__doc__) == status
        return tmp_path / out

    return play


def loaded(name, monkeypatch):
    """Return an example as a module."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_label_by_hand(example, tmp_path, monkeypatch):
    for number in range(4):
        path = tmp_path / "photos" / "images" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (160, 120), (60 * number, 90, 120)).save(path)
    (tmp_path / "photos" / "classes.json").write_text('["wall", "door"]')
    times = []

    def people(message):
        times.append(message)
        folder = tmp_path / "labels"
        for picture in (folder / "requests").iterdir():
            Image.new("L", Image.open(picture).size, 1).save(folder / "answers" / picture.name)

    monkeypatch.setattr("builtins.input", people)
    out = example("label_by_hand", "--root", tmp_path / "photos", "--budget", 8, tiny=False, out="labels")
    assert len(times) == 2
    assert "4 regions wait for their labels" in times[0]
    assert len(list((out / "answers").glob("*.png"))) == 8
    assert (out / "network.safetensors").exists()
    sizes = {Image.open(path).size for path in (out / "masks").iterdir()}
    assert sizes == {(160, 120)}


def test_from_theta_0_to_a_comparison(example):
    theta_0 = example("pretrain", "--source-arg", "style=render", "--images", "state", "--epochs", 1, out="theta_0")
    assert [row["stage"] for row in rows_of(theta_0 / "pretrain.csv")] == ["0", "0", "1", "1"]
    assert_picture(theta_0 / "pretrain.png")
    weighted = ("--env-arg", f"weights={theta_0 / 'theta_0.safetensors'}")

    example("train_dqn", *weighted, "--episodes", 1, out="agent")
    agent = example("train_dqn", *weighted, "--episodes", 2, "--resume", out="agent")
    assert [row["steps"] for row in rows_of(agent / "episodes.csv")] == ["2", "4"]
    assert_picture(agent / "episodes.png")

    policies = ["uniform", f"dqn={agent / 'agent.safetensors'}"]
    out = example("evaluate", *weighted, "--policies", *policies, "--seeds", 0, "--budgets", 2, 4, "--epochs", 1)
    found = {(row["method"], row["seed"], row["budget"]) for row in rows_of(out / "results.csv")}
    assert found == {(method, "0", budget) for method in ("uniform", "dqn") for budget in "024"}
    for picture in ("report/figure_4_val.png", "report/figure_4_test.png", "trials/dqn-0/requests.png"):
        assert_picture(out / picture)


def test_the_quickstart_can_be_copied_and_run_again(tmp_path, monkeypatch, capsys):
    source = (EXAMPLES / "quickstart.py").read_text()
    assert len(source.splitlines()) <= 60
    small = {name: TINY[name] for name in ("image_size", "images", "splits", "region_size", "regions_per_step")}
    small |= {"pool_size": 2, "fit_iterations": 1, "device": "cpu", "precision": "float32"}
    for line, tiny in (
        ("EPISODES, SEEDS, BUDGET = .*", "EPISODES, SEEDS, BUDGET = 1, (0, 1), 4"),
        ("FIT = ", f"SETTING |= {small!r}\nFIT = "),
        (r'"updates": \d+', '"updates": 1'),
        (r"updates=\d+", "updates=1"),
    ):
        source, count = re.subn(line, tiny, source)
        assert count
    monkeypatch.chdir(tmp_path)
    Path("copied.py").write_text(source)
    runpy.run_path("copied.py")
    out = tmp_path / "runs" / "quickstart"
    first = (out / "results.csv").read_bytes()
    assert {row["method"] for row in rows_of(out / "results.csv")} == {"uniform", "entropy", "dqn"}
    for picture in ("agent/episodes.png", "report/verdict_test.png", "trials/dqn-0/requests.png"):
        assert_picture(out / picture)
    runpy.run_path("copied.py")
    assert (out / "results.csv").read_bytes() == first
    said = capsys.readouterr().out
    assert "4/4" in said
    assert re.search(r"agent minus entropy: \S+ \[\S+, \S+\], n = 2\n", said)


def test_an_agent_of_ones_own(example):
    out = example("custom_agent", "--episodes", 2)
    assert [row["episode"] for row in rows_of(out / "episodes.csv")] == ["1", "2"]
    assert_picture(out / "episodes.png")


@pytest.mark.parametrize("algorithm", ["PPO", "A2C"])
def test_algorithms_of_stable_baselines3_resume(example, algorithm, capsys):
    chosen = ("--n-steps", 2, "--algorithm", algorithm)
    example("train_ppo", "--steps", 2, *chosen)
    example("train_ppo", "--steps", 4, *chosen, status=2)
    assert "holds a training: resume it (resume=True, --resume)" in capsys.readouterr().err
    out = example("train_ppo", "--steps", 4, *chosen, "--resume")
    assert [row["steps"] for row in rows_of(out / "episodes.csv")] == ["2", "4"]
    assert_picture(out / "episodes.png")


def test_data_of_ones_own(example):
    out = example("custom_dataset", "--budgets", 4, 8, "--env-arg", "pool_size=4", tiny=False)
    assert {row["budget"] for row in rows_of(out / "results.csv")} == {"0", "4", "8"}
    assert_picture(out / "report" / "figure_4_val.png")
    layout = gym.make("examples/Cells-v0").unwrapped.layout
    assert layout["classes"] == ["background", "cell", "nucleus"]


def test_photographs_with_labels_in_matlab_files_become_a_folder(example, tmp_path, monkeypatch):
    clothing = loaded("clothing", monkeypatch)
    root = tmp_path / "clothing-co-parsing"
    (root / "photos").mkdir(parents=True)
    (root / "annotations" / "pixel-level").mkdir(parents=True)
    tags = sorted({*" ".join(clothing.TAGS.values()).split(), *clothing.UNLABELLED})
    cells = np.empty((1, len(tags)), dtype=object)
    cells[0] = [np.array([tag]) for tag in tags]
    savemat(root / "label_list.mat", {"label_list": cells})
    shown = ["null", "jeans", "swimwear", "wedges"]
    pixels = np.repeat([[tags.index(tag) for tag in shown]], 8, axis=0).astype(np.uint8)
    for name in ("0001", "0002"):
        savemat(root / "annotations" / "pixel-level" / f"{name}.mat", {"groundtruth": pixels})
        Image.new("RGB", (4, 8)).save(root / "photos" / f"{name}.jpg")
    data = ImageFolder(example("clothing", "--data", root, tiny=False))
    assert list(data.names) == ["0001", "0002"]
    cells[0, 0] = np.array(["kilt"])
    savemat(root / "label_list.mat", {"label_list": cells})
    example("clothing", "--data", root, tiny=False, status=2)
    assert data.mask(1)[0].tolist() == [0, data.classes.index("trousers"), 255, data.classes.index("shoes")]


def test_photographs_with_coloured_labels_become_a_folder(example, tmp_path, monkeypatch):
    facades = loaded("facades", monkeypatch)
    root = tmp_path / "labelmefacade"
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    shown = [facades.VARIOUS, facades.COLOURS["window"], facades.COLOURS["building"]]
    for name, height in (("wide", 2), ("high", 3)):
        colours = np.array([shown] * height, np.uint8)
        Image.fromarray(colours).convert("RGBA").save(root / "labels" / f"{name}.png")
        Image.new("RGB", (3, height)).save(root / "images" / f"{name}.jpg")
    data = ImageFolder(example("facades", "--data", root, tiny=False))
    assert list(data.names) == ["wide"]
    assert data.mask(0)[0].tolist() == [255, data.classes.index("window"), data.classes.index("building")]
    Image.new("RGB", (4, 3), (1, 2, 3)).save(root / "labels" / "wide.png")
    example("facades", "--data", root, tiny=False, status=2)


@pytest.mark.parametrize(
    "name", sorted(path.stem for path in EXAMPLES.glob("*.py") if path.stem not in ("quickstart", "zoo"))
)
def test_help_shows_every_option_with_its_default(name, monkeypatch, capsys):
    module = loaded(name, monkeypatch)
    assert run(module.main, module.Options, ["--help"], description=module.__doc__) == 0
    text = capsys.readouterr().out
    assert module.__doc__.splitlines()[0] in text
    without = {"clothing", "facades", "label_by_hand"}
    of_env = () if name in without else ("--env ID", "--env-arg NAME=VALUE", "--env-file PATH")
    for option in (*of_env, "--out PATH"):
        assert option in text
    assert text.count("(default:") + text.count("(repeatable)") == len(re.findall("(?m)^[│ ] --", text))


def test_a_mistake_is_one_line(example, capsys):
    example("evaluate", "--env-arg", "nothing", status=2)
    error = capsys.readouterr().err.strip()
    assert error.endswith("--env-arg is 'nothing'; expected NAME=VALUE")
    assert "\n" not in error
