"""The engine of a step needs no Trainer: on the plain runtime it makes the update of the formula."""

import ast
import copy
from pathlib import Path

import pytest
import torch

import hf_multitask
from hf_multitask import MultiTaskTrainingArguments
from hf_multitask.balancing import build_balancer
from hf_multitask.data import MixtureCollator
from hf_multitask.training.plan import Plan
from hf_multitask.training.preparation.tasks import build_tasks, resolve_tasks
from hf_multitask.training.runtime import PlainRuntime
from hf_multitask.training.step.engine import build_engine
from hf_multitask.training.step.guard import LossError
from hf_multitask.training.step.rows import without
from hf_multitask.training.step.update import UpdateBuilder
from hf_multitask.training.step.weights import TaskWeights

pytestmark = pytest.mark.unit
STEPS = 3


@pytest.fixture
def engine_of(build_model, data, tokenizer, tmp_path):
    """An engine over a model of its own, its plan, and the batches of every step."""

    def make(balancing="none", accumulation=2, **kwargs):
        model = build_model(dropout=0.0).double()
        args = MultiTaskTrainingArguments(
            str(tmp_path),
            per_device_train_batch_size=8,
            gradient_accumulation_steps=accumulation,
            max_steps=STEPS,
            use_cpu=True,
            report_to="none",
            max_grad_norm=0.0,
            **kwargs,
        )
        rows = data(40, 24)
        tasks = resolve_tasks(build_tasks(model.config, None), [rows])
        runtime = PlainRuntime(args, model, torch.optim.SGD(model.parameters(), lr=0.1))
        plan = Plan(runtime, tasks, tokenizer, None)
        plan.read(rows)
        names = list(tasks)
        engine = build_engine(
            runtime,
            {name: task.source for name, task in tasks.items()},
            list(plan.data.sizes),
            weights=TaskWeights(build_balancer(balancing, None), names, {"sentiment": 1.0, "ner": 2.0}),
            update=UpdateBuilder(runtime, names, None).build(),
        )
        runtime.loss = engine.loss
        batches = list(plan.loader(MixtureCollator(tokenizer, tasks, seed=0)))[: STEPS * accumulation]
        return engine, [batches[start : start + accumulation] for start in range(0, len(batches), accumulation)]

    return make


def train(engine, steps):
    runtime = engine.runtime
    for batches in steps:
        runtime.optimizer.zero_grad()
        items = engine.open(batches)
        for number, batch in enumerate(batches, 1):
            runtime.is_last_part = number == len(batches)
            loss = engine.run(runtime.model, batch["forwards"], items)
        runtime.optimizer.step()
        engine.after_update()
        runtime.step += 1
    return loss


def test_update_is_that_of_the_formula(engine_of):
    engine, steps = engine_of()
    model = copy.deepcopy(engine.runtime.model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for batches in copy.deepcopy(steps):
        optimizer.zero_grad()
        sums, counts = {}, {}
        for forward in (forward for batch in batches for forward in batch["forwards"]):
            logits = model(**{**forward, "labels": None}).logits
            for name, labels in forward["labels"].items():
                sums[name] = sums.get(name, 0) + model.heads[name].loss(logits[name], labels).sum()
                counts[name] = counts.get(name, 0) + model.heads[name].items(labels).sum()
        weights = {"sentiment": 1.0, "ner": 2.0}
        sum(weights[name] * sums[name] / counts[name] for name in sums).backward()
        optimizer.step()
    train(engine, steps)
    for name, value in engine.runtime.model.state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("trained", [False, True])
def test_loss_outside_of_a_step_has_the_fixed_weights(trained, engine_of):
    engine, steps = engine_of()
    forward = next(f for batch in copy.deepcopy(steps[0]) for f in batch["forwards"] if len(f["labels"]) == 2)
    if trained:  # the last step has the rows of one task only
        ner = [f for batch in steps[1] for f in batch["forwards"] if "ner" in f["labels"]]
        train(engine, [*steps[:1], [{**steps[1][0], "forwards": [without(f, {"sentiment"}) for f in ner]}]])
    with torch.no_grad():
        loss, outputs = engine.loss(engine.runtime.model, forward, None)
    weights = {"sentiment": 1.0, "ner": 2.0}
    assert set(outputs.losses) == set(weights) and float(loss) == pytest.approx(
        sum(weights[name] * float(value) for name, value in outputs.losses.items())
    )


def test_a_micro_batch_needs_an_open_step(engine_of):
    engine, steps = engine_of()
    with pytest.raises(RuntimeError, match=r"no open step\. Call get_batch_samples first"):
        engine.run(engine.runtime.model, steps[0][0]["forwards"], None)


def test_figures_are_those_of_the_steps_and_begin_anew(engine_of):
    engine, steps = engine_of("uncertainty")
    train(engine, steps)
    figures = {(task, name): value for task, name, value in engine.figures()}
    assert {name for task, name in figures if task == "ner"} == {"loss", "share", "rows", "weight"}
    rows = sum(
        len(labels)
        for batches in steps
        for batch in batches
        for f in batch["forwards"]
        for labels in [f["labels"].get("ner", ())]
    )
    assert figures["ner", "rows"] == rows and figures["ner", "share"] + figures["sentiment", "share"] == 1
    assert not [name for _, name, _ in engine.figures() if name == "loss"]


def test_state_continues_in_another_engine(engine_of):
    one, steps = engine_of("dwa")
    train(one, steps[:2])
    other, _ = engine_of("dwa")
    other.runtime.model.load_state_dict(one.runtime.model.state_dict())
    other.load_state_dict({**copy.deepcopy(one.state_dict()), "folder": "of the test"})
    for engine in (one, other):
        train(engine, copy.deepcopy(steps[2:]))
    assert one.state_dict() == other.state_dict()
    for name, value in one.runtime.model.state_dict().items():
        assert torch.equal(value, other.runtime.model.state_dict()[name])


def test_state_of_another_balancer_is_refused(engine_of):
    state = {**engine_of("dwa")[0].state_dict(), "folder": "checkpoint-1"}
    with pytest.raises(
        ValueError, match=r"balancing of this run and of checkpoint 'checkpoint-1' differ: FAMO now, DWA"
    ):
        engine_of("famo")[0].load_state_dict(state)


def test_a_task_without_a_finite_loss_is_left_out(engine_of, caplog):
    engine, steps = engine_of(non_finite_patience=2)
    with torch.no_grad():
        next(iter(engine.runtime.model.heads["ner"].parameters())).fill_(float("nan"))
    train(engine, steps[:1])
    assert list(engine.step.losses) == ["sentiment"] and engine.guard.non_finite["ner"]["in_a_row"] == 1
    assert "Task 'ner': its loss is nan in step 1" in caplog.text
    with pytest.raises(LossError, match="last of 2 such steps in a row"):
        train(engine, steps[1:2])


@pytest.mark.parametrize(
    "path", sorted((Path(hf_multitask.__file__).parent / "training" / "step").glob("*.py")), ids=lambda path: path.name
)
def test_step_imports_no_trainer(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        assert not {"Trainer", "MultiTaskTrainer", "TrainerCallback"} & {name.rpartition(".")[2] for name in names}
