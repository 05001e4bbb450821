"""The head of dependencies: its loss word by word, its answers, and what holds it."""

import pytest
import torch
from datasets import Dataset
from reading import rows_of
from transformers import BertConfig
from transformers.modeling_outputs import BaseModelOutput

from hf_multitask import DependencyParsing, MultiTaskPipeline, SequenceClassification
from hf_multitask.modeling.parsing import ARCS, RELATIONS, DependencyParsingHead
from hf_multitask.training.preparation.setup import begin_model
from hf_multitask.training.runtime import PlainRuntime

NAMES = ["root", "left", "right"]
# Of two texts: places of the first tokens, heads and relations; the last word of the second has no token.
LABELS = torch.tensor(
    [
        [[1, 2, 1], [2, 0, 0], [4, 2, 2], [5, 3, 3]],
        [[1, 0, 0], [3, 1, 2], [-1, 1, 2], [6, 3, 1]],
    ]
)


@pytest.fixture
def head():
    torch.manual_seed(0)
    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    made = DependencyParsingHead({"name": "t", "label_names": NAMES}, config, pooling="native").eval()
    torch.nn.init.normal_(made.root)
    return made.double()


def logits_of(head, *shape):
    states = torch.randn(*shape, 8, dtype=torch.float64)
    return head(BaseModelOutput(last_hidden_state=states), None, None)


def scores_of(head, tokens, places):
    """Scores of arcs and of relations by loops, for the words that have a token."""
    words = [place for place in places if place >= 0]
    root = torch.cat([head.root.new_zeros(ARCS), head.root[:ARCS], head.root.new_zeros(RELATIONS), head.root[ARCS:]])
    nodes = [root, *(tokens[place] for place in words)]
    one = tokens.new_ones(1)
    sides = head.relations.weight.view(len(NAMES), RELATIONS + 1, RELATIONS + 1)
    arcs = torch.full((len(words), len(nodes)), -torch.inf, dtype=tokens.dtype)
    relations = torch.zeros(len(words), len(nodes), len(NAMES), dtype=tokens.dtype)
    for word, place in enumerate(words):
        for number, node in enumerate(nodes):
            if number != word + 1:
                arcs[word, number] = tokens[place, :ARCS] @ node[ARCS : 2 * ARCS]
                own = torch.cat([tokens[place, 2 * ARCS : 2 * ARCS + RELATIONS], one])
                other = torch.cat([node[-RELATIONS:], one])
                relations[word, number] = torch.stack([other @ (side @ own) for side in sides])
    return arcs, relations


def test_the_loss_is_that_of_every_word(head):
    logits = logits_of(head, 2, 7)
    assert head.items(LABELS).tolist() == [4, 2]  # the head of the last word has no token
    arcs, relations = scores_of(head, logits[0], LABELS[0, :, 0].tolist())
    expected = -sum(arcs[word].log_softmax(0)[parent] for word, parent in enumerate([2, 0, 2, 3]))
    expected = expected - sum(  # the last relation is one that the model does not have
        relations[word, parent].log_softmax(0)[relation]
        for word, (parent, relation) in enumerate([(2, 1), (0, 0), (2, 2)])
    )
    arcs, relations = scores_of(head, logits[1], LABELS[1, :, 0].tolist())
    second = -sum(
        arcs[word].log_softmax(0)[parent] + relations[word, parent].log_softmax(0)[relation]
        for word, (parent, relation) in enumerate([(0, 0), (1, 2)])
    )
    torch.testing.assert_close(head.loss(logits, LABELS), torch.stack([expected, second]), rtol=1e-9, atol=1e-9)


def test_windows_are_one_text(head):
    logits = logits_of(head, 1, 2, 5)
    labels = torch.tensor([[[1, 0, 0], [6, 1, 2], [8, 2, 1]]])
    assert torch.equal(head.loss(logits, labels), head.loss(logits.flatten(1, 2), labels))
    assert torch.equal(head.parsed(logits, labels[..., 0]), head.parsed(logits.flatten(1, 2), labels[..., 0]))


def test_padding_changes_nothing(head):
    logits, padding = logits_of(head, 1, 7), torch.full((1, 3, 3), -100)
    padded = torch.cat([LABELS[:1], padding], 1)
    torch.testing.assert_close(head.loss(logits, padded), head.loss(logits, LABELS[:1]))
    found, whole = head.predictions(logits, padded), head.predictions(logits, LABELS[:1])
    torch.testing.assert_close(found[:, :4], whole)
    assert (found[:, 4:] == -100).all()


