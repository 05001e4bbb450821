"""Recordings in an encoder-decoder of texts: the convolutions that make embeddings of them, and what surrounds them."""

import numpy as np
import pytest
import torch
from peft import LoraConfig
from processes import BLOCK, run
from sounds import SPEAKERS, WIDE, recordings
from tiny import make_tokenizer, save_backbone

from hf_multitask import (
    AudioClassification,
    AutomaticSpeechRecognition,
    MultiTaskModel,
    MultiTaskPipeline,
    SequenceClassification,
    Translation,
)
from hf_multitask.modeling.description import usage
from hf_multitask.modeling.kinds import reader_of
from hf_multitask.modeling.subsampler import DEFAULTS, Features, subsampler_settings

TASKS = {"translate": Translation(max_target_length=8), "word": AutomaticSpeechRecognition(max_target_length=8)}
WAVES = {"input": "waveform", "strides": [8, 8, 5], "kernel_sizes": [9, 9, 5], "channels": [16, 16, 32]}


@pytest.fixture
def build(tmp_path):
    def make(family="bart", tasks=TASKS, **kwargs):
        save_backbone(family, tmp_path / family)
        torch.manual_seed(1)
        return MultiTaskModel.from_backbone(str(tmp_path / family), tasks=tasks, **kwargs).eval()

    return make


def batch_of(model, rows, family="bart"):
    task = model.config.task("word")
    reader, tokenizer = reader_of(task), make_tokenizer(family)
    encoder = reader.encoder(tokenizer, model.config.backbone_config, task)
    read = [reader.read(task, {"audio": row["audio"]}, encoder).rows[0][1] for row in rows]
    ids = [torch.tensor(tokenizer(row["text"])["input_ids"]) for row in rows]
    return reader.padded(tokenizer, read), torch.nn.utils.rnn.pad_sequence(ids, True, -100)


