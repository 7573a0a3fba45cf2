"""Make theta_0: train the segmentation network on images whose labels are known before active learning begins.

The paper pretrains on a synthetic data set (GTA5), then on D_T (section 4.1). ``--source-arg`` names the former
as another configuration of the environment, ``--images`` the latter:

    python examples/pretrain.py --source-arg style=render --images none     # synthetic streets, second style
    python examples/pretrain.py --env al_seg_env/CamVid-v0 --env-arg root=... --images train

The weights are written to ``OUT/theta_0.safetensors``; pass them as ``weights=``. Beside them lie the validation
mean IoU after every epoch (csv) and its curve (png).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
from common import environment_parser, make_environment, plot_lines

from al_seg_env import RegionSelectionEnv, save_weights
from al_seg_env.datasets.frames import Frames
from al_seg_env.learner.fitting import Fit, FitSettings, evaluate, fit_to_convergence
from al_seg_env.regions import RegionGrid
from al_seg_env.storage import write_csv


def main(argv: Sequence[str] | None = None) -> None:
    parser = environment_parser(__doc__ or "", out="pretrain")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--images", choices=("train", "state", "none"), default="train", help="D_T, D_S or neither")
    parser.add_argument(
        "--source-arg", action="append", default=[], metavar="NAME=VALUE", help="environment of a first stage"
    )
    parser.add_argument("--epochs", type=int, default=60, help="at most so many per stage")
    parser.add_argument("--patience", type=int, default=10, help="epochs without a gain before a stage ends")
    parser.add_argument("--updates", type=int, default=10, help="updates per epoch, at least")
    parser.add_argument("--batch-size", type=int, default=16, help="crops per update")
    args = parser.parse_args(argv)

    env: RegionSelectionEnv = make_environment(args).unwrapped  # type: ignore[assignment]
    settings = FitSettings(env.config.crop_size, args.batch_size, args.patience, args.epochs, args.updates)
    rng = np.random.default_rng(args.seed)
    stages: dict[str, Fit] = {}
    if args.source_arg:
        args.env_arg += args.source_arg
        source: RegionSelectionEnv = make_environment(args).unwrapped  # type: ignore[assignment]
        images = [*source.splits.train, *source.splits.eval]
        stages["source"] = fit_on(env, source.frames, images, settings, rng, "source")
    if args.images != "none":
        stages[args.images] = fit_on(env, env.frames, getattr(env.splits, args.images), settings, rng, args.images)
    if not stages:
        parser.error("nothing to train on: give --source-arg, or --images train or state")

    save_weights(env.learner, args.out / "theta_0.safetensors", env.data.classes)
    rows = [
        {"stage": stage, "epoch": epoch, "validation_miou": round(miou, 4), "kept": epoch == fit.best_epoch}
        for stage, fit in stages.items()
        for epoch, miou in enumerate(fit.history)
    ]
    write_csv(args.out / "pretrain.csv", rows)
    lines = {stage: (range(len(fit.history)), fit.history) for stage, fit in stages.items()}
    plot_lines(args.out / "pretrain.png", lines, "epoch", "mean IoU on D_R (%)", "Pretraining of theta_0")
    final = evaluate(env.learner, env.frames, env.splits.reward)
    print(f"mean IoU on D_R: {final.miou:.2f} %; wrote {args.out / 'theta_0.safetensors'}")


def fit_on(
    env: RegionSelectionEnv,
    frames: Frames,
    images: Sequence[int],
    settings: FitSettings,
    rng: np.random.Generator,
    title: str,
) -> Fit:
    """Train on whole labelled images; early stopping looks at D_R of the environment itself."""
    whole = RegionGrid(env.grid.image_size, env.grid.image_size)
    if frames is env.frames:
        validation = env.splits.reward
    else:  # the images of another data set are validated on the target's, so both must be at hand
        frames = joined(frames, images, env.frames, env.splits.reward)
        images, validation = range(len(images)), range(len(images), len(images) + len(env.splits.reward))
    return fit_to_convergence(
        env.learner, frames, whole, images, frames.mask, validation, settings, rng, progress=title
    )


def joined(a: Frames, of_a: Sequence[int], b: Frames, of_b: Sequence[int]) -> Frames:
    """Return the images of two data sets of the same classes, one after another."""
    from al_seg_env import ArrayData

    pairs = [(frames.image(i).numpy(), frames.mask(i)) for frames, of in ((a, of_a), (b, of_b)) for i in of]
    return Frames(ArrayData([image for image, _ in pairs], [mask for _, mask in pairs], a.data.classes))


if __name__ == "__main__":
    main()
