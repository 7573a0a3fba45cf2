"""The array types and sizes that the packages share, each defined once."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Size: TypeAlias = tuple[int, int]
"""``(height, width)``, in pixels, or in rows and columns of regions."""

UInt8Array: TypeAlias = npt.NDArray[np.uint8]
IntArray: TypeAlias = npt.NDArray[np.int64]
FloatArray: TypeAlias = npt.NDArray[np.float32]

Observation: TypeAlias = dict[str, FloatArray]
"""An observation of :class:`~al_seg_env.env.RegionSelectionEnv`, by the keys of its space."""
