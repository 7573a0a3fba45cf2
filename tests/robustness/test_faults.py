"""Faults, injected: kills, full disks, damaged files, images that vanish, workers that die, bombs in files."""

import json
import os
import pickle
import resource
import shutil
import signal
import zipfile

import gymnasium as gym
import numpy as np
import pytest
import torch
from agents_fakes import FakeRegionEnv
from experiments import TINY
from fakes import CLASSES, ClosedFormLearner, closed_form_env, numbered_data, same, tiny_network
from files import WRITERS, agent, dqn_on
from PIL import Image
from processes import KILLED, in_child
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import SubprocVecEnv
from training import clean

from agents import Checkpoint, QueryPolicy, SubActionDQN
from al_seg_env import EnvConfig, ImageFolder, RegionSelectionEnv, Splits, load_state, save_state
from al_seg_env.labelling.label_folder import file_name
from al_seg_env.labelling.oracles import FolderOracle
from al_seg_env.learner.weights import load_weights, read_tensors
from al_seg_env.storage import load_tree, replacing, save_tree, tree_digest, write_csv
from al_seg_experiment.cli import main

# Kills


@pytest.fixture
def command(tmp_path):
    """Return a function that runs a command of the console script in a child."""
    env_file = tmp_path / "tiny.json"
    env_file.write_text(json.dumps({**TINY, "device": "cpu"}))

    def run(name, *arguments, kill_after=None):
        def work():
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), 1)
                os.dup2(nowhere.fileno(), 2)
            os._exit(main([name, "--env-file", str(env_file), *map(str, arguments)]))

        return in_child(work, kill_after)

    return run


def killed_until_done(run, kills, seed, longest):
    """Start again and again, killed at random moments; then once more without a kill. Return the kills that hit."""
    rng = np.random.default_rng(seed)
    status = [run(kill_after=rng.uniform(0, longest)) for _ in range(kills)]
    assert set(status) <= {0, KILLED}
    assert run() == 0
    return status.count(KILLED)


def computed():
    """Return for how many seconds the children that have ended have computed."""
    times = os.times()
    return times.children_user + times.children_system


