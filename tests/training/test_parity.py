"""One task with uniform weights is the plain Trainer with the native model."""

import numpy as np
import pytest
import torch
from torch.utils.data import SequentialSampler
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorForTokenClassification,
    Trainer,
    TrainingArguments,
)

from hf_multitask import MultiTaskTrainer

STEPS = 20


class InOrder(Trainer):
    def _get_train_sampler(self, train_dataset=None):
        return SequentialSampler(self.train_dataset)


def plain_arguments(args):
    names = ("per_device_train_batch_size", "max_steps", "learning_rate", "use_cpu")
    same = {name: getattr(args, name) for name in (*names, "disable_tqdm", "logging_steps", "save_strategy", "seed")}
    return TrainingArguments(args.output_dir + "-plain", **same)


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize(
    ("task", "auto_class"),
    [("sentiment", AutoModelForSequenceClassification), ("ner", AutoModelForTokenClassification)],
)
def test_one_task_is_the_plain_trainer(
    task, auto_class, build_model, tasks, data, arguments, backbone_path, record_property
):
    model = build_model(tasks={task: tasks[task]}, dropout=0.0)
    rows = data(80, 80)[task].filter(lambda row: len(row.get("tokens", [])) < 25)  # which fit into one window
    rows = rows.select(range(len(rows) // 8 * 8))  # whole batches, as the other trainer sees one long epoch
    tokenizer = AutoTokenizer.from_pretrained(backbone_path())
    settings = {"max_steps": STEPS, "learning_rate": 5e-4}
    ours = MultiTaskTrainer(model, arguments(**settings), train_dataset={task: rows}, processing_class=tokenizer)
    sampler = ours.plan.new_sampler()
    order = np.concatenate([rows for epoch in range(5) for rows in sampler.steps(epoch)])[: STEPS * 8]

    head = model.heads[task].native
    stock = auto_class.from_config(head.config)
    weights = {f"bert.{name}": value.clone() for name, value in model.backbone.state_dict().items()}
    stock.load_state_dict(weights | {name: value.clone() for name, value in head.state_dict().items()})
    encoded = ours.train_dataset.datasets[0].rows
    plain = InOrder(
        stock,
        plain_arguments(ours.args),
        train_dataset=encoded.select(order).rename_column(f"labels:{task}", "labels").remove_columns("cut"),
        data_collator=DataCollatorForTokenClassification(tokenizer) if task == "ner" else None,
        processing_class=tokenizer,
    )
    ours.train()
    plain.train()
    record_property(
        "largest difference of losses", max(abs(a - b) for a, b in zip(losses(ours), losses(plain), strict=True))
    )
    assert losses(ours) == pytest.approx(losses(plain), abs=1e-5)
    trained = {f"bert.{name}": value for name, value in model.backbone.state_dict().items()} | head.state_dict()
    start = torch.cat([value.flatten() for value in weights.values()]).norm()
    difference = torch.cat([(trained[name] - value).flatten() for name, value in stock.state_dict().items()]).norm()
    record_property("difference of weights, relative norm", float(difference / start))
    assert difference / start < 1e-5
    # Adam turns the rounding of a key bias, whose true gradient is zero, into steps; nothing else may drift.
    drifts = {name: float((trained[name] - value).abs().max()) for name, value in stock.state_dict().items()}
    others = max(drift for name, drift in drifts.items() if "key.bias" not in name)
    record_property("largest difference of a weight", others)
    assert others < 1e-5
