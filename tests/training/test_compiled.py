"""A compiled backbone trains as one that is not, in few graphs, and what it does not go together with is refused."""

import pytest
import torch
from tiny import NER_LABELS
from torch._dynamo.utils import counters

from hf_multitask import MultiTaskTrainer, SequenceClassification, TokenClassification
from hf_multitask.modeling.native import reading_part
from hf_multitask.training.runtime import TrainerRuntime

BACKENDS = ["aot_eager", pytest.param("inductor", marks=pytest.mark.process)]  # the latter starts a C++ compiler
MOST_GRAPHS = 4  # of training: shapes at first, then of any number of rows and of any length, and of a single row


class FewShapes(TrainerRuntime):
    """Divides and pads batches as for a compiled backbone."""

    compiles = True


@pytest.fixture
def build(build_model, data, arguments, tokenizer):
    def make(*, trainer=MultiTaskTrainer, model=None, **kwargs):
        return trainer(
            model or build_model(dropout=0.0),
            arguments(**kwargs),
            train_dataset=data(60, 40),
            eval_dataset=data(9, 7, "validation"),
            processing_class=tokenizer,
        )

    return make


def losses(trainer):
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], trainer.evaluate()[
        "eval_ner_loss"
    ]


# inductor imports parts of torch that still use it
@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
@pytest.mark.slow
@pytest.mark.parametrize("cost", [0, None])
@pytest.mark.parametrize("backend", BACKENDS)
def test_training_is_that_of_the_plain_backbone(backend, cost, build):
    torch.compiler.reset()
    given = {"max_steps": 12, "gradient_logging_steps": 5, "forward_cost_tokens": cost, "learning_rate": 1e-4}
    plain = build(**given)
    plain.plan.runtime = FewShapes(plain)
    expected, at_end = losses(plain)
    counters.clear()
    compiled = build(torch_compile=True, torch_compile_backend=backend, **given)
    found, compiled_end = losses(compiled)
    assert 1 < counters["stats"]["unique_graphs"] <= MOST_GRAPHS and not counters["graph_break"]
    assert found == pytest.approx(expected, rel=1e-5) and compiled_end == pytest.approx(at_end, rel=1e-5)
    assert reading_part(compiled.model.backbone)._compiled_call_impl is None  # at the end of training


def test_modes_are_of_inductor(build):
    with pytest.raises(ValueError, match=r"`torch_compile_mode` is for the backend inductor\. Found .*'aot_eager'"):
        build(torch_compile_backend="aot_eager", torch_compile_mode="reduce-overhead")


def test_an_aggregator_is_refused(build):
    with pytest.raises(ValueError, match=r"needs the gradients of single rows.*leave out torch_compile"):
        build(torch_compile=True, aggregation="pcgrad")


def test_gradnorm_is_refused(build):
    with pytest.raises(ValueError, match=r"GradNorm reads gradients.*leave out torch_compile"):
        build(torch_compile=True, balancing="gradnorm")


def test_adapters_by_task_are_refused(build, build_model):
    pytest.importorskip("peft", reason="the extra 'peft' is not installed")
    with pytest.raises(ValueError, match=r"`torch_compile` does not work with task_lora, .*\. Leave it out\.$"):
        build(model=build_model(task_lora={"r": 2}), torch_compile=True)


# of torch, which looks whether an input has a gradient
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=[pytest.mark.slow, pytest.mark.process])])
def test_branches_share_the_graphs_of_a_layer(backend, build, build_model):
    torch.compiler.reset()
    given = {"max_steps": 12, "gradient_logging_steps": 5, "learning_rate": 1e-4}
    branches = {"branches": "kind", "branch_layers": 1, "dropout": 0.0}
    plain = build(model=build_model(**branches), **given)
    plain.plan.runtime = FewShapes(plain)
    expected, at_end = losses(plain)
    counters.clear()
    compiled = build(model=build_model(**branches), torch_compile=True, torch_compile_backend=backend, **given)
    found, compiled_end = losses(compiled)
    assert 1 < counters["stats"]["unique_graphs"] <= MOST_GRAPHS and not counters["graph_break"]
    assert found == pytest.approx(expected, rel=1e-5) and compiled_end == pytest.approx(at_end, rel=1e-5)
    assert not any(module._compiled_call_impl for module in compiled.model.modules())  # at the end of training


@pytest.mark.slow
def test_heads_read_the_layers_of_a_compiled_backbone(build, build_model):
    """States of layers are those of the pass that runs, not of the one that was compiled."""
    torch.compiler.reset()
    tasks = {
        "sentiment": SequenceClassification(label_names=["negative", "positive"], layer=1),
        "ner": TokenClassification(label_names=NER_LABELS, layer="mix"),
    }
    found = []
    for kwargs in ({}, {"torch_compile_backend": "aot_eager"}):
        trainer = build(model=build_model(dropout=0.0, tasks=tasks), max_steps=6, learning_rate=1e-4, **kwargs)
        trainer.plan.runtime = FewShapes(trainer)
        found.append(losses(trainer))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-5) and found[1][1] == pytest.approx(found[0][1], rel=1e-5)
