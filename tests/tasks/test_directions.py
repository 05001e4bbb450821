"""Which way metrics go, and that the types say which ones they give."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import reading
from datasets import Dataset
from transformers import AutoTokenizer

from hf_multitask import (
    MultiTaskModel,
    MultiTaskTrainer,
    SentenceSimilarity,
    SequenceClassification,
    TokenClassification,
)
from hf_multitask.tasks.directions import rises


@pytest.mark.parametrize(
    ("direction", "names"),
    [
        (
            True,
            "average eval_average ner_f1 error_f1 negative_f1 f1_macro ndcg@10 rougeL rougeLsum chrF token_accuracy",
        ),
        (True, "neg_mean_squared_error neg_log_loss 1-wer one_minus_error_rate distance_correlation top5_acc matthews"),
        (False, "lm_perplexity eval_lm_perplexity loss val_loss hinge_loss mlmloss logLoss trainWER MeanSquaredError"),
        (False, "speech_wer cer mae mae_years mse rmse error error_rate wer_mean top5_error accuracy_loss ece nll ppl"),
        (None, "zeros score user_score pieces"),
    ],
)
def test_the_last_word_that_is_known_tells_the_direction(direction, names):
    assert {name: rises(name) for name in names.split()} == dict.fromkeys(names.split(), direction)


TEXTS = [row["text"] for row in reading.rows_of("fill-mask", 8)]
MORE = {
    "three": (SequenceClassification(), {"text": TEXTS, "label": list("abcabcab")}),
    "sets": (SequenceClassification(), {"text": TEXTS, "label": [["a"], ["a", "b"]] * 4}),
    "numbers": (SequenceClassification(), {"text": TEXTS, "label": [n / 2 for n in range(8)]}),
    "tags": (TokenClassification(), {"tokens": [["a", "b"]] * 8, "ner_tags": [["X", "Y"]] * 8}),
    "groups": (SentenceSimilarity(negatives=4), {"sentence1": TEXTS, "sentence2": TEXTS[::-1]}),
}


WRITES = {"gpt2": ["text-generation"], "bart": ["translation", "summarization", "text2text-generation"]}
READS = [kind for kind in reading.TASKS if kind not in {*WRITES["gpt2"], *WRITES["bart"]}]


@pytest.mark.parametrize("family", ["bert", *WRITES])
def test_every_type_names_the_metrics_that_it_gives(family, backbone_path, arguments):
    kinds = WRITES.get(family, READS)
    tasks = {kind: reading.TASKS[kind]() for kind in kinds}
    data = {kind: reading.rows_of(kind, 6) for kind in kinds}
    if family == "bert":
        tasks |= {name: task for name, (task, _) in MORE.items()}
        data |= {name: Dataset.from_dict(rows) for name, (_, rows) in MORE.items()}
    trainer = MultiTaskTrainer(
        MultiTaskModel.from_backbone(backbone_path(family), tasks=tasks),
        arguments(),
        train_dataset=data,
        eval_dataset=data,
        processing_class=AutoTokenizer.from_pretrained(backbone_path(family)),
    )
    trainer.evaluate()
    named = {name: task.metric_names for name, task in trainer.tasks.items()}
    assert {name: ["loss", *given] for name, given in named.items()} == trainer.progress.metrics
    assert all(rises(given[0]) for given in named.values())  # what counts for the average grows
    assert all(rises(metric) is not None for given in named.values() for metric in given)


def test_a_type_that_measures_otherwise_does_not_inherit_the_names():
    @dataclass(kw_only=True)
    class Graded(SequenceClassification):
        type: ClassVar[str] = "graded"

        def metrics(self, predictions, labels, unseen):
            return {"grade": 1.0}

    @dataclass(kw_only=True)
    class Named(Graded):
        type: ClassVar[str] = "named"

        @property
        def metric_names(self):
            return ["grade"]

    known = {"label_names": ["a", "b"], "problem_type": "single_label_classification"}
    assert SequenceClassification(**known).metric_names == ["accuracy", "macro_f1", "f1"]
    assert Graded(**known).metric_names is None and Named(**known).metric_names == ["grade"]
    assert SequenceClassification().metric_names is None  # until the data tell the labels
