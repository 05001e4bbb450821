import json

import pytest
from transformers import AutoConfig, BertConfig

from hf_multitask import MultiTaskConfig
from hf_multitask.modeling.config import FORMAT_VERSION

TASK = {"name": "ner", "type": "token-classification", "label_names": ["O", "B-X"], "tokens_column": "words"}


def test_configuration_round_trips_through_json(tmp_path):
    config = MultiTaskConfig(backbone_config=BertConfig(hidden_size=24), tasks=[TASK], pooling="mean")
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, MultiTaskConfig)
    assert loaded.tasks == [TASK]
    assert loaded.pooling == "mean"
    assert loaded.backbone_config.hidden_size == 24
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["format_version"] == FORMAT_VERSION
    assert saved["auto_map"] == {"AutoConfig": "config.MultiTaskConfig"}
    assert saved["custom_pipelines"]["multitask"]["impl"] == "pipeline.MultiTaskPipeline"


@pytest.mark.parametrize("name", ["a.b", "forward", "../x", "", "keys", "type", "training", "a b", "-x", None])
def test_unusable_task_names_are_refused(name):
    with pytest.raises(ValueError, match=r"is not usable.*Rename the task"):
        MultiTaskConfig(tasks=[TASK | {"name": name}])


@pytest.mark.parametrize("name", ["ner", "mnli-mm", "0", "stance_climate"])
def test_usual_task_names_are_taken(name):
    assert MultiTaskConfig(tasks=[TASK | {"name": name}]).task_names == [name]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"tasks": [TASK, TASK]}, "Task name 'ner' is used 2 times"),
        ({"tasks": [{"name": "ner"}]}, "Task 'ner' has no 'type'"),
        ({"backbone_config": {"hidden_size": 24}}, "backbone_config has no 'model_type'"),
        ({"pooling": "max"}, "`pooling` should be one of native, cls, mean, last. Found `pooling = 'max'`"),
        ({"format_version": 99}, "format version 99, and the installed hf_multitask reads up to 2. Upgrade"),
    ],
)
def test_unusable_values_fail_when_built(kwargs, message):
    with pytest.raises(ValueError, match=message):
        MultiTaskConfig(**kwargs)


def test_text_configuration_is_the_backbones():
    config = MultiTaskConfig(backbone_config=BertConfig(vocab_size=77))
    assert config.get_text_config().vocab_size == 77
