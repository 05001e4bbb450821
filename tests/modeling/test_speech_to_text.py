"""Transcripts that Whisper and SpeechT5 write: as their stock classes, from the spectrogram to the text."""

import ast
import re

import numpy as np
import pytest
import torch
from sounds import SPEAKERS, WIDE, recordings, save_speecht5, save_whisper, wav
from transformers import (
    AutoModelForAudioClassification,
    AutoModelForSpeechSeq2Seq,
    AutoProcessor,
    GenerationConfig,
    WhisperFeatureExtractor,
    WhisperProcessor,
    pipeline,
)

from hf_multitask import AudioClassification, AutomaticSpeechRecognition, MultiTaskModel, MultiTaskPipeline
from hf_multitask.data.encoding import encode_dataset
from hf_multitask.modeling.description import usage
from hf_multitask.modeling.kinds import reader_of
from hf_multitask.tasks import build_task

SAVED = {"whisper": save_whisper, "speecht5": save_speecht5}
TASKS = {"text": AutomaticSpeechRecognition(max_target_length=12)}


@pytest.fixture(params=SAVED)
def family(request):
    return request.param


@pytest.fixture
def built(family, tmp_path):
    folder = SAVED[family](tmp_path / "backbone")
    return MultiTaskModel.from_backbone(folder, tasks=TASKS).eval(), AutoProcessor.from_pretrained(folder)


def waves(rows):
    return [np.asarray(row["audio"]["array"], np.float32) for row in rows]


def batch_of(processor, rows):
    return dict(processor(audio=waves(rows), sampling_rate=WIDE, padding=processor.feature_extractor.feature_size == 1 or "max_length", return_tensors="pt"))  # fmt: skip


def labels_of(processor, rows):
    found = [processor.tokenizer(row["text"])["input_ids"] for row in rows]
    start = processor.tokenizer.convert_tokens_to_ids("<|startoftranscript|>")
    found = [torch.tensor(ids[1:] if ids[0] == start else ids) for ids in found]
    return torch.nn.utils.rnn.pad_sequence(found, batch_first=True, padding_value=-100)


def test_what_is_read_is_what_the_feature_extractor_makes(built):
    model, processor = built
    rows, task = recordings(5, rate=WIDE), model.config.task("text")
    reader = reader_of(task)
    encoder = reader.encoder(processor, model.config.backbone_config, task)
    read = [reader.read(task, {"audio": row["audio"]}, encoder).rows[0][1] for row in rows]
    ours, stock = reader.padded(processor, read), batch_of(processor, rows)
    name = reader.input_names[0]
    assert torch.equal(ours[name], stock[name])
    if name == "input_features":
        assert max(len(one[name]) for one in read) < stock[name].shape[2]
    else:
        assert torch.equal(ours["attention_mask"], stock["attention_mask"].long())


def test_loss_export_and_import_are_those_of_the_stock_class(built, tmp_path):
    model, processor = built
    rows = recordings(5, rate=WIDE, equal=6000)  # as SpeechT5 itself reads padding
    batch, labels = batch_of(processor, rows), labels_of(processor, rows)
    loss = model(**batch, labels={"text": labels}).loss
    model.export_task("text", tmp_path / "text", processor)
    stock = AutoModelForSpeechSeq2Seq.from_pretrained(tmp_path / "text").eval()
    torch.testing.assert_close(loss, stock(**batch, labels=labels).loss, rtol=0, atol=1e-6)
    again = MultiTaskModel.from_task_models({"text": str(tmp_path / "text")}, backbone="text")
    assert torch.equal(again(**batch, labels={"text": labels}).loss, loss)
    for key in ("type", "architecture"):
        assert again.config.task("text")[key] == model.config.task("text")[key]


def test_what_is_learnt_by_heart_is_written_as_the_stock_pipeline_writes_it(built, tmp_path, caplog):
    model, processor = built
    rows = recordings(4, rate=WIDE)
    batch, labels = batch_of(processor, rows), {"text": labels_of(processor, rows)}
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(150):
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    caplog.clear()
    pipe = MultiTaskPipeline(model=model, processor=processor)
    ours = [pipe(row["audio"])["text"]["text"] for row in rows]
    assert ours == list(rows["text"]) and "max_length" not in caplog.text
    assert [one["text"]["text"] for one in pipe([row["audio"] for row in rows], batch_size=4)] == ours
    model.export_task("text", tmp_path / "text", processor)
    stock = pipeline("automatic-speech-recognition", str(tmp_path / "text"))
    assert [" ".join(stock(wave)["text"].split()) for wave in waves(rows)] == ours


