"""``evaluation_sets`` of a recipe: further splits that are measured beside validation."""

import json
import re

import pytest
from tiny import read_rows


@pytest.fixture
def recipe(kitchen):
    rows = read_rows("sentiment", "validation", 20)[9:]
    rows[0]["label"] = "mixed"
    kitchen.write("sentiment/shifted.jsonl", rows)
    changed = kitchen.changed("training", max_steps=1, eval_strategy="steps", eval_steps=1)
    own = changed["datasets"]["sentiment"]
    own["data_files"]["shifted"] = "sentiment/shifted.jsonl"
    own["evaluation_sets"] = ["shifted"]
    return changed


def test_sets_are_measured_by_train_and_evaluate(kitchen, recipe):
    code, table, err = kitchen.run(["train"], recipe)
    assert code == 0, err
    head = next(line for line in table.splitlines() if line.startswith("task ") and "metric" in line)
    assert head.split() == ["task", "metric", "validation", "shifted", "test"]
    results = json.loads((kitchen.folder / "out" / "eval_results.json").read_text(encoding="utf-8"))
    assert {"eval_sentiment_accuracy", "eval_shifted_sentiment_accuracy", "eval_shifted_average"} <= results.keys()
    names = json.loads((kitchen.folder / "out" / "config.json").read_text(encoding="utf-8"))["tasks"]
    assert "mixed" in next(task["label_names"] for task in names if task["name"] == "sentiment")
    model = str(kitchen.folder / "out")
    code, table, err = kitchen.run(["evaluate", model], recipe, "--split", "validation")
    assert code == 0 and "shifted" in table, err
    code, table, err = kitchen.run(["evaluate", model], recipe, "--split", "shifted")
    assert code == 0, err
    accuracy = next(line for line in table.splitlines() if line.split()[:2] == ["sentiment", "accuracy"]).split()[2]
    assert accuracy == f"{results['eval_shifted_sentiment_accuracy']:.4f}"


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["hard"], "names the split 'shifted' in data_files; .* Rename it, or name it in evaluation_sets"),
        (["shifted", "hard"], "has the evaluation sets shifted, hard, and no split 'hard'"),
        ("shifted", "`evaluation_sets` should be a list of different splits"),
        (["shifted", "dev"], "has the evaluation set 'validation'"),
        ([1], "has the evaluation set 1"),
    ],
)
def test_sets_of_a_recipe_that_cannot_be_measured(kitchen, recipe, sets, message):
    recipe["datasets"]["sentiment"]["evaluation_sets"] = sets
    code, _, err = kitchen.run(["train"], recipe)
    assert code == 2 and re.search(message, err), err
