"""Options of losses against torch, against their formulas in a naive loop, and in a model."""

import pytest
import torch
import torch.nn.functional as F
from transformers import BertConfig

from hf_multitask import MultiTaskModel, SentenceSimilarity, SequenceClassification
from hf_multitask.modeling.choice import MultipleChoiceHead
from hf_multitask.modeling.heads import SequenceClassificationHead, TokenClassificationHead
from hf_multitask.modeling.similarity import SentenceSimilarityHead
from hf_multitask.modeling.speech import AudioClassificationHead

CONFIG = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
NAMES = ["a", "b", "c", "d"]
WEIGHTS = {"d": 0.25, "a": 3.0, "c": 0.0}  # in another order, and 1 for b
VALUES = torch.tensor([3.0, 1.0, 0.0, 0.25], dtype=torch.float64)
SINGLE, SETS = "single_label_classification", "multi_label_classification"


def head(kind, **task):
    return kind({"name": "t", "type": "x", "label_names": NAMES, **task}, CONFIG, pooling="native")


def numbers(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def mean(one, logits, labels, weights=None):
    return one.weighted_loss(logits, labels, weights).sum() / one.weighted_items(labels, weights).sum()


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["plain", "weights"])
@pytest.mark.parametrize("smoothing", [None, 0.2], ids=["hard", "smoothing"])
def test_classes_have_the_loss_of_torch(weights, smoothing):
    options = {"class_weights": weights, "label_smoothing": smoothing}
    reference = torch.nn.CrossEntropyLoss(None if weights is None else VALUES, label_smoothing=smoothing or 0.0)
    one = head(SequenceClassificationHead, problem_type=SINGLE, **options)
    logits, labels = numbers(6, 4), torch.tensor([0, 1, 3, 2, 1, 0])
    torch.testing.assert_close(mean(one, logits, labels), reference(logits, labels), rtol=1e-12, atol=0)
    unseen = torch.cat([labels, torch.tensor([5])])  # a class that the model does not have
    torch.testing.assert_close(mean(one, torch.cat([logits, logits[:1]]), unseen), mean(one, logits, labels))
    tags = head(TokenClassificationHead, **options)
    logits = numbers(3, 5, 4)
    labels = torch.tensor([[-100, 0, 3, -100, 1], [2, 1, -100, -100, -100], [0, 0, 3, 1, -100]])
    torch.testing.assert_close(mean(tags, logits, labels), reference(logits.mT, labels), rtol=1e-12, atol=0)
    windows = mean(tags, logits.unsqueeze(0), labels.unsqueeze(0))  # a text of three windows
    torch.testing.assert_close(windows, mean(tags, logits, labels))


@pytest.mark.parametrize("smoothing", [None, 0.2], ids=["hard", "smoothing"])
@pytest.mark.parametrize("kind", [SequenceClassificationHead, TokenClassificationHead])
def test_gradients_are_those_of_torch(kind, smoothing):
    one = head(kind, problem_type=SINGLE, class_weights=WEIGHTS, label_smoothing=smoothing)
    logits, labels = numbers(2, 3, 4).requires_grad_(), torch.tensor([[0, 3, 1], [2, 1, 0]])
    flat = logits.flatten(0, 1) if kind is SequenceClassificationHead else logits
    own = mean(one, flat, labels.flatten() if kind is SequenceClassificationHead else labels)
    reference = torch.nn.CrossEntropyLoss(VALUES, label_smoothing=smoothing or 0.0)
    (found,), (wanted,) = (
        torch.autograd.grad(loss, logits) for loss in (own, reference(logits.flatten(0, 1), labels.flatten()))
    )
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_loss_is_its_formula(gamma):
    options = {"loss": "focal", "loss_kwargs": {"gamma": gamma}, "class_weights": WEIGHTS}
    logits, labels = numbers(6, 4), torch.tensor([0, 1, 3, 2, 1, 0])
    expected = []
    for row, label in enumerate(labels):
        p = logits[row].softmax(-1)[label]
        expected.append(-VALUES[label] * (1 - p) ** gamma * p.log())
    one = head(SequenceClassificationHead, problem_type=SINGLE, **options)
    torch.testing.assert_close(one.loss(logits, labels), torch.stack(expected))
    tags = head(TokenClassificationHead, **options)
    kept = torch.cat([labels, torch.tensor([-100])]).unsqueeze(0)
    summed = tags.loss(torch.cat([logits, logits[:1]]).unsqueeze(0), kept)
    torch.testing.assert_close(summed, torch.stack(expected).sum().unsqueeze(0))
    sets = torch.tensor([[1.0, 0, 1, 0], [0, 0, 0, 1]], dtype=torch.float64)
    terms = torch.zeros(2, 4, dtype=torch.float64)
    for row in range(2):
        for place in range(4):
            p = logits[row, place].sigmoid()
            p = p if sets[row, place] else 1 - p
            terms[row, place] = -(VALUES[place] if sets[row, place] else 1) * (1 - p) ** gamma * p.log()
    several = head(SequenceClassificationHead, problem_type=SETS, **options)
    torch.testing.assert_close(several.loss(logits[:2], sets), terms.mean(1))