def test_answers_are_the_best_tree_and_its_relations(head):
    logits = logits_of(head, 2, 7)
    found = head.parsed(logits, LABELS[..., 0])
    arcs, relations = scores_of(head.requires_grad_(False), logits[1].detach(), LABELS[1, :, 0].tolist())
    words, node = [0, 1, 3], {0: 0, 1: 1, 2: 2, 4: 3}
    assert [int(one[0]) for one in found[1]].count(0) == 1 and found[1, 2].tolist() == [-100] * 3
    for place, word in enumerate(words):
        parent, relation, score = found[1, word].tolist()
        of_relations = relations[place, node[int(parent)]].softmax(0)
        assert relation == int(of_relations.argmax())
        assert score == pytest.approx(float(arcs[place].softmax(0)[node[int(parent)]] * of_relations.max()), rel=1e-6)
    assert head.parsed(logits, torch.zeros(2, 0, dtype=torch.long)).shape == (2, 0, 3)


@pytest.fixture
def model(build_model):
    tasks = {"parse": DependencyParsing(label_names=NAMES), "tone": SequenceClassification(label_names=["a", "b"])}
    return build_model(tasks=tasks)


def test_the_pipeline_answers_words_by_number(model, tokenizer):
    pipe = MultiTaskPipeline(model=model, tokenizer=tokenizer)
    (words,) = pipe([["Ada", "", "Lovelace", "met", "him."]], tasks=["parse"])
    assert [(one["id"], one["word"]) for one in words["parse"]] == [
        (1, "Ada"),
        (3, "Lovelace"),
        (4, "met"),
        (5, "him."),
    ]
    assert [one["head"] for one in words["parse"]].count(0) == 1
    assert {one["head"] for one in words["parse"]} <= {0, 1, 3, 4, 5}
    assert all(set(one) == {"id", "word", "head", "deprel", "score", "start", "end"} for one in words["parse"])
    assert all(one["deprel"] in NAMES and 0 < one["score"] < 1 for one in words["parse"])
    assert [one["word"] for one in pipe("Ada met him.")["parse"]] == ["Ada", "met", "him", "."]
    assert pipe("")["parse"] == []


def test_what_cannot_hold_it_says_so(model, tokenizer, tmp_path, caplog, monkeypatch):
    with pytest.raises(
        ValueError, match="Task 'parse' of type dependency-parsing has a head for which Transformers has no class"
    ):
        model.export_task("parse", tmp_path / "parse", tokenizer)
    pytest.importorskip("onnx", reason="the extra 'onnx' is not installed")
    with pytest.raises(ValueError, match=r"Task 'parse' compares words by weights of its head.*Name other tasks"):
        model.export_onnx(tmp_path / "graph", tokenizer, ["parse"])
    model.config.format_version = 1
    with pytest.raises(ValueError, match="Task 'parse': words have heads in models of format 2"):
        MultiTaskPipeline(model=model, tokenizer=tokenizer)("Ada met him.", tasks=["parse"])


def test_sharded_weights_are_refused(model, arguments):
    class Sharded(PlainRuntime):
        engine = "DeepSpeed"

    runtime = Sharded(arguments(), model, torch.optim.SGD(model.parameters()))
    with pytest.raises(ValueError, match=r"Task 'parse': its loss reads weights .* DeepSpeed shards .* parallelism\.$"):
        begin_model(model, runtime)


def test_every_parameter_has_a_gradient_where_processes_wait_for_it(model, tokenizer):
    tokens, rows = tokenizer(["Good."], return_tensors="pt"), {"tone": torch.tensor([0])}
    output = model(**tokens, task_rows=rows, labels={"tone": torch.tensor([0])}, all_heads=True)
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in model.heads["parse"].parameters())
    model.zero_grad()
    labels = {"parse": torch.tensor([[[1, 0, 0], [2, 1, 1]]])}
    model(**tokens, tasks=["parse"], labels=labels).loss.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.heads["parse"].parameters())


def test_rows_of_the_examples_are_trees():
    rows = rows_of("dependency-parsing")
    assert isinstance(rows, Dataset) and rows[-1]["head"] is None
