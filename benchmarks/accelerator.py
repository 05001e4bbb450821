"""Speed and memory on one GPU: training, aggregators, balancers and the pipeline, in one run of at most ten minutes.

Nothing is downloaded: backbones have the shapes of bert-base and ModernBERT-base and random weights, and texts are
words of a vocabulary of its own. All is in bf16 in batches of ``--batch`` rows. The systems of a row take turns; what
they did in warm-up turns does not count::

    benchmarks/accelerator.sh --output accelerator.json

``training``: whole optimizer steps on three classification tasks with equally many rows, with short texts (``short``)
or with those of one task up to 512 tokens long (``long``). Warm-up is one epoch, and one epoch is measured.

``ours``                MultiTaskTrainer as it is by default.
``ours varlen``         the same with ``attn_implementation="varlen"``, on a GPU that has the kernel, and on CPUs.
``plain random``        a plain Trainer and a native model for every task, one after the other; random batches, padded
                        to a multiple of 8 tokens.
``plain group``         the same with ``train_sampling_strategy="group_by_length"``.
``ceiling``             a plain Trainer on rows that all have the mean length of the others.

``conflict``: forward and backward passes and the combination of gradients, of 2, 4 and 8 tasks with rows of one length,
as in ``conflict.py``. ``balancing``: whole optimizer steps, as in ``balancing.py``. ``inference``: texts through one
pipeline of 8 heads, and through 8 pipelines of one task, tokenization included.

The JSON file has the hardware, and is written whenever a row or a round of training is done, so that a run that is cut
off leaves what it has measured; rows for which there was no time are in ``left_out``. This prints the table of a file::

    python benchmarks/accelerator.py table accelerator.json

``--tiny`` runs every row with two small layers and a few steps, to see that it runs; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
import traceback
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import balancing
import conflict
import datasets
import serving
import torch
import transformers
from memory import peak
from overhead import make_rows
from ratios import median_ratio
from throughput import VARLEN, Tasks, arguments, build, run_trainer, silence
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    DataCollatorWithPadding,
    ModernBertConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    pipeline,
    set_seed,
)
from turns import Runner, Turn, quiet

from hf_multitask import SequenceClassification

Figures = dict[str, dict[str, Any]]  # by system

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
IDS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
# `varlen` has no dropout of attention weights, so no system has it.
SHAPES: dict[str, Callable[..., PreTrainedConfig]] = {
    "bert-base": lambda **values: BertConfig(attention_probs_dropout_prob=0.0, **IDS, **values),
    "ModernBERT-base": lambda **values: ModernBertConfig(cls_token_id=2, sep_token_id=3, **IDS, **values),
}
SMALL = {
    "vocab_size": 600,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
# By mixture, median and largest number of words of each task; lengths are log-normal.
MIXTURES = {
    "short": {"intent": (12, 64), "topic": (24, 64), "tone": (32, 128)},
    "long": {"intent": (12, 64), "topic": (24, 64), "article": (160, 510)},
}
SPREAD = 0.6  # standard deviation of the logarithm of a length
HEADS = 8
LEAST_CAPABILITY = (8, 0)  # of a GPU with the kernel of varlen
# Dense bf16 operations per second, from the data sheets of NVIDIA; the first name that is part of the GPU's counts.
PEAKS = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
}
# Of the table, by kind of row.
COLUMNS = {
    "training": {
        "tokens_per_s": "tokens/s",
        "overall": "overall",
        "ms": "ms per step",
        "padding": "padding",
        "forwards": "forwards",
        "of_best_plain": "of best plain",
        "of_ceiling": "of ceiling",
        "of_peak": "of peak",
        "steps": "steps",
        "steady_steps": "of them steady",
        "peak_mib": "MiB",
    },
    "conflict": {"ms": "ms per step", "over_none": "over none", "interval": "95 %", "peak_mib": "MiB"},
    "balancing": {"ms": "ms per step", "over_none": "over none", "interval": "95 %"},
    "inference": {"texts_per_s": "texts/s", "ms": "ms per round", "over_ours": "over ours", "interval": "95 %"},
}


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Args:
        batches: of each task in an epoch of training.
        turn: optimizer steps of a turn of training.
        length: words of a row, where all rows have one length.
        rounds: of the other rows.
        texts: of a round of inference.
        shorter: how many times shorter the rows of a mixture are.
    """

    batches: int = 16
    turn: int = 12
    length: int = 64
    rounds: int = 20
    texts: int = 1024
    shorter: int = 1


