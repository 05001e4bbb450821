"""A search for training arguments on the command line: its space, its trials, and the recipe of the best one."""

import json
import re

import pytest
import yaml

from hf_multitask import MultiTaskTrainer
from hf_multitask.cli.space import read_space

pytest.importorskip("optuna", reason="the extra 'optuna' is not installed")

SPACE = {
    "learning_rate": {"low": 1.0e-4, "high": 1.0e-2, "log": True},
    "sampling": ["uniform", "proportional"],
    "task_weights": {"ner": {"low": 0.5, "high": 2.0}},
}


@pytest.fixture
def tuned(kitchen):
    kitchen.recipe |= {"tune": SPACE, "model": {"dropout": 0.1}}
    kitchen.recipe["training"] |= {"max_steps": 2, "disable_tqdm": True, "task_weights": {"sentiment": 0.5}}
    return kitchen


def trials_of(kitchen):
    return json.loads((kitchen.folder / "out" / "trials.json").read_text())


def test_an_interrupted_search_continues_and_its_best_recipe_trains(tuned, monkeypatch):
    train, begun = MultiTaskTrainer.train, []

    def interrupted(self, *args, trial=None, **kwargs):
        result = train(self, *args, trial=trial, **kwargs)
        begun.append(dict(trial.params))
        if len(begun) == 2:
            raise KeyboardInterrupt
        return result

    with monkeypatch.context() as patch:
        patch.setattr(MultiTaskTrainer, "train", interrupted)
        code, out, _ = tuned.run(["tune"], None, "--n_trials", "3")
    assert code == 130 and "Trial 2 of 3" in out and "Trial 3 of 3" not in out
    code, out, err = tuned.run(["tune"], None, "--n_trials", "3")
    assert code == 0, err
    assert "has 1 of 3 trials, and continues." in out and "Trials, the best first" in out and "Plan:" not in out
    trials = trials_of(tuned)
    assert [one["arguments"] for one in trials[:2]] == begun  # the interrupted one ran again as it was
    assert len({one["arguments"]["learning_rate"] for one in trials}) == 3
    assert not list((tuned.folder / "out").glob("run-*"))

    best = max(trials, key=lambda one: one["eval_average"])
    path = tuned.folder / "out" / "best_recipe.yaml"
    recipe = yaml.safe_load(path.read_text())
    assert "tune" not in recipe and recipe["training"]["learning_rate"] == best["arguments"]["learning_rate"]
    weights = {"sentiment": 0.5, "ner": best["arguments"]["task_weights.ner"]}
    assert recipe["training"]["task_weights"] == weights
    moved = tuned.folder / "elsewhere.yaml"
    moved.write_text(path.read_text())
    (tuned.folder / "recipe.yaml").unlink()
    assert tuned.run(["train"], moved.read_text())[0] == 0
    results = json.loads((tuned.folder / "best" / "all_results.json").read_text())
    assert results["eval_average"] == best["eval_average"]

    other = {**tuned.recipe, "tune": {**SPACE, "sampling": ["uniform", "annealed"]}}
    code, _, err = tuned.run(["tune"], other, "--n_trials", "4")
    assert code == 2 and "The space of this search and of the one in" in err and "Set another output_dir" in err