def test_focal_loss_has_a_gradient_where_the_model_is_sure():
    options = {"loss": "focal", "loss_kwargs": {"gamma": 0.5}}
    logits = torch.tensor([[200.0, 0, 0, 0], [0, 200.0, 0, 0]], requires_grad=True)
    head(SequenceClassificationHead, problem_type=SINGLE, **options).loss(logits, torch.tensor([0, 0])).sum().backward()
    sets = torch.tensor([[1.0, 0, 0, 0], [1.0, 0, 0, 0]])
    head(SequenceClassificationHead, problem_type=SETS, **options).loss(logits, sets).sum().backward()
    assert logits.grad.isfinite().all()


def test_class_weights_of_label_sets_are_those_of_positives():
    one = head(SequenceClassificationHead, problem_type=SETS, class_weights=WEIGHTS)
    logits, labels = numbers(3, 4), torch.tensor([[1.0, 0, 1, 0], [0, 0, 0, 0], [1, 1, 0, 1]], dtype=torch.float64)
    reference = torch.nn.BCEWithLogitsLoss(pos_weight=VALUES)
    torch.testing.assert_close(mean(one, logits, labels), reference(logits, labels), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("options", "reference"),
    [
        ({}, F.mse_loss),
        ({"loss": "mse"}, F.mse_loss),
        ({"loss": "mae"}, F.l1_loss),
        ({"loss": "huber"}, F.huber_loss),
        ({"loss": "huber", "loss_kwargs": {"delta": 0.3}}, lambda *both: F.huber_loss(*both, delta=0.3)),
    ],
)
def test_numbers_have_the_loss_of_torch(options, reference):
    one = head(SequenceClassificationHead, problem_type="regression", **options)
    logits, labels = numbers(5, 4), numbers(10, 4)[5:]
    torch.testing.assert_close(mean(one, logits, labels), reference(logits, labels), rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", [SequenceClassificationHead, AudioClassificationHead])
def test_soft_labels_have_the_loss_of_torch_and_those_of_one_class_that_of_its_number(kind):
    task = {"soft_labels": True, "problem_type": SINGLE, "label_smoothing": 0.1}
    make = head if kind is SequenceClassificationHead else of_recordings
    logits, soft, labels = numbers(3, 4), numbers(9, 4)[6:].softmax(-1), torch.tensor([3, 0, 1])
    one, weighted, hard = (
        make(kind, **task),
        make(kind, **task, class_weights=WEIGHTS),
        make(kind, class_weights=WEIGHTS),
    )
    reference = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    torch.testing.assert_close(mean(one, logits, soft), reference(logits, soft), rtol=1e-12, atol=0)
    hard.loss_options = hard.loss_options.__class__(**{**vars(hard.loss_options), "smoothing": 0.1})
    certain = F.one_hot(labels, 4).double()
    torch.testing.assert_close(mean(weighted, logits, certain), mean(hard, logits, labels), rtol=1e-12, atol=0)
    assert weighted.references(soft).tolist() == soft.argmax(-1).tolist()


def of_recordings(kind, **task):
    from transformers import Wav2Vec2Config

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = Wav2Vec2Config(**sizes, conv_dim=[8], conv_kernel=[3], conv_stride=[2], num_conv_pos_embedding_groups=2)
    return kind({"name": "t", "type": "x", "label_names": NAMES, **task}, config, pooling="native")


def test_smoothing_of_choices_is_over_those_of_the_question():
    one = head(MultipleChoiceHead, label_smoothing=0.3)
    logits = numbers(3, 4)
    logits[1, 2:] = float("-inf")
    labels = torch.tensor([2, 1, 0])
    expected = [
        F.cross_entropy(row[: 2 if number == 1 else 4].unsqueeze(0), label.unsqueeze(0), label_smoothing=0.3)
        for number, (row, label) in enumerate(zip(logits, labels, strict=True))
    ]
    logits.requires_grad_()
    losses = one.loss(logits, labels)
    torch.testing.assert_close(losses, torch.stack(expected))
    losses.sum().backward()
    assert logits.grad.isfinite().all() and not logits.grad[1, 2:].any()


def test_weights_of_pairs_count_within_a_group():
    texts = F.normalize(numbers(1, 6, 5), dim=-1)
    scored = head(SentenceSimilarityHead, label_column="score")
    scores, weights = torch.tensor([[0.1, 0.9, 0.4]]), torch.tensor([[2.0, 0.0, 0.5]])
    cosines = (texts[0, 0::2] * texts[0, 1::2]).sum(-1)
    expected = (weights[0] * (cosines - scores[0].double()) ** 2).sum() / 2.5
    torch.testing.assert_close(mean(scored, texts, scores, weights), expected)
    groups = head(SentenceSimilarityHead)
    labels = torch.tensor([[[0, 1], [2, 3], [-100, -100]]])
    losses = -(20 * texts[0, 0:4:2] @ texts[0, 1:4:2].T).log_softmax(-1).diagonal()
    expected = (2 * losses[0] + 0.5 * losses[1]) / 2.5
    torch.testing.assert_close(mean(groups, texts, labels, torch.tensor([[2.0, 0.5, 0.0]])), expected)


def test_a_model_weighs_rows_and_divides_by_their_weights(backbone_path):
    torch.manual_seed(0)
    tasks = {"a": SequenceClassification(label_names=NAMES, class_weights=WEIGHTS), "b": SentenceSimilarity()}
    model = MultiTaskModel.from_backbone(backbone_path(), tasks=tasks, dropout=0.0).double().eval()
    ids, labels, weights = torch.randint(6, 99, (3, 7)), torch.tensor([0, 1, 3]), torch.tensor([0.5, 0.0, 2.0])
    given = {"task_rows": {"a": torch.arange(3)}, "labels": {"a": labels}, "row_weights": {"a": weights}}
    output = model(ids, torch.ones_like(ids), **given)
    rows = F.cross_entropy(output.logits["a"], labels, weight=VALUES, reduction="none")
    torch.testing.assert_close(output.loss, (rows * weights).sum() / (VALUES[labels] * weights).sum())
    nothing = model(ids, torch.ones_like(ids), **{**given, "row_weights": {"a": torch.zeros(3)}})
    assert nothing.loss == 0


def test_balanced_weights_that_are_not_known_are_an_error():
    one = head(SequenceClassificationHead, problem_type=SINGLE, class_weights="balanced")
    with pytest.raises(ValueError, match="Task 't': `class_weights = 'balanced'` are computed from training data"):
        one.loss(torch.zeros(1, 4), torch.tensor([0]))
