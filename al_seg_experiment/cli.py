"""The console script ``al-seg-env`` and its commands."""

from __future__ import annotations

import contextlib
import inspect
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from pydantic import ValidationError
from tyro.conf import FlagCreatePairsOff, Positional, arg, subcommand

from agents import SubActionDQN
from al_seg_env import __version__
from al_seg_env.command_line import Assignments, EnvironmentOptions, assignments, run
from al_seg_env.datasets import SegmentationData
from al_seg_env.labelling.label_studio import LabelStudioOracle
from al_seg_env.labelling.oracles import LabelsPending
from al_seg_env.labelling.page.desk import Desk, page_is_installed
from al_seg_env.storage.validation import check_choice
from al_seg_experiment.evaluation import evaluate
from al_seg_experiment.experiment import Experiment, Stage
from al_seg_experiment.exporting import export
from al_seg_experiment.label_session import NETWORK_OPTIONS, TOOLS, LabelSession, SessionSettings
from al_seg_experiment.policies import AGENT_SUFFIX
from al_seg_experiment.pretraining import pretrain
from al_seg_experiment.query_training import CHECKPOINTS, train_agent
from al_seg_experiment.reading import described, load_experiment
from al_seg_experiment.records import EXPERIMENT, read_experiment, status
from al_seg_experiment.report import report
from al_seg_experiment.runner import run as run_experiment
from al_seg_experiment.sharing import push, share
from al_seg_experiment.suggesting import suggest

Flag = FlagCreatePairsOff[bool]
PROGRAM = "al-seg-env"
DESCRIPTION = "Active learning for image segmentation. With --version alone, print the version."
GIVEN = {"policy", "env", "seed", "epsilon", "_init_setup_model"}
"""Arguments of the agent that other options set."""


LAST_LOOK = 4.0
"""Seconds for the labelling page to learn that the session is done."""


