"""What the pages and docstrings say holds: examples run, links lead somewhere, and names exist."""

from __future__ import annotations

import doctest
import importlib.util
import inspect
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote

import gymnasium as gym
import pytest
import yaml
from experiments import TINY

import al_seg_env
from agents import SubActionDQN, UniformPolicy
from al_seg_env import EnvConfig, LearnerConfig, command_line
from al_seg_env.registration import camvid
from al_seg_experiment import cli, load_experiment, run
from al_seg_experiment.report.results import read_results

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("al_seg_env", "agents", "al_seg_experiment")
TRACKED = [
    ROOT / name
    for name in subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    ).stdout.splitlines()
    if (ROOT / name).is_file()
]
PAGES = [path for path in TRACKED if path.suffix == ".md"]
WRITTEN = [path for path in PAGES if "results" not in path.parts]  # by hand; the others are reports
SOURCES = [path for path in TRACKED if path.suffix in {".py", ".yaml", ".toml", ".md", ".json", ".cff", ".cfg"}]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module_of(path: Path) -> str:
    return name_of(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def fenced(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


# Docstrings


MODULES = [
    module_of(path)
    for path in TRACKED
    if path.suffix == ".py" and path.relative_to(ROOT).parts[0] in PACKAGES and ">>> " in path.read_text("utf-8")
]
# The pure functions, and what researchers add to: each public name there has an example.
EXPLAINED = ("functional", "metrics", "regions", "observation.features", "observation.scores")


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_give_what_they_show(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.mark.parametrize("name", EXPLAINED)
def test_each_public_function_and_class_has_an_example(name):
    module = importlib.import_module(f"al_seg_env.{name}")
    public = [
        member
        for member in vars(module).values()
        if (inspect.isfunction(member) or inspect.isclass(member))
        and member.__module__ == module.__name__
        and not member.__name__.startswith("_")
    ]
    assert public
    assert [member.__name__ for member in public if ">>> " not in (member.__doc__ or "")] == []


# Pages


BLOCK = re.compile(
    r"^<!-- run first:\n(?P<first>.*?)^-->$"
    r"|^<!-- not run: .+? -->\n+```python\n.*?^```$"
    r"|^```python\n(?P<shown>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)


def blocks(page: Path) -> Iterator[tuple[int, str]]:
    """Yield the Python of a page that is run, in order, each with the number of the line before it."""
    text = page.read_text(encoding="utf-8")
    for match in BLOCK.finditer(text):
        for group in ("first", "shown"):
            if match[group] is not None:
                yield text.count("\n", 0, match.start(group)), match[group]


@pytest.fixture
def tiny_streets(monkeypatch):
    """``SyntheticStreets-v0`` at toy size, so that the pages' code runs as it is written."""
    spec = gym.registry["al_seg_env/SyntheticStreets-v0"]
    monkeypatch.setattr(spec, "kwargs", {**spec.kwargs, **TINY})


@pytest.mark.parametrize("page", [page for page in WRITTEN if any(blocks(page))], ids=name_of)
def test_the_code_of_a_page_runs(page, tiny_streets, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__page__"}
    found = list(blocks(page))
    for line, code in found:
        exec(compile("\n" * line + code, str(page), "exec"), namespace)
    text = page.read_text(encoding="utf-8")
    marked = re.findall(r"^<!-- not run: .+? -->\n+```python$", text, re.MULTILINE)
    assert len(found) == len(re.findall(r"```python|<!-- run first:", text)) - len(marked), "a block was passed over"


@pytest.mark.slow
def test_the_experiment_of_the_guide_runs(tmp_path, monkeypatch):
    own = ModuleType("my_package.my_module")
    own.make_policy = lambda env, seed: UniformPolicy(seed)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_package", ModuleType("my_package"))
    monkeypatch.setitem(sys.modules, "my_package.my_module", own)
    (block,) = fenced(ROOT / "docs/guide/experiments.md", "yaml")
    shown = yaml.safe_load(block)
    small = {f"arguments.{name}": value for name, value in TINY.items() if name != "pool_size"}
    small |= {"arguments.images": 40, "arguments.splits.train": 8, "arguments.splits.eval": 16}  # pools of whole images
    small |= {"arguments.device": "cpu", "seeds": [0], "budgets": [2, 4], "full": False}
    small |= {"theta_0": [{"epochs": 1, "updates": 1}], "fit.max_epochs": 1, "fit.min_updates": 1}
    results = read_results(run(load_experiment(shown, small), tmp_path))
    assert set(results.variants) == set(shown["variants"])
    assert {(row.method, row.budget) for row in results.of_variant("whole images").rows} >= {
        (method, budget) for method in shown["methods"] for budget in shown["variants"]["whole images"]["budgets"]
    }


@dataclass(frozen=True)
class Nothing:
    """The options of a script that has none."""


FENCE = re.compile(r"^ *```(\w*)$")


def commands(page: Path) -> Iterator[list[str]]:
    """Yield the commands of a page's shell blocks as words, with values in the place of variables."""
    language, lines = None, []
    for line in page.read_text(encoding="utf-8").splitlines():
        if fence := FENCE.match(line):
            language = fence[1] if language is None else None
        elif language in ("", "bash", "sh"):
            lines.append(line)
    variables: dict[str, str] = {}
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        line = re.sub(r"\$(?:\{(\w+)[^}]*\}|(\w+))", lambda found: variables.get(found[1] or found[2], "value"), line)
        if found := re.fullmatch(r'(\w+)="(.*)"', line.strip()):
            variables[found[1]] = found[2]
        elif re.match(r"\s*(?:[A-Z_]+=\S+ +)*(?:al-seg-env|python|make)\b", line):
            yield shlex.split(re.sub(r"^\s*(?:[A-Z_]+=\S+ +)*", "", line), comments=True)


SHELL = {page: list(commands(page)) for page in WRITTEN}


@pytest.mark.parametrize("page", [page for page in WRITTEN if SHELL[page]], ids=name_of)
def test_the_commands_of_a_page_are_understood(page, monkeypatch, capsys):
    """Every option exists, and every value can be read; nothing is run."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")  # its scripts import each other
    monkeypatch.setattr(cli, "run", lambda _, *given, **named: command_line.run(lambda _: None, *given, **named))
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    refused = []
    for words in SHELL[page]:
        if words[0] == "make":
            understood = {word for word in words[1:] if "=" not in word} <= targets
        elif words[0] == "al-seg-env":
            understood = cli.main(words[1:]) == 0
        elif re.fullmatch(r"(?:examples|benchmarks)/\w+\.py", words[1]) and words[1] != "examples/zoo.py":
            spec = importlib.util.spec_from_file_location(f"documented_{Path(words[1]).stem}", ROOT / words[1])
            module = importlib.util.module_from_spec(spec)
            monkeypatch.setitem(sys.modules, spec.name, module)
            spec.loader.exec_module(module)
            understood = command_line.run(lambda _: None, getattr(module, "Options", Nothing), words[2:]) == 0
        else:
            continue
        if not understood:
            refused.append(f"{' '.join(words)}: {capsys.readouterr().err}")
    assert not refused


LINK = re.compile(r"\]\(\s*<?([^)\s>]+)")


def anchors(page: Path) -> set[str]:
    """Return what headings are linked by, as GitHub makes it of their text."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    broken = []
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = unquote(target).partition("#")
        found = (page.parent / path).resolve() if path else page
        if not found.exists() or (anchor and anchor not in anchors(found)):
            broken.append(target)
    assert not broken


def test_every_page_is_linked_from_another():
    linked = set()
    for page in WRITTEN:
        for target in LINK.findall(page.read_text(encoding="utf-8")):
            linked.add((page.parent / unquote(target).partition("#")[0]).resolve())
    assert [name_of(page) for page in WRITTEN if page not in linked and page.name not in {"README.md"}] == []


def test_files_that_are_named_exist():
    """Tests in the pages, pages in the sources, scripts in both."""
    tests = {path.name for path in TRACKED if path.name.startswith("test_")}
    missing = []
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        if path in WRITTEN:
            missing += [f"{name_of(path)}: {name}" for name in re.findall(r"\btest_\w+\.py", text) if name not in tests]
        if path.name != Path(__file__).name:
            named = re.findall(r"(?<![\w/.])(?:docs|examples|benchmarks)/[\w/]+\.(?:py|md|json|ya?ml)", text)
            missing += [f"{name_of(path)}: {name}" for name in named if not (ROOT / name).exists()]
    assert not missing


GONE = (
    "al_seg_files",
    "al_seg_env.experiment",
    "al_seg_env/experiment",
    "al_seg_env/networks",
    "export_sb3_zip",
    "import_sb3_zip",
)
TRANSLATED = (
    r"bit by bit",
    r"anew",
    r"(?:if|where it is|or) left out",
    r"asked for",
    r"\bdear\b",
    r"\bthe aim\b",
    r"\bbut for\b",
    r"tell(?:s|ing)? from",
)


def test_names_that_are_gone_are_not_mentioned():
    mentioned = [
        f"{name_of(path)}: {name}"
        for path in SOURCES
        if path.name != Path(__file__).name
        for name in GONE
        if name in path.read_text(encoding="utf-8")
    ]
    assert not mentioned


@pytest.mark.parametrize("page", WRITTEN, ids=name_of)
def test_pages_are_plain_english(page):
    text = " ".join(page.read_text(encoding="utf-8").split()).lower()
    assert [words for words in TRANSLATED if re.search(words, text)] == []


@pytest.mark.parametrize("page", WRITTEN, ids=name_of)
def test_lines_of_pages_wrap_at_100(page):
    text = re.sub(r"^```.*?^```|^<!--.*?-->", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    assert [line for line in text.splitlines() if len(line) > 100 and not line.startswith(("|", "!["))] == []


def test_the_readme_is_short_and_names_every_environment():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.count("\n") < 120
    assert set(re.findall(r"al_seg_env/\w+-v\d+", text)) == {name for name in gym.registry if "al_seg_env/" in name}


def test_the_guide_names_every_preset():
    text = (ROOT / "docs/guide/experiments.md").read_text(encoding="utf-8")
    presets = {path.stem for path in (ROOT / "al_seg_experiment/presets").glob("*.yaml")}
    assert {name for name in presets if f"`{name}`" not in text} == set()


def test_settings_that_are_named_exist():
    known = {field.name for kind in (EnvConfig, LearnerConfig) for field in fields(kind)}
    known |= {name for maker in (SubActionDQN, camvid) for name in inspect.signature(maker).parameters}
    for page in ("docs/paper/deviations.md", "docs/guide/features-and-scores.md"):
        rows = "\n".join(line for line in (ROOT / page).read_text("utf-8").splitlines() if line.startswith("|"))
        named = {name for code in re.findall(r"`([^`]+)`", rows) for name in re.findall(r"\b(\w+)=", code)}
        assert named
        assert named - known == set()


# Metadata


def test_the_version_has_one_source():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == al_seg_env.__version__ == version("al-seg-env")


def test_pre_commit_runs_the_ruff_of_make_check():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    (ruff,) = (repo for repo in config["repos"] if repo["repo"].endswith("/ruff-pre-commit"))
    assert f'"ruff=={ruff["rev"].removeprefix("v")}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
