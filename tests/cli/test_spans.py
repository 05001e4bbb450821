"""Spans that nest, by the command line: the example of the documentation, and what goes wrong."""

import json
import re

import pytest
import yaml
from pages import DOCS

from hf_multitask.cli import main

SECTION = (DOCS / "tasks.md").read_text(encoding="utf-8").partition("**Nested spans.**")[2].partition("**Answers**")[0]


def block(language):
    (found,) = re.findall(rf"```{language}\n(.*?)```", SECTION, flags=re.DOTALL)
    return found


@pytest.fixture
def example(kitchen):
    """The recipe of the page on a tiny backbone, and its row in both splits."""
    row = json.loads(block("json"))
    for split in ("train", "validation"):
        kitchen.write(f"{split}.jsonl", [row] * 4)
    recipe = yaml.safe_load(block("yaml"))
    recipe["training"] |= {"learning_rate": 5e-3, "use_cpu": True, "report_to": "none", "save_strategy": "no"}
    recipe["training"] |= {"output_dir": str(kitchen.folder / "out"), "num_train_epochs": 200}
    return recipe | {"backbone": "backbone", "model": {"dropout": 0.0}}, row


@pytest.mark.slow
def test_the_example_of_the_page_trains_measures_predicts_and_explains_itself(example, kitchen, capsys):
    recipe, row = example
    code, out, errors = kitchen.run(["train"], recipe)
    assert code == 0, errors
    model, file = str(kitchen.folder / "out"), kitchen.folder / "predictions.jsonl"
    code, out, errors = kitchen.run(
        ["evaluate", model], recipe, "--split", "validation", "--save_predictions", str(file)
    )
    assert code == 0 and re.search(r"entities +f1 +1.0000", out), out + errors
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    gold = [[span["start"], span["end"], span["label"]] for span in row["spans"]]
    assert [[list(span.values()) for span in line["gold"]] for line in lines] == [gold] * 4
    told = [[span["start"], span["end"], span["entity_group"]] for span in lines[0]["answer"]]
    assert told == gold  # by heart, the outer one first
    assert main(["predict", model, row["text"]]) == 0
    answer = json.loads(capsys.readouterr().out)["entities"]
    assert [span["word"] for span in answer] == ["University of Oslo", "Oslo"]
    card = (kitchen.folder / "out" / "README.md").read_text()
    assert "span-classification" in card and "token-classification" in card.partition("# ")[0]
    assert main(["export", model, "--task", "entities", "--output", str(kitchen.folder / "one")]) == 2
    assert "has a head for which Transformers has no class" in capsys.readouterr().err


def test_a_span_outside_of_its_text_is_one_sentence(example, kitchen):
    recipe, row = example
    kitchen.write("train.jsonl", [row, {**row, "spans": [{"start": 4, "end": 99, "label": "ORG"}]}])
    code, _, errors = kitchen.run(["train"], recipe)
    assert code == 2 and "row 1 of the train data has a span from 4 to 99" in errors and "Traceback" not in errors
    recipe["tasks"]["entities"]["max_span_lenght"] = 3
    code, _, errors = kitchen.run(["train"], recipe)
    assert code == 2 and "Did you mean 'max_span_length'?" in errors
