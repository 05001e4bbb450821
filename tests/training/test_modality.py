"""A type whose reader makes something else than tokens: it trains, evaluates, saves and loads as text does."""

import pytest
import torch
from safetensors.torch import load_file
from toy_frames import READER, SIZE, TASK, Both, FrameExtractor, FramesConfig, FramesModel, recordings

from hf_multitask import MultiTaskModel, MultiTaskPipeline, MultiTaskTrainer


@pytest.fixture
def frames(import_file):
    import_file("frame_reader", READER)
    return import_file("frame_task", TASK)


@pytest.fixture
def build(frames, tasks, tmp_path):
    """A model on the toy backbone, with a task on recordings beside the given ones on texts."""
    torch.manual_seed(0)
    FramesModel(FramesConfig()).save_pretrained(tmp_path / "toy")

    def make(texts=("sentiment",), dtype=None, **options):
        own = {name: tasks[name] for name in texts} | {"pitch": frames.Frames(label_names=["low", "high"], **options)}
        torch.manual_seed(1)
        return MultiTaskModel.from_backbone(str(tmp_path / "toy"), tasks=own, pooling="mean", dtype=dtype)

    return make


@pytest.fixture
def trainer(build, data, arguments, tokenizer):
    def make(model=None, *, rows=14, given=None, **kwargs):
        texts = {} if given is not None else {"sentiment": data(20)["sentiment"]}
        held = {} if given is not None else {"sentiment": data(9, split="validation")["sentiment"]}
        return MultiTaskTrainer(
            model or build(),
            arguments(**kwargs),
            train_dataset=texts | {"pitch": recordings(rows)},
            eval_dataset=held | {"pitch": recordings(11, seed=1)},
            processing_class=given or Both(tokenizer, FrameExtractor()),
        )

    return make


def parts_of(trainer):
    """By micro-batch of the first step, the inputs of its forwards."""
    return [[set(part) - {"task_rows", "labels"} for part in batch["forwards"]] for batch in trainer.get_train_dataloader()]  # fmt: skip


def test_it_trains_beside_a_text_task_in_one_step_and_is_measured(trainer):
    one = trainer(max_steps=40, learning_rate=2e-2, per_device_train_batch_size=12)
    texts, frames = {"input_ids", "attention_mask"}, {"input_features", "attention_mask"}
    mixed = [parts for parts in parts_of(one) if any(texts <= part for part in parts) and frames in parts]
    assert mixed and all(not {"input_ids", "input_features"} <= part for parts in mixed for part in parts)
    assert one.train_dataset.lengths()["pitch"].tolist() == [len(row) // SIZE for row in recordings(14)["recording"]]
    before = one.evaluate()
    one.train()
    after = one.evaluate()
    assert after["eval_pitch_accuracy"] == 1.0 > before["eval_pitch_accuracy"] - 1e-9
    assert after["eval_pitch_loss"] < before["eval_pitch_loss"] / 2
    assert after["eval_average"] == pytest.approx((1 + after["eval_sentiment_accuracy"]) / 2)
    shares = [entry["pitch_share"] for entry in one.state.log_history if "pitch_share" in entry]
    assert all(0 < share < 1 for share in shares)


def test_what_is_evaluated_is_what_the_pipeline_answers(trainer, tmp_path):
    one = trainer(max_steps=6, learning_rate=1e-2)
    one.train()
    metrics, rows = one.evaluate(), [row for row in recordings(11, seed=1) if row["label"]]
    one.save_model()
    given = one.processing_class
    loaded = MultiTaskModel.from_pretrained(tmp_path / "out")
    for name, value in one.model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name
    assert (tmp_path / "out" / "both.json").is_file()
    extensions = (tmp_path / "out" / "extensions.py").read_text()
    assert "FrameReader as reader_0" in extensions and "(head_0, None, reader_0)" in extensions
    assert "from .inputs import InputEncoder" in (tmp_path / "out" / "extension_frame_reader.py").read_text()
    pipe = MultiTaskPipeline(model=loaded, tokenizer=given.tokenizer, feature_extractor=given.feature_extractor)
    pipe.processor = given
    answers = pipe([{"recording": row["recording"]} for row in rows])
    assert all(set(answer) == {"pitch"} for answer in answers)
    hits = [answer["pitch"]["label"] == row["label"] for answer, row in zip(answers, rows, strict=True)]
    assert metrics["eval_pitch_accuracy"] == pytest.approx(sum(hits) / len(hits))
    assert set(pipe("A fine place.")) == {"sentiment"}
    both = pipe({"text": "A fine place.", "recording": rows[0]["recording"]})
    assert both == {**pipe("A fine place."), "pitch": answers[0]["pitch"]} or set(both) == {"sentiment", "pitch"}
    with pytest.raises(ValueError, match=r"^An input should be .*, or a dict with 'recording'. Found \{'x': 1\}.$"):
        pipe({"x": 1})
    again = trainer(loaded)
    assert again.evaluate()["eval_pitch_loss"] == pytest.approx(metrics["eval_pitch_loss"], abs=1e-6)


@pytest.mark.parametrize("aggregation", ["none", "upgrad"])
def test_micro_batches_make_no_difference(aggregation, trainer, build):
    def weights(**kwargs):
        one = trainer(build(dtype=torch.float64), max_steps=3, aggregation=aggregation, optim="sgd", **kwargs)
        one.train()
        return one.model.state_dict()

    whole = weights(per_device_train_batch_size=12)
    parts = weights(per_device_train_batch_size=3, gradient_accumulation_steps=4)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=0, atol=1e-9, msg=name)


def test_resume_is_exact(trainer, tmp_path):
    common = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    trainer(output_dir=str(tmp_path / "alone"), **common).train()
    resumed = trainer(output_dir=str(tmp_path / "resumed"), **common)
    resumed.train(resume_from_checkpoint=str(tmp_path / "alone" / "checkpoint-3"))
    ours, theirs = (load_file(tmp_path / name / "checkpoint-6" / "model.safetensors") for name in ("resumed", "alone"))
    assert all(torch.equal(value, ours[name]) for name, value in theirs.items())


def test_it_needs_no_tokenizer_and_counts_what_is_cut(trainer, build, caplog):
    one = trainer(build((), max_length=5), given=FrameExtractor())
    cut = sum(len(row) > 5 * SIZE for row in recordings(14)["recording"])
    said = f"{cut} of 14 rows of 'pitch' (train) are longer than 5 frames and were cut. The max_length of the task sets the limit."
    assert 0 < cut < 14 and said in caplog.text
    assert max(one.train_dataset.lengths()["pitch"]) == 5
    one.train()
    assert one.evaluate()["eval_pitch_loss"] > 0


def test_a_text_task_without_a_tokenizer_is_refused(build, data, arguments):
    with pytest.raises(ValueError, match=r"^Task 'sentiment': A task that reads texts needs a tokenizer, and FrameEx"):
        MultiTaskTrainer(build(), arguments(), train_dataset=data(), processing_class=FrameExtractor())


def test_rows_are_encoded_anew_when_the_extractor_changes(trainer, build):
    fingerprints = set()
    for size in (SIZE, SIZE, 1):
        given = FrameExtractor(feature_size=SIZE)
        given.step = size
        fingerprints.add(trainer(build(()), given=given).train_dataset.datasets[0].rows._fingerprint)
    assert len(fingerprints) == 2
