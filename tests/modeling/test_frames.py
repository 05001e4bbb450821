"""Encoders that read frames of a feature extractor in place of samples: Wav2Vec2-BERT."""

import numpy as np
import pytest
import torch
from sounds import LETTERS, SPEAKERS, WIDE, recordings, save_frame_encoder
from transformers import (
    AutoFeatureExtractor,
    AutoModelForAudioClassification,
    AutoModelForCTC,
    SeamlessM4TFeatureExtractor,
    pipeline,
)

from hf_multitask import (
    AudioClassification,
    AutomaticSpeechRecognition,
    MultiTaskModel,
    MultiTaskPipeline,
    MultiTaskTrainer,
)
from hf_multitask.modeling.speech import PAD

VOCABULARY = [PAD, *LETTERS]


@pytest.fixture
def built(tmp_path):
    folder = save_frame_encoder(tmp_path / "encoder")
    tasks = {
        "speaker": AudioClassification(dataset="tones", label_column="speaker", label_names=list(SPEAKERS)),
        "text": AutomaticSpeechRecognition(dataset="tones", vocabulary=VOCABULARY),
    }
    torch.manual_seed(1)
    return MultiTaskModel.from_backbone(folder, tasks=tasks).eval(), AutoFeatureExtractor.from_pretrained(folder)


def waves(rows):
    return [np.asarray(row["audio"]["array"], np.float32) for row in rows]


def test_padding_changes_nothing_and_exports_are_the_stock_classes(built, tmp_path):
    model, extractor = built
    rows = recordings(5, rate=WIDE)
    batch = extractor(waves(rows), sampling_rate=WIDE, return_tensors="pt")
    assert not bool(batch["attention_mask"].all())
    ids = [torch.tensor([VOCABULARY.index(letter) for letter in row["text"]]) for row in rows]
    labels = torch.nn.utils.rnn.pad_sequence(ids, True, -100)
    whole = model(**batch, labels={"text": labels})
    for number, row in enumerate(rows):
        alone = extractor(waves([row]), sampling_rate=WIDE, return_tensors="pt")
        kept = alone["attention_mask"][0] > 0
        given = {"input_features": alone["input_features"][:, kept], "attention_mask": alone["attention_mask"][:, kept]}
        one = model(**given)
        torch.testing.assert_close(one.logits["speaker"][0], whole.logits["speaker"][number], rtol=0, atol=1e-5)
        torch.testing.assert_close(
            one.logits["text"][0], whole.logits["text"][number, : int(kept.sum())], rtol=0, atol=1e-5
        )
    for name, auto_class in (("speaker", AutoModelForAudioClassification), ("text", AutoModelForCTC)):
        model.export_task(name, tmp_path / name, extractor)
        stock = auto_class.from_pretrained(tmp_path / name).eval()
        there = batch["attention_mask"].bool() if name == "text" else slice(None)
        assert torch.equal(stock(**batch).logits[there], whole.logits[name][there])
    torch.testing.assert_close(stock(**batch, labels=labels).loss, whole.loss, rtol=0, atol=1e-6)


def test_it_trains_and_answers_as_it_is_measured(built, arguments, tmp_path):
    model, extractor = built
    rows = recordings(16, rate=WIDE)
    one = MultiTaskTrainer(
        model,
        arguments(max_steps=12, learning_rate=3e-3),
        train_dataset={"tones": rows},
        eval_dataset={"tones": rows},
        processing_class=extractor,
    )
    before = one.evaluate()
    one.train()
    metrics = one.evaluate()
    assert all(metrics[f"eval_{name}_loss"] < before[f"eval_{name}_loss"] for name in ("speaker", "text"))
    one.save_model(str(tmp_path / "saved"))
    pipe = pipeline("multitask", str(tmp_path / "saved"))
    answers = pipe(list(rows["audio"]))
    hits = [
        answer["speaker"]["label"] == row["speaker"]
        for answer, row in zip(answers, rows, strict=True)
        if row["speaker"]
    ]
    assert metrics["eval_speaker_accuracy"] == pytest.approx(np.mean(hits))


def test_what_does_not_fit_is_refused(built):
    model, extractor = built
    pipe = MultiTaskPipeline(model=model, feature_extractor=extractor)
    with pytest.raises(
        ValueError, match=r"the recording has 300 samples at 16000 per second, and the backbone needs 800"
    ):
        pipe(np.sin(np.arange(300.0)))
    with pytest.raises(
        ValueError, match=r"`chunk_length_s` is for backbones that read samples, and wav2vec2-bert reads frames"
    ):
        pipe(np.sin(np.arange(9000.0)), chunk_length_s=0.1)
    other = MultiTaskPipeline(
        model=model, feature_extractor=SeamlessM4TFeatureExtractor(feature_size=20, num_mel_bins=20)
    )
    with pytest.raises(ValueError, match=r"makes frames of 40 numbers, and the backbone wav2vec2-bert reads 32. Give"):
        other(np.sin(np.arange(9000.0)))
