"""An extension of griffe: docstrings in the style of Sphinx become Markdown, as mkdocstrings reads it."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|func|meth|mod|data|attr):`(~?)([\w.]+)`")
GROUPED = re.compile(r"^( +)(\w+(?:,\s+\w+)+): (.+)$", re.MULTILINE)
EXAMPLE = re.compile(r"^( *)>>> .*\n(?:\1\S.*(?:\n|\Z))*", re.MULTILINE)
ELSEWHERE = ("gymnasium", "torch")


class SphinxStyle(griffe.Extension):
    """Turn roles into cross-references, examples into blocks of code, and ``a, b: text`` into an entry each."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Rewrite the docstrings of a package and all that is in it."""
        found: list[griffe.Object | griffe.Alias] = [pkg]
        while found:
            item = found.pop()
            if item.docstring is not None:
                item.docstring.value = as_markdown(item.docstring.value)
            found += [member for member in item.members.values() if not member.is_alias]


def as_markdown(docstring: str) -> str:
    """Return a docstring in Markdown."""
    text = ROLE.sub(_reference, docstring)
    text = GROUPED.sub(_entries, text)
    text = EXAMPLE.sub(_block, text + "\n")
    return re.sub(r"::$", ":", text, flags=re.MULTILINE)


def _reference(match: re.Match[str]) -> str:
    target = match[2]
    shown = target.rpartition(".")[2] if match[1] else target
    return f"`{shown}`" if target.split(".")[0] in ELSEWHERE else f"[`{shown}`][{target}]"


def _entries(match: re.Match[str]) -> str:
    return "\n".join(f"{match[1]}{name}: {match[3]}" for name in re.split(r",\s+", match[2]))


def _block(match: re.Match[str]) -> str:
    return f"{match[1]}```pycon\n{match[0]}{match[1]}```\n"
