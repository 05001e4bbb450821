"""Adapters on quantized backbones: what a recipe trains, saves and loads, and what is refused."""

import importlib.util
import json
import re

import pytest
import torch

from hf_multitask import MultiTaskModel

FOUR_BITS = {"load_in_4bit": True, "bnb_4bit_compute_dtype": "float32"}
LORA = {"r": 4}
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)


@needs_bitsandbytes
def test_a_recipe_trains_adapters_on_a_quantized_backbone(kitchen):
    kitchen.recipe["model"] |= {"lora": LORA, "quantization_config": FOUR_BITS}
    kitchen.recipe["training"] |= {"save_strategy": "steps", "save_steps": 2, "disable_tqdm": True}
    assert kitchen.run(["train"])[0] == 0
    output = kitchen.folder / "out"
    assert not hasattr(MultiTaskModel.config_class.from_pretrained(output).backbone_config, "quantization_config")
    model = MultiTaskModel.from_pretrained(output)
    layer = model.backbone.encoder.layer[0].attention.self.query
    assert layer.base_layer.weight.dtype == torch.uint8 and layer.lora_B["_shared"].weight.abs().sum() > 0
    trained = json.loads((output / "all_results.json").read_text())
    assert kitchen.run(["evaluate", str(output)], None, "--output_dir", str(kitchen.folder / "again"))[0] == 0
    again = json.loads((kitchen.folder / "again" / "test_results.json").read_text())
    assert again["test_average"] == trained["test_average"] and again["test_ner_loss"] == trained["test_ner_loss"]
    resumed = ["--resume_from_checkpoint", str(output / "checkpoint-2"), "--output_dir", str(kitchen.folder / "on")]
    assert kitchen.run(["train"], None, *resumed)[0] == 0
    on = MultiTaskModel.from_pretrained(kitchen.folder / "on").state_dict()
    assert all(torch.equal(value, on[name]) for name, value in model.state_dict().items() if value.is_floating_point())
    for refused in (model.merge_adapters, lambda: model.task_model("ner")):
        with pytest.raises(ValueError, match=r"the backbone is quantized, and an adapter that is added"):
            refused()
    with pytest.raises(ValueError, match=r"The whole model cannot be saved, as adapters_only=False asks"):
        model.save_pretrained(kitchen.folder / "whole", adapters_only=False)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            {"quantization_config": FOUR_BITS},
            r"A quantized backbone cannot be trained itself. Train adapters beside it",
        ),
        ({"quantization_config": "4bit", "lora": LORA}, r"should be a mapping such as \{load_in_4bit: true\}"),
        (
            {"quantization_config": {}, "lora": LORA},
            r"should have load_in_4bit: true or load_in_8bit: true, or a `quant",
        ),
        (
            {"quantization_config": {"load_in_4bit": True, "bnb_4bit_quant": 1}, "lora": LORA},
            r"unknown key 'bnb_4bit_qu",
        ),
        (
            {"quantization_config": {"load_in_4bit": 1}, "lora": LORA},
            r"`quantization_config` is not usable: .*load_in_4bit",
        ),
    ],
)
def test_mistakes_in_quantization_are_found_before_training(kitchen, model, message):
    code, _, err = kitchen.run(["train"], {**kitchen.recipe, "model": model})
    assert code == 2 and re.search(message, err), err
    assert not (kitchen.folder / "out" / "model.safetensors").exists()