def say(text: object) -> None:
    """Write a line of a command's result."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


@dataclass(frozen=True)
class ExperimentOptions:
    """Options that all commands on an experiment share."""

    file: Annotated[Positional[str], arg(metavar="FILE")]
    """YAML, JSON or TOML file, the name of a preset, such as synthetic_small, or the folder of a started experiment."""
    out: Annotated[Path | None, arg(metavar="PATH")] = None
    """Folder for the results; runs/NAME if omitted."""
    set: Assignments = ()
    """Change an entry of the file, its value as JSON or plain text (arguments.root=data/camvid, seeds=[0,1])."""

    def load(self) -> tuple[Experiment, Path]:
        """Return the experiment and its folder."""
        folder = Path(self.file)
        if (folder / EXPERIMENT).is_file() and self.out is None and not self.set:
            return read_experiment(folder), folder
        experiment = load_experiment(self.file, assignments(self.set, "--set"))
        return experiment, self.out or Path("runs") / experiment.name


@dataclass(frozen=True)
class Run(ExperimentOptions):
    """Run or resume an experiment, then write its report."""

    ray: Annotated[str | None, arg(metavar="ADDRESS")] = None
    """Distribute the pieces with Ray: "local" starts it on this machine; otherwise the address of a cluster."""

    def __call__(self) -> None:
        """Run the command."""
        experiment, out = self.load()
        run_experiment(experiment, out, self.ray)
        say(report(out))


@dataclass(frozen=True)
class Status(ExperimentOptions):
    """Show each piece of an experiment and its state."""

    def __call__(self) -> None:
        """Run the command."""
        rows = status(*self.load())
        width = max(len(row["piece"]) for row in rows)
        for row in rows:
            say(f"{row['piece']:{width}}  {row['state']:9}{row['results']}")
        say(f"{sum(row['state'] == 'finished' for row in rows)} of {len(rows)} pieces finished")


@dataclass(frozen=True)
class Report(ExperimentOptions):
    """Write tables and figures from the stored results, or from any results.csv."""

    def __call__(self) -> None:
        """Run the command."""
        if self.file.endswith(".csv"):
            if self.set:
                raise ValueError(f"--set is for an experiment, and {self.file} holds results; omit it")
            say(report(self.file, self.out))
        else:
            say(report(self.load()[1]))


@dataclass(frozen=True)
class Pretrain(EnvironmentOptions):
    """Train theta_0: the segmentation network on images whose labels are known before active learning begins.

    The paper pretrains on a synthetic data set (GTA5), then on D_T (section 4.1). OUT/theta_0.safetensors holds the
    weights: use them with --env-arg weights=OUT/theta_0.safetensors. If killed, run the same command to resume.
    """

    images: Literal["train", "state", "none"] = "train"
    """Images of the last stage: D_T, D_S, or none to omit this stage."""
    source_env: Annotated[str | None, arg(metavar="ID")] = None
    """Id of the environment whose images a first stage trains on; that of --env if omitted."""
    source_arg: Assignments = ()
    """Argument of that environment, overriding those of --env (style=render). Without this and --source-env, there
    is no first stage."""
    source_images: Literal["all", "train", "state", "eval"] = "all"
    """Images of the first stage: all except D_R and the test set, D_T, D_S, or D_V."""
    epochs: int = 60
    """Most epochs of a stage."""
    patience: int = 10
    """Epochs without a better mean IoU on D_R before a stage ends."""
    updates: int = 10
    """Fewest updates per epoch."""
    batch_size: int = 16
    """Training crops per update."""
    learning_rate: Annotated[float | None, arg(metavar="FLOAT")] = None
    """Learning rate (SGD); the environment's if omitted."""
    seed: int = 0
    """Seed of the order, crops and flips of the images."""
    out: Path = Path("runs/pretrain")
    """Folder for the results."""

    def __call__(self) -> None:
        """Run the command."""
        settings: dict[str, Any] = {
            "epochs": self.epochs,
            "patience": self.patience,
            "updates": self.updates,
            "batch_size": self.batch_size,
            "learning_rate": self.learning_rate,
        }
        stages = []
        first = self.source_env is not None or self.source_arg
        if not first and self.source_images != "all":
            raise ValueError(f"--source-images is {self.source_images}, but no first stage: give --source-arg")
        if first:
            source = assignments(self.source_arg, "--source-arg")
            stages.append({"env": self.source_env, "arguments": source, "images": self.source_images, **settings})
        if self.images != "none":
            stages.append({"images": self.images, **settings})
        if not stages:
            raise ValueError("nothing to train on: give --source-arg, or --images train or state")
        say(pretrain(self.spec, list(map(_stage, stages)), self.out, seed=self.seed))


def _stage(entries: dict[str, Any]) -> Stage:
    """Return a stage of pretraining; mistakes are reported like those in an experiment's file."""
    try:
        return Stage.model_validate(entries)
    except ValidationError as error:
        raise ValueError("; ".join(described(error, entries))) from None


