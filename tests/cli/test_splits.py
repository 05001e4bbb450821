"""Which rows a recipe trains and evaluates on, and the names of their columns."""

import json

import pytest
import yaml
from datasets import IterableDataset
from transformers.utils import logging

from hf_multitask.cli.recipe import read_recipe


@pytest.fixture
def load(tmp_path):
    """The splits of a dataset of 20 training rows and 5 test rows with the given keys; texts are numbers."""
    for name, numbers in (("train", range(20)), ("test", range(100, 105))):
        lines = [json.dumps({"sentence": str(number), "label": "ab"[number % 2]}) for number in numbers]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")

    def run(*wanted, files=("train", "test"), task=None, **source):
        recipe = {
            "backbone": "some-backbone",
            "datasets": {"s": {"path": "json", "data_files": {name: f"{name}.jsonl" for name in files}, **source}},
            "tasks": {"s": {"type": "sequence-classification", **(task or {})}},
        }
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
        return read_recipe(tmp_path / "recipe.yaml").load(*([wanted] if wanted else []))["s"]

    return run


@pytest.fixture
def warned(caplog):
    logging.enable_propagation()
    yield caplog
    logging.disable_propagation()


def numbers(splits):
    return {split: [int(row["sentence"]) for row in rows] for split, rows in splits.items()}


# splits


def test_splits_are_parts_of_the_data_as_datasets_reads_them(load, warned):
    found = numbers(load(splits={"train": "train[:75%]", "dev": "train[75%:]+test[:1]", "test": "test[-2:]"}))
    assert found == {"train": [*range(15)], "validation": [*range(15, 20), 100], "test": [103, 104]}
    assert numbers(load(splits={"train": "test", "validation": "train[10%:20%]"})) == {
        "train": [*range(100, 105)],
        "validation": [2, 3],
    }
    assert not warned.text


def test_rows_in_two_splits_are_counted(load, warned):
    load(splits={"train": "train[:12]", "validation": "train[10:]+test", "test": "test[1:]"})
    assert "its splits train and validation have 2 rows in common, by `splits`: 'train[:12]' and" in warned.text
    assert "its splits validation and test have 4 rows in common" in warned.text
    assert "train and test" not in warned.text


@pytest.mark.parametrize(
    ("splits", "said"),
    [
        ({"train": "train", "hard": "train[:10]"}, "names the split 'hard' in splits; the splits are train"),
        ({"train": "train", "Dev": "train"}, "names the split 'Dev' in splits; .* Did you mean 'dev'?"),
        ({"train": "train", "val": "train", "dev": "test"}, "'val' and 'dev', and both mean validation. Keep one"),
        ({"train": "train[:90"}, r"sets train to 'train\[:90': Unrecognized .*as in datasets, such as 'train\[:90%\]'"),
        ({"train": "train[:200%]"}, "Percent slice boundaries"),
        ({"train": ["train"]}, r"sets train to \['train'\], which is not a text"),
        ({"train": "trian"}, "sets train to 'trian': Unknown split .* The data have the splits train, test"),
        ({"train": "train[20:]"}, "has no rows in its split 'train'"),
        ("train[:90%]", "`splits` should be a mapping"),
        ({}, "`splits` should be a mapping"),
    ],
)
def test_splits_that_cannot_be_made(splits, said, load):
    with pytest.raises(ValueError, match=f"Dataset 's'.*{said}"):
        load(splits=splits)


def test_a_stream_has_whole_splits_only(load):
    loaded = load(splits={"train": "train", "validation": "test"}, streaming=True)
    assert isinstance(loaded["train"], IterableDataset)
    assert numbers(loaded) == {"train": [*range(20)], "validation": [*range(100, 105)]}
    with pytest.raises(ValueError, match=r"'train\[:5\]', and a stream cannot be divided. Name a whole split"):
        load(splits={"train": "train[:5]"}, streaming=True)
    with pytest.raises(ValueError, match="sets train to 'all', but the data have the splits train, test"):
        load(splits={"train": "all"}, streaming=True)


