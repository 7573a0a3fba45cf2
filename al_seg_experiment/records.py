"""The records in an experiment's folder: the settings of each piece, its files, and whether these are intact."""

from __future__ import annotations

import csv
import hashlib
import importlib.metadata
import subprocess
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from al_seg_env.storage import write_json
from al_seg_env.storage.comparison import differences
from al_seg_env.storage.csv_values import parse_float, parse_int
from al_seg_experiment.experiment import Experiment, Variant
from al_seg_experiment.pieces import Piece, experiment_of, pieces
from al_seg_experiment.reading import read_json
from al_seg_experiment.trial_results import read_result, result_row, write_rows

FORMAT, VERSION = "al-seg-env experiment", 2
EXPERIMENT, NUMERICS, RESULTS = "experiment.json", "numerics.json", "results.csv"
PIECE, FINISHED = "piece.json", "finished.json"
PLACE = "root"  # argument with the path of the data, which may differ between machines
EXTENSIBLE = ("methods", "seeds", "variants", "full", "cache", "cpus", "gpus")
"""Entries that may grow between two runs of an experiment in one folder, since finished pieces stay valid."""


def read_references(path: Path) -> list[dict[str, Any]]:
    """Read the returns of the reference heuristics of a training: method, episode, return.

    Raises:
        ValueError: If the file is damaged.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [
                {
                    "method": row["method"],
                    "episode": parse_int(row["episode"], "episode"),
                    "return": parse_float(row["return"], "return"),
                }
                for row in csv.DictReader(file, strict=True)
            ]
    except (ValueError, KeyError, csv.Error) as error:
        raise ValueError(
            f"{path} is damaged ({type(error).__name__}: {error}); remove it, and the heuristics play again"
        ) from error


def _of(piece: Piece) -> tuple[str, int]:
    """Return the method and seed in the results of a piece."""
    return ("theta_0", 0) if piece.kind == "reference" else (piece.method, piece.seed)


def write_record(path: Path, content: Mapping[str, Any]) -> None:
    """Write plain values with the format's name and version, atomically."""
    write_json(path, {"format": FORMAT, "version": VERSION, **content})


def read_record(path: Path) -> dict[str, Any]:
    """Read a file of :func:`write_record`.

    Raises:
        ValueError: If it is missing, damaged or of another version.
    """
    try:
        content = read_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} can't be read ({error}); restore it, or remove its folder to run it again") from error
    found = (content.pop("format", None), content.pop("version", None)) if isinstance(content, dict) else content
    if found != (FORMAT, VERSION):
        raise ValueError(
            f"{path} holds {found!r}; expected {FORMAT!r}, version {VERSION}. Use the version of al-seg-env that wrote "
            "it, or another folder"
        )
    assert isinstance(content, dict)
    return content


def read_experiment(folder: str | Path) -> Experiment:
    """Return the experiment that a folder was last run with.

    Raises:
        ValueError: If the folder holds none, or it is damaged.
    """
    path = Path(folder) / EXPERIMENT
    if not path.exists():
        raise ValueError(f"{folder} holds no {EXPERIMENT}; expected the folder of an experiment")
    try:
        return Experiment.model_validate(read_record(path))
    except ValidationError as error:
        raise ValueError(f"{path} is damaged: {error}; restore it") from error


def products(experiment: Experiment, piece: Piece) -> list[str]:
    """Return the names of the files in a finished piece's folder, except those that only serve to resume."""
    part = experiment_of(experiment, piece)
    stages = {"theta_0": part.theta_0, "query_theta_0": part.query_theta_0}
    if piece.kind in ("theta_0", "query_theta_0"):
        return ["theta_0.safetensors", *(["pretrain.csv"] if stages[piece.kind] else [])]
    if piece.kind == "forecast":
        return ["forecast.safetensors", "forecast.csv"]
    if piece.kind == "query":
        return ["agent.safetensors", "episodes.csv", *(["references.csv"] if part.query.references else [])]
    if piece.kind == "trial":
        return [*(f"result-{budget}.json" for budget in part.budgets), "requests.png"]
    return [{"reference": "result-0.json", "full": "result-full.json"}[piece.kind]]


