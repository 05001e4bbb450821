"""What the logs say of the gradients of tasks is what autograd says, and training is the same with and without it."""

import itertools
import logging
import math

import conflicts
import layouts
import pytest
import torch
from conflicts import APART, SHARED, matrix, train
from parameters import few
from transformers import TrainerCallback

from hf_multitask import MultiTaskTrainer
from hf_multitask.aggregation import Outcome
from hf_multitask.hub.records import key_of
from hf_multitask.training.report.console import MANY, SEVERAL
from hf_multitask.training.step import probe
from hf_multitask.training.step.gradients import TaskGradients
from hf_multitask.training.step.probe import INTERVAL, Means

FIVE = (*APART, "sentiment", "person")


def logged(trainer):
    """What every log of training says of gradients."""
    return [
        {key: value for key, value in entry.items() if key.endswith("_grad_norm") or key.startswith("cosine/")}
        for entry in trainer.state.log_history
        if "loss" in entry
    ]


def logged_by(means):
    """What a log says of means."""
    return {name if task is None else key_of(task, name): value for task, name, value in means.figures()}


def run(path, output, tasks=APART, **more):
    trainer, _ = train(path, output, tasks, trainer_class=MultiTaskTrainer, **{"logging_steps": 1, **more})
    trainer.train()
    return trainer


def same(one, other):
    """Whether two models have the same weights, to the bit."""
    others = other.model.state_dict()
    return all(torch.equal(value, others[name]) for name, value in one.model.state_dict().items())


def expected(trainer):
    """Norms and cosines of the whole Jacobian of the last step."""
    names = [f"backbone.{name}" for name, one in trainer.model.backbone.named_parameters() if one.requires_grad]
    jacobian_KP, present = matrix(trainer, names)
    norms = jacobian_KP.norm(dim=1)
    cosines = jacobian_KP @ jacobian_KP.T / torch.outer(norms, norms)
    logs = {f"{name}_grad_norm": float(norm) for name, norm in zip(present, norms)}
    pairs = itertools.combinations(range(len(present)), 2)
    return logs | {f"cosine/{present[one]}/{present[other]}": float(cosines[one, other]) for one, other in pairs}


@pytest.mark.parametrize(
    ("family", "tasks"),
    [("bert", APART), ("bert", SHARED), ("gpt2", APART), ("t5", ("scored", "ner"))],
    ids=["apart", "shared", "gpt2", "t5"],
)
def test_norms_and_cosines_are_those_of_the_jacobian_whatever_the_weights(
    family, tasks, backbone_path, tmp_path, caplog
):
    trainer, _ = train(
        backbone_path(family), tmp_path, tasks, task_weights=None, logging_steps=1, gradient_logging_steps=1
    )
    with caplog.at_level(logging.WARNING):
        trainer.train()
    (found,) = logged(trainer)
    assert found == pytest.approx(expected(trainer), rel=1e-9, abs=1e-12) and len(found) > len(tasks)
    assert "could not be measured" not in caplog.text and "does not fit" not in caplog.text
    weighted = run(backbone_path(family), tmp_path, tasks, task_weights={"ner": 5.0}, gradient_logging_steps=1)
    assert logged(weighted) == [pytest.approx(found, rel=1e-9, abs=1e-12)]


def test_accumulated_step_has_the_gradients_of_the_whole(backbone_path, tmp_path):
    whole = run(backbone_path(), tmp_path, SHARED, max_steps=2, gradient_logging_steps=1)
    layout = {"per_device_train_batch_size": 6, "gradient_accumulation_steps": 4}
    dealt = run(backbone_path(), tmp_path, SHARED, max_steps=2, gradient_logging_steps=1, **layout)
    assert logged(dealt) == [pytest.approx(entry, rel=1e-6, abs=1e-9) for entry in logged(whole)]


