"""Every supported backbone family through train, evaluate, save, load and the pipeline, with its native heads."""

import pytest
import torch
from datasets import Dataset
from parameters import few
from tiny import CAUSAL, CONFIGS, SEQUENCE_ONLY
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    pipeline,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from hf_multitask import MultiTaskTrainer, SequenceClassification

STOCK = {"sentiment": AutoModelForSequenceClassification, "ner": AutoModelForTokenClassification}
TEXTS = ["A fine place.", "I will never go back there again!"]
# Of every kind of architecture and of tokenizer.
QUICK = [
    "bert",
    "roberta",
    "xlm",
    "albert",
    "deberta-v2",
    "modernbert",
    "longformer",
    "gpt2",
    "llama",
    "gemma2",
    "gemma3",
]
NO_CHECKPOINTING = ("xlm", "albert", "mpnet")


def some(left_out):
    """All families but some, of which a few run always."""
    return few(*([name for name in names if name not in left_out] for names in (CONFIGS, QUICK)))


@pytest.fixture
def tasks_of(tasks):
    def make(family: str) -> dict:
        return {name: task for name, task in tasks.items() if name == "sentiment" or family not in SEQUENCE_ONLY}

    return make


@pytest.fixture
def build(build_model, backbone_path, tasks_of):
    """A family's model, and a batch of two texts of unequal length with labels for all its tasks."""

    def make(family: str, **kwargs):
        model = build_model(family, **{"tasks": tasks_of(family), **kwargs})
        tokenizer = AutoTokenizer.from_pretrained(backbone_path(family))
        pad(model, tokenizer, tokenizer.pad_token or tokenizer.eos_token)
        # In float64, Gemma 2 makes NaN of a row with more padding than its window of eight tokens.
        cut = {"padding": True, "padding_side": "right", "truncation": True, "max_length": 10}
        tokens = dict(tokenizer(TEXTS, **cut, return_tensors="pt"))
        tokens = {name: tokens[name] for name in ("input_ids", "attention_mask")}
        labels = {"sentiment": torch.tensor([0, 1]), "ner": tokens["input_ids"] % 9}
        return model, {**tokens, "labels": {name: labels[name] for name in model.config.task_names}}

    return make


def pad(model, tokenizer, token):
    tokenizer.pad_token = token
    model.set_pad_token_id(tokenizer.pad_token_id)


def stock_model(model, task):
    """The stock class with the weights of the shared model and of one head."""
    head = model.heads[task].native
    stock = STOCK[task].from_config(head.config).eval()
    weights = {f"{stock.base_model_prefix}.{name}": value for name, value in model.backbone.state_dict().items()}
    result = stock.load_state_dict(weights | head.state_dict(), strict=False)
    assert not result.missing_keys
    assert all("pooler" in name for name in result.unexpected_keys)  # a token classifier has none
    return stock


@pytest.mark.parametrize("family", few(CONFIGS, QUICK))
def test_family_trains_evaluates_saves_and_loads(
    family, backbone_path, build_model, tasks_of, data, arguments, tmp_path
):
    tasks = tasks_of(family)
    model = build_model(family, tasks=tasks)
    before = {name: value.clone() for name, value in model.named_parameters()}
    trainer = MultiTaskTrainer(
        model,
        arguments(),
        train_dataset={name: rows for name, rows in data().items() if name in tasks},
        eval_dataset={name: rows for name, rows in data(12, 8, "validation").items() if name in tasks},
        processing_class=AutoTokenizer.from_pretrained(backbone_path(family)),
    )
    trainer.train()
    moved = [name for name, value in model.named_parameters() if not torch.equal(value, before[name])]
    assert any(name.startswith("backbone") for name in moved)
    assert {name.split(".")[1] for name in moved if name.startswith("heads")} == set(tasks)
    metrics = trainer.evaluate()
    primary = [metrics[key] for key in ("eval_sentiment_accuracy", "eval_ner_f1") if key in metrics]
    assert len(primary) == len(tasks)
    assert metrics["eval_average"] == pytest.approx(sum(primary) / len(primary))

    trainer.save_model(str(tmp_path / "saved"))
    loaded = AutoModel.from_pretrained(tmp_path / "saved")
    assert loaded.config.backbone_config.to_dict() == model.config.backbone_config.to_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name
    answers = pipeline("multitask", model=str(tmp_path / "saved"))(
        ["Ada Lovelace loved this place.", "No."], batch_size=2
    )
    for answer in answers:
        assert list(answer) == list(tasks)
        assert answer["sentiment"]["label"] in ("negative", "positive")
        assert all(span["word"] for span in answer.get("ner", []))


