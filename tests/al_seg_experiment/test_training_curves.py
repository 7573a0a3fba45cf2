"""The training of query agents in the report: returns by who was followed, and between variants."""

import numpy as np
import pytest
from experiments import TINY_EXPERIMENT as TINY
from scipy.stats import ttest_rel

from al_seg_experiment import load_experiment
from al_seg_experiment.report import report
from al_seg_experiment.report.sections import Document, training
from al_seg_experiment.report.tables import Table
from al_seg_experiment.report.training_curves import (
    COLUMNS,
    episodes_table,
    reference_returns,
    returns_between_variants,
    returns_by_followed,
)


def test_returns_are_told_apart_by_who_was_followed(tmp_path):
    """Mean and deviation by hand, of both halves of training."""
    experiment = load_experiment({**TINY, "methods": ["dqn"], "seeds": [0]})
    lines = ["1,2,1.0,uniform", "2,4,3.0,score_entropy", "3,6,2.0,uniform", "4,8,5.0,greedy", "5,10,7.0,greedy"]
    lines += ["6,12,1.5,uniform"]
    (tmp_path / "query" / "0").mkdir(parents=True)
    (tmp_path / "query" / "0" / "episodes.csv").write_text("\n".join(["episode,steps,return,followed", *lines]))
    episodes = episodes_table(experiment, tmp_path)
    assert returns_by_followed(episodes).rows == (
        ("-", "uniform", "1.50 ± 0.71 (n = 2)", "1.50 (n = 1)"),
        ("-", "entropy", "3.00 (n = 1)", None),
        ("-", "greedy", None, "6.00 ± 1.41 (n = 2)"),
    )
    out = Document(tmp_path / "report")
    training(out, episodes)
    assert "| - | greedy | - | 6.00 ± 1.41 (n = 2) |" in "".join(out.lines)
    assert (tmp_path / "report" / "figure_training.csv").read_text().splitlines()[2] == ",0,2,3.0000,entropy"
    assert not episodes_table(experiment, tmp_path / "none").rows
    training(out, Table(COLUMNS, ()))
    assert out.omitted == ["the training of the query agent: no agent has finished an episode"]


def test_rules_on_the_same_images_are_lines_beside_the_agents(tmp_path):
    experiment = load_experiment({**TINY, "methods": ["dqn"], "seeds": [0, 1]})
    for seed, returns in {0: (1.0, 2.0), 1: (6.0,)}.items():
        folder = tmp_path / "query" / str(seed)
        folder.mkdir(parents=True)
        (folder / "episodes.csv").write_text("episode,steps,return,followed\n1,2,4.0,greedy")
        lines = [f"entropy,{n},{value}" for n, value in enumerate(returns, 1)]
        (folder / "references.csv").write_text("\n".join(["method,episode,return", *lines]))
    references = reference_returns(experiment, tmp_path)
    assert references == {"": {"entropy": [1.0, 2.0, 6.0]}}
    out = Document(tmp_path / "report")
    training(out, episodes_table(experiment, tmp_path), references)
    assert "| - | the rule entropy | 3.00 ± 2.65 (n = 3) | - |" in "".join(out.lines)
    assert "Dashed: the mean return of rules" in "".join(out.lines)
    (folder / "references.csv").write_text("method,episode,return\nentropy,1,x")
    with pytest.raises(ValueError, match=r"references.csv is damaged .*remove it, and the heuristics play again"):
        reference_returns(experiment, tmp_path)


@pytest.mark.parametrize(
    "damaged",
    [
        "episode,return,followed\n1,2",
        "episode\n1",
        "episode,return\n1,x",
        "episode,return\n1",
        "episode,return\n1_0,2",
        "episode,return\n1,nan",
        'episode,return\n1,"2',
    ],
)
def test_damaged_episodes_are_named(tmp_path, damaged):
    experiment = load_experiment({**TINY, "methods": ["dqn"], "seeds": [0]})
    (tmp_path / "query" / "0").mkdir(parents=True)
    (tmp_path / "query" / "0" / "episodes.csv").write_text(damaged)
    with pytest.raises(ValueError, match=r"episodes.csv is damaged .*remove it"):
        episodes_table(experiment, tmp_path)


def test_the_training_of_variants_is_compared_seed_by_seed():
    """Against scipy: the means of each agent's second half, which begins after episode 2."""
    returns = np.random.default_rng(0).normal(size=(2, 3, 4))  # (variants, seeds, episodes)
    rows = [
        (variant, seed, episode + 1, value, "all")
        for variant, of_variant in zip(("paper", "huber"), returns, strict=True)
        for seed, of_seed in enumerate(of_variant)
        for episode, value in enumerate(of_seed)
    ]
    paper, huber = returns[:, :, 2:].mean(axis=2)
    p = ttest_rel(huber, paper).pvalue
    first, second = returns_between_variants(Table(COLUMNS, tuple(rows))).rows
    assert first[0] == "paper"
    assert second[:2] == ("huber", f"{huber.mean():.2f} ± {huber.std(ddof=1):.2f} (n = 3)")
    assert second[2].startswith(f"{(huber - paper).mean():+.2f} [")
    assert second[3:] == (f"{p:.4f}", f"{p:.4f}")
    assert not returns_between_variants(Table(COLUMNS, tuple(rows[:12]))).rows
    # The second half of a variant is that of its own training, and only the first variant is the reference.
    longer = [("long", seed, episode + 5, -1.0, "all") for seed in range(3) for episode in range(8)]
    longer += [("long", seed, episode + 1, 9.0, "all") for seed in range(3) for episode in range(4)]
    first, *_, last = returns_between_variants(Table(COLUMNS, (*rows, *longer))).rows
    assert (first[1], last[:2]) == (
        f"{paper.mean():.2f} ± {paper.std(ddof=1):.2f} (n = 3)",
        ("long", "-1.00 ± 0.00 (n = 3)"),
    )
    guided = [(*row[:4], "uniform") if row[0] == "paper" else row for row in rows]
    assert not returns_between_variants(Table(COLUMNS, tuple(guided))).rows


def test_the_training_beside_a_csv_file_of_results_is_drawn(tmp_path):
    """The same as in the report of an experiment's folder, whose figure_training.csv may lie there."""
    results = tmp_path / "results.csv"
    results.write_text("method,seed,budget,val_miou\ndqn,0,4,30\ndqn,1,4,31\n")
    assert "query agent" not in report(results, tmp_path / "without").read_text()
    episodes = "variant,seed,episode,return,followed\n,0,1,0.5,uniform\n,0,2,1.5,greedy\n,1,1,2.5,greedy\n"
    (tmp_path / "query_episodes.csv").write_text(episodes)
    (tmp_path / "query_references.csv").write_text("seed,method,episode,return\n0,rarity,1,0.75\n1,rarity,1,1.25\n")
    text = report(results, tmp_path / "with").read_text()
    assert "| - | greedy | 2.50 (n = 1) | 1.50 (n = 1) |" in text
    assert "| - | the rule rarity | 1.00 ± 0.35 (n = 2) | - |" in text
    drawn = tmp_path / "with" / "figure_training.csv"
    assert drawn.read_text().splitlines()[1:3] == [",0,1,0.5000,uniform", ",0,2,1.5000,greedy"]
    (tmp_path / "query_episodes.csv").write_text(episodes + ",0,x,1,greedy\n")
    with pytest.raises(ValueError, match=r"query_episodes.csv is damaged .*episode is 'x'"):
        report(results, tmp_path / "with")
