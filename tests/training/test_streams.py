"""Streams beside ordinary datasets: the steps of one process and no accumulation, whatever the hardware; exact resume."""

import pytest
import torch
from datasets import Dataset, IterableDataset, SplitDict, SplitInfo
from safetensors.torch import load_file
from tiny import read_rows
from transformers import AutoTokenizer, TrainerCallback

from hf_multitask import MultiTaskTrainer

ROWS = read_rows("sentiment", "train", 120)


def rows_of(shards, broken=None):
    for shard in shards:
        for number, row in enumerate(ROWS[shard * 20 : shard * 20 + 20], shard * 20):
            if number == broken:
                raise OSError("the disk is gone")
            yield row


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


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.step


SHUFFLED = {"shuffled": lambda: stream().shuffle(seed=3, buffer_size=30), "plain": stream, "unsaid": lambda: stream(0)}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", SHUFFLED)
def test_resume_in_the_middle_of_a_pass_is_exact(kind, workers, trainer, tmp_path, recwarn):
    common = {
        "sampling": "uniform",
        "max_steps": 36,  # of 8 rows, half of them the stream's: into its second pass
        "dataloader_num_workers": workers,
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 4,
        "save_steps": 3,
    }
    trainer(SHUFFLED[kind](), "alone", **common).train()
    for stop in (9, 18, 33):
        trainer(SHUFFLED[kind](), "stopped", callbacks=[StopAt(stop)], **common).train()
        torch.manual_seed(99)
        resumed = trainer(SHUFFLED[kind](), "stopped", **common)
        resumed.train(resume_from_checkpoint=str(tmp_path / "stopped" / f"checkpoint-{stop}"))
        ours, theirs = (
            load_file(tmp_path / name / "checkpoint-36" / "model.safetensors") for name in ("stopped", "alone")
        )
        for name, value in theirs.items():
            assert torch.equal(value, ours[name]), (stop, name)
