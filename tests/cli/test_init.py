"""Recipes that are written for data: the tasks that its columns are for, and a training of the recipe as it is."""

import csv
import json
import os
from pathlib import Path

import pytest
from tiny import read_rows

from hf_multitask.cli import main
from hf_multitask.cli.recipe import read_recipe

DATA = os.environ.get("HF_MULTITASK_DATA")
# By dataset, its tasks: the type and the column of the labels.
REAL = {
    "atis": {("token-classification", "slot_tags"), ("sequence-classification", "intent")},
    "banking77": {("sequence-classification", "label")},
    "codah": {("multiple-choice", "label")},
    "fsdd": {
        ("automatic-speech-recognition", "text"),
        ("audio-classification", "label"),
        ("audio-classification", "speaker"),
    },
    "nlupp_banking": {("token-classification", "slots"), ("sequence-classification", "labels")},
    "scitldr": {("summarization", "summary")},
    "sick": {("sequence-classification", "label"), ("sequence-classification", "relatedness_score")},
    "trec": {("sequence-classification", "coarse_label"), ("sequence-classification", "fine_label")},
    "ud_french_sequoia": {("dependency-parsing", "deprel"), ("token-classification", "upos")},
    "ud_english_ewt": {("token-classification", "upos")},
    "wikitext2_small": {("fill-mask", "text")},
    "xquad_en": {("question-answering", "answers")},
}


