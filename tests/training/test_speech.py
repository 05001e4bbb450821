"""Training on recordings: one task is the plain Trainer, and several share a pass, micro-batches and a checkpoint."""

import sys
import time
from itertools import product
from pathlib import Path

import datasets
import jiwer
import numpy as np
import pytest
import torch
from parameters import few
from safetensors.torch import load_file
from sounds import (
    LETTERS,
    RATE,
    InOrder,
    changed,
    extractor,
    losses,
    recordings,
    save_encoder,
    save_frame_encoder,
    save_whisper,
    wav,
)
from tiny import save_backbone
from transformers import TrainerCallback, TrainingArguments

from hf_multitask import (
    AudioClassification,
    AutomaticSpeechRecognition,
    MultiTaskModel,
    MultiTaskPipeline,
    MultiTaskTrainer,
)
from hf_multitask.training.evaluation.rows import SweepSampler
from hf_multitask.training.step.rows import filler

GROUP = {"feat_extract_norm": "group", "do_stable_layer_norm": False}
MASKS = {"mask_time_prob": 0.3, "mask_time_length": 2, "mask_time_min_masks": 1, "mask_feature_prob": 0.1, "mask_feature_length": 4}  # fmt: skip
SPEAKER = {"speaker": AudioClassification(dataset="tones", label_column="speaker")}
WORD = {"word": AutomaticSpeechRecognition(dataset="tones")}
SPEED = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second", "eval_model_preparation_time")
ALL = {"letter": AudioClassification(dataset="tones", label_column="letter"), **SPEAKER, **WORD}


@pytest.fixture
def build(tmp_path):
    def make(own=None, dtype=None, **options):
        path = save_encoder(tmp_path / "encoder", **options)
        torch.manual_seed(1)
        return MultiTaskModel.from_backbone(path, tasks=ALL if own is None else own, dtype=dtype)

    return make


@pytest.fixture
def trainer(build, arguments):
    def make(model=None, rows=None, held=None, **kwargs):
        return MultiTaskTrainer(
            model or build(),
            arguments(**kwargs),
            train_dataset={"tones": recordings(28) if rows is None else rows},
            eval_dataset={"tones": recordings(16, seed=1) if held is None else held},
            processing_class=extractor(),
        )

    return make


@pytest.mark.parametrize(
    ("family", "task"),
    few(
        product(("wav2vec2", "hubert", "wavlm"), ("speaker", "word")),
        [("wav2vec2", "word"), ("hubert", "speaker"), ("wavlm", "word")],
    ),
)
def test_one_task_is_the_plain_trainer(task, family, build, trainer, arguments, record_property):
    steps, rows = 8, recordings(32).filter(lambda row: row["speaker"] is not None).select(range(24))
    model = build((SPEAKER | WORD)[task] and {task: (SPEAKER | WORD)[task]}, family=family)
    options = {"max_steps": steps, "learning_rate": 0.05, "optim": "sgd", "logging_steps": 1}
    ours = trainer(model, rows, **options)
    sampler = ours.plan.new_sampler()
    order = np.concatenate([rows for epoch in range(3) for rows in sampler.steps(epoch)])[: steps * 8]
    stock = model.task_model(task)
    before = {name: value.clone() for name, value in stock.state_dict().items()}
    encoded = ours.train_dataset.datasets[0].rows.select(order)

    def collate(features):
        waves = [feature["input_values"] for feature in features]
        batch = extractor().pad({"input_values": waves}, padding=True, return_tensors="pt")
        labels = [torch.tensor(feature[f"labels:{task}"]) for feature in features]
        many = task == "word"
        batch["labels"] = torch.nn.utils.rnn.pad_sequence(labels, True, -100) if many else torch.stack(labels)
        return dict(batch)

    plain_options = {"per_device_train_batch_size": 8, "use_cpu": True, "disable_tqdm": True, "save_strategy": "no"}
    plain = InOrder(
        stock.train(),
        TrainingArguments(ours.args.output_dir + "-plain", seed=ours.args.seed, report_to="none", remove_unused_columns=False, **plain_options, **options),
        train_dataset=encoded,
        data_collator=collate,
    )  # fmt: skip
    ours.train()
    plain.train()
    apart = max(abs(one - other) for one, other in zip(losses(ours), losses(plain), strict=True))
    record_property("largest difference of losses", apart)
    assert apart < 1e-6 and len(losses(ours)) == steps
    trained = model.task_model(task).state_dict()
    moved = max(float((before[name] - value).abs().max()) for name, value in trained.items())
    drift = max(float((stock.state_dict()[name] - value).abs().max()) for name, value in trained.items())
    record_property("largest difference of a weight", drift)
    assert drift < 1e-6 and moved > 1e-3


