"""Running an experiment: its pieces, one after another or spread over a Ray cluster, and what they gave."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import subprocess
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from al_seg_env.storage import write_csv, write_json
from al_seg_experiment import protocol
from al_seg_experiment.experiment import Experiment, Variant
from al_seg_experiment.reading import merged

logger = logging.getLogger(__name__)

FORMAT, VERSION = "al-seg-env experiment", 1
NUMERICS = "numerics.json"
PLACE = "root"  # of the data, which may differ between machines
EXTENSIBLE = ("methods", "seeds", "variants", "full", "cache", "cpus", "gpus")
"""What may grow between two runs of an experiment in one folder; whatever is finished stays valid."""


@dataclass(frozen=True)
class Piece:
    """A part of an experiment that is run, stored and resumed by itself.

    Attributes:
        name: Its folder within the experiment's; a path with ``/``.
        kind: ``"theta_0"``, ``"query_theta_0"``, ``"query"``, ``"reference"``, ``"full"`` or ``"trial"``.
        variant, method, seed: What it is of, where it is of one.
        needs: Names of the pieces that must be finished before.
    """

    name: str
    kind: str
    variant: str = ""
    method: str = ""
    seed: int = 0
    needs: tuple[str, ...] = ()


def pieces(experiment: Experiment) -> list[Piece]:
    """Return all pieces in an order in which they can be run."""
    found = []
    learnt = [name for name, entry in experiment.methods.items() if entry["policy"] == "dqn"]
    agents = () if not learnt else experiment.seeds if experiment.query.per_seed else experiment.seeds[:1]
    for variant, settings in experiment.variants.items():
        prefix = f"variants/{_folder_name(variant)}/" if variant else ""
        shared, of = ("", "") if settings.shares_theta_0 else (prefix, variant)
        theta_0 = Piece(f"{shared}theta_0", "theta_0", of)
        query_theta_0 = Piece(f"{shared}query_theta_0", "query_theta_0", of)
        first = [theta_0, Piece(f"{prefix}reference", "reference", variant, needs=(theta_0.name,))]
        first += [query_theta_0] if learnt else []
        found += [piece for piece in first if piece not in found]
        for seed in agents:
            found.append(Piece(f"{prefix}query/{seed}", "query", variant, "", seed, (query_theta_0.name,)))
        for seed in experiment.seeds:
            agent = f"{prefix}query/{seed if seed in agents else experiment.seeds[0]}"
            for method in experiment.methods:
                needs = (theta_0.name, agent) if method in learnt else (theta_0.name,)
                found.append(Piece(f"{prefix}trials/{method}-{seed}", "trial", variant, method, seed, needs))
        supervised = experiment.seeds if experiment.full is True else experiment.seeds[: int(experiment.full)]
        for seed in supervised:
            found.append(Piece(f"{prefix}trials/full-{seed}", "full", variant, "full", seed, (theta_0.name,)))
    return found


def run(experiment: Experiment, folder: str | Path, ray_address: str | None = None) -> Path:
    """Run what is not finished, and write ``results.csv``.

    Args:
        experiment: What to run.
        folder: Where results are and go.
        ray_address: ``None`` runs one piece after another, here; ``"local"`` starts Ray on this machine, and another
            text is the address of a cluster, all of whose machines must see the folder.

    Returns:
        The path of ``results.csv``.

    Raises:
        ValueError: If the folder holds results of another configuration.
    """
    folder = Path(folder)
    _check_folder(experiment, folder)
    experiment = _pinned(experiment, folder)
    todo = [piece for piece in pieces(experiment) if not finished(folder, piece)]
    if ray_address is None:
        for piece in tqdm(todo, desc=experiment.name):
            logger.info("running %s", piece.name)
            run_piece(experiment, folder, piece)
    elif todo:
        from al_seg_experiment.ray_cluster import run_on_ray

        run_on_ray(experiment, folder, todo, ray_address)
    return gather(experiment, folder)


def run_piece(experiment: Experiment, folder: Path, piece: Piece) -> None:
    """Run one piece, from where it was interrupted; those that it needs must be finished."""
    own = folder / piece.name
    _claim(experiment, piece, own)
    own_settings = _of_piece(experiment, piece)
    kinds = {each.name: each.kind for each in pieces(experiment)}
    needed = {kinds[name]: folder / name for name in piece.needs}
    weights = needed.get("theta_0", own) / protocol.WEIGHTS
    agent = needed["query"] / protocol.AGENT if "query" in needed else None
    work: dict[str, Callable[[], None]] = {
        "theta_0": lambda: protocol.pretrain(own_settings, experiment.theta_0, own),
        "query_theta_0": lambda: protocol.pretrain(own_settings, experiment.query_theta_0, own),
        "query": lambda: protocol.train_query(
            own_settings, needed["query_theta_0"] / protocol.WEIGHTS, own, piece.seed
        ),
        "reference": lambda: protocol.run_theta_0(own_settings, weights, own),
        "full": lambda: protocol.run_full(own_settings, piece.seed, weights, own),
        "trial": lambda: protocol.run_trial(own_settings, piece.method, piece.seed, weights, agent, own),
    }
    work[piece.kind]()
    _write_about(own / "finished.json", {"code": code_version()})


def _of_piece(experiment: Experiment, piece: Piece) -> Experiment:
    """Return the experiment as a piece sees it; theta_0 may belong to no variant, where all share it."""
    if piece.variant in experiment.variants:
        return experiment.of_variant(piece.variant)
    return replace(experiment, variants={"": Variant()})


def finished(folder: Path, piece: Piece) -> bool:
    """Return whether a piece is done; damaged results are set aside, so that it is run again."""
    own = folder / piece.name
    for path in sorted(own.glob("result-*.json")):
        try:
            _read_result(path)
        except ValueError as error:
            aside = path.with_suffix(".damaged")
            warnings.warn(f"{error}; it is set aside as {aside.name}, and made again", stacklevel=2)
            path.replace(aside)
            (own / "finished.json").unlink(missing_ok=True)
    return (own / "finished.json").exists()


def status(experiment: Experiment, folder: str | Path) -> list[dict[str, Any]]:
    """Return a row per piece: its name, whether it is ``finished``, ``begun`` or ``waiting``, and its results."""
    rows = []
    for piece in pieces(experiment):
        own = Path(folder) / piece.name
        state = "finished" if finished(Path(folder), piece) else "begun" if own.exists() else "waiting"
        results = len(list(own.glob("result-*.json")))
        expected = {"trial": len(_of_piece(experiment, piece).budgets), "full": 1, "reference": 1}.get(piece.kind, 0)
        rows.append({"piece": piece.name, "state": state, "results": f"{results}/{expected}" if expected else ""})
    return rows


def gather(experiment: Experiment, folder: str | Path) -> Path:
    """Write ``results.csv`` from all stored results: a row per variant, method, seed and budget."""
    folder = Path(folder)
    rows: list[dict[str, Any]] = []
    references: dict[str, Mapping[str, Any]] = {}
    for piece in pieces(experiment):
        if piece.kind not in ("reference", "full", "trial"):
            continue
        results = sorted((_read_result(path) for path in (folder / piece.name).glob("result-*.json")), key=_budget)
        if piece.kind == "reference":
            references.update(zip([piece.variant], results, strict=False))
            continue
        if piece.kind == "trial" and results and piece.variant in references:
            # theta_0 is where each curve begins.
            results.insert(0, {**references[piece.variant], "method": piece.method, "seed": piece.seed})
        rows += [_row(piece.variant, result) for result in results]
    path = folder / "results.csv"
    if rows:
        columns = list(dict.fromkeys(column for row in rows for column in row))
        write_csv(path, [{column: row.get(column, "") for column in columns} for row in rows])
    return path


def _write_about(path: Path, content: Mapping[str, Any]) -> None:
    write_json(path, {"format": FORMAT, "version": VERSION, **content})


def code_version() -> str:
    """Return the package's version, and the commit where it runs from a clone."""
    version = importlib.metadata.version("al-seg-env")
    here = Path(__file__).resolve().parent
    try:
        shown = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return version
    return f"{version} ({shown.stdout.strip()})"


