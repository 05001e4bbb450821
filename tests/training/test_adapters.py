"""Adapters in training: they follow their tasks as heads do."""

import copy
import json

import layouts
import pytest
import reading
import torch
from layouts import ADAPTERS, CHECKPOINTING, describe, relative_difference
from mixtures import KINDS
from parameters import few
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoTokenizer

from hf_multitask import MultiTaskModel, MultiTaskTrainer
from hf_multitask.modeling.adapters import adapter_of
from hf_multitask.modeling.config import SHARED
from hf_multitask.training.parameters import last_shared_matrix
from hf_multitask.training.state.checkpoint import check_checkpoint

OWN = {"task_lora": {"r": 3, "lora_dropout": 0.1}}
BOTH = {"lora": {"r": 2, "lora_dropout": 0.1}, **OWN}


@pytest.fixture
def train(build_model, data, arguments, tokenizer):
    """Trains a model, or a fresh one with adapters; the trainer, before training where ``steps`` is 0."""

    def run(model=None, adapters=BOTH, steps=4, resume=None, **kwargs):
        trainer = MultiTaskTrainer(
            model or build_model(**adapters),
            arguments(max_steps=steps or 4, sampling="uniform", weight_decay=0.1, learning_rate=1e-2, **kwargs),
            train_dataset=data(),
            eval_dataset=data(9, 7, "validation"),
            processing_class=tokenizer,
        )
        if steps:
            trainer.train(resume_from_checkpoint=resume)
        return trainer

    return run


def logits_of(model, tokenizer):
    tokens = tokenizer(["A fine place in London.", "Late, and dull."], padding=True, return_tensors="pt")
    with torch.no_grad():
        return {name: value.clone() for name, value in model.eval()(**tokens).logits.items()}


def test_a_task_does_not_move_while_another_trains(train, tokenizer):
    model = train(adapters=OWN).model
    before, weights = logits_of(model, tokenizer), copy.deepcopy(model.state_dict())
    train(model, freeze=["sentiment"])
    after = logits_of(model, tokenizer)
    assert torch.equal(after["sentiment"], before["sentiment"])
    assert not torch.allclose(after["ner"], before["ner"])
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[name]) != (adapter_of(name) == "ner" or name.startswith("heads.ner."))


def test_a_task_without_rows_does_not_move_though_it_trains(train, tokenizer, data, arguments):
    """Momentum and weight decay leave the adapter and the head of a task alone in steps that have no row of it."""
    model = train(adapters=OWN).model
    seen = []

    class Watching(MultiTaskTrainer):
        def training_step(self, *args, **kwargs):
            before = logits_of(self.model, tokenizer)["sentiment"]
            if seen:
                seen[-1] += (before,)
            self.model.train()
            loss = super().training_step(*args, **kwargs)
            seen.append((self.engine.step.items["sentiment"], before))
            return loss

    trainer = Watching(
        model,
        arguments(per_device_train_batch_size=2, max_steps=8, weight_decay=0.1, learning_rate=1e-2),
        train_dataset=data(6, 24),
        processing_class=tokenizer,
    )
    trainer.train()
    absent = [torch.equal(step[1], step[2]) for step in seen[:-1] if not step[0]]
    present = [torch.equal(step[1], step[2]) for step in seen[:-1] if step[0]]
    assert absent and all(absent) and present and not any(present)


def test_freezing_and_rates_reach_the_adapter_of_a_task(train):
    trainer = train(
        steps=0, freeze=["sentiment"], learning_rates={"ner": 5e-3, "backbone": 1e-4}, weight_decays={"ner": 0}
    )
    names = {parameter: name for name, parameter in trainer.model.named_parameters()}
    found = {
        names[parameter]: (group["lr"], group["weight_decay"])
        for group in trainer.create_optimizer().param_groups
        for parameter in group["params"]
    }
    by_adapter = {adapter_of(name): setting for name, setting in found.items()}
    assert by_adapter[SHARED] == (1e-4, 0.1) and by_adapter["ner"] == (5e-3, 0)
    assert {adapter_of(name) for name in found if not name.startswith("heads.")} == {SHARED, "ner"}
    assert not any(name.startswith("heads.sentiment") for name in found)


