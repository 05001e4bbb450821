"""Text translation and speech recognition in one small encoder-decoder that begins with random weights.

``heart`` learns 64 pairs of sentences and 64 recordings by heart, with a BART and with a T5: the share of the texts
that the model writes exactly, and the losses at the start, in the middle and at the end. ``alone`` trains a BART on
translation and speech recognition, and one of the same weights on translation alone, with as many steps and rows of
translation per step: chrF on rows that neither has seen. ``PATH`` is a folder with a folder per
dataset, of which ``multi30k_en_de`` and ``fsdd`` are read::

    OMP_NUM_THREADS=1 python benchmarks/joint.py heart --data PATH
    OMP_NUM_THREADS=1 python benchmarks/joint.py alone --data PATH
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
from rows import read_rows
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModel, BartConfig, PreTrainedTokenizerFast, T5Config, set_seed

from hf_multitask import (
    AutomaticSpeechRecognition,
    MultiTaskModel,
    MultiTaskPipeline,
    MultiTaskTrainer,
    MultiTaskTrainingArguments,
    Translation,
)

SUBSAMPLER = {
    "sampling_rate": 8000,
    "num_mel_bins": 40,
    "strides": [2, 2],
    "kernel_sizes": [5, 5],
    "channels": [128, 128],
}
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
TASKS = {
    "translation": Translation(max_target_length=64),
    "transcript": AutomaticSpeechRecognition(max_target_length=8),
}


def make_tokenizer(texts: Sequence[str], size: int) -> PreTrainedTokenizerFast:
    """Pieces of the words of some texts, by byte-pair encoding."""
    pieces = Tokenizer(models.BPE(unk_token="<unk>"))
    pieces.pre_tokenizer, pieces.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    pieces.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=size, special_tokens=list(SPECIAL)))
    pieces.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), SPECIAL, strict=True))
    inputs = ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=pieces, model_max_length=128, model_input_names=inputs, **names)


def backbone(family: str, vocabulary: int, dropout: float) -> Any:
    """A random model of two layers on each side."""
    if family == "t5":
        return AutoModel.from_config(
            T5Config(
                vocab_size=vocabulary,
                d_model=128,
                d_kv=32,
                d_ff=256,
                num_layers=2,
                num_heads=4,
                dropout_rate=dropout,
                decoder_start_token_id=0,
                **ENDS,
            )
        )
    sizes = {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in _SIZES.items()}
    return AutoModel.from_config(
        BartConfig(
            vocab_size=vocabulary,
            d_model=128,
            dropout=dropout,
            scale_embedding=True,
            max_position_embeddings=128,
            decoder_start_token_id=2,
            forced_eos_token_id=None,
            **ENDS,
            **sizes,
        )
    )


_SIZES = {"layers": 2, "attention_heads": 4, "ffn_dim": 256}


def load(data: Path, split: str, rows: int | None = None) -> dict[str, datasets.Dataset]:
    """The rows of a split by task, as many as given of each."""
    found = {"translation": read_rows(data / "multi30k_en_de", split), "transcript": read_rows(data / "fsdd", split)}
    for row in found["transcript"]:
        row["audio"] = str(data / "fsdd" / row["audio"])
    picked = {name: of_task[:rows] for name, of_task in found.items()}
    if rows is not None:  # recordings are sorted by digit
        picked["transcript"] = found["transcript"][:: max(len(found["transcript"]) // rows, 1)][:rows]
    columns = {"translation": ("source", "target"), "transcript": ("audio", "text")}
    return {
        name: datasets.Dataset.from_list([{column: row[column] for column in columns[name]} for row in of_task])
        for name, of_task in picked.items()
    }


def train(
    family: str,
    data: dict[str, datasets.Dataset],
    tokenizer: Any,
    folder: Path,
    *,
    dropout: float,
    **arguments: Any,
) -> tuple[MultiTaskTrainer, float]:
    """A model that is trained on the tasks of the data, and the seconds that it took."""
    set_seed(arguments["seed"])
    backbone(family, len(tokenizer), dropout).save_pretrained(folder / "backbone")
    tokenizer.save_pretrained(folder / "backbone")
    tasks = {name: TASKS[name] for name in data}
    model = MultiTaskModel.from_backbone(
        str(folder / "backbone"), tasks=tasks, subsampler=SUBSAMPLER if "transcript" in data else None
    )
    quiet = {"report_to": "none", "save_strategy": "no", "use_cpu": True, "disable_tqdm": True}
    trainer = MultiTaskTrainer(
        model,
        MultiTaskTrainingArguments(str(folder / "out"), **quiet, **arguments),
        train_dataset=data,
        processing_class=tokenizer,
    )
    start = time.perf_counter()
    trainer.train()
    return trainer, time.perf_counter() - start


def exact(trainer: MultiTaskTrainer, data: dict[str, datasets.Dataset]) -> dict[str, float]:
    """The share of the texts of each task that the pipeline writes exactly."""
    pipeline = MultiTaskPipeline(model=trainer.model.eval(), tokenizer=trainer.processing_class, batch_size=32)
    texts = pipeline(list(data["translation"]["source"]))
    sounds = pipeline([{"audio": file} for file in data["transcript"]["audio"]])
    written = {
        "translation": [answer["translation"]["generated_text"] for answer in texts],
        "transcript": [answer["transcript"]["text"] for answer in sounds],
    }
    wanted = {"translation": data["translation"]["target"], "transcript": data["transcript"]["text"]}
    return {
        name: statistics.mean(
            float(one == " ".join(other.split())) for one, other in zip(written[name], wanted[name], strict=True)
        )
        for name in written
    }


def heart(given: argparse.Namespace) -> dict[str, Any]:
    """A model of each family by seed: exact matches of what it was trained on, and losses on the way."""
    data = load(given.data, "train", given.rows or 64)
    texts = [*data["translation"]["source"], *data["translation"]["target"], *data["transcript"]["text"]]
    tokenizer, steps, found = make_tokenizer(texts, 4000), given.steps or 800, {}
    for family in given.families:
        runs = []
        for seed in given.seeds:
            with tempfile.TemporaryDirectory() as folder:
                trainer, seconds = train(
                    family,
                    data,
                    tokenizer,
                    Path(folder),
                    dropout=0.0,
                    max_steps=steps,
                    learning_rate=given.learning_rate,
                    warmup_steps=min(60, steps // 2),
                    per_device_train_batch_size=32,
                    logging_steps=max(steps // 40, 1),
                    seed=seed,
                )
                logs = [entry for entry in trainer.state.log_history if "translation_loss" in entry]
                places = {"start": 0, "middle": len(logs) // 2, "end": len(logs) - 1}
                losses = {
                    name: {place: logs[number][f"{name}_loss"] for place, number in places.items()} for name in data
                }
                runs.append({"seed": seed, "exact": exact(trainer, data), "losses": losses, "seconds": seconds})
                print(f"RESULT {family} {json.dumps(runs[-1])}", flush=True)
        found[family] = runs
    lines = [["backbone", "task", "exact match", "loss at the start", "in the middle", "at the end"]]
    for family, runs in found.items():
        for name in data:
            losses = [spread([run["losses"][name][place] for run in runs], 3) for place in ("start", "middle", "end")]
            lines.append([family, name, spread([run["exact"][name] for run in runs], 3), *losses])
    print(markdown(lines))
    return found


def alone(given: argparse.Namespace) -> list[dict[str, Any]]:
    """The joint model beside translation alone, by seed, on held-out rows."""
    whole = load(given.data, "train")
    sentences = whole["translation"].select(range(min(given.rows or 2000, len(whole["translation"]))))
    data = {"translation": sentences, "transcript": whole["transcript"]}
    held_out = load(given.data, "test")
    texts = [*sentences["source"], *sentences["target"], *whole["transcript"]["text"]]
    tokenizer, steps, runs = make_tokenizer(texts, 4000), given.steps or 2000, []
    for seed in given.seeds:
        for name in ("joint", "alone"):
            own = data if name == "joint" else {"translation": data["translation"]}
            with tempfile.TemporaryDirectory() as folder:
                trainer, seconds = train(
                    "bart",
                    own,
                    tokenizer,
                    Path(folder),
                    dropout=0.1,
                    max_steps=steps,
                    learning_rate=given.learning_rate,
                    warmup_steps=min(100, steps // 2),
                    per_device_train_batch_size=32 * len(own),
                    sampling="uniform",
                    logging_steps=max(steps // 10, 1),
                    seed=seed,
                )
                seen = max(entry.get("translation_rows", 0) for entry in trainer.state.log_history)
                metrics = trainer.evaluate({key: held_out[key] for key in own}, metric_key_prefix="test")
            keys = ("translation_chrf", "translation_bleu", "translation_loss", "transcript_word_accuracy")
            measured = {key: metrics[f"test_{key}"] for key in keys if f"test_{key}" in metrics}
            runs.append({"seed": seed, "model": name, "translation_rows": seen, **measured, "seconds": seconds})
            print(f"RESULT {json.dumps(runs[-1])}", flush=True)
    lines = [["model", "chrF of translation", "its loss", "word accuracy of recordings", "rows of translation"]]
    for name in ("joint", "alone"):
        of = [run for run in runs if run["model"] == name]
        heard = spread([run["transcript_word_accuracy"] for run in of], 3) if name == "joint" else "-"
        chrf, loss = (spread([run[f"translation_{key}"] for run in of], 3) for key in ("chrf", "loss"))
        lines.append([name, chrf, loss, heard, f"{of[0]['translation_rows']:,}"])
    print(markdown(lines))
    return runs


def spread(values: Sequence[float], digits: int) -> str:
    """The mean of some values, with the least and the greatest."""
    mean, least, most = statistics.mean(values), min(values), max(values)
    return f"{mean:.{digits}f}" + ("" if len(values) == 1 else f" [{least:.{digits}f}, {most:.{digits}f}]")


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table, the first line as its head."""
    head, *rest = ("| " + " | ".join(line) + " |" for line in lines)
    return "\n".join([head, "|" + "---|" * len(lines[0]), *rest])


def main(words: Sequence[str] | None = None) -> Any:
    """Run one of the two, print its table, and write its figures as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("heart", "alone"))
    parser.add_argument("--data", type=Path, required=True, help="folder with a folder per dataset")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--families", nargs="+", choices=("bart", "t5"), default=["bart", "t5"], help="of `heart`")
    parser.add_argument("--steps", type=int, help="default: 800 of `heart`, 2,000 of `alone`")
    parser.add_argument("--rows", type=int, help="of a task by heart (default: 64), or of translation (2,000)")
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    given = parser.parse_args(words)
    found = {"heart": heart, "alone": alone}[given.what](given)
    if given.output is not None:
        given.output.write_text(json.dumps(found, indent=2), encoding="utf-8")
    return found


if __name__ == "__main__":
    main()