# validation_fraction


def test_a_fraction_takes_the_same_rows_every_time(load):
    found = numbers(load(validation_fraction=0.2))
    assert len(found["validation"]) == 4 and found["test"] == [*range(100, 105)]
    assert sorted(found["train"] + found["validation"]) == [*range(20)]
    assert found["train"] == sorted(found["train"]) and found["validation"] != [*range(16, 20)]
    assert numbers(load("validation", validation_fraction=0.2)) == {"validation": found["validation"]}
    assert found["validation"] == [4, 10, 13, 16]  # whatever version of NumPy
    assert len(load(validation_fraction=0.001)["validation"]) == 1


def test_a_fraction_of_a_part(load):
    found = numbers(load(splits={"train": "train[:10]", "test": "train[10:]"}, validation_fraction=0.5))
    assert sorted(found["train"] + found["validation"]) == [*range(10)] and len(found["train"]) == 5


@pytest.mark.parametrize("value", [0, 1, 1.5, -0.1, "0.1", True, [0.1], float("nan")])
def test_a_fraction_is_between_0_and_1(value, load):
    with pytest.raises(ValueError, match="Dataset 's': `validation_fraction` should be a number between 0 and 1"):
        load(validation_fraction=value)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"splits": {"train": "train", "dev": "test"}}, "has a split 'validation', and `validation_fraction` would"),
        ({"splits": {"test": "train"}}, "has no split 'train' that `validation_fraction` could divide"),
        ({"splits": {"train": "train[:1]"}}, "would take 1 of 1 training rows"),
        ({"validation_fraction": 0.99}, "would take 20 of 20 training rows"),
        ({"streaming": True}, "cannot divide a stream"),
    ],
)
def test_a_fraction_that_cannot_be_taken(source, said, load):
    with pytest.raises(ValueError, match=f"Dataset 's'.*{said}"):
        load(**{"validation_fraction": 0.5, **source})


# rename_columns


@pytest.mark.parametrize("streaming", [False, True])
def test_columns_get_other_names(streaming, load):
    loaded = load(rename_columns={"sentence": "label", "label": "text"}, streaming=streaming)
    row = next(iter(loaded["train"]))
    assert row == {"label": "0", "text": "a"} and loaded["test"][0] == {"label": "100", "text": "a"}


def test_a_split_without_the_column_stays_without_it(load, tmp_path):
    (tmp_path / "extra.jsonl").write_text('{"sentence": "1"}\n')
    (tmp_path / "test.jsonl").write_text('{"text": "1"}\n')
    assert load(rename_columns={"sentence": "text", "label": "class"})["test"].column_names == ["text"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"sentense": "text"},
            "names the column 'sentense', and the data have sentence, label. Did you mean 'sentence'",
        ),
        ({"sentence": "label"}, "makes a column 'label', and the split 'train' has one already"),
        ({"sentence": "a", "label": "a"}, "gives two columns the name 'a'"),
        ({"sentence": 1}, "should be a mapping of columns"),
        (["sentence"], "should be a mapping of columns"),
    ],
)
def test_columns_that_cannot_be_renamed(given, said, load):
    with pytest.raises(ValueError, match=f"Dataset 's': `rename_columns` {said}"):
        load(rename_columns=given)


# num_proc


def test_several_processes_load_the_same_rows(load):
    assert numbers(load(num_proc=2)) == numbers(load())


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"num_proc": 0}, "`num_proc` should be 1 or more"),
        ({"num_proc": "2"}, "`num_proc` should be a whole number"),
        ({"num_proc": 2, "streaming": True}, "`num_proc` does not apply to a stream"),
    ],
)
def test_numbers_of_processes(source, said, load):
    with pytest.raises(ValueError, match=f"Dataset 's': {said}"):
        load(**source)
