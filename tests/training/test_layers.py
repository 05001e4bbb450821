"""Training heads on layers below the last and on mixes: exact however it is accumulated, resumed, by recipe."""

import json

import pytest
import torch
import yaml
from adapting import BOTH
from layouts import relative_difference
from tiny import DATA, NER_LABELS
from transformers import AutoTokenizer

from hf_multitask import MultiTaskModel, MultiTaskTrainer, SequenceClassification, TokenClassification
from hf_multitask.cli import main

pytestmark = pytest.mark.trainer


@pytest.fixture
def trainer(build_model, data, arguments, backbone_path):
    def make(layers=(1, "mix"), *, model=None, family="bert", dtype=torch.float64, **kwargs):
        tasks = {
            "sentiment": SequenceClassification(label_names=["negative", "positive"], layer=layers[0]),
            "ner": TokenClassification(label_names=NER_LABELS, layer=layers[1]),
        }
        tokenizer = AutoTokenizer.from_pretrained(backbone_path(family))
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        made = build_model(family, tasks=tasks, **{"branches": None, "dropout": 0.0, **(model or {})}).to(dtype)
        return MultiTaskTrainer(
            made,
            arguments(lr_scheduler_type="constant", **kwargs),
            train_dataset=data(40, 20),
            eval_dataset=data(8, 6, "validation"),
            processing_class=tokenizer,
        )

    return make


def weights(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


@pytest.mark.parametrize(
    ("given", "more"),
    [
        ({}, {}),
        ({"aggregation": "upgrad"}, {}),
        ({"family": "gpt2", "aggregation": "sum"}, {}),
        ({}, BOTH),
        ({}, {"branches": {"a": ["ner"], "b": ["sentiment"]}, "branch_layers": 1}),
    ],
    ids=["plain", "aggregated", "gpt2", "adapters", "branches"],
)
def test_accumulation_does_not_change_the_update(given, more, trainer, caplog, record_property):
    whole = trainer(model=more, per_device_train_batch_size=32, **given)
    start = weights(whole)
    whole.train()
    parts = trainer(model=more, per_device_train_batch_size=8, gradient_accumulation_steps=4, **given)
    parts.train()
    assert relative_difference(start, weights(whole)) > 1e-4
    record_property("32x1 against 8x4, relative norm", relative_difference(weights(whole), weights(parts)))
    assert relative_difference(weights(whole), weights(parts)) < 1e-9
    assert not torch.equal(start["heads.ner.mix.weights"], weights(whole)["heads.ner.mix.weights"])
    if "aggregation" in given:
        assert "row split" in whole.engine.describe() and "does not fit" not in caplog.text


def test_the_last_layer_trains_as_none_is_named(trainer):
    plain, named = trainer((None, None), dtype=torch.float32), trainer((2, 2), dtype=torch.float32)
    plain.train()
    named.train()
    assert all(torch.equal(value, weights(named)[name]) for name, value in weights(plain).items())
    assert plain.evaluate()["eval_average"] == named.evaluate()["eval_average"]


def test_a_resumed_run_ends_in_the_same_weights(trainer, tmp_path):
    whole = trainer(max_steps=4)
    whole.train()
    trainer(max_steps=2, save_strategy="steps", save_steps=2).train()
    checkpoint = tmp_path / "out" / "checkpoint-2"
    loaded = MultiTaskModel.from_pretrained(checkpoint)
    assert loaded.config.task("ner")["layer"] == "mix" and loaded.heads["ner"].mix.weights.any()
    resumed = trainer(max_steps=4)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert all(torch.equal(value, weights(resumed)[name]) for name, value in weights(whole).items())


def test_layers_that_no_task_reads_do_not_train(trainer):
    made = trainer((1, 1), weight_decay=0.1)
    start = weights(made)
    made.train()
    top = [name for name in start if ".layer.1." in name]
    assert top and all(torch.equal(start[name], weights(made)[name]) for name in top)
    assert not torch.equal(start["backbone.encoder.layer.0.output.dense.weight"], weights(made)["backbone.encoder.layer.0.output.dense.weight"])  # fmt: skip


def test_balancing_reads_a_layer_that_all_tasks_read(trainer):
    made = trainer((1, None), balancing="gradnorm")
    made.train()
    assert all(entry["sentiment_weight"] > 0 for entry in made.state.log_history if "sentiment_weight" in entry)
    with pytest.raises(ValueError, match=r"task 'sentiment' reads the embeddings \(`layer = 0`\)"):
        trainer((0, None), balancing="gradnorm").train()


def test_a_recipe_has_layers(backbone_path, tmp_path, capsys):
    recipe = {
        "backbone": backbone_path(),
        "datasets": {
            name: {"path": "json", "data_files": {"train": str(DATA / name / "validation.jsonl")}}
            for name in ("sentiment", "ner")
        },
        "tasks": {
            "sentiment": {"type": "sequence-classification", "layer": 1},
            "ner": {"type": "token-classification", "layer": "mix"},
        },
        "training": {"output_dir": str(tmp_path / "out"), "max_steps": 2, "report_to": "none", "use_cpu": True},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    assert main(["train", str(path)]) == 0
    capsys.readouterr()
    assert main(["predict", str(tmp_path / "out"), "A fine place in London."]) == 0
    assert json.loads(capsys.readouterr().out).keys() == {"sentiment", "ner"}
    assert main(["export", str(tmp_path / "out"), "--task", "ner", "--output", str(tmp_path / "one")]) == 2
    assert "a head on a mix of layers (`layer`), and stock classes read the last layer" in capsys.readouterr().err
    recipe["tasks"]["ner"]["layer"] = 7
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    assert main(["train", str(path)]) == 2
    assert "Task 'ner': `layer` should be from 0 to 2" in capsys.readouterr().err
