"""What the scripts of all systems share: the rows, clocks, counts of tokens, and losses on held-out rows.

It imports no system, and a script is started with the path of a JSON file: ``started``, when its process began;
``result``, the file for its figures; ``rows``, the file with the rows of every task; and the settings of the run.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, TrainerCallback, TrainingArguments, set_seed
from transformers.utils import logging

LONGEST = 512  # tokens of a text


class Run:
    """The run that this process makes.

    Attributes:
        given: its settings.
        max_length: tokens of a text.
        tasks: by name, their ``kind``, ``labels`` and the columns of the rows for ``train`` and ``held_out``.
    """

    def __init__(self) -> None:
        self.given: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
        self.tasks: dict[str, Any] = json.loads(Path(self.given["rows"]).read_text(encoding="utf-8"))
        self.tokenizer = AutoTokenizer.from_pretrained(self.given["backbone"])
        self.max_length = min(LONGEST, self.tokenizer.model_max_length)
        self.figures: dict[str, Any] = {}
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        set_seed(self.given["seed"])

    def arguments(self, **values: Any) -> dict[str, Any]:
        """The training arguments of every system: one epoch at a constant learning rate."""
        common = {
            "output_dir": self.given["out"],
            "per_device_train_batch_size": self.given["batch"],
            "num_train_epochs": 1,
            "learning_rate": self.given["learning_rate"],
            "lr_scheduler_type": "constant",
            "logging_steps": 10,
            "save_strategy": "no",
            "eval_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
            "seed": self.given["seed"],
        }
        unknown = sorted(name for name in common if name not in TrainingArguments.__dataclass_fields__)
        if unknown:
            raise RuntimeError(f"`TrainingArguments` should have {', '.join(unknown)}. Use another Transformers.")
        return common | values

    def started(self) -> None:
        """Called when the first step or answer is there; later calls do nothing."""
        if "startup" not in self.figures:
            self.figures |= {"startup": time.time() - self.given["started"], "startup_cpu": time.process_time()}

    def finish(self, **figures: Any) -> None:
        """Write the figures, with the peak memory and the CPU seconds of this process until now."""
        whole = {"total_cpu": time.process_time(), "memory": peak()}
        self.figures = {**whole, **self.figures, **figures}
        Path(self.given["result"]).write_text(json.dumps(self.figures), encoding="utf-8")


class Meter(TrainerCallback):
    """Counts the seconds of training from its beginning to its end, and the tokens that backbones read.

    Args:
        run: of this process.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.figures = {"seconds": 0.0, "cpu": 0.0, "units": 0, "positions": 0, "forwards": 0, "steps": 0}

    def watch(self, module: torch.nn.Module) -> None:
        """Count what a module reads that is called with ``attention_mask``."""
        module.register_forward_pre_hook(
            lambda _module, _args, kwargs: self.count(kwargs["attention_mask"]), with_kwargs=True
        )

    def count(self, mask: torch.Tensor) -> None:
        """Count the tokens of a forward pass."""
        self.figures["units"] += int(mask.sum())
        self.figures["positions"] += mask.numel()
        self.figures["forwards"] += 1

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Begin to measure."""
        self.clock, self.cpu = time.perf_counter(), time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Count an optimizer step."""
        self.figures["steps"] += 1
        self.run.started()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Add what a training took."""
        self.figures["seconds"] += time.perf_counter() - self.clock
        self.figures["cpu"] += time.process_time() - self.cpu


def peak() -> float:
    """Peak main memory of this process in MiB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def tokens_of(run: Run, task: Mapping[str, Any], part: str, all_tokens: bool = False) -> list[dict[str, Any]]:
    """The encoded rows of a task, with labels as numbers; those of a word are at its first token or at all."""
    rows = task[part]
    if task["kind"] == "classification":
        encoded = run.tokenizer(rows["text"], truncation=True, max_length=run.max_length)
        labels: list[Any] = rows["label"]
    else:
        encoded = run.tokenizer(rows["tokens"], is_split_into_words=True, truncation=True, max_length=run.max_length)
        labels = []
        for number, tags in enumerate(rows["tags"]):
            words = encoded.word_ids(number)
            first = [at for at, word in enumerate(words) if word is not None and (all_tokens or words[at - 1] != word)]
            labels.append([-100] * len(words))
            for at in first:
                labels[-1][at] = tags[words[at]]
    return [
        {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": label}
        for ids, label in zip(encoded["input_ids"], labels, strict=True)
    ]


def held_out(run: Run, models: Mapping[str, torch.nn.Module]) -> dict[str, dict[str, float]]:
    """Mean cross-entropy and accuracy over the labels of held-out rows, by task."""
    found = {}
    for name, model in models.items():
        rows = sorted(tokens_of(run, run.tasks[name], "held_out"), key=lambda row: len(row["input_ids"]))
        loss = right = count = 0.0
        model.eval()
        for start in range(0, len(rows), 32):
            part = rows[start : start + 32]
            widest = len(part[-1]["input_ids"])
            ids, mask = torch.zeros(2, len(part), widest, dtype=torch.long)
            labels = torch.full((len(part), widest), -100)
            for number, row in enumerate(part):
                length = len(row["input_ids"])
                ids[number, :length], mask[number, :length] = torch.tensor(row["input_ids"]), 1
                labels[number, : length if isinstance(row["labels"], list) else 1] = torch.tensor(row["labels"])
            with torch.no_grad():
                logits = model(input_ids=ids, attention_mask=mask).logits
            flat = labels.flatten() if logits.dim() == 3 else labels[:, 0]
            scores = logits.flatten(0, -2)
            loss += torch.nn.functional.cross_entropy(scores, flat, ignore_index=-100, reduction="sum").item()
            right += (scores.argmax(-1) == flat).sum().item()
            count += (flat != -100).sum().item()
        found[name] = {"loss": loss / count, "accuracy": right / count}
    return found


def held_out_pairs(run: Run, backbone: torch.nn.Module) -> dict[str, dict[str, float]]:
    """Mean squared error between cosines of mean embeddings and scores of held-out pairs, by task."""
    found = {}
    backbone.eval()
    for name, task in run.tasks.items():
        rows, sides = task["held_out"], []
        for column in ("sentence1", "sentence2"):
            vectors = []
            for start in range(0, len(rows[column]), 32):
                read = run.tokenizer(rows[column][start : start + 32], padding=True, return_tensors="pt")
                with torch.no_grad():
                    states = backbone(**read).last_hidden_state
                vectors.append((states * read["attention_mask"][:, :, None]).sum(1))
            sides.append(torch.cat(vectors))
        errors = torch.nn.functional.cosine_similarity(*sides) - torch.tensor(rows["score"])
        found[name] = {"loss": errors.square().mean().item()}
    return found
