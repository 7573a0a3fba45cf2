"""Options that choose an environment, and mistakes that are one line."""

import json
from dataclasses import dataclass

import pytest

from al_seg_env.command_line import EnvironmentOptions, assignments, run


@dataclass(frozen=True)
class Options(EnvironmentOptions):
    """Count something."""

    count: int = 3
    """How many, in pieces."""
    size: tuple[int, int] | None = None
    """Height and width."""


def test_values_are_json_or_text():
    found = assignments(["a=1", "b=[1, 2]", "c=text", "d=", "e=x=y", 'f="1"'], "--set")
    assert found == {"a": 1, "b": [1, 2], "c": "text", "d": "", "e": "x=y", "f": "1"}
    for wrong in ("a", "=1", ""):
        with pytest.raises(ValueError, match=f"--set is '{wrong}'; expected NAME=VALUE"):
            assignments([wrong], "--set")
    assert assignments(["a=[1]-images"], "--set") == {"a": "[1]-images"}  # may be the name of a folder
    for wrong in ("a=[one]", "a={b: 1}", "a=['x']"):
        with pytest.raises(ValueError, match=r"--set is .*; a value in brackets must be JSON, with names in double"):
            assignments([wrong], "--set")


def test_arguments_take_precedence_over_the_file(tmp_path):
    file = tmp_path / "options.json"
    file.write_text(json.dumps({"images": 20, "budget": 4}))
    options = EnvironmentOptions(env_arg=("budget=8",), env_file=file)
    assert options.arguments == {"images": 20, "budget": 8}
    assert options.spec.id == "al_seg_env/SyntheticStreets-v0"
    assert options.spec.kwargs == {"images": 20, "budget": 8}


@pytest.mark.parametrize(("content", "message"), [("{", "can't be read"), ("[1]", "holds list; expected an object")])
def test_a_file_that_holds_no_arguments_is_named(tmp_path, content, message):
    file = tmp_path / "options.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=f"options.json {message}"):
        _ = EnvironmentOptions(env_file=file).arguments


def test_what_is_read_reaches_the_command():
    found = []
    argv = ["--env", "x/Y-v0", "--env-arg", "a=1", "--env-arg=b=[2, 3]", "--count", "5"]
    assert run(found.append, Options, argv) == 0
    assert found == [Options(env="x/Y-v0", env_arg=("a=1", "b=[2, 3]"), count=5)]
    assert found[0].arguments == {"a": 1, "b": [2, 3]}


def test_help_has_each_option_with_its_default(capsys):
    assert run(print, Options, ["--help"], prog="count") == 0
    text = capsys.readouterr().out
    assert "How many, in pieces. (default: 3)" in text
    assert text.startswith("usage: count")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--count", "many"], "Error parsing --count: invalid literal for int() with base 10: 'many'"),
        (["--count"], "Missing value for argument '--count'"),
        (["--cuont", "3"], "Unrecognized options: --cuont, 3"),
        (["stray"], "Unrecognized options: stray"),
        (["--size", "480"], "Error parsing --size: no type matching"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(argv, message, capsys):
    assert run(print, Options, argv, prog="count") == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"count: {message}")
    assert printed.err.count("\n") == 1
    assert "[bold]" not in printed.err
    assert not printed.out


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("a is 1;\n  expected 2"), "count: a is 1; expected 2"),
        (FileNotFoundError(2, "No such file", "x.json"), "count: [Errno 2] No such file: 'x.json'"),
        (ImportError("figures need matplotlib"), "count: figures need matplotlib"),
        (MemoryError(), "count: MemoryError"),
    ],
)
def test_a_mistake_that_is_found_later_is_one_line(error, line, capsys):
    def fail(options):
        raise error

    assert run(fail, Options, [], prog="count") == 2
    assert capsys.readouterr().err == f"{line}\n"


def test_what_is_no_mistake_of_the_users_is_not_hidden():
    def fail(options):
        raise KeyError("a defect")

    with pytest.raises(KeyError):
        run(fail, Options, [])


def test_an_interrupt_says_so(capsys):
    def fail(options):
        raise KeyboardInterrupt

    assert run(fail, Options, [], prog="count") == 130
    assert capsys.readouterr().err == "count: interrupted\n"