@pytest.mark.parametrize("options", [{}, GROUP, MASKS], ids=["layer", "group", "masks"])
def test_micro_batches_and_workers_make_no_difference(options, trainer, build):
    def weights(**kwargs):
        one = trainer(build(dtype=torch.float64, **options), recordings(40), max_steps=3, optim="sgd", learning_rate=0.1, **kwargs)  # fmt: skip
        one.add_callback(Draws())
        one.train()
        return one.model.state_dict()

    whole = weights(per_device_train_batch_size=32)
    parts = weights(per_device_train_batch_size=8, gradient_accumulation_steps=4, dataloader_num_workers=2)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=0, atol=1e-9, msg=name)
    if options == MASKS:
        other = weights(per_device_train_batch_size=32, data_seed=5, seed=42)
        assert any((other[name] - value).abs().max() > 1e-5 for name, value in whole.items())


class Draws(TrainerCallback):
    """A user's callback that draws from the generator of NumPy."""

    def on_step_begin(self, args, state, control, **kwargs):
        np.random.rand(int(1000 * time.time()) % 50 + 1)


def shapes(trainer):
    """The model inputs of the forwards of every micro-batch."""
    return [[tuple(one["input_values"].shape) for one in batch["forwards"]] for batch in trainer.get_train_dataloader()]


@pytest.mark.parametrize("aggregation", ["none", "upgrad"])
@pytest.mark.parametrize("norm", few([{}, GROUP], ["layer"], ids=["layer", "group"]))
def test_forwards_bounded_by_seconds_make_the_same_update(norm, aggregation, trainer, build, monkeypatch):
    draw = np.random.default_rng(3)
    rows = recordings(40)
    long = {"array": draw.standard_normal(RATE).tolist(), "sampling_rate": RATE}
    rows = changed(rows, 5, audio=long)

    def run(seconds, batch, parts):
        monkeypatch.setattr("hf_multitask.modeling.speech.MOST_SECONDS", seconds)
        one = trainer(build(dtype=torch.float64, **norm), rows, max_steps=3, optim="sgd", learning_rate=0.1, per_device_train_batch_size=batch, gradient_accumulation_steps=parts, aggregation=aggregation)  # fmt: skip
        seen, order = shapes(one), [rows.tolist() for rows in one.plan.new_sampler().steps(0)]
        one.train()
        return one.model.state_dict(), seen, order

    whole, free, order = run(1000, 32, 1)
    assert max(count * longest for batch in free for count, longest in batch) > 0.5 * RATE
    for batch, parts in ((32, 1), (8, 4)):
        weights, seen, theirs = run(0.5, batch, parts)
        assert theirs == order
        assert sum(count for one in seen for count, _ in one) == 40
        assert all(count == 1 or count * longest <= 0.5 * RATE for one in seen for count, longest in one)
        assert any(longest == RATE for one in seen for _, longest in one)
        assert max(map(len, seen)) > 4 or batch == 8
        for name, value in whole.items():
            torch.testing.assert_close(weights[name], value, rtol=0, atol=1e-9, msg=name)


def test_evaluation_is_bounded_by_seconds_and_measures_the_same(trainer, build, monkeypatch):
    long = {"array": np.random.default_rng(3).standard_normal(RATE).tolist(), "sampling_rate": RATE}
    rows = changed(recordings(21), 5, audio=long)
    one = trainer(build(dtype=torch.float64), held=rows, per_device_eval_batch_size=16)

    def run(seconds):
        monkeypatch.setattr("hf_multitask.modeling.speech.MOST_SECONDS", seconds)
        loader = one.evaluator.loader(one.eval_dataset)
        seen = [tuple(batch["input_values"].shape) for batch in loader]
        assert sum(count for count, _ in seen) == 21 and len(loader) == len(seen)
        return seen, {key: value for key, value in one.evaluate().items() if key not in SPEED}

    free, expected = run(1000)
    seen, found = run(0.5)
    assert [count for count, _ in free] == [16, 5]
    assert all(count == 1 or count * longest <= 0.5 * RATE for count, longest in seen) and seen[-1] == (1, RATE)
    assert max(count for count, _ in seen) > 2
    assert found == {key: pytest.approx(value, abs=1e-9) for key, value in expected.items()}


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_evaluate_as_many_bounded_batches_each_row_once(world_size):
    lengths = np.sort(np.random.default_rng(0).integers(1, 30, 50))
    orders = [np.arange(40), np.arange(40, 50)]
    ranks = [
        list(SweepSampler(orders, lengths, [60, None], batch=8, world_size=world_size, rank=rank))
        for rank in range(world_size)
    ]
    assert len(set(map(len, ranks))) == 1
    rows = [row for batches in ranks for batch in batches for row in batch if row >= 0]
    assert sorted(rows) == list(range(50))
    for batch in (batch for batches in ranks for batch in batches):
        assert max(batch) < 40 or min(batch) >= 40 or batch[0] < 0
        assert len(batch) == 1 or max(batch) >= 40 or len(batch) * lengths[max(batch)] <= 60
    assert any(len(batch) > 4 for batch in ranks[0])


