"""Datasets of a recipe: their splits, the names of their files, and the cells of their tables."""

import gzip
import json

import pytest
import yaml
from datasets import Dataset
from transformers.utils import logging

from hf_multitask.cli.recipe import read_recipe

HEADER = "text,label\n"


@pytest.fixture
def recipe(tmp_path):
    """A recipe with one dataset, for a task of one's choice."""

    def make(task=None, name="recipe.yaml", **source):
        content = {
            "backbone": "some-backbone",
            "datasets": {"s": source},
            "tasks": {"s": task or {"type": "sequence-classification"}},
        }
        (tmp_path / name).write_text(yaml.safe_dump(content), encoding="utf-8")
        return read_recipe(tmp_path / name)

    return make


@pytest.fixture
def write(tmp_path):
    def make(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return name

    return make


def line(text):
    return json.dumps({"text": text, "label": "a"}) + "\n"


# Splits


@pytest.mark.parametrize("name", ["dev", "val", "valid", "validation"])
def test_names_of_validation(name, recipe, write):
    files = {"train": write("a.jsonl", line("a")), name: write("b.jsonl", line("b"))}
    loaded = recipe(path="json", data_files=files).load()["s"]
    assert {split: rows["text"][:] for split, rows in loaded.items()} == {"train": ["a"], "validation": ["b"]}


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"train": "a.jsonl", "tset": "a.jsonl"}, "names the split 'tset' in data_files; .* Did you mean 'test'?"),
        ({"Train": "a.jsonl"}, "names the split 'Train' in data_files; .* Did you mean 'train'?"),
        ({"train": "a.jsonl", "zzz": "a.jsonl"}, "names the split 'zzz' in data_files; .* Rename it"),
        ({1: "a.jsonl"}, "names the split 1 in data_files"),
        ({"train": "a.jsonl", "val": "a.jsonl", "validation": "a.jsonl"}, "'val' and 'validation', and both mean"),
        ({"train": []}, "data_files has no file for a split"),
        ({"train": None}, "a data file should be a path. Found None"),
        ({"train": "a\0b"}, "a data file should be a path"),
        ({"train": "."}, "is a folder or not a regular file"),
        ({"train": "x" * 300}, "there is no file"),
        ("none*.jsonl", "there is no file"),
        ({}, "has no 'data_files'"),
    ],
)
def test_data_files_that_are_no_splits(files, said, recipe, write):
    write("a.jsonl", line("a"))
    with pytest.raises(ValueError, match=f"Dataset 's'.*{said}"):
        recipe(path="json", data_files=files)


def test_further_splits_of_a_folder_are_left_out_with_a_message(recipe, tmp_path, caplog):
    folder = tmp_path / "set"
    readme = "---\nconfigs:\n- config_name: default\n  data_files:\n"
    for split in ("train", "dev", "hard"):
        Dataset.from_list([{"text": split, "label": "a"}]).to_json(folder / f"{split}.jsonl")
        readme += f"  - {{split: {split}, path: {split}.jsonl}}\n"
    (folder / "README.md").write_text(readme + "---\n")
    read = recipe(path="set")
    logging.enable_propagation()
    try:
        loaded = read.load()["s"]
    finally:
        logging.disable_propagation()
    assert {split: rows["text"][:] for split, rows in loaded.items()} == {"train": ["train"], "validation": ["dev"]}
    assert caplog.text.count("Dataset 's' also has the splits hard, which are not read") == 1
    assert read.load(["hard"])["s"]["hard"]["text"][:] == ["hard"]
    (folder / "README.md").write_text(readme + "  - {split: val, path: hard.jsonl}\n---\n")
    with pytest.raises(ValueError, match="has the splits 'dev' and 'val', and both mean validation"):
        read.load()


# Names