TINY = Size(batches=2, turn=6, length=8, rounds=2, texts=8, shorter=4)


def save_backbone(shape: str, folder: Path, *, tiny: bool) -> str:
    """Save a backbone with random weights, and a tokenizer whose tokens are words; return their folder."""
    path = str(folder / shape)
    config = SHAPES[shape](**(SMALL if tiny else {}))
    set_seed(0)
    AutoModel.from_config(config).save_pretrained(path)
    words = [_word(number) for number in range(config.vocab_size - len(SPECIAL))]
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = ["pad_token", "unk_token", "cls_token", "sep_token", "mask_token"]
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=512,
        model_input_names=["input_ids", "attention_mask"],
        **dict(zip(names, SPECIAL, strict=True)),
    ).save_pretrained(path)
    return path


def _word(number: int) -> str:
    """A word of four letters."""
    return "".join(chr(ord("a") + number // 26**place % 26) for place in range(4))


def make_mixture(mixture: str, tokenizer: Any, rows: int, seed: int, shorter: int) -> Tasks:
    """Tasks of one mixture, with equally many rows."""
    draw = random.Random(seed)
    words = sorted(word for word in tokenizer.get_vocab() if word.isalpha())
    tasks: Tasks = {}
    for name, (median, most) in MIXTURES[mixture].items():
        median, most = median // shorter, most // shorter
        lengths = [min(max(round(median * draw.lognormvariate(0, SPREAD)), 2), most) for _ in range(rows)]
        texts = [" ".join(draw.choices(words, k=length)) for length in lengths]
        labels = draw.choices(["no", "yes"], k=rows)
        tasks[name] = (SequenceClassification(), datasets.Dataset.from_dict({"text": texts, "label": labels}))
    return tasks


def count_weights(config: PreTrainedConfig) -> tuple[int, int]:
    """Weights of a backbone: all, and those that every token is multiplied with."""
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    sizes = {name: one.numel() for name, one in model.named_parameters()}
    return sum(sizes.values()), sum(
        size for name, size in sizes.items() if "embeddings" not in name and "pooler" not in name
    )


def flops_per_token(config: PreTrainedConfig, weights: int, lengths: Sequence[int]) -> float:
    """Operations that the backbone needs for a token, forward and backward, in rows of these lengths.

    They are those of its matrix products: six for every weight, and those of attention with the tokens of the row, or
    of the window.
    """
    attended = 0.0
    for kind in getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers:
        most = config.local_attention if kind == "sliding_attention" else max(lengths)
        attended += sum(length * min(length, most) for length in lengths) / sum(lengths)
    return 6 * weights + 12 * config.hidden_size * attended


class Memory:
    """Peak memory on the GPU while something runs, beyond what is there before; of the process without a GPU."""

    def __init__(self) -> None:
        self.most = 0.0

    def __enter__(self) -> Memory:
        """Begin."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated() / 2**20
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        self.most = max(self.most, peak() - (self.before if torch.cuda.is_available() else 0.0))


def ceiling(given: Namespace, out: str, tokenizer: Any, lengths: Sequence[int]) -> Runner:
    """A plain Trainer on as many rows with as many tokens, all of one length."""
    rows = make_rows(tokenizer, len(lengths), round(statistics.mean(lengths)) - 2, given.seed)
    encoded = datasets.Dataset.from_dict(
        dict(tokenizer(list(rows["text"]))) | {"labels": [int(label == "yes") for label in rows["label"]]}
    )
    set_seed(given.seed)
    trainer = Trainer(
        model=AutoModelForSequenceClassification.from_pretrained(given.backbone, num_labels=2),
        args=arguments(TrainingArguments, out, given),
        train_dataset=encoded,
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
    )
    silence(trainer)
    return Runner("ceiling", run_trainer(trainer))


def measure_training(given: Namespace, mixture: str) -> Iterator[Figures]:
    """Figures of all systems, after every round."""
    tokenizer = AutoTokenizer.from_pretrained(given.backbone)
    config = AutoConfig.from_pretrained(given.backbone)
    size: Size = given.size
    tasks = make_mixture(mixture, tokenizer, size.batches * given.batch, given.seed, size.shorter)
    lengths = [len(text.split()) + 2 for _, rows in tasks.values() for text in rows["text"]]
    lengths = [min(length, tokenizer.model_max_length) for length in lengths]
    weights, multiplied = count_weights(config)
    # Weights and what AdamW keeps of them, in float32; without a GPU, what is measured has them.
    resting = 12 * weights / 2**20 if torch.cuda.is_available() else 0.0
    given.systems = ["ours", "plain random", "plain group"]
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() >= LEAST_CAPABILITY:
        given.systems.append(VARLEN)
    with tempfile.TemporaryDirectory() as out:
        systems = build(given, out, tasks)
        systems["ceiling"] = [ceiling(given, out, tokenizer, lengths)]
        runners = [runner for members in systems.values() for runner in members]
        memory = {name: Memory() for name in systems}
        draw = random.Random(given.seed)
        warm = -(-len(tasks) * size.batches // size.turn)  # rounds of an epoch
        try:
            for number in range(2 * warm):
                for name, members in draw.sample(list(systems.items()), len(systems)):
                    for runner in members:
                        with memory[name] if number else Memory():  # the first turn also gets the states of AdamW
                            runner.take_turn(max(round(runner.part * size.turn), 2))
                if number < warm:
                    continue
                figures = {name: _training(members, warm) for name, members in systems.items()}
                _compare(figures)
                for name, own in figures.items():
                    own["peak_mib"] = memory[name].most + resting
                    own["padding"] = 0.0 if name == VARLEN else own["padding"]
                    if given.peak is not None:
                        read = [round(statistics.mean(lengths))] if name == "ceiling" else lengths
                        own["of_peak"] = own["tokens_per_s"] * flops_per_token(config, multiplied, read) / given.peak
                yield figures
                if time.perf_counter() > given.deadline:
                    break
        finally:
            for runner in runners:
                runner.stop()


def _training(runners: Sequence[Runner], warm: int) -> dict[str, Any]:
    """Figures of the rounds after warm-up; those of tasks are weighted by their share of the tokens.

    A step is steady if all shapes of its batches have occurred before, and it counts with the median of its shapes.
    """
    steady = overall = positions = seconds = 0.0
    steps = forwards = counted = 0
    for runner in runners:
        measured = sum(runner.turns[warm:], Turn())
        seen = {shape for turn in runner.turns[:warm] for step in turn.each for shape in step.shapes}
        chosen = []
        for step in measured.each:
            if seen.issuperset(step.shapes):
                chosen.append(step)
            seen.update(step.shapes)
        counted += len(chosen)
        chosen = chosen or measured.each
        by_shape: dict[Any, list[float]] = {}
        for step in chosen:
            by_shape.setdefault(step.shapes, []).append(step.seconds)
        taken = sum(len(one) * statistics.median(one) for one in by_shape.values())
        seconds += runner.part * taken / len(chosen)
        steady += runner.share * taken / sum(step.real for step in chosen)
        overall += runner.share * measured.seconds / measured.real
        positions += runner.share * measured.positions / measured.real
        steps += measured.steps
        forwards += measured.forwards
    return {
        "tokens_per_s": 1 / steady,
        "overall": 1 / overall,
        "ms": 1000 * seconds,
        "padding": 1 - 1 / positions,
        "forwards": forwards / steps,
        "steps": steps,
        "steady_steps": counted,
    }


def _compare(figures: Figures) -> None:
    """Add what every system has of the speed of the best plain one, and of the ceiling."""
    best = max(own["tokens_per_s"] for name, own in figures.items() if name.startswith("plain"))
    for own in figures.values():
        own["of_best_plain"] = own["tokens_per_s"] / best
        own["of_ceiling"] = own["tokens_per_s"] / figures["ceiling"]["tokens_per_s"]


def measure_conflict(given: Namespace, tasks: int) -> Iterator[Figures]:
    """Steps with aggregators, and without."""
    names = ["none", "pcgrad", "upgrad"]
    steps = {name: conflict.ours(given, tasks, name)[0] for name in names}
    conflict.take_turns(steps, 2)  # warm-up; the first step checks what separates the gradients
    taken = conflict.take_turns(steps, given.size.rounds)
    figures: Figures = {}
    for name in names:
        with Memory() as memory:
            steps[name]()
        ratio, *interval = median_ratio(taken[name]["seconds"], taken["none"]["seconds"])
        figures[name] = {
            "ms": 1000 * statistics.median(taken[name]["seconds"]),
            "over_none": ratio,
            "interval": interval,
            "peak_mib": memory.most,
            "steps": len(taken[name]["seconds"]),
        }
    yield figures


def measure_balancing(given: Namespace) -> Iterator[Figures]:
    """Steps with balancers, and without."""
    with tempfile.TemporaryDirectory() as out:
        runners = {name: balancing.build(name, given, out) for name in ("none", "uncertainty", "gradnorm", "famo")}
        found = balancing.run(runners, given)
    yield {
        name: {
            "ms": 1000 * own["seconds"]["step"],
            "over_none": own["seconds"]["ratio"],
            "interval": own["seconds"]["interval"],
            "steps": own["steps"],
        }
        for name, own in found.items()
    }


def measure_inference(given: Namespace) -> Iterator[Figures]:
    """Texts through one pipeline, and through one for every task."""
    model, tokenizer = serving.load(given, HEADS)
    device = 0 if torch.cuda.is_available() else -1
    model = model.to(torch.bfloat16).eval()
    own = pipeline("multitask", model=model, tokenizer=tokenizer, device=device)
    each = [
        pipeline("text-classification", model=one.to(torch.bfloat16), tokenizer=tokenizer, device=device)
        for one in map(model.task_model, model.config.task_names)
    ]
    size: Size = given.size
    texts = make_mixture("short", tokenizer, size.texts, given.seed, size.shorter)["topic"][1]["text"]
    ours, apart = "one model of 8 heads", "8 pipelines of one task"
    systems: dict[str, Callable[[Any], Any]] = {
        ours: lambda batch: own(batch, batch_size=given.batch),
        apart: lambda batch: [one(batch, batch_size=given.batch) for one in each],
    }
    clocks = serving.take_turns(systems, [list(texts)] * (1 + max(given.size.rounds // 4, 2)), given.seed)
    found = serving.summary(clocks, ours)["seconds"]
    yield {
        name: {
            "texts_per_s": size.texts / one["median"],
            "ms": 1000 * one["median"],
            "over_ours": one["ratio"],
            "interval": one["interval"],
        }
        for name, one in found.items()
    }


def plan(given: argparse.Namespace, folder: Path) -> Iterator[tuple[str, str, Callable[[], Iterator[Figures]]]]:
    """Name, kind and measurement of every row, the most important first."""
    gpu = torch.cuda.is_available()
    paths: dict[str, str] = {}

    def values(shape: str) -> Namespace:
        if shape not in paths:
            paths[shape] = save_backbone(shape, folder, tiny=given.tiny)
        common = {"use_cpu": not gpu, "bf16": True}
        return Namespace(
            **{key: getattr(given, key) for key in ("seed", "batch", "size", "peak", "deadline")},
            backbone=paths[shape],
            training=common,
            bf16=True,
            pad_to_multiple_of=8,
            rebalance=1,
            rows=given.batch,  # of a step of conflict.py
            length=given.size.length,
        )

    for shape, mixture in (
        ("bert-base", "long"),
        ("bert-base", "short"),
        ("ModernBERT-base", "long"),
        ("ModernBERT-base", "short"),
    ):
        yield (
            f"training, {shape}, {mixture}",
            "training",
            lambda shape=shape, mixture=mixture: measure_training(values(shape), mixture),
        )
    for tasks in (2, 4, 8):
        yield (
            f"conflict, bert-base, K = {tasks}",
            "conflict",
            lambda tasks=tasks: measure_conflict(values("bert-base"), tasks),
        )

    def of_balancing() -> Iterator[Figures]:
        one = values("bert-base")
        one.rows, one.tasks, one.turn = 4 * given.batch * 4, 4, 2 if given.tiny else 5
        one.steps = one.turn * given.size.rounds
        return measure_balancing(one)

    yield "balancing, bert-base, 4 tasks", "balancing", of_balancing
    yield "inference, bert-base, 8 heads", "inference", lambda: measure_inference(values("bert-base"))


def hardware() -> dict[str, Any]:
    """What the figures are of."""
    found: dict[str, Any] = {
        "device": "CPU",
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "device": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "memory_mib": properties.total_memory // 2**20,
            "cuda": torch.version.cuda,
        }
    return found


def known_peak(device: str) -> float | None:
    """Dense bf16 operations per second of a GPU by its name; None where it is not known."""
    return next((most for name, most in PEAKS.items() if name in device), None)


def write(path: Path, found: dict[str, Any]) -> None:
    """Write a file in one go, so that it can always be read."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    part.replace(path)


def table(found: dict[str, Any]) -> str:
    """The results as Markdown."""
    what = ", ".join(f"{key} {value}" for key, value in found["hardware"].items())
    lines = [f"{what}; bf16, batches of {found['batch']}, {found['seconds']:.0f} s"]
    if found["tiny"]:
        lines.append("These are the figures of `--tiny`, which mean nothing.")
    for kind, columns in COLUMNS.items():
        rows = {name: row for name, row in found["rows"].items() if row["kind"] == kind}
        shown = {
            key: head
            for key, head in columns.items()
            if any(key in own for row in rows.values() for own in row.get("systems", {}).values())
        }
        if not shown:
            continue
        lines += ["", f"| {kind} | system | {' | '.join(shown.values())} |", "|---" * (2 + len(shown)) + "|"]
        for name, row in rows.items():
            label = name.removeprefix(f"{kind}, ")
            for system, own in row.get("systems", {}).items():
                cells = [_cell(key, own[key]) if key in own else "" for key in shown]
                lines.append(f"| {label} | {system} | {' | '.join(cells)} |")
    failed = {name: row["problem"] for name, row in found["rows"].items() if "problem" in row}
    lines += [f"\n{name} failed: {problem}" for name, problem in failed.items()]
    if found["left_out"]:
        lines.append(f"\nNo time was left for: {'; '.join(found['left_out'])}.")
    return "\n".join(lines)


def _cell(key: str, value: Any) -> str:
    if key == "interval":
        return f"[{value[0]:.3f}, {value[1]:.3f}]"
    if key == "padding":
        return f"{value:.1%}"
    if key == "ms":
        return f"{value:.2f}"
    if isinstance(value, int):
        return str(value)
    return f"{value:,.0f}" if key in ("tokens_per_s", "overall", "peak_mib", "texts_per_s") else f"{value:.3f}"


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Measure all rows, and write the file after every one."""
    began = time.perf_counter()
    given.deadline = began + 60 * given.minutes
    given.size = TINY if given.tiny else Size()
    facts = hardware()
    given.peak = given.peak * 1e12 if given.peak is not None else known_peak(facts["device"])
    found: dict[str, Any] = {"hardware": facts, "tiny": given.tiny, "batch": given.batch, "peak": given.peak}
    found |= {"seconds": 0.0, "rows": {}, "left_out": []}
    with tempfile.TemporaryDirectory() as folder:
        for name, kind, work in plan(given, Path(folder)):
            if time.perf_counter() > given.deadline:
                found["left_out"].append(name)
            else:
                row: dict[str, Any] = {"kind": kind}
                found["rows"][name] = row
                try:
                    for figures in work():
                        row["systems"] = figures
                        found["seconds"] = time.perf_counter() - began
                        write(given.output, found)
                except Exception as problem:  # the others may still be measured
                    traceback.print_exc()
                    row["problem"] = f"{type(problem).__name__}: {problem}"
                gc.collect()
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
            found["seconds"] = time.perf_counter() - began
            write(given.output, found)
            print(f"{found['seconds']:.0f} s: {name}", flush=True)
    return found


def main(words: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, or read a file; print the table, and return the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", nargs="?", choices=["run", "table"], default="run")
    parser.add_argument("file", nargs="?", type=Path, help="results of which to print the table")
    parser.add_argument("--output", type=Path, default=Path("accelerator.json"), help="JSON file for the results")
    parser.add_argument("--minutes", type=float, default=8.5, help="after which no other row is begun")
    parser.add_argument("--batch", type=int, default=64, help="rows per step, a multiple of 8")
    parser.add_argument("--peak", type=float, help="dense bf16 TFLOPS of the GPU, where it is not known by its name")
    parser.add_argument("--tiny", action="store_true", help="small models and few steps, to see that it runs")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(words)
    if given.what == "table":
        if given.file is None:
            parser.error("table needs the file of a run")
        found = json.loads(given.file.read_text(encoding="utf-8"))
    else:
        quiet()
        found = measure(given)
    print(f"\n{table(found)}")
    return found


if __name__ == "__main__":
    sys.exit(any("problem" in row for row in main()["rows"].values()))
