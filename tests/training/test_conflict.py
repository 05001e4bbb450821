"""The step with an aggregator: the gradients it works on, the engines that make them, and what it goes together with."""

import logging
from itertools import product

import conflicts
import pytest
import torch
import torchjd.aggregation as torchjd
from conflicts import APART, SHARED, matrix, train
from parameters import few
from transformers import TrainerCallback

from hf_multitask import MultiTaskTrainer
from hf_multitask.aggregation import build_aggregator
from hf_multitask.training.step.gradients import TaskGradients

FAMILIES = ("bert", "roberta", "distilbert", "gpt2", "modernbert", "llama", "t5")
METHODS = {"upgrad": torchjd.UPGrad, "mgda": torchjd.MGDA, "imtl_g": torchjd.IMTLG, "config": torchjd.ConFIG}


def shared_of(gradients):
    names = [name for name in gradients if name.startswith("backbone.")]
    return names, torch.cat([gradients[name].flatten() for name in names])


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("tasks", [APART, SHARED], ids=["apart", "shared"])
@pytest.mark.parametrize("method", METHODS)
def test_update_is_that_of_torchjd_on_the_whole_jacobian(method, tasks, backbone_path, tmp_path, record_property):
    trainer, steps = train(backbone_path(), tmp_path, tasks, aggregation=method)
    trainer.train()
    names, found = shared_of(steps[0])
    jacobian_KP, present = matrix(trainer, names)
    assert trainer.engine.update.outcome.problem is None and list(
        trainer.engine.update.outcome.tasks
    ) == present == list(tasks)
    torch.testing.assert_close(
        trainer.engine.update.outcome.gramian, jacobian_KP @ jacobian_KP.T, rtol=1e-9, atol=1e-12
    )
    expected = METHODS[method]()(jacobian_KP) * (1 if method == "config" else len(present))
    record_property(f"{method}, relative norm", relative(found, expected))
    assert relative(found, expected) < 1e-5
    for name in set(steps[0]) - set(names):  # heads have their plain gradients
        torch.testing.assert_close(steps[0][name], trainer.jacobian[name.split(".")[1]][name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_branches_of_several_tasks_are_shared_and_those_of_one_are_its_own(
    family, backbone_path, tmp_path, caplog, record_property, monkeypatch
):
    tasks = ("stars", "pairs", "ner")
    branches = {"texts": ["stars", "pairs"], "tags": ["ner"]}
    for engine in ("split", "pass"):
        trainer, steps = train(backbone_path(family), tmp_path, tasks, aggregation="upgrad", branches=branches)
        with monkeypatch.context() as patch:
            if engine == "pass":
                patch.setattr(TaskGradients, "mixable", lambda self: set())
            trainer.train()
        names, found = shared_of({name: one for name, one in steps[0].items() if ".tags." not in name})
        assert any(".texts." in name for name in names)
        jacobian_KP, _ = matrix(trainer, names)
        torch.testing.assert_close(
            trainer.engine.update.outcome.gramian, jacobian_KP @ jacobian_KP.T, rtol=1e-9, atol=1e-12
        )
        difference = relative(found, torchjd.UPGrad()(jacobian_KP) * 3)
        record_property(f"{family}, {engine}, relative norm", difference)
        assert difference < 1e-5
        own = [name for name in steps[0] if ".tags." in name]
        assert own
        for name in own:  # a branch of one task has its plain gradients, as its head
            torch.testing.assert_close(steps[0][name], trainer.jacobian["ner"][name], rtol=1e-9, atol=1e-12)
    assert "does not fit" not in caplog.text


@pytest.mark.parametrize("family", few(FAMILIES, ["bert", "gpt2", "modernbert", "t5"]))
def test_row_split_and_pass_per_task_give_the_same_gradients(
    family, backbone_path, tmp_path, caplog, record_property, monkeypatch
):
    tasks = ("stars", "pairs", "ner")
    made = {}
    for engine in ("split", "pass"):
        trainer, steps = train(backbone_path(family), tmp_path, tasks, aggregation="sum")
        with monkeypatch.context() as patch:
            if engine == "pass":
                patch.setattr(TaskGradients, "mixable", lambda self: set())
            trainer.train()
        names, found = shared_of(steps[0])
        jacobian_KP, _ = matrix(trainer, names)
        difference = relative(found, jacobian_KP.sum(0))
        record_property(f"{family}, {engine} against autograd, relative norm", difference)
        assert difference < 1e-10
        torch.testing.assert_close(
            trainer.engine.update.outcome.gramian, jacobian_KP @ jacobian_KP.T, rtol=1e-9, atol=1e-12
        )
        made[engine] = found
    assert relative(made["split"], made["pass"]) < 1e-10
    assert "does not fit" not in caplog.text


def test_first_step_finds_a_backbone_that_mixes_rows_and_falls_back_with_a_warning(
    backbone_path, tmp_path, caplog, monkeypatch
):
    def mix(model):
        model.backbone.encoder.layer[0] = conflicts.RowMixer(model.backbone.encoder.layer[0])

    trainer, steps = train(backbone_path(), tmp_path, aggregation="sum", change=mix)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert "The row split does not fit this model: a task's gradient differs from autograd's by" in caplog.text
    assert "per-task pass" in trainer.engine.describe() and "mixes rows" in trainer.engine.describe()
    plain, expected = train(backbone_path(), tmp_path, aggregation="sum", change=mix)
    monkeypatch.setattr(TaskGradients, "mixable", lambda self: set())  # one pass per task from the start
    plain.train()
    for name, gradient in expected[0].items():
        assert torch.equal(gradient, steps[0][name])


def test_layer_that_nobody_knows_is_named_before_training(backbone_path, tmp_path):
    def change(model):
        model.backbone.encoder.layer[1] = conflicts.BatchNorm(model.backbone.encoder.layer[1], 32)

    trainer, steps = train(backbone_path(), tmp_path, aggregation="pcgrad", change=change)
    told = trainer.engine.describe()
    assert "per-task pass" in told and "BatchNorm1d 'encoder.layer.1.norm' is a layer whose gradients" in told
    trainer.train()
    assert steps[0]["backbone.encoder.layer.1.norm.weight"].norm() > 0


def test_relative_biases_have_no_rows_and_take_one_pass_per_task(backbone_path, tmp_path, caplog):
    trainer, steps = train(backbone_path("t5"), tmp_path, ("scored", "ner"), aggregation="sum", task_weights=None)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert "relative_attention_bias' gets" in caplog.text
    names, found = shared_of(steps[0])
    jacobian_KP, _ = matrix(trainer, names)
    assert relative(found, jacobian_KP.sum(0)) < 1e-10


def test_engine_and_memory_are_printed_beforehand(backbone_path, tmp_path, capsys):
    trainer, _ = train(backbone_path(), tmp_path, aggregation="pcgrad")
    trainer.train()
    printed = capsys.readouterr().out
    parameters = sum(one.numel() for one in trainer.model.backbone.parameters())
    assert "Aggregation: pcgrad, row split, one forward and one backward" in printed
    assert (
        f"up to 3 gradients of {parameters:,} shared parameters, at most {3 * 8 * parameters / 2**20:,.0f} MB"
        in printed
    )


def test_dropout_draws_the_same_in_the_check_and_trains_on(backbone_path, tmp_path, caplog, monkeypatch):
    trainer, steps = train(backbone_path(), tmp_path, aggregation="sum", dropout=0.3)
    trainer.train()
    assert "does not fit" not in caplog.text and "row split" in trainer.engine.describe()
    again, same = train(backbone_path(), tmp_path, aggregation="sum", dropout=0.3)
    monkeypatch.setattr(TaskGradients, "_compare", lambda *args: None)  # what follows does not depend on the check
    again.train()
    for name, gradient in steps[0].items():
        assert torch.equal(gradient, same[0][name])


@pytest.mark.parametrize(
    ("method", "tasks"),
    few(product(("gradvac", "graddrop", "pcgrad"), (APART, SHARED)), [("gradvac", SHARED)]),
)
def test_resumed_run_ends_in_the_same_weights(method, tasks, backbone_path, tmp_path):
    def run(folder, steps, **more):
        trainer, _ = train(
            backbone_path(), folder, tasks, aggregation=method, max_steps=steps, save_strategy="steps", **more
        )
        return trainer

    whole = run(tmp_path / "whole", 4, save_steps=4, dropout=0.1)
    whole.train()
    parts = run(tmp_path / "parts", 4, save_steps=2, dropout=0.1)
    parts.train()
    resumed = run(tmp_path / "parts", 4, save_steps=2, dropout=0.1)
    resumed.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-2"))
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name])
    if method == "gradvac":
        assert resumed.aggregator.state_dict() == whole.aggregator.state_dict() != {"targets": {}}


