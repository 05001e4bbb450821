"""The update of a step depends on its rows, not on how they are dealt to micro-batches and ranks."""

from itertools import product

import layouts
import pytest
import reading
import torch
from layouts import describe, draw, relative_difference
from methods import METHODS
from mixtures import KINDS
from parameters import few
from transformers import AutoTokenizer

from hf_multitask import MultiTaskModel, MultiTaskTrainer
from hf_multitask.aggregation import AGGREGATORS

ALL_ROWS = {"distillation": "fixed", "distillation_kwargs": {"rows": "all", "temperature": 2}}
# Rows of a device, accumulation.
LAYOUTS = [(8, 4), (2, 16)]
# Tasks with rows of their own, and tasks that share rows.
TASKS = {"apart": ("stars", "pairs", "ner"), "shared": KINDS}
IDS = [f"{method}-{tasks}" for method, tasks in product(AGGREGATORS, TASKS)]
# A solver on inner products, a state; of one that reads entries, the tests of ranks make such a comparison.
QUICK = ["cagrad-shared", "gradvac-shared"]


@pytest.fixture
def train(build_model, data, arguments, backbone_path):
    def run(batch, accumulation, dtype, **kwargs):
        model = build_model(dropout=0.0).to(dtype)
        start = {name: value.clone() for name, value in model.state_dict().items()}
        trainer = MultiTaskTrainer(
            model,
            arguments(
                per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation, max_steps=6, **kwargs
            ),
            # 67 rows: two full steps of 32 and one of 3 in an epoch; NER has a few rows a step, and none in some parts.
            train_dataset=data(56, 11),
            processing_class=AutoTokenizer.from_pretrained(backbone_path()),
        )
        trainer.train()
        assert relative_difference(start, model.state_dict()) > 1e-3  # six steps move the weights, differences apart
        logs = [entry for entry in trainer.state.log_history if "loss" in entry]
        return {name: value.clone() for name, value in model.state_dict().items()}, logs

    return run


@pytest.mark.parametrize(
    ("dtype", "bound", "sampling"),
    few(
        [
            (*kind, name)
            for kind in ((torch.float64, 1e-9), (torch.float32, 1e-6))
            for name in ("proportional", "uniform")
        ],
        [(torch.float64, 1e-9, "proportional"), (torch.float32, 1e-6, "uniform")],
    ),
)
def test_accumulation_does_not_change_the_update(dtype, bound, sampling, train, record_property):
    whole, logs = train(32, 1, dtype, sampling=sampling, task_weights={"ner": 2.5})
    for batch, accumulation in LAYOUTS:
        parts, part_logs = train(batch, accumulation, dtype, sampling=sampling, task_weights={"ner": 2.5})
        record_property(f"32x1 against {batch}x{accumulation}, relative norm", relative_difference(whole, parts))
        assert relative_difference(whole, parts) < bound
        for one, other in zip(logs, part_logs, strict=True):
            assert one == pytest.approx(other, rel=1e-5)
        assert any("ner_loss" not in entry for entry in logs) == (sampling == "proportional")


def test_logged_loss_is_the_weighted_sum_of_the_task_losses(train):
    _, logs = train(8, 4, torch.float64, task_weights={"ner": 2.5})
    for entry in logs:
        assert entry["loss"] == pytest.approx(entry["sentiment_loss"] + 2.5 * entry.get("ner_loss", 0), rel=1e-6)
        assert entry["sentiment_share"] + entry["ner_share"] == pytest.approx(1)


@pytest.mark.parametrize("family", few(["bert", "gpt2", "bart"], ["bert", "bart"]))
def test_every_type_makes_one_update_however_it_is_accumulated(family, backbone_path, arguments, record_property):
    kinds = [kind for kind in reading.TASKS if reading.refusal(family, kind) is None]
    path = backbone_path(family)

    def run(batch, accumulation):
        torch.manual_seed(1)
        tasks = {kind: reading.TASKS[kind]() for kind in kinds}
        model = MultiTaskModel.from_backbone(path, tasks=tasks, dropout=0.0).double()
        trainer = layouts.RecordingTrainer(
            model,
            arguments(per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation, max_steps=5),
            train_dataset={kind: reading.rows_of(kind) for kind in kinds},
            processing_class=AutoTokenizer.from_pretrained(path),
        )
        trainer.train()
        return {name: value.clone() for name, value in model.state_dict().items()}, trainer

    whole, alone = run(24, 1)
    assert {task for step in alone.denominators for task in step} == set(kinds)
    parts, trainer = run(3, 8)
    record_property(f"{family} 24x1 against 3x8", relative_difference(whole, parts))
    assert relative_difference(whole, parts) < 1e-9
    assert (trainer.rows, trainer.denominators) == (alone.rows, alone.denominators)


@pytest.mark.parametrize("sampling", few(["proportional", "uniform"], ["uniform"]))
def test_streams_make_one_update_however_they_are_accumulated(sampling, backbone_path, tmp_path, record_property):
    ordinary = describe("streams", rows=24, sampling=sampling, max_steps=7)
    description = {**ordinary, "streams": ["reviews", "wiki"]}
    whole, alone = layouts.run(description, backbone_path(), tmp_path, 24, 1)
    parts, record = layouts.run(description, backbone_path(), tmp_path, 3, 8)
    record_property("24x1 against 3x8, relative norm", relative_difference(whole, parts))
    assert relative_difference(whole, parts) < 1e-9
    for what in ("rows", "denominators", "trained"):
        assert record[what] == alone[what]


