"""Saves that take their place whole, or leave what was there before."""

import json

import pytest
import torch
from safetensors.torch import load_file

from hf_multitask import MultiTaskModel, MultiTaskTrainer
from hf_multitask.modeling.saving import STAGE, StorageFullError


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_full_storage_leaves_the_model_that_was_there(build_model, full, tmp_path):
    model = build_model()
    model.save_pretrained(tmp_path)
    before = contents(tmp_path)
    torch.nn.init.ones_(model.heads["ner"].native.classifier.weight)
    for size in (0, 4_000, 50_000):  # in the first file, in the code, in the weights
        with full(size), pytest.raises(StorageFullError) as raised:
            model.save_pretrained(tmp_path)
        said = (
            f"Nothing could be saved in '{tmp_path}' (file too large). The files of the save before are still complete."
        )
        assert str(raised.value) == f"{said} Free some space, and save again."
        assert contents(tmp_path) == before
    with full(50_000), pytest.raises(StorageFullError, match=r"\(file too large\)\. Free some space"):
        model.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    model.save_pretrained(tmp_path)
    assert torch.equal(
        load_file(tmp_path / "model.safetensors")["heads.ner.native.classifier.weight"],
        model.heads["ner"].native.classifier.weight,
    )


def test_a_full_storage_at_the_end_of_training_leaves_the_run_as_it_was(build_model, data, arguments, tokenizer, full, tmp_path):  # fmt: skip
    trainer = MultiTaskTrainer(build_model(), arguments(), train_dataset=data(), processing_class=tokenizer)
    trainer.save_model()
    before = contents(tmp_path / "out")
    trainer.train()
    with full(50_000), pytest.raises(StorageFullError, match="The files of the save before are still complete"):
        trainer.save_model()
    assert contents(tmp_path / "out") == before
    trainer.save_model()  # once there is room
    trained = MultiTaskModel.from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(value, trained[name]) for name, value in trainer.model.state_dict().items())


def test_shards_of_an_earlier_save_make_way(build_model, tmp_path):
    model = build_model()
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    (tmp_path / "model.fp16.safetensors").write_bytes(b"a variant")
    model.save_pretrained(tmp_path)
    assert not [*tmp_path.glob("model-*"), *tmp_path.glob("*.index.json"), tmp_path / STAGE][:-1]
    assert {path.name for path in tmp_path.glob("*.safetensors")} == {"model.safetensors", "model.fp16.safetensors"}
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert not (tmp_path / "model.safetensors").exists()  # which would be read in place of the shards
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert len(MultiTaskModel.from_pretrained(tmp_path).state_dict()) == len(index["weight_map"])