def test_gradnorm_reads_a_matrix_that_all_tasks_share_and_none_of_a_task(train):
    trainer = train(balancing="gradnorm")
    names = {parameter: name for name, parameter in trainer.model.named_parameters()}
    assert adapter_of(names[last_shared_matrix(trainer.model)]) == SHARED
    with pytest.raises(
        ValueError, match=r"reads gradients of the backbone's top layer, which is frozen. Let it train."
    ):
        train(adapters=OWN, balancing="gradnorm")


@pytest.mark.slow  # as of ranks: test_ranks.py
@pytest.mark.parametrize("adapters", [ADAPTERS, {"task_lora": ADAPTERS["task_lora"]}], ids=["both", "own"])
def test_adapters_make_one_update_however_it_is_accumulated(adapters, backbone_path, tmp_path, record_property):
    description = describe("adapters", tasks=(*KINDS, "groups", "masks"), rows=24, adapters=adapters)
    start = layouts.build(description, backbone_path(), tmp_path, 24, 1)[0].model.state_dict()
    whole, alone = layouts.run(description, backbone_path(), tmp_path, 24, 1)
    for batch in (6, 2):
        parts, record = layouts.run(description, backbone_path(), tmp_path, batch, 24 // batch)
        trained, others = (
            {name: one[name] for name in whole if one[name].ne(start[name]).any()} for one in (whole, parts)
        )
        assert sum(adapter_of(name) is not None for name in trained) > 20
        record_property(f"24x1 against {batch}x{24 // batch}, relative norm", relative_difference(trained, others))
        assert relative_difference(trained, others) < 1e-9
        for what in ("rows", "denominators", "trained", "adapted"):
            assert record[what] == alone[what]
    assert alone["adapted"] == [[task for task, count in step.items() if count] for step in alone["denominators"]]


@pytest.mark.parametrize("only", few([False, True], [True]))
def test_resume_is_exact(only, train, tmp_path):
    kept = {"save_strategy": "steps", "save_steps": 2, "save_adapters_only": only}
    kept["lr_scheduler_type"] = "constant"
    train(steps=4, output_dir=str(tmp_path / "out"), **kept)
    alone = train(steps=6, output_dir=str(tmp_path / "alone"), **kept).model
    torch.manual_seed(99)
    resumed = train(steps=6, output_dir=str(tmp_path / "out"), resume=True, **kept).model
    for name, value in alone.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    weights = load_file(tmp_path / "out" / "checkpoint-6" / "model.safetensors")
    names = set(weights)
    loaded = resumed.load_state_dict(weights, strict=False)
    assert not loaded.missing_keys and not loaded.unexpected_keys
    del weights[head := next(name for name in names if name.startswith("heads."))]
    assert resumed.load_state_dict(weights, strict=False).missing_keys == [head]
    assert any(adapter_of(name) for name in names)
    assert only != any(name.endswith("word_embeddings.weight") for name in names)
    saved = MultiTaskModel.from_pretrained(tmp_path / "out" / "checkpoint-6").state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in alone.state_dict().items())


def test_the_best_model_comes_back_from_adapters_alone(train, tmp_path):
    trainer = train(
        steps=6,
        save_adapters_only=True,
        save_best_by_task=True,
        load_best_model_at_end=True,
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=2,
        save_steps=2,
    )
    best = MultiTaskModel.from_pretrained(trainer.state.best_model_checkpoint).state_dict()
    assert all(torch.equal(value, best[name]) for name, value in trainer.model.state_dict().items())
    steps = json.loads((tmp_path / "out" / "best_checkpoints.json").read_text())
    assert steps and all(MultiTaskModel.from_pretrained(path) for path in (tmp_path / "out" / "best").iterdir())


