"""A labelling session from photographs to masks and a network, stopped and killed on the way."""

import csv
import json
import os
import re
import shutil
import sys
import time
import urllib.request
import zipfile
from contextlib import contextmanager

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from damage import DAMAGES, walk
from experiments import contents
from PIL import Image, ImageOps
from processes import in_child, killed_at_the_end

from agents import SubActionDQN
from al_seg_env import FolderOracle, LabelsPending
from al_seg_env.labelling.brush import decode_brush
from al_seg_env.labelling.cvat import write_cvat
from al_seg_env.labelling.label_folder import LabelFolder
from al_seg_env.labelling.request import requests_of
from al_seg_env.learner.building import normalisation
from al_seg_env.regions import Box
from al_seg_experiment.cli import main
from al_seg_experiment.exporting import export, file_stem
from al_seg_experiment.label_session import LabelSession, SessionSettings

CLASSES = ["dark", "bright"]
SIZES = [(48, 64), (64, 48), (96, 128), (48, 64), (40, 40), (64, 48)]
OPTIONS = {
    "encoder": "tu-tf_mobilenetv3_small_minimal_100",
    "encoder_weights": None,
    "network_options": {"decoder_pyramid_channels": 16, "decoder_segmentation_channels": 32},
    "precision": "float32",
    "pool_size": 2,
    "fit_iterations": 1,
}


@pytest.fixture
def photos(tmp_path):
    """Return a folder of photographs of several sizes, half of each dark and half bright."""
    for number, (height, width) in enumerate(SIZES):
        pixels = np.random.default_rng(number).integers(0, 60, (height, width, 3)).astype(np.uint8)
        pixels[:, width // 2 :] += 190
        path = tmp_path / "photos" / ("garden" if number % 2 else "house") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    (tmp_path / "classes.json").write_text(json.dumps(CLASSES))
    return tmp_path


def settings(photos, **changes):
    given = {
        "images": str(photos / "photos"),
        "classes": str(photos / "classes.json"),
        "image_size": (64, 64),
        "policy": "entropy",
        "budget": 4,
        "regions_per_step": 2,
        "options": OPTIONS,
    }
    return SessionSettings(**{**given, **changes})


def test_somebodys_files_are_not_replaced(photos):
    out = photos / "out"
    out.mkdir()
    (out / "splits.json").write_text("mine")
    with pytest.raises(ValueError, match="splits.json would be replaced"):
        LabelSession(out, settings(photos))
    assert [path.name for path in out.iterdir()] == ["splits.json"]
    (out / "labels").mkdir()  # a name that data sets use, too
    with pytest.raises(ValueError, match="splits.json would be replaced"):
        LabelSession(out, settings(photos))


def test_an_export_replaces_nothing_but_an_export(photos):
    """Masks painted by hand lie where an export into the folder of the photographs would write."""
    session = LabelSession(photos / "out", settings(photos))
    with pytest.raises(LabelsPending):
        session.run("folder")
    paint(session)
    mine = photos / "masks" / "mine.png"
    mine.parent.mkdir()
    mine.write_bytes(b"by hand")
    with pytest.raises(ValueError, match=r"masks would be replaced, .* choose a new folder"):
        export(session, photos)
    assert not (photos / "made_with.json").exists()
    assert mine.read_bytes() == b"by hand"
    for _ in range(2):
        export(session, photos / "export")
    assert export(session, photos / "export", format="coco").exists()


def command_line(photos):
    """Return what the commands share: images, classes, size and options."""
    changes = [f"--set={name}={json.dumps(value)}" for name, value in OPTIONS.items()]
    return [str(photos / "photos"), "--classes", str(photos / "classes.json"), "--image-size", "64", "64", *changes]


def paint(session):
    """Label what is requested: bright or dark."""
    folder = session.out / "labels"
    for picture in sorted((folder / "requests").glob("*.png")):
        if not (folder / "answers" / picture.name).exists():
            bright = np.asarray(Image.open(picture)).mean(-1) > 128
            Image.fromarray(bright.astype(np.uint8)).save(folder / "answers" / picture.name)


def label_all(photos, out, **changes):
    """Play the people until the session is over; each time as another process would. Return the times it waited."""
    for waited in range(20):
        session = LabelSession(out, settings(photos, **changes))
        try:
            session.run("folder")
        except LabelsPending:
            paint(session)
        else:
            return waited
    raise AssertionError("the session does not end")


def test_from_photographs_to_masks_and_a_network(photos):
    assert label_all(photos, photos / "out") == 2
    session = LabelSession(photos / "out")
    assert len(session.label_folder.regions()) == 4
    masks = export(session, photos / "masks", predictions=False)
    written = sorted(masks.rglob("*.png"))
    assert 1 <= len(written) <= 4
    for path in written:
        image = np.asarray(Image.open(photos / "photos" / path.relative_to(masks))).mean(-1) > 128
        mask = np.asarray(Image.open(path))
        assert mask.shape == image.shape
        assert (mask[mask != 255] == image[mask != 255]).all()
        assert (mask != 255).any()
    tasks = json.loads(export(session, photos / "tasks", format="label-studio").read_text())
    for task, path in zip(tasks, written, strict=True):
        name = path.relative_to(masks).with_suffix("").as_posix()
        assert task["data"] == {"image": f"/data/local-files/?d=photos/{name}.png", "name": name}
        mask = np.asarray(Image.open(path))
        for result in task["annotations"][0]["result"]:
            label = CLASSES.index(result["value"]["brushlabels"][0])
            np.testing.assert_array_equal(decode_brush(result["value"]["rle"], mask.shape), mask == label)
    assert not any("predictions" in task for task in tasks)
    filled = json.loads(export(session, photos / "filled", format="label-studio", predictions=True).read_text())
    assert len(filled) == len(SIZES)
    assert sum("annotations" in task for task in filled) == len(written)
    everything = export(session, photos / "all", predictions=True)
    for task in filled:
        mask = np.asarray(Image.open(everything / f"{task['data']['name']}.png"))
        (predicted,) = task["predictions"]
        inside = sum(decode_brush(result["value"]["rle"], mask.shape).astype(int) for result in predicted["result"])
        np.testing.assert_array_equal(inside, 1)  # each pixel is of one class
    assert len(list(everything.rglob("*.png"))) == len(SIZES)
    assert all((np.asarray(Image.open(path)) != 255).all() for path in everything.rglob("*.png"))
    network = smp.from_pretrained(str(photos / "all" / "smp")).eval()
    env = session.make_env(session.data, weights=str(session.out / "network.safetensors"))
    with torch.inference_mode():
        expected = env.learner.predict(env.inputs.whole([0]))
        pixels = torch.from_numpy(session.data.image(0)).permute(2, 0, 1)[None] / 255
        mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in normalisation(OPTIONS["encoder"]))
        torch.testing.assert_close(network((pixels - mean) / std), expected, rtol=0.05, atol=0.05)


