"""Resident memory of training on a stream that declares ten million rows, while it reads the first of them.

The stream repeats the reviews of the example ``sentiment_ner`` in shards of 100,000 rows, and is mixed with its NER
sentences by size. The model is a BERT with random weights, two layers of 32; steps have 32 rows. The output is the
resident memory of the process (``VmRSS`` of Linux) after the given numbers of rows, and the seconds until then.

    python benchmarks/streams.py --rows 20000 100000 200000
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset, SplitDict, SplitInfo
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, TrainerCallback, set_seed

from hf_multitask import (
    MultiTaskModel,
    MultiTaskTrainer,
    MultiTaskTrainingArguments,
    SequenceClassification,
    TokenClassification,
)

DATA = Path(__file__).parent.parent / "examples" / "sentiment_ner" / "data"
DECLARED, SHARD = 10_000_000, 100_000


def read(task: str) -> list[dict[str, Any]]:
    """Training rows of the example."""
    return [json.loads(line) for line in (DATA / task / "train.jsonl").read_text(encoding="utf-8").splitlines()]


def rows_of(shards: list[int]) -> Iterator[dict[str, Any]]:
    """The reviews, repeated."""
    rows = read("sentiment")
    for shard in shards:
        for number in range(SHARD):
            yield rows[(shard * SHARD + number) % len(rows)]


def make_backbone(folder: str) -> PreTrainedTokenizerFast:
    """A random model and a tokenizer for the reviews."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(
        (row["text"] for row in read("sentiment")), trainers.WordPieceTrainer(vocab_size=2000, special_tokens=special)
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    fast.save_pretrained(folder)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=len(fast), max_position_embeddings=64, **sizes)).save_pretrained(folder)
    return fast


class Memory(TrainerCallback):
    """Prints a line of the table when a number of rows is reached."""

    def __init__(self, rows: list[int]) -> None:
        self.rows, self.start = sorted(rows), time.perf_counter()
        self.trainer: Any = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Check whether a number of rows is reached."""
        if state.global_step % 25:
            return
        seen = self.trainer.engine.tally.seen["sentiment"]
        if self.rows and seen >= self.rows[0]:
            self.rows.pop(0)
            status = Path("/proc/self/status").read_text(encoding="utf-8")
            held = int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024
            print(f"| {seen:,} | {held:.0f} MiB | {time.perf_counter() - self.start:.0f} |", flush=True)
        control.should_training_stop = not self.rows


def main() -> None:
    """Train and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[20_000, 100_000, 200_000])
    parser.add_argument("--workers", type=int, default=0)
    options = parser.parse_args()
    stream = IterableDataset.from_generator(rows_of, gen_kwargs={"shards": list(range(DECLARED // SHARD))})
    stream.info.splits = SplitDict({"train": SplitInfo("train", num_examples=DECLARED)})
    labels = json.loads((DATA / "ner" / "info.json").read_text())["label_names"]
    tasks = {
        "sentiment": SequenceClassification(label_names=["negative", "positive"]),
        "ner": TokenClassification(label_names=labels),
    }
    memory = Memory(options.rows)
    set_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = make_backbone(folder)
        memory.trainer = MultiTaskTrainer(
            MultiTaskModel.from_backbone(folder, tasks=tasks, branches="none"),
            MultiTaskTrainingArguments(
                str(Path(folder) / "out"),
                num_train_epochs=1,
                per_device_train_batch_size=32,
                dataloader_num_workers=options.workers,
                save_strategy="no",
                report_to="none",
                use_cpu=True,
                disable_tqdm=True,
                logging_steps=2000,
            ),
            train_dataset={"sentiment": stream, "ner": Dataset.from_list(read("ner"))},
            processing_class=tokenizer,
            callbacks=[memory],
        )
        memory.trainer.train()


if __name__ == "__main__":
    main()
