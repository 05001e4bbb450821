"""Dependencies by the command line: the recipe of the documentation, and mistakes in the data."""

import json
import re

import pytest
import yaml
from pages import DOCS
from reading import tree_of
from tiny import read_rows
from transformers import AutoModel

from hf_multitask.cli import main

PAGE = (DOCS / "tasks.md").read_text(encoding="utf-8")
(EXAMPLE,) = (
    block for block in re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL) if "dependency-parsing" in block
)


def feats(word):
    return "Case=Upper" if word.istitle() else "_"


def conllu(rows):
    """Rows as CoNLL-U, with names as their parts of speech."""
    sentences = []
    for row in rows:
        tree, tags = tree_of(row), [["REST", "NAME"][tag != "O"] for tag in row["ner_tags"]]
        words = zip(row["tokens"], tags, tree["head"], tree["deprel"], strict=True)
        lines = [f"{number}\t{word}\t_\t{tag}\t_\t{feats(word)}\t{head}\t{deprel}\t_\t_" for number, (word, tag, head, deprel) in enumerate(words, 1)]  # fmt: skip
        sentences.append("\n".join(lines))
    return "\n\n".join(sentences) + "\n"


@pytest.fixture
def recipe(kitchen):
    """The recipe of the documentation, on small files."""
    made = {**kitchen.recipe, **yaml.safe_load(EXAMPLE)}
    (files,) = (source["data_files"] for source in made["datasets"].values())
    for split, path in files.items():
        (kitchen.folder / path).parent.mkdir(exist_ok=True)
        (kitchen.folder / path).write_text(conllu(read_rows("ner", split, 12)), encoding="utf-8")
    return made


def test_the_recipe_of_the_documentation_trains_evaluates_and_predicts(kitchen, recipe, capsys):
    code, out, errors = kitchen.run(["train"], recipe)
    assert code == 0, errors
    assert "Tasks that read the same dataset share its rows." in out
    model = kitchen.folder / "out"
    trained = json.loads((model / "all_results.json").read_text())
    assert {f"eval_syntax_{metric}" for metric in ("las", "uas", "loss")} <= trained.keys()
    saved = kitchen.folder / "answers.jsonl"
    code, _, errors = kitchen.run(["evaluate", str(model)], recipe, "--split", "test", "--save_predictions", str(saved))
    assert code == 0, errors
    lines = [json.loads(line) for line in saved.read_text().splitlines()]
    found = next(line for line in lines if line["task"] == "syntax")
    assert found["gold"].keys() == {"head", "deprel"} and len(found["gold"]["head"]) == len(found["answer"])
    kitchen.write("ask.jsonl", [{"tokens": ["Ada", "met", "him"]}, {"tokens": ["No"]}])
    assert main(["predict", str(model), "--input", str(kitchen.folder / "ask.jsonl"), "--tasks", "syntax"]) == 0
    first, second = (json.loads(line)["syntax"] for line in capsys.readouterr().out.splitlines())
    assert [word["id"] for word in first] == [1, 2, 3] and [word["head"] for word in second] == [0]
    assert AutoModel.from_pretrained(model).config.task("syntax")["heads_column"] == "head"
    assert main(["export", str(model), "--task", "syntax", "--output", str(kitchen.folder / "one")]) == 2
    assert "has a head for which Transformers has no class, so it is not exported" in capsys.readouterr().err


def test_heads_that_are_no_tree_are_one_sentence(kitchen, recipe):
    (files,) = (source["data_files"] for source in recipe["datasets"].values())
    path = kitchen.folder / files["train"]
    path.write_text(path.read_text() + "\n1\tAda\t_\tNAME\t_\t_\t2\tleft\t_\t_\n2\tmet\t_\tREST\t_\t_\t1\troot\t_\t_\n")
    code, _, errors = kitchen.run(["train"], recipe)
    assert code == 2 and "Traceback" not in errors
    assert "Task 'syntax': row 12 of the train data, column 'head': one word of a sentence should have" in errors
    code, _, errors = kitchen.run(
        ["train"], {**recipe, "tasks": {"syntax": {**recipe["tasks"]["syntax"], "type": "parsing"}}}
    )
    assert code == 2 and "Did you mean 'dependency-parsing'?" in errors