def test_second_training_remembers_nothing_of_the_first(backbone_path, tmp_path):
    trainer, _ = train(backbone_path(), tmp_path, aggregation="gradvac", max_steps=2)
    trainer.train()
    first = trainer.aggregator.state_dict()
    trainer.train()
    assert trainer.aggregator.state_dict() != first


def test_an_object_begins_every_training_as_it_was_given(backbone_path, tmp_path):
    trainer, _ = train(backbone_path(), tmp_path, aggregator=build_aggregator("pcd", {"primary": "ner"}), max_steps=2)
    trainer.train()
    trainer.train()
    assert trainer.aggregator.state_dict()["steps"] == 2


def test_a_checkpoint_of_another_aggregation_is_refused(backbone_path, tmp_path):
    def resume(aggregation, **kwargs):
        trainer, _ = train(backbone_path(), tmp_path, aggregation=aggregation, aggregation_kwargs=kwargs, max_steps=2)
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))

    smoothed = {"aggregation": "cr_mogm", "aggregation_kwargs": {"method": "upgrad"}}
    train(backbone_path(), tmp_path, **smoothed, save_strategy="steps", save_steps=1)[0].train()
    message = r"The aggregation of this run and of checkpoint '.*checkpoint-1' differ: {} now, cr_mogm then. Put it"
    for name, kwargs in (("none", {}), ("pcgrad", {}), ("pcd", {"primary": "ner"})):
        with pytest.raises(ValueError, match=message.format(name)):
            resume(name, **kwargs)
    with pytest.raises(
        ValueError,
        match=r"The aggregation_kwargs of this run and of checkpoint .* differ: .*gradvac.* now, .*upgrad.* then",
    ):
        resume("cr_mogm", method="gradvac")
    resume("CR-MOGM", method="upgrad")