@pytest.mark.parametrize(
    "more",
    few(
        [
            {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 3, "max_grad_norm": 0.1},
            {"balancing": "famo", "balancing_kwargs": {"exact": True}},
            {"balancing": "gradnorm"},
            {"tasks": SHARED, "balancing": "uncertainty", "weight_decay": 0.1},
            {"family": "t5", "tasks": ("scored", "ner"), "task_weights": None},
            {"bf16": True, "dtype": torch.float32, **layouts.CHECKPOINTING},
            {"change": lambda model: model.add_adapters(lora={"r": 2, "init_lora_weights": False})},
        ],
        ["accumulated", "gradnorm", "shared rows", "bf16"],
        ["accumulated", "famo", "gradnorm", "shared rows", "t5", "bf16", "lora"],
    ),
)
def test_training_is_the_same_to_the_bit_with_and_without(more, backbone_path, tmp_path):
    if "change" in more:
        pytest.importorskip("peft")
    path = backbone_path(more.get("family", "bert"))
    more = {key: value for key, value in more.items() if key != "family"} | {"max_steps": 3, "dropout": 0.3}
    measured, plain = (run(path, tmp_path, **more, gradient_logging_steps=steps) for steps in (1, 0))
    assert same(measured, plain)
    assert all(entry for entry in logged(measured)) and not any(logged(plain))
    for one, other in zip(measured.state.log_history, plain.state.log_history, strict=True):
        assert {key: one[key] for key in other if "runtime" not in key and "per_second" not in key} == {
            key: value for key, value in other.items() if "runtime" not in key and "per_second" not in key
        }


def test_backbone_that_mixes_rows_is_measured_task_by_task(backbone_path, tmp_path, monkeypatch):
    def mix(model):
        model.backbone.encoder.layer[0] = conflicts.RowMixer(model.backbone.encoder.layer[0])

    found = run(backbone_path(), tmp_path, change=mix, gradient_logging_steps=1)
    assert "mixes rows" in found.engine.describe()
    other, _ = train(
        backbone_path(), tmp_path, trainer_class=MultiTaskTrainer, change=mix, logging_steps=1, gradient_logging_steps=1
    )
    monkeypatch.setattr(TaskGradients, "mixable", lambda self: set())
    other.train()
    assert logged(found) == logged(other)


def test_logs_hold_means_of_what_was_measured_since_the_last(backbone_path, tmp_path):
    each = logged(run(backbone_path(), tmp_path, max_steps=6, gradient_logging_steps=2))
    assert [bool(entry) for entry in each] == [False, True] * 3
    (together,) = logged(run(backbone_path(), tmp_path, max_steps=6, gradient_logging_steps=2, logging_steps=6))
    assert together == pytest.approx({key: sum(entry[key] for entry in each[1::2]) / 3 for key in each[1]})


