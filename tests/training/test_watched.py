"""What a run watches for its best model: a metric that is there, and the way that it goes."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
from datasets import Dataset
from tiny import read_rows

from hf_multitask import FillMask, MultiTaskTrainer, SequenceClassification, TokenClassification


@pytest.fixture
def build(build_model, data, arguments, tokenizer):
    def make(metric=None, *, tasks=None, train=None, evaluation=None, kind=MultiTaskTrainer, metrics=None, **kwargs):
        train = train or data(16, 8)
        return kind(
            build_model(tasks=tasks) if tasks else build_model(),
            arguments(**{"eval_strategy": "steps", "metric_for_best_model": metric, **kwargs}),
            train_dataset=train,
            eval_dataset=evaluation or (train if tasks else data(8, 4, "validation")),
            processing_class=tokenizer,
            compute_metrics=metrics,
        )

    return make


def test_direction_follows_from_the_metric(arguments):
    for metric, rising in [
        ("average", True),
        ("ner_f1", True),
        ("eval_lm_perplexity", False),
        ("speech_wer", False),
        ("age_mae", False),
        ("sentiment_loss", False),
        ("age_zeros", True),
    ]:
        args = arguments(metric_for_best_model=metric, eval_strategy="epoch", lr_scheduler_type="reduce_lr_on_plateau")
        assert args.greater_is_better is rising, metric
        assert args.lr_scheduler_kwargs["mode"] == ("max" if rising else "min")  # of PyTorch it is min
    assert arguments(metric_for_best_model="age_zeros", greater_is_better=False).greater_is_better is False
    for metric, wrong in [("lm_perplexity", True), ("ner_f1", False), ("average", False), ("age_rmse", True)]:
        with pytest.raises(ValueError, match=f"`greater_is_better` should be {not wrong} .* Found .* = {wrong}`"):
            arguments(metric_for_best_model=metric, greater_is_better=wrong)


def test_the_model_of_the_least_perplexity_is_kept(build):
    rows = {"lm": Dataset.from_list([{"text": row["text"]} for row in read_rows("sentiment", "train", 24)])}
    steps = {"eval_steps": 2, "save_strategy": "steps", "save_steps": 2, "max_steps": 6, "learning_rate": 5e-3}
    trainer = build(
        "lm_perplexity", tasks={"lm": FillMask()}, train=rows, load_best_model_at_end=True, save_total_limit=2, **steps
    )
    trainer.train()
    seen = {
        entry["step"]: entry["eval_lm_perplexity"] for entry in trainer.state.log_history if "eval_average" in entry
    }
    assert trainer.state.best_global_step == min(seen, key=seen.get) and max(seen, key=seen.get) != min(
        seen, key=seen.get
    )


def test_a_metric_that_no_task_has_is_refused_when_built(build):
    for metric, message in [
        (
            "ner_f2",
            r"the metric 'f2' of task 'ner', which has loss, f1, precision, recall, accuracy\. .* mean 'ner_f1'\?",
        ),
        (
            "eval_sentiment_perplexity",
            r"'perplexity' of task 'sentiment', which has loss, accuracy, macro_f1, f1\. .*Name one",
        ),
        ("nre_f1", r"should be average, or a metric of a task.* Did you mean 'ner_f1'\?"),
        ("loss", r"should be average, or a metric of a task, as sentiment_loss"),
    ]:
        with pytest.raises(ValueError, match=f"`metric_for_best_model` .*{message}"):
            build(metric)
    for metric in ("ner_recall", "eval_ner_loss", "sentiment_f1", "average", "eval_average"):
        build(metric)
    assert build("ner_f2", eval_strategy="no")  # nobody looks


def test_metrics_of_compute_metrics_are_known_once_it_ran(build):
    trainer = build("ner_f2", metrics={"ner": lambda _: {"fbeta": 0.5}}, max_steps=1, eval_steps=1)
    with pytest.raises(ValueError, match=r"names 'ner_f2', and the evaluation gives .*eval_ner_fbeta"):
        trainer.train()
    build("ner_fbeta", metrics={"ner": lambda _: {"fbeta": 0.5}}, max_steps=1, eval_steps=1).train()


def test_names_of_tasks_are_no_part_of_the_metric(build, data):
    rows = data(8, 8)
    rows = {"error": rows["sentiment"], "error_loss": rows["ner"]}
    tasks = {
        "error": SequenceClassification(label_names=["negative", "positive"]),
        "error_loss": TokenClassification(),
    }

    def direction(metric, **kwargs):
        return build(metric, tasks=tasks, train=rows, **kwargs).args.greater_is_better

    own = {"metrics": {"error": lambda _: {"zeros": 0.5}}}
    assert direction("error_zeros", **own) is True
    assert direction("error_zeros", lr_scheduler_type="greedy", **own) is True
    assert direction("error_loss") is False  # of the task error
    assert direction("error_loss_loss") is False and direction("error_loss_f1") is True
    with pytest.raises(ValueError, match="'zeros' of task 'error', which has loss, accuracy, macro_f1, f1"):
        direction("error_zeros")


def test_a_type_whose_primary_metric_falls_is_refused_when_built(build, data, registry):
    from hf_multitask import register_task
    from hf_multitask.modeling.decoding import decode_sequence
    from hf_multitask.modeling.heads import SequenceClassificationHead

    @dataclass(kw_only=True)
    class Distant(SequenceClassification):
        type: ClassVar[str] = "distant"

        @property
        def metric_names(self):
            return ["mae"]

    register_task(Distant, head=SequenceClassificationHead, decode=decode_sequence)
    with pytest.raises(ValueError, match="Task 'far': its score returns 'mae' first"):
        build(tasks={"far": Distant(label_names=["negative", "positive"])}, train={"far": data()["sentiment"]})
