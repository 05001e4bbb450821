"""The JSON schema of recipes says of a recipe what the parser says."""

import copy
import json
import re
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from hf_multitask.cli.arguments import _Parser
from hf_multitask.cli.recipe import KEYS, model_keys, read_recipe
from hf_multitask.cli.schema import FILE, recipe_schema
from hf_multitask.tasks import TASK_TYPES, build_task

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "examples").glob("*/*recipe*.yaml"))
GOOD = {
    "backbone": "google-bert/bert-base-uncased",
    "model": {"dropout": 0.1, "branches": "none"},
    "datasets": {"reviews": {"path": "some/reviews"}},
    "tasks": {
        "sentiment": {"type": "sequence-classification", "dataset": "reviews", "class_weights": "balanced"},
        "ner": {"type": "token-classification", "dataset": "reviews", "decoding": "crf", "max_length": 64},
    },
    "training": {"output_dir": "out", "learning_rate": "5e-5", "eval_strategy": False, "sampling": "uniform"},
}


@pytest.fixture(scope="module")
def validator():
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    schema = recipe_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_the_file_is_the_schema():
    pinned = re.search(r"^transformers==([\d.]+)", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)[1]
    if version("transformers") != pinned:
        pytest.skip("the file has the training arguments of the tested Transformers")
    again = "python -m hf_multitask.cli.schema > hf_multitask/cli/recipe.schema.json"
    assert json.loads(FILE.read_text(encoding="utf-8")) == recipe_schema(), f"After a wanted change, run: {again}"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.parent.name)
def test_recipes_of_the_examples_are_valid(path, validator):
    assert not [error.message for error in validator.iter_errors(yaml.safe_load(path.read_text(encoding="utf-8")))]


def test_keys_are_those_of_the_parser():
    schema = recipe_schema()["properties"]
    assert list(schema) == list(KEYS) and set(schema["model"]["properties"]) == set(model_keys())
    assert set(schema["training"]["properties"]) == set(_Parser().known())
    by_type = {
        one["if"]["properties"]["type"]["const"]: one["then"]
        for one in schema["tasks"]["additionalProperties"]["allOf"]
    }
    assert set(by_type) == set(TASK_TYPES)
    for name, then in by_type.items():
        with pytest.raises((TypeError, ValueError)) as problem:
            build_task("task", {"type": name, "no_such_argument": 1})
        known = set(re.findall(r"\w+", str(problem.value)))
        own = set(then["properties"]) - {"type", "label_map", "add_labels"}
        assert own <= known, own - known


def changed(path, value):
    recipe = copy.deepcopy(GOOD)
    inner = recipe
    for key in path[:-1]:
        inner = inner.setdefault(key, {})
    if value is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return recipe


@pytest.mark.parametrize(
    ("path", "value", "valid"),
    [
        (("model", "dropout"), 0.2, True),
        (("training", "learning_rate"), 1e-3, True),
        (("training", "task_weights"), {"ner": 2}, True),
        (("stages",), [{"tasks": ["sentiment"], "num_train_epochs": 1}, {}], True),
        (("tasks", "ner", "label_map"), {"B-person": "B-PER"}, True),
        (("modle",), {}, False),
        (("model", "dropot"), 0.2, False),
        (("tasks", "ner", "decodign"), "crf", False),
        (("tasks", "ner", "max_length"), "long", False),
        (("tasks", "ner", "type"), ..., False),
        (("tasks",), {}, False),
        (("backbone",), ..., False),
        (("from_model",), "out", False),
        (("stages",), [], False),
    ],
    ids=str,
)
def test_both_accept_and_refuse_the_same(path, value, valid, validator, tmp_path):
    recipe = changed(path, value)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    assert validator.is_valid(recipe) is valid
    if valid:
        read_recipe(tmp_path / "recipe.yaml")
    else:
        with pytest.raises(ValueError):
            read_recipe(tmp_path / "recipe.yaml")
