"""Heads that run together in training, against each of them alone."""

import pytest
import torch

from hf_multitask import MultiTaskModel, SequenceClassification, TokenClassification

TASKS = {
    "pairs": lambda: SequenceClassification(label_names=["no", "yes"]),
    "three": lambda: SequenceClassification(label_names=["a", "b", "c"]),
    "tags": lambda: TokenClassification(label_names=["O", "X"]),
    "more": lambda: TokenClassification(label_names=["O", "Y", "Z"]),
    "number": lambda: SequenceClassification(problem_type="regression"),
}


@pytest.mark.parametrize("rows", [2, 3])
def test_losses_and_gradients_are_those_of_each_head_alone(rows, backbone_path):
    torch.manual_seed(0)
    made = {name: make() for name, make in TASKS.items()}
    model = MultiTaskModel.from_backbone(backbone_path(), tasks=made, dropout=0.0).double().train()
    ids = torch.randint(6, 600, (12, 7))
    task_rows = {name: torch.randperm(12)[:3] for name in TASKS}
    task_rows["pairs"] = task_rows["pairs"][:rows]  # as many as the others, or fewer
    task_rows["tags"] = task_rows["tags"][:rows]
    labels = {
        "pairs": torch.tensor([1, 2, 0])[:rows],  # of which one is a class that the model does not have
        "three": torch.tensor([2, 0, 1]),
        "tags": torch.randint(0, 2, (rows, 7)).index_fill(1, torch.tensor([0, 3]), -100),
        "more": torch.randint(0, 3, (3, 7)),
        "number": torch.randn(3, 1, dtype=torch.float64),
    }
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    whole = model(**given, task_rows=task_rows, labels=labels)
    whole.loss.backward()
    found = {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}
    model.zero_grad()
    for name in TASKS:
        alone = model(**given, task_rows={name: task_rows[name]}, labels={name: labels[name]})
        alone.loss.backward()
        torch.testing.assert_close(whole.losses[name], alone.losses[name], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(whole.logits[name], alone.logits[name], rtol=1e-9, atol=1e-12)
    expected = {name: one.grad for name, one in model.named_parameters() if one.grad is not None}
    assert set(found) == set(expected)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12)