def test_a_session_that_is_killed_asks_the_same_again_and_loses_nothing(photos):
    out = photos / "out"
    requested = set()
    for delay in (0.2, 0.5, 0.8):
        in_child(lambda: LabelSession(out, settings(photos)).run("folder"), kill_after=delay)
        found = {path.name for path in (out / "labels" / "requests").glob("*.png")}
        assert requested <= found
        requested = found
    assert label_all(photos, out) <= 2
    session = LabelSession(out)
    assert requested <= {path.name for path in (out / "labels" / "answers").glob("*.png")}
    assert len(session.label_folder.regions()) == 4


class Person:
    """Someone who labels what ``al-seg-env label`` asks for on its page, which each ``with session`` starts again."""

    def __init__(self, photos):
        self.runs_of = pytest.importorskip("al_seg_env.labelling.page.server").runs_of
        self.command = ["label", *command_line(photos), "--out", str(photos / "out"), "--tool", "page", "--port", "0"]
        self.command += ["--budget", "4", "--regions-per-step", "2"]
        self.said = photos / "said.txt"
        self.answers = []  # that the server has acknowledged

    def run(self):
        with self.said.open("w") as sys.stdout:
            assert main(self.command) == 0

    @contextmanager
    def session(self):
        self.said.unlink(missing_ok=True)
        with killed_at_the_end(self.run):
            found = None
            while not found:
                time.sleep(0.05)
                found = self.said.exists() and re.search(r"http://\S+(?=/ )", self.said.read_text())
            self.address = found[0]
            yield

    def call(self, path, **body):
        sent = json.dumps({"person": "a" * 16, **body}).encode()
        url, kind = f"{self.address}/api/{path}", {"Content-Type": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(url, sent, kind), timeout=60) as response:
            return json.load(response)

    def task(self):
        """Return the region that is shown, once there is one."""
        while (task := self.call("next")["task"]) is None:
            time.sleep(0.05)
        return task

    def paint(self, task, what):
        """Send a draft or an answer; return what was painted, ``(h, w)`` uint8."""
        mask = np.random.default_rng(len(self.answers)).integers(0, 2, (task["height"], task["width"]), np.uint8)
        self.call(f"tasks/{task['id']}/{what}", runs=self.runs_of(mask), seconds=3.0, clicks=5, by=None)
        if what == "answer":
            self.answers.append(mask)
        return mask