@pytest.mark.parametrize(
    ("family", "task"), [(family, task) for family in CONFIGS for task in STOCK if (family, task) != ("gemma3", "ner")]
)
def test_native_head_gives_the_logits_of_the_stock_class(family, task, backbone_path, build_model, tasks_of):
    model = build_model(family, tasks=tasks_of(family))
    tokenizer = AutoTokenizer.from_pretrained(backbone_path(family))
    for padding in {tokenizer.pad_token or tokenizer.eos_token, *([tokenizer.eos_token] if family in CAUSAL else [])}:
        pad(model, tokenizer, padding)
        stock = stock_model(model, task)
        for side in ("right", "left") if family in CAUSAL else ("right",):
            tokens = tokenizer(TEXTS, padding=True, padding_side=side, return_tensors="pt")
            given = dict(tokens)
            if (family, task) == ("longformer", "ner"):
                given["global_attention_mask"] = first_token(tokens["input_ids"])
            with torch.no_grad():
                assert torch.equal(model(**tokens).logits[task], stock(**given).logits), (padding, side)


def first_token(input_ids):
    mask = torch.zeros_like(input_ids)
    mask[:, 0] = 1
    return mask


def test_longformer_has_global_attention_if_and_only_if_a_sequence_head_is_there(build, tasks):
    model, batch = build("longformer")
    tokens = {name: batch[name] for name in ("input_ids", "attention_mask")}
    assert tokens["input_ids"].shape[1] % 8  # padded inside, to the attention window
    alone, _ = build("longformer", tasks={"ner": tasks["ner"]})
    pooled, _ = build("longformer", pooling="cls")
    stock = stock_model(alone, "ner")
    with torch.no_grad():
        local = alone(**tokens).logits["ner"]
        assert local.shape == (*tokens["input_ids"].shape, 9)
        assert torch.equal(local, stock(**tokens).logits)
        shared = model(**tokens, tasks=["ner"]).logits["ner"]
        assert torch.equal(shared, model(**tokens).logits["ner"])
        asked = first_token(tokens["input_ids"])
        assert not torch.equal(model(**tokens, global_attention_mask=0 * asked).logits["ner"], shared)
        with pytest.raises(ValueError, match="Task 'ner' reads a backbone that another task gives the input 'global"):
            model.task_model("ner")
        exported = model.task_model("sentiment")
        assert torch.equal(exported(**tokens).logits, model(**tokens).logits["sentiment"])
        assert torch.equal(alone.task_model("ner")(**tokens).logits, local)
        assert torch.equal(
            pooled(**tokens).logits["ner"], pooled(**tokens, global_attention_mask=0 * asked).logits["ner"]
        )


def test_token_classifier_that_the_family_lacks_is_named(build_model):
    with pytest.raises(
        ValueError, match=r"'gemma3_text' has no class .*TokenClassification. Choose another backbone.$"
    ):
        build_model("gemma3")


