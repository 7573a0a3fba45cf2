"""Every option of every command, as the console script itself defines them, each with values that are no good."""

from __future__ import annotations

import dataclasses
import json
import shutil
import socket
import typing
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from experiments import TINY, TINY_EXPERIMENT
from PIL import Image
from tyro.conf import Positional

from al_seg_env import save_weights
from al_seg_env.labelling.page import server
from al_seg_experiment import (
    cli,
    evaluation,
    exporting,
    label_session,
    pretraining,
    query_training,
    runner,
    sharing,
    suggesting,
)
from al_seg_experiment.label_session import LabelSession, SessionSettings
from al_seg_experiment.report import writing
from al_seg_experiment.trial_results import sealed

QUICK = {"device": "cpu", "precision": "float32", "channels_last": False, "fold_batchnorm": False}  # not measured
NETWORK = {"encoder": "tu-tf_mobilenetv3_small_minimal_100", "encoder_weights": None, "region_size": [32, 32], **QUICK}
PHOTOS = ["images", "--classes", "classes.json", *(f"--set={name}={json.dumps(v)}" for name, v in NETWORK.items())]
STREETS = ["--env-file", "tiny.json", "--out", "empty"]
FINE = {
    "experiment run": ["small.json", "--out", "empty"],
    "experiment status": ["small.json", "--out", "empty"],
    "experiment report": ["results.csv", "--out", "empty"],
    "pretrain": [*STREETS, "--images", "state", "--source-arg", "data_seed=1"],
    "train": STREETS,
    "evaluate": [*STREETS, "--budgets", "2", "4"],
    "label": [*PHOTOS, "--out", "new", "--tool", "page", "--port", "0", "--budget", "4", "--regions-per-step", "2"],
    "suggest": [*PHOTOS, "--out", "empty"],
    "export": ["session", "--out", "empty"],
    "share": [*STREETS, "--env-arg", "weights=theta_0.safetensors", "--licence", "mit"],
    "push": ["shared", "owner/name"],
}
"""Arguments that are right, for each command; of an option that is there twice, the later one counts."""
NO_NUMBERS = ("", "-1", "0", "nan", "9" * 25, "wrong")
BAD = (*NO_NUMBERS, "é" * 300, "nowhere/x", "text.txt", "folder")
NO_PATHS = ("", "é" * 300, "nowhere/x", "text.txt", "folder")
NO_ASSIGNMENTS = (*BAD, "=1", "wrong=1")
POSITIONAL = Positional[int].__metadata__[0]


class Begun(BaseException):
    """A command has looked at all that it was given, and begins to work."""


def begin(*_, **__):
    raise Begun


def commands(kind, above=()):
    """Yield the words and the class of each command of a union, as tyro is given it."""
    for member in typing.get_args(kind):
        command, *marks = typing.get_args(member)
        words = (*above, next(mark.name for mark in marks if hasattr(mark, "name")))
        if dataclasses.is_dataclass(command):
            yield " ".join(words), command
        else:
            yield from commands(command, words)


COMMANDS = dict(commands(cli.Command))


def options(name):
    """Yield each option: what messages may call it, its place if it has one, and values that are no good."""
    kinds = typing.get_type_hints(COMMANDS[name], include_extras=True)
    places = iter(range(9))
    for field in dataclasses.fields(COMMANDS[name]):
        kind = kinds[field.name]
        marks = getattr(kind, "__metadata__", ())
        named = str(kind)
        number = ("int" in named or "float" in named) and "str" not in named
        usual = NO_PATHS if Path.__name__ in named else NO_NUMBERS if number else BAD
        values = {cli.Flag: ("wrong",), cli.Assignments: NO_ASSIGNMENTS}.get(kind, usual)
        if POSITIONAL in marks:
            metavar = next(mark.metavar for mark in marks if hasattr(mark, "metavar"))
            yield (field.name, metavar), next(places), values
        else:
            yield (field.name, f"--{field.name.replace('_', '-')}"), None, values


