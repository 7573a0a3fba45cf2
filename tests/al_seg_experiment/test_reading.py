"""Experiments' files: what is read, and every mistake that is found before anything runs."""

import dataclasses
import json
import sys
import time

import gymnasium as gym
import pytest
from experiments import TINY_EXPERIMENT as TINY
from fakes import make

from al_seg_env.learner.fitting import FitSettings
from al_seg_experiment import Convergence, Experiment, load_experiment
from al_seg_experiment.reading import LARGEST_FILE, PRESETS, read_json, read_yaml


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": ["entropie"]}, r"method 'entropie' is unknown \(did you mean 'entropy'\?\); known are uniform"),
        (
            {"methods": {"mine": {"policy": "nothing"}}},
            r"methods.mine.policy is 'nothing'; .* is unknown",
        ),
        ({"methods": {"a/b": {"policy": "uniform"}}}, "names of methods consist of letters"),
        ({"methods": {"full": {"policy": "uniform"}}}, "'full' is reserved for full supervision"),
        (
            {"methods": {"mine": {"policy": "uniform", "x": 1}}},
            "methods.mine has the unknown entry 'x'; known are policy, arguments",
        ),
        (
            {"variants": {"": {"arguments": {"learning_rate": 0.5}}, "b": {}}},
            "variants: the one without a name has set",
        ),
        ({"query": {"episodes": 3, "envs": 2}}, "query: episodes is 3; expected a multiple of envs .2., which play"),
        ({"variants": ["a"]}, "variants is .*; expected a mapping; a list of different names selects from"),
        (
            {"preset": "camvid_frozen_e1", "variants": ["3H + K"]},
            r"variants names '3H \+ K' \(did you mean '3H \+ KL'\?\); the preset's are 1H, 3H, 3H \+ KL",
        ),
        ({"preset": "camvid_frozen_e1", "variants": ["1H", "1H"]}, "variants is .*; expected a mapping"),
        ({"preset": "camvid_frozen_e1", "methods": ["x"]}, "method 'x' is unknown"),
        ({"methods": []}, "methods is .*; .*at least 1"),
        ({"methods": ["uniform", "uniform"]}, "expected different names"),
        ({"budget": [3]}, r"unknown entry 'budget' \(did you mean 'budgets'\?\); known are name, env"),
        ({"seeds": []}, r"seeds is \[\]; .*at least 1"),
        ({"seeds": [1, 1]}, "seeds is .*; expected different numbers"),
        ({"seeds": [2**31]}, r"seeds\[0\] is 2147483648; expected less than or equal to 2147483647"),
        ({"seeds": [True]}, r"seeds\[0\] is True; expected a valid integer"),
        ({"budgets": [0, 4]}, r"budgets\[0\] is 0; expected greater than or equal to 1"),
        ({"fit": {"epochs": 3}}, r"fit has the unknown entry 'epochs' \(did you mean 'max_epochs'\?\)"),
        ({"fit": {"batch_size": -1}}, "fit.batch_size is -1; expected greater than or equal to 1"),
        ({"fit": {"batch_size": 0}}, "fit.batch_size is 0; expected"),
        ({"fit": {"crop_size": [0, 0]}}, r"fit.crop_size\[0\] is 0; expected greater"),
        ({"fit": {"crop_size": [3]}}, r"fit.crop_size\[1\] is missing"),
        ({"fit": {"patience": -1}}, "fit.patience is -1; expected"),
        ({"fit": {"max_epochs": -5}}, "fit.max_epochs is -5; expected"),
        ({"full": -1}, "full is -1; expected .*greater than or equal to 0"),
        ({"query": 3}, "query is 3; expected"),
        ({"query": {"envs": 0}}, "query.envs is 0; expected greater than or equal to 1"),
        ({"query": {"refit": {"updates": 3}}}, "query.refit.gradient_steps is missing.*\n.*unknown entry 'updates'"),
        ({"theta_0": [{"image": "train"}]}, r"theta_0\[0\] has the unknown entry 'image' .did you mean 'images'"),
        (
            {"theta_0": [{"images": "test"}]},
            r"theta_0\[0\].images is 'test'; expected 'state', 'train'",
        ),
        ({"theta_0": [{"images": "reward"}]}, r"theta_0\[0\].images is 'reward'; expected"),
        ({"theta_0": [{"images": "trian"}]}, r"theta_0\[0\].images is 'trian'; expected"),
        (
            {"theta_0": [{"images": "eval"}]},
            r"theta_0\[0\]: images is 'eval'; expected 'state' or 'train' of the experiment's own data",
        ),
        ({"theta_0": [{"images": "all"}]}, r"theta_0\[0\]: images is 'all'; .* D_V is what is acquired from"),
        ({"query_theta_0": [{"images": "train"}]}, r"query_theta_0\[0\]: images is 'train'; .* would be no news"),
        ({"query_theta_0": [{}]}, r"query_theta_0\[0\]: images is 'train'"),
        ({"query_theta_0": [{"images": "eval"}]}, r"query_theta_0\[0\]: images is 'eval'"),
        ({"query_theta_0": [{"images": "all", "arguments": {"learning_rate": 0.1}}]}, "images is 'all'"),
        ({"theta_0": [{"arguments": {"splits": 3}}]}, r"theta_0\[0\]: splits differ from the experiment's own"),
        ({"theta_0": [{"arguments": {"images": 30}}]}, r"theta_0\[0\]: images differ from the experiment's own"),
        (
            {"theta_0": [{"arguments": {"style": "street"}, "images": "all"}]},
            r"images is 'all'; expected 'state' .*of the experiment's own",
        ),
        (
            {
                **{"env": "al_seg_env/CamVid-v0", "arguments": {"root": "data/camvid"}},
                "theta_0": [{"arguments": {"root": "./data/x/../camvid"}, "images": "eval"}],
            },
            r"theta_0\[0\]: images is 'eval'; expected 'state' .*of the experiment's own data",
        ),
        ({"preset": "camvid"}, "'camvid' is neither a file nor a preset .*; the presets are camvid_frozen"),
        ({"arguments": {"cache": "/etc"}}, "cache names a folder to write to, and an experiment writes into its own"),
        ({"query": {"agent": {"tensorboard_log": "x"}}}, "tensorboard_log names a folder to write to"),
        ({"variants": 3}, "variants is 3; expected"),
        ({"variants": {"a": {"agent": {"tensorboard_log": "x"}}}}, "tensorboard_log names a folder"),
        ({"variants": {1: {}}}, "a name in variants is 1; expected a text: put it in quotes"),
        ({"name": "../x"}, "name is '../x'; it names a folder within runs/"),
        ({"name": "/results"}, "name is '/results'; it names a folder"),
        ({"name": ""}, "name is ''; it names a folder"),
        ({"name": "見" * 40}, "name is .*; it names a folder .* at most 100 bytes"),
        ({"env": "al_seg_env/Nowhere-v0"}, "env is 'al_seg_env/Nowhere-v0'; expected a registered environment"),
        ({"env": "al_seg_env/CamVid-v0", "arguments": {}}, "al_seg_env/CamVid-v0 needs root; give it in arguments"),
        ({"arguments": {"pool_sise": 3}}, r"arguments: unknown argument 'pool_sise' \(did you mean 'pool_size'\?\)"),
        ({"arguments": {"pool_size": 0}}, "arguments: pool_size is 0; expected a whole number of at least 1"),
        ({"arguments": {"kl_own": "yes"}}, "arguments: kl_own is 'yes'; expected a valid boolean"),
        ({"arguments": {"learning_rate": "1"}}, "arguments: learning_rate is '1'; expected a valid number"),
        ({"arguments": {"learning_rate": float("nan")}}, "arguments.learning_rate is nan; expected a finite number"),
        (
            {"arguments": {"scores": ["entropi"]}},
            r"arguments: scores is \['entropi'\]; expected a list of different ones",
        ),
        ({"arguments": {"split": "eval"}}, "arguments: split can't be given here"),
        ({"query": {"arguments": {"budgett": 3}}}, r"query.arguments: unknown argument 'budgett'"),
        ({"query": {"arguments": {"weights": "x"}}}, "query.arguments: weights can't be given here, since theta_0 is"),
        (
            {"methods": {"uniform": {"arguments": {"budget": 5}}}},
            r"'uniform'.*arguments: budget can't be given",
        ),
        ({"methods": {"uniform": {"arguments": {"data_seed": 4}}}}, "data_seed can't be given here, since methods are"),
        ({"methods": {"entropy": {"arguments": {"scores": []}}}}, "policy 'entropy' reads the score 'entropy'"),
        ({"variants": {"a": {"arguments": {"pool_size": -3}}}}, r"variants\['a'\]: arguments: pool_size is -3"),
        ({"query": {"agent": {"gama": 1}}}, r"query.agent: unknown argument 'gama' \(did you mean 'gamma'\?\)"),
        ({"query": {"agent": {"seed": 1}}}, "query.agent: unknown argument 'seed'"),
        ({"query": {"agent": {"gamma": 2}}}, "query.agent: gamma is 2"),
        ({"query": {"agent": {"max_grad_norm": -1.0}}}, "query.agent: max_grad_norm is -1.0"),
        ({"query": {"agent": {"learning_rate": "x"}}}, "query.agent: .*"),
        ({"query": {"agent": {"policy_kwargs": {"x": 1}}}}, "query.agent: .*unexpected keyword argument 'x'"),
        ({"query": {"agent": {"epsilon_steps": 0}}}, "query.agent: epsilon_steps is 0"),
        ({"query": {"agent": {"epsilon": 0.1, "epsilon_steps": 3}}}, "epsilon and epsilon_steps both set"),
        ({"query": {"agent": {"learning_rate_decay": 2}}}, "query.agent: decay is 2"),
        (
            {"query": {"agent": {"guides": ["score_bald"]}}},
            r"guides is \('score_bald',\); expected some of \('uniform',\)",
        ),
        ({"query": {"refit": {"gradient_steps": 1, "policy_kwargs": {"x": 1}}}}, "query.refit: .*argument 'x'"),
        ({"query": {"episodes": 0}}, "query.episodes is 0; expected greater than or equal to 1"),
        ({"variants": {"a": {"agent": {"loss": "hubert"}}}}, r"variants\['a'\]: query.agent: loss is 'hubert'"),
        ({"budgets": [3, 4]}, "3 and 4 are both reached with 4 regions, .* 'uniform' labels 2 in a step"),
        ({"budgets": [5, 6, 9]}, "5 and 6 are both reached with 6 regions"),
        (
            {"arguments": {**TINY["arguments"], "regions_per_step": 4}, "budgets": [6, 8, 12]},
            "6 and 8 are both",
        ),
        ({"forecast": {}}, "forecast: no region_features names 'forecast', which its networks are for"),
        ({"query": {"agent": {"gradient_steps": 0}}}, "query.agent: gradient_steps is 0; expected at least 1, or a re"),
        ({"variants": {"a": {"budgets": [1, 2]}}}, r"variants\['a'\]: budgets: 1 and 2 are both"),
    ],
)
def test_what_is_wrong_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        load_experiment({**TINY, **change})


