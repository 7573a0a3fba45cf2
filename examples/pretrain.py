"""Train theta_0: the segmentation network is trained on other images first, then on D_T (section 4.1).

    python examples/pretrain.py --source-arg style=render                     # synthetic streets of two styles
    python examples/pretrain.py --env al_seg_env/CamVid-v0 --env-arg root=... # D_T alone

OUT/theta_0.safetensors has the weights: pass the file as `weights=`. OUT also has the mean IoU on D_R after each epoch
(pretrain.csv) and its curve (pretrain.png). If killed, run the same command to resume. `al-seg-env pretrain` has more
options.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from al_seg_env.command_line import Assignments, EnvironmentOptions, assignments, run
from al_seg_experiment import Stage, pretrain


@dataclass(frozen=True)
class Options(EnvironmentOptions):
    """The images to train on, and for how long."""

    source_arg: Assignments = ()
    """Argument of the environment of a first stage (style=render). Without any, there is no first stage."""
    images: Literal["train", "state"] = "train"
    """Images of the last stage: D_T or D_S."""
    epochs: int = 60
    """Most epochs of a stage."""
    out: Path = Path("runs/pretrain")
    """Folder of the results."""


def main(options: Options) -> None:
    stages = [Stage(images=options.images, epochs=options.epochs)]
    if options.source_arg:
        source = assignments(options.source_arg, "--source-arg")
        stages.insert(0, Stage(arguments=source, images="all", epochs=options.epochs))
    print("theta_0 is", pretrain(options.spec, stages, options.out))


if __name__ == "__main__":
    sys.exit(run(main, Options, description=__doc__))