@pytest.mark.parametrize(
    ("family", "words"),
    [*((family, 1_000) for family in CONFIGS), pytest.param("bert", 100_000, marks=pytest.mark.slow)],
)
def test_texts_longer_than_the_positions_are_cut_or_read_in_windows(
    family, words, backbone_path, build_model, data, arguments, tasks_of, caplog
):
    tasks = tasks_of(family) | {
        "sentiment": SequenceClassification(label_names=["negative", "positive"], max_length=16)
    }
    tokenizer = AutoTokenizer.from_pretrained(backbone_path(family), model_max_length=10**30)
    rows = {name: list(split) for name, split in data(4, 4).items() if name in tasks}
    rows["sentiment"][1]["text"] = "good " * words
    if "ner" in tasks:
        rows["ner"][2] |= {"tokens": ["good"] * words, "ner_tags": ["O"] * words}
    trainer = MultiTaskTrainer(
        build_model(family, tasks=tasks),
        arguments(max_steps=1),
        train_dataset={name: Dataset.from_list(split) for name, split in rows.items()},
        processing_class=tokenizer,
    )
    lengths = trainer.train_dataset.lengths()
    assert max(lengths["sentiment"]) == 16
    assert "rows of 'sentiment' (train) are longer than 16 tokens and were cut" in caplog.text
    if "ner" in tasks:
        windows = trainer.train_dataset.datasets[list(lengths).index("ner")].rows["windows"][2]
        assert max(windows) == (78 if tokenizer.pad_token_id == 1 else 80)
        assert sum(windows) == max(lengths["ner"]) > words
        assert "rows of 'ner'" not in caplog.text
    trainer.train()
    assert torch.isfinite(torch.tensor(trainer.state.log_history[0]["loss"]))


@pytest.mark.parametrize("family", few(CONFIGS, QUICK))
def test_dropout_reaches_every_layer(family, build):
    for probability in (0.0, 0.3):
        model, batch = build(family, dropout=probability)
        model.train()
        assert {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)} <= {probability}
        once, again = model(**batch).logits, model(**batch).logits
        for name in once:
            assert torch.equal(once[name], again[name]) is (probability == 0), name


def without_gradient(model, batch):
    model(**batch).loss.backward()
    return [name for name, value in model.named_parameters() if value.grad is None]


@pytest.mark.parametrize("family", few(CONFIGS, QUICK))
def test_every_weight_has_a_gradient(family, build):
    model, batch = build(family)
    assert without_gradient(model, batch) == []


@pytest.mark.parametrize("family", some(SEQUENCE_ONLY))
def test_every_weight_of_a_tagger_has_a_gradient(family, build, tasks):
    """A pooler that no head reads is left out; a Longformer without global attention leaves its projections idle."""
    model, batch = build(family, tasks={"ner": tasks["ner"]})
    idle = without_gradient(model, {**batch, "labels": {"ner": batch["input_ids"] % 9}})
    assert all(name.split(".")[-2].endswith("_global") for name in idle)
    assert len(idle) == (12 if family == "longformer" else 0)


def enable_checkpointing(model):
    """Under its new name, or under the one it has in the oldest supported Transformers."""
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()


@pytest.mark.parametrize("family", some(NO_CHECKPOINTING))
def test_activation_checkpointing_leaves_gradients_as_they_are(family, build):
    gradients, passes = [], []
    for checkpointing in (False, True):
        model, batch = build(family, dropout=0.0)
        model.double().train()
        if checkpointing:
            enable_checkpointing(model)
        layer = next(module for module in model.modules() if isinstance(module, GradientCheckpointingLayer))
        leaf = next(module for module in layer.modules() if not list(module.children()))
        leaf.register_forward_pre_hook(lambda *_, kind=checkpointing: passes.append(kind))
        model(**batch).loss.backward()
        gradients.append({name: value.grad for name, value in model.named_parameters()})
    assert passes == [False, True, True]
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=0, atol=1e-9, msg=name)


@pytest.mark.parametrize("family", NO_CHECKPOINTING)
def test_activation_checkpointing_that_the_family_lacks_is_named(family, build):
    model, _ = build(family)
    with pytest.raises(ValueError, match=f"family '{family}' does not support activation checkpointing. Leave it off"):
        enable_checkpointing(model)