@dataclass(frozen=True)
class Train(EnvironmentOptions):
    """Train the paper's query agent, SubActionDQN, on D_T (section 3.2).

    After every episode OUT holds the agent (agent.safetensors), the episodes so far (episodes.csv), the learning curve
    (episodes.png) and a checkpoint.
    """

    episodes: int = 20
    """Total number of episodes."""
    seed: int = 0
    """Seed of agent and environment."""
    policy: Literal["QueryPolicy", "CandidatePolicy"] = "QueryPolicy"
    """The paper's query network, or a small one that only sees candidates."""
    learning_rate: float = 1e-3
    """Learning rate of the query network (SGD)."""
    buffer_size: int = 600
    """Capacity of the replay, in decomposed transitions."""
    batch_size: int = 16
    """Decomposed transitions per gradient step."""
    gradient_steps: int = 1
    """Gradient steps per environment step."""
    gamma: float = 0.99
    """Discount factor per environment step."""
    n_steps: int = 1
    """Rewards (environment steps) that a target sums before it bootstraps."""
    td_target: Literal["paper", "van_hasselt"] = "paper"
    """Which network chooses the next action: the target network (paper), or the query network."""
    loss: Literal["squared", "huber"] = "squared"
    """Loss between value and target."""
    exploration: Literal["sub_action", "step", "episode"] = "sub_action"
    """What explores together: each sub-action by itself, all of a step, or all of an episode."""
    guides: tuple[str, ...] = ("uniform",)
    """What exploration follows: uniform, or a score such as score_entropy (with --env-arg 'scores=["entropy"]')."""
    epsilon_steps: Annotated[int | None, arg(metavar="INT")] = None
    """Environment steps over which the exploration rate falls from 1 to 0.05; if omitted, the released code's
    schedule."""
    agent_arg: Assignments = ()
    """Another argument of the agent, see SubActionDQN (train_freq=2)."""
    references: tuple[str, ...] = ()
    """Heuristics, such as uniform and entropy, that play five episodes each before training, as lines in the learning
    curve."""
    envs: int = 1
    """Number of parallel environments; if more than one, each runs in its own process."""
    checkpoint_every: Annotated[int | None, arg(metavar="INT")] = None
    """Environment steps between checkpoints. If omitted, one episode, or more where writing them would take more than
    a twentieth of the time."""
    tensorboard: Annotated[Path | None, arg(metavar="PATH")] = None
    """Folder of TensorBoard logs; none are written if omitted."""
    resume: Flag = False
    """Resume from the newest checkpoint in OUT, as if training had not been interrupted."""
    out: Path = Path("runs/train")
    """Folder for the results."""

    @property
    def settings(self) -> dict[str, Any]:
        """The agent's arguments.

        Raises:
            ValueError: If one of --agent-arg is unknown, or has an option of its own.
        """
        named = {
            "epsilon_steps": self.epsilon_steps,
            "learning_rate": self.learning_rate,
            "buffer_size": self.buffer_size,
            "batch_size": self.batch_size,
            "gradient_steps": self.gradient_steps,
            "gamma": self.gamma,
            "n_steps": self.n_steps,
            "td_target": self.td_target,
            "loss": self.loss,
            "exploration": self.exploration,
            "guides": self.guides,
            "tensorboard_log": None if self.tensorboard is None else str(self.tensorboard),
        }
        others = assignments(self.agent_arg, "--agent-arg")
        arguments = {*inspect.signature(SubActionDQN).parameters, "learning_rate_decay"} - GIVEN
        if wrong := [name for name in others if name not in arguments - {*named}]:
            known = sorted(arguments - {*named})
            hint = "it has an option of its own" if wrong[0] in named else f"known are {', '.join(known)}"
            raise ValueError(f"--agent-arg has {wrong[0]!r}; {hint}")
        return {**named, **others}

    def __call__(self) -> None:
        """Run the command."""
        if self.resume and not any((self.out / CHECKPOINTS).glob("checkpoint-*")):
            say(f"{self.out} holds no checkpoint; the training starts from its beginning")
        agent = train_agent(
            self.spec,
            self.out,
            episodes=self.episodes,
            seed=self.seed,
            resume=self.resume,
            envs=self.envs,
            checkpoint_every=self.checkpoint_every,
            policy=self.policy,
            references=self.references,
            **self.settings,
        )
        say(agent)


