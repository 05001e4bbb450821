"""The card of an exported task: what it is, its labels, and how the stock classes load it."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .decoding import is_bio

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_TAGS = {"sequence-classification": "text-classification"}  # where the Hub has another name for a type

_PIPELINE = """from transformers import pipeline

answer = pipeline("{tag}", model="{name}"{arguments})
print(answer({example}))
"""
_MODEL = """import torch
from transformers import AutoTokenizer, {kind}

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = {kind}.from_pretrained("{name}")
"""
_USES = {
    "question-answering": """tokens = tokenizer("Who loved it?", "Ada Lovelace loved this place.", return_tensors="pt")
with torch.no_grad():
    output = model(**tokens)
start, end = int(output.start_logits.argmax()), int(output.end_logits.argmax())
print(tokenizer.decode(tokens["input_ids"][0, start : end + 1]))
""",
    "multiple-choice": """choices = ["this place.", "nothing."]
tokens = tokenizer(["Ada Lovelace loved"] * len(choices), choices, padding=True, return_tensors="pt")
with torch.no_grad():
    logits = model(**{name: value.unsqueeze(0) for name, value in tokens.items()}).logits
print(choices[int(logits.argmax())])
""",
    "sentence-similarity": """tokens = tokenizer(["Ada loved it.", "She liked it."], padding=True, return_tensors="pt")
with torch.no_grad():
    states = model(**tokens).last_hidden_state
print(states.shape)
""",
}
_TEXT2TEXT = """tokens = tokenizer({example}, return_tensors="pt")
print(tokenizer.decode(model.generate(**tokens)[0], skip_special_tokens=True))
"""


def export_card(
    task: Mapping[str, Any],
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
    tag = _TAGS.get(task["type"], task["type"])
    metadata = [
        f"library_name: {'sentence-transformers' if task['type'] == 'sentence-similarity' else 'transformers'}",
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


def _facts(task: Mapping[str, Any], pooling: str | None) -> list[str]:
    """What has to be known of the task beside its type: labels, pairs, pooling, what stands before every text."""
    facts = []
    if task.get("label_names"):
        facts.append("Labels: " + ", ".join(f"`{label}`" for label in task["label_names"]) + ".")
    if task["type"] == "sequence-classification" and task.get("text_pair_column"):
        facts.append('It reads pairs of texts: `{"text": ..., "text_pair": ...}`.')
    if pooling is not None:
        what = {"mean": "mean of the", "cls": "first of the", "last": "last of the"}[pooling]
        facts.append(
            f"An embedding is the {what} last layer's states, scaled to length 1, as sentence-transformers does."
        )
    if task.get("prefix"):
        facts.append(f"Every text begins with {json.dumps(task['prefix'], ensure_ascii=False)}.")
    return facts


def _use(
    task: Mapping[str, Any],
    stock: PreTrainedModel,
    tag: str,
    name: str,
    tokenizer: PreTrainedTokenizerBase | None,
) -> str:
    kind, text = task["type"], "Ada Lovelace loved this place."
    if kind in ("sequence-classification", "token-classification", "fill-mask", "text-generation"):
        arguments = ""
        if kind == "token-classification" and is_bio(task.get("label_names") or []):
            arguments = ', aggregation_strategy="first"'
        elif task.get("problem_type") == "multi_label_classification":
            arguments = ", top_k=None"
        if kind == "fill-mask":
            text = f"Ada Lovelace loved this {getattr(tokenizer, 'mask_token', None) or '[MASK]'}."
        elif kind == "text-generation":
            text = f"{getattr(tokenizer, 'bos_token', None) or ''}Ada Lovelace"
        example = json.dumps(text)
        if task.get("text_pair_column"):
            example = f'{{"text": {example}, "text_pair": "She liked it."}}'
        return _PIPELINE.format(tag=tag, name=name, arguments=arguments, example=example)
    use = _USES.get(kind)
    if use is None and stock.config.is_encoder_decoder:
        use = _TEXT2TEXT.format(example=json.dumps((task.get("prefix") or "") + text, ensure_ascii=False))
    return _MODEL.format(kind=type(stock).__name__, name=name) + "\n" + (use or "print(model)\n")
