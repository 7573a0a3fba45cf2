"""Nested arrays and plain values as safetensors and json."""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save, save_file
from torch import Tensor

from al_seg_env.storage.atomic import replacing

FILE_FORMAT = "al-seg-env"
FILE_VERSION = 1
"""Version of the format of the files that :func:`save_tree` writes."""
_BIT_GENERATORS: dict[str, Callable[[np.random.SeedSequence], np.random.BitGenerator]] = {
    kind.__name__: kind
    for kind in (np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937, np.random.Philox, np.random.SFC64)
}
_SEED_FIELDS = ("entropy", "spawn_key", "pool_size", "n_children_spawned")


class PortableTree(dict[str, Any]):
    """A tree that is pickled as bytes, so that it can be sent to another process even if this one ends.

    By default, torch sends tensors as handles of shared memory or of files. These are gone if the sender ends, or
    closes them, before the receiver has opened them.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return _portable, (type(self), pack_tree(_PORTABLE, dict(self)))

    def __deepcopy__(self, memo: dict[int, Any]) -> PortableTree:
        return type(self)(copy.deepcopy(dict(self), memo))


_PORTABLE = "portable tree"


def _portable(kind: type[PortableTree], content: bytes) -> PortableTree:
    return kind(unpack_tree(_PORTABLE, content))


def save_tree(path: str | Path, kind: str, tree: Any) -> None:
    """Write a tree atomically.

    Args:
        path: The file.
        kind: Kind of the content, such as ``"environment state"``. :func:`load_tree` must be given the same kind.
        tree: Dicts, lists, tuples and deques of numbers, texts, booleans, ``None``, numpy arrays, numpy random
            generators and torch tensors. Tensors are loaded onto the CPU.

    Raises:
        TypeError: If the tree has anything else. The message says where.
        OSError: If the file cannot be written; an earlier file at ``path`` is unchanged.
    """
    tensors, metadata = _prepared(kind, tree)
    with replacing(path) as unfinished:
        try:
            save_file(tensors, unfinished, metadata)
        except SafetensorError as error:  # safetensors wraps errors of the operating system
            raise OSError(0, str(error)) from error


def pack_tree(kind: str, tree: Any) -> bytes:
    """Return the bytes of the file that :func:`save_tree` would write."""
    return save(*_prepared(kind, tree))


def unpack_tree(kind: str, content: bytes) -> Any:
    """Return the tree that :func:`pack_tree` packed, in this or another process of the same installation."""
    length = int.from_bytes(content[:8], "little")
    about = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["tree"])
    assert about["kind"] == kind
    return _decoded(json.loads(about["content"]), load(content))


class _Tensors(dict[str, Tensor]):
    """The arrays of a tree, by key. They are copied only where safetensors needs it: a replay is large."""

    def __init__(self) -> None:
        super().__init__()
        self._storages: set[int] = set()

    def add(self, tensor: Tensor) -> str:
        """Add a tensor, and return its key."""
        tensor = tensor.detach().cpu().contiguous()
        if tensor.untyped_storage().data_ptr() in self._storages:  # safetensors refuses tensors that share memory
            tensor = tensor.clone()
        self._storages.add(tensor.untyped_storage().data_ptr())
        self[key := f"{len(self):06d}"] = tensor
        return key


def _prepared(kind: str, tree: Any) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return a tree's tensors, which may share its memory, and the metadata with everything else."""
    tensors = _Tensors()
    content = json.dumps(_encoded(tree, tensors, "tree"), allow_nan=False)
    about = {"format": FILE_FORMAT, "version": FILE_VERSION, "kind": kind, "digest": _digest(content, tensors)}
    # A single entry, because safetensors writes several in an order that differs between runs.
    return tensors, {"tree": json.dumps({**about, "content": content})}