NAMES = ["a[1]", "b*", "c**", "d?", "$HOME", "${HOME}", "~", "e f", "ü€😀", "g]h", "{i,j}", "k::l", "[!m]", "#n", ".o"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_exists_is_no_pattern(name, recipe, write, tmp_path):
    (tmp_path / "b").mkdir()  # what patterns would find as well
    for other in ("a1", "bx", "cx", "dx", "m", "b/x"):
        write(f"{other}.jsonl", line("wrong"))
    files = {"train": write(f"{name}.jsonl", line("file")), "test": write(f"{name}/x.jsonl", line("folder"))}
    for streaming in (False, True):
        loaded = recipe(path="json", data_files=files, streaming=streaming).load()["s"]
        assert [row["text"] for row in loaded["train"]] == ["file"]
        assert loaded["test"]["text"][:] == ["folder"]


@pytest.mark.parametrize("name", ["a[1]", "b*", "$HOME", "~", "e f", "{i,j}"])
def test_a_folder_that_exists_is_no_pattern(name, recipe, write):
    write(f"{name}/train.jsonl", line("train"))
    write(f"{name}/test.jsonl", line("test"))
    for source in ({"path": name}, {"path": "json", "data_dir": name}):
        loaded = recipe(**source).load()["s"]
        assert {split: rows["text"][:] for split, rows in loaded.items()} == {"train": ["train"], "test": ["test"]}


def test_a_changed_file_of_an_odd_name_is_read_again(recipe, write):
    for text in ("first", "second time"):
        source = recipe(path="json", data_files=write("$HOME.jsonl", line(text)))
        assert source.load()["s"]["train"]["text"][:] == [text]


def test_patterns(recipe, write):
    for name in ("x/1.jsonl", "x/2.jsonl", "x/y/3.jsonl"):
        write(name, line(name))
    for pattern, found in (("x/*.jsonl", 2), ("x/[13].jsonl", 1), ("x/**/*.jsonl", 3), ("x/?.jsonl", 2)):
        assert len(recipe(path="json", data_files=pattern).load()["s"]["train"]) == found


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"path": "t.csv"}, "'path' names the file '.*t.csv'. Write path: csv"),
        ({"path": "t.tsv"}, "Write path: csv"),
        ({"path": "./nowhere"}, "names the folder '.*nowhere', which does not exist"),
        ({"path": "a/b/c"}, "names the folder '.*a/b/c', which does not exist"),
        ({"path": "*"}, r"names the folder '.*\*', which does not exist"),
        ({"path": "csv", "data_files": "t.csv", "cache_dir": "a::b"}, "`cache_dir` cannot contain '::'"),
        ({"path": ["csv"]}, r"has no 'path'.*Found \['csv'\]"),
        ({"path": "csv"}, "has no 'data_files'"),
        ({"path": "csv", "data_dir": "nowhere"}, "there is no folder '.*nowhere'"),
        ({"path": "csv", "data_files": "t.csv", "delimeter": ";"}, "unknown key 'delimeter'.*Did you mean 'delimiter'"),
        ({"path": "json", "data_files": "t.csv", "delimiter": ";"}, "unknown key 'delimiter'"),
        ({"path": "csv", "data_files": "t.csv", "config_kwargs": {}}, "unknown key 'config_kwargs'"),
        ({"path": "json", "data_files": "t.csv", "streaming": "false"}, "`streaming` should be true or false. Found"),
        ({"path": "csv", "data_files": "t.csv", "keep_default_na": "false"}, "should be true or false.*the quotes"),
        ({"path": "csv", "data_files": "t.csv", "chunksize": "10"}, "`chunksize` should be a whole number.*the quotes"),
    ],
)
def test_arguments(source, said, recipe, write):
    write("t.csv", HEADER + "a,b\n")
    write("t.tsv", "text\tlabel\na\tb\n")
    with pytest.raises(ValueError, match=f"Dataset 's'.*{said}"):
        recipe(**source)


@pytest.mark.parametrize(
    ("source", "content", "found"),
    [
        ({"path": "csv", "sep": ";", "quotechar": "'"}, "text;label\n'a;b';c\n", {"text": "a;b", "label": "c"}),
        ({"path": "csv", "column_names": ["text", "label"]}, "a,b\n", {"text": "a", "label": "b"}),
        ({"path": "csv", "encoding": "latin-1"}, "text,label\nä,b\n".encode("latin-1"), {"text": "ä", "label": "b"}),
        ({"path": "json", "field": "rows"}, '{"rows": [{"text": "a"}]}', {"text": "a"}),
        ({"path": "text", "sample_by": "paragraph"}, "a\nb\n\nc\n", {"text": "a\nb"}),
    ],
)
def test_a_builder_takes_the_keys_of_its_configuration(source, content, found, recipe, write):
    loaded = recipe(data_files=write("file", content), **source).load()["s"]["train"]
    assert loaded[0] == found


# Cells


def test_words_for_nothing_are_labels_and_an_empty_cell_is_none(recipe, write):
    labels = ["None", "NA", "null", "nan", "N/A", "", "x"]
    text = HEADER + "".join(f"t,{label}\n" for label in labels)
    found = [None if label == "" else label for label in labels]
    packed = write("t.csv.gz", gzip.compress(text.encode()))
    for name in (write("t.csv", text), packed):
        assert recipe(path="csv", data_files=name).load()["s"]["train"]["label"][:] == found
    tabs = write("t.tsv", text.replace(",", "\t"))
    assert recipe(path="csv", data_files=tabs).load()["s"]["train"]["label"][:] == found
    own = recipe(path="csv", data_files="t.csv", na_values="x").load()["s"]["train"]["label"][:]
    assert own == [*found[:-1], None]
    pandas = recipe(path="csv", data_files="t.csv", keep_default_na=True).load()["s"]["train"]["label"][:]
    assert pandas == [None] * 6 + ["x"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (HEADER + "a,b,c\nd,e,f\n", "line 2 has 3 cells, but the header has 2"),
        ("\n" + HEADER + '"a\nb",c,d\n', "line 3 has 3 cells, but the header has 2"),
        (HEADER + "a,b,\n", "line 2 has 3 cells, but the header has 2"),
        (HEADER + "a,b\nc,d,e\n", "line 3 has 3 cells, but the header has 2"),
        (HEADER + "a,b\n" * 30_000 + "c,d,e\n", "line 30002 has 3 cells, but the header has 2"),
    ],
)
def test_a_row_with_more_cells_than_the_header_is_refused(text, said, recipe, write):
    good, bad = write("good.csv", HEADER + "a,b\n"), write("bad.csv", text)
    source = recipe(path="csv", data_files={"train": good, "test": bad})
    with pytest.raises(
        ValueError, match=f"Dataset 's': the file '.*bad.csv' is not a usable table: .*{said}.*Quote the"
    ):
        source.load()


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_a_table_in_another_encoding_is_refused(encoding, recipe, write):
    bad = write("bad.csv", (HEADER + "schön,b\n").encode(encoding))
    with pytest.raises(ValueError, match=r"'.*bad.csv' is not in UTF-8: .*Save it as UTF-8, or set encoding"):
        recipe(path="csv", data_files=bad).load()


def test_a_row_with_fewer_cells_has_no_label(recipe, write):
    loaded = recipe(path="csv", data_files=write("t.csv", HEADER + "a,b\nc\n")).load()["s"]["train"]
    assert loaded["label"][:] == ["b", None]
