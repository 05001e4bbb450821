"""One task as a stock model: the same weights, the same logits, no trace of the package."""

import json
from copy import deepcopy

import pytest
import torch
from reading import TASKS, TEXT
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from hf_multitask import MultiTaskModel

AUTO = {
    "sequence-classification": AutoModelForSequenceClassification,
    "token-classification": AutoModelForTokenClassification,
    "question-answering": AutoModelForQuestionAnswering,
    "multiple-choice": AutoModelForMultipleChoice,
    "fill-mask": AutoModelForMaskedLM,
    "text-generation": AutoModelForCausalLM,
    "translation": AutoModelForSeq2SeqLM,
}
PAIRS = {
    "bert": ["sequence-classification", "token-classification", "question-answering", "multiple-choice", "fill-mask"],
    "xlm-roberta": ["sequence-classification", "multiple-choice"],
    "gpt2": ["sequence-classification", "token-classification", "question-answering", "text-generation"],
    "bart": ["sequence-classification", "translation"],
    "t5": ["sequence-classification", "token-classification", "translation"],
}


@pytest.fixture
def build(backbone_path):
    def make(family, kinds, **kwargs):
        path = backbone_path(family)
        tasks = {kind: TASKS[kind]() for kind in kinds}
        tokenizer = AutoTokenizer.from_pretrained(path)
        model = MultiTaskModel.from_backbone(path, tasks=tasks, **kwargs)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
            model.set_pad_token_id(tokenizer.pad_token_id)
        return model, tokenizer

    return make


@pytest.mark.parametrize(("family", "kind"), [(family, kind) for family, kinds in PAIRS.items() for kind in kinds])
def test_exported_tasks_give_the_logits_of_the_shared_model_to_the_bit(family, kind, build, tmp_path):
    model, tokenizer = build(family, PAIRS[family])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.export_task(kind, tmp_path, tokenizer)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not list(tmp_path.glob("*.py"))
    assert "hf_multitask" not in (tmp_path / "config.json").read_text()
    # Weights of a file lie differently in memory than others, and kernels round accordingly: copies lie alike.
    model, stock = deepcopy(model), deepcopy(AUTO[kind].from_pretrained(tmp_path))
    tokens = dict(tokenizer([TEXT, "Short one."], padding=True, return_tensors="pt"))
    tokens = {name: tokens[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        if kind == "translation":
            labels = tokens["input_ids"][:, :5].contiguous()
            ours = model(**tokens, tasks=[kind], labels={kind: labels}).losses[kind]
            theirs = stock(**tokens, labels=labels).loss
            assert ours.item() == pytest.approx(theirs.item(), abs=1e-6)
            given = {"max_new_tokens": 5, "pad_token_id": tokenizer.pad_token_id}
            assert torch.equal(model.generate(**tokens, task=kind, **given), stock.generate(**tokens, **given))
        elif kind == "multiple-choice":
            ours = model(**tokens, task_rows={kind: torch.tensor([[0, 1]])}).logits[kind]
            assert torch.equal(ours, stock(**{name: value.unsqueeze(0) for name, value in tokens.items()}).logits)
        else:
            ours, theirs = model(**tokens, tasks=[kind]).logits[kind], stock(**tokens)
            if kind == "question-answering":
                ours = ours[:, 0]  # one window each
                theirs.logits = torch.stack([theirs.start_logits, theirs.end_logits], -1)
            assert torch.equal(ours, theirs.logits)
    names = model.config.task(kind).get("label_names")
    if names:
        assert [stock.config.id2label[number] for number in range(len(names))] == names


@pytest.mark.parametrize(
    ("family", "kind", "pooling"), [("bert", "sequence-classification", "mean"), ("t5", "question-answering", "native")]
)
def test_heads_that_are_not_the_familys_own_are_refused(family, kind, pooling, build, tmp_path):
    model, _ = build(family, [kind], pooling=pooling)
    with pytest.raises(ValueError, match=f"Task '{kind}' has a head that is not the family's own"):
        model.export_task(kind, tmp_path)


@pytest.fixture
def exported(build, tmp_path):
    model, tokenizer = build("bert", ["sentence-similarity", "sequence-classification"])
    model.export_task("sentence-similarity", tmp_path, tokenizer)
    tokens = tokenizer([TEXT, "Short one."], padding=True, return_tensors="pt")
    with torch.no_grad():
        return tmp_path, tokens, model(**tokens, tasks=["sentence-similarity"]).logits["sentence-similarity"][:, 0]


def test_embeddings_leave_as_a_backbone_with_pooling_beside_it(exported):
    folder, tokens, expected = exported
    assert [module["path"] for module in json.loads((folder / "modules.json").read_text())] == [
        "",
        "1_Pooling",
        "2_Normalize",
    ]
    with torch.no_grad():
        states = AutoModel.from_pretrained(folder)(**tokens).last_hidden_state
    mask = tokens["attention_mask"].unsqueeze(-1)
    mean = (states * mask).sum(1) / mask.sum(1)
    torch.testing.assert_close(torch.nn.functional.normalize(mean), expected, rtol=0, atol=1e-6)


def test_sentence_transformers_loads_embeddings(exported):
    library = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    folder, _, expected = exported
    embeddings = library.SentenceTransformer(str(folder), device="cpu").encode([TEXT, "Short one."])
    torch.testing.assert_close(torch.tensor(embeddings), expected, rtol=0, atol=1e-5)
