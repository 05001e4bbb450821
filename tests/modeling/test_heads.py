"""Losses against a naive loop, and against the stock classes."""

import pytest
import torch
from transformers import BertConfig

from hf_multitask.modeling.heads import SequenceClassificationHead, TokenClassificationHead

CONFIG = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)


def head(kind, **task):
    return kind({"name": "t", "type": "x", **task}, CONFIG, pooling="native")


def test_single_label_loss_is_cross_entropy_by_row():
    one = head(SequenceClassificationHead, label_names=["a", "b", "c"], problem_type="single_label_classification")
    logits, labels = torch.randn(4, 3), torch.tensor([0, 2, 1, 5])
    expected = [-logits[row].log_softmax(-1)[label] for row, label in enumerate([0, 2, 1])] + [torch.tensor(0.0)]
    torch.testing.assert_close(one.loss(logits, labels), torch.stack(expected))
    assert one.items(labels).tolist() == [1, 1, 1, 0]  # class 5 is none of the model's


def test_multi_label_loss_is_the_mean_over_classes():
    one = head(SequenceClassificationHead, label_names=["a", "b"], problem_type="multi_label_classification")
    logits = torch.randn(3, 2)
    labels = torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 1, 0]])  # the third class is unseen
    probabilities = logits.sigmoid()
    expected = [
        sum(-torch.log(p if hot else 1 - p) for p, hot in zip(probabilities[row], labels[row, :2])) / 2
        for row in range(3)
    ]
    torch.testing.assert_close(one.loss(logits, labels), torch.stack(expected))
    assert one.items(labels).tolist() == [1, 1, 1]


def test_regression_loss_is_the_mean_squared_error():
    one = head(SequenceClassificationHead, label_names=["x", "y"], problem_type="regression")
    logits, labels = torch.randn(3, 2), torch.randn(3, 2)
    expected = [((logits[row] - labels[row]) ** 2).sum() / 2 for row in range(3)]
    torch.testing.assert_close(one.loss(logits, labels), torch.stack(expected))


def test_token_loss_is_summed_over_labelled_tokens():
    one = head(TokenClassificationHead, label_names=["O", "B", "I"])
    logits = torch.randn(2, 4, 3)
    labels = torch.tensor([[-100, 0, 2, -100], [-100, 1, -100, 7]])
    expected = [
        -logits[0, 1].log_softmax(-1)[0] - logits[0, 2].log_softmax(-1)[2],
        -logits[1, 1].log_softmax(-1)[1],
    ]
    torch.testing.assert_close(one.loss(logits, labels), torch.stack(expected))
    assert one.items(labels).tolist() == [2, 1]


@pytest.mark.parametrize(
    ("kind", "task", "labels"),
    [
        (
            SequenceClassificationHead,
            {"label_names": ["a", "b"], "problem_type": "single_label_classification"},
            torch.tensor([0, 1, 1]),
        ),
        (
            SequenceClassificationHead,
            {"label_names": ["a", "b"], "problem_type": "multi_label_classification"},
            torch.tensor([[0.0, 1], [1, 1], [0, 0]]),
        ),
        (SequenceClassificationHead, {"problem_type": "regression"}, torch.tensor([[0.5], [1.5], [-1.0]])),
        (
            TokenClassificationHead,
            {"label_names": ["O", "B"]},
            torch.tensor([[0, 1, -100], [1, -100, -100], [0, 0, 1]]),
        ),
    ],
)
def test_mean_loss_is_the_stock_classs(kind, task, labels):
    one = head(kind, **task)
    one.native.initialize_weights()
    states = torch.randn(3, 3, 8)
    from hf_multitask.modeling.routing import States

    shared = States(last_hidden_state=states, pooler_output=states[:, 0])
    stock = one.native.eval()(input_ids=torch.ones(3, 3).long(), inputs_embeds=shared, labels=labels)
    losses = one.loss(stock.logits, labels)
    torch.testing.assert_close(losses.sum() / one.items(labels).sum(), stock.loss)


def test_half_precision_losses_are_computed_in_float32():
    one = head(TokenClassificationHead, label_names=["O", "B"])
    assert one.loss(torch.randn(1, 2, 2, dtype=torch.bfloat16), torch.tensor([[0, 1]])).dtype == torch.float32
