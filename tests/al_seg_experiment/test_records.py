"""The folder of an experiment: each of its files damaged in turn, and what it is made with, changed."""

import json
import shutil

import numpy as np
import pytest
from damage import DAMAGES, exchange, walk
from experiments import SMALLEST_EXPERIMENT as SMALLEST
from experiments import TINY_EXPERIMENT as TINY
from experiments import contents, quick_pieces, rows_of
from processes import in_child

from al_seg_env.storage import folder_lock
from al_seg_experiment import load_experiment, protocol, run, status
from al_seg_experiment.__main__ import main
from al_seg_experiment.report import report


@pytest.fixture
def quick(tmp_path, monkeypatch):
    """The folder of a finished experiment without training, and what is in it."""
    quick_pieces(monkeypatch)
    run(load_experiment(SMALLEST), tmp_path / "quick")
    return tmp_path / "quick", contents(tmp_path / "quick")


@pytest.mark.parametrize("damage", DAMAGES)
def test_each_file_in_turn(quick, tmp_path, damage):
    """The next run ends with the same results, or an error that names a file that was touched."""
    folder, undamaged = quick
    experiment = load_experiment(SMALLEST)
    helpers = ("stage-", "checkpoint", "result-3")  # to resume with; or no file of the experiment's
    kept = {name: content for name, content in undamaged.items() if not any(each in name for each in helpers)}

    def run_again(copy):
        run(experiment, copy)
        after = contents(copy)
        return {name: after.get(name) for name in kept}

    outcomes = list(walk(folder, tmp_path, damage, run_again))
    again = [name for name, found, message in outcomes if message is None and found == kept]
    refused = [name for name, _, message in outcomes if message is not None]
    assert len(again) > len(undamaged) / 3
    assert sorted(again + refused) == sorted(undamaged)


def test_status_and_report_name_what_is_damaged(quick):
    folder, _ = quick
    (folder / "trials" / "uniform-0" / "result-4.json").unlink()
    states = {row["piece"]: row["state"] for row in status(load_experiment(SMALLEST), folder)}
    assert states.pop("trials/uniform-0") == "damaged"
    assert set(states.values()) == {"finished"}
    with pytest.raises(ValueError, match=r"uniform-0/result-4.json is missing. Run the experiment again"):
        report(folder)
    assert states != {}
    assert not list(folder.rglob("*.damaged"))  # looking changes nothing


def test_damage_to_a_real_experiment_is_made_good(whole, tmp_path):
    """What is missing or changed, of several pieces at once, is made again, bit for bit."""
    folder = tmp_path / "copy"
    shutil.copytree(whole, folder)
    result = folder / "trials" / "rare-0" / "result-4.json"
    result.write_text(result.read_text().replace('"val_miou": ', '"val_miou": 1'))  # well-formed, and wrong
    (folder / "trials" / "uniform-1" / "requests.png").write_bytes(b"")
    (folder / "trials" / "full-0" / "result-full.json").unlink()
    (folder / "query" / "1" / "agent.safetensors").write_bytes(b"half")
    (folder / "theta_0" / "theta_0.safetensors").unlink()
    untouched = folder / "trials" / "dqn-0" / "result-2.json"
    before = untouched.stat().st_mtime_ns

    def again():
        with pytest.warns(UserWarning, match=r"it is made again") as told:
            run(load_experiment(TINY), folder)
        assert len([each for each in told if "it is made again" in str(each.message)]) == 5

    assert in_child(again) == 0
    assert (folder / "results.csv").read_bytes() == (whole / "results.csv").read_bytes()
    for name in ("query/1/agent.safetensors", "theta_0/theta_0.safetensors", "trials/uniform-1/requests.png"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()
    assert untouched.stat().st_mtime_ns == before


def test_seeds_that_begin_with_another_one_are_refused_where_one_agent_plays_for_all(quick, tmp_path):
    for per_seed in (True, False):
        folder = tmp_path / f"{per_seed}"
        content = {**SMALLEST, "query": {**SMALLEST["query"], "per_seed": per_seed}}
        run(load_experiment({**content, "seeds": [0, 1]}), folder)
        before = contents(folder)
        grown = load_experiment({**content, "seeds": [2, 0, 1]})
        if per_seed:
            run(grown, folder)
            assert {row["seed"] for row in rows_of(folder / "results.csv")} == {"0", "1", "2"}
        else:
            with pytest.raises(
                ValueError, match=r"seeds is \[0, 1\] .*, \[2, 0, 1\] here: .* agent of seed 0. Put 0 f"
            ):
                run(grown, folder)
            assert contents(folder) == before
            run(load_experiment({**content, "seeds": [0, 1, 2]}), folder)
            assert not (folder / "query" / "2").exists()
            assert json.loads((folder / "trials" / "dqn-2" / "piece.json").read_text())["needs"].keys() == {
                "theta_0",
                "query/0",
            }


def test_variants_may_be_added_to_a_finished_experiment(quick):
    folder, before = quick
    run(load_experiment({**SMALLEST, "variants": {"huber": {"agent": {"loss": "huber"}}}}), folder)
    after = contents(folder)
    theirs = [name for name in before if name.startswith(("theta_0/", "query_theta_0/", "trials/"))]
    assert {name: after[name] for name in theirs} == {name: before[name] for name in theirs}
    run(load_experiment(SMALLEST), folder)
    with pytest.raises(ValueError, match=r"variants/huber/reference/piece.json is of another .*variant.agent.loss"):
        run(load_experiment({**SMALLEST, "variants": {"huber": {"agent": {"loss": "squared"}}}}), folder)


def test_a_theta_0_that_is_not_the_one_of_the_trials_is_refused(quick):
    folder, _ = quick
    shutil.rmtree(folder / "theta_0")
    (folder / "theta_0").mkdir()
    (folder / "theta_0" / "stage-0.safetensors").write_bytes(b"from elsewhere")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"needs.theta_0 is '.*' there, '.*' here"):
            run(load_experiment(SMALLEST), folder)