def test_a_checkpoint_of_other_adapters_is_refused(train, build_model, tmp_path):
    train(adapters=OWN, save_strategy="steps", save_steps=4)
    folder = str(tmp_path / "out" / "checkpoint-4")
    with pytest.raises(
        ValueError, match=rf"has no weights for the adapter '{SHARED}'.*tasks, adapters and branches that it was"
    ):
        check_checkpoint(folder, build_model(**BOTH))
    with pytest.raises(ValueError, match="has foreign weights for the adapter 'ner'"):
        check_checkpoint(folder, build_model())


def test_adapters_alone_are_saved_of_a_model_that_has_some(train):
    with pytest.raises(ValueError, match="The model has no adapters, so there is nothing to save without the backbone"):
        train(adapters={}, save_adapters_only=True)


@pytest.mark.parametrize("more", [{"bf16": True}, {"gradient_accumulation_steps": 2, **CHECKPOINTING}])
def test_adapters_train_in_half_precision_and_checkpointed(more, train):
    trainer = train(**more)
    assert all(torch.isfinite(one).all() for one in trainer.model.parameters())
    for name in (SHARED, "sentiment", "ner"):
        up = [one for key, one in trainer.model.named_parameters() if adapter_of(key) == name and ".lora_B." in key]
        assert all(one.any() for one in up)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # in PEFT
def test_a_model_that_peft_wrapped_trains_resumes_reloads_and_merges(train, build_model, tokenizer, tmp_path):
    def wrapped():
        config = LoraConfig(r=4, target_modules=["query", "value"], modules_to_save=["sentiment", "ner"])
        return get_peft_model(build_model(), config)

    kept = {"save_strategy": "steps", "save_steps": 2, "lr_scheduler_type": "constant", "learning_rates": {"ner": 1e-3}}
    trainer = train(wrapped(), steps=4, **kept)
    assert 0 <= trainer.evaluate()["eval_average"] <= 1
    trainer.save_model()
    trained = logits_of(trainer.model, tokenizer)
    loaded = PeftModel.from_pretrained(build_model(), tmp_path / "out")
    assert all(torch.equal(value, trained[name]) for name, value in logits_of(loaded, tokenizer).items())
    merged = loaded.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    for model in (merged, MultiTaskModel.from_pretrained(tmp_path / "merged")):
        for name, value in logits_of(model, tokenizer).items():
            torch.testing.assert_close(value, trained[name], rtol=0, atol=1e-5)
    resumed = train(wrapped(), steps=6, resume=str(tmp_path / "out" / "checkpoint-2"), **kept).model
    alone = train(wrapped(), steps=6, output_dir=str(tmp_path / "alone"), **kept).model
    assert all(torch.equal(value, alone.state_dict()[name]) for name, value in resumed.state_dict().items())


def test_labels_that_the_data_tell_leave_the_adapters_as_they_are(build_model, data, arguments, tokenizer, tasks):
    for task in tasks.values():
        task.label_names = None
    model = build_model(tasks=tasks, **BOTH)
    adapters = {name: value.clone() for name, value in model.state_dict().items() if adapter_of(name)}
    MultiTaskTrainer(model, arguments(), train_dataset=data(), processing_class=tokenizer)
    assert set(model.heads) == {"sentiment", "ner"}
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in adapters.items())


def test_many_types_train_and_are_measured_with_adapters(backbone_path, arguments):
    path = backbone_path("bart")
    kinds = ["sequence-classification", "translation"]
    tasks = {kind: reading.TASKS[kind]() for kind in kinds}
    model = MultiTaskModel.from_backbone(path, tasks=tasks, **BOTH)
    trainer = MultiTaskTrainer(
        model,
        arguments(),
        train_dataset={kind: reading.rows_of(kind) for kind in kinds},
        eval_dataset={kind: reading.rows_of(kind, 4) for kind in kinds},
        processing_class=AutoTokenizer.from_pretrained(path),
    )
    trainer.train()
    assert "eval_translation_chrf" in trainer.evaluate()
