"""The share of padding in what the backbone reads, with padded and with packed rows.

The batches of an epoch of ``throughput.py`` are collated as training collates them, and the tokens that the backbone
would read are counted, from the inputs of its forward pass; no step is taken::

    python benchmarks/padding.py --data PATH --setting short
    python benchmarks/padding.py --data PATH --setting long

``random``              random mixed batches in one forward pass
``padded, CPU``         rows of similar length in a step, in up to four forward passes, at the cost of one on a CPU
``padded, accelerator`` the same at the cost of a forward pass on an accelerator
``packed``              ``attn_implementation="varlen"``
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from throughput import SETTINGS, arguments, silence
from transformers import AutoTokenizer, set_seed
from turns import asked

from hf_multitask import MultiTaskModel, MultiTaskTrainer, MultiTaskTrainingArguments
from hf_multitask.data.forwards import COST_ACCELERATOR, Forwards
from hf_multitask.modeling.backbone import resolve_backbone
from hf_multitask.modeling.packing import Packed

Figures = dict[str, dict[str, float]]


def count(model: MultiTaskModel, batches: Iterable[dict[str, Any]]) -> dict[str, float]:
    """The share of padding in an epoch, and the forward passes of a step."""
    real = read = forwards = steps = 0
    for batch in batches:
        steps += 1
        for given in batch["forwards"]:
            tokens = {key: given[key] for key in ("input_ids", "attention_mask")}
            real += int(tokens["attention_mask"].sum())
            if model.packs:
                packed = Packed.of(tokens["attention_mask"])
                tokens = packed.inputs(model.backbone.base_model, model.config.backbone_config, tokens)
            read += tokens["input_ids"].numel()
            forwards += 1
    return {"padding": 1 - real / read, "forwards_per_step": forwards / steps, "read": read, "steps": steps}


def main(words: Sequence[str] | None = None) -> Figures:
    """Count, print, and return the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with a folder per dataset")
    parser.add_argument("--setting", choices=sorted(SETTINGS), required=True)
    parser.add_argument("--batch", type=int, default=32, help="rows per step")
    given = asked(parser, words)
    tasks = SETTINGS[given.setting](given.data)
    path = resolve_backbone(given.backbone)
    tokenizer = AutoTokenizer.from_pretrained(path)
    figures: Figures = {}
    with tempfile.TemporaryDirectory() as out:
        set_seed(given.seed)
        model = MultiTaskModel.from_backbone(
            path, tasks={name: task for name, (task, _) in tasks.items()}, branches="none"
        )
        ours = MultiTaskTrainer(
            model=model,
            args=arguments(MultiTaskTrainingArguments, out, given),
            train_dataset={name: rows for name, (_, rows) in tasks.items()},
            processing_class=tokenizer,
        )
        silence(ours)
        loader: Any = ours.get_train_dataloader()
        loader.collate_fn.forwards, ours.plan.sampler.lengths = Forwards(None), None
        figures["random"] = count(model, loader)
        figures["padded, CPU"] = count(model, ours.get_train_dataloader())
        loader = ours.get_train_dataloader()
        loader.collate_fn.forwards = Forwards(COST_ACCELERATOR)
        figures["padded, accelerator"] = count(model, loader)
        model.set_attn_implementation("varlen")
        del ours.plan.forwards  # decided again, for packed rows
        figures["packed"] = count(model, ours.get_train_dataloader())
    print(f"setting {given.setting}, batch {given.batch}\n")
    print(f"{'rows':<20} {'padding':>8} {'tokens read':>12} {'forwards':>9} {'steps':>6}")
    for name, values in figures.items():
        print(
            f"{name:<20} {values['padding']:>8.1%} {values['read']:>12,} {values['forwards_per_step']:>9.2f} "
            f"{values['steps']:>6}"
        )
    if given.output:
        given.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return figures


if __name__ == "__main__":
    main()