@pytest.mark.parametrize(("method", "tasks"), few(product(AGGREGATORS, TASKS.values()), QUICK, IDS))
def test_aggregators_make_one_update_however_it_is_accumulated(method, tasks, backbone_path, tmp_path, record_property):
    description = describe(method, tasks=tasks, rows=24, max_steps=3, **METHODS[f"aggregation-{method}"])
    whole, alone = layouts.run(description, backbone_path(), tmp_path, 24, 1)
    none = describe("none", tasks=tasks, rows=24, max_steps=3)
    plain, _ = layouts.run(none, backbone_path(), tmp_path, 24, 1)
    # The sum of the three conflicts with none of them, so that DualProj leaves it as it is.
    same = method == "sum" or (method, len(tasks)) == ("dualproj", 3)
    assert (relative_difference(whole, plain) > 1e-6) == (not same)
    parts, record = layouts.run(description, backbone_path(), tmp_path, 3, 8)
    record_property("24x1 against 3x8, relative norm", relative_difference(whole, parts))
    assert relative_difference(whole, parts) < (1e-7 if method == "cagrad" else 1e-9)  # its solver stops at 1e-8
    assert record["trained"] == alone["trained"]


def test_branches_and_teachers_make_one_update_however_it_is_accumulated(backbone_path, tmp_path, record_property):
    taught = {"adapters": {"branches": "kind"}, "distillation_kwargs": {"rows": "all", "temperature": 2}}
    tasks = ("stars", "pairs", "ner", "sentiment")
    description = {**describe("taught", tasks=tasks, rows=24, max_steps=3, **taught), "taught": ["stars", "ner"]}
    whole, alone = layouts.run(description, backbone_path(), tmp_path, 24, 1)
    assert any(".branches.pairs." in name for name in whole)
    parts, record = layouts.run(description, backbone_path(), tmp_path, 6, 4)
    record_property("24x1 against 6x4, relative norm", relative_difference(whole, parts))
    assert relative_difference(whole, parts) < 1e-9
    assert record["trained"] == alone["trained"]


@pytest.mark.slow  # as of ranks: test_ranks.py
@pytest.mark.parametrize("more", [{}, {"lora": {"r": 2}, "task_lora": {"r": 2}}], ids=["whole", "adapters"])
def test_branches_make_one_update_however_it_is_accumulated(more, backbone_path, tmp_path, record_property):
    adapters = {"branches": "kind", "branch_layers": 1, **more}
    description = describe("branches", tasks=(*KINDS, "answers", "scored"), rows=24, max_steps=3, adapters=adapters)
    whole, alone = layouts.run(description, backbone_path(), tmp_path, 24, 1)
    assert {name.split(".branches.")[1].split(".")[0] for name in whole if ".branches." in name} == {
        *("texts", "pairs", "ner", "question-answering", "sentence-similarity")
    }
    parts, record = layouts.run(description, backbone_path(), tmp_path, 3, 8)
    record_property("24x1 against 3x8, relative norm", relative_difference(whole, parts))
    assert relative_difference(whole, parts) < 1e-9
    assert record["trained"] == alone["trained"]
    assert record["branched"] == alone["branched"]


@pytest.mark.parametrize("seed", few(range(20, 25), [20]))
def test_drawn_mixtures_make_one_update_however_they_are_accumulated(seed, backbone_path, tmp_path, record_property):
    description = draw(seed, 24)
    whole, alone = layouts.run(description, backbone_path(), tmp_path, 24, 1)
    parts, record = layouts.run(description, backbone_path(), tmp_path, 3, 8)
    record_property("24x1 against 3x8, relative norm", relative_difference(whole, parts))
    assert relative_difference(whole, parts) < 1e-9
    for what in ("rows", "denominators", "trained"):
        assert record[what] == alone[what]


@pytest.mark.parametrize(
    "more",
    few(
        [
            {},
            {"balancing": "famo", "balancing_kwargs": {"exact": True}},
            {"balancing": "gradnorm"},
            {"aggregation": "upgrad"},
            {"taught": ["topics", "stars", "pairs", "ner", "choices", "scored"], **ALL_ROWS},
            {"adapters": {"branches": "kind"}, "aggregation": "upgrad"},
        ],
        ["taught"],
        ["none", "famo", "gradnorm", "upgrad", "taught", "branches"],
    ),
)
def test_options_of_losses_make_one_update_however_it_is_accumulated(more, backbone_path, tmp_path, record_property):
    taught = more.pop("taught", None)
    tasks = (*KINDS, "answers", "choices", "scored", "groups")
    described = {**describe("losses", tasks=tasks, rows=24, max_steps=3, **more), "losses": True, "taught": taught}
    whole, alone = layouts.run(described, backbone_path(), tmp_path, 24, 1)
    plain, _ = layouts.run({**described, "losses": False}, backbone_path(), tmp_path, 24, 1)
    assert relative_difference(whole, plain) > 1e-6
    parts, record = layouts.run(described, backbone_path(), tmp_path, 3, 8)
    record_property("24x1 against 3x8, relative norm", relative_difference(whole, parts))
    assert relative_difference(whole, parts) < 1e-9
    for what in ("rows", "denominators", "trained"):
        assert record[what] == alone[what]