def test_resume_is_exact_with_dropout_spec_augment_and_layerdrop(trainer, build, tmp_path):
    common = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    noise = {"hidden_dropout": 0.1, "attention_dropout": 0.1, "layerdrop": 0.3, **MASKS}
    trainer(build(**noise), output_dir=str(tmp_path / "alone"), **common).train()
    resumed = trainer(build(**noise), output_dir=str(tmp_path / "resumed"), **common)
    resumed.add_callback(Draws())
    resumed.train(resume_from_checkpoint=str(tmp_path / "alone" / "checkpoint-3"))
    ours, theirs = (load_file(tmp_path / name / "checkpoint-6" / "model.safetensors") for name in ("resumed", "alone"))
    assert all(torch.equal(value, ours[name]) for name, value in theirs.items())


def test_evaluation_masks_nothing_and_masks_change_training(trainer, build):
    one = trainer(build(**MASKS), max_steps=3)
    batch = next(iter(one.get_train_dataloader()))["forwards"][0]
    assert batch["mask_seeds"].shape == batch["input_values"].shape[:1] and len(set(batch["mask_seeds"].tolist())) > 1
    before = one.evaluate()
    one.model.backbone.config.apply_spec_augment = False
    after = one.evaluate()
    assert all(after[key] == value for key, value in before.items() if key.endswith(("loss", "accuracy", "cer")))


def test_three_tasks_share_a_row_and_learn(trainer, build):
    one = trainer(build(), recordings(90), max_steps=60, learning_rate=4e-3, per_device_train_batch_size=16)
    calls = []
    one.model.backbone.register_forward_pre_hook(lambda *_: calls.append(1))
    batches = [len(batch["forwards"]) for batch in one.get_train_dataloader()]
    before = one.evaluate()
    calls.clear()
    one.train()
    assert len(calls) == 60 * np.mean(batches) or len(calls) <= 60 * max(batches)
    after = one.evaluate()
    for task in ALL:
        assert after[f"eval_{task}_loss"] < before[f"eval_{task}_loss"]
    assert after["eval_speaker_accuracy"] > 0.8
    assert {"eval_word_word_accuracy", "eval_word_wer", "eval_word_cer"} <= set(after)
    assert after["eval_average"] == pytest.approx(np.mean([after["eval_letter_accuracy"], after["eval_speaker_accuracy"], after["eval_word_word_accuracy"]]))  # fmt: skip


@pytest.mark.parametrize("norm", [{}, GROUP], ids=["layer", "group"])
def test_what_is_evaluated_is_what_the_pipeline_answers(norm, trainer, build, tmp_path):
    one = trainer(build(**norm), recordings(60), max_steps=40, learning_rate=4e-3, per_device_train_batch_size=16)
    one.train()
    metrics, rows = one.evaluate(), recordings(16, seed=1)
    one.save_model()
    assert (tmp_path / "out" / "preprocessor_config.json").is_file()
    loaded = MultiTaskModel.from_pretrained(tmp_path / "out")
    for name, value in one.model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name
    pipe = MultiTaskPipeline(model=loaded, feature_extractor=extractor())
    answers = pipe(list(rows["audio"]))
    assert all(set(answer) == set(ALL) for answer in answers)
    for task, column in (("letter", "letter"), ("speaker", "speaker")):
        hits = [answer[task]["label"] == row[column] for answer, row in zip(answers, rows) if row[column] is not None]
        assert metrics[f"eval_{task}_accuracy"] == pytest.approx(np.mean(hits))
    texts = [answer["word"]["text"] for answer in answers]
    assert len(set(texts)) > 1
    wer, cer = jiwer.wer(list(rows["text"]), texts), jiwer.cer(list(rows["text"]), texts)
    assert metrics["eval_word_wer"] == pytest.approx(wer) and metrics["eval_word_cer"] == pytest.approx(cer)
    assert metrics["eval_word_word_accuracy"] == pytest.approx(max(0, 1 - wer))
    again = trainer(loaded, rows)
    assert again.evaluate()["eval_word_loss"] == pytest.approx(metrics["eval_word_loss"], abs=1e-6)
    raw = one.predict({"tones": rows})["word"]
    assert raw.predictions.ndim == 3 and raw.metrics["test_word_wer"] == pytest.approx(wer)


