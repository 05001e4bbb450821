"""Streams beside ordinary datasets: the steps of one process and no accumulation, whatever the hardware; exact resume."""

import json
from itertools import product

import pytest
import torch
from datasets import Dataset, IterableDataset, SplitDict, SplitInfo
from parameters import few
from safetensors.torch import load_file
from stopping import StopAt
from tiny import read_rows
from transformers import AutoTokenizer

from hf_multitask import MultiTaskTrainer
from hf_multitask.data import StreamError
from hf_multitask.data.stream import declared_rows
from hf_multitask.tasks import build_task
from hf_multitask.training.preparation.tasks import without_streams
from hf_multitask.training.state.checkpoint import last_whole_checkpoint

ROWS = read_rows("sentiment", "train", 120)


def rows_of(shards, broken=None, text=None):
    for shard in shards:
        for number, row in enumerate(ROWS[shard * 20 : shard * 20 + 20], shard * 20):
            if number == broken:
                raise OSError("the disk is gone")
            yield row if text is None else {**row, "text": text}


def stream(declared=120, shards=6, **kwargs):
    made = IterableDataset.from_generator(rows_of, gen_kwargs={"shards": list(range(shards)), **kwargs})
    if declared:
        made.info.splits = SplitDict({"train": SplitInfo("train", num_examples=declared)})
    return made


@pytest.fixture
def trainer(build_model, arguments, backbone_path, tmp_path):
    def make(sentiment=None, name="out", ner=21, callbacks=None, **kwargs):
        values = {"output_dir": str(tmp_path / name), "save_strategy": "steps", "save_steps": 1, "seed": 5}
        data = {"sentiment": stream() if sentiment is None else sentiment}
        if ner:
            data["ner"] = Dataset.from_list(read_rows("ner", "train", ner))
        return MultiTaskTrainer(
            build_model(),
            arguments(**{**values, **kwargs}),
            train_dataset=data,
            processing_class=AutoTokenizer.from_pretrained(backbone_path()),
            callbacks=callbacks,
        )

    return make


SHUFFLED = {"shuffled": lambda: stream().shuffle(seed=3, buffer_size=30), "plain": stream, "unsaid": lambda: stream(0)}


# Kind, workers of the loader, the step after which it stops: in the first pass of the stream, or in the second.
CASES = list(product(SHUFFLED, (0, 2), (9, 18, 33)))
QUICK = [("shuffled", 2, 18), ("unsaid", 0, 33)]


@pytest.mark.parametrize(("kind", "workers", "stop"), few(CASES, QUICK))
def test_resume_in_the_middle_of_a_pass_is_exact(kind, workers, stop, trainer, tmp_path):
    common = {
        "sampling": "uniform",
        "max_steps": 36,  # of 8 rows, half of them the stream's: into its second pass
        "dataloader_num_workers": workers,
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 4,
        "save_steps": stop,
    }
    trainer(SHUFFLED[kind](), "alone", **common).train()
    trainer(SHUFFLED[kind](), "stopped", callbacks=[StopAt(stop)], **common).train()
    torch.manual_seed(99)
    resumed = trainer(SHUFFLED[kind](), "stopped", **common)
    resumed.train(resume_from_checkpoint=str(tmp_path / "stopped" / f"checkpoint-{stop}"))
    ours, theirs = (load_file(tmp_path / name / "checkpoint-36" / "model.safetensors") for name in ("stopped", "alone"))
    for name, value in theirs.items():
        assert torch.equal(value, ours[name]), name


BREAKS = {
    "short": ({"declared": 130}, "the stream ends before row 120, but it declares 130"),
    "broken": ({"broken": 50}, r"one of its rows 32 to 63 could not be read \(OSError: the disk is gone\)"),
}


@pytest.mark.parametrize(("what", "workers"), few(product(BREAKS, (0, 1)), [("short", 0), ("broken", 1)]))
def test_stream_that_breaks_off_is_named_and_loses_no_checkpoint(what, workers, trainer, tmp_path):
    broken, message = BREAKS[what]
    message = f"Task 'sentiment', dataset 'sentiment': {message}"
    one = trainer(stream(**broken), sampling="uniform", max_steps=60, dataloader_num_workers=workers, save_steps=4)
    with pytest.raises(StreamError, match=message + r".*resume_from_checkpoint=True"):
        one.train()
    last = last_whole_checkpoint(tmp_path / "out")
    assert last is not None
    mended = trainer(sampling="uniform", max_steps=one.state.global_step + 1, ignore_data_skip=False)
    if "declared" not in broken:  # the size is what the order of rows depends on
        mended.train(resume_from_checkpoint=True)
        assert mended.state.global_step == one.state.global_step + 1


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: stream(text="other"), r"row 32 differs from the row at this position when the checkpoint was written"),
        (lambda: stream().map(dict), r"row 32 cannot be found, because the stream has changed"),
    ],
)
def test_another_stream_is_not_gone_on_with(other, message, trainer):
    trainer(sampling="uniform", max_steps=12, callbacks=[StopAt(9)]).train()
    with pytest.raises(StreamError, match=message):
        trainer(other(), sampling="uniform", max_steps=12).train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    ("sentiment", "args", "message"),
    [
        (lambda: stream(0), {}, r"The number of rows of the stream 'sentiment' is unknown\. Set max_steps, and a"),
        (
            lambda: stream(0),
            {"sampling": "uniform", "max_steps": -1},
            r"The number of rows of the stream 'sentiment' is unknown",
        ),
        (
            lambda: stream(broken=3),
            {},
            r"Dataset 'sentiment' .* first rows could not be read \(OSError: the disk is gone",
        ),
        (lambda: stream(shards=0), {}, r"Dataset 'sentiment' of the train data is a stream without rows"),
        (lambda: stream().remove_columns("text"), {}, r"Task 'sentiment': the train data has no column 'text'"),
    ],
)
def test_stream_that_cannot_be_trained_on_is_refused_when_built(sentiment, args, message, trainer):
    with pytest.raises(ValueError, match=message):
        trainer(sentiment(), **args)