@dataclass(frozen=True)
class Evaluate(EnvironmentOptions):
    """Compare policies: acquire on D_V to each budget, train to convergence, test (section 4.1), and report.

    OUT holds results.csv, with a row for each policy, seed and budget, and report/REPORT.md with the paper's figures,
    tables and significance tests. Run again after a kill, or with more policies and seeds, it runs only what is
    missing.
    """

    policies: tuple[str, ...] = ("uniform", "entropy", "bald")
    """Policies: uniform, entropy, bald, margin, ripu, rarity_entropy; rare and greedy, which use the ground truth;
    NAME=path/to/agent.safetensors; NAME=module:function."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds: one trial of each policy per seed."""
    budgets: tuple[int, ...] = (96, 192)
    """Budgets in regions labelled; multiples of K, except for the largest one."""
    full: int = 0
    """Number of seeds, from the first, with which to also train on all labels of D_V, for the line of full
    supervision."""
    epochs: int = 40
    """Most epochs of a training to convergence."""
    patience: int = 8
    """Epochs without a better mean IoU on D_R before it ends."""
    updates: int = 8
    """Fewest updates per epoch."""
    batch_size: int = 32
    """Training crops per update."""
    fit_arg: Assignments = ()
    """Another setting of the training to convergence, see FitSettings (updates=300, fits=3: three fits of 300 updates
    from theta_0, averaged)."""
    out: Path = Path("runs/evaluate")
    """Folder for the results."""

    def __call__(self) -> None:
        """Run the command."""
        results = evaluate(
            self.spec, self.policies, self.out, seeds=self.seeds, budgets=self.budgets, fit=self.fit, full=self.full
        )
        say(report(results))

    @property
    def fit(self) -> dict[str, Any]:
        """The settings of the training to convergence.

        Raises:
            ValueError: If one of --fit-arg has an option of its own, or makes one of the options useless.
        """
        others = assignments(self.fit_arg, "--fit-arg")
        options = {"batch_size": "batch_size", "patience": "patience", "max_epochs": "epochs", "min_updates": "updates"}
        if twice := [name for name in others if name in options]:
            raise ValueError(f"--fit-arg has {twice[0]!r}; it has an option of its own, --{options[twice[0]]}")
        if others.get("updates") is not None:  # no epochs, and no early stopping
            options = {"batch_size": "batch_size"}
            for name in ("epochs", "patience", "updates"):
                if getattr(self, name) != getattr(type(self), name):
                    raise ValueError(f"--{name} is for epochs, and --fit-arg updates=... trains without; omit it")
        return {**{name: getattr(self, option) for name, option in options.items()}, **others}


@dataclass(frozen=True)
class Images:
    """Options for images without labels, or with labels of some, and for the network."""

    images: Annotated[Positional[Path], arg(metavar="IMAGES")]
    """Folder of the images, which may have sub-folders; or of the folders images and masks."""
    classes: Annotated[Path, arg(metavar="PATH")]
    """JSON file with the classes: ["road", ...] or {"classes": [{"name": "road", "color": [128, 64, 128]}, ...]}."""
    out: Path
    """Folder for the results."""
    masks: Annotated[Path | None, arg(metavar="PATH")] = None
    """Folder of the masks of those images that have one."""
    image_size: Annotated[tuple[int, int] | None, arg(metavar="HEIGHT WIDTH")] = None
    """Size that the network sees; if omitted, 512 pixels on the longer side."""
    set: Assignments = ()
    """An option of the environment or the network (architecture=Light, region_size=[128,128],
    encoder_weights=encoder.safetensors)."""

    def settings(self, **others: Any) -> SessionSettings:
        """Return the settings of a labelling session of these images."""
        return SessionSettings(
            images=str(self.images.resolve()),
            classes=str(self.classes.resolve()),
            masks=None if self.masks is None else str(self.masks.resolve()),
            image_size=self.image_size,
            options=assignments(self.set, "--set"),
            **others,
        )