@pytest.fixture
def init(tmp_path, monkeypatch, capsys):
    """Runs the command in a folder of its own, and returns its exit code, what it prints, and the recipe."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        code = main(["init", *words])
        printed = capsys.readouterr()
        return code, printed.out + printed.err, Path("recipe.yaml")

    return run


def reviews(count):
    return [{"text": row["text"], "label": row["label"]} for row in read_rows("sentiment", "train", count)]


def table(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.mark.trainer
def test_the_recipe_trains_as_it_is(init, backbone_path, tmp_path, capsys):
    rows = [{**row, "id": number, "stars": 0.5 * (number % 9)} for number, row in enumerate(reviews(60))]
    table(tmp_path / "data" / "reviews.csv", rows)
    lines(tmp_path / "data" / "wiki-train.jsonl", read_rows("ner", "train", 24))
    lines(tmp_path / "data" / "wiki-dev.jsonl", read_rows("ner", "validation", 8))
    code, printed, recipe = init(
        "data/reviews.csv", "data/wiki-train.jsonl", "data/wiki-dev.jsonl", "--backbone", backbone_path()
    )
    assert code == 0 and "hf-multitask train recipe.yaml" in printed
    assert "reviews_label: sequence-classification, as 'label' has 2 different labels" in printed
    text = recipe.read_text()
    assert "# 'ner_tags' has as many tags as 'tokens' has words." in text and "No task reads id." in text
    found = read_recipe(recipe)
    assert list(found.tasks) == ["reviews_label", "reviews_stars", "wiki"]
    assert found.tasks["reviews_stars"].problem_type == "regression"
    assert found.datasets["reviews"]["validation_fraction"] == 0.1
    assert main(["train", "recipe.yaml", "--max_steps", "2", "--use_cpu", "true", "--report_to", "none"]) == 0
    assert "eval_wiki_f1" in json.loads(Path("out/all_results.json").read_text())


@pytest.mark.skipif(DATA is None, reason="HF_MULTITASK_DATA names no folder of datasets")
@pytest.mark.parametrize("name", REAL)
def test_real_columns_are_read_as_what_they_are(name, init):
    code, printed, recipe = init(str(Path(DATA) / name))
    assert code == 0, printed
    tasks = read_recipe(recipe).tasks
    assert {(task.type, task.target_column) for task in tasks.values()} == REAL[name]


def test_tasks_of_another_backbone_are_left_out_with_the_reason(init, tmp_path):
    lines(tmp_path / "speech.jsonl", [{"audio": f"{number}.wav", "text": "one two three"} for number in range(8)])
    table(tmp_path / "reviews.csv", reviews(20))
    code, printed, recipe = init("speech.jsonl", "reviews.csv")
    assert code == 0 and "left out: It needs another backbone, of the kind speech encoder." in printed
    assert list(read_recipe(recipe).tasks) == ["reviews"] and "# speech: {" in recipe.read_text()


def test_lists_that_a_table_holds_as_text_are_no_classes(init, tmp_path):
    topics = [["news", "sports"], ["news"], ["arts"]]
    rows = [{**row, "topics": json.dumps(topics[number % 3])} for number, row in enumerate(reviews(24))]
    table(tmp_path / "reviews.csv", rows)
    lines(tmp_path / "same.jsonl", [{**row, "topics": json.loads(row["topics"])} for row in rows])
    code, printed, recipe = init("reviews.csv", "same.jsonl")
    assert code == 0
    assert """'topics' has lists that are written as text, such as ["news", "sports"]. Give a file of JSON""" in printed
    tasks = read_recipe(recipe).tasks
    assert {(task.dataset, task.label_column) for task in tasks.values()} == {
        ("reviews", "label"),
        ("same", "label"),
        ("same", "topics"),
    }


def test_values_that_yaml_would_read_as_others_are_quoted(init, tmp_path):
    lines(tmp_path / "no.jsonl", [{"text": "a b c d", "on": label} for label in ("yes", "no") * 4])
    code, _, recipe = init("no.jsonl")
    assert code == 0
    assert read_recipe(recipe).tasks["no"].label_column == "on"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["numbers.csv"],
            "No column looks like texts, recordings or labels of some: numbers has a, b. Write the recipe",
        ),
        (["nowhere.csv"], "There is no file 'nowhere.csv'. Check the path."),
        (["notes.docx"], "The format of 'notes.docx' is not known. Give files that end in .csv"),
        (["reviews.csv", "--output", "taken.yaml"], "There is a file 'taken.yaml' already."),
        (["reviews.csv", "--output", "no/recipe.yaml"], "There is no folder 'no' for the recipe."),
        (["reviews.csv", "--epochs", "3"], "init does not accept the argument '--epochs'. Remove it."),
        (["a-test.csv", "a-validation.csv"], "has no rows for training. Name a file whose name ends in 'train'."),
        (["a-test.csv", "a_test.csv"], "are both the test split of 'a'. Give one of them."),
        (["empty.csv"], "is empty. Add rows."),
        (["header.csv"], "Dataset 'header' has no rows. Add rows."),
        (["infinite.csv"], "'score' has numbers that are not finite, such as inf. Fix or remove these rows."),
    ],
)
def test_mistakes_are_one_sentence(words, message, init, tmp_path):
    table(tmp_path / "numbers.csv", [{"a": number, "b": -number} for number in range(9)])
    for name in ("reviews", "a-test", "a_test", "a-validation"):
        table(tmp_path / f"{name}.csv", reviews(20))
    for name in ("notes.docx", "taken.yaml", "empty.csv"):
        (tmp_path / name).write_text("")
    (tmp_path / "header.csv").write_text("text,label\n")
    table(tmp_path / "infinite.csv", [{"text": "three words here", "score": score} for score in (0.5, "inf", 1.5)])
    code, printed, recipe = init(*words)
    assert code == 2 and message in printed and "Traceback" not in printed and not recipe.exists()


@pytest.mark.parametrize("delimiter", [";", "|", "\t"])
def test_the_delimiter_is_that_of_the_header(delimiter, init, tmp_path):
    rows = [f"One, two and {number}{delimiter}{number % 2}" for number in range(8)]
    (tmp_path / "reviews.csv").write_text("\n".join([f"text{delimiter}label", *rows]), encoding="utf-8-sig")
    code, printed, recipe = init("reviews.csv")
    assert code == 0, printed
    found = read_recipe(recipe)
    task = found.tasks["reviews"]
    assert (task.type, task.text_column, task.label_column) == ("sequence-classification", "text", "label")
    assert found.load()["reviews"]["train"]["text"][0].startswith("One, two and ")


def test_spans_that_overlap_are_nested(init, tmp_path):
    spans = [{"start": 0, "end": 9, "label": "org"}, {"start": 4, "end": 9, "label": "place"}]
    lines(tmp_path / "nested.jsonl", [{"text": f"The Hague {number} times", "spans": spans} for number in range(8)])
    code, printed, recipe = init("nested.jsonl")
    assert code == 0 and "some of which overlap" in printed
    assert read_recipe(recipe).tasks["nested"].type == "span-classification"
