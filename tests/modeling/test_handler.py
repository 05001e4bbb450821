"""The handler and the requirements beside saved weights; tests/modeling/test_remote.py runs it without the package."""

import configparser
import importlib.util
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from hf_multitask.modeling.handler import FOR_ADAPTERS, FOR_AUDIO, REQUIREMENTS

SETUP = Path(__file__).parents[2] / "setup.cfg"


@pytest.fixture
def handler(build_model, backbone_path, tmp_path):
    build_model().save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(backbone_path("bert")).save_pretrained(tmp_path / "model")
    assert (tmp_path / "model" / "requirements.txt").read_text().splitlines() == list(REQUIREMENTS)
    spec = importlib.util.spec_from_file_location("handler", tmp_path / "model" / "handler.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.EndpointHandler()  # beside itself


def test_requests_are_answered_as_by_the_pipeline(handler):
    texts = ["A fine place.", "Ada Lovelace was here."]
    assert handler({"inputs": texts, "parameters": {"batch_size": 2}}) == handler.pipeline(texts, batch_size=2)
    assert list(handler({"inputs": {"tokens": ["A", "place"]}, "tasks": ["ner"]})) == ["ner"]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ("text", 'A request should be an object with "inputs"'),
        ({"input": "x"}, 'A request should be an object with "inputs"'),
        ({"inputs": "x", "task": "ner"}, "A request has inputs, tasks, parameters. Found 'task'"),
        ({"inputs": "x", "parameters": ["ner"]}, '"parameters" should be an object'),
        ({"inputs": "x", "parameters": {"top_k": 1}}, "takes no argument 'top_k'"),
        ({"inputs": "x", "tasks": ["nerd"]}, "has no task 'nerd'"),
        ({"inputs": 3}, "should be a string"),
    ],
)
def test_malformed_requests_are_refused_in_a_sentence(request_, message, handler):
    with pytest.raises(ValueError, match=message):
        handler(request_)


def test_requirements_are_those_of_the_package(build_model, tmp_path):
    setup = configparser.ConfigParser()
    setup.read(SETUP)
    extras = "\n".join(setup["options.extras_require"].values())
    assert set(REQUIREMENTS) <= set(setup["options"]["install_requires"].split())
    assert {*FOR_AUDIO, *FOR_ADAPTERS} <= set(extras.split())
    build_model(lora={"r": 2}).save_pretrained(tmp_path)
    assert FOR_ADAPTERS[0] in (tmp_path / "requirements.txt").read_text()
