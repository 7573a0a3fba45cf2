import csv
import itertools
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from scipy.stats import ttest_rel

from al_seg_experiment.report import report
from al_seg_experiment.report.analysis import class_share_table
from al_seg_experiment.report.figures import styles
from al_seg_experiment.report.method_comparison import (
    comparison_table,
    needed_table,
    penalty_table,
    saved_table,
    untested,
    verdict_table,
)
from al_seg_experiment.report.results import HEURISTICS, read_results
from al_seg_experiment.report.tables import Table, markdown, pivot, write_csv

CLASSES = ("road", "traffic light", "car")
METHODS = ("uniform", "entropy", "dqn")


def make_rows(methods=METHODS, seeds=range(3), budgets=(0, 48, 96), variants=(None,), full=True):
    """Return rows of made-up results, as texts by column."""
    rng = np.random.default_rng(0)
    rows = []
    for variant, method, seed, budget in itertools.product(variants, methods, seeds, budgets):
        miou = 40 + budget / 20 * (1 + len(method) / 10) + (rng.normal() if budget else 0)
        rows.append(make_row(method, seed, budget, miou, variant, rng.multinomial(budget * 100, [0.7, 0.2, 0.1])))
    if full:
        rows += [make_row("full", seed, 5000, 60 + seed, "" if variants[0] else None, ("", "", "")) for seed in seeds]
    return rows


def make_row(method, seed, budget, miou, variant=None, asked=(0, 0, 0)):
    row = {"method": method, "seed": seed, "budget": budget, "val_miou": miou, "test_miou": miou - 5}
    for split, (i, name) in itertools.product(("val", "test"), enumerate(CLASSES)):
        row[f"{split}_iou_{name}"] = "" if split == "test" and i == 1 else min(99, miou + 10 * (1 - i))
    row.update({f"asked_{name}": n for name, n in zip(CLASSES, asked, strict=True)})
    return row if variant is None else {"variant": variant, **row}


def write(path, rows, leave_out=""):
    kept = [{key: value for key, value in row.items() if not re.match(leave_out or "$", key)} for row in rows]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(kept[0]))
        writer.writeheader()
        writer.writerows(kept)
    return path


def texts(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".png"}