def test_all_mistakes_are_told_at_once():
    change = {"fit": {"patience": -1}, "seeds": ["x"], "theta_0": [{"images": "test"}], "nmae": "x"}
    with pytest.raises(ValueError, match="the experiment has 4 mistakes:") as refusal:
        load_experiment({**TINY, **change})
    for entry in ("fit.patience", "seeds[0]", "theta_0[0].images", "'nmae' (did you mean 'name'?)"):
        assert entry in str(refusal.value)
    arguments = {**TINY["arguments"], "pool_size": -1, "kl_bins": "x"}
    with pytest.raises(ValueError, match="the experiment has 2 mistakes:") as refusal:
        load_experiment({**TINY, "arguments": arguments})
    assert "kl_bins" in str(refusal.value)


def test_budgets_that_differ_when_rounded_are_fine():
    arguments = {**TINY["arguments"], "regions_per_step": 4}
    assert load_experiment({**TINY, "arguments": arguments, "budgets": [9, 6, 3]}).budgets == (3, 6, 9)


def test_a_stage_may_train_on_any_images_of_other_data():
    for change in ({"arguments": {"style": "render"}}, {"arguments": {"data_seed": 1}}):
        stages = [{**change, "images": images} for images in ("state", "train", "eval", "all")]
        experiment = load_experiment({**TINY, "theta_0": stages, "query_theta_0": stages})
        assert len(experiment.query_theta_0) == 4