@pytest.mark.parametrize("aggregation", ["upgrad", "mean"])
def test_tasks_are_aggregated(aggregation, trainer, build):
    def weights(**kwargs):
        one = trainer(build(dtype=torch.float64), max_steps=2, aggregation=aggregation, optim="sgd", **kwargs)
        one.train()
        return one.model.state_dict()

    whole = weights(per_device_train_batch_size=8)
    parts = weights(per_device_train_batch_size=2, gradient_accumulation_steps=4)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=0, atol=1e-9, msg=name)


def files(rows, folder):
    """The same rows with files in place of arrays."""
    kept = []
    for number, row in enumerate(rows):
        path = folder / f"{number}.wav"
        path.write_bytes(wav(row["audio"]["array"], subtype="FLOAT"))
        kept.append({**row, "audio": str(path)})
    return datasets.Dataset.from_list(kept)


@pytest.mark.parametrize("family", ["samples", "frames", "whisper", "joint"])
def test_a_process_without_rows_runs_a_pass(family, build, tmp_path):
    """Of one row, which is what is left of a batch once the tasks that are not finite are left out."""
    name, size, more = "input_values", (3, 900), {"attention_mask": torch.ones(3, 900, dtype=torch.long)}
    word = {"word": AutomaticSpeechRecognition(dataset="tones", vocabulary=list(LETTERS))}
    if family == "samples":
        model = build(word)
    elif family == "frames":
        model = MultiTaskModel.from_backbone(save_frame_encoder(tmp_path / "other"), tasks=word)
        name, size, more = "input_features", (3, 20, 32), {"attention_mask": torch.ones(3, 20, dtype=torch.long)}
    elif family == "whisper":
        model = MultiTaskModel.from_backbone(save_whisper(tmp_path / "other"), tasks=WORD)
        name, size, more = "input_features", (3, 16, 100), {}
    else:
        save_backbone("bart", tmp_path / "other")
        model = MultiTaskModel.from_backbone(str(tmp_path / "other"), tasks=WORD)
        name, size, more = "input_features", (3, 20, 80), {"attention_mask": torch.ones(3, 20, dtype=torch.long)}
    forward = {name: torch.randn(size), **more, "mask_seeds": torch.arange(3), "task_rows": {}, "labels": {}}
    left = filler(forward)
    assert left[name].shape == (1, *size[1:])
    loss = model.train()(**left, all_heads=True).loss
    loss.backward()
    assert loss.item() == 0
    assert [key for key, one in model.named_parameters() if one.requires_grad and one.grad is None] == []


def test_all_forms_of_audio_train_alike(trainer, tmp_path):
    rows = recordings(9)
    paths = files(rows, tmp_path)
    named = [row["audio"] for row in paths]
    as_bytes = datasets.Dataset.from_list([{**row, "audio": {"bytes": Path(path).read_bytes(), "path": None}} for row, path in zip(rows, named)])  # fmt: skip
    decoding = paths.cast_column("audio", datasets.Audio(sampling_rate=RATE))
    forms = [rows, paths, as_bytes, decoding, paths.cast_column("audio", datasets.Audio(decode=False))]
    encoded = [trainer(rows=form, held=form).train_dataset.datasets[0].rows for form in forms]
    wanted = [np.asarray(wave, np.float32) for wave in encoded[0]["input_values"]]
    for one in encoded:
        for wave, other in zip(wanted, one["input_values"], strict=True):
            np.testing.assert_allclose(wave, np.asarray(other, np.float32), atol=1e-6)
        assert str(one.features["input_values"].feature.dtype) == "float32"


