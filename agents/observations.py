"""Types that several modules share."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy.typing as npt

Observation: TypeAlias = dict[str, npt.NDArray[Any]]
"""An observation of the environment, or a batch of them: arrays by name."""