def test_own_environments_are_checked_by_their_signature():
    gym.register("own/Plain-v0", entry_point=lambda *, root, pool_size=3: make(pool_size=pool_size))
    try:
        own = {**TINY, "env": "own/Plain-v0", "methods": ["uniform"], "theta_0": [], "query_theta_0": []}
        assert load_experiment({**own, "arguments": {"root": "x"}}).arguments == {"root": "x"}
        with pytest.raises(ValueError, match="needs root.*\n.*unknown argument 'pool_sise'"):
            load_experiment({**own, "arguments": {"pool_sise": 3}})
    finally:
        del gym.registry["own/Plain-v0"]


def test_files_in_yaml_json_and_toml_and_presets_that_are_changed(tmp_path):
    (tmp_path / "a.yaml").write_text("preset: synthetic_small\nname: mine\nfit: {patience: 3}\nmethods: [uniform]\n")
    experiment = load_experiment(tmp_path / "a.yaml", {"arguments.pool_size": 4, "seeds": [7]})
    assert (experiment.name, experiment.fit.patience, experiment.seeds) == ("mine", 3, (7,))
    assert experiment.arguments["pool_size"] == 4
    assert experiment.fit.max_epochs == load_experiment("synthetic_small").fit.max_epochs
    assert list(experiment.methods) == ["uniform"]
    (tmp_path / "a.json").write_text('{"name": "mine", "budgets": [64, 32]}')
    assert load_experiment(tmp_path / "a.json").budgets == (32, 64)
    (tmp_path / "a.toml").write_text('name = "mine"\nbudgets = [4, 2]\n[fit]\npatience = 2\n')
    if sys.version_info >= (3, 11):
        assert load_experiment(tmp_path / "a.toml").budgets == (2, 4)


