"""The notebooks run from the first cell to the last, at toy size."""

from __future__ import annotations

import json
from pathlib import Path

import gymnasium as gym
import matplotlib
import matplotlib.pyplot as plt
import pytest
from experiments import TINY

import al_seg_env  # noqa: F401  (registers the environments)

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_something(path, tmp_path, monkeypatch, capsys):
    spec = gym.registry["al_seg_env/SyntheticStreets-v0"]
    monkeypatch.setattr(spec, "kwargs", {**spec.kwargs, **TINY})
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")  # Jupyter runs a notebook in its folder
    namespace: dict[str, object] = {"__name__": "__notebook__"}
    with matplotlib.rc_context({"backend": "Agg", "figure.max_open_warning": 0}):
        for number, cell in enumerate(json.loads(path.read_text("utf-8"))["cells"]):
            if cell["cell_type"] == "code":
                exec(compile("".join(cell["source"]), f"{path.name}, cell {number}", "exec"), namespace)
        drawn = any(figure.axes for figure in map(plt.figure, plt.get_fignums()))
        assert drawn or capsys.readouterr().out
        plt.close("all")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_without_outputs_and_opens_in_colab(path):
    cells = json.loads(path.read_text("utf-8"))["cells"]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)
    assert f"colab.research.google.com/github/al-seg-env/al-seg-env/blob/main/notebooks/{path.name}" in str(cells[0])