def test_stopped_tasks_and_single_ones_have_no_angles(backbone_path, tmp_path):
    trainer, _ = train(backbone_path(), tmp_path, max_steps=3, logging_steps=1, gradient_logging_steps=1)
    stops = iter([("ner",), ("pairs", "ner"), ()])

    class Stopping(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            trainer.progress.finished |= dict.fromkeys(next(stops), 1)

    trainer.add_callback(Stopping())
    trainer.train()
    assert [set(entry) for entry in logged(trainer)[1:]] == [
        {"stars_grad_norm", "pairs_grad_norm", "cosine/stars/pairs"},
        {"stars_grad_norm"},
    ]


@pytest.mark.slow
def test_resumed_run_has_the_same_weights_and_logs(backbone_path, tmp_path):
    more = {"max_steps": 8, "logging_steps": 4, "gradient_logging_steps": 3, "dropout": 0.1, "save_strategy": "steps"}
    whole = run(backbone_path(), tmp_path / "whole", **more, save_steps=8)
    run(backbone_path(), tmp_path / "parts", **more, save_steps=3)  # between a measurement and its log
    resumed, _ = train(backbone_path(), tmp_path / "parts", trainer_class=MultiTaskTrainer, **more, save_steps=9)
    resumed.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-3"))
    assert same(whole, resumed)
    assert logged(resumed) == logged(whole) and all(logged(whole))
    rows = [[entry["ner_rows"] for entry in one.state.log_history if "ner_rows" in entry] for one in (whole, resumed)]
    assert rows[0] == rows[1] and rows[0][0] < rows[0][1] == whole.progress.rows["ner"]


def test_rows_are_those_with_a_label_of_the_task(backbone_path, tmp_path):
    trainer = run(backbone_path(), tmp_path, SHARED, max_steps=2)
    first, second = (entry for entry in trainer.state.log_history if "loss" in entry)
    for name in SHARED:
        assert 0 < first[f"{name}_rows"] < second[f"{name}_rows"]
    assert second["sentiment_rows"] <= trainer.progress.seen["reviews"]
    total = sum(first[f"{name}_rows"] for name in SHARED)
    assert first["ner_share"] == pytest.approx(first["ner_rows"] / total)


@pytest.mark.parametrize(("steps", "times"), [(None, 4), (2, 2), (0, 0)])
def test_aggregator_tells_for_nothing(steps, times, backbone_path, tmp_path, monkeypatch):
    monkeypatch.setattr(probe.PassProbe, "measure", None)
    trainer = run(backbone_path(), tmp_path, aggregation="pcgrad", max_steps=4, gradient_logging_steps=steps)
    found = [entry for entry in logged(trainer) if entry]
    assert len(found) == times
    if found:
        norms = trainer.engine.update.outcome.gramian.diagonal().sqrt() / torch.tensor(
            [1, 2.5, 1]
        )  # by the weights of the tasks
        assert [found[-1][f"{name}_grad_norm"] for name in APART] == pytest.approx(norms.tolist())
        assert found[-1]["cosine/stars/ner"] == pytest.approx(float(trainer.engine.update.outcome.cosines[0, 2]))


def test_an_aggregator_tells_nothing_of_a_task_whose_weight_is_zero(backbone_path, tmp_path):
    (found,) = logged(run(backbone_path(), tmp_path, aggregation="pcgrad", task_weights={"ner": 0.0}))
    assert set(found) == {"stars_grad_norm", "pairs_grad_norm", "cosine/stars/pairs"}


# When it is on


def test_default_is_every_two_hundred_steps_where_it_is_cheap(backbone_path, tmp_path, monkeypatch, capsys):
    trainer, _ = train(backbone_path(), tmp_path)
    assert trainer.engine.probe.interval == INTERVAL
    trainer.train()
    assert f"Gradient logging: every {INTERVAL} steps, row split, one forward" in capsys.readouterr().out
    monkeypatch.setattr(probe, "_MOST", 0.1)  # MiB
    assert train(backbone_path(), tmp_path)[0].engine.probe.interval == 0
    assert train(backbone_path(), tmp_path, gradient_logging_steps=7)[0].engine.probe.interval == 7
    monkeypatch.undo()
    monkeypatch.setattr(probe, "MANY", 2)
    assert train(backbone_path(), tmp_path)[0].engine.probe.interval == 0


@pytest.mark.parametrize(
    ("reason", "more"),
    [
        ("there is one task", {"tasks": ("stars",), "task_weights": None}),
        ("the backbone is frozen", {"freeze": ["backbone"]}),
        ("task_lora gives them parts", {"change": lambda model: model.add_adapters(task_lora={"r": 2})}),
    ],
)
def test_off_where_there_is_nothing_to_compare_and_refused_where_asked_for(reason, more, backbone_path, tmp_path):
    if "change" in more:
        pytest.importorskip("peft")
    trainer = run(backbone_path(), tmp_path, **more)
    assert trainer.engine.probe.interval == 0 and not any(logged(trainer))
    with pytest.raises(ValueError, match=rf"`gradient_logging_steps = 5`: .*{reason}.*Set gradient_logging_steps=0\."):
        train(backbone_path(), tmp_path, **more, gradient_logging_steps=5)


@pytest.mark.parametrize("engine", ["is_fsdp_enabled", "is_deepspeed_enabled"])
def test_sharded_engines_are_refused_by_name(engine, backbone_path, tmp_path):
    trainer, _ = train(backbone_path(), tmp_path)
    setattr(trainer, engine, True)
    trainer.engine.probe.begin()
    assert trainer.engine.probe.interval == 0
    trainer.args.gradient_logging_steps = 100
    name = "FSDP" if "fsdp" in engine else "DeepSpeed"
    with pytest.raises(ValueError, match=rf"measured whole, and {name} shards them\. Set gradient_logging_steps=0"):
        trainer.engine.probe.begin()


@pytest.mark.parametrize("value", [-1, 1.5, True])
def test_intervals_are_whole_numbers(value, arguments):
    with pytest.raises(ValueError, match="`gradient_logging_steps` should be a whole number of optimizer steps"):
        arguments(gradient_logging_steps=value)


# When it fails


def breaking(trainer, what):
    """Have a measurement end in an error, or in gradients that are not finite."""

    def forward(module, inputs, output):
        if trainer.engine.step.apart and what == "memory":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nGPU 0 has")
        if trainer.engine.step.apart:
            output.last_hidden_state.register_hook(lambda gradient: gradient * math.inf)

    trainer.model.backbone.register_forward_hook(forward)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("memory", r"CUDA out of memory. Tried to allocate 20.00 GiB)"),
        ("inf", "the gradient of stars, pairs, ner is not"),
    ],
)
def test_failure_is_told_once_and_training_goes_on(what, words, backbone_path, tmp_path, caplog):
    more = {"trainer_class": MultiTaskTrainer, "max_steps": 3, "logging_steps": 1, "dropout": 0.2}
    plain = run(backbone_path(), tmp_path, max_steps=3, dropout=0.2, gradient_logging_steps=0)
    trainer, _ = train(backbone_path(), tmp_path, **more, gradient_logging_steps=1)
    breaking(trainer, what)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    (told,) = [record.message for record in caplog.records if "could not be measured" in record.message]
    assert told.startswith("Step 1: ") and words in told and "training continues" in told
    assert same(trainer, plain) and not any(logged(trainer))