def test_a_file_that_changes_is_read_anew(trainer, tmp_path):
    rows = files(recordings(9), tmp_path)
    first = trainer(rows=rows).train_dataset.datasets[0].rows
    assert trainer(rows=rows).train_dataset.datasets[0].rows._fingerprint == first._fingerprint
    (tmp_path / "0.wav").write_bytes(wav(np.sin(np.arange(900.0))))
    second = trainer(rows=rows).train_dataset.datasets[0].rows
    assert second._fingerprint != first._fingerprint and len(second[0]["input_values"]) == 900


def test_what_is_mixed_down_resampled_and_cut_is_counted(trainer, build, caplog):
    rows = [dict(row) for row in recordings(8)]
    for row in rows[:3]:
        row["audio"] = {"array": np.stack([row["audio"]["array"]] * 2).T.tolist(), "sampling_rate": RATE}
    flat = [{**row, "audio": wav(row["audio"]["array"], 2 * RATE if number < 5 else RATE)} for number, row in enumerate(rows)]  # fmt: skip
    own = {name: type(task)(**{**{key: value for key, value in task.to_dict().items() if key not in ("type", "name")}, "max_length": 600}) for name, task in ALL.items()}  # fmt: skip
    one = trainer(build(own), datasets.Dataset.from_list(flat))
    cut = sum(length == 600 for length in one.train_dataset.lengths()["tones"])
    assert 0 < cut < 8
    assert "3 of 8 rows of 'tones' (train) have several channels, which were averaged." in caplog.text
    assert "5 of 8 rows of 'tones' (train) have another sampling rate than the backbone and were resampled." in caplog.text  # fmt: skip
    assert "rows of 'tones' (train) are longer than 600 samples and were cut. The max_length of the task" in caplog.text
    assert caplog.text.count("have several channels") == 1


LONG = "abc" * 40
BAD = [
    ({"audio": None}, r"column 'audio': there is no audio. Fix or remove the row.$"),
    ({"audio": {"array": [], "sampling_rate": RATE}}, r"column 'audio': the recording is empty"),
    ({"audio": {"array": [0.0] * 900, "sampling_rate": RATE}}, r"column 'audio': the recording is silent"),
    ({"audio": {"array": [float("nan")] * 900, "sampling_rate": RATE}}, r"column 'audio': .* NaN or infinite"),
    ({"audio": {"array": [0.1, 0.2], "sampling_rate": RATE}}, r"column 'audio': the recording has 2 samples at 8000"),
    ({"text": " "}, r"column 'text': the transcript is empty. Fix the row, or leave it None.$"),
    (
        {"text": LONG},
        rf"column 'text': the transcript '{LONG[:30]}[abc.]+' needs 120 frames, .* and its recording has \d+\.",
    ),
]


@pytest.mark.parametrize(("cells", "said"), BAD, ids=[said[:50] for _, said in BAD])
@pytest.mark.parametrize("split", ["train", "evaluation"])
def test_a_row_that_cannot_be_used_is_named(split, cells, said, trainer, build):
    rows = changed(recordings(6), 4, **cells)
    task = "word" if "text" in cells else "letter"
    with pytest.raises(ValueError, match=rf"^Task '{task}': row 4 of the {split} data, {said}"):
        trainer(**{"rows" if split == "train" else "held": rows})


def test_symbols_outside_a_given_vocabulary_are_refused(trainer, build):
    own = {"word": AutomaticSpeechRecognition(dataset="tones", vocabulary=list(LETTERS))}
    with pytest.raises(ValueError, match=r"^Task 'word': row 2 of the train data, column 'text': the transcript 'ax' has the symbol 'x', which is not in the vocabulary \('abc'\). Fix"):  # fmt: skip
        trainer(build(own), changed(recordings(6), 2, text="ax"))
    made = trainer(build(WORD), changed(recordings(12), 2, text="b  A "))
    assert made.tasks["word"].vocabulary == ["<pad>", " ", "A", "a", "b", "c"]
    assert made.model.config.task("word")["vocabulary"] == made.tasks["word"].vocabulary
    assert made.train_dataset.datasets[0].references("word")[2] == "b A"
    with pytest.raises(ValueError, match=r"^Task 'word': row 1 of the train data, .* the symbol 'x'"):
        trainer(made.model, changed(recordings(6), 1, text="x"))


