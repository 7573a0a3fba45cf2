"""Sharing an agent and a theta_0 as a folder with a model card, in the layout of the Hugging Face Hub."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import segmentation_models_pytorch as smp
from gymnasium.envs.registration import EnvSpec
from huggingface_hub import HfApi, ModelCardData

from agents import SubActionDQN
from al_seg_env.env import RegionSelectionEnv
from al_seg_env.learner.building import normalisation
from al_seg_env.learner.weights import SMP_CONFIG, save_smp, save_weights
from al_seg_env.registration import environment_spec, make_again
from al_seg_env.storage import (
    read_json,
    remove_unfinished,
    require_file,
    unfinished_name,
    well_formed,
    write_json,
    write_text,
)
from al_seg_env.storage.validation import check, check_text
from al_seg_experiment.forecasting import FORECAST
from al_seg_experiment.pretraining import WEIGHTS
from al_seg_experiment.query_training import AGENT
from al_seg_experiment.records import file_digest
from al_seg_experiment.report.analysis import curve_table
from al_seg_experiment.report.results import read_results
from al_seg_experiment.report.tables import markdown, pivot
from al_seg_experiment.trial_results import sealed, unsealed

CARD = "README.md"
ENVIRONMENT = "environment.json"
SPLITS = "splits.json"
RESULTS = "results.csv"
FIGURES = ("figure_4_val.png", "figure_4_test.png")
OF_THIS_MACHINE = ("cache", "device", "oracle", "render_mode")
"""Arguments of environments that others choose for themselves."""
PATHS = ("root", "splits", "weights", "encoder_weights", "forecast")
"""Arguments that may be a relative path; elsewhere, only an absolute one is known to be a path."""
NAMES = {"val": "validation", "test": "test"}


def share(
    env: str | gym.Env | EnvSpec,
    out: str | Path,
    *,
    licence: str,
    agent: str | Path | None = None,
    results: str | Path | None = None,
    title: str | None = None,
    about: str = "",
) -> Path:
    """Write an agent, a theta_0 or both into a folder, with everything needed to use them and a model card.

    The folder holds ``README.md``, the card, with the front matter that the Hub reads; ``environment.json``, the
    environment's id and arguments without paths of this machine; ``agent.safetensors``; theta_0 in the format of
    segmentation-models-pytorch (``config.json``, ``model.safetensors``, ``classes.json``), or as
    ``theta_0.safetensors`` if its network is not one of that library; ``splits.json`` if the splits came from a file;
    ``forecast.safetensors`` if the environment has a forecast; and the results with their figures.

    Args:
        env: The environment of the agent or theta_0: an id, an environment or its ``spec``. Its argument ``weights``
            is the theta_0.
        out: The folder; it must not exist, or be empty.
        licence: Identifier of the licence, such as ``"mit"`` or ``"cc-by-nc-4.0"``. The licence of the training images
            may limit the choice.
        agent: File of the agent, as :meth:`~agents.SubActionDQN.save` writes it.
        results: The ``results.csv`` of an evaluation, to show on the card.
        title: Title of the card; the name of the folder if omitted.
        about: More about the training data, as markdown.

    Returns:
        The folder.

    Raises:
        ValueError: If there is neither an agent nor a theta_0, the agent or theta_0 does not match the environment, or
            the folder is not empty.
    """
    out, spec = Path(out), environment_spec(env)
    check_text("licence", licence)
    if agent is None and spec.kwargs.get("weights") is None:
        raise ValueError("there is nothing to share: give agent=, or an environment with weights= (theta_0)")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} holds something; expected a new folder, since a card may have been edited by hand")
    for path in (agent, results):
        if path is not None:
            require_file(Path(path))
    if results is not None:
        read_results(results)
    made = make_again(spec)
    played = None if agent is None else SubActionDQN.load(agent, made)
    out.parent.mkdir(parents=True, exist_ok=True)
    remove_unfinished(out.parent)
    folder = out.parent / unfinished_name(out.name)
    try:
        folder.mkdir()
        stored = _without_paths(spec, made, folder)
        if agent is not None:
            shutil.copyfile(agent, folder / AGENT)
        digests = {path.name: file_digest(path) for path in sorted(folder.iterdir())}
        write_json(folder / ENVIRONMENT, sealed({**stored, "digests": digests}))
        if results is not None:
            _copy_results(Path(results), folder)
        write_text(folder / CARD, _card(folder, licence, title or out.name, about, made, played))
        os.replace(folder, out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return out


def load_shared(folder: str | Path, **arguments: Any) -> tuple[RegionSelectionEnv, SubActionDQN | None]:
    """Make the environment of a folder that :func:`share` wrote, with its theta_0, and load its agent.

    Nothing in it is executed. ``huggingface_hub.snapshot_download("owner/name")`` returns such a folder.

    Args:
        folder: The folder.
        arguments: Arguments of the environment that extend or replace the stored ones; those that name your own files,
            such as ``root``, must be given.

    Returns:
        The environment, and the agent set to it; ``None`` if the folder has no agent.

    Raises:
        OSError: If it is not such a folder.
        ValueError: If it is damaged, an argument is missing, or the images are not those that the agent was trained on.
    """
    folder = Path(folder)
    path, stored = folder / ENVIRONMENT, _intact(folder)
    with well_formed(path):
        name, kept, needed = str(stored["env"]), dict(stored["arguments"]), list(stored["needed"])
        files = {name: _inside(folder, file) for name, file in stored["files"].items()}
    if missing := [each for each in needed if each not in arguments]:
        raise ValueError(f"{folder} needs {', '.join(f'{each}=...' for each in missing)}: a path on this machine")
    env = make_again(environment_spec(name, **{**kept, **files, **arguments}))
    return env, SubActionDQN.load(folder / AGENT, env) if (folder / AGENT).exists() else None


def push(
    folder: str | Path, repository: str, *, private: bool = False, message: str = "Upload", endpoint: str | None = None
) -> str:
    """Upload a folder that :func:`share` wrote to the Hugging Face Hub, as a model repository.

    The access token is the one stored by ``hf auth login``, or that of the environment variable ``HF_TOKEN``.

    Args:
        folder: The folder; its card may have been edited.
        repository: ``"owner/name"``; created if it does not exist.
        private: Whether to make a newly created repository private.
        message: Commit message.
        endpoint: Address of a server other than huggingface.co.

    Returns:
        The address of the commit.

    Raises:
        OSError: If the folder has no card, or the server can't be reached or refuses.
        ValueError: If the repository's name is invalid, or a file is damaged.
    """
    folder = Path(folder)
    for name in (CARD, ENVIRONMENT):
        require_file(folder / name)
    _intact(folder)
    check("repository", repository, isinstance(repository, str) and repository.count("/") == 1, "owner/name")
    hub = HfApi(endpoint=endpoint, library_name="al-seg-env")
    try:
        hub.create_repo(repository, private=private, exist_ok=True)
        commit = hub.upload_folder(repo_id=repository, folder_path=folder, commit_message=message)
    except (OSError, ValueError):  # which say what the server answered
        raise
    except Exception as error:  # the client's versions connect by different libraries
        raise OSError(f"{hub.endpoint} can't be reached ({error}); {folder} is as it was, push it again") from error
    return str(commit.commit_url)


def _intact(folder: Path) -> dict[str, Any]:
    """Return what ``environment.json`` holds, or raise a ValueError that names a file that is missing or damaged."""
    path = folder / ENVIRONMENT
    stored = read_json(path, "expected what al-seg-env share wrote")
    with well_formed(path):
        stored = unsealed(stored)
        digests = {_inside(folder, name): str(digest) for name, digest in stored.get("digests", {}).items()}
    for file, digest in digests.items():
        if not Path(file).is_file() or file_digest(Path(file)) != digest:
            raise ValueError(f"{file} is missing or damaged: it is not what was shared; use another copy of {folder}")
    return stored


def _without_paths(spec: EnvSpec, env: RegionSelectionEnv, folder: Path) -> dict[str, Any]:
    """Return an environment as plain values that are valid on other machines; write the files that it needs."""
    arguments: dict[str, Any] = {}
    files: dict[str, str] = {}
    needed: list[str] = []
    given = {name: value for name, value in spec.kwargs.items() if name not in OF_THIS_MACHINE and value is not None}
    if given.pop("weights", None) is not None:
        given.pop("encoder_weights", None)  # which theta_0 replaces
        files["weights"] = _write_theta_0(spec, env, folder)
    for name, value in given.items():
        if not _is_path(name, value):
            arguments[name] = value
        elif name == "splits":
            env.splits.save(folder / SPLITS, env.data)
            files[name] = SPLITS
        elif name == "forecast":
            shutil.copyfile(value, folder / FORECAST)
            files[name] = FORECAST
        else:
            needed.append(name)
    return {"env": spec.id, "arguments": arguments, "files": files, "needed": needed}


def _is_path(name: str, value: Any) -> bool:
    """Return whether the value of an argument is a place on this machine."""
    if not isinstance(value, str):
        return isinstance(value, os.PathLike)
    return os.path.isabs(value) or (name in PATHS and (os.sep in value or Path(value).exists()))


def _inside(folder: Path, name: str) -> str:
    path = Path(os.path.abspath(folder / name))  # without following links, of which the Hub's cache consists
    if not path.is_relative_to(os.path.abspath(folder)):
        raise ValueError(f"{name!r} is outside of the folder")
    return str(path)


def _write_theta_0(spec: EnvSpec, env: RegionSelectionEnv, folder: Path) -> str:
    """Write theta_0 and return its place in the folder."""
    if spec.kwargs.get("trainable") == "decoder":
        described = {"region_features": (), "class_distribution": "shares", "forecast": None}
        env = make_again(spec, trainable="all", **described)  # whose network is whole; features need stored ones
    network = getattr(env.learner, "network", None)
    if network is not None and hasattr(smp, type(network).__name__):
        save_smp(network, folder, env.data.classes)
        return "."
    save_weights(env.learner, folder / WEIGHTS, env.data.classes)
    return WEIGHTS


def _copy_results(results: Path, folder: Path) -> None:
    shutil.copyfile(results, folder / RESULTS)
    for name in FIGURES:
        if (figure := results.parent / "report" / name).is_file():
            shutil.copyfile(figure, folder / name)


def _card(
    folder: Path, licence: str, title: str, about: str, env: RegionSelectionEnv, agent: SubActionDQN | None
) -> str:
    """Return the card: what it is, the training data, the results, and how to use it."""
    front = ModelCardData(
        license=licence,
        library_name="al-seg-env",
        pipeline_tag="image-segmentation",
        tags=["active-learning", "reinforcement-learning", "semantic-segmentation", "gymnasium"],
    )
    stored = read_json(folder / ENVIRONMENT, "")
    parts = [f"---\n{front.to_yaml()}\n---\n", f"# {title}\n", _contents(folder, agent)]
    parts += ["## What it was trained on\n", about, _data(stored, env)]
    if (folder / RESULTS).exists():
        parts += ["## Figures\n", _figures(folder)]
    parts += ["## Use\n", _use(folder, stored, agent), f"## Licence\n\n{licence}\n"]
    return "\n".join(part for part in parts if part)


def _contents(folder: Path, agent: SubActionDQN | None) -> str:
    lines = ["For [al-seg-env](https://github.com/al-seg-env/al-seg-env):\n"]
    if agent is not None:
        lines.append(
            f"- `{AGENT}`: an agent that chooses which image regions to label next, {type(agent).__name__} with "
            f"{agent.policy_class.__name__}, trained for {agent.num_timesteps} environment steps. It is bound to the "
            "classes, the images of D_S, the region size and the features that it was trained with."
        )
    if (folder / SMP_CONFIG).exists():
        lines.append("- `model.safetensors`, `config.json`: theta_0, the segmentation network before active learning.")
    elif (folder / WEIGHTS).exists():
        lines.append(f"- `{WEIGHTS}`: theta_0, the segmentation network before active learning.")
    return "\n".join([*lines, f"- `{ENVIRONMENT}`: the environment's id and arguments.", ""])


def _data(stored: Mapping[str, Any], env: RegionSelectionEnv) -> str:
    height, width = env.data.image_size
    splits = env.splits
    return (
        f"The environment `{stored['env']}`: images of {height} x {width} pixels (height x width), "
        f"{len(splits.state)} in D_S, {len(splits.train)} in D_T, {len(splits.reward)} in D_R, {len(splits.eval)} in "
        f"D_V and {len(splits.test)} for tests, by `splits`. Classes: {', '.join(env.data.classes)}.\n"
    )


def _figures(folder: Path) -> str:
    results = read_results(folder / RESULTS)
    parts = []
    for split in results.splits:
        for variant in results.variants:
            table = curve_table(results.of_variant(variant), split)
            name = f"{NAMES[split]}{f', {variant}' if variant else ''}"
            numbers = sorted(set(table.column("n")))
            n = f"n = {numbers[0]} seeds" if len(numbers) == 1 else "n seeds"
            parts.append(f"Mean IoU in percent by labelled regions, {name}: mean ± standard deviation, {n}.\n")
            parts.append(markdown(pivot(table, "budget", "method")))
        if (folder / f"figure_4_{split}.png").exists():
            parts.append(f"![mean IoU by labelled regions, {NAMES[split]}](figure_4_{split}.png)\n")
    return "\n".join(parts)


def _use(folder: Path, stored: Mapping[str, Any], agent: SubActionDQN | None) -> str:
    needed = "".join(f', {name}="..."' for name in stored["needed"])
    lines = [
        "```python",
        "from huggingface_hub import snapshot_download",
        "",
        "from al_seg_experiment import load_shared",
        "",
        'folder = snapshot_download("OWNER/NAME")  # or this folder',
        f"env, agent = load_shared(folder{needed})",
    ]
    if agent is not None:
        lines += ["observation, info = env.reset(seed=0)", "action, _ = agent.predict(observation, deterministic=True)"]
    lines += ["```", ""]
    if (folder / SMP_CONFIG).exists():
        mean, std = map(list, normalisation(read_json(folder / SMP_CONFIG, "")["encoder_name"]))
        lines += [
            "The network alone, whose images are RGB in [0, 1], normalised by mean and standard deviation "
            f"{mean} and {std}:",
            "",
            "```python",
            "import segmentation_models_pytorch as smp",
            "",
            "network = smp.from_pretrained(folder)",
            "```",
            "",
        ]
    return "\n".join(lines)