@pytest.mark.parametrize(
    "more",
    few(
        [
            {"max_grad_norm": 0.01},
            {"bf16": True, "dtype": torch.float32},
            {"dtype": torch.bfloat16},
            {"activation_checkpointing": True},
            {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": True}},
            {"freeze": ["stars"]},
            {"weight_decay": 0.1, "layerwise_lr_decay": 0.8},
        ],
        ["clipping", "bf16", "checkpointing", "rates"],
        ["clipping", "bf16", "bf16 model", "checkpointing", "reentrant", "frozen head", "rates"],
    ),
)
def test_sum_trains_as_the_plain_loss(more, backbone_path, tmp_path, caplog, record_property):
    names = conflicts.mixtures.MultiTaskTrainingArguments.__dataclass_fields__
    if "activation_checkpointing" not in names:  # transformers 5.17
        more = {key.replace("activation_", "gradient_"): value for key, value in more.items()}
    weights = {}
    for aggregation in ("none", "sum"):
        trainer, _ = train(
            backbone_path(),
            tmp_path,
            trainer_class=conflicts.MultiTaskTrainer,
            aggregation=aggregation,
            max_steps=3,
            **more,
        )
        start = {name: value.clone() for name, value in trainer.model.state_dict().items()}
        trainer.train()
        weights[aggregation] = {name: value - start[name] for name, value in trainer.model.state_dict().items()}
    assert "does not fit" not in caplog.text
    flat = {
        key: torch.cat([value.double().flatten() for value in changes.values()]) for key, changes in weights.items()
    }
    low = more.get("bf16") or more.get("dtype") is torch.bfloat16
    record_property("change of the weights, relative norm", relative(flat["sum"], flat["none"]))
    assert relative(flat["sum"], flat["none"]) < (0.2 if low else 1e-6)


def test_frozen_layers_stay_and_the_rest_is_aggregated(backbone_path, tmp_path):
    def freeze(model):
        model.backbone.embeddings.requires_grad_(False)
        model.backbone.encoder.layer[0].requires_grad_(False)

    trainer, steps = train(backbone_path(), tmp_path, aggregation="pcgrad", change=freeze)
    trainer.train()
    assert "row split" in trainer.engine.describe()
    names, found = shared_of(steps[0])
    assert not [name for name in names if "embeddings" in name or "layer.0" in name]
    assert found.norm() > 0


def test_lora_on_the_backbone_is_what_is_shared(backbone_path, tmp_path):
    peft = pytest.importorskip("peft")

    def adapt(model):
        peft.inject_adapter_in_model(peft.LoraConfig(r=4, target_modules=["query", "value"]), model.backbone)
        for name, parameter in model.backbone.named_parameters():
            parameter.requires_grad_("lora" in name)
            if "lora_B" in name:
                torch.nn.init.normal_(parameter)

    trainer, steps = train(backbone_path(), tmp_path, aggregation="upgrad", change=adapt)
    trainer.train()
    assert "row split" in trainer.engine.describe()
    names, found = shared_of(steps[0])
    assert names and all("lora" in name for name in names)
    jacobian_KP, present = matrix(trainer, names)
    assert relative(found, torchjd.UPGrad()(jacobian_KP) * len(present)) < 1e-5


def test_stopped_and_absent_tasks_take_no_part(backbone_path, tmp_path):
    trainer, steps = train(backbone_path(), tmp_path, aggregation="upgrad", max_steps=2)
    seen = []

    class Watching(TrainerCallback):
        def on_pre_optimizer_step(self, *args, **kwargs):
            seen.append(trainer.engine.update.outcome.tasks)
            trainer.progress.finished["ner"] = 1

    trainer.add_callback(Watching())
    trainer.train()
    assert seen == [("stars", "pairs", "ner"), ("stars", "pairs")]
    assert not [name for name in steps[1] if name.startswith("heads.ner.")]


def test_failures_are_told_counted_and_logged(backbone_path, tmp_path, caplog):
    class Failing(conflicts.GramianAggregator):
        def weights(self, gramian_KK, tasks):
            raise ArithmeticError("it never ends")

    trainer, _ = train(backbone_path(), tmp_path, aggregator=Failing(), max_steps=5, logging_steps=5)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert caplog.text.count("the aggregator found no update (it never ends). The plain sum") == 3
    assert "Further ones are only counted" in caplog.text
    assert [entry["aggregation_failures"] for entry in trainer.state.log_history if "loss" in entry] == [5]


def test_object_in_place_of_a_name(backbone_path, tmp_path):
    class Ours(conflicts.GramianAggregator):
        def weights(self, gramian_KK, tasks):
            return torch.arange(1.0, len(tasks) + 1)

    trainer, _ = train(backbone_path(), tmp_path, aggregator=Ours())
    trainer.train()
    assert trainer.engine.update.outcome.weights.tolist() == [1, 2, 3]
    with pytest.raises(ValueError, match="There is an aggregator, and aggregation='upgrad' names another"):
        train(backbone_path(), tmp_path, aggregator=Ours(), aggregation="upgrad")


def test_what_cannot_go_together_is_refused(backbone_path, tmp_path):
    with pytest.raises(ValueError, match="the backbone is frozen"):
        train(backbone_path(), tmp_path, aggregation="upgrad", freeze=["backbone"])
    with pytest.raises(ValueError, match="Parameter `weights` names 'nerr'; the tasks are stars, pairs, ner"):
        train(backbone_path(), tmp_path, aggregation="constant", aggregation_kwargs={"weights": {"nerr": 2}})
    with pytest.raises(ValueError, match="`aggregation` should be one of none, pcgrad"):
        train(backbone_path(), tmp_path, aggregation="pcgradd")


@pytest.mark.parametrize("engine", ["is_fsdp_enabled", "is_deepspeed_enabled"])
def test_sharded_engines_are_refused_by_name(engine, backbone_path, tmp_path):
    trainer, _ = train(backbone_path(), tmp_path)
    setattr(trainer, engine, True)
    trainer.args.aggregation = "upgrad"
    name = "FSDP" if "fsdp" in engine else "DeepSpeed"
    with pytest.raises(ValueError, match=f"An aggregator needs whole gradients, and {name} shards them"):
        trainer.updates.build()


@pytest.mark.parametrize("exact", [False, True])
def test_weights_of_a_balancer_multiply_the_gradients(exact, backbone_path, tmp_path):
    balancing = {"balancing": "famo", "balancing_kwargs": {"exact": exact}, "max_steps": 3, "logging_steps": 1}
    weights = []
    for aggregation in ("none", "sum"):
        trainer, _ = train(
            backbone_path(), tmp_path, trainer_class=MultiTaskTrainer, aggregation=aggregation, **balancing
        )
        trainer.train()
        weights.append(torch.cat([one.detach().flatten() for one in trainer.model.parameters()]))
        assert {"stars_weight", "pairs_weight", "ner_weight"} <= trainer.state.log_history[0].keys()
    assert relative(weights[1], weights[0]) < 1e-12


def test_what_does_not_go_together_is_refused(backbone_path, tmp_path):
    with pytest.raises(
        ValueError, match=r"GradNorm and an aggregator both separate .* Set either balancing or aggregation"
    ):
        train(backbone_path(), tmp_path, aggregation="upgrad", balancing="gradnorm")
    with pytest.raises(ValueError, match=r"task_lora gives tasks parts of their own\. Set aggregation='none', or use"):
        train(
            backbone_path(),
            tmp_path,
            aggregation="upgrad",
            change=lambda model: model.add_adapters(task_lora={"r": 2}),
        )
