"""Long recordings in chunks, against the pipeline of Transformers."""

import numpy as np
import pytest
import torch
from sounds import (
    LETTERS,
    RATE,
    SPEAKERS,
    WIDE,
    extractor,
    recordings,
    save_encoder,
    save_frame_encoder,
    save_speecht5,
    save_whisper,
)
from transformers import AutoFeatureExtractor, AutoProcessor, pipeline

from hf_multitask import AudioClassification, AutomaticSpeechRecognition, MultiTaskModel, MultiTaskPipeline
from hf_multitask.modeling.chunks import Chunking
from hf_multitask.modeling.speech import PAD

SPEECH = {
    "text": AutomaticSpeechRecognition(vocabulary=[PAD, *LETTERS, " "]),
    "again": AutomaticSpeechRecognition(vocabulary=[PAD, *LETTERS], max_length=900),
}
SPEAKER = {"speaker": AudioClassification(label_names=list(SPEAKERS))}
WIDE_LONG = np.concatenate([np.asarray(row["audio"]["array"], np.float32) for row in recordings(24, rate=WIDE)])
LONG = np.concatenate([np.asarray(row["audio"]["array"], np.float32) for row in recordings(16)])


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return save_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture
def build(encoder):
    def make(tasks):
        torch.manual_seed(1)
        return MultiTaskModel.from_backbone(encoder, tasks=tasks).eval()

    return make


@pytest.mark.parametrize(("length", "stride"), [(0.15, None), (0.4, 0.05), (0.2, (0.1, 0.02)), (0.3, 0), (100, 2)])
def test_the_text_is_that_of_the_stock_pipeline(length, stride, build, tmp_path):
    model = build(SPEECH | SPEAKER)
    model.export_task("text", tmp_path / "text", extractor())
    stock = pipeline("automatic-speech-recognition", str(tmp_path / "text"))
    pipe = MultiTaskPipeline(model=model, feature_extractor=extractor())
    given = {"chunk_length_s": length} | ({} if stride is None else {"stride_length_s": stride})
    texts = set()
    for samples in (LONG, LONG[: 3 * 1200 + 7], LONG[:1200], LONG[500:1800]):
        wanted = {"text": " ".join(stock(samples.copy(), **given)["text"].split())}
        texts.add(wanted["text"])
        answers = pipe([samples, samples[:1000], samples], batch_size=3, **given)
        assert answers[0]["text"] == answers[2]["text"] == wanted
        answer = pipe(samples, **given)
        assert answer["text"] == wanted
        assert answer["speaker"] == pipe(samples, tasks=["speaker"])["speaker"]
    assert len(texts) > 1


@pytest.mark.parametrize(("length", "stride"), [(0.5, None), (0.4, (0.08, 0.12)), (0.3, 0.02), (100, 2)])
def test_frames_of_chunks_are_joined_as_the_stock_pipeline_joins_them(length, stride, tmp_path):
    folder = save_frame_encoder(tmp_path / "encoder", bands=80)  # by which the stock class counts samples in a frame
    torch.manual_seed(1)
    model = MultiTaskModel.from_backbone(folder, tasks=SPEECH | SPEAKER).eval()
    own = AutoFeatureExtractor.from_pretrained(folder)
    model.export_task("text", tmp_path / "text", own)
    stock = pipeline("automatic-speech-recognition", str(tmp_path / "text"))
    pipe = MultiTaskPipeline(model=model, feature_extractor=own)
    given = {"chunk_length_s": length} | ({} if stride is None else {"stride_length_s": stride})
    texts = set()
    for samples in (WIDE_LONG[: WIDE + 250], WIDE_LONG[: 2 * WIDE + 20]):  # without a frame of padding at their end
        wanted = {"text": " ".join(stock(samples.copy(), **given)["text"].split())}
        texts.add(wanted["text"])
        answers = pipe([samples, samples[:5000], samples], batch_size=3, **given)
        assert answers[0]["text"] == answers[2]["text"] == wanted
        assert pipe(samples, **given)["speaker"] == pipe(samples, tasks=["speaker"])["speaker"]
    assert len(texts) > 1


@pytest.fixture(scope="module")
def whisper(tmp_path_factory):
    folder = save_whisper(tmp_path_factory.mktemp("whisper"), scale=8.0)
    model = MultiTaskModel.from_backbone(folder, tasks={"text": AutomaticSpeechRecognition()} | SPEAKER).eval()
    processor = AutoProcessor.from_pretrained(folder)
    model.export_task("text", folder + "/text", processor)
    stock = pipeline("automatic-speech-recognition", folder + "/text")
    return MultiTaskPipeline(model=model, processor=processor), stock


@pytest.mark.parametrize(("length", "stride"), [(0.9, None), (0.9, 0.3), (1, (0.1, 0.5)), (0.5, 0)])
def test_tokens_of_chunks_are_joined_as_the_stock_pipeline_joins_them(length, stride, whisper):
    pipe, stock = whisper
    given = {"chunk_length_s": length, "generate_kwargs": {"max_new_tokens": 12, "num_beams": 1}}
    given |= {} if stride is None else {"stride_length_s": stride}
    for samples in (WIDE_LONG, WIDE_LONG[: WIDE + 7], WIDE_LONG[:5000]):
        wanted = {"text": " ".join(stock(samples.copy(), **given)["text"].split())}
        answers = pipe([samples, samples[:1000], samples], batch_size=3, **given)
        assert answers[0]["text"] == answers[2]["text"] == wanted
        answer = pipe(samples, **given)
        assert answer["text"] == wanted
        assert answer["speaker"] == pipe(samples, tasks=["speaker"])["speaker"]


