"""The loss of the best constant answer is what a head loses that says the frequencies, or the mean."""

import math

import pytest
import reading
import torch
from datasets import Dataset
from transformers import AutoTokenizer

from hf_multitask import MultiTaskModel, MultiTaskTrainer, SentenceSimilarity, SequenceClassification
from hf_multitask.tasks.constant import entropy, variance
from hf_multitask.training.step.weights import constant_losses


@pytest.fixture
def measure(backbone_path, arguments):
    """The constant losses of tasks on their data, and the trainer that encoded them."""

    def make(tasks, data, family="bert"):
        path = backbone_path(family)
        tokenizer = AutoTokenizer.from_pretrained(path)
        model = MultiTaskModel.from_backbone(path, tasks=tasks)
        trainer = MultiTaskTrainer(model, arguments(), train_dataset=data, processing_class=tokenizer)
        return constant_losses(trainer.train_dataset, trainer.tasks, tokenizer), trainer

    return make


def test_entropy_and_variance_by_hand():
    assert entropy("aabb") == pytest.approx(math.log(2)) and entropy("aaaa") == 0 == entropy("")
    assert variance([[1.0, 5.0], [3.0, 5.0]]) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("problem_type", "labels"),
    [
        ("single_label_classification", [0, 0, 1, 2, 2, 2, None]),
        ("multi_label_classification", [["a"], ["a", "b"], [], ["c"], ["a"], None]),
        ("regression", [1.0, 2.5, -4.0, 0.5]),
    ],
)
def test_of_texts_it_is_the_least_that_constant_logits_lose(problem_type, labels, measure):
    names = None if problem_type == "regression" else ["a", "b", "c"]
    data = {"t": Dataset.from_dict({"text": ["a text"] * len(labels), "label": labels})}
    found, trainer = measure({"t": SequenceClassification(problem_type=problem_type, label_names=names)}, data)
    own = [label for label in trainer.train_dataset.datasets[0].rows["labels:t"] if label is not None]
    targets = trainer.tasks["t"].collate(own, 1, "right")
    logits = torch.zeros(1, 1 if names is None else 3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=200, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        total = trainer.model.heads["t"].loss(logits.expand(len(own), -1), targets).mean()
        total.backward()
        return total

    optimizer.step(loss)
    assert found["t"] == pytest.approx(float(loss().detach()), rel=1e-5)


@pytest.mark.parametrize("family", ["bert", "gpt2", "bart"])
def test_every_type_knows_its_own(family, measure):
    kinds = [kind for kind in reading.TASKS if reading.refusal(family, kind) is None]
    tasks = {kind: reading.TASKS[kind]() for kind in kinds}
    found, trainer = measure(tasks, {kind: reading.rows_of(kind) for kind in kinds}, family)
    assert set(found) == set(kinds) and all(0 < loss < 10 for loss in found.values())
    if "token-classification" in kinds:
        rows = next(part.rows for part in trainer.train_dataset.datasets if "token-classification" in part.tasks)
        tags = [tag for row in rows["labels:token-classification"] for tag in row if tag != -100]
        shares = [tags.count(tag) / len(tags) for tag in set(tags)]
        assert found["token-classification"] == pytest.approx(-sum(share * math.log(share) for share in shares))


def test_of_groups_it_is_a_guess_among_the_pairs(measure):
    def guess(*seconds):
        rows = Dataset.from_dict({"sentence1": [f"one {row}" for row in range(7)], "sentence2": seconds})
        found, trainer = measure({"pairs": SentenceSimilarity(negatives=4)}, {"pairs": rows})
        labels = trainer.tasks["pairs"].collate(trainer.train_dataset.datasets[0].rows["labels:pairs"], 1, "right")
        alike = torch.nn.functional.normalize(torch.ones(len(labels), 2 * labels.shape[1], 2), dim=2)
        losses = trainer.model.heads["pairs"].loss(alike, labels)  # whatever the texts, one embedding
        assert found["pairs"] == pytest.approx(float(losses.sum()) / 7, rel=1e-6)
        return found["pairs"]

    assert guess(*(f"two {row}" for row in range(7))) == pytest.approx((4 * math.log(4) + 3 * math.log(3)) / 7)
    # Equal texts are not negatives: two of four pairs have three candidates, the others four.
    assert guess("a", "a", *"bcdef") == pytest.approx((2 * math.log(3) + 2 * math.log(4) + 3 * math.log(3)) / 7)
    assert guess(*["two"] * 7) == 0