def records(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(autouse=True)
def nothing_is_drawn(request, monkeypatch):
    """Drawing takes most of a report's time; only ``whole``, made before this, and the tests of variants draw."""
    if "variant" not in request.node.name:
        monkeypatch.setattr(FigureCanvasAgg, "print_png", lambda *_, **__: None)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a report on everything; read-only."""
    folder = tmp_path_factory.mktemp("whole")
    return report(write(folder / "results.csv", make_rows()), folder / "out").parent


def test_everything_is_there(whole):
    pictures = {
        f"{name}_{split}"
        for name in ("figure_4", "table_1", "area", "verdict", "penalties")
        for split in ("val", "test")
    }
    pictures |= {"figure_3", "figure_C1"}
    tables = pictures | {
        f"{name}_{split}" for name in ("comparisons", "labels_needed", "saved") for split in ("val", "test")
    }
    expected = {f"{name}.png" for name in pictures} | {f"{name}.{end}" for name in tables for end in ("csv", "md")}
    assert {path.name for path in whole.iterdir()} == {"REPORT.md", *expected}


def test_pictures_open_and_are_not_blank(whole):
    pictures = list(whole.glob("*.png"))
    assert pictures
    for path in pictures:
        with Image.open(path) as image:
            colours = image.convert("RGB").getcolors(image.width * image.height)
        assert min(image.size) > 300
        assert len(colours) > 20, path


def test_links_of_the_report_lead_to_its_files(whole):
    text = (whole / "REPORT.md").read_text()
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert {path.name for path in whole.iterdir()} == {"REPORT.md", *links}
    assert str(whole.parent) not in "".join(path.read_text() for path in whole.glob("*.[cm]*"))


def test_report_says_what_its_numbers_are(whole):
    text = (whole / "REPORT.md").read_text()
    for words in ("mean ± standard deviation", "paired t-test", "Wilcoxon", "Holm", "n = 3 seeds", "| dqn | 3 |"):
        assert words in text
    assert "Omitted" not in text


def test_numbers_of_figure_4(whole):
    values = [row["val_miou"] for row in make_rows() if (row["method"], row["budget"]) == ("dqn", 96)]
    row = next(r for r in records(whole / "figure_4_val.csv") if (r["method"], r["budget"]) == ("dqn", "96"))
    assert row["mean"] == f"{np.mean(values):.4f}"
    assert row["std"] == f"{np.std(values, ddof=1):.4f}"
    assert [row[f"seed_{seed}"] for seed in range(3)] == [f"{value:.4f}" for value in values]
    assert f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}" in (whole / "figure_4_val.md").read_text()
    assert "61.00 ± 1.00 (n = 3); 96 % of it (dashed line): 58.56" in (whole / "REPORT.md").read_text()


def test_classes_a_split_lacks_are_left_out(whole):
    assert {r["class"] for r in records(whole / "table_1_val.csv")} == {*CLASSES, "mIoU"}
    assert {r["class"] for r in records(whole / "table_1_test.csv")} == {"road", "car", "mIoU"}


@pytest.mark.parametrize(("variants", "figure"), [((None,), "both"), (("1H", "3H+KL"), "val_miou")])
def test_same_rows_give_the_same_bytes(tmp_path, variants, figure):
    rows = make_rows(variants=variants)
    one = report(write(tmp_path / "results.csv", rows), tmp_path / "one", figure=figure)
    shuffled = np.random.default_rng(1).permutation(len(rows))
    other = report(write(tmp_path / "other.csv", [rows[i] for i in shuffled]), tmp_path / "two", figure=figure)
    assert texts(one.parent) == texts(other.parent)


def test_one_seed_makes_no_test_possible(tmp_path):
    path = report(write(tmp_path / "results.csv", make_rows(seeds=[3])), tmp_path / "out")
    text = path.read_text()
    # 2 budgets and the area, 2 methods, 2 references
    assert "**No test is possible in 12 of 12 comparisons: the two methods share fewer than 2 seeds.**" in text
    assert "a single seed, so without deviations" in text
    assert "nan" not in "".join(path.read_text() for path in path.parent.glob("*.[cm]*"))
    table = records(path.parent / "comparisons_val.csv")
    assert {r["t_p"] for r in table} == {r["ci_low"] for r in table} == {""}
    assert all(r["n"] == "1" and float(r["difference"]) for r in table)


def test_unequal_seeds_are_paired_by_what_both_have(tmp_path):
    rows = [
        row for row in make_rows(seeds=range(4)) if (row["method"], row["seed"]) not in (("dqn", 0), ("entropy", 3))
    ]
    rows = [row for row in rows if (row["method"], row["seed"], row["budget"]) != ("dqn", 1, 96)]
    path = report(write(tmp_path / "results.csv", rows), tmp_path / "out")
    table = {
        (r["compared_with"], r["budget"], r["method"]): r["n"] for r in records(path.parent / "comparisons_val.csv")
    }
    assert table["uniform", "48", "dqn"] == "3"
    assert table["uniform", "96", "dqn"] == "2"
    assert table["uniform", "area", "dqn"] == "2"
    assert "(n = 2)" in (path.parent / "figure_4_val.md").read_text()
    assert "n = 2 to 4 seeds" in path.read_text()


@pytest.mark.parametrize(
    ("leave_out", "missing", "reason"),
    [
        ("asked_", {"figure_3", "figure_C1"}, "no columns `asked_<class>`"),
        ("val_iou_", {"table_1_val"}, "no columns `val_iou_<class>`"),
        ("test_miou", {"figure_4_test", "table_1_test", "area_test"}, "no column `test_miou`"),
        (".*_iou_|asked_|test_", {"table_1_val", "figure_3", "figure_4_test"}, "no columns `val_iou_<class>`"),
    ],
)
def test_missing_optional_columns(tmp_path, leave_out, missing, reason):
    path = report(write(tmp_path / "results.csv", make_rows(), leave_out), tmp_path / "out")
    there = {p.stem for p in path.parent.iterdir()}
    assert not missing & there
    assert "figure_4_val" in there
    assert reason in path.read_text().split("## Omitted")[1]


def test_one_budget_without_full_supervision(tmp_path):
    path = report(write(tmp_path / "results.csv", make_rows(budgets=(48,), full=False)), tmp_path / "out")
    left_out = path.read_text().split("## Omitted")[1]
    assert "areas under the budget curve" in left_out
    assert "no rows of the method `full`" in left_out
    assert "≤" in (path.parent / "labels_needed_val.md").read_text()
    assert (path.parent / "figure_4_val.png").exists()


def test_variants(tmp_path):
    variants = ("K=2", "K=12", "a/b", "A b", "a b")
    path = report(write(tmp_path / "results.csv", make_rows(variants=variants)), tmp_path / "out", figure="val_miou")
    there = {p.name for p in path.parent.iterdir()}
    of_variants = [name for name in there if re.match("figure_4_val_.*png", name)]
    assert len({name.lower() for name in of_variants}) == 5
    assert {"table_E_val.png", "table_E_val.csv", "figure_E_val.png", "figure_E_val.md"} <= there
    assert "| method | A b | K=2 | K=12 | a b | a/b |" in path.read_text()
    assert path.read_text().count("Full supervision (solid line)") == 5  # given once, without a variant


def test_variants_whose_regions_differ_in_size_are_compared_at_their_last_budgets(tmp_path):
    rows = make_rows(variants=("regions",), full=False) + make_rows(variants=("images",), budgets=(0, 2, 4), full=False)
    path = report(write(tmp_path / "results.csv", rows), tmp_path / "out", figure="val_miou")
    text = path.read_text()
    assert re.search(r"by variant at the last budget \((regions: 96, images: 4|images: 4, regions: 96)\), n = 3", text)
    rows = records(path.parent / "table_E_val.csv")
    last = [r for r in rows if (r["variant"], r["budget"]) in {("regions", "96"), ("images", "4")}]
    shown = text.split("Last budgets")[1].split("\n\n")[1]
    for method in METHODS:
        (line,) = (line for line in shown.splitlines() if line.startswith(f"| {method} |"))
        assert [f"{float(r['mean']):.2f}" for r in last if r["method"] == method] == re.findall(r"([\d.]+) ±", line)


def test_variants_are_compared_seed_by_seed(tmp_path):
    """Against scipy, on rows in random order; each variant's theta_0 (budget 0) is omitted."""
    rng = np.random.default_rng(0)
    miou = {variant: rng.normal(70, 1, 5) for variant in ("paper", "huber", "step")}
    rows = [make_row("dqn", s, 24, miou[v][s], v) for v in miou for s in range(5)]
    rows += [make_row("dqn", s, 0, 60, v) for v in miou for s in range(5)]
    rng.shuffle(rows)
    path = report(write(tmp_path / "results.csv", rows), tmp_path / "out", against_variant="paper")
    found = {r["variant"]: r for r in records(path.parent / "comparisons_E_val.csv")}
    assert found.keys() == {"huber", "step"}
    p = {name: ttest_rel(miou[name], miou["paper"]).pvalue for name in found}
    first, second = sorted(p, key=p.get)
    expected = {first: min(1, 2 * p[first]), second: max(2 * p[first], p[second])}
    for name, row in found.items():
        assert (row["method"], row["budget"], row["reference"], row["n"]) == ("dqn", "24", "paper", "5")
        assert float(row["difference"]) == pytest.approx((miou[name] - miou["paper"]).mean(), abs=2e-4)
        assert float(row["t_p"]) == pytest.approx(p[name], abs=2e-4)
        assert float(row["t_p_holm"]) == pytest.approx(min(expected[name], 1), abs=4e-4)
    assert "difference to the variant paper" in path.read_text()
    with pytest.raises(ValueError, match="against_variant is 'adam'; expected one of 'huber', 'paper', 'step'"):
        report(tmp_path / "results.csv", tmp_path / "out", against_variant="adam")


def test_a_single_method_in_one_variant_each(tmp_path):
    rows = [make_row("dqn", seed, 24, 70 + seed, variant) for variant in ("", "full") for seed in (0, 1)]
    path = report(write(tmp_path / "results.csv", rows), tmp_path / "out")
    assert "| dqn | 70.50 ± 0.71 | 70.50 ± 0.71 |" in path.read_text()
    assert "paired tests" in path.read_text().split("## Omitted")[1]


def test_figure_against_and_target(tmp_path):
    results = write(tmp_path / "results.csv", make_rows())
    path = report(results, tmp_path / "out", figure="test_miou", against="dqn", target_miou=38.0)
    assert not list(path.parent.glob("*_val*"))
    table = records(path.parent / "comparisons_test.csv")
    assert {(r["compared_with"], r["reference"]) for r in table} == {("uniform", "uniform"), ("dqn", "dqn")}
    assert {r["target_miou"] for r in records(path.parent / "labels_needed_test.csv")} == {"38.0000"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"figure": "miou"}, "figure is 'miou'; expected one of 'both', 'val_miou', 'test_miou'"),
        ({"figure": "test_miou"}, "the results have only val_miou"),
        ({"against": "ours"}, "against is 'ours'; expected one of 'uniform', 'entropy', 'dqn'"),
        ({"target_miou": 0.0}, "target_miou is 0.0; expected a finite number above 0"),
        ({"target_miou": float("nan")}, "target_miou is nan; expected a finite number"),
    ],
)
def test_wrong_arguments(tmp_path, arguments, message):
    results = write(tmp_path / "results.csv", make_rows(), "test_miou")
    with pytest.raises(ValueError, match=message):
        report(results, tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_comparisons_by_hand(tmp_path):
    ours, best, uniform = (52.0, 54.0, 56.0), (51.0, 52.0, 53.0), (50.0, 50.0, 50.0)
    rows = [
        make_row(method, seed, 24, value)
        for method, values in (("dqn", ours), ("bald", best), ("uniform", uniform))
        for seed, value in enumerate(values)
    ]
    table = comparison_table(read_results(write(tmp_path / "results.csv", rows)), "val").records()
    by_pair = {(r["compared_with"], r["reference"], r["method"]): r for r in table}
    assert set(by_pair) == {
        ("uniform", "uniform", "bald"),
        ("uniform", "uniform", "dqn"),
        ("best baseline", "bald", "uniform"),
        ("best baseline", "bald", "dqn"),
    }
    # Differences 1, 2, 3: t = 2 sqrt(3), p = 0.07418; 2, 4, 6 have the same t. Holm doubles the smaller of two.
    for r in by_pair.values():
        assert r["t_p"] == pytest.approx(0.0741799, abs=1e-6)
        assert r["t_p_holm"] == pytest.approx(0.1483598, abs=1e-6)
    assert by_pair["uniform", "uniform", "dqn"]["difference"] == 4


def test_verdict_and_penalties_by_hand(tmp_path):
    # dqn is above entropy by 1, 2, 3 at 24 regions (p = 0.07), by 2.9, 3, 3.1 at 48 (p = 0.0004); level with margin.
    values = {
        ("dqn", 24): (51, 52, 53),
        ("entropy", 24): (50, 50, 50),
        ("margin", 24): (51, 52, 53),
        ("dqn", 48): (60, 60, 60),
        ("entropy", 48): (57.1, 57, 56.9),
        ("margin", 48): (60, 60, 60),
        ("rare", 24): (99, 99, 99),  # knows the truth: no heuristic
        ("rare", 48): (99, 99, 99),
    }
    rows = [make_row(method, seed, budget, v) for (method, budget), of in values.items() for seed, v in enumerate(of)]
    results = read_results(write(tmp_path / "results.csv", rows))
    verdict = {(r["budget"], r["heuristic"]): r for r in verdict_table(results, "val", "dqn").records()}
    assert {case: r["above"] for case, r in verdict.items()} == {
        (24, "entropy"): False,
        (24, "margin"): False,
        (48, "entropy"): True,
        (48, "margin"): False,
    }
    assert verdict[48, "entropy"]["t_p"] == pytest.approx(ttest_rel((60, 60, 60), (57.1, 57, 56.9)).pvalue)
    penalties = {row[0]: row[1:] for row in penalty_table(results, "val").rows}
    assert results.methods == ("entropy", "margin", "dqn", "rare")
    assert penalties["entropy"] == (None, 0.5, 0.5, 1.0, pytest.approx(2 / 3))
    assert penalties["rare"] == (0, 0, 0, None, 0)
    text = report(tmp_path / "results.csv", tmp_path / "out").read_text()
    assert "Share of the budgets 24, 48, which all methods have, at which" in text
    assert (
        "dqn is not above every heuristic at every budget on validation:** it is above, each with p < 0.05, in 1 of 4"
        in text
    )


def test_a_verdict_needs_every_comparison(tmp_path):
    noise = np.random.default_rng(0).normal(scale=0.1, size=(3, 2, 5))
    rows = [
        make_row(method, seed, budget, base + noise[i, j, seed])
        for i, (method, base) in enumerate({"uniform": 40, "entropy": 42, "dqn": 44}.items())
        for j, budget in enumerate((24, 48))
        for seed in range(5)
    ]
    text = report(write(tmp_path / "results.csv", rows), tmp_path / "out").read_text()
    assert (
        "**dqn is above every heuristic at every budget on validation:** it is above, each with p < 0.05, in 4 of 4"
        in text
    )


def test_a_verdict_is_undecided_where_a_comparison_is_missing(tmp_path):
    noise = np.random.default_rng(0).normal(scale=0.1, size=(3, 2, 5))
    rows = [
        make_row(method, seed, budget, base + noise[i, j, seed])
        for i, (method, base) in enumerate({"uniform": 40, "entropy": 99, "dqn": 44}.items())
        for j, budget in enumerate((24, 48))
        for seed in range(5)
        if method != "entropy" or (budget, seed) == (24, 0)
    ]
    results = read_results(write(tmp_path / "results.csv", rows))
    assert untested(results, "val", "dqn") == [(24, "entropy"), (48, "entropy")]
    text = report(tmp_path / "results.csv", tmp_path / "out").read_text()
    assert "**Whether dqn is above every heuristic at every budget on validation is undecided:**" in text
    assert "Not tested, since fewer than 2 seeds have both: entropy at 24, entropy at 48." in text


def test_labels_saved_by_hand(tmp_path):
    # entropy's best mean is 46, at 200 regions. dqn's mean goes from 40 (theta_0) to 48 at 100: it has 46 at 75.
    curves = {
        "entropy": ((40, 45, 46), (40, 43, 46)),
        "dqn": ((40, 48, 47), (40, 48, 47)),
        "margin": ((40, 49, 49),) * 2,
    }
    rows = [
        make_row(method, seed, budget, miou)
        for method, of_seeds in curves.items()
        for seed, values in enumerate(of_seeds)
        for budget, miou in zip((0, 100, 200), values, strict=True)
    ]
    table = saved_table(read_results(write(tmp_path / "results.csv", rows)), "val", "dqn")
    entropy, margin = table.records()
    assert (entropy["heuristic"], entropy["target_miou"], entropy["budget"], entropy["regions"]) == (
        "entropy",
        46,
        200,
        75,
    )
    assert (entropy["saved"], entropy["ci_low"], entropy["ci_high"]) == (62.5, 62.5, 62.5)
    assert (margin["regions"], margin["saved"], margin["ci_low"]) == (None, None, -100)  # 49 is never reached


def test_a_seed_that_has_not_finished_is_left_out_of_savings(tmp_path):
    curves = {"entropy": dict.fromkeys(range(3), (40, 45, 46)), "dqn": {0: (40, 48, 47), 1: (40, 48, 47), 2: (40, 44)}}
    rows = [
        make_row(method, seed, budget, miou)
        for method, by_seed in curves.items()
        for seed, values in by_seed.items()
        for budget, miou in zip((0, 100, 200), values, strict=False)
    ]
    (entropy,) = saved_table(read_results(write(tmp_path / "results.csv", rows)), "val", "dqn").records()
    assert (entropy["n"], entropy["target_miou"], entropy["budget"], entropy["regions"]) == (2, 46, 200, 75)


def test_a_rule_with_one_lucky_seed_is_not_the_best_baseline(tmp_path):
    values = {"dqn": (52, 54, 56), "bald": (51, 52, 53), "entropy": (60,), "uniform": (50, 50, 50)}
    rows = [make_row(method, seed, 24, v) for method, of in values.items() for seed, v in enumerate(of)]
    table = comparison_table(read_results(write(tmp_path / "results.csv", rows)), "val").records()
    assert {r["reference"] for r in table if r["compared_with"] == "best baseline"} == {"bald"}


def test_savings_are_cut_off_where_twice_as_many_labels_are_needed(tmp_path):
    """Entropy's best mean is 46, at 100 regions. dqn's mean has it at 250, but no seed's resample shows less."""
    curves = {"entropy": ((40, 46, 45, 45),) * 2, "dqn": ((40, 41, 44, 48),) * 2}
    rows = [
        make_row(method, seed, budget, miou)
        for method, of_seeds in curves.items()
        for seed, values in enumerate(of_seeds)
        for budget, miou in zip((0, 100, 200, 300), values, strict=True)
    ]
    path = write(tmp_path / "results.csv", rows)
    (entropy,) = saved_table(read_results(path), "val", "dqn").records()
    assert (entropy["regions"], entropy["saved"], entropy["ci_low"], entropy["ci_high"]) == (250, -100, -100, -100)
    assert "| entropy: 46.00 at 100 | 250 | ≤ -100 [≤ -100, ≤ -100] | 2 |" in report(path, tmp_path / "out").read_text()


def test_theta_0_is_not_compared(tmp_path):
    table = comparison_table(read_results(write(tmp_path / "results.csv", make_rows())), "val")
    assert set(table.column("budget")) == {48, 96, "area"}


def test_labels_needed_by_hand(tmp_path):
    curves = {"uniform": ((40, 44, 50), (40, 44, 48)), "dqn": ((40, 46, 50), (40, 48, 50)), "bald": ((40, 41, 42),) * 2}
    rows = [
        make_row(method, seed, budget, miou)
        for method, of_seeds in curves.items()
        for seed, values in enumerate(of_seeds)
        for budget, miou in zip((0, 100, 200), values, strict=True)
    ]
    results = read_results(write(tmp_path / "results.csv", rows))
    table = {r["method"]: r for r in needed_table(results, "val", {"goal": 46}, "uniform").records()}
    assert [table["uniform"][f"seed_{seed}"] for seed in (0, 1)] == [pytest.approx(100 + 100 / 3), 150]
    assert [table["dqn"][f"seed_{seed}"] for seed in (0, 1)] == [100, 75]
    assert table["dqn"]["saved"] == pytest.approx(100 * (1 - 87.5 / (425 / 3)))
    assert (table["bald"]["reached"], table["bald"]["n"], table["bald"]["mean"], table["bald"]["median"]) == (
        0,
        2,
        None,
        None,
    )


@pytest.mark.parametrize(("first", "at_first", "saved"), [(0, 0, 100), (48, 2, None)])
def test_labels_needed_by_what_has_the_target_at_its_first_budget(tmp_path, first, at_first, saved):
    points = [("uniform", 0, 40), ("uniform", 96, 50), ("dqn", first, 45), ("dqn", 96, 50)]
    rows = [make_row(method, seed, budget, miou) for seed in (0, 1) for method, budget, miou in points]
    results = read_results(write(tmp_path / "results.csv", rows))
    dqn = needed_table(results, "val", {"goal": 45}, "uniform").where(method="dqn").records()[0]
    assert (dqn["mean"], dqn["at_first"], dqn["saved"]) == (first, at_first, saved)


def test_class_shares_are_means_over_seeds(tmp_path):
    rows = [make_row("dqn", 0, 24, 50, asked=(10, 0, 30)), make_row("dqn", 1, 24, 50, asked=(1, 1, 0))]
    table = class_share_table(read_results(write(tmp_path / "results.csv", rows)))
    assert table.column("mean") == [37.5, 25, 37.5]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: "", r"line 1: the header lacks method, seed, budget, val_miou or test_miou \(the file is empty\)"),
        (lambda t: t.replace(",", ";"), r"line 1: the header lacks method, .*\(found the columns method;seed"),
        (lambda t: t.replace("val_miou", "seed"), "line 1: the header has seed more than once"),
        (lambda t: t.replace("_miou", "_mean"), "line 1: the header lacks val_miou or test_miou"),
        (lambda t: t.replace("dqn,0,24", "dqn,zero,24"), "line 3: seed is 'zero'; expected a whole number"),
        (lambda t: t.replace("dqn,0,24", "dqn,0.5,24"), "line 3: seed is '0.5'; expected a whole number"),
        (lambda t: t.replace("dqn,0,24", "dqn,0,2_4"), "line 3: budget is '2_4'; expected a whole number"),
        (
            lambda t: t.replace("dqn,0,24", "dqn,0,\u0662\u0664"),
            "line 3: budget is '\u0662\u0664'; expected a whole number",
        ),
        (lambda t: t.replace("dqn,0,24,52", "dqn,0,24,5_2"), "line 3: val_miou is '5_2'; expected percent"),
        (lambda t: t.replace("dqn,0,24,52", "dqn,0,24,1e999"), "line 3: val_miou is '1e999'; expected percent"),
        (lambda t: t.replace("dqn,0,24", "dqn,0,-24"), "line 3: budget is -24; expected a whole number from 0"),
        (lambda t: t.replace("dqn,0,24", "dqn,0,"), "line 3: budget is ''; expected a whole number"),
        (lambda t: t.replace("dqn,0,24", ",0,24"), "line 3: method is empty"),
        (lambda t: t.replace("dqn,0,24,52", "dqn,0,24,nan"), "line 3: val_miou is 'nan'; expected percent"),
        (lambda t: t.replace("dqn,0,24,52", "dqn,0,24,"), "line 3: val_miou is ''; expected percent"),
        (lambda t: t.replace("dqn,0,24,52", "dqn,0,24,101"), "line 3: val_miou is '101'; expected percent, 0 to 100"),
        (lambda t: t.replace(",7,8,9\n", ",7,-8,9\n"), "line 3: asked_traffic light is -8; expected a whole number"),
        (lambda t: t.replace(",7,8,9\n", ",7,,9\n"), "line 3: asked_traffic light is empty but others are not"),
        (lambda t: t[:-3], "line 4: found 10 values, expected 11"),
        (lambda t: t.replace("uniform", "dqn"), "line 3: .*method 'dqn', seed 0, budget 24 also occurs in line 2"),
        (
            lambda t: t.replace("uniform", "full").replace("dqn,0", "full,2").replace("dqn", "full"),
            "3 rows, none of a method",
        ),
        (lambda t: t.splitlines()[0], "found 0 rows"),
        (lambda t: t.replace("uniform", '"uniform'), "can't be read as csv"),
        (lambda t: t.replace("uniform", "\udcff"), "can't be read as csv .* expected UTF-8 text"),
    ],
)
def test_malformed_files(tmp_path, edit, message):
    rows = [make_row("uniform", 0, 24, 50), make_row("dqn", 0, 24, 52, asked=(7, 8, 9)), make_row("dqn", 1, 24, 52)]
    path = write(tmp_path / "results.csv", rows, "test_iou_")
    edited = edit(path.read_text())
    assert edited != path.read_text()
    path.write_bytes(edited.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=rf"results\.csv.*{message}"):
        read_results(path)


