"""A tokenizer written in Python does not know where a token stands in the text: enough for sequences, not for tags."""

import pytest
from datasets import Dataset
from tiny import make_tokenizer
from transformers import AutoTokenizer, BertJapaneseTokenizer, pipeline

from hf_multitask import MultiTaskTrainer
from hf_multitask.modeling.inputs import cut_rows, encode

LONG = "good food " * 200


@pytest.fixture
def slow_tokenizer(tmp_path):
    words = make_tokenizer("bert").get_vocab()
    (tmp_path / "vocab.txt").write_text("\n".join(sorted(words, key=words.get)), encoding="utf-8")
    tokenizer = BertJapaneseTokenizer(
        str(tmp_path / "vocab.txt"), word_tokenizer_type="basic", do_lower_case=True, model_max_length=78
    )
    assert not tokenizer.is_fast
    return tokenizer


def test_sequence_tasks_train_save_and_load_with_a_slow_tokenizer(
    slow_tokenizer, build_model, tasks, data, arguments, tmp_path, caplog
):
    rows = [*data(7)["sentiment"], {"text": LONG, "label": "positive"}]
    rows[-1]["label"] = rows[0]["label"]
    trainer = MultiTaskTrainer(
        build_model(tasks={"sentiment": tasks["sentiment"]}),
        arguments(),
        train_dataset={"sentiment": Dataset.from_list(rows)},
        eval_dataset={"sentiment": data(8, split="validation")["sentiment"]},
        processing_class=slow_tokenizer,
    )
    assert "1 of 8 rows of 'sentiment' (train) are longer than 78 tokens and were cut" in caplog.text
    trainer.train()
    assert 0 <= trainer.evaluate()["eval_sentiment_accuracy"] <= 1
    trainer.save_model(str(tmp_path / "saved"))
    assert isinstance(AutoTokenizer.from_pretrained(tmp_path / "saved"), BertJapaneseTokenizer)
    texts = ["Good food.", LONG, ""]
    loaded = pipeline("multitask", model=str(tmp_path / "saved"))
    kept = pipeline("multitask", model=trainer.model.eval(), tokenizer=slow_tokenizer)
    for one, other in zip(loaded(texts, batch_size=2), kept(texts), strict=True):
        assert one["sentiment"]["score"] == pytest.approx(other["sentiment"]["score"], abs=1e-5)


def test_tagging_with_a_slow_tokenizer_fails_when_built(slow_tokenizer, build_model, data, arguments):
    with pytest.raises(ValueError, match=r"^Task 'ner': the tokenizer BertJapaneseTokenizer is slow .* Use a fast"):
        MultiTaskTrainer(build_model(), arguments(), train_dataset=data(), processing_class=slow_tokenizer)


def test_the_pipeline_tags_with_a_fast_tokenizer_only(slow_tokenizer, build_model):
    pipe = pipeline("multitask", model=build_model(), tokenizer=slow_tokenizer)
    with pytest.raises(ValueError, match=r"^Task 'ner' needs a fast tokenizer.* Give one, or name other tasks."):
        pipe("Good food.")
    assert list(pipe("Good food.", tasks=["sentiment"])) == ["sentiment"]


@pytest.mark.parametrize("pairs", [None, ["Good.", "Good.", LONG]])
def test_cut_rows_are_found_without_the_tokenizers_word(pairs, slow_tokenizer):
    texts = ["Good food.", LONG, "Good."]
    encoding = encode(slow_tokenizer, texts, pairs, 20)
    cut = cut_rows(slow_tokenizer, encoding, texts, pairs, 20)
    assert cut == [False, True, pairs is not None]
    whole = len(slow_tokenizer(LONG, verbose=False)["input_ids"])
    exact = encode(slow_tokenizer, [LONG], None, whole)
    assert cut_rows(slow_tokenizer, exact, [LONG], None, whole) == [False]
