"""Hooks of mkdocs: the reference is made of the packages, links that leave ``docs/`` lead to the repository."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PACKAGES = ("al_seg_env", "agents", "al_seg_experiment")
LINK = re.compile(r"\[([^\]]*)\]\(<?([^)\s>#]+)")


def on_config(config: Any) -> Any:
    """Write the package's version at the foot of each page."""
    version = re.search(r'__version__ = "(.+)"', (ROOT / "al_seg_env/__init__.py").read_text("utf-8"))
    assert version
    config.copyright = f"al-seg-env {version[1]}, MIT licence"
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add a page of the reference for each package: what it exports, then its modules, one after another."""
    for package in PACKAGES:
        for init in sorted((ROOT / package).rglob("__init__.py")):
            name = init.parent.relative_to(ROOT).as_posix().replace("/", ".")
            files.append(File.generated(config, f"reference/{name}.md", content=reference_page(name, init)))
    return files


def reference_page(package: str, init: Path) -> str:
    """Return the Markdown of a package's page, which mkdocstrings fills from the docstrings."""
    modules = [path.stem for path in sorted(init.parent.glob("*.py")) if not path.stem.startswith("_")]
    exported = [f"[`{name}`][{package}.{name}]" for name in exports(init)]
    only_docstring = "    options: {members: false, show_root_toc_entry: false, show_root_heading: false}"
    parts = [f"# {package}", f"::: {package}\n{only_docstring}"]
    if exported:
        parts.append(f"`from {package} import`: {', '.join(exported)}")
    parts += [f"::: {package}.{module}\n    options: {{show_root_full_path: true}}" for module in modules]
    return "\n\n".join(parts) + "\n"


def exports(init: Path) -> list[str]:
    """Return ``__all__`` of a package, without importing it."""
    for node in ast.parse(init.read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return list(ast.literal_eval(node.value))
    return []


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Point links to modules at the reference, and those to folders and other files outside of ``docs/`` at the
    repository."""
    folder = (DOCS / page.file.src_uri).parent

    def moved(match: re.Match[str]) -> str:
        text, link = match[1], match[2]
        target = (folder / unquote(link)).resolve()
        inside = target.is_relative_to(DOCS) and not target.is_dir()
        if re.match(r"[a-z]+:", link) or inside or not target.exists():
            return match[0]
        path = target.relative_to(ROOT)
        if path.suffix == ".py" and path.parts[0] in PACKAGES:
            up = "../" * (len(Path(page.file.src_uri).parts) - 1)
            return f"[{text}]({up}reference/{'.'.join(path.parent.parts)}.md#{_anchor(path, text.strip('`'))}"
        kind = "tree" if target.is_dir() else "blob"
        return f"[{text}]({config.extra['social'][0]['link']}/{kind}/main/{path.as_posix()}"

    return LINK.sub(moved, markdown)


def _anchor(path: Path, name: str) -> str:
    """Return the anchor of a class or function of a module, or of the module."""
    module = ".".join(path.with_suffix("").parts)
    defined = re.search(rf"^(?:class|def) {re.escape(name)}\b", (ROOT / path).read_text("utf-8"), re.MULTILINE)
    return f"{module}.{name}" if defined else module