def finish(experiment: Experiment, folder: Path, piece: Piece) -> None:
    """Record that a piece is finished, with checksums of its files."""
    piece_folder = folder / piece.name
    files = {name: file_digest(piece_folder / name) for name in (PIECE, *products(experiment, piece))}
    write_record(piece_folder / FINISHED, {"files": files, "code": code_version()})


def damage(experiment: Experiment, folder: Path, piece: Piece) -> dict[Path, str]:
    """Return what is wrong with the files of a finished piece, by file; empty if it is intact, or not finished."""
    piece_folder = folder / piece.name
    if not (piece_folder / FINISHED).exists():
        return {}
    try:
        noted = _noted(piece_folder)
    except ValueError as error:
        return {piece_folder / FINISHED: str(error)}
    if not {PIECE, *products(experiment, piece)} <= set(noted):
        return {piece_folder / FINISHED: f"{piece_folder / FINISHED} does not list the piece's files"}
    found = {}
    for name, digest in noted.items():
        path = piece_folder / name
        if not path.is_file():
            found[path] = f"{path} is missing"
        elif file_digest(path) != digest:
            found[path] = f"{path} is damaged: it is not what was written when its piece was finished"
    return found


def refuse_damage(experiment: Experiment, folder: Path, piece: Piece) -> None:
    """Raise a ValueError that names the files of a finished piece that are missing or damaged."""
    if problems := damage(experiment, folder, piece):
        raise ValueError(f"{'; '.join(problems.values())}. Run the experiment again to make it again")


def finished(experiment: Experiment, folder: Path, piece: Piece) -> bool:
    """Return whether a piece is finished and its files are intact."""
    return (folder / piece.name / FINISHED).exists() and not damage(experiment, folder, piece)


def set_aside(experiment: Experiment, folder: Path, piece: Piece) -> None:
    """Set aside the damaged or unreadable files of a piece, with a warning, so that they are made again."""
    piece_folder = folder / piece.name
    found = damage(experiment, folder, piece)
    for name in products(experiment, piece):
        if name.startswith("result-") and (piece_folder / name).is_file():
            try:
                read_result(piece_folder / name, *_of(piece))
            except ValueError as error:
                found.setdefault(piece_folder / name, str(error))
    for path, problem in found.items():
        warnings.warn(f"{problem}; it is made again", stacklevel=3)
        if path.exists():
            path.replace(path.with_suffix(".damaged"))
    if found:
        (piece_folder / FINISHED).unlink(missing_ok=True)


def status(experiment: Experiment, folder: str | Path) -> list[dict[str, Any]]:
    """Return a row per piece: its name, its state and its results.

    The states are ``finished``, ``damaged`` (finished, but its files have changed), ``begun``, ``waiting``.
    """
    rows = []
    for piece in pieces(experiment):
        piece_folder = Path(folder) / piece.name
        state = "finished" if (piece_folder / FINISHED).exists() else "begun" if piece_folder.exists() else "waiting"
        state = "damaged" if damage(experiment, Path(folder), piece) else state
        expected = [name for name in products(experiment, piece) if name.startswith("result-")]
        there = sum((piece_folder / name).is_file() for name in expected)
        rows.append({"piece": piece.name, "state": state, "results": f"{there}/{len(expected)}" if expected else ""})
    return rows


def gather(experiment: Experiment, folder: str | Path) -> Path:
    """Write ``results.csv`` from all stored results: a row per variant, method, seed and budget.

    Raises:
        ValueError: If the files of a finished piece are missing or damaged, or a result can't be read; they are named.
    """
    folder = Path(folder)
    rows: list[dict[str, Any]] = []
    references: dict[str, Mapping[str, Any]] = {}
    for piece in pieces(experiment):
        refuse_damage(experiment, folder, piece)
        paths = [folder / piece.name / name for name in products(experiment, piece) if name.startswith("result-")]
        results = [read_result(path, *_of(piece)) for path in paths if path.is_file()]
        if piece.kind == "reference":
            references.update(zip([piece.variant], results, strict=False))
            continue
        if piece.kind == "trial" and results and piece.variant in references:
            # theta_0 is where each curve begins.
            results.insert(0, {**references[piece.variant], "method": piece.method, "seed": piece.seed})
        rows += [result_row(piece.variant, result) for result in results]
    path = folder / RESULTS
    if rows:
        write_rows(path, rows)
    return path