def test_saved_loaded_and_asked_without_options(built, family, tmp_path):
    model, processor = built
    model.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    row = recordings(1, rate=WIDE)[0]
    pipe = pipeline("multitask", str(tmp_path / "saved"))
    assert pipe(row["audio"]) == MultiTaskPipeline(model=model, processor=processor)(row["audio"])
    wanted = {"whisper": "seq2seq_whisper", "speecht5": "seq2seq"}[family]
    assert pipe.model.config.task("text")["architecture"] == wanted
    steps = []
    pipe.model.backbone.get_decoder().register_forward_hook(lambda *_: steps.append(1))
    pipe(row["audio"], generate_kwargs={"max_new_tokens": 3, "min_new_tokens": 3})
    assert len(steps) == 3


def test_the_card_shows_code_that_runs(built, tmp_path, monkeypatch, capsys):
    model, processor = built
    model.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recording.wav").write_bytes(wav(recordings(1, rate=WIDE)[0]["audio"]["array"], WIDE))
    codes = re.findall(r"```python\n(.*?)```", usage(model.config, "saved"), re.DOTALL)
    assert len(codes) == 2
    for code in codes:
        exec(code.replace(", trust_remote_code=True", ""), {})
    first, second = capsys.readouterr().out.splitlines()
    (written,) = ast.literal_eval(second)
    answer = ast.literal_eval(first)["text"]["text"]  # of fewer tokens
    assert answer and " ".join(written.split()).startswith(answer)


def test_what_does_not_fit_is_refused(built, family, tmp_path):
    model, processor = built
    with pytest.raises(ValueError, match=r"needs a tokenizer, and .*FeatureExtractor has none. Give the processor"):
        MultiTaskPipeline(model=model, feature_extractor=processor.feature_extractor)
    with pytest.raises(ValueError, match=r"^Task 'x': `architecture` is '.*' on the backbone .* `architecture = 'ctc'`. Leave it out.$"):  # fmt: skip
        model.add_task("x", AutomaticSpeechRecognition(architecture="ctc"))
    with pytest.raises(ValueError, match=r"`vocabulary` is for CTC, and the backbone writes tokens"):
        AutomaticSpeechRecognition(architecture="seq2seq", vocabulary=["a"])
    if family == "whisper":
        other = WhisperProcessor(WhisperFeatureExtractor(feature_size=16, sampling_rate=WIDE, chunk_length=2), processor.tokenizer)  # fmt: skip
        pipe = MultiTaskPipeline(model=model, processor=other)
        with pytest.raises(ValueError, match=r"^The feature extractor makes 16 bands and 200 frames of a recording, and the backbone whisper reads 16 and 100. Give"):  # fmt: skip
            pipe(recordings(1, rate=WIDE)[0]["audio"])


def test_a_recording_longer_than_the_encoder_is_cut_and_told(tmp_path, caplog):
    folder = save_whisper(tmp_path / "backbone")
    model = MultiTaskModel.from_backbone(folder, tasks=TASKS).eval()
    pipe = MultiTaskPipeline(model=model, processor=AutoProcessor.from_pretrained(folder))
    wave = np.sin(np.arange(WIDE * 2.5)).astype(np.float32)
    assert pipe(wave) == pipe(wave[:WIDE])
    assert "Task 'text': a recording is longer than 16000 samples and was cut" in caplog.text