def test_what_a_piece_needs_is_checked_just_before_it_is_used(tmp_path, monkeypatch):
    quick_pieces(monkeypatch)
    run_theta_0, weights = protocol.run_theta_0, tmp_path / "run" / "theta_0" / "theta_0.safetensors"
    monkeypatch.setattr(protocol, "run_theta_0", lambda *args: (run_theta_0(*args), weights.write_bytes(b"other")))
    with pytest.raises(ValueError, match=r"theta_0.safetensors is damaged: .* Run the experiment again to make it"):
        run(load_experiment(SMALLEST), tmp_path / "run")
    assert not (tmp_path / "run" / "trials" / "uniform-0").exists()


def test_results_of_unfinished_pieces_that_changed_places_are_made_again(quick):
    folder, before = quick
    exchange(*(folder / "trials" / name / "result-4.json" for name in ("uniform-0", "dqn-0")))
    for name in ("uniform-0", "dqn-0"):
        (folder / "trials" / name / "finished.json").unlink()
    with pytest.warns(UserWarning, match=r"result-4.json is damaged or no result .*'method': '.*; it is made again"):
        run(load_experiment(SMALLEST), folder)
    assert contents(folder) == before


def test_a_folder_in_use_is_refused(quick, tmp_path, capsys):
    folder, _ = quick
    file = tmp_path / "smallest.json"
    file.write_text(json.dumps(SMALLEST))
    with folder_lock(folder):
        child = in_child(lambda: pytest.raises(ValueError, run, load_experiment(SMALLEST), folder).match("in use by"))
        assert child == 0
        assert main(["run", str(file), "--out", str(folder)]) == 2
        assert "in use by process" in capsys.readouterr().err
        assert main(["status", str(file), "--out", str(folder)]) == 0  # looking is allowed
    assert main(["run", str(file), "--out", str(folder)]) in (0, 2)


def test_a_file_in_the_folders_place(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="is a file; choose a folder"):
        run(load_experiment(SMALLEST), tmp_path / "file")


def test_requests_that_are_no_png_are_named(quick):
    folder, _ = quick  # its pictures are stand-ins
    with pytest.raises(ValueError, match=r"requests.png can't be read as png"):
        report(folder)


def test_pictures_of_requests_are_stacked_under_their_titles(whole, tmp_path):
    from PIL import Image

    page = report(whole, tmp_path / "report")
    assert "Figure D.1: what was requested" in page.read_text()
    stacked = np.asarray(Image.open(tmp_path / "report" / "figure_D1.png"))
    single = np.asarray(Image.open(whole / "trials" / "uniform-0" / "requests.png"))
    assert stacked.shape[0] == 3 * (single.shape[0] + 20)  # three methods, each with a line for its name
    np.testing.assert_array_equal(stacked[20 : 20 + single.shape[0], : single.shape[1]], single)
