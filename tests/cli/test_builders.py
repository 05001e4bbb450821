"""Builders of ``datasets`` with the keys of their own configuration, and databases."""

import sqlite3
from contextlib import closing

import pytest
import yaml
from datasets import Dataset

from hf_multitask.cli.recipe import read_recipe


@pytest.fixture
def load(tmp_path):
    def make(**source):
        recipe = {"backbone": "b", "datasets": {"s": source}, "tasks": {"s": {"type": "sequence-classification"}}}
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
        return read_recipe(tmp_path / "recipe.yaml").load()["s"]

    return make


@pytest.fixture
def database(tmp_path):
    with closing(sqlite3.connect(tmp_path / "reviews.db")) as connection:
        connection.execute("CREATE TABLE reviews (text TEXT, stars INTEGER, label TEXT)")
        rows = [("good", 5, "pos"), ("bad", 1, "neg"), ("fine", 4, None)]
        connection.executemany("INSERT INTO reviews VALUES (?, ?, ?)", rows)
        connection.commit()
    return {"path": "sql", "con": "sqlite:///reviews.db"}


# conll


def test_conll(load, tmp_path):
    (tmp_path / "a.conll").write_text("-DOCSTART- -X- O\n\n# x\nAda NNP B-PER\nslept VBD O\n\nNo DT O\n")
    names = ["tokens", "pos", "ner_tags"]
    found = load(path="conll", data_files="a.conll", column_names=names, comment_prefix="#")["train"]
    assert found.column_names == names and found["ner_tags"][:] == [["B-PER", "O"], ["O"]]
    with pytest.raises(ValueError, match=r"line 3 of '.*a.conll' has 2 cells, and there are 3 column_names"):
        load(path="conll", data_files="a.conll", column_names=names)
    with pytest.raises(ValueError, match=r"unknown key 'columns_names'.*Did you mean 'column_names'"):
        load(path="conll", data_files="a.conll", columns_names=names)


# parquet, xml


def test_parquet_and_xml(load, tmp_path):
    Dataset.from_list([{"text": "a", "label": "b", "more": 1}]).to_parquet(tmp_path / "a.parquet")
    assert load(path="parquet", data_files="a.parquet", columns=["text", "label"])["train"][0] == {
        "text": "a",
        "label": "b",
    }
    (tmp_path / "a.xml").write_text("<a>ä</a>", encoding="latin-1")
    assert load(path="xml", data_files="a.xml", encoding="latin-1")["train"][0] == {"xml": "<a>ä</a>"}
    with pytest.raises(ValueError, match="`columns` should be a list of strings"):
        load(path="parquet", data_files="a.parquet", columns="text")


# sql


def test_a_query_makes_the_rows_as_they_are_now(load, database, tmp_path):
    query = "SELECT text, label FROM reviews WHERE stars > 1"
    assert load(**database, sql=query)["train"][:] == {"text": ["good", "fine"], "label": ["pos", None]}
    with closing(sqlite3.connect(tmp_path / "reviews.db")) as connection:
        connection.execute("DELETE FROM reviews WHERE stars = 4")
        connection.commit()
    assert load(**database, sql=query)["train"]["text"][:] == ["good"]


def test_a_query_for_each_split_a_table_and_parts(load, database):
    queries = {"train": "reviews", "dev": "SELECT * FROM reviews WHERE stars = 5"}
    found = load(**database, sql=queries)
    assert found["train"]["stars"][:] == [5, 1, 4] and found["validation"]["text"][:] == ["good"]
    found = load(**database, sql="reviews", validation_fraction=0.4, rename_columns={"stars": "score"})
    assert len(found["train"]) == 2 and found["validation"].column_names == ["text", "score", "label"]


def test_parameters_of_a_query(load, database):
    found = load(**database, sql="SELECT text FROM reviews WHERE stars = ?", params=[5])
    assert found["train"]["text"][:] == ["good"]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"con": "reviews.db"}, "`con` should be the address of a database"),
        ({"con": None}, "`con` should be the address of a database"),
        ({"con": "sqlite:///none.db"}, "there is no database '.*none.db'"),
        ({"sql": None}, "`sql` should be a query or a table"),
        ({"sql": {"trian": "reviews"}}, "names the split 'trian' in sql"),
        ({"sql": "SELECT missing FROM reviews"}, "could not be loaded: .*no such column: missing"),
        ({"data_files": "a.csv"}, "`data_files` does not apply to a database"),
        ({"streaming": True}, "`streaming` does not apply to a database"),
        ({"sqll": "x"}, "unknown key 'sqll'.*Did you mean 'sql'"),
        ({"con": "postgresql://me:password@nowhere/db"}, "could not be loaded"),
    ],
)
def test_queries_that_cannot_be(values, said, load, database):
    with pytest.raises(ValueError, match=f"Dataset 's'.*{said}"):
        load(**{**database, "sql": "reviews", **values})
