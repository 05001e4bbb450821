"""Training of Whisper and SpeechT5: one task is the plain Trainer, and what is evaluated is what the pipeline writes."""

import jiwer
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sounds import WIDE, InOrder, changed, losses, recordings, save_speecht5, save_whisper
from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor, TrainingArguments

from hf_multitask import (
    AudioClassification,
    AutomaticSpeechRecognition,
    MultiTaskModel,
    MultiTaskPipeline,
    MultiTaskTrainer,
)
from hf_multitask.modeling.kinds import reader_of

SAVED = {"whisper": save_whisper, "speecht5": save_speecht5}
TASKS = {"word": AutomaticSpeechRecognition(max_target_length=12)}


@pytest.fixture(params=SAVED)
def build(request, tmp_path):
    folder = SAVED[request.param](tmp_path / "backbone")

    def make(dtype=None):
        return MultiTaskModel.from_backbone(folder, tasks=TASKS, dtype=dtype), AutoProcessor.from_pretrained(folder)

    return make


@pytest.fixture
def trainer(arguments):
    def make(built, rows=None, held=None, **kwargs):
        return MultiTaskTrainer(
            built[0],
            arguments(**kwargs),
            train_dataset={"word": recordings(24, rate=WIDE) if rows is None else rows},
            eval_dataset={"word": recordings(8, seed=1, rate=WIDE) if held is None else held},
            processing_class=built[1],
        )

    return make


def test_one_task_is_the_plain_trainer(build, trainer, tmp_path, record_property):
    steps, options = 6, {"max_steps": 6, "learning_rate": 0.05, "optim": "sgd", "logging_steps": 1}
    model, processor = build(torch.float64)
    rows = recordings(24, rate=WIDE, equal=6000)  # as SpeechT5 itself reads padding
    ours = trainer((model, processor), rows, **options)
    order = np.concatenate([rows for epoch in range(2) for rows in ours.plan.new_sampler().steps(epoch)])[: steps * 8]
    model.export_task("word", tmp_path / "stock", processor)
    stock = AutoModelForSpeechSeq2Seq.from_pretrained(tmp_path / "stock", dtype=torch.float64)
    reader = reader_of(model.config.task("word"))

    def collate(features):
        names = [name for name in reader.input_names if name in features[0]]
        batch = reader.padded(processor, [{name: feature[name] for name in names} for feature in features])
        batch = {name: one.double() if one.is_floating_point() else one for name, one in batch.items()}
        labels = [torch.tensor(feature["labels:word"]) for feature in features]
        return {**batch, "labels": torch.nn.utils.rnn.pad_sequence(labels, True, -100)}

    plain_options = {"per_device_train_batch_size": 8, "use_cpu": True, "disable_tqdm": True, "save_strategy": "no"}
    plain = InOrder(
        stock.train(),
        TrainingArguments(ours.args.output_dir + "-plain", seed=ours.args.seed, report_to="none", remove_unused_columns=False, **plain_options, **options),
        train_dataset=ours.train_dataset.datasets[0].rows.select(order),
        data_collator=collate,
    )  # fmt: skip
    before = {name: value.clone() for name, value in stock.state_dict().items()}
    ours.train()
    plain.train()
    apart = max(abs(one - other) for one, other in zip(losses(ours), losses(plain), strict=True))
    record_property("largest difference of losses", apart)
    trained = model.task_model("word").state_dict()
    drift = max(float((stock.state_dict()[name] - value).abs().max()) for name, value in trained.items())
    record_property("largest difference of a weight", drift)
    assert apart < 1e-9 and drift < 1e-9 and len(losses(ours)) == steps
    assert max(float((before[name] - value).abs().max()) for name, value in trained.items()) > 1e-3


def test_micro_batches_make_no_difference(build, trainer):
    def weights(**kwargs):
        built = build(torch.float64)
        trainer(built, recordings(40, rate=WIDE), max_steps=3, optim="sgd", learning_rate=0.1, **kwargs).train()
        return built[0].state_dict()

    whole = weights(per_device_train_batch_size=32)
    parts = weights(per_device_train_batch_size=8, gradient_accumulation_steps=4)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=0, atol=1e-9, msg=name)