def load_tree(path: str | Path, kind: str) -> Any:
    """Read a file that :func:`save_tree` wrote. Nothing in the file is executed.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file is damaged, has another format, or is of another program, kind or version.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; expected a file with the {kind}")
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {}).get("tree", "{}"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, OverflowError, MemoryError, RecursionError) as error:
        raise ValueError(
            f"{path} is damaged, or not a file of this project ({error}); expected safetensors with the {kind}"
        ) from error
    about = about if isinstance(about, dict) else {}
    found = tuple(about.get(key) for key in ("format", "kind", "version"))
    if found != (FILE_FORMAT, kind, FILE_VERSION):
        raise ValueError(
            f"{path} holds {found[1]!r} of {found[0]!r}, version {found[2]}; expected {kind!r} of {FILE_FORMAT!r}, "
            f"version {FILE_VERSION}. Use the right file, or the version of al-seg-env that wrote this one"
        )
    content = about.get("content")
    if not isinstance(content, str) or about.get("digest") != _digest(content, tensors):
        raise ValueError(f"{path} is damaged: its content does not match its checksum; use an earlier or another copy")
    try:
        return _decoded(json.loads(content), tensors)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise ValueError(f"{path} is malformed ({type(error).__name__}: {error}); use another copy") from error


def tree_digest(tree: Any) -> str:
    """Return a digest of a tree's content, which is the same on all machines."""
    tensors = _Tensors()
    return _digest(json.dumps(_encoded(tree, tensors, "tree"), sort_keys=True), tensors)


def _digest(content: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.blake2b(content.encode(), digest_size=16)
    for key in sorted(tensors):
        tensor = tensors[key]
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if tensor.numel():  # no bytes are no view of an empty array
            digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _encoded(value: Any, tensors: _Tensors, where: str) -> Any:
    """Return a value as json, and add its arrays to ``tensors``."""

    def each(items: Any) -> list[Any]:
        return [_encoded(item, tensors, f"{where}[{i}]") for i, item in enumerate(items)]

    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"$float": str(value)}
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biuf":
        array = np.require(value, value.dtype.newbyteorder("="), ["C", "W"])  # as torch needs it
        return {"$scalar" if isinstance(value, np.generic) else "$array": tensors.add(torch.from_numpy(array))}
    if isinstance(value, Tensor):
        return {"$tensor": tensors.add(value)}
    if isinstance(value, np.random.Generator):
        bits = value.bit_generator
        seeds = {name: getattr(bits.seed_seq, name) for name in _SEED_FIELDS}
        return {"$generator": [type(bits).__name__, *each([bits.state, seeds])]}
    if type(value) is list:
        return each(value)
    if type(value) is tuple:
        return {"$tuple": each(value)}
    if isinstance(value, deque):
        return {"$deque": [each(value), value.maxlen]}
    if isinstance(value, Mapping):
        if all(type(key) is str and not key.startswith("$") for key in value):
            return {key: _encoded(item, tensors, f"{where}[{key!r}]") for key, item in value.items()}
        pairs = [(_encoded(k, tensors, where), _encoded(v, tensors, f"{where}[{k!r}]")) for k, v in value.items()]
        return {"$dict": pairs}
    raise TypeError(
        f"{where} is a {type(value).__name__}, which cannot be stored; expected numbers, texts, arrays, tensors, and "
        "lists and dicts of them"
    )


def _decoded(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_decoded(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) != 1 or not next(iter(value)).startswith("$"):
        return {key: _decoded(item, tensors) for key, item in value.items()}
    ((tag, inner),) = value.items()
    return _TAGS[tag](inner, tensors)


def _generator(inner: Any, tensors: Mapping[str, Tensor]) -> np.random.Generator:
    name, state, seeds = inner[0], _decoded(inner[1], tensors), _decoded(inner[2], tensors)
    bits = _BIT_GENERATORS[name](np.random.SeedSequence(**{field: seeds[field] for field in _SEED_FIELDS}))
    bits.state = state
    return np.random.Generator(bits)


_TAGS: dict[str, Callable[[Any, Mapping[str, Tensor]], Any]] = {
    "$float": lambda inner, _: float(inner),
    "$array": lambda inner, tensors: tensors[inner].numpy(),
    "$scalar": lambda inner, tensors: tensors[inner].numpy()[()],
    "$tensor": lambda inner, tensors: tensors[inner],
    "$generator": _generator,
    "$tuple": lambda inner, tensors: tuple(_decoded(inner, tensors)),
    "$deque": lambda inner, tensors: deque(_decoded(inner[0], tensors), inner[1]),
    "$dict": lambda inner, tensors: {_decoded(k, tensors): _decoded(v, tensors) for k, v in inner},
}
