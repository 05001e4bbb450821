"""Arguments of the Trainer are followed, refused when things are built, or reported as ignored."""

import pytest
import torch
from parameters import few
from transformers import TrainingArguments

from hf_multitask import MultiTaskTrainer, MultiTaskTrainingArguments
from hf_multitask.training import supported
from hf_multitask.training.supported import KEPT


@pytest.fixture
def trainer(build_model, data, arguments, tokenizer):
    def make(model=None, given=None, **kwargs):
        return MultiTaskTrainer(
            model or build_model(),
            arguments(**kwargs),
            train_dataset=data(8, 8),
            eval_dataset=data(4, 4, "validation"),
            processing_class=tokenizer,
            **given or {},
        )

    return make


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"fp16": True}, "`fp16` needs an accelerator.*Found `fp16 = True`"),
        ({"label_names": ["label"]}, r"`label_names` is not supported.*Found `label_names = \['label'\]`.*column of"),
        ({"use_liger_kernel": True}, "`use_liger_kernel` is not supported for a mixture of tasks"),
        ({"accelerator_config": {"split_batches": True}}, "`accelerator_config` should leave `split_batches` at False"),
        (
            {"accelerator_config": {"split_batch": 1}},
            "`accelerator_config` should hold split_batches, .*'split_batches'",
        ),
        ({"parallelism_config": {}}, "`parallelism_config` should be an accelerate.ParallelismConfig. Found"),
        ({"deepspeed": "ds.json"}, "`deepspeed` needs the package 'deepspeed', which is not installed"),
        ({"include_num_input_tokens_seen": "al"}, "`include_num_input_tokens_seen` should be one of all.*mean 'all'"),
        ({"save_strategy": "best"}, "`save_strategy` watches evaluations where it is 'best'. Set eval_strategy"),
        (
            {"lr_scheduler_type": "cosine_with_min_lr"},
            "`lr_scheduler_kwargs` should hold.*'cosine_with_min_lr'.*min_lr",
        ),
        ({"lr_scheduler_kwargs": {"cycles": 2}}, "`lr_scheduler_kwargs` should hold.*'linear'.*argument 'cycles'"),
        ({"lr_scheduler_type": "constant", "lr_scheduler_kwargs": {"x": 1}}, "has no effect with the schedule 'cons"),
    ],
)
def test_what_cannot_be_followed_is_refused(kwargs, said, arguments):
    with pytest.raises(ValueError, match=said):
        arguments(**kwargs)


def test_a_backend_without_processes_is_refused(arguments, monkeypatch):
    for name in supported._LAUNCHED:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match="`ddp_backend` is for several processes, and this run is one"):
        arguments(ddp_backend="gloo")


def test_defaults_are_supported(arguments):
    usual = TrainingArguments.__dataclass_fields__
    assert set(KEPT) < set(usual)
    assert arguments(lr_scheduler_type="constant").idle == []
    assert MultiTaskTrainingArguments("out", save_strategy="best", eval_strategy="epoch").metric_for_best_model == (
        "average"
    )


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"optim": "stable_adamw"}, "`optim` should be an optimizer that can be made here.*'stable_adamw'.*optimi"),
        ({"optim_args": "eps=1e-6"}, "`optim_args` should hold arguments that the optimizer '.*' reads. Found `eps`"),
        ({"optim": "sgd", "optim_args": "momentum=0.0,nestero=true"}, "Found `nestero`, which it does not"),
        ({"optim": "sgd", "optim_args": "momentum"}, "as name=value with commas between. Found `optim_args = 'momen"),
        ({"optim_target_modules": ["attn"]}, "`optim_target_modules` has no effect with the optimizer"),
    ],
)
def test_optimizers_that_cannot_be_made_are_refused_when_the_trainer_is_built(kwargs, said, trainer):
    with pytest.raises(ValueError, match=said):
        trainer(**kwargs)


def test_optimizers_of_the_user(trainer, build_model, caplog):
    model = build_model()
    own = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(own, 1, 0.5)
    with pytest.raises(ValueError, match="should hold an optimizer of the weights of the model"):
        trainer(given={"optimizers": (own, None)})
    with pytest.raises(ValueError, match="a schedule without an optimizer"):
        trainer(model, {"optimizers": (None, schedule)})
    with pytest.raises(ValueError, match="a schedule of another optimizer"):
        trainer(model, {"optimizers": (torch.optim.SGD(model.parameters(), lr=0.1), schedule)})
    with pytest.raises(ValueError, match="`data_collator` is not supported: every task makes batches"):
        trainer(given={"data_collator": list})
    with caplog.at_level("WARNING"):
        built = trainer(model, {"optimizers": (torch.optim.SGD(model.heads.parameters(), lr=0.1), None)}, optim="sgd")
    assert "The optimizer that is given has no group for" in caplog.text
    backbone = [weight.clone() for weight in model.backbone.parameters()]
    built.train()
    assert all(torch.equal(one, other) for one, other in zip(backbone, model.backbone.parameters(), strict=True))


def test_an_optimizer_by_its_class(trainer):
    kwargs = {"optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 0.25, "momentum": 0.5})}
    built = trainer(given=kwargs, learning_rates={"ner": 0.125}, optim="stable_adamw", max_steps=1)
    built.train()
    groups = built.optimizer.param_groups
    assert {group["initial_lr"] for group in groups} == {0.25, 0.125} and {group["momentum"] for group in groups} == {
        0.5
    }


def test_arguments_without_effect_are_reported(trainer, caplog):
    given = {
        "dataloader_persistent_workers": True,
        "fsdp_config": {"min_num_params": 1},
        "load_best_model_at_end": True,
        "eval_steps": 2,
    }
    with caplog.at_level("WARNING"):
        built = trainer(**given)
    for name, other in zip(given, ("dataloader_num_workers is 0", "fsdp is", "eval_strategy is 'no'"), strict=False):
        assert f"Parameter `{name}` has no effect, because {other}" in caplog.text
    built.train()


@pytest.mark.parametrize("name", few(["bf16_full_eval", "fp16_full_eval"], ["bf16_full_eval"]))
def test_evaluation_in_half_precision_leaves_the_weights_as_they_are(name, trainer):
    built = trainer(**{name: True})
    before = {key: value.clone() for key, value in built.model.state_dict().items()}
    first, second = built.evaluate(), built.evaluate()
    assert first["eval_ner_loss"] == second["eval_ner_loss"] != trainer().evaluate()["eval_ner_loss"]
    after = built.model.state_dict()
    assert all(torch.equal(before[key], after[key]) and before[key].dtype == after[key].dtype for key in before)


def test_workers_start_as_the_arguments_say(trainer):
    built = trainer(dataloader_num_workers=1, dataloader_multiprocessing_context="spawn")
    loaders = built.get_train_dataloader(), built.get_test_dataloader(built.eval_dataset)
    assert {loader.multiprocessing_context.get_start_method() for loader in loaders} == {"spawn"}
