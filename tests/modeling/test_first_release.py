"""Models as the first release saved them, kept for ever: they load and answer as they did then.

A change of the format adds a folder beside these and leaves them as they are.
"""

import json
from pathlib import Path

import pytest
from reading import assert_same
from transformers import AutoConfig, pipeline

from hf_multitask import MultiTaskTrainer, MultiTaskTrainingArguments

FOLDER = Path(__file__).parent / "first_release"
ANSWERS = Path(__file__).parent / "format_2" / "answers.json"  # of the same weights
MODELS = ("encoder", "decoder", "writer")


@pytest.mark.parametrize("name", MODELS)
def test_it_answers_as_it_did(name):
    ask = pipeline("multitask", str(FOLDER / name))
    for asked, tasks, answer in json.loads((FOLDER / name / "answers.json").read_text(encoding="utf-8")):
        assert_same(json.loads(json.dumps(ask(asked, tasks=tasks))), answer)


@pytest.mark.trainer
def test_its_rules_are_named_once_and_left_by_a_trainer(caplog, tmp_path):
    ask = pipeline("multitask", str(FOLDER / "encoder"))
    task = next(task["name"] for task in ask.model.config.tasks if task["type"] == "token-classification")
    text = "Ada (Lovelace) left the U.K., by e-mail."
    old = ask([text, text], tasks=[task])[0]
    assert caplog.text.count("The model is of format 1") == 1
    arguments = MultiTaskTrainingArguments(str(tmp_path), report_to="none", use_cpu=True)
    MultiTaskTrainer(model=ask.model, args=arguments, processing_class=ask.tokenizer)
    assert "read words by the rules of format 2" in caplog.text
    assert ask.model.config.format_version == 2
    assert ask(text, tasks=[task]) != old
    ask.model.save_pretrained(tmp_path / "new")
    assert AutoConfig.from_pretrained(tmp_path / "new").format_version == 2


@pytest.mark.parametrize("name", ["encoder"])
def test_it_answers_by_the_rules_of_format_2_as_it_did(name):
    ask = pipeline("multitask", str(FOLDER / name))
    ask.model.config.format_version = 2
    for asked, tasks, answer in json.loads(ANSWERS.read_text(encoding="utf-8"))[name]:
        assert_same(json.loads(json.dumps(ask([asked], tasks=tasks)[0])), answer)


def test_the_models_are_of_the_first_format_and_of_every_type_it_had():
    configs = [AutoConfig.from_pretrained(FOLDER / name) for name in MODELS]
    assert {config.format_version for config in configs} == {1}
    assert len({task["type"] for config in configs for task in config.tasks}) == 10