def test_a_trial_whose_losses_are_not_finite_is_a_failed_one(tuned):
    space = tuned.folder / "space.yaml"
    space.write_text("task_weights: {ner: [1.0e+39, 1]}\nnon_finite_patience: [1]\n")
    code, out, err = tuned.run(["tune"], None, "--n_trials", "4", "--space", str(space))
    assert code == 0, err
    values = {one["arguments"]["task_weights.ner"]: one["eval_average"] for one in trials_of(tuned)}
    assert values.keys() == {1e39, 1} and values[1e39] is None and values[1] >= 0
    assert "It failed: " in out and re.search(r"\n\d +failed", out)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (None, r"There is no space to search. Add the key 'tune'"),
        ([], r"Key 'tune' should be a mapping of training arguments to ranges and choices.*Found \[\]"),
        ({"learning_rat": [1]}, r"unknown training argument 'learning_rat'. Did you mean 'learning_rate'\?"),
        ({"output_dir": ["a"]}, r"Key 'tune' has 'output_dir', which is the same in all trials"),
        (
            {"distillation_kwargs": {"rows": ["own", "all"]}},
            r"Key 'tune', 'distillation_kwargs.rows', is the same in all trials, as teachers answer the rows once",
        ),
        ({"learning_rate": 1e-3}, r"'learning_rate', should be a list of choices, or a range such as"),
        ({"learning_rate": []}, r"'learning_rate', has no choices"),
        ({"learning_rate": {"low": 1, "high": 0.1}}, r"`low` should be less than `high`"),
        ({"learning_rate": {"low": 0, "high": 0.1, "log": True}}, r"with `log`, `low` should be more than 0"),
        ({"learning_rate": {"low": 0.1, "high": 1, "lg": True}}, r"unknown key 'lg'.* Did you mean 'log'\?"),
        (
            {"learning_rate": {"low": 0.1, "high": 20.0}},
            r"a trial that cannot train, learning_rate = 20.0: .*at most 10",
        ),
        ({"task_weights": {"nre": [1, 2]}}, r"cannot train, task_weights.nre = 1: .*Did you mean 'ner'\?"),
        ({"sampling": ["uniform", "sorted"]}, r"cannot train, sampling = .*sorted"),
    ],
)
def test_mistakes_in_a_space_are_found_before_training(kitchen, space, message):
    code, out, err = kitchen.run(["tune"], {**kitchen.recipe, "tune": space})
    assert code == 2 and re.search(message, err), err
    assert "Trial" not in out


def test_what_a_search_does_not_do_is_said(kitchen):
    recipe = {**kitchen.recipe, "tune": {"seed": [1, 2]}}
    for words, message in (
        (["--n_trials", "0"], "--n_trials should be 1 or more. Found 0."),
        (["--resume_from_checkpoint", "true"], "A search continues by itself in its output_dir."),
        (["--space", "nowhere.yaml"], "There is no file 'nowhere.yaml'. Check --space."),
    ):
        code, _, err = kitchen.run(["tune"], recipe, *words)
        assert code == 2 and message in err
    code, _, err = kitchen.run(["tune"], {**recipe, "stages": [{}]})
    assert code == 2 and "Remove 'stages' from the recipe." in err
    del recipe["datasets"]["ner"]["data_files"]["validation"]
    code, _, err = kitchen.run(["tune"], recipe, "--eval_strategy", "no")
    assert code == 2 and "Task 'ner' has no validation rows" in err


def test_a_missing_optuna_is_named(kitchen, monkeypatch):
    monkeypatch.setattr("hf_multitask.cli.tune.importlib.util.find_spec", lambda name: None)
    code, _, err = kitchen.run(["tune"], {**kitchen.recipe, "tune": SPACE})
    assert code == 2 and "which is not installed. Run: pip install 'hf_multitask[optuna]'" in err


@pytest.mark.unit
def test_a_space_draws_into_the_arguments_by_name():
    given = {
        "freeze": [["backbone"], None],
        "balancing_kwargs": {"weights": {"ner": [1, 2]}},
        "seed": {"low": 1, "high": 9},
    }
    space = read_space(given, "It", {"balancing_kwargs": {"weights": {"sentiment": 3}}})

    class Last:
        def suggest_categorical(self, name, choices):
            return choices[-1]

        def suggest_int(self, name, low, high, *, step, log):
            return high

    drawn = {"freeze": None, "balancing_kwargs": {"weights": {"sentiment": 3, "ner": 2}}, "seed": 9}
    assert space.draw(Last()) == drawn
    assert space.kept({"freeze": '["backbone"]', "balancing_kwargs.weights.ner": 1, "seed": 2})["freeze"] == [
        "backbone"
    ]
    assert len(list(space.corners())) == 6