WALK = [(name, *option) for name in COMMANDS for option in options(name)]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with whatever the commands need, and a folder and a file that are somebody's own."""
    folder = tmp_path_factory.mktemp("files")
    for name in ("images", "folder", "empty", "shared"):
        (folder / name).mkdir()
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 255, (64, 96, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
    tiny = {**TINY, **QUICK}
    arguments = {**TINY_EXPERIMENT["arguments"], **QUICK}
    small = {"name": "small", "arguments": arguments, "methods": ["uniform"], "seeds": [0], "budgets": [2, 4]}
    texts = {
        **{"folder/mine.txt": "mine", "text.txt": "text", "shared/README.md": "#"},
        "shared/environment.json": json.dumps(sealed({})),
        **{"classes.json": '["dark", "bright"]', "tiny.json": json.dumps(tiny), "small.json": json.dumps(small)},
        "results.csv": "method,seed,budget,val_miou\na,0,0,10\na,0,4,20\nuniform,0,0,10\nuniform,0,4,19\n",
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    env = gym.make("al_seg_env/SyntheticStreets-v0", **tiny).unwrapped
    save_weights(env.learner, folder / "theta_0.safetensors", env.data.classes)
    settings = SessionSettings(str(folder / "images"), str(folder / "classes.json"), budget=4, options=NETWORK)
    LabelSession(folder / "session", settings)
    return folder


@pytest.fixture
def console(files, monkeypatch):
    """The commands in that folder; what takes long, or leaves this machine, is where they begin."""
    monkeypatch.chdir(files)
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "token")
    for module, work in (
        (pretraining, "fit_to_convergence"),
        (query_training, "learn"),
        (evaluation, "measure_theta_0"),
        (runner, "check_data"),
        (label_session, "_until_answered"),
        (suggesting, "Observer"),
        (exporting, "AnsweredData"),
        (sharing, "_without_paths"),
        (sharing, "HfApi"),
        (writing, "Document"),
    ):
        monkeypatch.setattr(module, work, begin)

    def look_up(host, *rest, known=socket.getaddrinfo, **more):
        host.encode("idna")
        if host != "127.0.0.1":
            raise socket.gaierror(f"{host} is unknown")
        return known(host, *rest, **more)

    monkeypatch.setattr(server.socket, "getaddrinfo", look_up)
    return files


def tree(folder):
    """What a folder holds: its files with their contents, and its folders."""
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def restore(folder, before):
    for path in sorted({*folder.rglob("*")} - {*before}):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def is_named(option, value, message):
    """Return whether a message names the option, or repeats the value, which it may shorten."""
    said = (*option, repr(value), repr(value.partition("=")[0]))
    return any(each in message for each in said) or value in message.split() or (value[2:] and value[:10] in message)


def test_each_command_has_arguments_that_are_right():
    assert set(FINE) == set(COMMANDS)


@pytest.mark.parametrize(("name", "option", "place", "values"), WALK, ids=[f"{each[0]} {each[1][0]}" for each in WALK])
def test_what_is_no_good_is_named_and_nothing_is_written(name, option, place, values, console, capsys):
    """Or it is fine after all, such as the title "0": then the command begins."""
    before, found = tree(console), []
    for value in values:
        arguments = list(FINE[name])
        if place is None:
            arguments += [option[1], value]
        else:
            arguments[place] = value
        try:
            status = cli.main([*name.split(), *arguments])
        except Begun:
            status = 0
        last = capsys.readouterr().err.splitlines()[-1:]
        changed = {path for path, content in tree(console).items() if before.get(path, 0) != content}
        if status != 0:
            own = {path for path in changed if path.relative_to(console).parts[0] == "new"}  # made by this call
            told = bool(last) and last[0].startswith("al-seg-env: ") and is_named(option, value, last[0])
            if status != 2 or not told or changed - own:
                found.append((value[:30], status, last, sorted(map(str, changed - own))[:3]))
        restore(console, before)
    assert not found
    assert tree(console) == before
