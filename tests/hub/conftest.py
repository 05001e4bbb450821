"""A trainer whose runs have cards."""

import pytest

from hf_multitask import MultiTaskTrainer


@pytest.fixture
def build(build_model, arguments, data, tokenizer):
    def make(model=None, evaluation=True, **kwargs):
        values = {"max_steps": 4, "eval_strategy": "steps", "eval_steps": 2, "task_weights": {"ner": 2}, **kwargs}
        return MultiTaskTrainer(
            model or build_model(),
            arguments(**values),
            train_dataset=data(),
            eval_dataset=data(8, 4, "validation") if evaluation else None,
            processing_class=tokenizer,
        )

    return make
