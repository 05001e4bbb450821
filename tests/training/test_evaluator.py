"""The evaluator by itself, on a runtime that is no Trainer."""

import pytest
import torch

from hf_multitask import MultiTaskTrainer
from hf_multitask.training.evaluation.evaluator import Evaluator
from hf_multitask.training.runtime import PlainRuntime

SPEED = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second")


def test_evaluator_needs_no_trainer(build_model, arguments, data, tokenizer):
    rows = data(21, 13, "validation")
    trainer = MultiTaskTrainer(build_model(), arguments(), eval_dataset=rows, processing_class=tokenizer)
    model, rows = trainer.model, trainer.eval_dataset

    def sweep(rows, title):
        batches = list(evaluator.loader(rows))
        model.eval()
        for batch in batches:
            evaluator.step(model, batch)
        return len(batches)

    evaluator = Evaluator(
        PlainRuntime(trainer.args, model, torch.optim.SGD(model.parameters())),
        tasks=trainer.tasks,
        metrics={},
        preprocess={},
        collator=trainer.data_collator,
        given=trainer.processing_class,
        sweep=sweep,
    )
    found, expected = evaluator.evaluate(rows, "eval"), trainer.evaluate()
    assert {key for key in SPEED if key in found} == {key for key in SPEED if key in expected}
    assert {key: value for key, value in found.items() if key not in SPEED} == {
        key: pytest.approx(value, nan_ok=True)
        for key, value in expected.items()
        if key not in (*SPEED, "eval_model_preparation_time", "epoch")
    }
    assert evaluator.primary == trainer.evaluator.primary
    assert evaluator.measured_rows == {"eval": rows.sizes} == trainer.evaluator.measured_rows
    assert list(evaluator.predict(rows, "test")) == list(trainer.tasks)
