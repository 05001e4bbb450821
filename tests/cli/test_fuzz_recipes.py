"""Recipes with random mistakes: each is prepared, or ends in one sentence; nothing hangs, and nothing is a traceback."""

import argparse
import contextlib
import copy
import dataclasses
import json
import os
import random
import shutil
import signal

import pytest
import yaml
from datasets import load_dataset

from hf_multitask import MultiTaskTrainingArguments
from hf_multitask.cli import MISTAKES
from hf_multitask.cli.recipe import model_keys
from hf_multitask.cli.train import prepare
from hf_multitask.modeling.values import parameters_of
from hf_multitask.tasks import TASK_TYPES

CASES = int(os.environ.get("HF_MULTITASK_FUZZ_CASES", "2000"))
FIRST = int(os.environ.get("HF_MULTITASK_FUZZ_FIRST", "0"))  # to go on with a run, or to repeat one case
SECONDS = 60

VALUES = [
    *(None, True, False, 0, 1, -1, 2, 10**12, 0.5, -0.5, 1e300, float("nan"), float("inf")),
    *("", " ", "x", "no", "false", "true", "1", "1e-3", "none", "all", "auto", "train", "text", "label", "sentiment"),
    *(
        "json",
        "csv",
        "s.jsonl",
        "n.jsonl",
        "s.csv",
        "*",
        "[",
        "**",
        "$HOME",
        "~",
        "~nobody",
        "::",
        "../x",
        "a/b",
        "a/b/c",
    ),
    *("\0", "ü", "\ud7ff", "x" * 300, "{", '{"a": 1}', "s.jsonl/out", "backbone", "steps", "epoch"),
    *([], {}, [None], ["x"], [1, 2], [[]], [{}], {"x": 1}, {"train": 1}, {"sentiment": 2.0}, {"ner": None}, {1: 2}),
]
CHARACTERS = [*":-{}[]&*!|>'\"%@`#,?\t\n ", "<<: *a", "&a ", "*a", "!!int ", "!!python/name:os.system ", "---\n"]


def base_recipe():
    return {
        "backbone": "backbone",
        "model": {"dropout": 0.0},
        "datasets": {
            "sentiment": {"path": "csv", "data_files": {"train": "s.csv", "validation": "s.csv"}},
            "ner": {"path": "json", "data_files": {"train": "n.jsonl", "test": "n.jsonl"}},
        },
        "tasks": {
            "sentiment": {"type": "sequence-classification", "text_column": "text", "label_column": "label"},
            "ner": {"type": "token-classification", "label_names": ["O", "B-PER"]},
        },
        "training": {"output_dir": "out", "use_cpu": True, "report_to": "none", "max_steps": 1, "learning_rate": 1e-3},
    }


def known_keys():
    """By depth of the recipe's parts, the keys that are known there."""
    return {
        (): ["backbone", "model", "datasets", "tasks", "training"],
        ("model",): list(model_keys()),
        ("training",): [field.name for field in dataclasses.fields(MultiTaskTrainingArguments) if field.init],
        ("datasets", "sentiment"): [*parameters_of(load_dataset), "sep", "delimiter", "na_values", "column_names"],
        ("datasets", "ner"): [*parameters_of(load_dataset), "field", "chunksize"],
        ("tasks", "sentiment"): sorted(
            {field.name for kind in TASK_TYPES.values() for field in dataclasses.fields(kind)}
        ),
        ("tasks", "ner"): [
            "type",
            *sorted(field.name for field in dataclasses.fields(TASK_TYPES["token-classification"])),
        ],
    }


def places(tree, path=()):
    """Paths of everything in a recipe."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


def at(tree, path):
    for key in path:
        tree = tree[key]
    return tree


def mutated(draw, keys):
    """A recipe with one to three mistakes, or correct by chance."""
    recipe = base_recipe()
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        kind = draw.choice([0, 0, 0, 0, 2, 3, 4, 5])
        if kind == 0:  # a known key with any value
            path = draw.choice([*keys, ("training",), ("training",), ("model",)])
            with contextlib.suppress(KeyError, TypeError, IndexError):  # a mutation before took the place away
                at(recipe, path)[draw.choice(keys[path])] = copy.deepcopy(draw.choice(VALUES))
            continue
        path = draw.choice(list(places(recipe)) or [("backbone",)])
        holder = at(recipe, path[:-1])
        if kind == 2:
            holder.pop(path[-1], None) if isinstance(holder, dict) else holder.pop(path[-1])
        elif kind == 3:
            holder[path[-1]] = copy.deepcopy(draw.choice(VALUES))
        elif kind == 4 and isinstance(holder, dict):
            old = str(path[-1])
            cut = draw.randrange(len(old) + 1)
            new = draw.choice([old[:cut] + old[cut + 1 :], old.upper(), old + "x", 1, True, None, 0.5, "", " ", "on"])
            holder[new] = holder.pop(path[-1])
        else:
            holder[path[-1]] = copy.deepcopy(at(recipe, draw.choice(list(places(recipe)))))
    text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
    for _ in range(draw.choice([0] * 8 + [1, 3])):
        start = draw.randrange(len(text) + 1)
        end = start + draw.choice([0, 0, 1, 5, 30])
        text = text[:start] + draw.choice([*CHARACTERS, "", text[start : end + 40]]) + text[end:]
    return text


def on_time(signum, frame):
    raise AssertionError(f"Nothing came within {SECONDS} seconds.")


@pytest.fixture
def folder(tmp_path, backbone_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "backbone").symlink_to(backbone_path())
    rows = [{"text": f"Ada likes {n}", "label": ("good", "bad")[n % 2]} for n in range(4)]
    (tmp_path / "s.csv").write_text("text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in rows))
    (tmp_path / "s.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "n.jsonl").write_text(json.dumps({"tokens": ["Ada", "won"], "ner_tags": ["B-PER", "O"]}) + "\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_every_recipe_is_prepared_or_ends_in_a_sentence(folder):
    keys = known_keys()
    before = signal.signal(signal.SIGALRM, on_time)
    own = {path.name for path in folder.iterdir()} | {"recipe.yaml"}
    data = {name: (folder / name).read_text() for name in ("s.csv", "s.jsonl", "n.jsonl")}
    prepared = 0
    try:
        for case in range(FIRST, FIRST + CASES):
            text = mutated(random.Random(case), keys)
            (folder / "recipe.yaml").write_text(text, encoding="utf-8")
            signal.alarm(SECONDS)
            try:
                prepare(argparse.Namespace(recipe=str(folder / "recipe.yaml"), teachers=None, dry_run=False), [])
                prepared += 1
            except Exception as problem:
                said = " ".join(str(problem).split())
                assert isinstance(problem, MISTAKES), f"Case {case}: {type(problem).__name__}: {said}\n{text}"
                assert len(said.split()) > 3, f"Case {case}: {type(problem).__name__} says '{said}'.\n{text}"
                assert len(said) < 2000, f"Case {case}: {said[:300]}\n{text}"
            finally:
                signal.alarm(0)
            for path in folder.iterdir():
                if path.name not in own:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            assert {name: (folder / name).read_text() for name in data} == data, f"Case {case} changed data.\n{text}"
    finally:
        signal.signal(signal.SIGALRM, before)
    assert 0 < prepared < CASES or CASES < 50
