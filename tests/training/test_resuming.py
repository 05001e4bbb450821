"""Runs that go on with other arguments than they were saved with: followed, refused or said to have no effect."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from hf_multitask import MultiTaskTrainer
from hf_multitask.training.state.resuming import _ASIDE, _KEPT, _REFUSED, compared


@pytest.fixture
def build(build_model, data, arguments, tokenizer):
    def make(**kwargs):
        kwargs = {"save_strategy": "steps", "save_steps": 4, "max_steps": 4, "data_seed": 7, **kwargs}
        return MultiTaskTrainer(build_model(), arguments(**kwargs), train_dataset=data(), processing_class=tokenizer)

    return make


@pytest.fixture
def checkpoint(build, tmp_path):
    build().train()
    return str(shutil.move(tmp_path / "out" / "checkpoint-4", tmp_path / "checkpoint-4"))


def test_what_differs_takes_effect_and_is_said(build, checkpoint, caplog, tmp_path):
    weights = load_file(f"{checkpoint}/model.safetensors")
    still = build(max_steps=6, learning_rate=0.0)
    still.train(resume_from_checkpoint=checkpoint)  # nothing moves at a rate of 0, from the first step on
    assert still.state.global_step == 6
    assert all(torch.equal(value, weights[name]) for name, value in still.model.state_dict().items())
    assert (
        "other arguments, which now take effect: max_steps 6 (then 4), learning_rate 0.0 (then 0.001)." in caplog.text
    )
    caplog.clear()
    given = {"weight_decay": 0.25, "adam_beta1": 0.5, "adam_epsilon": 1e-4, "lr_scheduler_type": "constant"}
    other = build(max_steps=8, save_steps=8, max_grad_norm=0.5, task_weights={"ner": 3}, **given)
    other.train(resume_from_checkpoint=checkpoint)
    groups = other.optimizer.param_groups
    assert {group["betas"] for group in groups} == {(0.5, 0.999)} and {group["eps"] for group in groups} == {1e-4}
    assert {group["weight_decay"] for group in groups} == {0.25, 0.0}
    rates = [entry["learning_rate"] for entry in other.state.log_history if "learning_rate" in entry]
    assert rates[4:] == [1e-3] * 4
    for name in (*given, "max_steps", "save_steps", "max_grad_norm", "task_weights"):
        assert f"{name} " in caplog.text
    assert {path.name for path in (tmp_path / "out").glob("checkpoint-*")} == {"checkpoint-6", "checkpoint-8"}
    state = torch.load(tmp_path / "out" / "checkpoint-8" / "optimizer.pt", weights_only=True)
    assert state["state"][0]["step"] == 8  # the moments went on


def test_a_longer_plan_holds_from_the_first_step_on(build, checkpoint):
    longer = build(max_steps=8)
    longer.train(resume_from_checkpoint=checkpoint)
    rates = [entry["learning_rate"] for entry in longer.state.log_history if "learning_rate" in entry]
    assert rates[4:] == pytest.approx([1e-3 * (8 - step) / 8 for step in range(4, 8)])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"optim": "sgd"},
            r"The optimizer of this run and of checkpoint .* differ: SGD now, AdamW then.*Put optim back",
        ),
        ({"freeze": ["ner"]}, r'The freeze of this run and of checkpoint .* differ: \["ner"\] now, null then. Put it'),
        ({"learning_rates": {"ner": 1e-4}}, r"have other groups of parameters: .*Put freeze, learning_rates"),
        ({"seed": 4, "data_seed": 4}, r"The seed of the data of this run and of checkpoint"),
    ],
)
def test_what_a_state_does_not_fit_is_refused(changed, message, build, checkpoint):
    with pytest.raises(ValueError, match=message):
        build(max_steps=6, **changed).train(resume_from_checkpoint=checkpoint)


def test_a_seed_that_has_no_effect_is_said(build, checkpoint, caplog):
    build(seed=4).train(resume_from_checkpoint=checkpoint)
    assert "with the seed 4 (then 42), which has no effect: the random state is the checkpoint's." in caplog.text


def test_a_resume_without_the_state_of_the_optimizer_is_said(build, caplog, tmp_path):
    build(save_only_model=True).train()
    build(max_steps=5).train(resume_from_checkpoint=True)
    assert "has no optimizer.pt and no scheduler.pt: save_only_model leaves out the state of optimizer" in caplog.text


def test_every_argument_has_one_place(arguments):
    names = set(arguments().to_dict())
    assert not _REFUSED & _ASIDE and not set(_KEPT) & (_REFUSED | _ASIDE)
    assert {"freeze", "seed", "optim_args", "metric_for_best_model"} <= (_REFUSED | set(_KEPT)) <= names
    followed = {
        "learning_rate",
        "weight_decay",
        "adam_beta1",
        "optim",
        "lr_scheduler_type",
        "warmup_steps",
        "max_steps",
    }
    assert followed <= compared(arguments(), {}).keys()
