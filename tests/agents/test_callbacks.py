"""The csv file of episodes: written whole, continued exactly, read strictly."""

import csv

import pytest
from agents_fakes import FakeRegionEnv
from fakes import closed_form_env
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv

from agents import Checkpoint, EpisodeRecorder, SubActionDQN
from al_seg_env.storage import load_tree, save_tree

HEADER = "episode,steps,return,final_miou,epsilon"
ROWS = ["1,4,0.5,41.0,0.9", "2,8,1.5,42.25,0.8", "3,12,-0.25,43.0,1e-05"]


def recorded(path, lines, num_timesteps=8):
    """Begin to record where a training of this many steps continues; return the rows."""
    path.write_text("\n".join(lines) + "\n")
    model = SubActionDQN("QueryPolicy", FakeRegionEnv(), seed=0, device="cpu")
    model.num_timesteps = num_timesteps
    recorder = EpisodeRecorder(path)
    recorder.init_callback(model)
    recorder.num_timesteps = num_timesteps
    recorder._on_training_start()
    return recorder.rows


def test_rows_up_to_the_present_step_are_read_as_numbers(tmp_path):
    rows = recorded(tmp_path / "episodes.csv", [HEADER, *ROWS])
    assert rows == [
        {"episode": 1, "steps": 4, "return": 0.5, "final_miou": 41.0, "epsilon": 0.9},
        {"episode": 2, "steps": 8, "return": 1.5, "final_miou": 42.25, "epsilon": 0.8},
    ]
    assert recorded(tmp_path / "episodes.csv", [HEADER, *ROWS], num_timesteps=0) == []
    assert len(recorded(tmp_path / "episodes.csv", [HEADER, *ROWS], num_timesteps=12)) == 3


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([HEADER, "1,3_1,0.5,41.0,0.9"], "row 1: steps is '3_1'; expected a whole number"),
        ([HEADER, "1, 4,0.5,41.0,0.9"], "row 1: steps is ' 4'; expected a whole number"),
        ([HEADER, "1,4,nan,41.0,0.9"], "row 1: return is 'nan'; expected a finite number"),
        ([HEADER, ROWS[0], "2,8,1.5,4_2,0.8"], "row 2: final_miou is '4_2'; expected a finite number"),
        ([HEADER, ROWS[0], "2,8,1.5,42.25"], "row 2 has 4 cells; expected 5"),
        ([HEADER, ROWS[0], "2,8,1.5,42.25,0.8,7"], "row 2 has 6 cells; expected 5"),
        ([HEADER, ROWS[0], ""], "row 2 has 0 cells; expected 5"),
        ([HEADER, ROWS[1]], "row 1 is of episode 2; expected 1"),
        ([HEADER, ROWS[0], ROWS[0]], "row 2 is of episode 1; expected 2"),
        ([HEADER, ROWS[1].replace("2,", "1,", 1), "2,4,0.5,41.0,0.9"], "row 2 has 4 steps; expected at least 8"),
        ([ROWS[0], ROWS[1]], "has the columns .*; expected"),
        (["episode,steps"], "has the columns .*; expected"),
        ([HEADER.replace("epsilon", "return"), *ROWS], "has the columns .*; expected"),
        ([HEADER, '1,4,0.5,41.0,"0.9'], "is not a csv file"),
        ([], "has the columns .*; expected"),
    ],
)
def test_a_damaged_file_is_named(lines, message, tmp_path):
    with pytest.raises(ValueError, match=rf"episodes.csv.*{message}"):
        recorded(tmp_path / "episodes.csv", lines)


def test_bytes_that_are_no_text_and_other_columns_are_named(tmp_path):
    path = tmp_path / "episodes.csv"
    recorder_rows = recorded(path, [HEADER, *ROWS])
    assert len(recorder_rows) == 2
    path.write_bytes(b"\xff\xfe\x00")
    model = SubActionDQN("QueryPolicy", closed_form_env(), seed=0, device="cpu")
    model.learn(4)
    with pytest.raises(ValueError, match="episodes.csv"):
        model.learn(4, callback=EpisodeRecorder(path), reset_num_timesteps=False)
    path.write_text("episode,steps,return,final_miou\n1,4,0.5,41.0\n")
    with pytest.raises(ValueError, match="episodes.csv has the columns .*; expected .*'epsilon'"):
        model.learn(12, callback=EpisodeRecorder(path), reset_num_timesteps=False)


@pytest.mark.parametrize("kind", ["dqn", "ppo"])
def test_the_file_of_a_continued_training_is_that_of_an_undisturbed_one(kind, tmp_path):
    def train(folder, *stops, remove=False):
        for steps in stops:
            env = closed_form_env()
            model = (
                SubActionDQN("QueryPolicy", env, seed=0, device="cpu", exploration="episode", batch_size=4)
                if kind == "dqn"
                else PPO("MultiInputPolicy", env, n_steps=4, batch_size=4, n_epochs=2, seed=0, device="cpu")
            )
            checkpoint = Checkpoint(folder)
            checkpoint.resume(model)
            callbacks = [checkpoint, EpisodeRecorder(folder / "episodes.csv")]
            model.learn(steps - model.num_timesteps, callback=callbacks, reset_num_timesteps=False)
            if remove and steps < stops[-1]:
                (folder / "episodes.csv").unlink()
        return (folder / "episodes.csv").read_bytes()

    whole = train(tmp_path / "whole", 24)
    assert train(tmp_path / "parts", 8, 16, 24) == whole
    assert train(tmp_path / "removed", 8, 16, 24, remove=True) == whole
    rows = list(csv.DictReader(whole.decode().splitlines()))
    assert [row["episode"] for row in rows] == [str(number) for number in range(1, len(rows) + 1)]
    assert len(rows) >= 3
    assert ("followed" in rows[0]) == ("epsilon" in rows[0]) == (kind == "dqn")


def test_environments_without_a_monitor_are_refused_at_once(tmp_path):
    model = SubActionDQN("QueryPolicy", DummyVecEnv([closed_form_env] * 2), seed=0, device="cpu")
    with pytest.raises(ValueError, match="environments are not monitored; wrap them in Monitor or VecMonitor"):
        model.learn(8, callback=EpisodeRecorder(tmp_path / "episodes.csv"))
    assert model.num_timesteps == 0


def test_a_checkpoint_without_rows_continues_the_file(tmp_path):
    """As those that were written before rows were stored."""
    model, folder = SubActionDQN("QueryPolicy", closed_form_env(), seed=0, device="cpu", batch_size=4), tmp_path
    model.learn(8, callback=[Checkpoint(folder), EpisodeRecorder(folder / "episodes.csv")])
    before = (folder / "episodes.csv").read_text()
    for path in folder.glob("checkpoint-*"):
        state = load_tree(path, "training checkpoint")
        assert before.startswith(state["progress"].pop("recorded")["episodes.csv"])
        save_tree(path, "training checkpoint", state)
    model, checkpoint = (
        SubActionDQN("QueryPolicy", closed_form_env(), seed=0, device="cpu", batch_size=4),
        Checkpoint(folder),
    )
    checkpoint.resume(model)
    recorder = EpisodeRecorder(folder / "episodes.csv")
    model.learn(8, callback=[checkpoint, recorder], reset_num_timesteps=False)
    assert (folder / "episodes.csv").read_text().startswith(before)
    assert [row["episode"] for row in recorder.rows] == list(range(1, len(recorder.rows) + 1))
    assert recorder.rows[-1]["steps"] > 8
