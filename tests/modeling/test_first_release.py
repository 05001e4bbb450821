"""Models as the first release saved them, kept for ever: they load and answer as they did then.

A change of the format adds a folder beside these and leaves them as they are.
"""

import json
from pathlib import Path

import pytest
from reading import assert_same
from transformers import AutoConfig, pipeline

FOLDER = Path(__file__).parent / "first_release"
MODELS = ("encoder", "decoder", "writer")


@pytest.mark.parametrize("name", MODELS)
def test_it_answers_as_it_did(name):
    ask = pipeline("multitask", str(FOLDER / name))
    for asked, tasks, answer in json.loads((FOLDER / name / "answers.json").read_text(encoding="utf-8")):
        assert_same(json.loads(json.dumps(ask(asked, tasks=tasks))), answer)


def test_the_models_are_of_the_first_format_and_of_every_type_it_had():
    configs = [AutoConfig.from_pretrained(FOLDER / name) for name in MODELS]
    assert {config.format_version for config in configs} == {1}
    assert len({task["type"] for config in configs for task in config.tasks}) == 10
