"""The code of docs/coming-from.md is run, on small files like those that it names."""

import csv
import json
import re

import pytest
from pages import DOCS
from tiny import read_rows
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

from hf_multitask.cli import main

PAGE = (DOCS / "coming-from.md").read_text(encoding="utf-8")
BACKBONE = "google-bert/bert-base-uncased"
RECIPES = dict(re.findall(r"```yaml\n# (\w+\.yaml)\n(.*?)```", PAGE, flags=re.DOTALL))
TREE = "1\tBirds\tbird\tNOUN\t_\t_\t2\tnsubj\t_\t_\n2\tsing\tsing\tVERB\t_\t_\t0\troot\t_\t_\n\n"


def table(path, **columns):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([list(columns), *zip(*columns.values(), strict=True)])


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A folder with the files that the page names."""
    rows, count = read_rows("sentiment", "train", 20), 20
    texts = [row["text"] for row in rows]
    table(tmp_path / "reviews.csv", text=texts, label=[row["label"] for row in rows])
    table(tmp_path / "pairs.csv", premise=texts, hypothesis=texts[::-1], label=["yes", "no"] * (count // 2))
    table(tmp_path / "questions.csv", question=texts, answer=texts[::-1])
    table(
        tmp_path / "scored.csv",
        sentence1=texts,
        sentence2=texts[::-1],
        score=[number / count for number in range(count)],
    )
    articles = [
        {"text": text, "spans": [{"start": 0, "end": len(text.split()[0]), "label": "name"}], "topic": topic}
        for text, topic in zip(texts, ["news", "offer"] * (count // 2), strict=True)
    ]
    for name, lines in (("articles", articles), ("names", read_rows("ner", "train", count))):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    for split in ("train", "dev"):
        (tmp_path / f"ewt.{split}.conllu").write_text(TREE * 8, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def code_of(library):
    (section,) = re.findall(rf"^## {library}\n(.*?)(?=^## |\Z)", PAGE, flags=re.DOTALL | re.MULTILINE)
    (block,) = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    return block


def test_every_library_has_code_of_ours_beside_its_own():
    sections = re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]
    assert len(sections) == 6
    for section in sections:
        assert "```text\n" in section and re.search(r"```(yaml|python)\n", section) and "**Not here:**" in section
    assert len(RECIPES) == PAGE.count("```yaml\n") == 5


@pytest.mark.trainer
@pytest.mark.parametrize("name", RECIPES)
def test_recipes_train(name, desk, backbone_path):
    (desk / name).write_text(RECIPES[name].replace(BACKBONE, backbone_path()), encoding="utf-8")
    words = ["--max_steps", "1", "--use_cpu", "true", "--report_to", "none", "--save_strategy", "no"]
    assert main(["train", name, *words]) == 0
    config = json.loads((desk / "out" / "config.json").read_text())
    named = re.findall(r"^  (\w+): \{type: ", RECIPES[name], flags=re.MULTILINE)
    assert [task["name"] for task in config["tasks"]] == named


@pytest.mark.trainer
def test_the_code_beside_tasknet_trains_and_saves_both_tasks(desk, backbone_path):
    exec(code_of("tasknet").replace(BACKBONE, backbone_path()).replace('"out", ', '"out", report_to="none", '), {})
    assert [task["name"] for task in json.loads((desk / "out" / "config.json").read_text())["tasks"]] == [
        "nli",
        "sentiment",
    ]


def test_models_of_several_scripts_become_one(desk, backbone_path):
    for name, stock in (("sentiment", AutoModelForSequenceClassification), ("ner", AutoModelForTokenClassification)):
        stock.from_pretrained(backbone_path()).save_pretrained(desk / name)
    names = {}
    exec(code_of("Several scripts with the Trainer"), names)
    assert names["model"].config.task_names == ["sentiment", "ner"]