def test_hand_made_files(tmp_path):
    path = tmp_path / "results.csv"
    path.write_bytes(
        "\ufeffseed, method ,budget,note,val_miou\r\n0,ours,24.0,x,50\r\n,,,,\r\n\r\n1,ours,24,,51\r\n".encode()
    )
    results = read_results(path)
    assert [(row.seed, row.method, row.budget, row.miou) for row in results.rows] == [
        (0, "ours", 24, {"val": 50}),
        (1, "ours", 24, {"val": 51}),
    ]
    assert results.variants == ("",)
    assert (results.classes, results.splits) == ((), ("val",))


def test_order_of_variants_and_methods(tmp_path):
    rows = [make_row(m, 0, 24, 50, v) for m in ("rare", "dqn", "all", "uniform") for v in ("K=12", "K=2", "", "²")]
    results = read_results(write(tmp_path / "results.csv", rows))
    assert results.variants == ("", "K=2", "K=12", "²")
    assert results.methods == ("uniform", "dqn", "all", "rare")


def test_tables(tmp_path):
    table = Table(("a|b", "c"), ((1, 2.5), ("x\ny", None), (float("nan"), 1 / 3)))
    write_csv(tmp_path / "sub" / "table.csv", table)
    assert (tmp_path / "sub" / "table.csv").read_text() == 'a|b,c\n1,2.5000\n"x\ny",\n,0.3333\n'
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["table.csv"]
    assert markdown(table) == "| a\\|b | c |\n| --- | --- |\n| 1 | 2.50 |\n| x y | - |\n| - | 0.33 |\n"