@dataclass(frozen=True)
class Label(Images):
    """Label what matters most: a policy selects regions, people label them, the network trains on them, and so on.

    Run again, it continues where it stopped. OUT holds requests and answers (labels), and the network after the last
    step; al-seg-env export OUT writes masks and network.
    """

    tool: str | None = None
    """What people label with: page (in the browser; the default where the extra "page" is installed), folder (pictures
    in OUT/labels/requests, masks into OUT/labels/answers), cvat (zips in OUT/labels), or label-studio."""
    label_studio: Annotated[str | None, arg(metavar="URL")] = None
    """Label with the Label Studio at this address; set its access token in the environment, LABEL_STUDIO_API_KEY."""
    wait: Flag = False
    """Wait for labels instead of exiting when some are needed. The page always waits."""
    host: str = "127.0.0.1"
    """Address on which the page listens. If other machines can reach it, the page requires a token."""
    port: int = 8765
    """Port of the page; 0 for any free one."""
    token: Annotated[str | None, arg(metavar="TEXT")] = None
    """Token needed to use the page; generated if one is required and none is given."""
    policy: str = "entropy"
    """What selects the regions: entropy, margin, bald, ripu, uniform, or a trained agent (agent.safetensors)."""
    budget: int = 200
    """Total number of regions to label; may be raised later."""
    regions_per_step: int = 8
    """Regions requested at once."""
    reward_images: int = 0
    """If no image is labelled: number of images in which a random region is labelled first, to measure the mean IoU
    on."""
    seed: int = 0
    """Seed of splits, pools and training."""

    def __call__(self) -> None:
        """Run the command."""
        if self.tool is not None:
            check_choice("tool", self.tool, ("page", *TOOLS))
        self._refuse_idle()
        is_file = self.policy.endswith(AGENT_SUFFIX) and "=" not in self.policy
        settings = self.settings(
            policy=str(Path(self.policy).resolve()) if is_file else self.policy,
            budget=self.budget,
            regions_per_step=self.regions_per_step,
            reward_images=self.reward_images,
            seed=self.seed,
        )
        session = LabelSession(self.out, settings)
        try:
            if self.label_studio is not None:
                session.run(partial(LabelStudioOracle.from_environment, url=self.label_studio), wait=self.wait)
            elif self._tool == "page":
                self._on_page(session)
            else:
                session.run(self._tool, wait=self.wait)
        except LabelsPending as pending:
            say(f"{pending.told}; then run the same command again")
            return
        say(f"the budget is spent; al-seg-env export {self.out} writes masks and network")

    @property
    def _tool(self) -> str:
        if self.label_studio is not None:
            return "label-studio"
        return self.tool or ("page" if page_is_installed() else "folder")

    def _refuse_idle(self) -> None:
        """Refuse options that the tool does not use."""
        if self.label_studio is not None and self.tool not in (None, "label-studio"):
            raise ValueError(f"--label-studio is given, and --tool is {self.tool}; omit one of them")
        for name in ("host", "port", "token"):
            if self._tool != "page" and getattr(self, name) != getattr(type(self), name):
                raise ValueError(f"--{name} is for the labelling page, and the tool is {self._tool}; omit it")

    def _on_page(self, session: LabelSession) -> None:
        if not page_is_installed():
            raise ImportError('the labelling page needs more packages: pip install "al-seg-env[page]"')
        from al_seg_env.labelling.page.server import PageServer

        with contextlib.ExitStack() as serving:

            def opened(data: SegmentationData, folder: Path) -> Desk:
                desk = Desk(data, folder)
                page = serving.enter_context(PageServer(desk, self.host, self.port, self.token))
                say(f"label at {page.address} (Ctrl-C stops; run the same command to resume)")
                return desk

            session.run(opened, wait=True)
            time.sleep(LAST_LOOK)


@dataclass(frozen=True)
class Suggest(Images):
    """Rank the regions of unlabelled images once, and write the top ones as a list and a picture.

    Images that have a mask are not ranked.
    """

    policy: Annotated[str, arg(aliases=("--score",))] = "entropy"
    """What ranks the regions: entropy, margin, bald, ripu, or a trained agent (agent.safetensors)."""
    count: int = 200
    """Most regions to list."""
    per_image: Annotated[int | None, arg(metavar="INT")] = None
    """Most regions to list per image."""
    weights: Annotated[Path | None, arg(metavar="PATH")] = None
    """Weights of the network; scores of a network not trained on these classes say little."""
    cache: Annotated[Path | None, arg(metavar="PATH")] = None
    """Folder for decoded images and features, which later runs reuse."""

    def __call__(self) -> None:
        """Run the command."""
        options = {**NETWORK_OPTIONS, **(given := assignments(self.set, "--set"))}
        for name, path in {"weights": self.weights, "cache": self.cache}.items():
            if path is not None:
                if name in given:
                    raise ValueError(f"--{name} and --set {name}=... are both given; omit one of them")
                options[name] = str(path)
        by = "agent" if self.policy.endswith(AGENT_SUFFIX) else "score"
        choice: dict[str, Any] = {by: self.policy}
        self.settings().check_out(self.out)
        data = self.settings().data()
        say(suggest(data, self.out, **choice, count=self.count, per_image=self.per_image, options=options))


