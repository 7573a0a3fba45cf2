"""The documentation site is built without a warning, and its reference holds every public name."""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import pytest

import al_seg_env  # noqa: F401  (registers the environments)

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("al_seg_env", "agents", "al_seg_experiment")
FILES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
PAGES = {path.stem: path.read_text("utf-8") for path in (ROOT / "docs/environments").glob("*.md")}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


@pytest.mark.slow
def test_the_reference_holds_every_public_class_and_function(site):
    public = set()
    for path in FILES:
        if not path.name.startswith("_"):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            nodes = ast.parse(path.read_text("utf-8")).body
            defined = [node.name for node in nodes if isinstance(node, (ast.ClassDef, ast.FunctionDef))]
            public |= {f"{module}.{name}" for name in defined if not name.startswith("_")}
    anchors = {
        anchor
        for page in (site / "reference").glob("*.html")
        for anchor in re.findall(r'id="([\w.]+)"', page.read_text("utf-8"))
    }
    assert len(public) > 200
    assert public - anchors == set()


def test_the_reference_links_all_that_a_package_exports(site):
    for path in FILES:
        if path.name == "__init__.py":
            package = ".".join(path.parent.relative_to(ROOT).parts)
            page = (site / "reference" / f"{package}.html").read_text("utf-8")
            linked = set(re.findall(r'<a class="autorefs[^>]*><code>(\w+)</code></a>', page))
            assert set(getattr(importlib.import_module(package), "__all__", ())) - linked == set()


def test_docstrings_are_markdown_by_the_time_they_are_shown(site):
    left = [
        f"{page.name}: {found}"
        for page in (site / "reference").glob("*.html")
        for found in re.findall(r":(?:class|func|meth|mod|data|attr):<?\S*", page.read_text("utf-8"))
    ]
    assert not left


def test_nothing_is_loaded_from_elsewhere(site):
    loaded = {
        address
        for page in site.rglob("*.html")
        for tag in re.findall(r"<(?:script|img|link)\b[^>]*>", page.read_text("utf-8"))
        if 'rel="canonical"' not in tag
        for address in re.findall(r'(?:src|href)="(https?://[^"]+)"', tag)
    }
    assert not loaded


def test_every_environment_has_a_page():
    made = {name: text for name, text in PAGES.items() if name != "index"}
    ids = {name for name in gym.registry if name.startswith("al_seg_env/")}
    assert {re.findall(r'gymnasium\.make\("([^"]+)"', text)[0] for text in made.values()} == ids
    for name in ids:
        assert name in PAGES["index"]
    for text in made.values():
        assert re.findall("^## (.+)$", text, re.MULTILINE)[:5] == [
            "Description", "Arguments", "Observation space", "Starting state", "Version history",
        ]  # fmt: skip


def test_the_page_of_the_streets_states_their_spaces_and_defaults():
    env = gym.make("al_seg_env/SyntheticStreets-v0")
    shapes = {key: str(env.observation_space[key].shape) for key in ("state", "candidates", "similarity")}
    text = PAGES["synthetic_streets"]
    assert f"`Dict({', '.join(f'{key}=Box{shape}' for key, shape in shapes.items())})`" in text
    assert f"`MultiDiscrete([{env.action_space.nvec[0]}] * {len(env.action_space.nvec)})`" in text
    assert f"| {len(env.unwrapped.data.classes)} | 24 x 32 | 16 | 8 | {env.unwrapped.config.budget} |" in PAGES["index"]
