"""What a forward pass costs: measured in a real run on the CPU, which stands for an accelerator, with no trace of it."""

import json

import pytest
import torch
from torch import nn

from hf_multitask import MultiTaskTrainer
from hf_multitask.data.forwards import COST_CPU, rounded
from hf_multitask.training.cost import ASSUMED, MEASURED, cost_of, in_tokens, measure
from hf_multitask.training.runtime import PlainRuntime, TrainerRuntime

STEPS = 3


class Accelerator(TrainerRuntime):
    """The CPU in the role of an accelerator."""

    is_accelerator = True


class Ticking(PlainRuntime):
    """An accelerator on which a pass takes a fixed time, and some for every token, which its clock counts."""

    is_accelerator = True
    seconds, fixed, per_token = 0.0, 0.01, 1e-5

    def clock(self):
        return self.seconds

    def prepare(self, inputs):
        tokens = inputs["input_ids"].numel()

        def hook(*_):
            self.seconds += self.fixed + self.per_token * tokens

        self.model.backbone._forward_hooks.clear()
        self.model.backbone.register_forward_hook(hook)
        return inputs


@pytest.fixture
def runtime(build_model, arguments):
    def make(kind=PlainRuntime, family="bert", **kwargs):
        model = build_model(family)
        return kind(arguments(**kwargs), model, torch.optim.SGD(model.parameters()))

    return make


@pytest.fixture
def build(build_model, data, arguments, tokenizer):
    """A trainer for which the CPU is an accelerator."""

    def make(accelerator=True, **kwargs):
        rows = data(40, 24)
        trainer = MultiTaskTrainer(build_model(), arguments(**kwargs), train_dataset=rows, processing_class=tokenizer)
        if accelerator:
            trainer.plan.runtime = Accelerator(trainer)
        return trainer

    return make


@pytest.mark.parametrize(
    ("fixed", "per_token", "tokens"),
    [(0.02, 1e-5, 2048), (0.03, 1e-5, 4096), (0.034, 2.3e-6, 16384), (0.0, 1e-5, 1), (0.02, 0.0, 65536)],
)
def test_cost_is_a_power_of_two(fixed, per_token, tokens):
    assert in_tokens({size: fixed + per_token * size for size in (8, 8192)}) == tokens


def test_one_measurement_is_none():
    assert in_tokens({}) is in_tokens({8: 0.01}) is None


def test_a_pass_is_measured(runtime):
    seconds = measure(runtime(), 64)
    assert seconds.keys() == {8, 8 * 64} and 0 < seconds[8] < seconds[512]
    tokens = in_tokens(seconds)
    assert tokens is not None and 1 <= tokens <= 2**16 and tokens & (tokens - 1) == 0


@pytest.mark.parametrize("shape", [(32, 1), (8, 4)])
def test_cost_does_not_depend_on_accumulation(shape, runtime):
    rows, parts = shape
    one = runtime(Ticking, per_device_train_batch_size=rows, gradient_accumulation_steps=parts)
    assert cost_of(one, 16) == (1024, MEASURED)


def test_rank_0_decides(runtime):
    """Another rank measures nothing."""

    class Second(Ticking):
        rank = 1

        def gather(self, value):
            return [512, value]

        def clock(self):
            raise AssertionError

    assert cost_of(runtime(Second), 64) == (512, MEASURED)


def test_too_little_memory_is_assumed(runtime):
    class Small(Ticking):
        def prepare(self, inputs):
            if inputs["input_ids"].numel() > 8:
                raise torch.OutOfMemoryError
            return super().prepare(inputs)

    assert cost_of(runtime(Small), 64)[1] == ASSUMED


def test_measuring_leaves_no_trace(runtime):
    one = runtime()
    model, norm = one.model, nn.BatchNorm1d(32)
    model.backbone.embeddings.norm = norm
    model.backbone.embeddings.register_forward_hook(lambda _, __, out: norm(out.transpose(1, 2)).transpose(1, 2))
    model.train()
    model.backbone.encoder.eval()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    parameters = {name: (parameter, parameter.grad) for name, parameter in model.named_parameters()}
    modes = {name: module.training for name, module in model.named_modules()}
    state = torch.get_rng_state()
    assert measure(one, 16)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for name, parameter in model.named_parameters():
        assert parameter is parameters[name][0] and parameter.grad is parameters[name][1]
        assert bool((parameter.grad == 1).all())
    assert {name: module.training for name, module in model.named_modules()} == modes


