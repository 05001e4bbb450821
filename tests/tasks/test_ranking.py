"""Metrics of rankings: against scikit-learn, against all orders of rows with equal scores, in evaluation, and misuse."""

from itertools import permutations

import numpy as np
import pytest
import torch
from datasets import Dataset
from sklearn.metrics import ndcg_score
from tiny import read_rows

from hf_multitask import MultiTaskTrainer, SentenceSimilarity, SequenceClassification
from hf_multitask.modeling import MultiTaskPipeline
from hf_multitask.tasks import build_task
from hf_multitask.tasks.ranking import Groups, ndcg, recall, reciprocal_rank

CLASSES = {"type": "sequence-classification", "label_names": ["no", "yes"], "text_pair_column": "document"}


def of_an_order(relevance, most):
    """The metrics of rows in an order, by their definitions."""
    gain = sum(value / np.log2(place + 2) for place, value in enumerate(relevance[:most]))
    best = sum(value / np.log2(place + 2) for place, value in enumerate(sorted(relevance, reverse=True)[:most]))
    first = next(place for place, value in enumerate(relevance) if value > 0) + 1
    found = sum(value > 0 for value in relevance[:most]) / sum(value > 0 for value in relevance)
    return gain / best, 1 / first if first <= most else 0.0, found


@pytest.mark.parametrize("most", [1, 2, 4, 10])
@pytest.mark.parametrize(
    ("scores", "relevance"),
    [
        ([0.9, 0.4, 0.3, 0.2, 0.1], [0.0, 0.0, 2.0, 0.0, 1.0]),
        ([0.9, 0.4, 0.4, 0.4, 0.1], [0.0, 1.0, 0.0, 3.0, 1.0]),
        ([0.5, 0.5, 0.5, 0.5, 0.5], [1.0, 0.0, 0.0, 2.0, 0.0]),
        ([0.7], [1.0]),
    ],
    ids=["distinct", "tied", "constant", "alone"],
)
def test_rows_with_equal_scores_count_as_the_mean_of_their_orders(scores, relevance, most):
    falling = [
        order for order in permutations(range(len(scores))) if sorted(scores)[::-1] == [scores[i] for i in order]
    ]
    expected = np.mean([of_an_order([relevance[row] for row in order], most) for order in falling], 0)
    ((given, gains),) = Groups(np.array(scores), np.array(relevance), np.zeros(len(scores), int)).split()
    found = [metric(given, gains, most) for metric in (ndcg, reciprocal_rank, recall)]
    assert found == pytest.approx(expected.tolist())
    if len(scores) > 1:
        assert found[0] == pytest.approx(ndcg_score([relevance], [scores], k=most))


def rows_of(groups=5, of_each=6):
    """Documents of queries; the last query has no relevant one, and some rows have no label."""
    texts = [row["text"] for row in read_rows("sentiment", "train", groups * of_each)]
    rows = []
    for query in range(groups):
        for place in range(of_each):
            relevance = 0 if query == groups - 1 else (query + place) % 3
            rows.append(
                {
                    "text": texts[query],
                    "document": texts[query * of_each + place],
                    "query": f"q{query}",
                    "number": float(relevance),
                    "label": ["no", "yes"][relevance > 0],
                }
            )
    rows[1]["label"] = rows[1]["number"] = rows[1]["query"] = None
    order = np.random.default_rng(0).permutation(len(rows))
    return [rows[row] for row in order]


@pytest.fixture
def evaluated(build_model, arguments, tokenizer):
    def make(task, rows, **kwargs):
        torch.manual_seed(1)
        data = {"t": Dataset.from_list(rows)}
        model = build_model(tasks={"t": build_task("t", task)})
        with torch.no_grad():  # as they are, scores differ by so little that their order depends on rounding
            for parameter in [*model.backbone.encoder.parameters(), *model.heads.parameters()]:
                parameter.mul_(10 if parameter.dim() > 1 else 1)
        trainer = MultiTaskTrainer(
            model,
            arguments(**kwargs),
            train_dataset=data,
            eval_dataset=data,
            processing_class=tokenizer,
        )
        return trainer.evaluate(), MultiTaskPipeline(model=trainer.model, tokenizer=tokenizer), trainer

    return make


