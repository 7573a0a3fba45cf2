"""The console script ``al-seg-env``, and ``python -m al_seg_env``, which is the same."""

from __future__ import annotations

import sys
from pathlib import Path


def main() -> int:
    """Run the console script; return the exit status.

    The commands belong to ``al_seg_experiment``, which depends on this package. Nothing else here imports it.
    """
    prog = "python -m al_seg_env" if Path(sys.argv[0]).name == "__main__.py" else "al-seg-env"
    sys.path.append("")  # the current folder: policies and environments of one's own are named as module:name
    try:
        from al_seg_experiment.cli import main as console_script
    except ImportError as error:  # a package that only al_seg_experiment needs
        sys.stderr.write(f"{prog}: {error}\n")
        return 2
    return console_script(prog=prog)


if __name__ == "__main__":
    sys.exit(main())