def test_what_is_evaluated_is_what_the_pipeline_writes_and_a_resume_is_exact(build, trainer, tmp_path):
    rows = recordings(4, rate=WIDE)
    options = {"max_steps": 120, "learning_rate": 5e-3, "lr_scheduler_type": "constant", "save_strategy": "steps", "save_steps": 110, "per_device_train_batch_size": 4}  # fmt: skip
    one = trainer(build(), rows, rows, output_dir=str(tmp_path / "alone"), **options)
    one.train()
    again = trainer(build(), rows, rows, output_dir=str(tmp_path / "resumed"), **options)
    again.train(resume_from_checkpoint=str(tmp_path / "alone" / "checkpoint-110"))
    ours, theirs = (
        load_file(tmp_path / name / "checkpoint-120" / "model.safetensors") for name in ("resumed", "alone")
    )
    assert all(torch.equal(value, ours[name]) for name, value in theirs.items())
    metrics = one.evaluate()
    one.save_model(str(tmp_path / "saved"))
    folder = str(tmp_path / "saved")
    pipe = MultiTaskPipeline(model=MultiTaskModel.from_pretrained(folder), processor=AutoProcessor.from_pretrained(folder))  # fmt: skip
    texts = [answer["word"]["text"] for answer in pipe(list(rows["audio"]))]
    assert len(set(texts)) > 1 and metrics["eval_word_wer"] == pytest.approx(jiwer.wer(list(rows["text"]), texts))
    assert metrics["eval_word_cer"] == pytest.approx(jiwer.cer(list(rows["text"]), texts))


def test_tasks_share_the_rows_and_the_encoder_of_whisper(arguments, tmp_path):
    folder = save_whisper(tmp_path / "backbone")
    tasks = {"speaker": AudioClassification(dataset="tones", label_column="speaker"), "word": AutomaticSpeechRecognition(dataset="tones", max_target_length=12)}  # fmt: skip
    rows = recordings(16, rate=WIDE)
    one = MultiTaskTrainer(
        MultiTaskModel.from_backbone(folder, tasks=tasks),
        arguments(max_steps=60, learning_rate=3e-3),
        train_dataset={"tones": rows},
        eval_dataset={"tones": rows},
        processing_class=AutoProcessor.from_pretrained(folder),
    )
    assert [len(batch["forwards"]) for batch in one.get_train_dataloader()] == [1, 1]
    before = one.evaluate()
    one.train()
    metrics, pipe = one.evaluate(), MultiTaskPipeline(model=one.model, processor=one.processing_class)
    answers = pipe(list(rows["audio"]))
    hits = [answer["speaker"]["label"] == row["speaker"] for answer, row in zip(answers, rows, strict=True) if row["speaker"]]  # fmt: skip
    assert metrics["eval_speaker_accuracy"] == pytest.approx(np.mean(hits))
    assert metrics["eval_speaker_loss"] < before["eval_speaker_loss"] and metrics["eval_word_loss"] < before["eval_word_loss"]  # fmt: skip
    texts = [answer["word"]["text"] for answer in answers]
    assert metrics["eval_word_wer"] == pytest.approx(jiwer.wer(list(rows["text"]), texts))


def test_transcripts_are_cut_or_refused_by_row(build, trainer, caplog):
    rows = recordings(6, rate=WIDE)
    trainer(build(), changed(rows, 3, text="abc" * 10))
    assert "Task 'word': 1 of 6 targets (train) are longer than its max_target_length and were cut." in caplog.text
    with pytest.raises(ValueError, match=r"^Task 'word': row 2 of the train data, column 'text': the transcript is empty"):  # fmt: skip
        trainer(build(), changed(rows, 2, text=" "))


def test_recordings_that_are_cut_are_counted_in_samples(arguments, tmp_path, caplog):
    folder = save_whisper(tmp_path / "backbone")
    long = {"array": np.sin(np.arange(2.0 * WIDE)).tolist(), "sampling_rate": WIDE}
    MultiTaskTrainer(
        MultiTaskModel.from_backbone(folder, tasks=TASKS),
        arguments(),
        train_dataset={"word": changed(recordings(6, rate=WIDE), 2, audio=long)},
        processing_class=AutoProcessor.from_pretrained(folder),
    )
    assert f"1 of 6 rows of 'word' (train) are longer than {WIDE} samples and were cut." in caplog.text


def test_a_stream_needs_no_vocabulary(build, trainer):
    one = trainer(build(), recordings(12, rate=WIDE).to_iterable_dataset(), sampling="uniform", max_steps=2)
    one.train()
    assert np.isfinite(losses(one)).all()


def test_a_feature_extractor_alone_is_refused(build, arguments):
    model, processor = build()
    with pytest.raises(ValueError, match=r"^Task 'word': A task that writes transcripts needs a tokenizer"):
        MultiTaskTrainer(model, arguments(), train_dataset={"word": recordings(4)}, processing_class=processor.feature_extractor)  # fmt: skip
