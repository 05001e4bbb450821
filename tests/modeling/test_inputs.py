"""Texts to inputs: what a backbone takes, and what is left of long and of empty texts."""

import pytest
import torch
from tiny import CAUSAL, CONFIGS, make_tokenizer, read_rows
from transformers import pipeline

from hf_multitask import SequenceClassification
from hf_multitask.modeling.inputs import cut_rows, encode, input_names, longest_input
from hf_multitask.modeling.spans import windows

LONG = " ".join(row["text"] for row in read_rows("sentiment", "train", 100))
SHORT = "A fine place."


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("bert", ["input_ids", "attention_mask", "token_type_ids"]),
        ("distilbert", ["input_ids", "attention_mask"]),
        ("mpnet", ["input_ids", "attention_mask"]),
        ("llama", ["input_ids", "attention_mask"]),
    ],
)
def test_inputs_that_the_backbone_does_not_take_are_left_out(family, names):
    assert input_names(make_tokenizer("bert"), CONFIGS[family]()) == names


@pytest.mark.parametrize(
    ("family", "change", "limit"),
    [
        ("bert", {}, 80),
        ("xlm", {}, 80),
        ("gpt2", {}, 80),
        ("roberta", {}, 78),
        ("roberta", {"pad_token_id": 0}, 79),
        ("mpnet", {"pad_token_id": 0}, 78),
        ("longformer", {}, 78),
    ],
)
def test_positions_set_the_limit(family, change, limit):
    config = CONFIGS[family]()
    for name, value in change.items():
        setattr(config, name, value)
    tokenizer = make_tokenizer("bert")
    tokenizer.model_max_length = 10**30
    assert longest_input(tokenizer, config) == limit
    assert longest_input(tokenizer, config, 16) == 16
    tokenizer.model_max_length = 20
    assert longest_input(tokenizer, config) == 20


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2"])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("pairs", [None, [SHORT, LONG[:2000], LONG[::-1][:3000]]])
def test_long_texts_are_cut_as_the_tokenizer_cuts_them(family, side, pairs):
    texts = [LONG[:6000], SHORT, LONG[:1000]]
    tokenizer = make_tokenizer(family)
    tokenizer.truncation_side = side
    limit = 70 + tokenizer.num_special_tokens_to_add(pairs is not None) % 2  # an even room, halved between long texts
    expected = tokenizer(texts, pairs, truncation=True, max_length=limit)
    encoding = encode(tokenizer, texts, pairs, limit)
    assert encoding["input_ids"] == expected["input_ids"]
    assert encoding["attention_mask"] == expected["attention_mask"]
    lengths = [len(ids) for ids in tokenizer(texts, pairs, verbose=False)["input_ids"]]
    assert cut_rows(tokenizer, encoding, texts, pairs, limit) == [length > limit for length in lengths]


def test_a_pair_of_very_long_texts_costs_no_more_than_both():
    tokenizer = make_tokenizer("bert")
    encoding = encode(tokenizer, ["good " * 20_000], ["bad " * 20_000], 78)
    # The tokenizer combines all pieces of one with all of the other: a minute and 20 GB.
    assert len(encoding.encodings[0].overflowing) < 100
    assert encoding["input_ids"][0].count(3) == 2


def test_no_limit_cuts_nothing():
    tokenizer = make_tokenizer("bert")
    assert len(encode(tokenizer, [LONG], None, None, verbose=False)["input_ids"][0]) > 1000


@pytest.mark.parametrize("family", [*CAUSAL, "bert"])
def test_an_empty_text_has_a_token(family):
    tokenizer = make_tokenizer(family)
    ids = encode(tokenizer, ["", SHORT], None, 16)["input_ids"]
    assert ids[0] == ([2, 3] if family == "bert" else tokenizer(tokenizer.eos_token)["input_ids"])
    assert ids[0]
    assert ids[1] == tokenizer(SHORT)["input_ids"]


@pytest.mark.parametrize("limit", [None, 16])
def test_an_empty_question_to_an_empty_context_has_a_token(limit):
    tokenizer = make_tokenizer("gpt2")
    encoding, cut = windows(tokenizer, "", "", limit, 4)
    assert encoding["input_ids"] == [tokenizer(tokenizer.eos_token)["input_ids"]] and not cut
    assert windows(tokenizer, "", SHORT, limit, 4)[0]["input_ids"] == [tokenizer(SHORT)["input_ids"]]


def test_pipeline_answers_empty_and_long_texts_of_a_decoder(build_model, caplog):
    tokenizer = make_tokenizer("gpt2")
    tokenizer.pad_token = tokenizer.eos_token
    model = build_model("gpt2")
    model.set_pad_token_id(tokenizer.pad_token_id)
    pipe = pipeline("multitask", model=model, tokenizer=tokenizer)
    assert pipe("")["ner"] == []
    assert "was cut" not in caplog.text
    single, many = pipe(LONG), pipe(["", LONG], batch_size=2)[1]
    assert caplog.text.count("an input is longer than 80 tokens and was cut") == 1
    assert single["sentiment"]["score"] == pytest.approx(many["sentiment"]["score"], abs=1e-5)


def test_max_length_of_a_task_cuts_the_pipelines_text(build_model):
    short = {"sentiment": SequenceClassification(label_names=["n", "p"], max_length=8)}
    model = build_model("bert", tasks=short)
    tokenizer = make_tokenizer("bert")
    answer = pipeline("multitask", model=model, tokenizer=tokenizer)(LONG)["sentiment"]
    with torch.no_grad():
        tokens = tokenizer(LONG, truncation=True, max_length=8, return_tensors="pt")
        expected = model(**tokens).logits["sentiment"].softmax(-1).max().item()
    assert answer["score"] == pytest.approx(expected, abs=1e-6)