def test_pivot():
    table = Table(("m", "b", "mean", "std", "n"), (("u", 1, 2.0, 1.0, 3), ("v", 1, 4.0, float("nan"), 1)))
    assert pivot(table, "b", "m") == Table(("b", "u", "v"), ((1, "2.00 ± 1.00 (n = 3)", "4.00 (n = 1)"),))


def test_styles_differ_and_known_methods_keep_theirs():
    names = ["dqn", "uniform", *(f"method {i}" for i in range(30))]
    assert len({str(style) for style in styles(names).values()}) == len(names)
    assert styles(["dqn", "other"])["dqn"] == styles(names)["dqn"]
    many = styles([*HEURISTICS, "dqn", "dqn_shared", "rare"])
    assert len({str(style) for style in many.values()}) == len(many)
    assert (
        many["ripu"].color == many["clasp"].color not in (many["dqn"].color, many["rare"].color, many["uniform"].color)
    )


def test_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install \"al-seg-env\[examples\]\""):
        report(write(tmp_path / "results.csv", make_rows()), tmp_path / "out")


def test_report_does_not_touch_the_results(tmp_path):
    results = write(tmp_path / "results.csv", make_rows())
    before = results.read_bytes()
    assert report(str(results), str(tmp_path)) == Path(tmp_path / "REPORT.md")
    assert results.read_bytes() == before