@pytest.mark.parametrize("family", ["bart", "mbart", "t5", "marian"])
@pytest.mark.parametrize("settings", [None, WAVES], ids=["log_mel", "waveform"])
def test_padding_changes_no_loss(family, settings, build):
    model, rows = build(family, subsampler=settings).double(), recordings(5, rate=WIDE)
    batch, labels = batch_of(model, rows, family)
    assert not bool(batch["attention_mask"].all())
    whole = model(**batch, labels={"word": labels}, num_items_in_batch={"word": torch.tensor(1)}).loss
    each = []
    for number, row in enumerate(rows):
        alone, _ = batch_of(model, [row], family)
        own = labels[number : number + 1]
        each.append(model(**alone, labels={"word": own[own >= 0][None]}, num_items_in_batch={"word": 1}).loss)
    torch.testing.assert_close(whole, torch.stack(each).sum(), rtol=0, atol=1e-9)
    first, _ = batch_of(model, rows[:1] if isinstance(rows, list) else [rows[0]], family)
    name = model.subsampler.input_name
    made, mask = model.subsampler(first[name].double(), None)
    steps = 4 if settings is None else 320
    assert made.shape[1] == mask.sum() == -(-first[name].shape[1] // steps)


@pytest.mark.parametrize("input", ["log_mel", "waveform"])
def test_features_are_normalized_by_recording(input):
    features = Features(subsampler_settings({"input": input, "num_mel_bins": 20, "sampling_rate": 8000}))
    sound = np.asarray(recordings(1)[0]["audio"]["array"], np.float32)
    made = features(sound)
    assert made.shape == ((1 + len(sound) // 80, 20) if input == "log_mel" else sound.shape)
    np.testing.assert_allclose(made.mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(made.std(0), 1, atol=2e-2)
    np.testing.assert_allclose(features(3 * sound), made, atol=1e-3)  # whatever the volume


def test_embeddings_begin_with_the_scale_of_those_of_texts(build):
    for family, scale in (("bart", 0.02), ("t5", 1.0)):
        model = build(family)
        batch, _ = batch_of(model, recordings(3, rate=WIDE), family)
        made, _ = model.subsampler(batch["input_features"], batch["attention_mask"])
        assert made.std().item() == pytest.approx(scale, rel=0.2)


@pytest.mark.parametrize("settings", [None, {"num_mel_bins": 16, "channels": [8, 24]}, WAVES])
def test_saved_and_loaded(settings, build, tmp_path):
    model = build(subsampler=settings)
    model.save_pretrained(tmp_path / "saved")
    make_tokenizer("bart").save_pretrained(tmp_path / "saved")
    loaded = MultiTaskModel.from_pretrained(tmp_path / "saved").eval()
    assert loaded.config.subsampler == {**DEFAULTS, **(settings or {})} == loaded.config.task("word")["subsampler"]
    for name, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name
    rows = recordings(3, rate=WIDE)
    asked = [{"audio": row["audio"]} for row in rows] + ["Ada Lovelace loved it."]
    ours, theirs = (MultiTaskPipeline(model=one, tokenizer=make_tokenizer("bart")) for one in (model, loaded))
    answers = ours(asked)
    assert answers == theirs(asked) == [ours(one) for one in asked]
    assert [list(answer) for answer in answers] == [["word"]] * 3 + [["translate"]]


def test_tasks_come_and_go(build):
    model = build(tasks={"translate": Translation()})
    assert model.subsampler is None and model.config.subsampler is None
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.add_task("word", AutomaticSpeechRecognition())
    assert model.config.subsampler == DEFAULTS
    batch, labels = batch_of(model, recordings(2, rate=WIDE))
    model.train()(**batch, labels={"word": labels}).loss.backward()
    assert all(one.grad is not None and one.grad.abs().sum() > 0 for one in model.subsampler.parameters())
    assert {*model.unread_parameters(["translate"])} == {*model.subsampler.parameters()}
    model.rename_task("word", "heard")
    model.remove_task("heard")
    assert model.subsampler is None and model.config.subsampler is None
    assert before.keys() == model.state_dict().keys()


def test_the_card_asks_with_a_text_and_a_recording(build):
    text = usage(build().config, "saved")
    assert 'print(multitask("Ada Lovelace loved this place."))\nprint(multitask({"audio": "recording.wav"}))' in text
    assert 'task="translate"' in text
    alone = usage(build(tasks={"word": AutomaticSpeechRecognition()}).config, "saved")
    assert 'print(multitask({"audio": "recording.wav"}))' in alone and alone.count("multitask(") == 1
    assert "tokenizer" not in alone  # which makes no inputs of a recording
    mood = SequenceClassification(label_names=["bad", "good"])
    text = usage(build(tasks={"word": AutomaticSpeechRecognition(), "mood": mood}).config, "saved")
    assert text.count("multitask(") == 2 and 'tasks=["mood"]' in text


def test_adapters_are_saved_with_the_subsampler(build, tmp_path):
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
    model = build(task_lora={"word": lora}, dtype="auto")
    assert all(one.requires_grad for one in model.subsampler.parameters())
    model.save_pretrained(tmp_path / "saved", adapters_only=True)
    loaded = MultiTaskModel.from_pretrained(tmp_path / "saved").eval()
    batch, labels = batch_of(model, recordings(2, rate=WIDE))
    assert torch.equal(model(**batch, labels={"word": labels}).loss, loaded(**batch, labels={"word": labels}).loss)
    half = build(lora=lora, dtype=torch.bfloat16)
    assert half.subsampler.norm.weight.dtype == torch.bfloat16
    assert torch.isfinite(half(**batch, labels={"word": labels}).loss)


def test_half_precision_has_a_subsampler_of_its_own(build, tmp_path):
    save_backbone("bart", tmp_path / "half")
    model = build(dtype=torch.bfloat16)
    batch, labels = batch_of(model, recordings(2, rate=WIDE))
    assert model(**batch, labels={"word": labels}).loss.isfinite()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"bins": 80}, r"^`subsampler` has the unknown key 'bins'; it takes input, num_mel_bins"),
        ({"input": "mel"}, r"^`subsampler.input` should be log_mel or waveform. Found `subsampler.input = 'mel'`.$"),
        ({"num_mel_bins": 0}, r"^`subsampler.num_mel_bins` should be a whole number from 1. Found 0.$"),
        ({"sampling_rate": "16k"}, r"^`subsampler.sampling_rate` should be a whole number from 1. Found '16k'.$"),
        ({"strides": 2}, r"^`subsampler.strides` should be a list of one whole number from 1 per layer. Found 2.$"),
        ({"strides": [2]}, r"Found 1 strides, 2 kernel_sizes, 2 channels.$"),
        ({"kernel_sizes": [3, 4]}, r"^`subsampler.kernel_sizes` should be odd. Found \[3, 4\].$"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(settings, said, build):
    with pytest.raises(ValueError, match=said):
        build(subsampler=settings)


def test_what_does_not_fit_is_refused(build, build_model, tmp_path):
    with pytest.raises(TypeError, match="`subsampler` should be a mapping"):
        build(subsampler="log_mel")
    with pytest.raises(ValueError, match=r"^`subsampler` is for tasks of type automatic-speech-recognition on an enc"):
        build(tasks={"translate": Translation()}, subsampler={})
    with pytest.raises(
        ValueError, match=r"^Task 'x': audio-classification reads audio \(input_values\), and the backb"
    ):
        build(tasks={"x": AudioClassification(label_names=list(SPEAKERS))})
    model = build()
    with pytest.raises(ValueError, match=r"^Task 'word' reads recordings through the subsampler, which no stock class"):
        model.export_task("word", tmp_path / "word")
    model.export_task("translate", tmp_path / "translate", make_tokenizer("bart"))
    with pytest.raises(ValueError, match=r"there is no file 'gone.wav'"):
        MultiTaskPipeline(model=model, tokenizer=make_tokenizer("bart"))({"audio": "gone.wav"})
    with pytest.raises(ValueError, match="the recording has 9 samples at 16000 per second, and a frame needs 400"):
        MultiTaskPipeline(model=model, tokenizer=make_tokenizer("bart"))({"audio": np.sin(np.arange(9.0))})
    for family in ("bert", "gpt2"):
        save_backbone(family, tmp_path / family)
        with pytest.raises(ValueError, match=r"^Task 'x': .* reads audio"):
            MultiTaskModel.from_backbone(str(tmp_path / family), tasks={"x": AutomaticSpeechRecognition()})
    model.add_task("mood", SequenceClassification(label_names=["bad", "good"]))
    assert set(MultiTaskPipeline(model=model, tokenizer=make_tokenizer("bart"))("fine")) == {"translate", "mood"}


def test_a_recording_longer_than_the_positions_is_cut_and_told(build, caplog):
    model = build()
    pipe = MultiTaskPipeline(model=model, tokenizer=make_tokenizer("bart"))
    positions = model.config.backbone_config.max_position_embeddings
    most = positions * 4 * 160 - 1
    wave = np.sin(np.arange(most + 5000) ** 1.1).astype(np.float32)
    assert pipe({"audio": wave}) == pipe({"audio": wave[:most]})
    assert f"Task 'word': a recording is longer than {most} samples and was cut" in caplog.text


ALONE = (
    BLOCK
    + """
import numpy as np
from transformers import pipeline
pipe = pipeline("multitask", sys.argv[1], trust_remote_code=True)
print(json.dumps(pipe([{"audio": np.sin(np.arange(9000.0) ** 1.1)}, "Ada Lovelace loved it."])))
"""
)


@pytest.mark.process
def test_the_model_answers_without_the_package(build, tmp_path):
    model = build()
    model.save_pretrained(tmp_path / "saved")
    make_tokenizer("bart").save_pretrained(tmp_path / "saved")
    pipe = MultiTaskPipeline(model=model, tokenizer=make_tokenizer("bart"))
    asked = [{"audio": np.sin(np.arange(9000.0) ** 1.1)}, "Ada Lovelace loved it."]
    assert run(ALONE, str(tmp_path / "saved")) == pipe(asked)
