"""Stock models of single tasks as teachers, tiny and random."""

import pytest
import torch
from tiny import NER_LABELS
from transformers import (
    AutoModelForMultipleChoice,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from hf_multitask import MultiTaskTrainer

CLASSES = {"sequence": AutoModelForSequenceClassification, "token": AutoModelForTokenClassification}
CLASSES["choice"] = AutoModelForMultipleChoice


@pytest.fixture
def teacher_of(backbone_path, tmp_path):
    """Saves a stock model with labels, its weights drawn wide so that its answers differ from row to row."""

    def make(kind, names=None, family="bert", **kwargs):
        path = backbone_path(family)
        labels = {} if names is None else {"id2label": dict(enumerate(names)), "num_labels": len(names)}
        torch.manual_seed(3)
        model = CLASSES[kind].from_pretrained(path, **labels, **kwargs)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(3)
        folder = tmp_path / f"teacher-{kind}-{family}-{len(list(tmp_path.iterdir()))}"
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(path).save_pretrained(folder)
        return str(folder)

    return make


@pytest.fixture
def teachers(teacher_of):
    return {
        "sentiment": teacher_of("sequence", ["positive", "negative"]),
        "ner": teacher_of("token", NER_LABELS[::-1], "roberta"),
    }


@pytest.fixture
def build(build_model, data, arguments, tokenizer):
    def make(teachers=None, model=None, train_dataset=None, trainer_class=MultiTaskTrainer, **kwargs):
        more = {key: kwargs.pop(key) for key in ("callbacks", "eval_dataset", "balancer") if key in kwargs}
        return trainer_class(
            model or build_model(dropout=0.0).double(),
            arguments(**{"gradient_logging_steps": 0, **kwargs}),
            train_dataset=train_dataset or data(20, 12),
            processing_class=tokenizer,
            teachers=teachers,
            **more,
        )

    return make