@dataclass(frozen=True)
class Export:
    """Write the labels of a session as masks at the images' full size, and the network."""

    session: Annotated[Positional[Path], arg(metavar="DIR")]
    """Folder of the session: OUT of al-seg-env label."""
    format: str = "png"
    """png, coco (run lengths), cvat ("Segmentation mask 1.1"), or label-studio (tasks to import)."""
    predictions: Flag = False
    """Fill unlabelled pixels with the network's prediction."""
    out: Annotated[Path | None, arg(metavar="PATH")] = None
    """Folder for the results; DIR/export if omitted."""

    def __call__(self) -> None:
        """Run the command."""
        out = self.session / "export" if self.out is None else self.out
        session = LabelSession(self.session)
        session.settings.check_out(out)
        say(export(session, out, format=self.format, predictions=self.predictions))


@dataclass(frozen=True)
class Share(EnvironmentOptions):
    """Write an agent, a theta_0 or both into a folder with a model card, in the layout of the Hugging Face Hub.

    theta_0 is set with --env-arg weights=PATH. Read and edit the card, OUT/README.md, before you publish it.
    """

    licence: str = tyro.MISSING
    """Identifier of the licence, such as mit or cc-by-nc-4.0; the licence of the images may limit the choice."""
    agent: Annotated[Path | None, arg(metavar="PATH")] = None
    """File of the agent, agent.safetensors."""
    results: Annotated[Path | None, arg(metavar="PATH")] = None
    """The results.csv of an evaluation, to show on the card."""
    title: str | None = None
    """Title of the card; the name of OUT if omitted."""
    about: str = ""
    """More about the training data, as markdown."""
    out: Path = Path("runs/share")
    """Folder for the results; it must not exist, or be empty."""

    def __call__(self) -> None:
        """Run the command."""
        say(
            share(
                self.spec,
                self.out,
                licence=self.licence,
                agent=self.agent,
                results=self.results,
                title=self.title,
                about=self.about,
            )
        )


@dataclass(frozen=True)
class Push:
    """Upload a folder of al-seg-env share to the Hugging Face Hub; log in first, with hf auth login.

    Set HF_ENDPOINT in the environment to use another server.
    """

    folder: Annotated[Positional[Path], arg(metavar="DIR")]
    """The folder."""
    repository: Annotated[Positional[str], arg(metavar="OWNER/NAME")]
    """The model repository, which is created if it does not exist."""
    private: Flag = False
    """Make a newly created repository private."""
    message: str = "Upload"
    """Message of the commit."""

    def __call__(self) -> None:
        """Run the command."""
        say(push(self.folder, self.repository, private=self.private, message=self.message))


ExperimentCommand = (
    Annotated[Run, subcommand("run")]
    | Annotated[Status, subcommand("status")]
    | Annotated[Report, subcommand("report")]
)
Command = (
    Annotated[
        ExperimentCommand,
        subcommand("experiment", description="Run an experiment from a file, show its progress, or write its report."),
    ]
    | Annotated[Pretrain, subcommand("pretrain")]
    | Annotated[Train, subcommand("train")]
    | Annotated[Evaluate, subcommand("evaluate")]
    | Annotated[Label, subcommand("label")]
    | Annotated[Suggest, subcommand("suggest")]
    | Annotated[Export, subcommand("export")]
    | Annotated[Share, subcommand("share")]
    | Annotated[Push, subcommand("push")]
)


def main(argv: Sequence[str] | None = None, *, prog: str = PROGRAM) -> int:
    """Run the console script; return the exit status."""
    given = _with_ray_address(argv)
    if given == ["--version"]:
        sys.stdout.write(f"al-seg-env {__version__}\n")
        return 0
    return run(_call, Command, given, prog=prog, description=DESCRIPTION)


def experiment_main(argv: Sequence[str] | None = None, *, prog: str = "python -m al_seg_experiment") -> int:
    """Run a command on an experiment; return the exit status."""
    return run(_call, ExperimentCommand, _with_ray_address(argv), prog=prog)


def _call(command: Any) -> None:
    command()


def _with_ray_address(argv: Sequence[str] | None) -> list[str]:
    """Return the arguments with ``local`` after a ``--ray`` that no address follows."""
    given = list(sys.argv[1:] if argv is None else argv)
    return [
        part
        for item, following in zip(given, [*given[1:], "-"], strict=False)
        for part in ([item, "local"] if item == "--ray" and following.startswith("-") else [item])
    ]