def _budget(result: Mapping[str, Any]) -> int:
    return int(result["budget"])


def _row(variant: str, result: Mapping[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {"variant": variant, **{key: result[key] for key in ("method", "seed", "budget")}}
    splits = [split for split in ("val", "test") if f"{split}_miou" in result]
    row.update({f"{split}_miou": round(result[f"{split}_miou"], 4) for split in splits})
    row.update({key: result.get(key, "") for key in ("epochs", "best_epoch")})
    row["acquired_miou"] = round(result["acquired_miou"], 4) if "acquired_miou" in result else ""
    for split in splits:
        for name, iou in result[f"{split}_iou"].items():
            row[f"{split}_iou_{name}"] = "" if iou is None else round(iou, 4)
    for name in result[f"{splits[0]}_iou"] if splits else ():
        row[f"asked_{name}"] = result.get("asked", {}).get(name, "")
    return row


def _read_result(path: Path) -> dict[str, Any]:
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        known = (protocol.RESULT_FORMAT, protocol.RESULT_VERSION)
        if not isinstance(result, dict) or (result.get("format"), result.get("version")) != known:
            raise ValueError(f"expected {known[0]!r}, version {known[1]}")
        _check_figures(result)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged or no result ({type(error).__name__}: {error})") from error
    return result


def _check_figures(result: Mapping[str, Any]) -> None:
    """Raise a ValueError unless a result's figures are what :func:`_row` makes a row of."""
    splits = [split for split in ("val", "test") if f"{split}_miou" in result]
    percents = [result[f"{split}_miou"] for split in splits]
    percents += [iou for split in splits for iou in result[f"{split}_iou"].values() if iou is not None]
    counts = [result["seed"], result["budget"], *result.get("asked", {}).values()]
    good = all(type(value) in (int, float) and 0 <= value <= 100 for value in percents)
    if not splits or not good or not all(type(count) is int for count in counts) or type(result["method"]) is not str:
        raise ValueError("its figures are missing, or no percentages and counts")
    float(result.get("acquired_miou", 0))
    _row("", result)


def _check_folder(experiment: Experiment, folder: Path) -> None:
    """Refuse a folder with results of another configuration; note this one's."""
    path = folder / "experiment.json"
    own = experiment.as_dict()
    begun = any(piece.is_dir() for piece in folder.iterdir()) if folder.is_dir() else False
    if path.exists() and begun:
        # Of an entry that is newer than the folder, the default is what the folder was made with.
        stored = merged(Experiment(name="").as_dict(), _read_json(path))
        compared = {key: value for key, value in own.items() if key not in EXTENSIBLE}
        _refuse_differences(stored, compared, folder)
    elif not path.exists() and folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} holds other files and no experiment; choose a new folder")
    if not begun:
        (folder / NUMERICS).unlink(missing_ok=True)  # of another configuration, perhaps
    _write_about(path, own)


def _pinned(experiment: Experiment, folder: Path) -> Experiment:
    """Return the experiment with the precision and layout that its first run measured: no clock decides later."""
    path = folder / NUMERICS
    if not path.exists():
        learner = protocol.make_environment(experiment, split="eval").learner
        _write_about(path, getattr(learner, "numerics", {}))
    cache = {"cache": str(folder / "cache")} if experiment.cache else {}
    return replace(experiment, arguments={**experiment.arguments, **_read_json(path), **cache})


def _claim(experiment: Experiment, piece: Piece, own: Path) -> None:
    """Note in a piece's folder what it is made with; refuse one that was made with something else."""
    made_with: dict[str, Any] = {
        "kind": piece.kind,
        "variant": experiment.as_dict()["variants"].get(piece.variant),
        "method": experiment.as_dict()["methods"].get(piece.method),
        "seed": piece.seed,
    }
    path = own / "piece.json"
    if path.exists():
        _refuse_differences(_read_json(path), made_with, own)
    _write_about(path, {**made_with, "code": code_version()})


def _refuse_differences(stored: Mapping[str, Any], own: Mapping[str, Any], folder: Path) -> None:
    differing = list(_differences(stored, own))
    if differing:
        raise ValueError(
            f"{folder} holds results of another configuration: {'; '.join(differing)}. Choose another folder, or go "
            "back to that configuration"
        )


def _differences(stored: Any, own: Any, where: str = "") -> Iterator[str]:
    if isinstance(stored, Mapping) and isinstance(own, Mapping):
        for key in own if not where else {**stored, **own}:
            if key == PLACE:
                continue
            yield from _differences(stored.get(key), own.get(key), f"{where}.{key}" if where else str(key))
    elif stored != own:
        yield f"{where} is {stored!r} there, {own!r} here"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} can't be read ({error}); restore it, or remove its folder to run it again") from error
    found = (content.pop("format", None), content.pop("version", None)) if isinstance(content, dict) else content
    if found != (FORMAT, VERSION):
        raise ValueError(
            f"{path} holds {found!r}; expected {FORMAT!r}, version {VERSION}. Use the version that wrote it"
        )
    return content


def _folder_name(variant: str) -> str:
    return "".join(c if c.isalnum() or c in "_+-= " else f"%{ord(c):02X}" for c in variant)