def bomb(levels):
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, levels)]
    return "\n".join(lines)


def test_a_list_of_names_selects_from_a_preset():
    whole = load_experiment("camvid_frozen_ablations")
    one = load_experiment({"preset": "camvid_frozen_ablations", "variants": ["no surroundings", "all features"]})
    assert one.variants == {name: whole.variants[name] for name in ("no surroundings", "all features")}
    assert one.model_copy(update={"variants": whole.variants}) == whole
    frozen = load_experiment("camvid_frozen")
    some = load_experiment("camvid_frozen", {"methods": ["dqn_shared", "greedy"]}).methods
    assert some["dqn_shared"] == frozen.methods["dqn_shared"]
    assert (list(some), some["greedy"].policy) == (["dqn_shared", "greedy"], "greedy")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [", "bad.yaml can't be read"),
        ("- 1", "bad.yaml holds list"),
        ("\x00", "bad.yaml can't be read"),
        ("[" * 3000, "bad.yaml can't be read"),
        ("{a: " * 3000, "bad.yaml can't be read"),
        (bomb(9), "it holds .* values once its aliases are replaced"),
        ("name: &a [*a]", "line 1: a value holds itself"),
        ("name: x\nseeds: [1]\nname: y\n", "line 3: the entry 'name' appears more than once"),
        ("name: x\nfit: {patience: 1, patience: 2}\n", "line 2: the entry 'patience' appears more than once"),
        ("name: x\n" + "#" * LARGEST_FILE, "bytes, and an experiment takes"),
        ("name: x\nseeds: [3_1]\n", "is '3_1'; expected a valid integer"),
        ("name: x\nseeds: [1:30]\n", "is '1:30'; expected a valid integer"),
        ("name: 2020-01-01\nseeds: [x]\n", r"seeds\[0\] is 'x'"),
        ("name: x\nseeds: [" + "9" * 5000 + "]\n", "bad.yaml can't be read"),
        ("name: x\narguments: {learning_rate: .nan}\n", "arguments.learning_rate is nan"),
        ("name: x\narguments: {learning_rate: 1e999}\n", "arguments.learning_rate is inf"),
        ("name: x\narguments: {data: !!binary aGk=}\n", "arguments.data is b'hi'"),
        ("name: x\narguments: !!python/object/apply:os.system [ls]\n", "bad.yaml can't be read"),
        ("? [a]\n: 1\n", "bad.yaml can't be read"),
    ],
)
def test_files_that_are_refused(tmp_path, content, message):
    (tmp_path / "bad.yaml").write_text(content)
    started = time.process_time()
    with pytest.raises(ValueError, match=message):
        load_experiment(tmp_path / "bad.yaml")
    assert time.process_time() - started < 2


def test_numbers_are_those_of_yaml_1_2():
    assert read_yaml("[1e-3, -2, +3, 0x1f, 0o17, .5, 1., 010, 2020-01-01, ~, true]") == [
        *(1e-3, -2, 3, 31, 15, 0.5, 1.0, 10, "2020-01-01", None, True)
    ]
    assert read_yaml("a: &a {b: 1}\nc: {<<: *a, d: 2}") == {"a": {"b": 1}, "c": {"b": 1, "d": 2}}
    assert read_yaml("") is None


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', '{"a": {"b": 1, "b": 1}}', "[NaN]", "-Infinity", "{", "[" * 9999])
def test_json_that_is_refused(text):
    with pytest.raises(ValueError, match=r"more than once|not finite|Expecting|nested"):
        read_json(text)


def test_a_mapping_that_holds_itself():
    content = dict(TINY)
    content["arguments"] = content
    with pytest.raises(ValueError, match="nested more than"):
        load_experiment(content)


@pytest.mark.parametrize("name", sorted(path.stem for path in PRESETS.glob("*.yaml")))
def test_presets_are_valid(name):
    assert load_experiment(name).name == name


def test_the_schema_knows_every_entry_and_says_what_it_is():
    schema = Experiment.model_json_schema()
    assert set(schema["properties"]) == set(Experiment.model_fields)
    assert schema["properties"]["seeds"]["items"]["minimum"] == 0
    assert all("description" in entry for entry in schema["properties"].values())
    json.dumps(schema)
    assert schema["additionalProperties"] is False


def test_what_an_experiment_says_of_itself_reads_back():
    experiment = load_experiment("synthetic_deviations")
    assert Experiment.model_validate(json.loads(json.dumps(experiment.as_dict()))) == experiment
    assert load_experiment(experiment.as_dict()) == experiment


def test_fit_is_that_of_the_environment():
    assert {field.name: field.default for field in dataclasses.fields(FitSettings)} == dict(Convergence())
    assert Convergence(patience=3).settings == FitSettings(patience=3)
