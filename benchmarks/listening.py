"""Digit, speaker and transcript of a recording: one model of three tasks against three models of one.

All begin from the encoder of ``examples/spoken_digits`` and train at the same learning rate, on the Free Spoken Digit
Dataset: the one model for as many epochs as each of the three, a third of their passes over the data, and for three
times as many, which takes as long as the three together. Nothing is selected, the last weights are measured on the test
rows. For every seed:

``accuracy``  of digit and speaker, and ``word_accuracy`` of the transcript, with the spread over seeds.
``train``     seconds of training; of the three models, their sum.
``speed``     seconds of audio per second of the pipeline that answers all three tasks, with batches of 8 files; the
              three models answer one after the other.

The data are those of the example, 420 / 60 / 60 rows, or a folder with its files and columns::

    OMP_NUM_THREADS=1 python benchmarks/listening.py --output listening.json
    OMP_NUM_THREADS=1 python benchmarks/listening.py --systems "one model, equal time"
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
from transformers import AutoFeatureExtractor
from transformers.utils import logging

from hf_multitask import (
    AudioClassification,
    AutomaticSpeechRecognition,
    MultiTaskModel,
    MultiTaskPipeline,
    MultiTaskTrainer,
    MultiTaskTrainingArguments,
)
from hf_multitask.modeling.sound import read_sound

EXAMPLE = Path(__file__).parent.parent / "examples" / "spoken_digits"
RATE, FILES = 8000, 8
TASKS = {
    "digit": AudioClassification(dataset="digits", label_column="text"),
    "speaker": AudioClassification(dataset="digits", label_column="speaker"),
    "transcript": AutomaticSpeechRecognition(dataset="digits"),
}
METRICS = {"digit": "accuracy", "speaker": "accuracy", "transcript": "word_accuracy"}
# The tasks of each model of a system, and its epochs by those of the others.
SYSTEMS = {
    "one model": ([list(TASKS)], 1),
    "one model, equal time": ([list(TASKS)], len(TASKS)),
    "three models": ([[name] for name in TASKS], 1),
}


def write_encoder(folder: Path, seed: int) -> str:
    """The encoder of the example, with the random weights of a seed."""
    spec = importlib.util.spec_from_file_location("make_encoder", EXAMPLE / "make_encoder.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.write_encoder(folder, seed)
    return str(folder)


def read_rows(folder: Path, most: int | None) -> dict[str, datasets.Dataset]:
    """The rows of each split, with absolute names of files."""
    found = {}
    for split in ("train", "test"):
        lines = (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines[:: max(1, len(lines) // (most or len(lines)))]]
        keep = [{"audio": str(folder / row["audio"]), "text": row["text"], "speaker": row["speaker"]} for row in rows]
        found[split] = datasets.Dataset.from_list(keep)
    return found


def train(
    names: Sequence[str], epochs: float, rows: Mapping[str, datasets.Dataset], seed: int, given: argparse.Namespace
) -> Any:
    """A trained model, its metrics on the test rows, and the seconds of training."""
    with tempfile.TemporaryDirectory() as scratch:
        encoder = write_encoder(Path(scratch) / "encoder", seed)
        processor = AutoFeatureExtractor.from_pretrained(encoder)
        trainer = MultiTaskTrainer(
            MultiTaskModel.from_backbone(encoder, tasks={name: TASKS[name] for name in names}),
            MultiTaskTrainingArguments(
                str(Path(scratch) / "out"),
                num_train_epochs=epochs,
                learning_rate=given.learning_rate,
                weight_decay=given.weight_decay,
                warmup_steps=given.warmup,
                per_device_train_batch_size=given.batch,
                per_device_eval_batch_size=30,
                seed=seed,
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                use_cpu=True,
                disable_tqdm=True,
            ),
            train_dataset={"digits": rows["train"]},
            eval_dataset={"digits": rows["test"]},
            processing_class=processor,
        )
        begin = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - begin
        metrics = trainer.evaluate()
        return (
            trainer.model.eval(),
            processor,
            {name: metrics[f"eval_{name}_{METRICS[name]}"] for name in names},
            seconds,
        )


def speed(pipes: Sequence[Any], files: Sequence[str]) -> float:
    """Seconds of audio per second, once each pipeline has answered for all files; the fastest of three runs."""
    audio = sum(len(read_sound(file, RATE).samples) for file in files) / RATE
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        for pipe in pipes:
            pipe(list(files), batch_size=FILES)
        times.append(time.perf_counter() - begin)
    return audio / min(times)


def measure(rows: Mapping[str, datasets.Dataset], seed: int, given: argparse.Namespace) -> dict[str, dict[str, float]]:
    """What one seed gives, by system."""
    found: dict[str, dict[str, float]] = {}
    for system in given.systems:
        groups, times = SYSTEMS[system]
        own: dict[str, float] = {"train": 0.0}
        pipes = []
        for names in groups:
            model, processor, metrics, seconds = train(names, given.epochs * times, rows, seed, given)
            pipes.append(MultiTaskPipeline(model=model, feature_extractor=processor))
            own |= metrics
            own["train"] += seconds
        own["speed"] = speed(pipes, rows["test"]["audio"])
        found[system] = own
    return found


def table(runs: Sequence[Mapping[str, Mapping[str, float]]]) -> str:
    """The means over seeds in Markdown, and of metrics the smallest and the largest value."""
    lines = ["| system | digit | speaker | transcript | training, s | audio, s per s |", "|---|---|---|---|---|---|"]
    for system in runs[0]:
        cells = []
        for name in TASKS:
            values = [run[system][name] for run in runs]
            cells.append(f"{statistics.mean(values):.3f} [{min(values):.3f}, {max(values):.3f}]")
        cells += [f"{statistics.mean(run[system][key] for run in runs):.0f}" for key in ("train", "speed")]
        lines.append(f"| {system} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=EXAMPLE / "data", help="folder with train.jsonl and test.jsonl")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--epochs", type=float, default=60, help="of each of the three models")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--weight-decay", type=float, default=0.0)
    parser.add_argument("--warmup", type=int, default=60, help="optimizer steps")
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--rows", type=int, help="rows of a split; all by default")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    given = parser.parse_args(words)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    rows = read_rows(given.data, given.rows)
    runs = []
    for seed in given.seeds:
        runs.append(measure(rows, seed, given))
        sys.stderr.write(f"seed {seed}: {json.dumps(runs[-1])}\n")
        if given.output:
            asked = {key: value for key, value in vars(given).items() if key not in ("data", "output")}
            given.output.write_text(json.dumps({"arguments": asked, "seeds": given.seeds, "runs": runs}, indent=2))
    sys.stdout.write(table(runs) + "\n")


if __name__ == "__main__":
    main()