def weights_of(folder: Path, found: Sequence[Piece]) -> dict[str, str | None]:
    """Return the checksum of each piece's weights, ``None`` if it is not finished and intact."""
    checksums: dict[str, str | None] = {}
    for piece in found:
        checksums[piece.name] = None
        with suppress(ValueError):
            for name, noted in _noted(piece_folder := folder / piece.name).items():
                if (
                    name.endswith(".safetensors")
                    and (piece_folder / name).is_file()
                    and file_digest(piece_folder / name) == noted
                ):
                    checksums[piece.name] = noted
    return checksums


def made_with(
    experiment: Experiment, piece: Piece, numerics: Mapping[str, Any], weights: Mapping[str, str | None]
) -> dict[str, Any]:
    """Return the settings of a piece, besides those that all pieces of an experiment share.

    Args:
        experiment: The experiment.
        piece: The piece.
        numerics: Precision and memory layout that all pieces compute in.
        weights: Checksums of the theta_0 and the agent that it needs (:func:`weights_of`).
    """
    plain = experiment.as_dict()
    variant = experiment.variants.get(piece.variant, Variant())
    shared = variant == Variant() or (not piece.variant and piece.kind in ("theta_0", "query_theta_0", "forecast"))
    method = plain["methods"].get(piece.method)
    if method is not None and not method["agent"]:  # pieces from before have no such entry, and are continued
        del method["agent"]
    return {
        "kind": piece.kind,
        "variant": None if shared else variant.model_dump(mode="json"),
        "method": method,
        "seed": piece.seed,
        "needs": {name: weights[name] for name in piece.needs},
        "numerics": dict(numerics),
    }


def claim(folder: Path, piece: Piece, content: Mapping[str, Any]) -> None:
    """Record a piece's settings in its folder.

    Raises:
        ValueError: If it was made with other settings.
    """
    check_piece(folder, piece, content)
    write_record(folder / piece.name / PIECE, {**content, "code": code_version()})


def check_piece(folder: Path, piece: Piece, content: Mapping[str, Any]) -> None:
    """Refuse a piece, begun or finished, that was made with other settings."""
    path = folder / piece.name / PIECE
    if not path.exists() or _is_damaged(path):
        return
    stored = {key: value for key, value in read_record(path).items() if key != "code"}
    if set(stored) != set(content):
        raise ValueError(
            f"{path} does not say what its piece was made with; restore it, or remove {path.parent} to run it again"
        )
    needs = content["needs"]
    if isinstance(known := stored.get("needs"), dict):  # compared if what is needed is finished now
        needs = {name: known.get(name) if digest is None else digest for name, digest in needs.items()}
    if (then := stored.get("numerics")) != content["numerics"]:
        raise ValueError(
            f"{folder / NUMERICS} holds {content['numerics']}, and {path.parent} was made with {then}; restore it"
        )
    refuse_differences(stored, {**content, "needs": needs}, path)


def refuse_differences(stored: Mapping[str, Any], here: Mapping[str, Any], path: Path) -> None:
    """Raise a ValueError that lists how a file's configuration differs from the current one, ignoring data paths."""
    differing = differences(without_places(stored), without_places(here))
    if differing:
        raise ValueError(
            f"{path} is of another configuration: {'; '.join(differing)}. Choose another folder, or return to that "
            "configuration"
        )


def _is_damaged(path: Path) -> bool:
    """Return whether a file differs from the record of its finished piece; it is then made again."""
    try:
        noted = _noted(path.parent)
    except ValueError:
        return False
    return path.name in noted and noted[path.name] != file_digest(path)


def _noted(piece_folder: Path) -> dict[str, str]:
    """Return the checksums of a finished piece's files, by name; empty if it is not finished."""
    if not (piece_folder / FINISHED).exists():
        return {}
    files = read_record(piece_folder / FINISHED).get("files")
    if not isinstance(files, dict):
        raise ValueError(f"{piece_folder / FINISHED} does not list the piece's files")
    return files


def without_places(value: Any) -> Any:
    """Return plain values without paths of the data, which may differ between machines."""
    if isinstance(value, Mapping):
        return {key: without_places(item) for key, item in value.items() if key != PLACE}
    return [without_places(item) for item in value] if isinstance(value, list) else value


@cache
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


def file_digest(path: Path) -> str:
    """Return a digest of a file's bytes."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
