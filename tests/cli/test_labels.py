"""``label_map``: other names for labels, whatever form the labels have."""

import json

import pytest
import yaml
from datasets import ClassLabel, Dataset, Features, Value

from hf_multitask.cli.recipe import read_recipe

TEXTS = ["good film", "bad film", "good plot"]


@pytest.fixture
def read(tmp_path):
    """A recipe whose tasks read one dataset of the given cells."""

    def make(cells, tasks, column="label", others=None, **source):
        rows = [{"text": text, "tokens": text.split(), column: cell} for text, cell in zip(TEXTS, cells)]
        (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        source = {"path": "json", "data_files": {"train": "train.jsonl", **(others or {})}, **source}
        recipe = {
            "backbone": "some-backbone",
            "datasets": {"d": source},
            "tasks": {name: {"dataset": "d", **task} for name, task in tasks.items()},
        }
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        return read_recipe(tmp_path / "recipe.yaml")

    return make


def classify(**arguments):
    return {"type": "sequence-classification", **arguments}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("cells", "given", "found"),
    [
        (["p", "n", None], {"p": "positive"}, ["positive", "n", None]),
        ([1, 0, None], {0: "no", 1: "yes"}, ["yes", "no", None]),
        ([1, 0, 1], {"0": "no", "1": "yes"}, ["yes", "no", "yes"]),
        ([True, False, True], {True: "yes", False: "no"}, ["yes", "no", "yes"]),
        ([["p", "q"], [], None], {"p": "positive"}, [["positive", "q"], [], None]),
        (["a", "b", "c"], {"a": "x", "b": "x"}, ["x", "x", "c"]),
    ],
)
def test_labels_get_other_names(streaming, cells, given, found, read):
    recipe = read(cells, {"t": classify(label_map=given)}, streaming=streaming)
    assert [row["label"] for row in recipe.load()["d"]["train"]] == found


def test_sets_in_a_cell_are_mapped_label_by_label(read):
    task = classify(label_separator=";", label_map={"joy": "happy"})
    recipe = read(["joy; fear", ";", None], {"t": task})
    assert recipe.load()["d"]["train"]["label"][:] == ["happy;fear", ";", None]


def test_classes_are_mapped_by_name(read, tmp_path):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["neg", "pos"])})
    data = Dataset.from_list([{"text": "a", "label": 1}, {"text": "b", "label": -1}], features=features)
    data.to_parquet(tmp_path / "train.parquet")
    files = {"path": "parquet", "data_files": "train.parquet"}
    for streaming in (False, True):
        recipe = read([], {"t": classify(label_map={"pos": "good"})}, streaming=streaming, **files)
        assert [row["label"] for row in recipe.load()["d"]["train"]] == ["good", None]
    with pytest.raises(ValueError, match="`label_map` names the label '1', and column 'label' has pos"):
        read([], {"t": classify(label_map={1: "good"})}, **files).load()


def test_tags_and_spans(read):
    tags = [["O", "B-X"], ["B-X", "O"], None]
    tagger = {"type": "token-classification", "label_map": {"B-X": "B-FILM"}}
    found = read(tags, {"t": tagger}, column="ner_tags").load()["d"]["train"]["ner_tags"][:]
    assert found == [["O", "B-FILM"], ["B-FILM", "O"], None]
    spans = [[{"start_offset": 0, "end_offset": 4, "label": "Q"}], [], None]
    tagger = {
        "type": "token-classification",
        "text_column": "text",
        "spans_column": "spans",
        "label_map": {"Q": "QUAL"},
    }
    for streaming in (False, True):
        rows = read(spans, {"t": tagger}, column="spans", streaming=streaming).load()["d"]["train"]
        assert [row["spans"] for row in rows] == [[{"start": 0, "end": 4, "label": "QUAL"}], [], None]
    spans[1] = [{"start_offset": 4, "end_offset": 0, "label": "Q"}]
    with pytest.raises(ValueError, match=r"Task 't': row 1 of the train data, column 'spans': the span .* Fix the row"):
        read(spans, {"t": tagger}, column="spans").load()


def test_tasks_may_name_the_labels_of_one_column_differently(read):
    tasks = {
        "fine": classify(),
        "coarse": classify(label_map={"a": "x", "b": "x"}),
        "other": classify(label_map={"a": "y"}),
        "same": classify(label_map={"a": "y"}),
    }
    recipe = read(["a", "b", "c"], tasks)
    rows = recipe.load()["d"]["train"]
    found = {name: rows[task.label_column][:] for name, task in recipe.tasks.items()}
    assert found["fine"] == ["a", "b", "c"] and found["coarse"] == ["x", "x", "c"]
    assert found["other"] == found["same"] == ["y", "b", "c"]
    recipe = read(["a", "b", "c"], {"one": tasks["other"], "two": tasks["same"]})
    assert recipe.load()["d"]["train"]["label"][:] == ["y", "b", "c"]


def test_only_a_whole_recipe_has_all_labels(read, tmp_path):
    (tmp_path / "test.jsonl").write_text('{"text": "a", "label": "p"}\n')
    recipe = read(["p", "n", "n"], {"t": classify(label_map={"n": "negative"})}, others={"test": "test.jsonl"})
    assert recipe.load(["test"])["d"]["test"]["label"][:] == ["p"]
    (tmp_path / "test.jsonl").write_text('{"text": "a"}\n')  # without labels
    assert recipe.load()["d"]["test"].column_names == ["text"]


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (
            classify(label_map={"pp": "x"}),
            "`label_map` names the label 'pp', and column 'label' has n, p. Did you mean 'p'",
        ),
        (classify(label_map={"zzz": "x"}), "`label_map` names the label 'zzz', .* Remove it"),
        (classify(label_map=["p"]), "`label_map` should be a mapping"),
        (classify(label_map={}), "`label_map` should be a mapping"),
        (classify(label_map={"p": False}), "`label_map` should be a mapping .* Put names such as 'no' in quotes"),
        ({"type": "fill-mask", "label_map": {"p": "x"}}, "`label_map` is for tasks whose labels have names"),
        ({"type": "token-classification", "label_separator": ";"}, "has no argument 'label_separator'"),
    ],
)
def test_maps_that_cannot_be(task, said, read):
    with pytest.raises(ValueError, match=f"Task 't'.*{said}"):
        read(["p", "n", "n"], {"t": task}).load()


def test_numbers_need_a_name_each(read):
    with pytest.raises(
        ValueError, match="row 1 of the train data has the label 2 in column 'label', which `label_map`"
    ):
        read([1, 2, 1], {"t": classify(label_map={1: "x"})}).load()
