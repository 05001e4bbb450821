"""Metrics by name, against scikit-learn on labels, and which of them a task can have."""

import numpy as np
import pytest
import sklearn.metrics as sk
from datasets import Dataset
from reading import rows_of
from scipy import stats
from transformers import AutoTokenizer, pipeline

from hf_multitask import (
    MultipleChoice,
    MultiTaskModel,
    MultiTaskTrainer,
    QuestionAnswering,
    SentenceSimilarity,
    SequenceClassification,
    TokenClassification,
)
from hf_multitask.tasks import build_task
from hf_multitask.tasks.measures import LABEL_SETS, MANY_CLASSES, NUMBERS, SPANS, TAGS, TWO_CLASSES, Classes, macro_f1

DRAW = np.random.default_rng(3)


def classes(count, **kwargs):
    names = [f"c{number}" for number in range(count)]
    return SequenceClassification(label_names=names, problem_type="single_label_classification", **kwargs)


def expected(name, true, told, scores):
    """A metric of labels and probabilities as scikit-learn has it."""
    prefix, _, rest = name.partition("_")
    if prefix in ("micro", "macro", "weighted"):
        return getattr(sk, f"{rest}_score")(true, told, average=prefix, zero_division=0)
    if name in ("f1", "precision", "recall"):
        return getattr(sk, f"{name}_score")(true, told)
    if name == "roc_auc":
        return sk.roc_auc_score(true, scores[:, 1] if scores.shape[1] == 2 else scores, multi_class="ovr")
    if name == "average_precision":
        return sk.average_precision_score(true, scores[:, 1] if scores.shape[1] == 2 else scores)
    known = {"matthews_correlation": "matthews_corrcoef", "cohen_kappa": "cohen_kappa_score"}
    return getattr(sk, known.get(name, f"{name}_score"))(true, told)


@pytest.mark.parametrize("count", [2, 4])
def test_metrics_of_classes_are_those_of_scikit_learn(count):
    logits, true = DRAW.normal(size=(50, count)).astype(np.float32), DRAW.integers(0, count, 50)
    names = list(TWO_CLASSES if count == 2 else MANY_CLASSES)
    scores = np.exp(logits.astype(float)) / np.exp(logits.astype(float)).sum(1, keepdims=True)
    found = classes(count, metrics=names).measure(logits, true, [])
    assert list(found) == names
    for name in names:
        assert found[name] == pytest.approx(expected(name, true, logits.argmax(1), scores), abs=1e-12), name


def test_metrics_of_label_sets_are_those_of_scikit_learn():
    logits, true = DRAW.normal(size=(50, 3)), DRAW.integers(0, 2, (50, 3)).astype(float)
    task = SequenceClassification(label_names=["x", "y", "z"], label_format="set", metrics=list(LABEL_SETS))
    for name, value in task.measure(logits, true, []).items():
        assert value == pytest.approx(expected(name, true, logits > 0, 1 / (1 + np.exp(-logits)))), name


def test_metrics_of_numbers_are_those_of_scikit_learn_and_scipy():
    told, true = DRAW.normal(size=(30, 2)), DRAW.normal(size=(30, 2))
    found = SequenceClassification(problem_type="regression", metrics=list(NUMBERS)).measure(told, true, [])
    functions = {
        "r2": sk.r2_score,
        "mae": sk.mean_absolute_error,
        "mse": sk.mean_squared_error,
        "rmse": sk.root_mean_squared_error,
        "pearson": lambda one, other: np.mean([stats.pearsonr(*pair)[0] for pair in zip(one.T, other.T)]),
        "spearmanr": lambda one, other: np.mean([stats.spearmanr(*pair)[0] for pair in zip(one.T, other.T)]),
    }
    assert found == {name: pytest.approx(function(true, told)) for name, function in functions.items()}


def test_metrics_of_tags_and_spans():
    task = TokenClassification(label_names=["NOUN", "VERB", "X"], metrics=list(TAGS))
    logits, labels = DRAW.normal(size=(4, 9, 3)), DRAW.integers(0, 3, (4, 9))
    true, told = labels.ravel(), logits.argmax(-1).ravel()
    for name, value in task.measure(logits, labels, []).items():
        assert value == pytest.approx(expected(name, true, told, None)), name

    names = ["O", "B-A", "I-A", "B-B", "I-B"]
    chosen = ["macro_f1", "f1", "accuracy", "macro_recall", "micro_f1"]
    task = TokenClassification(label_names=names, metrics=chosen)
    # True: A at 0-1, B at 3. Told: A at 0-1, A at 3, so A has precision 1/2 and recall 1, and B has 0.
    found = task.measure(np.eye(5)[[[1, 2, 0, 1]]], np.array([[1, 2, 0, 3]]), [])
    assert list(found) == chosen
    assert found == {
        "macro_f1": pytest.approx((2 / 3 + 0) / 2),
        "f1": pytest.approx(1 / 2),
        "accuracy": 3 / 4,
        "macro_recall": pytest.approx(1 / 2),
        "micro_f1": pytest.approx(1 / 2),
    }


