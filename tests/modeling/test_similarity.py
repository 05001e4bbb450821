"""Groups of pairs in which texts are equal: the loss and the accuracy of a loop over their texts."""

import pytest
import torch
from datasets import Dataset

from hf_multitask import MultiTaskTrainer, SentenceSimilarity

# First and second texts; the last group is smaller.
GROUPS = [
    [("a", "x"), ("b", "x"), ("c", "y"), ("a", "z"), ("d", "z")],  # a has x and z, and so has no negative but y
    [("a", "b"), ("b", "c"), ("d", "d"), ("e", "A"), ("f", "f g")],  # second texts that are first ones of others
    [("a", "x"), ("a", "x")],
]


def naive(first, second, group, scale):
    """Losses of the pairs, and whether each is nearest to its own second text."""
    losses, hits = [], []
    for number, (text, _) in enumerate(group):
        right = {text, *(other for one, other in group if one == text)}
        kept = [place for place, (_, other) in enumerate(group) if place == number or other not in right]
        scores = torch.stack([scale * first[number] @ second[place] for place in kept])
        losses.append(-scores.log_softmax(0)[kept.index(number)])
        hits.append(int(kept[int(scores.argmax())] == number))
    return torch.stack(losses), hits


@pytest.fixture
def trainer(build_model, arguments, tokenizer):
    rows = [{"sentence1": one, "sentence2": other} for group in GROUPS for one, other in group]
    data = {"e": Dataset.from_list(rows)}
    return MultiTaskTrainer(
        build_model(tasks={"e": SentenceSimilarity(negatives=5)}),
        arguments(),
        train_dataset=data,
        eval_dataset=data,
        processing_class=tokenizer,
    )


def test_equal_texts_of_a_group_are_not_negatives_of_each_other(trainer):
    head, model = trainer.model.heads["e"], trainer.model.eval()
    batch = trainer.data_collator([trainer.train_dataset[group] for group in range(3)])
    labels = batch["labels"]["e"]
    assert labels.shape == (3, 5, 2) and head.items(labels).tolist() == [5, 5, 2]
    with torch.no_grad():
        logits = model(**batch).logits["e"]
    lower = [[(one.lower(), other.lower()) for one, other in group] for group in GROUPS]  # as the tokenizer has them
    found = head.loss(logits, labels)
    hits = []
    for number, group in enumerate(lower):
        pairs = logits[number, : 2 * len(group)]
        losses, right = naive(pairs[0::2], pairs[1::2], group, head.scale)
        hits += right
        assert found[number].item() == pytest.approx(losses.sum().item(), rel=1e-5)
        nearest = head.predictions(logits, labels)[number, : len(group)]
        assert [int(place == own) for own, place in enumerate(nearest.tolist())] == right
    metrics = trainer.evaluate()
    assert metrics["eval_e_accuracy"] == pytest.approx(sum(hits) / 12)
    assert metrics["eval_e_loss"] == pytest.approx(found.sum().item() / 12, rel=1e-5)


def test_two_equal_pairs_have_nothing_to_learn_and_their_embeddings_do_not_move(trainer):
    head = trainer.model.heads["e"]
    labels = torch.tensor([[[0, 1], [0, 1]]])
    logits = torch.nn.functional.normalize(torch.randn(1, 4, 8), dim=2).requires_grad_()
    head.loss(logits, labels).sum().backward()
    assert torch.equal(logits.grad, torch.zeros_like(logits))
