"""Compares the shared model with six single-task models: CPU milliseconds for a batch of texts, and memory.

The single-task models are exported from the shared one, so that both compute the same logits, which is checked first.
Shared and single models take turns, each on the same texts, including tokenization, and the output has medians. With
one thread, CPU time is that of the clock on an idle core, and other programs change it little. Memory is what a new
process holds after it has loaded the models and answered one batch, minus what it held before::

    OMP_NUM_THREADS=1 python examples/router/compare.py examples/router/out --rounds 30 --onnx
"""

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import torch
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer
from transformers.utils import logging

from hf_multitask import MultiTaskModel

TEXTS = Path(__file__).parent / "data" / "prompts" / "test.jsonl"
Folders = Path | list[Path] | dict[str, Path]
Run = Callable[[list[str]], dict[str, torch.Tensor]]
Loader = Callable[..., Run]


def torch_model(folder: Path) -> Run:
    """Runs the saved shared model."""
    model, tokenizer = MultiTaskModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)

    def run(texts: list[str]) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            return dict(model(**tokenizer(texts, padding=True, return_tensors="pt")).logits)

    return run


def torch_models(folders: dict[str, Path]) -> Run:
    """Runs one stock model after the other, each with its own tokenizer, as six services do."""
    loaded = {}
    for name, folder in folders.items():
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        tags = config["architectures"][0].endswith("ForTokenClassification")
        kind = AutoModelForTokenClassification if tags else AutoModelForSequenceClassification
        loaded[name] = kind.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)

    def run(texts: list[str]) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            return {
                name: model(**tokenizer(texts, padding=True, return_tensors="pt")).logits
                for name, (model, tokenizer) in loaded.items()
            }

    return run


def graphs(folders: list[Path]) -> Run:
    """Runs the ONNX graphs in folders, each with one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    sessions = [onnxruntime.InferenceSession(str(folder / "model.onnx"), options) for folder in folders]
    tokenizers = [AutoTokenizer.from_pretrained(folder) for folder in folders]

    def run(texts: list[str]) -> dict[str, torch.Tensor]:
        logits = {}
        for session, tokenizer in zip(sessions, tokenizers, strict=True):
            tokens = tokenizer(texts, padding=True, return_tensors="np")
            names = [value.name for value in session.get_inputs()]
            outputs = session.run(None, {name: tokens[name].astype("int64") for name in names})
            found = zip((value.name for value in session.get_outputs()), outputs, strict=True)
            logits.update({name.removesuffix("_logits"): torch.from_numpy(value) for name, value in found})
        return logits

    return run


def memory(load: Loader, given: Folders, texts: list[str]) -> float:
    """MiB that this process gains by the models; for a new process."""
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    process = psutil.Process()
    before = process.memory_info().rss
    run = load(given)
    run(texts)
    return float(process.memory_info().rss - before) / 2**20


def compare(model: Path, folder: Path, texts: list[str], given: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Milliseconds by batch size, and MiB, of each system."""
    shared, tokenizer = MultiTaskModel.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    names = shared.config.task_names
    stock = {name: folder / "stock" / name for name in names}
    for name in names:
        shared.export_task(name, stock[name], tokenizer)
    systems: dict[str, tuple[Loader, Folders]] = {
        "one shared model": (torch_model, model),
        f"{len(names)} single-task models": (torch_models, stock),
    }
    if given.onnx:
        shared.export_onnx(folder / "shared", tokenizer)
        for name in names:
            shared.export_onnx(folder / "single" / name, tokenizer, tasks=[name])
        systems["one shared model, ONNX"] = (graphs, [folder / "shared"])
        systems[f"{len(names)} single-task models, ONNX"] = (graphs, [folder / "single" / name for name in names])

    figures: dict[str, dict[str, float]] = {name: {} for name in systems}
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for name, (load, what) in systems.items():
            figures[name]["MiB"] = pool.apply(memory, (load, what, texts[:8]))
    loaded = {name: load(what) for name, (load, what) in systems.items()}
    first, *others = (run(texts[:8]) for run in loaded.values())
    for other in others:
        for task in names:
            torch.testing.assert_close(other[task], first[task], rtol=0, atol=1e-4)
    for size in given.batch_sizes:
        seconds: dict[str, list[float]] = {name: [] for name in loaded}
        for number in range(given.rounds + 1):
            batch = [texts[(number * size + one) % len(texts)] for one in range(size)]
            for name, run in loaded.items():
                start = time.process_time()
                run(batch)
                seconds[name].append(time.process_time() - start)
        for name, values in seconds.items():
            figures[name][f"ms, batch {size}"] = 1000 * statistics.median(values[1:])  # the first one is a warm-up
    return figures


def main(words: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
    """Measure, print, and return the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path, help="folder of the trained model")
    parser.add_argument("--rounds", type=int, default=30, help="batches of each size, without a warm-up")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--texts", type=Path, default=TEXTS, help="JSON lines with the column text")
    parser.add_argument("--onnx", action="store_true", help="also as ONNX graphs; needs the extra onnx")
    given = parser.parse_args(words)
    texts = [json.loads(line)["text"] for line in given.texts.read_text(encoding="utf-8").splitlines()]
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        figures = compare(given.model, Path(folder), texts, given)
    columns = list(next(iter(figures.values())))
    lines = [["", *columns], *([name, *(f"{row[one]:.1f}" for one in columns)] for name, row in figures.items())]
    width = max(map(len, figures))
    for first, *cells in lines:
        sys.stdout.write(first.ljust(width) + "".join(cell.rjust(14) for cell in cells) + "\n")
    return figures


if __name__ == "__main__":
    main()