def test_the_command_is_killed_at_any_moment_and_goes_on(photos, monkeypatch):
    monkeypatch.setattr("al_seg_experiment.label_session.POLL_SECONDS", 0.05)
    monkeypatch.setattr("al_seg_experiment.cli.LAST_LOOK", 0.0)
    person = Person(photos)

    def stored():
        folder = LabelSession(photos / "out").label_folder
        return [folder.read(region).mask for region in folder.regions()]

    def nothing_is_lost():
        missing = [each for each in person.answers if not any(np.array_equal(each, mask) for mask in stored())]
        assert not missing
        assert len(stored()) == len(person.answers)

    with person.session():  # before anything is requested
        pass
    with person.session():  # when a region is shown
        first = person.task()["id"]
    with person.session():  # in the middle of a region
        task = person.task()
        assert task["id"] == first
        draft = person.paint(task, "draft")
    with person.session():  # after an answer
        task = person.task()
        assert (task["id"], task["clicks"], task["draft"]) == (first, 5, person.runs_of(draft))
        person.paint(task, "answer")
        second = person.task()["id"]
    nothing_is_lost()
    with person.session():  # as the network begins to learn
        task = person.task()
        assert task["id"] == second
        person.paint(task, "answer")
    nothing_is_lost()
    with person.session():  # when it has learnt, as the state of the session is stored
        while not (photos / "out" / "network.safetensors").exists():
            time.sleep(0.002)
    nothing_is_lost()
    with person.session():
        third = person.task()
        person.paint(third, "answer")
        assert third["id"] not in (first, second)
    with person.session():
        fourth = person.task()
        person.paint(fourth, "answer")
        assert fourth["id"] not in (first, second, third["id"])
        while "the budget is spent" not in person.said.read_text():
            time.sleep(0.05)
    nothing_is_lost()


def test_the_first_labels_become_the_images_that_measure(photos):
    assert label_all(photos, photos / "out", reward_images=2) == 3
    session = LabelSession(photos / "out")
    assert len(session.label_folder.regions()) == 2 + 4
    splits = json.loads((photos / "out" / "splits.json").read_text())
    assert len(splits["reward"]) == 2
    assert not set(splits["reward"]) & set(splits["eval"])


@pytest.fixture
def masks(photos, monkeypatch):
    """Return the folder of masks of three photographs."""
    monkeypatch.setattr("al_seg_experiment.label_session.THETA_0_UPDATES", 2)
    for name in ("house/0", "garden/1", "house/2"):
        image = np.asarray(Image.open(photos / "photos" / f"{name}.png")).mean(-1) > 128
        path = photos / "masks" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.astype(np.uint8)).save(path)
    return {"masks": str(photos / "masks")}


def test_labelled_images_make_theta_0_first(photos, masks):
    assert label_all(photos, photos / "out", **masks) == 2
    assert (photos / "out" / "theta_0.safetensors").exists()
    splits = json.loads((photos / "out" / "splits.json").read_text())
    assert set(splits["reward"] + splits["train"] + splits["state"]) == {"house/0", "garden/1", "house/2"}


@pytest.fixture
def agent(photos, masks):
    """Return an agent that was trained on the labelled images."""
    session = LabelSession(photos / "before", settings(photos, **masks))
    env = session.make_env(session.data, split="train")
    agent = SubActionDQN("QueryPolicy", env, seed=0, batch_size=2)
    agent.learn(2)
    agent.save(photos / "agent.safetensors")
    return agent


def test_an_agent_that_was_trained_on_the_labelled_images_chooses(photos, masks, agent, capsys, monkeypatch):
    images = command_line(photos)
    sizes = ["--budget", "2", "--regions-per-step", "2", "--masks", masks["masks"]]
    for folder in (photos, photos / "photos"):  # the same command from anywhere
        monkeypatch.chdir(folder)
        policy = ["--policy", os.path.relpath(photos / "agent.safetensors")]
        label = ["label", *images, *sizes, "--tool", "folder", "--out", str(photos / "out"), *policy]
        assert main(label) == 0
        paint(LabelSession(photos / "out"))
    assert "the budget is spent" in capsys.readouterr().out
    # Another agent's D_S is not this session's.
    stranger = ["label", *images, *sizes, "--tool", "folder", "--out", str(photos / "o"), *policy, "--seed", "1"]
    assert main(stranger) == 2
    assert "The agent does not fit this environment: layout.state_images" in capsys.readouterr().err