def test_what_an_overlap_repeats_is_written_once(whisper):
    pipe, _ = whisper
    asked = {"tasks": ["text"], "generate_kwargs": {"max_new_tokens": 12, "num_beams": 1}}
    joined = pipe(WIDE_LONG, chunk_length_s=1, stride_length_s=0.25, **asked)["text"]["text"]
    starts = range(0, len(WIDE_LONG) - WIDE // 2, WIDE // 2)
    parts = [pipe(WIDE_LONG[start : start + WIDE], **asked)["text"]["text"] for start in starts]
    assert len(parts) > 3 and len(set(parts)) > 1 and max(map(len, parts)) < len(joined) < sum(map(len, parts))


def test_chunks_change_the_text_so_that_the_test_above_can_fail(build):
    pipe = MultiTaskPipeline(model=build(SPEECH), feature_extractor=extractor())
    whole, chunks = pipe(LONG, tasks="text"), pipe(LONG, tasks="text", chunk_length_s=0.15)
    assert whole != chunks and len(whole["text"]["text"]) > 3


def test_chunks_are_read_a_few_at_a_time_and_reach_beyond_max_length(build):
    model = build(SPEECH)
    pipe = MultiTaskPipeline(model=model, feature_extractor=extractor(), chunk_length_s=0.4, stride_length_s=0.05)
    shapes = []
    model.backbone.register_forward_pre_hook(lambda _, __, given: shapes.append(given["input_values"].shape), with_kwargs=True)  # fmt: skip
    answer = pipe(LONG)
    assert all(shape == (1, 3200) for shape in shapes[:-1]) and len(shapes) == -(-(len(LONG) - 800) // 2400)
    assert len(answer["again"]["text"]) > len(pipe(LONG[:900])["again"]["text"])
    shapes.clear()
    pipe([LONG, LONG], batch_size=2)
    assert max(shape[0] for shape in shapes) == 2


def test_every_frame_counts_once():
    for samples in (1, 79, 80, 5000, 5001, 12345):
        chunks = list(Chunking(0.2, 0.05, 0.03).cut(samples, RATE, 80))
        counted = sum(last - first for first, last in (chunk.frames for chunk in chunks))
        assert counted == round(samples / 80)
        assert chunks[0].samples[0] == 0 and chunks[-1].samples[1] == samples


@pytest.mark.parametrize(("given", "said"), [
    ({"chunk_length_s": 0}, r"^`chunk_length_s` should be a number of seconds above 0. Found `chunk_length_s = 0`.$"),
    ({"chunk_length_s": "30"}, "`chunk_length_s` should be a number of seconds"),
    ({"chunk_length_s": float("nan")}, "`chunk_length_s` should be a number of seconds"),
    ({"stride_length_s": 2}, r"^`stride_length_s` is the overlap of chunks. Give `chunk_length_s` as well"),
    ({"chunk_length_s": 1, "stride_length_s": -1}, "`stride_length_s` should be a number of seconds of 0 or more, or two"),
    ({"chunk_length_s": 1, "stride_length_s": (1, 2, 3)}, "`stride_length_s` should be a number of seconds of 0 or more"),
    ({"chunk_length_s": 1, "stride_length_s": 0.5}, "left and right together, should be below `chunk_length_s = 1`"),
])  # fmt: skip
def test_values_that_cannot_be_used_are_refused(given, said, build):
    model = build(SPEECH)
    with pytest.raises(ValueError, match=said):
        MultiTaskPipeline(model=model, feature_extractor=extractor(), **given)
    pipe = MultiTaskPipeline(model=model, feature_extractor=extractor())
    for inputs in (LONG, [LONG], iter([LONG])):
        with pytest.raises(ValueError, match=said):
            pipe(inputs, **given)


def test_chunks_without_a_task_that_joins_them_are_refused(build, build_model, tokenizer, tmp_path):
    folder = save_speecht5(tmp_path / "speecht5")
    written = MultiTaskModel.from_backbone(folder, tasks={"text": AutomaticSpeechRecognition()})
    for model, own in (
        (build(SPEAKER), {"feature_extractor": extractor()}),
        (written, {"processor": AutoProcessor.from_pretrained(folder)}),
        (build_model(), {"tokenizer": tokenizer}),
    ):
        with pytest.raises(
            ValueError, match=r"^`chunk_length_s` is for tasks of automatic-speech-recognition by CTC or Whisper"
        ):
            MultiTaskPipeline(model=model, chunk_length_s=30, **own)


def test_a_chunk_below_a_frame_is_refused(build):
    pipe = MultiTaskPipeline(model=build(SPEECH), feature_extractor=extractor())
    with pytest.raises(
        ValueError, match=r"`chunk_length_s = 0.001` leaves no frame of 80 samples .* Give longer chunks"
    ):
        pipe(LONG, chunk_length_s=0.001)


def test_a_chunk_above_the_window_of_whisper_is_refused(whisper):
    pipe, _ = whisper
    with pytest.raises(
        ValueError, match=r"Task 'text': `chunk_length_s` should be at most 1, .* whisper reads. Found .* = 1.5`.$"
    ):
        pipe(WIDE_LONG, chunk_length_s=1.5)