# How it is shown


def test_tensorboard_shows_curves_and_the_matrix(backbone_path, tmp_path):
    tensorboard = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    image = pytest.importorskip("PIL.Image")
    trainer = run(backbone_path(), tmp_path, max_steps=4, gradient_logging_steps=2, report_to="tensorboard")
    (file,) = tmp_path.rglob("events.out.*")
    events = tensorboard.EventAccumulator(str(file)).Reload()
    assert {"train/ner_grad_norm", "train/ner_rows", "train/cosine/pairs/ner"} <= set(events.Tags()["scalars"])
    assert [(event.step, event.value) for event in events.Scalars("train/cosine/pairs/ner")] == [
        (step, pytest.approx(logged(trainer)[step - 1]["cosine/pairs/ner"])) for step in (2, 4)
    ]
    pictures = events.Images("train/cosines")
    assert [picture.step for picture in pictures] == [2, 4]
    path = tmp_path / "cosines.png"
    path.write_bytes(pictures[-1].encoded_image_string)
    drawn = image.open(path)
    assert drawn.size[0] == drawn.size[1] > 3 * 64
    assert drawn.getpixel((drawn.size[0] - 20, drawn.size[1] - 20)) == (0, 114, 178)  # a task and itself


def test_console_shows_one_pair_of_several_tasks_and_the_history_all(backbone_path, tmp_path, capsys):
    assert len(FIVE) > SEVERAL
    trainer = run(backbone_path(), tmp_path, FIVE, gradient_logging_steps=1)
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith("{'loss'")]
    (found,) = logged(trainer)
    pairs = {key: value for key, value in found.items() if key.startswith("cosine/")}
    assert len(pairs) == 10
    assert [line.count("cosine/") for line in shown] == [1] and f"'{min(pairs, key=pairs.get)}'" in shown[0]
    assert "ner_grad_norm" in shown[0]


def outcome(names, seed):
    rows = torch.randn(len(names), 30, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Outcome(tuple(names), rows @ rows.T, None)


def test_of_more_than_eight_tasks_the_mean_and_the_worst_pair_are_logged():
    names = [f"t{number}" for number in range(MANY + 1)]
    one = outcome(names[:9], 0)
    measured = Means({}, names[:9])
    measured.add(one)
    logs = logged_by(measured)
    upper = one.cosines[tuple(torch.triu_indices(9, 9, 1))]
    worst = min(measured.cosines, key=measured.cosines.get)
    assert logs["cosine/mean"] == pytest.approx(float(upper.mean()))
    assert logs["/".join(("cosine", *worst))] == pytest.approx(float(upper.min()))
    assert len(logs) == 9 + 2 and len(measured.cosines) == 36
    many = Means({}, names)
    many.add(outcome(names, 1))
    assert "cosine/mean" in logged_by(many) and not many.cosines


def test_task_without_a_gradient_has_no_angle():
    measured = Means({}, ["a", "b", "c"])
    measured.add(Outcome(("a", "b", "c"), torch.diag(torch.tensor([4.0, 0.0, 9.0], dtype=torch.float64)), None))
    assert logged_by(measured) == {"a_grad_norm": 2, "b_grad_norm": 0, "c_grad_norm": 3, "cosine/a/c": 0}