def test_labels_of_a_stream_are_not_read():
    with pytest.raises(ValueError, match=r"Task 't': its labels are not read .* a stream\. Give label_names"):
        without_streams({"t": build_task("t", {"type": "sequence-classification"})}, {"t": stream()})


def test_streams_are_for_training(trainer):
    with pytest.raises(TypeError, match=r"Dataset 'sentiment' of the validation data is a stream, and only training"):
        trainer(max_steps=1).evaluate({"sentiment": stream()}, metric_key_prefix="validation")


def test_declared_rows_are_those_that_come():
    assert declared_rows(stream(99)) == 99
    assert declared_rows(stream().take(30)) == 30
    assert declared_rows(stream().shuffle(seed=1, buffer_size=9).map(dict)) == 120
    for unknown in (stream(0), stream().filter(lambda row: True), stream().map(dict, batched=True), stream().skip(3)):
        assert declared_rows(unknown) == 0


def test_most_rows_of_a_stream(trainer):
    one = trainer(max_train_samples={"sentiment": 30}, ner=10)
    assert one.train_dataset.sizes == {"sentiment": 30, "ner": 10}
    assert one.train_dataset[1 << 40]["inputs"] == one.train_dataset[(1 << 40) + 30]["inputs"]  # its second pass


def counted(shards, log, size):
    for shard in shards:
        for number in range(size):
            with log.open("ab") as file:
                file.write(b".")
            yield ROWS[(shard * size + number) % len(ROWS)]


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_ten_million_rows_are_not_read_to_go_on_at_row_nine_million(trainer, tmp_path):
    size, rows = 100_000, 10_000_000

    def ten_million(log):
        kwargs = {"shards": list(range(rows // size)), "log": tmp_path / log, "size": size}
        made = IterableDataset.from_generator(counted, gen_kwargs=kwargs)
        made.info.splits = SplitDict({"train": SplitInfo("train", num_examples=rows)})
        return made

    common = {"per_device_train_batch_size": 32, "ner": 30, "logging_steps": 500}
    read = trainer(ten_million("first"), max_steps=6250, save_steps=6250, **common)
    read.train()
    assert read.progress.seen["sentiment"] >= 199_000
    assert (tmp_path / "first").stat().st_size < 200_000 + 100  # and the chunk that it stands in
    # The state that a run has which stands at row 9,000,000: the sampler's step, the stream's anchor.
    stream_at = trainer(ten_million("reached"), max_steps=-1, num_train_epochs=1, **common)
    step = 9_000_000 // 32
    (tmp_path / "reached").unlink()
    checkpoint = tmp_path / "out" / "checkpoint-6250"
    state = json.loads((checkpoint / "multitask_state.json").read_text())
    first = next(
        rows[rows >= 1 << 40].min() - (1 << 40) for at, rows in enumerate(stream_at._steps.steps(0)) if at == step
    )
    shard, place = divmod(int(first), size)
    anchor = state["anchors"]["sentiment"]
    inner = anchor["state"]["examples_iterable"]
    inner |= {"shard_idx": shard, "shard_example_idx": place}
    state["anchors"]["sentiment"] = {**anchor, "row": int(first)}
    del state["anchors"]["sentiment"]["hash"]
    (checkpoint / "multitask_state.json").write_text(json.dumps(state))
    trained = json.loads((checkpoint / "trainer_state.json").read_text())
    (checkpoint / "trainer_state.json").write_text(json.dumps({**trained, "global_step": step}))
    resumed = trainer(ten_million("resumed"), max_steps=step + 20, **common)
    (tmp_path / "resumed").unlink()
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert resumed.state.global_step == step + 20
    assert (tmp_path / "resumed").stat().st_size < place + 20 * 32 + 100  # nothing of the shards before
