"""The card of an exported task: what it is, its labels, and how the stock classes load it."""

import json
import re
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .aliases import Settings
from .examples import PAIR, TEXT
from .export_answers import answer_code, answer_facts
from .kinds import kind_of

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")

_PIPELINE = """from transformers import pipeline

answer = pipeline("{tag}", model="{name}"{arguments})
print(answer({example}))
"""
_MODEL = """import torch
from transformers import AutoTokenizer, {kind}

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = {kind}.from_pretrained("{name}")
"""
_TEXT2TEXT = """tokens = tokenizer({example}, return_tensors="pt")
print(tokenizer.decode(model.generate(**tokens)[0], skip_special_tokens=True))
"""


def export_card(
    task: Settings,
    stock: PreTrainedModel,
    *,
    name: str,
    backbone: str | None,
    tokenizer: PreTrainedTokenizerBase | None,
    pooling: str | None = None,
) -> str:
    """The text of README.md.

    Args:
        task: the task's dict.
        stock: the exported model.
        name: what the model is loaded by.
        backbone: Hub id or path of the backbone.
        tokenizer: saved beside it.
        pooling: of embeddings.
    """
    kind = kind_of(task)
    tag = kind.stock or kind.hub or task["type"]
    metadata = [
        f"library_name: {'sentence-transformers' if kind.head.stock_is_backbone else 'transformers'}",
        f"pipeline_tag: {tag}",
    ]
    origin = f"a `{stock.config.model_type}` backbone"
    if backbone and _HUB_ID.fullmatch(backbone) and not Path(backbone).exists():
        metadata.append(f"base_model: {json.dumps(backbone)}")
        origin = f"[{backbone}](https://huggingface.co/{backbone})"
    parts = [
        "---\n" + "\n".join(metadata) + "\n---",
        f"# {name}",
        f"`{type(stock).__name__}` for {tag}, fine-tuned from {origin}.",
        *_facts(task, pooling),
        "## Use",
        f"```python\n{_use(task, stock, tag, name, tokenizer)}```",
    ]
    return "\n\n".join(parts) + "\n"


def _facts(task: Settings, pooling: str | None) -> list[str]:
    """What a user needs to know about the task beside its type: labels, pairs, pooling, and the prefix."""
    facts = []
    if task.get("label_names"):
        facts.append("Labels: " + ", ".join(f"`{label}`" for label in task["label_names"]) + ".")
    if kind_of(task).reader.example_of(task) is PAIR:
        facts.append('It reads pairs of texts: `{"text": ..., "text_pair": ...}`.')
    if pooling is not None:
        what = {"mean": "mean of the", "cls": "first of the", "last": "last of the"}[pooling]
        facts.append(
            f"An embedding is the {what} last layer's states, scaled to length 1, as sentence-transformers does."
        )
    if (note := kind_of(task).reader.stock_note(task)) is not None:
        facts.append(note)
    if task.get("prefix"):
        facts.append(f"Every text begins with {json.dumps(task['prefix'], ensure_ascii=False)}.")
    if pooling is not None and task.get("prompt"):
        prompt = json.dumps(task["prompt"], ensure_ascii=False)
        facts.append(f"Every text begins with {prompt}, which sentence-transformers adds by itself.")
    if pooling is not None and task.get("matryoshka_dims"):
        dims = ", ".join(map(str, sorted(task["matryoshka_dims"], reverse=True)))
        facts.append(f"The first {dims} dimensions are trained as embeddings of their own (`truncate_dim`).")
    return [*facts, *answer_facts(task)]


def _use(
    task: Settings,
    stock: PreTrainedModel,
    tag: str,
    name: str,
    tokenizer: PreTrainedTokenizerBase | None,
) -> str:
    kind = kind_of(task)
    asked = kind.reader.stock_example(task, tokenizer) if kind.hub else None
    if asked is not None:
        example = json.dumps(asked[0])
        if task.get("text_pair_column"):
            example = f'{{"text": {example}, "text_pair": "She liked it."}}'
        decided = answer_code(task, tag, name, example) if "problem_type" in task else None
        return decided or _PIPELINE.format(tag=tag, name=name, arguments=asked[1], example=example)
    use = kind.reader.stock_code
    if use is None and stock.config.is_encoder_decoder:
        use = _TEXT2TEXT.format(example=json.dumps((task.get("prefix") or "") + TEXT, ensure_ascii=False))
    return _MODEL.format(kind=type(stock).__name__, name=name) + "\n" + (use or "print(model)\n")