def test_two_tags_have_the_metrics_of_the_second_one():
    names = ["f1", "precision", "recall", "macro_f1"]
    task = TokenClassification(label_names=["REST", "NAME"], metrics=names)
    logits, labels = DRAW.normal(size=(4, 9, 2)), DRAW.integers(0, 3, (4, 9))  # the third tag is unknown
    true, told = labels.ravel(), logits.argmax(-1).ravel()
    for name, value in task.measure(logits, labels, ["X"]).items():
        sides = (true, told) if name == "macro_f1" else (true == 1, told == 1)
        assert value == pytest.approx(expected(name, *sides, None)), name
    with pytest.raises(ValueError, match="Use 'macro_f1'"):
        TokenClassification(label_names=["REST", "NAME", "X"], metrics=["f1"])


def test_rows_and_answers_without_spans_have_no_metric_that_is_nan():
    names = list(SPANS)
    task = TokenClassification(label_names=["O", "B-A", "I-A"], metrics=names)
    assert task.measure(np.eye(3)[[[0, 0]]], np.array([[0, 0]]), []) == dict.fromkeys(names, 0.0)


def test_a_model_that_answers_the_majority_is_visible():
    logits = np.tile([2.0, 1.0, 0.0], (10, 1))
    found = classes(3).measure(logits, np.array([0] * 8 + [1, 2]), [])
    assert found == {"accuracy": 0.8, "macro_f1": pytest.approx(16 / 18 / 3)}
    assert classes(2).metric_names == ["accuracy", "macro_f1", "f1"]


def test_macro_f1_has_the_classes_of_rows_and_answers_only():
    true, told = np.array([0, 5, 5, 2]), np.array([0, 5, 2, 2])
    assert macro_f1(Classes(true, told)) == pytest.approx(sk.f1_score(true, told, average="macro"))


@pytest.mark.parametrize("name", ["roc_auc", "average_precision"])
def test_a_ranking_of_one_class_is_missing_with_a_reason(name, caplog):
    found = build_task("t", {**classes(2).to_dict(), "name": None, "metrics": ["accuracy", name]}).measure(
        DRAW.normal(size=(5, 2)), np.ones(5, int), []
    )
    assert np.isnan(found[name]) and 0 <= found["accuracy"] <= 1
    assert f"Task 't': '{name}' is missing (NaN) in this evaluation" in caplog.text
    assert "no class with both" in caplog.text


def test_a_ranking_leaves_out_classes_without_rows():
    logits, true = DRAW.normal(size=(20, 3)), DRAW.integers(0, 2, 20)
    found = classes(3, metrics=["roc_auc"]).measure(logits, true, [])["roc_auc"]
    scores = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert found == pytest.approx(np.mean([sk.roc_auc_score(true == one, scores[:, one]) for one in (0, 1)]))


THREE = {"type": "sequence-classification", "label_names": ["a", "b", "c"], "problem_type": None}
SINGLE = THREE | {"problem_type": "single_label_classification"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (SINGLE | {"metrics": ["f1"]}, r"`metrics` has 'f1', and this task can have .* Use 'macro_f1'\."),
        (SINGLE | {"metrics": ["accuracy", "recall"]}, r"`metrics` has 'recall', .* Use 'macro_recall'\."),
        (SINGLE | {"metrics": ["pearson"]}, "`metrics` has 'pearson', and this task can have accuracy, "),
        (THREE | {"metrics": ["macrof1"]}, r"`metrics` has 'macrof1'.* Did you mean 'macro_f1'\?"),
        (THREE | {"problem_type": "regression", "metrics": ["accuracy"]}, "this task can have pearson, spearmanr, r2"),
        (THREE | {"problem_type": "regression", "metrics": ["mae", "r2"]}, r"'mae' first, .*primary.* such as r2\."),
        (THREE | {"problem_type": "regression", "metrics": ["rmse"]}, r"'rmse' first, .*primary.* such as pearson\."),
        (
            THREE | {"label_separator": ";", "metrics": ["matthews_correlation"]},
            "this task can have accuracy, micro_f1",
        ),
        (SINGLE | {"metrics": "accuracy"}, r"`metrics` should be a list of strings. Found `metrics = 'accuracy'`"),
        (SINGLE | {"metrics": []}, "`metrics` should be different names, one or more"),
        (SINGLE | {"metrics": ["accuracy", "accuracy"]}, "`metrics` should be different names, one or more"),
        ({"type": "multiple-choice", "metrics": ["macro_f1"]}, "`metrics` has 'macro_f1', and this task can have acc"),
        ({"type": "question-answering", "metrics": ["exact_mach"]}, "Did you mean 'exact_match'"),
        ({"type": "fill-mask", "metrics": ["perplexity"]}, r"'perplexity' first, .* such as token_accuracy\."),
        ({"type": "sentence-similarity", "metrics": ["pearson"]}, "can have accuracy"),
        ({"type": "token-classification", "label_names": ["O", "B-X"], "metrics": ["roc_auc"]}, "can have f1, prec"),
        ({"type": "token-classification", "label_names": list("NVX"), "metrics": ["f1"]}, r"Use 'macro_f1'\."),
        ({"type": "audio-classification", "label_names": list("abc"), "metrics": ["precision"]}, "'macro_precision'"),
    ],
)
def test_metrics_that_a_task_cannot_have_fail_when_it_is_built(values, message):
    with pytest.raises(ValueError, match=f"Task 't': .*{message}"):
        build_task("t", values)


