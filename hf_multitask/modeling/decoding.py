"""From the logits of one row to what a person reads, in the forms of Transformers' own pipelines."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import BatchEncoding

# For each token its word, None for special ones, and the characters it covers: (word, start, end).
TokenWords = list[tuple[int | None, int, int]]

# The task's dict, the logits of one row, its text and the words of its tokens, to what a person reads.
Decoder = Callable[[dict[str, Any], torch.Tensor, str, TokenWords], Any]


def token_words(encoding: BatchEncoding) -> TokenWords:
    """The words of the first row of a fast tokenizer's encoding, made with ``return_offsets_mapping``."""
    offsets = encoding["offset_mapping"][0]
    return [(word, start, end) for word, (start, end) in zip(encoding.word_ids(0), offsets, strict=True)]


def is_bio(label_names: list[str]) -> bool:
    """Whether the labels mark spans: every one is ``O``, ``B-...`` or ``I-...``, and one begins a span."""
    return any(name.startswith("B-") for name in label_names) and all(
        name == "O" or name.startswith(("B-", "I-")) for name in label_names
    )


def decode_sequence(task: dict[str, Any], logits: torch.Tensor, _: str, __: TokenWords) -> Any:
    """As ``text-classification``: the best label and its score; all labels of a label set, the likeliest first.

    A regression's score is the number itself, and a list of numbers where the task has several.
    """
    names = task.get("label_names") or ["LABEL_0"]
    if task.get("problem_type") == "regression":
        values = [{"label": name, "score": value} for name, value in zip(names, logits.tolist(), strict=True)]
        return values[0] if len(values) == 1 else values
    if task.get("problem_type") == "multi_label_classification":
        scores = logits.sigmoid().tolist()
        values = [{"label": name, "score": score} for name, score in zip(names, scores, strict=True)]
        return sorted(values, key=lambda value: -value["score"])
    score, best = logits.softmax(-1).max(-1)
    return {"label": names[int(best)], "score": float(score)}


def decode_tokens(
    task: dict[str, Any], logits: torch.Tensor, text: str, token_words: TokenWords
) -> list[dict[str, Any]]:
    """As ``token-classification``: the spans of BIO labels, or the label of every word.

    A word is what the tokenizer splits texts into before it cuts them to pieces, and has the label of its first token,
    which is the token that training labels.
    """
    if not token_words:
        raise ValueError(
            f"Task '{task['name']}' needs a fast tokenizer, which knows where a token stands in the text. Give one, or "
            "name other tasks."
        )
    names = task["label_names"]
    scores, best = (values.tolist() for values in logits.softmax(-1).max(-1))
    words: list[dict[str, Any]] = []
    last = None
    for token, (word, start, end) in enumerate(token_words):
        if word is None or not text[start:end].strip():
            continue
        if word == last:
            words[-1]["end"] = end
        else:
            start += len(text[start:end]) - len(text[start:end].lstrip())
            label = names[best[token]]
            words.append({"entity": label, "score": scores[token], "index": token, "start": start, "end": end})
        last = word
    if not is_bio(names):
        return [word | {"word": text[word["start"] : word["end"]]} for word in words]
    return [_span(group, text) for group in _groups(words)]


def _groups(words: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Words of one span each: it begins at ``B-``, or at an ``I-`` that continues no span of its type."""
    groups: list[list[dict[str, Any]]] = []
    previous = "O"
    for word in words:
        mark, _, kind = word["entity"].partition("-")
        if mark == "B" or (mark == "I" and previous.partition("-")[2] != kind):
            groups.append([word])
        elif mark == "I":
            groups[-1].append(word)
        previous = word["entity"]
    return groups


def _span(words: list[dict[str, Any]], text: str) -> dict[str, Any]:
    start, end = words[0]["start"], words[-1]["end"]
    return {
        "entity_group": words[0]["entity"].partition("-")[2],
        "score": sum(word["score"] for word in words) / len(words),
        "word": text[start:end],
        "start": start,
        "end": end,
    }


DECODERS: dict[str, Decoder] = {
    "sequence-classification": decode_sequence,
    "token-classification": decode_tokens,
}