def test_a_multilingual_whisper_is_prompted_with_the_language(tmp_path):
    folder = save_whisper(tmp_path / "backbone")
    tasks = {"text": AutomaticSpeechRecognition(language="en", max_target_length=12)}
    with pytest.raises(ValueError, match=r"^Task 'text': `language` should be a code that the generation_config of the Whisper model has, and it has none. Found `language = 'en'`."):  # fmt: skip
        MultiTaskModel.from_backbone(folder, tasks=tasks)
    processor = AutoProcessor.from_pretrained(folder)
    number = processor.tokenizer.convert_tokens_to_ids
    settings = GenerationConfig.from_pretrained(folder)
    settings.is_multilingual, settings.no_timestamps_token_id = True, number("<|notimestamps|>")
    settings.lang_to_id, settings.task_to_id = {"<|en|>": number("<|en|>")}, {"transcribe": number("<|transcribe|>")}
    settings._from_model_config = False  # as that of a real checkpoint
    settings.save_pretrained(folder)
    with pytest.raises(ValueError, match=r"and it knows en. Found `language = 'de'`"):
        MultiTaskModel.from_backbone(folder, tasks={"text": AutomaticSpeechRecognition(language="de")})
    model = MultiTaskModel.from_backbone(folder, tasks=tasks).eval()
    task = build_task("text", model.config.task("text"))
    encoded = encode_dataset("text", recordings(2, rate=WIDE), [task], tokenizer=processor, config=model.config.backbone_config, split="train", training=True)  # fmt: skip
    labels = encoded.rows[0]["labels:text"]
    assert labels[:3] == number(["<|en|>", "<|transcribe|>", "<|notimestamps|>"]) and labels[-1] == number("<|endoftext|>")  # fmt: skip
    assert processor.tokenizer("a")["input_ids"][1] == number("<|notimestamps|>")  # as it was before
    read = []
    model.backbone.get_decoder().register_forward_pre_hook(lambda _, __, given: read.append(given["input_ids"]), with_kwargs=True)  # fmt: skip
    MultiTaskPipeline(model=model, processor=processor)(recordings(1, rate=WIDE)[0]["audio"])
    assert read[0][0].tolist() == [number("<|startoftranscript|>"), *labels[:3]]


def test_one_whisper_classifies_and_transcribes(tmp_path):
    folder = save_whisper(tmp_path / "backbone")
    speaker = AudioClassification(label_names=list(SPEAKERS))
    alone = MultiTaskModel.from_backbone(folder, tasks={"speaker": speaker})
    assert not any(one.requires_grad for one in alone.backbone.get_decoder().parameters())
    model = MultiTaskModel.from_backbone(folder, tasks={"speaker": speaker, **TASKS}).eval()
    processor, rows = AutoProcessor.from_pretrained(folder), recordings(4, rate=WIDE)
    batch, passes = batch_of(processor, rows), []
    model.backbone.get_encoder().register_forward_hook(lambda *_: passes.append(1))
    labels = {"speaker": torch.tensor([0, 1, 0, 1]), "text": labels_of(processor, rows)}
    both = model(**batch, labels=labels)
    assert len(passes) == 1 and set(both.losses) == {"speaker", "text"}
    model.export_task("speaker", tmp_path / "speaker", processor)
    stock = AutoModelForAudioClassification.from_pretrained(tmp_path / "speaker").eval()
    assert torch.equal(stock(**batch).logits, both.logits["speaker"])
    model.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    pipe = pipeline("multitask", str(tmp_path / "saved"))
    answers = pipe(list(rows["audio"]))
    assert all(list(answer) == ["speaker", "text"] for answer in answers)
    theirs = pipeline("audio-classification", str(tmp_path / "speaker"))
    for answer, wave in zip(answers, waves(rows), strict=True):
        best = max(theirs(wave), key=lambda one: one["score"])
        assert answer["speaker"]["label"] == best["label"]
        assert answer["speaker"]["score"] == pytest.approx(best["score"], abs=1e-5)
    again = MultiTaskModel.from_task_models({"speaker": str(tmp_path / "speaker")}, backbone="speaker").eval()
    assert torch.equal(again(**batch).logits["speaker"], both.logits["speaker"])


@pytest.mark.parametrize("task", [AudioClassification(label_names=list(SPEAKERS))])
def test_a_family_without_the_stock_class_is_refused(task, tmp_path):
    folder = save_speecht5(tmp_path / "backbone")
    with pytest.raises(ValueError, match="speecht5"):
        MultiTaskModel.from_backbone(folder, tasks={"speaker": task})