def suggestions(out):
    with (out / "suggestions.csv").open() as file:
        return list(csv.DictReader(file))


def test_an_agent_ranks_all_regions_at_once(photos, masks, agent, capsys):
    images, policy = (
        [*command_line(photos), "--out", str(photos / "s")],
        ["--policy", str(photos / "agent.safetensors")],
    )
    assert main(["suggest", *images, "--masks", masks["masks"], *policy]) == 0
    rows = suggestions(photos / "s")
    values = [float(row["score"]) for row in rows]
    assert values == sorted(values, reverse=True)
    assert {row["image"] for row in rows} == {"garden/3", "house/4", "garden/5"}  # all that have no mask
    # What is first is what the agent takes out of one pool of all regions.
    session = LabelSession(photos / "before")
    one_pool = {"pool_size": len(rows), "regions_per_step": 1, "budget": 1, "reward": None}
    env = session.make_env(session.data, weights_seed=0, **one_pool)
    agent = SubActionDQN.load(photos / "agent.safetensors", env=env)
    observation, _ = env.reset(seed=1)
    (best,), _ = agent.predict(observation, deterministic=True)
    box = env.grid.box(int(env.pools[0][best]))
    region = session.data.original(box.image).region(box)
    assert rows[0]["image"] == session.data.names[box.image]
    assert (int(rows[0]["top"]), int(rows[0]["left"])) == (region.top, region.left)
    # It needs the images that it looks at, and regions as large as those it knows.
    (photos / "photos" / f"{agent.layout['state_images'][0]}.png").unlink()
    assert main(["suggest", *images, *policy]) == 2
    assert "looks at the 1 images of its D_S to see how good the network is, of which 1 are" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--set=region_size=[32,32]"], "layout.region_size is [16, 16] for the agent, [32, 32] in the environment"),
        (["--set=entropy_pools=[]"], "The agent does not fit this environment"),
        (["--policy", "nowhere.safetensors"], "nowhere.safetensors"),
    ],
)
def test_an_agent_that_does_not_fit_ranks_nothing(photos, agent, capsys, more, message):
    policy = ["--policy", str(photos / "agent.safetensors"), *more]
    assert main(["suggest", *command_line(photos), "--out", str(photos / "s"), *policy]) == 2
    assert message in capsys.readouterr().err
    assert not (photos / "s").exists()


@pytest.mark.parametrize("score", ["rarity", "rarity_entropy", "foreground", "balanced_margin", "location_entropy"])
def test_scores_that_weight_classes_need_masks(photos, masks, capsys, score):
    images = [*command_line(photos), "--out", str(photos / "s"), "--policy", score]
    assert main(["suggest", *images]) == 2
    assert (
        f"score is '{score}'; expected another one, such as 'entropy': it needs labelled images"
        in capsys.readouterr().err
    )
    assert not (photos / "s").exists()
    assert main(["suggest", *images, "--masks", masks["masks"]]) == 0
    assert np.isfinite([float(row["score"]) for row in suggestions(photos / "s")]).all()


def test_no_score_may_use_the_ground_truth_of_what_it_ranks(photos, masks, capsys):
    images = [*command_line(photos), "--out", str(photos / "s"), "--masks", masks["masks"]]
    assert main(["suggest", *images, "--policy", "privileged_rarity"]) == 2
    assert "it uses the ground truth of the images that it ranks" in capsys.readouterr().err


def test_images_that_all_have_masks_need_no_suggestion(photos, masks, capsys):
    for path in sorted((photos / "photos").rglob("*.png")):
        if not (photos / "masks" / path.relative_to(photos / "photos")).exists():
            path.unlink()
    assert main(["suggest", *command_line(photos), "--out", str(photos / "s"), "--masks", masks["masks"]]) == 2
    assert "all 3 images have masks; there is nothing to suggest" in capsys.readouterr().err


def test_more_labels_may_be_bought_but_nothing_else_may_differ(photos):
    label_all(photos, photos / "out")
    assert label_all(photos, photos / "out", budget=6) == 1
    with pytest.raises(
        ValueError, match="other settings: policy is 'entropy' there, 'margin' here. Repeat the settings"
    ):
        LabelSession(photos / "out", settings(photos, policy="margin", budget=6))
    with pytest.raises(ValueError, match="expected the folder of a labelling session, with its session.json; begin o"):
        LabelSession(photos / "nothing")
    (photos / "out" / "session.json").write_text("{}")
    with pytest.raises(ValueError, match=r"session\.json can't be used"):
        LabelSession(photos / "out")


