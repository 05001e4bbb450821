"""Cost of a step with an aggregator on a speech encoder, relative to the plain one on the same recordings.

A Wav2Vec2 with random weights has two classifiers and a transcript by CTC. ``shared`` rows are read by all three tasks,
``separate`` rows by one each. The row split does not support convolutions, so the gradients come from a pass per task.
The script measures the ``training_step`` of MultiTaskTrainer without the optimizer, in turns of one step in a random
order; the first round is a warm-up. The output is the median ratio to plain with its 95 % bootstrap interval::

    OMP_NUM_THREADS=1 python benchmarks/speech_conflict.py --rounds 30
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from conflict import take_turns
from ratios import median_ratio
from throughput import silence
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model, set_seed
from transformers.utils import logging

from hf_multitask import (
    AudioClassification,
    AutomaticSpeechRecognition,
    MultiTaskModel,
    MultiTaskTrainer,
    MultiTaskTrainingArguments,
)

RATE = 16000
NAMES = ("digit", "speaker", "transcript")


def write_encoder(folder: Path, given: argparse.Namespace) -> None:
    """A random encoder with the convolutions of Wav2Vec2, narrower, and its feature extractor."""
    set_seed(0)
    config = Wav2Vec2Config(
        hidden_size=given.width,
        num_hidden_layers=given.layers,
        num_attention_heads=4,
        intermediate_size=4 * given.width,
        conv_dim=(given.channels,) * 7,
        num_conv_pos_embedding_groups=4,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        layerdrop=0.0,  # so that all steps have the same layers
        hidden_dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        feat_proj_dropout=0.0,
        final_dropout=0.0,
        mask_time_prob=0.0,
    )
    Wav2Vec2Model(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(sampling_rate=RATE, return_attention_mask=True).save_pretrained(folder)


def make_step(given: argparse.Namespace, rows: str, aggregation: str) -> Callable[[], None]:
    """A step over recordings that are ``shared`` by the tasks, or ``separate``."""
    draw = np.random.default_rng(0)
    sounds = [draw.standard_normal(int(RATE * given.seconds)).tolist() for _ in range(given.rows)]
    data = [{"audio": {"array": one, "sampling_rate": RATE}, "label": "ab"[n % 2]} for n, one in enumerate(sounds)]
    of_task = {name: "calls" if rows == "shared" else name for name in NAMES}
    parts = {"calls": data} if rows == "shared" else {name: data[n :: len(NAMES)] for n, name in enumerate(NAMES)}
    tasks: dict[str, Any] = {
        name: AudioClassification(dataset=of_task[name], label_names=["a", "b"]) for name in NAMES[:2]
    }
    tasks["transcript"] = AutomaticSpeechRecognition(
        dataset=of_task["transcript"], text_column="label", vocabulary=["<pad>", "a", "b"]
    )
    with tempfile.TemporaryDirectory() as encoder:
        write_encoder(Path(encoder), given)
        trainer = MultiTaskTrainer(
            MultiTaskModel.from_backbone(encoder, tasks=tasks),
            MultiTaskTrainingArguments(
                tempfile.mkdtemp(),
                per_device_train_batch_size=given.rows,
                aggregation=aggregation,
                max_grad_norm=0.0,
                gradient_logging_steps=None,
                use_cpu=not torch.cuda.is_available(),
                report_to="none",
                max_steps=1,
                disable_tqdm=True,
            ),
            train_dataset={name: datasets.Dataset.from_list(part) for name, part in parts.items()},
            processing_class=Wav2Vec2FeatureExtractor.from_pretrained(encoder),
        )
    silence(trainer)
    (batch,) = trainer.get_train_dataloader()
    trainer.model.to(trainer.args.device)
    trainer.create_optimizer()  # whose gradients a step measures

    def step() -> None:
        trainer.model.zero_grad()
        items = trainer.engine.open([batch])
        trainer.training_step(trainer.model, batch, items)

    return step


def main(words: Sequence[str] | None = None) -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=12, help="recordings per step")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each recording")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--methods", nargs="+", default=["upgrad"])
    parser.add_argument("--rounds", type=int, default=30)
    given = parser.parse_args(words)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    print("| rows | aggregation | ms per step, CPU | over none, by CPU time | by wall clock |\n|---|---|---|---|---|")
    for rows in ("shared", "separate"):
        taken = take_turns({name: make_step(given, rows, name) for name in ("none", *given.methods)}, given.rounds)
        for name, each in taken.items():
            ratios = [median_ratio(each[clock], taken["none"][clock]) for clock in ("cpu", "seconds")]
            cells = [f"{middle:.2f} [{low:.2f}, {high:.2f}]" for middle, low, high in ratios]
            print(f"| {rows} | `{name}` | {1000 * statistics.median(each['cpu']):.0f} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
