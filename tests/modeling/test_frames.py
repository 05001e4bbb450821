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
    other = MultiTaskPipeline(
        model=model, feature_extractor=SeamlessM4TFeatureExtractor(feature_size=20, num_mel_bins=20)
    )
    with pytest.raises(ValueError, match=r"makes frames of 40 numbers, and the backbone wav2vec2-bert reads 32. Give"):
        other(np.sin(np.arange(9000.0)))


def test_masks_of_training_do_not_depend_on_padding(built):
    model, extractor = built
    config = model.backbone.config
    config.apply_spec_augment, config.mask_time_prob, config.mask_time_length = True, 0.4, 2
    config.mask_time_min_masks, config.mask_feature_prob = 1, 0.0
    model.backbone.masked_spec_embed = torch.nn.Parameter(torch.full((config.hidden_size,), 3.0))
    draw, seeds, read = np.random.default_rng(0), torch.tensor([3, 4, 5, 6]), []
    sounds = [draw.standard_normal(length).astype(np.float32) for length in (3000, 8000, 5000, 9000)]
    model.backbone.encoder.register_forward_pre_hook(lambda _, given: read.append(given[0]))
    batch = extractor(sounds, sampling_rate=WIDE, return_tensors="pt")
    model.train()(**batch, mask_seeds=seeds)
    for number, sound in enumerate(sounds):
        alone = extractor([sound], sampling_rate=WIDE, return_tensors="pt")
        model(**alone, mask_seeds=seeds[number : number + 1])
    whole, *each = [(hidden == 3.0).all(-1) for hidden in read]
    for number, one in enumerate(each):
        frames = int(batch["attention_mask"][number].sum())
        assert torch.equal(whole[number, :frames], one[0, :frames]) and 0 < one[0, :frames].sum() < frames
        assert not whole[number, frames:].any()