def test_labels_of_the_data_decide_what_was_open():
    task = SequenceClassification(name="t", metrics=["f1"])
    assert task.resolve(Dataset.from_dict({"label": ["a", "b"]}), []).metrics == ["f1"]
    with pytest.raises(ValueError, match=r"Task 't': `metrics` has 'f1'.* Use 'macro_f1'"):
        task.resolve(Dataset.from_dict({"label": ["a", "b", "c"]}), [])


def test_chosen_metrics_are_those_of_the_answers_and_the_first_counts(backbone_path, arguments, tmp_path):
    texts = [row["text"] for row in rows_of("fill-mask", 24)]
    draw = np.random.default_rng(5)
    rows = Dataset.from_dict(
        {
            "text": texts,
            "label": [str(value) for value in draw.choice(list("abc"), 24)],
            "number": draw.normal(size=24).tolist(),
            "question": texts,
            "choices": [["yes", "no", "maybe"]] * 24,
            "right": draw.integers(0, 3, 24).tolist(),
        }
    )
    common = {"dataset": "rows"}
    tasks = {
        "topic": SequenceClassification(metrics=["macro_f1", "cohen_kappa", "roc_auc"], **common),
        "number": SequenceClassification(label_column="number", metrics=["r2", "mae"], **common),
        "choice": MultipleChoice(label_column="right", metrics=["accuracy"], **common),
    }
    trainer = MultiTaskTrainer(
        MultiTaskModel.from_backbone(backbone_path("bert"), tasks=tasks),
        arguments(max_steps=3, per_device_eval_batch_size=5, metric_for_best_model="topic_cohen_kappa"),
        train_dataset={"rows": rows},
        eval_dataset={"rows": rows},
        processing_class=AutoTokenizer.from_pretrained(backbone_path("bert")),
    )
    trainer.train()
    found = trainer.evaluate()
    assert trainer.progress.metrics["topic"] == ["loss", "macro_f1", "cohen_kappa", "roc_auc"]
    trainer.save_model(str(tmp_path / "model"))
    model = MultiTaskModel.from_pretrained(tmp_path / "model")
    assert model.config.task("topic")["metrics"] == ["macro_f1", "cohen_kappa", "roc_auc"]
    answers = pipeline("multitask", model=model, tokenizer=trainer.processing_class)(texts, tasks=["topic", "number"])
    told = [one["topic"]["label"] for one in answers]
    assert found["eval_topic_macro_f1"] == pytest.approx(sk.f1_score(rows["label"], told, average="macro"))
    assert found["eval_topic_cohen_kappa"] == pytest.approx(sk.cohen_kappa_score(rows["label"], told))
    numbers = [one["number"]["score"] for one in answers]
    assert found["eval_number_mae"] == pytest.approx(sk.mean_absolute_error(rows["number"], numbers), abs=1e-5)
    primary = [found["eval_topic_macro_f1"], found["eval_number_r2"], found["eval_choice_accuracy"]]
    assert found["eval_average"] == pytest.approx(np.mean(primary))


def test_types_that_compute_their_own_metrics_are_selected_from():
    assert QuestionAnswering(metrics=["exact_match", "f1"]).chosen({"f1": 0.5, "exact_match": 0.2}) == {
        "exact_match": 0.2,
        "f1": 0.5,
    }
    assert SentenceSimilarity(label_column="s", metrics=["spearmanr", "mse"]).metrics == ["spearmanr", "mse"]
