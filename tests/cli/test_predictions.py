"""``evaluate --save_predictions``: the answers that a pipeline gives, beside the labels, for the rows that are measured."""

import json

import pytest
from datasets import ClassLabel

from hf_multitask import SequenceClassification
from hf_multitask.cli.predictions import _gold, _parts

SETS = {"problem_type": "multi_label_classification", "label_names": ["a", "b"]}


@pytest.fixture
def trained(kitchen):
    """The folder of a model that the recipe has trained for a step."""
    code, _, err = kitchen.run(["train"], kitchen.changed("training", max_steps=1, eval_strategy="no"))
    assert code == 0, err
    return str(kitchen.folder / "out")


def lines(kitchen, trained, *words, code=0):
    file = kitchen.folder / "new" / "predictions.jsonl"
    result = kitchen.run(["evaluate", trained], None, "--save_predictions", str(file), *words)
    assert result[0] == code, result[2]
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()], result[1]


def test_lines_agree_with_the_metrics(kitchen, trained):
    found, table = lines(kitchen, trained, "--split", "validation")
    assert all(list(line) == ["id", "task", "gold", "answer", "score"] for line in found)
    sentiment, ner = ([line for line in found if line["task"] == task] for task in ("sentiment", "ner"))
    assert [line["id"] for line in sentiment] == list(range(9)) and len(ner) == 7
    accuracy = sum(line["gold"] == line["answer"] for line in sentiment) / 9
    assert f"{accuracy:.4f}" in next(row for row in table.splitlines() if row.split()[:2] == ["sentiment", "accuracy"])
    assert all(0.5 <= line["score"] <= 1 for line in sentiment)
    assert all(isinstance(line["answer"], list) and line["score"] is None for line in ner)
    capped, _ = lines(kitchen, trained, "--max_eval_samples", "3")
    assert sum(line["task"] == "ner" for line in capped) == 3
    assert not list((kitchen.folder / "new").glob("*.new"))


def test_a_column_id_is_the_id_and_a_folder_is_no_file(kitchen, trained):
    rows = [{"id": f"row {number}", "text": "fine", "label": "positive"} for number in range(2)]
    kitchen.write("sentiment/test.jsonl", rows)
    found, _ = lines(kitchen, trained)
    assert [line["id"] for line in found if line["task"] == "sentiment"] == ["row 0", "row 1"]
    code, _, err = kitchen.run(["evaluate", trained], None, "--save_predictions", str(kitchen.folder))
    assert code == 2 and "--save_predictions names the folder" in err


@pytest.mark.parametrize(
    ("cell", "arguments", "gold"),
    [
        ("b", {}, "b"),
        (1, {}, "b"),
        (1.0, {}, "b"),
        (None, {}, None),
        ("1", {}, "1"),
        (["b", "a"], {"label_format": "set"}, ["b", "a"]),
        ([1], {"label_format": "set"}, ["b"]),
        ([0, 1], {"label_format": "vector"}, ["b"]),
        ("a ; b", {"label_separator": ";"}, ["a", "b"]),
        (1, {"problem_type": "regression"}, 1),
        (0.5, {"problem_type": "regression"}, 0.5),
    ],
)
def test_gold_is_in_the_words_of_the_answers(cell, arguments, gold):
    assert _gold(cell, None, SequenceClassification(label_names=["a", "b"], **arguments)) == gold


def test_gold_of_classes_is_their_name():
    classes = ClassLabel(names=["b", "a"])
    task = SequenceClassification(label_names=["a", "b"])
    assert [_gold(cell, classes, task) for cell in (0, 1, -1)] == ["b", "a", None]


@pytest.mark.parametrize(
    ("answer", "arguments", "parts"),
    [
        ({"label": "a", "score": 0.9}, {}, ("a", 0.9)),
        ({"label": "LABEL_0", "score": 3.5}, {"problem_type": "regression"}, (3.5, None)),
        ([{"label": "a", "score": 0.9}, {"label": "b", "score": 0.1}], {}, (["a"], {"a": 0.9, "b": 0.1})),
        ([{"label": "a", "score": 0.2}], {**SETS, "threshold": 0.1}, (["a"], {"a": 0.2})),
        ({"score": 0.4, "start": 1, "end": 2, "answer": "x"}, {}, ("x", 0.4)),
        ({"index": 1, "choice": "x", "score": 0.4}, {}, (1, 0.4)),
        ({"generated_text": "x"}, {}, ("x", None)),
        ({"score": 0.4}, {}, (0.4, None)),
        ([{"entity": "X", "score": 0.4}], {}, ([{"entity": "X", "score": 0.4}], None)),
        ({"count": 4}, {}, ({"count": 4}, None)),
    ],
)
def test_an_answer_and_its_score(answer, arguments, parts):
    assert _parts(answer, SequenceClassification(**arguments)) == parts
