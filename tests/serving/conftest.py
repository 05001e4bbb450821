"""Servers of tiny models."""

import pytest

pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")

from asking import Gated, Running
from reading import TASKS
from transformers import AutoTokenizer

READING = ("sequence-classification", "token-classification", "question-answering", "multiple-choice")
READING += ("sentence-similarity", "fill-mask")


@pytest.fixture
def build_pipeline(build_model, backbone_path):
    """A pipeline that can be held, with a task of each of some types, named by the type."""

    def make(kinds=READING, family="bert", **kwargs):
        model = build_model(family, tasks={kind: TASKS[kind]() for kind in kinds}, branches="none")
        tokenizer = AutoTokenizer.from_pretrained(backbone_path(family))
        return Gated(model=model.eval(), tokenizer=tokenizer, **kwargs)

    return make


@pytest.fixture
def serve(build_pipeline):
    """Starts servers, which end with the test."""
    running = []

    def make(pipeline=None, **settings):
        running.append(Running(pipeline or build_pipeline(), **{"max_wait_ms": 1, **settings}))
        return running[-1]

    yield make
    for one in running:
        one.close()
