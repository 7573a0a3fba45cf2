"""The map of the project holds: which file may import which, and what a file may be called."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("al_seg_env", "agents", "al_seg_experiment")
SCRIPTS = ("benchmarks", "examples")
# The command line is the one that belongs to the whole project; it looks downwards from above everything.
ENTRY_POINT, ENTERED = "al_seg_env.__main__", "al_seg_experiment.cli"


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def base_of(statement: ast.ImportFrom, path: Path) -> str:
    """Return the absolute name of what follows ``from``."""
    if not statement.level:
        return statement.module or ""
    package = path.relative_to(ROOT).parts[: -statement.level]
    return ".".join([*package, *([statement.module] if statement.module else [])])


def imports(path: Path) -> Iterator[tuple[str, ast.stmt]]:
    """Yield the modules that a file imports, wherever in it: in functions and for the type checker, too."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node
        elif isinstance(node, ast.ImportFrom):
            base = base_of(node, path)
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield (inner if inner in FILES else base), node


def package_of(module: str) -> str:
    return module.partition(".")[0]


def is_within(module: str, parent: str) -> bool:
    return module == parent or module.startswith(f"{parent}.")


def test_no_circle_of_files():
    graph = {name: {module for module, _ in imports(path) if module in FILES} for name, path in FILES.items()}

    def reachable(start: str) -> set[str]:
        found, ahead = set(), [start]
        while ahead:
            new = graph[ahead.pop()] - found
            found |= new
            ahead.extend(new)
        return found

    assert [name for name in graph if name in reachable(name)] == []


def test_modules_that_are_imported_exist():
    """An installed copy of the project, or a stub that mypy lacks, must not hide that one is gone."""
    others = [path for folder in (*SCRIPTS, "tests") for path in sorted((ROOT / folder).rglob("*.py"))]
    missing = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in [*FILES.values(), *others]
        for module, _ in imports(path)
        if package_of(module) in PACKAGES and module not in FILES
    ]
    assert not missing


def test_packages_import_only_downwards():
    order = {package: height for height, package in enumerate(PACKAGES)}
    upwards = [
        f"{name} imports {module}"
        for name, path in FILES.items()
        for module, _ in imports(path)
        if order.get(package_of(module), -1) > order[package_of(name)]
        and not (name == ENTRY_POINT and is_within(module, ENTERED))
    ]
    assert not upwards


def test_the_entry_point_imports_the_command_line_only_when_it_is_run():
    path = FILES[ENTRY_POINT]
    functions = [node for node in ast.walk(parsed(path)) if isinstance(node, ast.FunctionDef)]
    inside = {id(node) for function in functions for node in ast.walk(function)}
    assert [module for module, node in imports(path) if is_within(module, ENTERED) and id(node) not in inside] == []


def test_agents_know_the_environment_by_its_spaces():
    known = [
        f"{name} imports {module}"
        for name, path in FILES.items()
        if package_of(name) == "agents"
        for module, _ in imports(path)
        if package_of(module) == "al_seg_env" and not is_within(module, "al_seg_env.storage")
    ]
    assert not known


def test_each_file_name_occurs_once():
    names = Counter(path.name for path in FILES.values() if path.stem not in {"__init__", "__main__"})
    assert [name for name, count in names.items() if count > 1] == []


def private_names(path: Path) -> Iterator[str]:
    """Yield the private names of other modules of the project that a file imports, or reads as ``module._name``."""
    modules = {}
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.ImportFrom) and package_of(base := base_of(node, path)) in PACKAGES:
            for alias in node.names:
                if is_private(alias.name):
                    yield f"{base}.{alias.name}"
                modules[alias.asname or alias.name] = f"{base}.{alias.name}"
        elif isinstance(node, ast.Import):
            modules.update({alias.asname: alias.name for alias in node.names if alias.asname})
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and is_private(node.attr):
            module = modules.get(node.value.id)
            if module in FILES:
                yield f"{module}.{node.attr}"


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def test_no_file_uses_the_private_names_of_another():
    others = [path for folder in (*SCRIPTS, "tests") for path in sorted((ROOT / folder).rglob("*.py"))]
    used = [
        f"{path.relative_to(ROOT)} uses {name}" for path in [*FILES.values(), *others] for name in private_names(path)
    ]
    assert not used


@pytest.mark.parametrize("folder", SCRIPTS)
def test_scripts_stand_alone(folder):
    """They share helper modules, but import neither the tests' helpers nor another script."""
    siblings = {path.stem: path for path in (ROOT / folder).glob("*.py")}
    foreign = {"tests", *SCRIPTS, *(path.stem for path in (ROOT / "tests").rglob("*.py"))}
    foreign |= {path.stem for other in SCRIPTS for path in (ROOT / other).glob("*.py")} - set(siblings)
    foreign |= {name for name, path in siblings.items() if is_script(path)}
    wrong = [
        f"{path.name} imports {module}"
        for path in siblings.values()
        for module in sorted({package_of(module) for module, _ in imports(path)} & foreign)
    ]
    assert not wrong


def is_script(path: Path) -> bool:
    return any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in parsed(path).body)