@pytest.mark.parametrize(
    "task",
    [
        CLASSES,
        {"type": "sequence-classification", "label_column": "number", "text_pair_column": "document"},
        {
            "type": "sentence-similarity",
            "label_column": "number",
            "text_column": "text",
            "text_pair_column": "document",
        },
    ],
    ids=["classes", "numbers", "similarity"],
)
def test_an_evaluation_ranks_as_the_answers_of_the_pipeline(task, evaluated, caplog):
    rows = rows_of()
    names = ["ndcg@10", "mrr@2", "recall@3", "ndcg@2"]
    found, ask, _ = evaluated(task | {"group_column": "query", "metrics": names}, rows)
    groups = {}
    for row in (row for row in rows if row["label"] is not None):
        answer = ask({"text": row["text"], "text_pair": row["document"]})["t"]
        score = answer["score"] if answer.get("label") != "no" else 1 - answer["score"]
        relevance = row["number"] if task.get("label_column") else float(row["label"] == "yes")
        groups.setdefault(row["query"], []).append((score, relevance))
    orders = [[relevance for _, relevance in sorted(rows, reverse=True)] for rows in groups.values()]
    relevant = [order for order in orders if any(order)]
    assert len(relevant) == len(groups) - 1
    assert "1 of 5 groups of column 'query' have no relevant row" in caplog.text
    for name in names:
        kind, most = name.split("@")
        place = ["ndcg", "mrr", "recall"].index(kind)
        expected = np.mean([of_an_order(order, int(most))[place] for order in relevant])
        assert found[f"eval_t_{name}"] == pytest.approx(expected, abs=1e-6)
    assert found["eval_average"] == found["eval_t_ndcg@10"]


def test_rankings_are_the_default_with_groups_and_do_not_depend_on_batches(evaluated):
    task = CLASSES | {"group_column": "query"}
    found, _, trainer = evaluated(task, rows_of(), per_device_eval_batch_size=32)
    names = ["ndcg@10", "mrr@10", "accuracy", "macro_f1", "f1"]
    assert [key for key in found if key.startswith("eval_t_")] == [f"eval_t_{name}" for name in ["loss", *names]]
    other, _, _ = evaluated(task, rows_of()[::-1], per_device_eval_batch_size=4)
    assert [found[f"eval_t_{name}"] for name in names] == pytest.approx([other[f"eval_t_{name}"] for name in names])
    assert trainer.model.config.task("t")["group_column"] == "query"


def test_a_split_without_relevant_rows_is_reported(evaluated, caplog):
    rows = [row | {"label": "no"} for row in rows_of(2) if row["query"] is not None]
    found, _, _ = evaluated(CLASSES | {"group_column": "query", "metrics": ["accuracy", "mrr@3"]}, rows)
    assert np.isnan(found["eval_t_mrr@3"]) and "no group of the split has a relevant row" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metrics": ["ndcg@10"], "group_column": None}, "'ndcg@10', which ranks .* there is no group_column. Set"),
        ({"metrics": ["ndcg@0"]}, "'ndcg@0', whose K should be a whole number, 1 or more. Write ndcg@10"),
        ({"metrics": ["mrr@ten"]}, "'mrr@ten', whose K should be a whole number"),
        ({"metrics": ["recall@-1"]}, "'recall@-1', whose K should be a whole number"),
        ({"metrics": ["ndcg"]}, "Did you mean 'ndcg@10'?"),
        ({"label_names": ["a", "b", "c"]}, "ranks rows by one score.* 3 label_names. Remove"),
        ({"problem_type": "multi_label_classification"}, "ranks rows by one score"),
        ({"problem_type": "regression"}, "ranks rows by one score.* 2 label_names of regression"),
        (
            {"type": "sentence-similarity", "label_names": None},
            "`group_column` ranks pairs with scores, and there is no",
        ),
    ],
)
def test_what_cannot_be_ranked_is_one_sentence(change, message):
    values = CLASSES | {"group_column": "query"} | change
    with pytest.raises(ValueError, match=f"Task 't': .*{message}"):
        build_task("t", {key: value for key, value in values.items() if value is not None})


def test_groups_that_are_missing_are_named_before_training(evaluated):
    task = CLASSES | {"group_column": "query"}
    with pytest.raises(ValueError, match=r"Task 't': the \w+ data has no column 'query'; it has"):
        evaluated(task, [{key: value for key, value in row.items() if key != "query"} for row in rows_of()])
    rows = rows_of()
    rows[4]["query"] = None
    rows[4]["label"] = "yes"
    with pytest.raises(ValueError, match=r"row 4 of the evaluation data, column 'query': the group of a row should be"):
        evaluated(task, rows)


def test_classes_that_bring_their_own_labels_take_groups_too():
    tasks = (SequenceClassification(group_column="q"), SentenceSimilarity(label_column="s", group_column="q"))
    assert [task.reported_metrics for task in tasks] == [None, ["ndcg@10", "mrr@10", "pearson", "spearmanr"]]
    assert [task.all_columns[-1] for task in tasks] == ["q", "q"]
