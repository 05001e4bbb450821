"""Real seconds of audio per second of training, compared with plain Trainers that pad to the longest recording.

The task is speech recognition by CTC. The recordings are those of a folder, with a share of ``--long`` long ones, each
of which is made by joining 8 to 40 of them, with their transcripts. The script measures seconds of audio, without
padding, per second of whole optimizer steps of ``Trainer.train()``: loading, collation, forward, backward, clipping,
optimizer. Samples are computed before, the same for all. The systems, of one stock model of random weights each:

``ours``          MultiTaskTrainer, with one task.
``plain random``  a plain Trainer on ``Wav2Vec2ForCTC`` in random order, each batch padded to its longest recording.
``plain group``   the same with ``train_sampling_strategy="group_by_length"``.

Each runs ``--turns`` turns of ``--turn`` optimizer steps of ``--batch`` rows, in one process, in a random order from
``--seed``; one turn of each comes before, as warm-up. The output shows the median over turns and its quartiles, all
seconds of audio over all seconds (``overall``), and all of them over all CPU seconds (``by CPU``: for a machine with
other load, and only with ``OMP_NUM_THREADS=1``). ``group_by_length`` begins with its longest rows, so only a whole
epoch compares it fairly::

    python benchmarks/audio_throughput.py

``--data`` is a folder with ``train.jsonl``, with the columns ``audio`` and ``text``, and the audio files; by default
that of ``examples/spoken_digits``, which has digits of the Free Spoken Digit Dataset.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import soundfile
import torch
from rows import read_rows
from transformers import (
    Trainer,
    TrainingArguments,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
    set_seed,
)
from turns import Baton, Runner, Turn, asked, take_turns

from hf_multitask import (
    AutomaticSpeechRecognition,
    MultiTaskModel,
    MultiTaskTrainer,
    MultiTaskTrainingArguments,
)

DATA = Path(__file__).parent.parent / "examples" / "spoken_digits" / "data"
SYSTEMS = ["ours", "plain random", "plain group"]
FEWEST, MOST = 8, 40  # recordings of a long one


def recordings(data: Path, count: int, share: float, seed: int) -> tuple[list[dict[str, Any]], int]:
    """Rows of recordings, a share of them long, and their sampling rate."""
    draw = np.random.default_rng(seed)
    rows, rates = [], set()
    for row in read_rows(data):
        samples, rate = soundfile.read(data / row["audio"], dtype="float32")
        rates.add(rate)
        rows.append({"samples": samples, "text": row["text"]})
    (rate,) = rates
    made = []
    for number in range(count):
        several = int(draw.integers(FEWEST, MOST + 1)) if number < share * count else 1
        chosen = [rows[place] for place in draw.integers(0, len(rows), several)]
        audio = {"array": np.concatenate([one["samples"] for one in chosen]), "sampling_rate": rate}
        made.append({"audio": audio, "text": " ".join(one["text"] for one in chosen)})
    return [made[place] for place in draw.permutation(count)], rate


def save_encoder(folder: str, hidden: int, layers: int, seed: int) -> None:
    """A random speech encoder whose frames last 20 milliseconds at 8 kHz."""
    set_seed(seed)
    config = Wav2Vec2Config(
        conv_dim=(hidden // 2, hidden // 2, hidden),
        conv_kernel=(20, 8, 4),
        conv_stride=(10, 4, 4),
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=4 * hidden,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        layerdrop=0.0,
        mask_time_prob=0.0,
        ctc_zero_infinity=True,
    )
    Wav2Vec2Model(config).save_pretrained(folder)


def counted(trainer: Trainer) -> Callable[[Runner], None]:
    """Train a trainer with a runner, which counts the samples of its batches."""

    def train(runner: Runner) -> None:
        def seen(module: Any, args: Any, kwargs: dict[str, Any]) -> None:  # noqa: ARG001
            runner.count(kwargs["attention_mask"])

        trainer.model.register_forward_pre_hook(seen, with_kwargs=True)
        trainer.add_callback(Baton(runner))
        trainer.train()

    return train


def arguments(kind: type[TrainingArguments], out: str, given: argparse.Namespace, **values: Any) -> TrainingArguments:
    """The same arguments for every trainer; it trains until it is stopped."""
    common: dict[str, Any] = {
        "output_dir": tempfile.mkdtemp(dir=out),
        "per_device_train_batch_size": given.batch,
        "max_steps": 10**6,
        "learning_rate": 1e-4,
        "lr_scheduler_type": "constant",
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "use_cpu": True,
        "seed": given.seed,
    }
    return kind(**common | values)


def build(given: argparse.Namespace, out: str) -> tuple[dict[str, Runner], int]:
    """The runners by system, and the sampling rate."""
    rows, rate = recordings(given.data, given.rows, given.long, given.seed)
    extractor = Wav2Vec2FeatureExtractor(sampling_rate=rate, do_normalize=True, return_attention_mask=True)
    path = str(Path(out) / "encoder")
    save_encoder(path, given.hidden, given.layers, given.seed)
    set_seed(given.seed)
    model = MultiTaskModel.from_backbone(path, tasks={"transcript": AutomaticSpeechRecognition()})
    ours = MultiTaskTrainer(
        model,
        arguments(MultiTaskTrainingArguments, out, given),
        train_dataset={"transcript": datasets.Dataset.from_list(rows)},
        processing_class=extractor,
    )
    features = ours.train_dataset.datasets[0].rows.rename_column("labels:transcript", "labels")
    features = features.select_columns(["input_values", "labels"])
    features = features.add_column("length", [len(row) for row in features["input_values"]]).with_format("numpy")

    def collate(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        waves = [row["input_values"] for row in batch]
        symbols = [torch.tensor(row["labels"]) for row in batch]
        padded = extractor.pad({"input_values": waves}, padding=True, return_tensors="pt")
        return {**padded, "labels": torch.nn.utils.rnn.pad_sequence(symbols, True, -100)}

    def plain(**values: Any) -> Trainer:
        args = arguments(TrainingArguments, out, given, remove_unused_columns=False, **values)
        return Trainer(ours.model.task_model("transcript"), args, train_dataset=features, data_collator=collate)

    ready: dict[str, Callable[[], Trainer]] = {
        "ours": lambda: ours,
        "plain random": plain,
        "plain group": lambda: plain(train_sampling_strategy="group_by_length", length_column_name="length"),
    }
    runners = {}
    for name in SYSTEMS:
        if name == "ours" or name in given.systems:
            trainer = ready[name]()
            silence(trainer)
            runners[name] = Runner(name, counted(trainer))
    return runners, rate


def silence(trainer: Trainer) -> None:
    """Remove callbacks that print, so that only this script prints."""
    for callback in list(trainer.callback_handler.callbacks):
        kinds = {kind.__name__ for kind in type(callback).__mro__}
        if kinds & {"PrinterCallback", "PlanCallback", "ProgressCallback"}:
            trainer.remove_callback(type(callback))


def summary(runner: Runner, rate: int) -> dict[str, float]:
    """Results of one system, in seconds of audio."""
    turns = runner.turns[1:]
    whole = sum(turns, Turn())
    speeds = [turn.real / rate / turn.seconds for turn in turns]
    low, high = np.percentile(speeds, [25, 75])
    return {
        "median": statistics.median(speeds),
        "low": float(low),
        "high": float(high),
        "overall": whole.real / rate / whole.seconds,
        "by_cpu": whole.real / rate / whole.cpu,
        "padding": 1 - whole.real / whole.positions,
        "forwards_per_step": whole.forwards / whole.steps,
        "steps": whole.steps,
    }


def report(figures: dict[str, dict[str, float]]) -> str:
    """The table."""
    head = f"{'system':<14} {'audio s/s':>9} {'quartiles':>15} {'overall':>8} {'by CPU':>7}"
    lines = [f"{head} {'padding':>8} {'forwards':>9} {'steps':>6}"]
    for name, values in figures.items():
        quartiles = f"{values['low']:.1f} - {values['high']:.1f}"
        lines.append(
            f"{name:<14} {values['median']:>9.1f} {quartiles:>15} {values['overall']:>8.1f} {values['by_cpu']:>7.1f} "
            f"{values['padding']:>8.1%} {values['forwards_per_step']:>9.2f} {values['steps']:>6.0f}"
        )
    lines += ["", f"{'ours, as a multiple of':<24} {'medians':>9} {'overall':>9} {'by CPU':>9}"]
    for name in figures:
        if name != "ours":
            ratios = [figures["ours"][key] / figures[name][key] for key in ("median", "overall", "by_cpu")]
            lines.append(f"  {name:<22} " + " ".join(f"{ratio:>9.2f}" for ratio in ratios))
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
    """Measure, print, and return the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA, help="folder with train.jsonl and its recordings")
    parser.add_argument("--rows", type=int, default=480, help="rows of the training data")
    parser.add_argument("--long", type=float, default=0.1, help="share of long recordings")
    parser.add_argument("--turns", type=int, default=9, help="turns of each system, without warm-up")
    parser.add_argument("--turn", type=int, default=5, help="optimizer steps per turn")
    parser.add_argument("--batch", type=int, default=16, help="rows per step")
    parser.add_argument("--hidden", type=int, default=128, help="hidden size of the encoder")
    parser.add_argument("--layers", type=int, default=4, help="layers of the encoder")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=SYSTEMS, help="systems to run (default: all)")
    given = asked(parser, words)
    with tempfile.TemporaryDirectory() as out:
        runners, rate = build(given, out)
        take_turns(runners, given.turns, given)
    figures = {name: summary(runner, rate) for name, runner in runners.items()}
    print(f"\n{given.rows} rows, {given.long:.0%} long, batch {given.batch}, {torch.get_num_threads()} threads\n")
    print(report(figures))
    if given.output:
        given.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return figures


if __name__ == "__main__":
    main()