def test_training_after_measuring_is_training(build, capsys):
    measured = build()
    measured.train()
    cost = measured.plan.forwards.cost
    assert f"costs as much as {cost:,} tokens (measured); texts are padded to few lengths." in capsys.readouterr().out
    given = build(forward_cost_tokens=cost)
    given.train()
    assert f"costs as much as {cost:,} tokens (forward_cost_tokens); " in capsys.readouterr().out
    weights = given.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in measured.model.state_dict().items())


def test_on_a_cpu_nothing_is_measured(build, capsys):
    trainer = build(accelerator=False)
    trainer.train()
    assert f"costs as much as {COST_CPU} tokens (a constant on CPUs)." in capsys.readouterr().out
    assert trainer.plan.forwards.cost == COST_CPU and not trainer.plan.forwards.rounded


@pytest.mark.parametrize("cost", [0, 10**6])
def test_argument_decides(cost, build):
    trainer = build(accelerator=False, forward_cost_tokens=cost)
    trainer.plan.settle()
    passes = [len(batch["forwards"]) for batch in trainer.plan.loader(trainer.data_collator)]
    assert max(passes) == (4 if cost == 0 else 1)


@pytest.mark.parametrize("value", [-1, 2.5, True, "many"])
def test_argument_is_checked(value, arguments):
    with pytest.raises(ValueError, match=r"`forward_cost_tokens` should be a whole number of tokens, 0 or more"):
        arguments(forward_cost_tokens=value)


def test_accelerators_get_few_shapes(build):
    trainer = build(forward_cost_tokens=64, per_device_train_batch_size=16)
    trainer.course.begin()
    longest = trainer.model.config.backbone_config.max_position_embeddings
    lengths = {*rounded(torch.arange(1, longest + 1).numpy()).tolist(), longest}
    forwards = [part for batch in trainer.plan.loader(trainer.data_collator) for part in batch["forwards"]]
    for part in forwards:
        length = part["input_ids"].shape[1]
        assert length in lengths
        assert part["labels"].get("ner", torch.empty(0, length)).shape[-1] == length
    assert any(part["attention_mask"][:, -1].sum() == 0 for part in forwards)  # some are longer than their texts


def test_resumed_run_decides_alike(build, tmp_path, caplog):
    """A checkpoint of an accelerator, on one and on a CPU: the same cost, the same order of the rows."""
    first = build(save_strategy="steps", save_steps=STEPS, max_steps=STEPS)
    first.train()
    checkpoint = tmp_path / "out" / f"checkpoint-{STEPS}"
    saved = json.loads((checkpoint / "multitask_state.json").read_text())["forwards"]
    assert saved == {
        "cost": first.plan.forwards.cost,
        "source": MEASURED,
        "rounded": True,
        "forward_cost_tokens": None,
    }
    for accelerator in (True, False):
        resumed = build(accelerator, max_steps=STEPS + 1)
        resumed.train(resume_from_checkpoint=str(checkpoint))
        assert resumed.progress.forwards == saved
        for epoch in range(2):
            ours, theirs = (one.plan.sampler.steps(epoch) for one in (resumed, first))
            assert all((one == other).all() for one, other in zip(ours, theirs, strict=True))
    assert "forward_cost_tokens" not in caplog.text


def test_resume_with_another_argument_follows_it(build, tmp_path, caplog):
    build(False, save_strategy="steps", save_steps=STEPS, max_steps=STEPS, forward_cost_tokens=512).train()
    checkpoint = str(tmp_path / "out" / f"checkpoint-{STEPS}")
    for given, cost, said in ((4096, 4096, "4096 (then 512)"), (None, COST_CPU, "null (then 512)")):
        caplog.clear()
        resumed = build(False, max_steps=STEPS + 1, forward_cost_tokens=given)
        resumed.train(resume_from_checkpoint=checkpoint)
        assert f"forward_cost_tokens {said}" in caplog.text and resumed.plan.forwards.cost == cost
