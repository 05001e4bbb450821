"""Answers do not depend on the rows beside them, whichever side the tokenizer pads on."""

import pytest
from datasets import Dataset
from tiny import make_tokenizer
from transformers import pipeline

from hf_multitask import MultiTaskTrainer, SentenceSimilarity, SequenceClassification, TokenClassification

TEXTS = ["No.", "A fine place in London, and I liked it.", "Ada met Bob in Oslo, in the old harbour, by the river."]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2", "xlm-roberta", "deberta-v2", "t5", "llama", "gemma"])
def test_an_answer_is_the_same_alone_and_beside_longer_texts(family, side, build_model):
    tokenizer = make_tokenizer(family)
    tokenizer.padding_side = side
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    widths = [len(tokenizer(text)["input_ids"]) for text in TEXTS]
    labels = [f"c{number}" for number in range(max(widths))]  # as many as the longest text has tokens
    tasks = {
        "topic": SequenceClassification(label_names=labels),
        "pos": TokenClassification(label_names=["A", "B", "C"]),
        "near": SentenceSimilarity(text_column="text"),
    }
    model = build_model(family, tasks=tasks)
    model.set_pad_token_id(tokenizer.pad_token_id)
    ask = pipeline("multitask", model=model, tokenizer=tokenizer)
    for text, beside in zip(TEXTS, ask(TEXTS, batch_size=3), strict=True):
        alone = ask(text)
        assert beside["topic"]["label"] == alone["topic"]["label"]
        assert beside["topic"]["score"] == pytest.approx(alone["topic"]["score"], abs=1e-5)
        assert [tag["entity"] for tag in beside["pos"]] == [tag["entity"] for tag in alone["pos"]]
        assert beside["near"]["embedding"] == pytest.approx(alone["near"]["embedding"], abs=1e-4)


def test_a_batch_is_padded_behind_for_a_tokenizer_that_pads_in_front(build_model, arguments):
    tokenizer = make_tokenizer("bert")
    tokenizer.padding_side = "left"
    rows = Dataset.from_list([{"text": text, "label": "ab"[number % 2]} for number, text in enumerate(TEXTS)])
    trainer = MultiTaskTrainer(
        build_model(tasks={"topic": SequenceClassification()}),
        arguments(),
        train_dataset={"topic": rows},
        processing_class=tokenizer,
    )
    mask = trainer.data_collator(trainer.train_dataset.__getitems__([0, 1, 2]))["attention_mask"]
    assert mask[:, 0].all() and not mask[0, -1]
    assert tokenizer.padding_side == "left"