@pytest.mark.slow
def test_training_killed_at_12_points_ends_bit_for_bit_where_an_undisturbed_one_ends(command, tmp_path):
    arguments = ("--episodes", 8, "--batch-size", 4, "--checkpoint-every", 3, "--resume")
    before = computed()
    assert command("train", *arguments, "--out", tmp_path / "whole") == 0
    longest = (computed() - before) / 3
    hits = killed_until_done(
        lambda kill_after=None: command("train", *arguments, "--out", tmp_path / "killed", kill_after=kill_after),
        12,
        0,
        longest,
    )
    assert hits >= 3
    for name in ("agent.safetensors", "episodes.csv"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    ends = [
        load_tree(sorted((tmp_path / run / "checkpoints").glob("c*"))[-1], "training checkpoint")
        for run in ("whole", "killed")
    ]
    assert len({tree_digest(clean(end)) for end in ends}) == 1
    left = [path.name for path in (tmp_path / "killed" / "checkpoints").iterdir() if path.name.startswith("c")]
    assert len(left) == 2


@pytest.mark.slow
def test_evaluation_killed_at_12_points_ends_with_the_same_results(command, tmp_path):
    arguments = ("--policies", "uniform", "entropy", "--seeds", 0, "--budgets", 2, 4, "--epochs", 2, "--updates", 2)
    before = computed()
    assert command("evaluate", *arguments, "--out", tmp_path / "whole") == 0
    longest = (computed() - before) / 3
    hits = killed_until_done(
        lambda kill_after=None: command("evaluate", *arguments, "--out", tmp_path / "killed", kill_after=kill_after),
        12,
        1,
        longest,
    )
    assert hits >= 3

    killed, whole = (tmp_path / run / "results.csv" for run in ("killed", "whole"))
    assert killed.read_bytes() == whole.read_bytes()


# Files that can't be written


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_reported_and_leaves_what_was_there(name, tmp_path):
    path = tmp_path / name
    WRITERS[name](path)
    before = path.read_bytes()

    def work():
        resource.setrlimit(resource.RLIMIT_FSIZE, (40, 40))
        try:
            WRITERS[name](path)
        except OSError as error:
            os._exit(0 if str(path) in str(error) and "could not be written" in str(error) else 2)

    assert in_child(work) == 0
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", WRITERS)
def test_a_folder_that_cannot_be_written_to_is_named(name, tmp_path):
    (tmp_path / "folder").write_text("a file where a folder is expected")
    with pytest.raises(OSError, match=rf"folder/{name}.* could not be written"):
        WRITERS[name](tmp_path / "folder" / name)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody who may not write")
def test_a_read_only_folder_is_named(tmp_path):
    path = tmp_path / "state.safetensors"
    WRITERS["state.safetensors"](path)
    before = path.read_bytes()

    def work():
        os.setuid(65534)
        try:
            WRITERS["state.safetensors"](path)
        except OSError as error:
            os._exit(0 if "could not be written" in str(error) else 2)

    assert in_child(work) == 0
    assert path.read_bytes() == before


def test_what_a_killed_process_left_unfinished_is_removed(tmp_path):
    def killed():
        with replacing(tmp_path / "a.csv") as unfinished:
            unfinished.write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(killed) == -9
    assert len(list(tmp_path.iterdir())) == 1
    (tmp_path / f".a.csv.{os.getppid()}").write_text("of a process that runs")
    (tmp_path / ".a.csv.old").write_text("somebody's own")
    write_csv(tmp_path / "a.csv", [{"a": 1}])
    assert {path.name for path in tmp_path.iterdir()} == {"a.csv", f".a.csv.{os.getppid()}", ".a.csv.old"}


def test_training_goes_on_after_a_disk_was_full(tmp_path):
    def train(folder):
        model, checkpoint = dqn_on(closed_form_env()), Checkpoint(folder)
        checkpoint.resume(model)
        model.learn(8 - model.num_timesteps, callback=checkpoint, reset_num_timesteps=False)

    def on_a_small_disk():
        model, checkpoint = dqn_on(closed_form_env()), Checkpoint(tmp_path / "full")
        model.learn(4, callback=checkpoint)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            model.learn(4, callback=checkpoint, reset_num_timesteps=False)
        except OSError:
            os._exit(5)

    assert in_child(on_a_small_disk) == 5
    assert in_child(lambda: train(tmp_path / "full")) == in_child(lambda: train(tmp_path / "whole")) == 0
    ends = [
        load_tree(max((tmp_path / run).iterdir()), "training checkpoint")["parameters"] for run in ("full", "whole")
    ]
    assert tree_digest(ends[0]) == tree_digest(ends[1])


# Files that are damaged, foreign, or traps


READERS = {
    "weights.safetensors": lambda path: load_weights(tiny_network(), path, CLASSES),
    "state.safetensors": load_state,
    "agent.safetensors": lambda path: SubActionDQN.load(path, device="cpu"),
    "policy.safetensors": lambda path: QueryPolicy.load(path, device="cpu"),
    "replay.safetensors": lambda path: agent().load_replay_buffer(path),
    "splits.json": lambda path: Splits.load(path, numbered_data()),
}


@pytest.mark.parametrize("name", READERS)
def test_files_that_are_whole_are_read_and_equal_what_is_written_again(name, tmp_path):
    WRITERS[name](tmp_path / name)
    READERS[name](tmp_path / name)
    (tmp_path / "plain").touch()
    assert (tmp_path / name).stat().st_mode == (tmp_path / "plain").stat().st_mode
    if not name.startswith("weights"):  # whose header is in an order of safetensors' own
        WRITERS[name](tmp_path / f"again.{name}")
        assert (tmp_path / f"again.{name}").read_bytes() == (tmp_path / name).read_bytes()


@pytest.mark.parametrize("name", READERS)
def test_a_file_truncated_anywhere_is_named(name, tmp_path):
    path = tmp_path / name
    WRITERS[name](path)
    whole = path.read_bytes()
    for tenth in range(10):
        path.write_bytes(whole[: len(whole) * tenth // 10])
        with pytest.raises(ValueError, match=name):
            READERS[name](path)


@pytest.mark.parametrize("name", READERS)
def test_files_of_other_kinds_are_refused(name, tmp_path):
    for other in READERS:
        if other != name:
            WRITERS[other](tmp_path / name)
            with pytest.raises(ValueError, match=name):
                READERS[name](tmp_path / name)
    save_tree(tmp_path / name, "something else", {"a": 1})
    with pytest.raises(ValueError, match=name):
        READERS[name](tmp_path / name)


@pytest.mark.parametrize("name", [name for name in READERS if name.endswith("safetensors") and name[0] != "w"])
def test_files_of_a_later_version_are_refused(name, tmp_path, monkeypatch):
    monkeypatch.setattr("al_seg_env.storage.tree.FILE_VERSION", 7)
    WRITERS[name](tmp_path / name)
    monkeypatch.undo()
    with pytest.raises(
        ValueError, match=r"version 7; expected .*version 1\. Use .* the version of al-seg-env that wrote"
    ):
        READERS[name](tmp_path / name)


@pytest.mark.parametrize("name", READERS)
def test_a_missing_file_is_named(name, tmp_path):
    with pytest.raises((OSError, ValueError), match=f"{name}.*"):
        READERS[name](tmp_path / name)


class Bomb:
    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


def bombs(mark):
    """Return files that make a folder when they are unpickled."""
    plain = pickle.dumps(Bomb(mark))
    yield "pickle", plain
    folder = mark.parent / "bombs"
    folder.mkdir()
    torch.save({"state_dict": Bomb(mark)}, folder / "torch")
    np.save(folder / "numpy.npy", np.array([Bomb(mark)], object), allow_pickle=True)
    with zipfile.ZipFile(folder / "zip", "w") as file:
        file.writestr("data", json.dumps({"policy_class": {":type:": "x", ":serialized:": _base64(plain)}}))
        file.writestr("policy.pth", plain)
    for path in sorted(folder.iterdir()):
        yield path.name, path.read_bytes()


def _base64(content):
    import base64

    return base64.b64encode(content).decode()


LOADERS = {
    **READERS,
    "checkpoint-000000001.safetensors": lambda path: Checkpoint(path.parent).resume(dqn_on(closed_form_env())),
    "encoder.pth": lambda path: read_tensors(path),
    "encoder.safetensors": lambda path: read_tensors(path),
}


@pytest.mark.filterwarnings("ignore:A checkpoint can't be used")
@pytest.mark.parametrize("name", LOADERS)
def test_nothing_that_is_loaded_is_unpickled(name, tmp_path):
    mark = tmp_path / "exploded"
    for _, content in bombs(mark):
        (tmp_path / "run").mkdir(exist_ok=True)
        path = tmp_path / "run" / name
        path.write_bytes(content)
        with pytest.raises(ValueError, match=name):
            LOADERS[name](path)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Bomb(mark)))  # noqa: S301
    assert mark.exists()  # they are live


def test_the_zip_of_stable_baselines_is_not_read(tmp_path):
    OffPolicyAlgorithm.save(agent(), tmp_path / "agent.zip")
    with pytest.raises(ValueError, match=r"agent.zip is a zip, the format of Stable-Baselines3.*Use the .safetensors"):
        SubActionDQN.load(tmp_path / "agent.zip")


def test_a_setting_that_cannot_be_stored_is_asked_for_when_it_is_needed(tmp_path):
    original = SubActionDQN(
        "QueryPolicy", FakeRegionEnv(), seed=0, device="cpu", learning_rate=lambda left: 1e-3 * left
    )
    original.learn(5).save(tmp_path / "agent")
    with pytest.raises(ValueError, match=r"lacks learning_rate \(.*lambda.*\).*load\(path, learning_rate=...\)"):
        SubActionDQN.load(tmp_path / "agent")
    loaded = SubActionDQN.load(tmp_path / "agent", learning_rate=1e-3, device="cpu")
    assert tree_digest(loaded.get_parameters()) == tree_digest(original.get_parameters())


def test_an_agent_and_a_checkpoint_are_the_same_bytes_for_the_same_run(tmp_path):
    for name in ("one", "two"):
        dqn_on(closed_form_env()).learn(6).save(tmp_path / name)
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()


# Images that vanish


def folder_env(root):
    data = ImageFolder(root, classes=list(CLASSES))
    splits = Splits((0, 1), (2, 3, 4), (5,), (6, 7))
    sizes = {"region_size": (8, 10), "crop_size": (8, 10), "regions_per_step": 3, "pool_size": 2, "budget": 12}
    # With candidates from a single image a step, the others are decoded later.
    return RegionSelectionEnv(data, splits, ClosedFormLearner(batch_size=1), config=EnvConfig(**sizes, pool_images=1))


@pytest.fixture
def folder(tmp_path):
    data = numbered_data()
    for kind in ("images", "masks"):
        (tmp_path / "data" / kind).mkdir(parents=True)
    for index, name in enumerate(data.names):
        Image.fromarray(data.image(index)).save(tmp_path / "data" / "images" / f"{name}.png")
        Image.fromarray(data.mask(index)).save(tmp_path / "data" / "masks" / f"{name}.png")
    return tmp_path / "data"


def vanish(path):
    path.unlink()


def shrink(path):
    Image.new("RGB" if "images" in str(path) else "L", (4, 4)).save(path)


def spoil(path):
    path.write_bytes(path.read_bytes()[:60])


@pytest.mark.parametrize("fault", [vanish, shrink, spoil])
@pytest.mark.parametrize("kind", ["images", "masks"])
def test_an_image_that_fails_between_steps_undoes_the_step_and_can_be_restored(folder, tmp_path, fault, kind):
    expected_env = folder_env(folder)
    expected_env.reset(seed=0)
    action = np.zeros(3, np.int64)
    expected = [expected_env.step(action) for _ in range(4)]
    del expected_env  # decoded images are shared as long as an environment needs them
    shutil.copytree(folder, tmp_path / "copy")
    env = folder_env(folder)
    env.reset(seed=0)
    images = sorted((folder / kind).iterdir())[2:5]
    for path in images:
        fault(path)
    results = []
    for _ in range(4):
        try:
            results.append(env.step(action))
        except (OSError, ValueError) as error:
            named = str(error)
            before = len(env.labels)
            for path in images:
                shutil.copy(tmp_path / "copy" / kind / path.name, path)
            results.append(env.step(action))
            assert len(env.labels) == before + 3
    assert any(str(path) in named for path in images)
    assert same(results, expected)


# Workers that die


def test_a_worker_of_stable_baselines_that_dies_is_an_error_and_training_resumes(tmp_path):
    def model():
        return dqn_on(SubprocVecEnv([closed_form_env, closed_form_env], start_method="fork"))

    whole = model().learn(16)
    first = model()
    first.learn(8, callback=Checkpoint(tmp_path))
    os.kill(first.env.processes[0].pid, signal.SIGKILL)
    with pytest.raises((EOFError, ConnectionError, BrokenPipeError)):
        first.learn(8, reset_num_timesteps=False)
    second = model()
    assert Checkpoint(tmp_path).resume(second)
    second.learn(16 - second.num_timesteps, reset_num_timesteps=False)
    assert tree_digest(second.get_parameters()) == tree_digest(whole.get_parameters())
    for each in (whole, second):
        each.env.close()
    for process in first.env.processes:
        process.kill()


def test_the_last_worker_of_stable_baselines_that_dies_is_an_error_too():
    """Unless workers are forked: then the first holds the pipe of the last, and Stable-Baselines3 waits for ever."""
    envs = SubprocVecEnv([closed_form_env, closed_form_env], start_method="forkserver")
    envs.reset()
    os.kill(envs.processes[1].pid, signal.SIGKILL)
    with pytest.raises((EOFError, ConnectionError, BrokenPipeError)):
        envs.step(np.zeros((2, 3), np.int64))
    for process in envs.processes:
        process.kill()


def test_a_worker_of_gymnasium_that_dies_is_an_error_and_no_hang():
    envs = gym.vector.AsyncVectorEnv([closed_form_env, closed_form_env], context="fork", shared_memory=False)
    envs.reset(seed=0)
    os.kill(envs.processes[1].pid, signal.SIGKILL)
    with pytest.raises((EOFError, ConnectionError, BrokenPipeError)):  # noqa: PT012
        envs.step_async(np.zeros((2, 3), np.int64))
        envs.step_wait(timeout=600)
    envs.close(terminate=True)


# Oracles


class PartOfIt:
    """Labels the upper half of a region, and leaves the rest."""

    def __init__(self, data):
        self.data = data

    def label(self, boxes):
        masks = []
        for box in boxes:
            mask = box.crop(self.data.mask(box.image)).copy()
            mask[mask.shape[0] // 2 :] = 255
            masks.append(mask)
        return masks


def test_labels_of_part_of_a_region_count_as_far_as_they_go():
    data = numbered_data()
    env = closed_form_env(data=data, oracle=PartOfIt(data))
    env.reset(seed=0)
    _, _, _, _, info = env.step(np.zeros(3, np.int64))
    assert info["label_counts"].sum() == 3 * 40
    assert info["labelled"] == 3
    assert env.learner.seen.sum() == 3 * 40


class Raising:
    def label(self, boxes):
        raise ConnectionError("the labelling service is away")


def test_an_oracle_that_raises_changes_nothing():
    env = closed_form_env(oracle=Raising())
    env.reset(seed=0)
    before = str(env.get_state())
    for _ in range(2):
        with pytest.raises(ConnectionError, match="service is away"):
            env.step(np.zeros(3, np.int64))
    assert str(env.get_state()) == before


def test_pending_labels_survive_the_process(tmp_path):
    """A step that waits for people is made again by another process, from a saved state."""
    data = numbered_data()
    env = closed_form_env(data=data, oracle=FolderOracle(data, tmp_path / "labels"))
    env.reset(seed=0)
    action = np.array([0, 1, 2])
    with pytest.raises(RuntimeError, match="wait for their labels"):
        env.step(action)
    save_state(tmp_path / "state", env.get_state())
    for box in map(env.grid.box, [int(pool[a]) for pool, a in zip(env.pools, action, strict=True)]):
        Image.fromarray(box.crop(data.mask(box.image))).save(tmp_path / "labels" / "answers" / file_name(data, box))
    other = closed_form_env(data=data, oracle=FolderOracle(data, tmp_path / "labels"))
    other.set_state(load_state(tmp_path / "state"))
    expected = closed_form_env(data=data)
    expected.reset(seed=0)
    assert same(other.step(action), expected.step(action))
