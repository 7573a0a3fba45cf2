"""``python -m al_seg_experiment run|status|report FILE``: the commands of ``al-seg-env experiment``."""

from __future__ import annotations

import sys

from al_seg_experiment.cli import experiment_main as main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