@pytest.mark.parametrize("given", ["", [], ["aa"], ["a", "a"], [1], ["<pad>"]])
def test_a_vocabulary_that_cannot_be_used_is_refused(given):
    with pytest.raises((ValueError, TypeError), match="`vocabulary` should be"):
        AutomaticSpeechRecognition(vocabulary=given)


@pytest.mark.parametrize(("column", "values", "said"), [
    ("text", [1, 2, 3, 4], "column 'text' contains whole numbers, but automatic-speech-recognition needs a transcript"),
    ("text", [None] * 4, "Task 'word' has no training data: no row of 'tones' has its label."),
    ("letter", [0.5, 1.5, 2.5, 0.1], "column 'letter' contains floats, but audio-classification needs one name"),
])  # fmt: skip
def test_a_column_of_another_kind_is_refused(column, values, said, trainer):
    rows = recordings(4).remove_columns(column).add_column(column, values)
    with pytest.raises(ValueError, match=said):
        trainer(rows=rows)


def test_an_extra_that_is_missing_is_named_before_training(trainer, tmp_path, monkeypatch):
    rows = files(recordings(4), tmp_path)
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(ValueError, match=r"^Task 'letter': row 0 of the train data, .* needs the package 'soundfile'.*\[speech\]'$"):  # fmt: skip
        trainer(rows=rows)
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "jiwer", None)
    with pytest.raises(ValueError, match=r"^Task 'word': The metric 'word_accuracy' needs the package 'jiwer'.*\[speech\]'$"):  # fmt: skip
        trainer(rows=rows)


def test_a_stream_needs_its_vocabulary(build, trainer):
    stream = recordings(12).to_iterable_dataset()
    with pytest.raises(ValueError, match=r"^Task 'word': its labels are not read .* a stream. Give vocabulary.$"):
        trainer(build(WORD), stream)
    own = {"word": AutomaticSpeechRecognition(dataset="tones", vocabulary=list(LETTERS))}
    one = trainer(build(own), stream, sampling="uniform", max_steps=3, logging_steps=1)
    assert one.train().global_step == 3
    assert len(losses(one)) == 3 and np.isfinite(losses(one)).all() and min(losses(one)) > 0


@pytest.mark.parametrize(("cells", "said"), [
    ({"audio": None}, "there is no audio. Fix or remove the row."),
    ({"audio": {"array": [float("nan")] * 900, "sampling_rate": RATE}}, ".* NaN or infinite. Fix or remove the row."),
])  # fmt: skip
def test_a_row_of_a_stream_that_cannot_be_used_is_named(cells, said, trainer, build):
    own = {"word": AutomaticSpeechRecognition(dataset="tones", vocabulary=list(LETTERS))}
    one = trainer(build(own), changed(recordings(24), 13, **cells).to_iterable_dataset(), sampling="uniform", max_steps=3)  # fmt: skip
    with pytest.raises(ValueError, match=rf"^Task 'word': row 13 of the train data, column 'audio': {said}"):
        one.train()


@pytest.mark.process
def test_rows_are_read_in_workers_and_cached(trainer, tmp_path, caplog):
    rows = files(recordings(24), tmp_path)
    rows.to_parquet(tmp_path / "rows.parquet")

    def encoded(workers, name="rows.parquet"):
        loaded = datasets.load_dataset("parquet", data_files=str(tmp_path / name), split="train", cache_dir=str(tmp_path / "cache"))  # fmt: skip
        return trainer(rows=loaded, dataloader_num_workers=workers).train_dataset.datasets[0]

    both = encoded(2)
    assert len(both.rows.cache_files) == 2
    for workers in (0, 2):
        again = encoded(workers)
        assert again.digest() == both.digest() and again.rows.cache_files == both.rows.cache_files
    alone = trainer(rows=rows).train_dataset.datasets[0]
    assert alone.digest() == both.digest() and alone.rows._fingerprint != both.rows._fingerprint
    changed(rows, 17, audio=None).to_parquet(tmp_path / "bad.parquet")
    with pytest.raises(
        ValueError, match=r"^Task 'letter': row 17 of the train data, column 'audio': there is no audio"
    ):
        encoded(2, "bad.parquet")


def test_a_tokenizer_is_refused(build, arguments, tokenizer):
    with pytest.raises(ValueError, match=r"^Task 'letter': A task that reads audio needs a feature extractor"):
        MultiTaskTrainer(build(), arguments(), train_dataset={"tones": recordings(4)}, processing_class=tokenizer)
