"""Shared parts of all commands: options that choose an environment, and error messages of one line.

The console script, the examples and the benchmarks declare their options as dataclasses, read by tyro.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import gymnasium as gym
import tyro
from gymnasium.envs.registration import EnvSpec
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from al_seg_env.env import RegionSelectionEnv
from al_seg_env.registration import environment_spec, make_again, make_wrapped

logger = logging.getLogger(__name__)

Options = TypeVar("Options")
Assignments = Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE"), tyro.conf.UseAppendAction]
"""The type of an option that may be repeated, each time with ``NAME=VALUE``."""

_TYPES = ConstructorRegistry()
"""Rules for reading values that replace tyro's own."""

_MARKUP = re.compile(r"\[([a-z ]+)\](.*?)\[/\1\]")
"""Text in rich's markup, such as ``[bold]INT INT[/bold]``, which tyro leaves in some messages."""

USER_ERRORS = (ValueError, OSError, ImportError, FloatingPointError, MemoryError, gym.error.Error)
"""Exceptions that users' mistakes raise in this package. Their messages say how to correct the mistake."""
WRONG_USE, INTERRUPTED = 2, 130


@dataclass(frozen=True)
class EnvironmentOptions:
    """Options that choose an environment; a command adds its own in a subclass."""

    env: Annotated[str, tyro.conf.arg(metavar="ID")] = "al_seg_env/SyntheticStreets-v0"
    """Id of a registered environment."""
    env_arg: Assignments = ()
    """Argument of the environment, its value as JSON or plain text (root=data/camvid, image_size=[180,240])."""
    env_file: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """JSON file with arguments of the environment; those of --env-arg take precedence."""

    @property
    def spec(self) -> EnvSpec:
        """The specification of the chosen environment."""
        return environment_spec(self.env, **self.arguments)

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of the chosen environment.

        Raises:
            ValueError: If an option is malformed, or the file is not a JSON object.
        """
        chosen = {} if self.env_file is None else _read_object(self.env_file)
        return {**chosen, **assignments(self.env_arg, "--env-arg")}

    def make(self, **arguments: Any) -> gym.Env:
        """Make the chosen environment, with further arguments over the chosen ones."""
        return make_wrapped(self.spec, **arguments)

    def make_unwrapped(self, **arguments: Any) -> RegionSelectionEnv:
        """Make the chosen environment without gymnasium's wrappers."""
        return make_again(self.spec, **arguments)


@_TYPES.primitive_rule
def _path(kind: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Path] | None:
    """Refuse an empty text, which comes from unset shell variables and which Path takes for the current folder."""

    def read(given: list[str]) -> Path:
        if not given[0]:
            raise ValueError("the path is empty")
        return Path(given[0])

    if kind.type is not Path:
        return None
    return PrimitiveConstructorSpec(1, "PATH", read, lambda value: isinstance(value, Path), lambda path: [str(path)])


def assignments(items: Iterable[str], option: str) -> dict[str, Any]:
    """Return the values in ``NAME=VALUE`` items, read as JSON, or as plain text if they are not JSON.

    >>> assignments(["root=data/camvid", "image_size=[180, 240]"], "--env-arg")
    {'root': 'data/camvid', 'image_size': [180, 240]}

    Raises:
        ValueError: If an item has no name, or its value is in brackets and not JSON; the message names the ``option``.
    """
    values: dict[str, Any] = {}
    for item in items:
        name, separator, value = item.partition("=")
        if not (name and separator):
            raise ValueError(f"{option} is {item!r}; expected NAME=VALUE")
        try:
            values[name] = json.loads(value)
        except (json.JSONDecodeError, RecursionError) as error:
            if (value[:1], value[-1:]) in (("[", "]"), ("{", "}")):  # a list of bare names would be taken for a text
                raise ValueError(
                    f"{option} is {item!r}; a value in brackets must be JSON, with names in double quotes and the "
                    f'whole in single ones: \'{name}=["one", "two"]\' ({error})'
                ) from error
            values[name] = value
    return values


def run(
    action: Callable[[Options], object],
    options: Any,
    argv: Sequence[str] | None = None,
    *,
    prog: str | None = None,
    description: str | None = None,
) -> int:
    """Parse the command line, run the command, and return the exit status.

    A user's mistake, found while parsing or later, gives one line on stderr and the status 2.

    Args:
        action: Called with the options.
        options: A dataclass, or a union of dataclasses for subcommands.
        argv: The command line's arguments; the process's own if omitted.
        prog: Name of the program in messages; the script's name if omitted.
        description: First text of ``--help``; the docstring of ``options`` if omitted.
    """
    prog = prog or Path(sys.argv[0]).name
    messages = io.StringIO()
    try:
        with contextlib.redirect_stderr(messages):
            chosen = tyro.cli(options, prog=prog, args=argv, description=description, registry=_TYPES)
    except SystemExit as stop:
        if stop.code:
            sys.stderr.write(f"{prog}: {_one_line(messages.getvalue())}\n")
            return WRONG_USE
        return 0
    except BrokenPipeError:  # the reader of --help, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left would fail at the exit
        return 0
    try:
        action(chosen)
    except USER_ERRORS as error:
        logger.debug("the command failed", exc_info=True)
        error = getattr(error, "cause", None) or error  # Ray wraps it with a whole traceback
        sys.stderr.write(f"{prog}: {' '.join(str(error).split()) or type(error).__name__}\n")
        return WRONG_USE
    except KeyboardInterrupt:
        sys.stderr.write(f"{prog}: interrupted\n")
        return INTERRUPTED
    return 0


def _one_line(box: str) -> str:
    """Return the message in tyro's box of several lines, between the title and the next horizontal rule."""
    lines = [line.strip("│ ") for line in box.splitlines() if line.strip("│ ") and not line.startswith("╰")]
    below_title = 1 if box.startswith("╭") else 2  # without box-drawing characters, the title is ruled off, too
    message = itertools.takewhile(lambda line: set(line) - set("─-"), lines[below_title:])
    return _MARKUP.sub(r"\2", " ".join(" ".join(message).split()))


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"--env-file {path} can't be read: {error}; expected JSON") from error
    if not isinstance(content, dict):
        found = type(content).__name__
        raise ValueError(f"--env-file {path} holds {found}; expected an object of environment arguments")
    return content
