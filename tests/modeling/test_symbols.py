"""Stock checkpoints for CTC bring in their head and the symbols of their tokenizer, special ones included."""

import json

import numpy as np
import pytest
import torch
from sounds import COMMON, RATE, extractor, recordings
from transformers import (
    AutoProcessor,
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2ForCTC,
    Wav2Vec2Processor,
    pipeline,
)

from hf_multitask import AutomaticSpeechRecognition, MultiTaskModel, MultiTaskPipeline
from hf_multitask.modeling.speech import written

# In the order of a checkpoint of Wav2Vec2 for English, which has few letters here.
TOKENS = ["<pad>", "<s>", "</s>", "<unk>", "|", "E", "T", "A", "'"]
OTHER = ["|", "e", "t", "[UNK]", "[PAD]"]  # as of a fine-tuned one, whose blank is the last
NAMES = {"pad_token": "[PAD]", "unk_token": "[UNK]", "bos_token": None, "eos_token": None}


@pytest.fixture
def save(tmp_path):
    """A random stock model with its processor, which writes all of its symbols."""

    def make(tokens, name="stock", **special):
        folder = tmp_path / name
        folder.mkdir()
        (tmp_path / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
        tokenizer = Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json"), **special)
        torch.manual_seed(0)
        config = Wav2Vec2Config(**{**COMMON, "vocab_size": len(tokens), "pad_token_id": tokenizer.pad_token_id})
        model = Wav2Vec2ForCTC(config)
        with torch.no_grad():
            model.lm_head.weight *= 60
        model.save_pretrained(folder)
        Wav2Vec2Processor(feature_extractor=extractor(), tokenizer=tokenizer).save_pretrained(folder)
        return str(folder)

    return make


@pytest.mark.parametrize(
    ("tokens", "special", "vocabulary"),
    [
        (TOKENS, {}, ["<pad>", "<s>", "</s>", "<unk>", " ", "E", "T", "A", "'"]),
        (TOKENS, {"do_lower_case": True}, ["<pad>", "<s>", "</s>", "<unk>", " ", "e", "t", "a", "'"]),
        (OTHER, NAMES, [" ", "e", "t", "[UNK]", "<pad>"]),
    ],
    ids=["pretrained", "lower", "fine-tuned"],
)
def test_a_stock_checkpoint_brings_in_its_head_and_writes_the_same(tokens, special, vocabulary, save, tmp_path):
    folder = save(tokens, **special)
    for given in (folder, Wav2Vec2ForCTC.from_pretrained(folder)):
        model = MultiTaskModel.from_task_models({"text": given}, backbone="text").eval()
        assert model.config.task("text")["vocabulary"] == vocabulary
    pipe = MultiTaskPipeline(model=model, feature_extractor=extractor())
    stock, theirs = Wav2Vec2ForCTC.from_pretrained(folder).eval(), pipeline("automatic-speech-recognition", folder)
    model.export_task("text", tmp_path / "exported", extractor())
    exported, seen = pipeline("automatic-speech-recognition", str(tmp_path / "exported")), set()
    for row in recordings(12):
        wave = np.asarray(row["audio"]["array"], np.float32)
        batch = extractor()(wave, sampling_rate=RATE, return_tensors="pt")
        with torch.no_grad():
            logits = stock(**batch).logits
            assert torch.equal(model(**batch).logits["text"], logits)
        seen.update(logits.argmax(-1).flatten().tolist())
        text = pipe(row["audio"])["text"]["text"]
        assert text == " ".join(theirs(wave)["text"].split()) == " ".join(exported(wave)["text"].split())
    assert len(seen) > 2


def test_the_symbols_are_written_as_the_stock_tokenizer_writes_them(save):
    folder = save(TOKENS)
    tokenizer = AutoProcessor.from_pretrained(folder).tokenizer
    vocabulary = MultiTaskModel.from_task_models({"text": folder}, backbone="text").config.task("text")["vocabulary"]
    draw = np.random.default_rng(0)
    for _ in range(50):
        symbols = draw.integers(0, len(TOKENS), 12).tolist()
        assert written(symbols, vocabulary) == " ".join(tokenizer.decode(symbols).split())


def test_symbols_of_several_characters_are_special_tokens_only():
    task = AutomaticSpeechRecognition(vocabulary=["<s>", "[UNK]", "a", "<pad>"])
    assert task.vocabulary == ["<s>", "[UNK]", "a", "<pad>"]
    for wrong in ("ch", "<a b>", "<>", "", 3):
        with pytest.raises(ValueError, match=rf"`vocabulary` should be a list of single characters, '<pad>' and other special tokens, such as '<unk>'. Found {wrong!r}"):  # fmt: skip
            AutomaticSpeechRecognition(vocabulary=["a", wrong])


def test_a_tokenizer_of_other_symbols_is_not_guessed(save):
    folder = save(["<pad>", "<s>", "</s>", "<unk>", "|", "ch", "e"])
    with pytest.raises(ValueError, match=r"has 7 outputs, and `vocabulary` has 0 symbols\. Give .* '<pad>' for the blank, and a space for"):  # fmt: skip
        MultiTaskModel.from_task_models({"text": folder}, backbone="text")
