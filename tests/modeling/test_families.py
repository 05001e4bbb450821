"""Every supported backbone family through train, evaluate, save, load and the pipeline, with its native heads."""

import pytest
import torch
from tiny import CONFIGS
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    pipeline,
)

from hf_multitask import MultiTaskTrainer


@pytest.mark.parametrize("family", CONFIGS)
def test_family_trains_evaluates_saves_and_loads(family, backbone_path, build_model, data, arguments, tmp_path):
    model = build_model(family)
    before = {name: value.clone() for name, value in model.named_parameters()}
    trainer = MultiTaskTrainer(
        model,
        arguments(),
        train_dataset=data(),
        eval_dataset=data(12, 8, "validation"),
        processing_class=AutoTokenizer.from_pretrained(backbone_path(family)),
    )
    trainer.train()
    moved = [name for name, value in model.named_parameters() if not torch.equal(value, before[name])]
    assert any(name.startswith("backbone") for name in moved)
    assert {name.split(".")[1] for name in moved if name.startswith("heads")} == {"sentiment", "ner"}
    metrics = trainer.evaluate()
    assert metrics["eval_average"] == pytest.approx((metrics["eval_sentiment_accuracy"] + metrics["eval_ner_f1"]) / 2)

    trainer.save_model(str(tmp_path / "saved"))
    loaded = AutoModel.from_pretrained(tmp_path / "saved")
    for name, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name
    answer = pipeline("multitask", model=str(tmp_path / "saved"))("Ada Lovelace loved this place.")
    assert answer["sentiment"]["label"] in ("negative", "positive")
    assert all(span["word"] for span in answer["ner"])


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize(
    ("task", "auto_class"),
    [("sentiment", AutoModelForSequenceClassification), ("ner", AutoModelForTokenClassification)],
)
def test_native_head_gives_the_logits_of_the_stock_class(family, task, auto_class, backbone_path, build_model):
    model = build_model(family)
    tokenizer = AutoTokenizer.from_pretrained(backbone_path(family))
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.set_pad_token_id(tokenizer.pad_token_id)
    head = model.heads[task].native
    stock = auto_class.from_config(head.config).eval()
    weights = {f"{stock.base_model_prefix}.{name}": value for name, value in model.backbone.state_dict().items()}
    weights |= head.state_dict()
    result = stock.load_state_dict(weights, strict=False)
    assert not result.missing_keys
    assert all("pooler" in name for name in result.unexpected_keys)  # a token classifier has none
    tokens = tokenizer(["A fine place.", "I will never go back there again!"], padding=True, return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(model(**tokens).logits[task], stock(**tokens).logits)