def test_settings_that_do_not_work_can_be_mended(photos):
    nonsense = {"options": {**OPTIONS, "encoder": "nonsense"}}
    for wrong, message in (
        (nonsense, "cannot build architecture='FPN', encoder='nonsense'"),
        ({**nonsense, "reward_images": 2}, "cannot build architecture='FPN', encoder='nonsense'"),  # before it asks
        ({"budget": 400}, "budget is 400, but split 'eval' has only"),
    ):
        with pytest.raises(ValueError, match=message):
            LabelSession(photos / "out", settings(photos, **wrong)).run("folder")
    assert label_all(photos, photos / "out") == 2
    with pytest.raises(ValueError, match="other settings: options is"):
        LabelSession(photos / "out", settings(photos, options={**OPTIONS, "pool_size": 3}))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"options": {"lerning_rate": 1}},
            r"unknown options \['lerning_rate'\] \(did you mean 'learning_rate'\?\); known",
        ),
        ({"options": {"budget": 5}}, r"options has \['budget'\]; these are settings of the session itself"),
        (
            {"options": {"reward_classes": ["a"]}, "reward_images": 2},
            "options has reward_classes, but with",
        ),
        ({"masks": "nowhere"}, ".*nowhere'; expected a folder of masks"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_wrong_settings_leave_nothing_behind(wrong, message, photos):
    with pytest.raises(ValueError, match=message):
        LabelSession(photos / "out", settings(photos, **wrong))
    assert not (photos / "out").exists()


@pytest.mark.parametrize("policy", ["rare", "greedy", "rarity", "foreground", "location_entropy", "rarity_regression"])
def test_policies_that_need_labels_ask_nobody_without(policy, photos):
    with pytest.raises(ValueError, match=f"policy is '{policy}'; expected one that "):
        LabelSession(photos / "out", settings(photos, policy=policy)).run("folder")
    assert not (photos / "out" / "labels").exists()


def test_files_that_are_not_read_are_counted(photos, caplog):
    for name in ("a.HEIC", "b.heic", "notes.txt"):
        (photos / "photos" / name).write_bytes(b"x")
    with pytest.raises(LabelsPending):
        LabelSession(photos / "out", settings(photos)).run("folder")
    assert "3 other files are not read: .heic (2), .txt (1)" in caplog.text


def test_masks_are_named_as_their_photographs():
    for name in ("IMG (0)", "Straße ä", "a/b c", "100%", "x%20y"):
        assert file_stem(name) == name
    assert file_stem("../a\\b") == "%2E%2E/a%5Cb"
    assert file_stem("a\nb") == "a%0Ab"


def test_photographs_may_be_moved_and_none_may_join(photos):
    out = photos / "out"
    with pytest.raises(LabelsPending):
        LabelSession(out, settings(photos)).run("folder")
    paint(LabelSession(out))
    shutil.copytree(photos / "photos", photos / "elsewhere")
    shutil.copy(photos / "classes.json", photos / "classes-2.json")
    moved = {"images": str(photos / "elsewhere"), "classes": str(photos / "classes-2.json")}
    with pytest.raises(ValueError, match="images is 'nowhere'; expected a folder"):
        LabelSession(out, settings(photos, images="nowhere"))
    shutil.copy(photos / "elsewhere" / "house" / "0.png", photos / "elsewhere" / "new.png")
    with pytest.raises(ValueError, match=r"has 1 images that were not there when it began \('new'\): remove them\. "):
        LabelSession(out, settings(photos, **moved)).run("folder")
    (photos / "elsewhere" / "new.png").unlink()
    assert label_all(photos, out, **moved) == 1
    assert LabelSession(out).settings.images == moved["images"]
    with pytest.raises(ValueError, match="other settings: masks is None there, "):
        LabelSession(out, settings(photos, **moved, masks=str(photos)))


def test_d_r_stays_as_it_was_when_photographs_join_or_leave(photos):
    """Names decide, before and after the first answers: drawn again, D_R would consist of other images."""
    out, extra = photos / "out", photos / "photos" / "a.png"
    session = LabelSession(out, settings(photos, reward_images=2))
    session.make_env(session.data, reward=None)  # stores splits
    shutil.copy(photos / "photos" / "house" / "0.png", extra)
    with pytest.raises(LabelsPending):  # nothing was requested yet, so that the splits are made again
        LabelSession(out, settings(photos, reward_images=2)).run("folder")
    requested = sorted((out / "labels" / "requests").iterdir())
    splits = json.loads((out / "splits.json").read_text())
    assert {*splits["reward"], *splits["state"], *splits["eval"]} > {"a", "house/0"}
    extra.rename(photos / "a.png")
    for use in (lambda session: session.run("folder"), lambda session: export(session, photos / "masks")):
        with pytest.raises(ValueError, match=r"lacks 1 images that were there when it began \('a'\): restore them\. "):
            use(LabelSession(out, settings(photos, reward_images=2)))
    shutil.copy(photos / "a.png", photos / "photos" / "b.png")
    with pytest.raises(ValueError, match=r"has 1 images .*\('b'\): remove them; it lacks 1 images .*\('a'\): restore"):
        LabelSession(out, settings(photos, reward_images=2)).run("folder")
    (photos / "photos" / "b.png").unlink()
    (photos / "a.png").rename(extra)
    assert label_all(photos, out, reward_images=2) == 3
    assert {path.name for path in requested} < {path.name for path in (out / "labels" / "answers").iterdir()}
    assert json.loads((out / "splits.json").read_text()) == splits


def test_a_refused_budget_is_not_stored(photos):
    out = photos / "out"
    label_all(photos, out, budget=2)
    before = (out / "session.json").read_bytes()
    with pytest.raises(ValueError, match="budget is 400, but split 'eval' has only"):
        LabelSession(out, settings(photos, budget=400)).run("folder")
    assert (out / "session.json").read_bytes() == before
    stored = json.loads(before)
    (out / "session.json").write_text(json.dumps({**stored, "budget": 400}))  # as earlier versions did
    assert export(LabelSession(out), photos / "masks", predictions=True).exists()
    assert label_all(photos, out, budget=4) == 1
    assert json.loads((out / "session.json").read_text()) == {**stored, "budget": 4}


def test_through_cvat(photos):
    out = photos / "out"
    for _ in range(2):
        session = LabelSession(out, settings(photos))
        with pytest.raises(LabelsPending, match="make a task of the images"):
            session.run("cvat")
        masks = {}
        for batch in (out / "labels" / "requests").iterdir():
            with zipfile.ZipFile(batch / "images.zip") as archive:
                for name in archive.namelist():
                    with archive.open(name) as file:
                        pixels = np.asarray(Image.open(file)).astype(int)
                    masks[name.removesuffix(".png")] = (pixels[..., 2] > 128).astype(np.uint8)
        write_cvat(out / "labels" / "exported" / "all.zip", masks.items(), CLASSES, session.data.palette)
    assert LabelSession(out, settings(photos)).run("cvat")
    for path in export(LabelSession(out), photos / "masks").rglob("*.png"):
        image = np.asarray(Image.open(photos / "photos" / path.relative_to(photos / "masks" / "masks"))).mean(-1) > 128
        mask = np.asarray(Image.open(path))
        assert (mask[mask != 255] == image[mask != 255]).all()


def test_the_commands(photos, capsys):
    images = command_line(photos)
    label = [
        "label",
        *images,
        "--tool",
        "folder",
        "--out",
        str(photos / "out"),
        "--budget",
        "2",
        "--regions-per-step",
        "2",
    ]
    assert main(label) == 0
    out = capsys.readouterr().out
    assert re.search(
        r"^2 regions wait for their labels: put a mask .*\.png; then run the same command again$", out, re.M
    )
    paint(LabelSession(photos / "out"))
    assert main(label) == 0
    assert "the budget is spent; al-seg-env export" in capsys.readouterr().out
    for name in ("png", "coco", "cvat", "label-studio"):
        assert main(["export", str(photos / "out"), "--format", name, "--out", str(photos / name)]) == 0
    assert main(["export", str(photos / "out"), "--format", "gif"]) == 2
    assert "format is 'gif'; expected one of 'png', 'coco', 'cvat', 'label-studio'" in capsys.readouterr().err
    assert main(["label", *images, "--out", str(photos / "o"), "--tool", "pencil"]) == 2
    assert "tool is 'pencil'; expected one of 'page', 'folder', 'cvat', 'label-studio'" in capsys.readouterr().err
    assert main(["suggest", *images, "--out", str(photos / "s"), "--count", "0"]) == 2
    assert "count is 0; expected a whole number of at least 1" in capsys.readouterr().err
    assert main(["suggest", *images, "--out", str(photos / "s"), "--per-image", "-1"]) == 2
    assert "per_image is -1; expected a whole number of at least 1" in capsys.readouterr().err
    assert main(["suggest", *images, "--out", str(photos / "s"), "--count", "9", "--per-image", "3"]) == 0
    rows = suggestions(photos / "s")
    assert [row["rank"] for row in rows] == [str(rank) for rank in range(1, 10)]
    scores = [float(row["score"]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    assert max(sum(row["image"] == name for row in rows) for name in {row["image"] for row in rows}) <= 3
    assert all(re.fullmatch(r"\d+", row[key]) for row in rows for key in ("top", "left", "height", "width"))
    assert Image.open(photos / "s" / "suggestions.png").size[0] > 100


def test_others_read_what_is_exported_of_turned_photographs(tmp_path, caplog):
    pycocotools, datumaro = pytest.importorskip("pycocotools.coco"), pytest.importorskip("datumaro")
    shown = {}
    for name, orientation in {"plain": 1, "overhead": 3, "upright": 6}.items():
        exif, path = Image.Exif(), tmp_path / "photos" / f"{name}.jpg"
        exif[0x0112] = orientation
        path.parent.mkdir(exist_ok=True)
        pixels = np.full((48, 64, 3), 20, np.uint8)
        pixels[:20, :25] = 230
        Image.fromarray(pixels).save(path, exif=exif, quality=95, subsampling=0)
        shown[name] = (np.asarray(ImageOps.exif_transpose(Image.open(path))).mean(-1) > 128).astype(np.uint8)
    (tmp_path / "classes.json").write_text(json.dumps(CLASSES))
    session = LabelSession(tmp_path / "out", settings(tmp_path))
    requests = requests_of(session.data, [Box(image, 0, 64, 0, 64) for image in range(3)])
    oracle = FolderOracle(session.data, tmp_path / "out" / "labels")
    with pytest.raises(LabelsPending):
        oracle.answer(requests)
    paint(session)
    for path in export(session, tmp_path / "png").iterdir():
        np.testing.assert_array_equal(np.asarray(Image.open(path)), shown[path.stem])
    assert "2 of 3 images have an EXIF orientation" in caplog.text
    coco = pycocotools.COCO(str(export(session, tmp_path / "coco", format="coco")))
    for image in coco.loadImgs(coco.getImgIds()):
        assert (tmp_path / "photos" / image["file_name"]).exists()
        found = np.full((image["height"], image["width"]), 255, np.uint8)
        for annotation in coco.loadAnns(coco.getAnnIds(image["id"])):
            found[coco.annToMask(annotation) == 1] = annotation["category_id"] - 1
        np.testing.assert_array_equal(found, shown[image["file_name"].removesuffix(".jpg")])
    with zipfile.ZipFile(export(session, tmp_path / "cvat", format="cvat")) as archive:
        archive.extractall(tmp_path / "voc")
    dataset = datumaro.Dataset.import_from(str(tmp_path / "voc"), "voc_segmentation")
    names = [label.name for label in dataset.categories()[datumaro.AnnotationType.label]]
    for item in dataset:
        found = np.full(shown[item.id].shape, 255, np.uint8)
        for annotation in item.annotations:
            found[np.asarray(annotation.image, bool)] = CLASSES.index(names[annotation.label])
        np.testing.assert_array_equal(found, shown[item.id])
    assert {item.id for item in dataset} == set(shown)


def test_what_is_wrong_with_an_answer_is_told_while_the_session_waits(photos, caplog, monkeypatch):
    session = LabelSession(photos / "out", settings(photos, budget=2))
    answers = session.out / "labels" / "answers"

    def people(seconds):
        if not (wrong := answers / "a.jpg").exists():
            wrong.touch()
        elif "a.jpg" in caplog.text:
            paint(session)

    monkeypatch.setattr("time.sleep", people)
    assert session.run("folder", wait=True)
    told = [message for message in caplog.messages if "put a mask" in message or "a.jpg" in message]
    assert [message[:9] for message in told] == ["2 regions", str(answers)[:9]]


def test_two_labellers_do_not_use_one_folder_at_once(photos):
    session = LabelSession(photos / "out", settings(photos))
    with pytest.raises(LabelsPending):
        session.run("folder")

    def second(data, folder):
        LabelSession(photos / "out").run("folder")

    with pytest.raises(ValueError, match="is in use by process"):
        session.run(second)


def test_masks_among_the_images_are_refused(photos):
    (photos / "photos" / "masks").mkdir()
    with pytest.raises(ValueError, match="images in .* and the masks in .*/masks lie in each other"):
        LabelSession(photos / "out", settings(photos))
    assert not (photos / "out").exists()


def test_an_answer_that_is_gone_is_missed(photos):
    """Once it was used, nobody would be asked for it again, and the export would lack it without a word."""
    out = photos / "out"
    label_all(photos, out, budget=2)
    session = LabelSession(out)
    masks = {path.name: path.read_bytes() for path in export(session, photos / "before").rglob("*.png")}
    gone = session.label_folder.path(session.label_folder.regions()[0])
    gone.unlink()
    for use in (lambda: export(session, photos / "after"), lambda: LabelSession(out).run("folder")):
        with pytest.raises(ValueError, match=f"answers that the session has used are missing: .*{gone.name} "):
            use()
    assert not (photos / "after").exists()
    (out / "state.safetensors").unlink()  # as the message says
    label_all(photos, out, budget=2)
    assert {path.name: path.read_bytes() for path in export(session, photos / "after").rglob("*.png")} == masks


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_each_file_of_a_finished_session_in_turn(photos, masks, tmp_path, damage):
    """Resumed, it ends as before, or an error names a file that was touched."""
    over = tmp_path / "session"
    label_all(photos, over, **masks, budget=2)
    before = contents(over)
    made = {name: before[name] for name in ("network.safetensors", "theta_0.safetensors", "splits.json")}

    def resumed(copy):
        label_all(photos, copy, **masks, budget=2)
        assert export(LabelSession(copy), photos / "exported", predictions=True).exists()
        return {name: contents(copy)[name] for name in made}

    outcomes = {name: (found, message) for name, found, message in walk(over, tmp_path, damage, resumed)}
    assert all(message is not None or found == made for found, message in outcomes.values())
    assert outcomes["network.safetensors"][0] == made or "swapped" in damage


@pytest.mark.parametrize("damage", ["deleted", "truncated", "emptied", "changed", "swapped within its folder"])
def test_a_network_that_is_not_the_one_of_the_last_step_is_not_exported(photos, masks, damage):
    out = photos / "out"
    label_all(photos, out, **masks, budget=2)
    network = (out / "network.safetensors").read_bytes()
    DAMAGES[damage](out / "network.safetensors")
    with pytest.raises(ValueError, match=r"network.safetensors is not what the last step has left; .* writes it again"):
        export(LabelSession(out), photos / "export")
    assert not (photos / "export").exists()
    if "swapped" not in damage:
        label_all(photos, out, **masks, budget=2)
        export(LabelSession(out), photos / "export")
        assert (photos / "export" / "network.safetensors").read_bytes() == network


def test_results_do_not_lie_among_the_images(photos, capsys):
    """Where the pictures in them would be images of the next run."""
    paths = [str(photos / "photos"), "--classes", str(photos / "classes.json")]
    for command in ("label", "suggest"):
        for out in ("photos", "photos/out"):
            assert main([command, *paths, "--out", str(photos / out)]) == 2
            assert "expected a folder that is not among the images in" in capsys.readouterr().err
    assert not (photos / "photos" / "out").exists()


def test_options_that_a_tool_does_not_use_are_refused(photos, capsys):
    paths = [str(photos / "photos"), "--classes", str(photos / "classes.json"), "--out", str(photos / "out")]
    for command, message in (
        (["label", *paths, "--tool", "folder", "--port", "99"], "--port is for the labelling page, and the tool is fo"),
        (["label", *paths, "--tool", "cvat", "--token", "x"], "--token is for the labelling page, and the tool is cv"),
        (["label", *paths, "--tool", "page", "--label-studio", "http://x"], "is given, and --tool is page; omit one"),
        (["label", *paths, "--set", "oracle=x"], "options has ['oracle']; these are settings of the session itself"),
        (["suggest", *paths, "--set", "cache=a", "--cache", "b"], "--cache and --set cache=... are both given; omit"),
    ):
        assert main(command) == 2
        assert message in capsys.readouterr().err
    assert not (photos / "out").exists()


def test_answers_are_read_by_anyone(photos):
    label_all(photos, photos / "out", budget=2)
    data = settings(photos).data()
    folder = LabelFolder(
        photos / "out" / "labels" / "answers", data, manifest=photos / "out" / "labels" / "manifest.json"
    )
    assert len(folder.regions()) == 2
