"""From the logits of one row to what a person reads, in the forms of Transformers' own pipelines."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import BatchEncoding

from .words import Place, groups, running_words, scheme_of, snapped

# For each token its word, None for special ones, and the characters it covers: (word, start, end).
TokenWords = list[tuple[int | None, int, int]]

# The task's dict, the logits of one row, its text and the words of its tokens, to what a person reads.
Decoder = Callable[[dict[str, Any], torch.Tensor, str, TokenWords], Any]

# Of a span: first and last unit, label, first character and the one behind the last.
Span = tuple[int, int, str, int, int]


def token_words(encoding: BatchEncoding) -> TokenWords:
    """The words that a fast tokenizer finds in the first row of an encoding made with ``return_offsets_mapping``."""
    offsets = encoding["offset_mapping"][0]
    return [(word, start, end) for word, (start, end) in zip(encoding.word_ids(0), offsets, strict=True)]


def is_bio(label_names: list[str]) -> bool:
    """Whether the labels mark spans in BIO: every one is ``O``, ``B-...`` or ``I-...``, and one begins a span."""
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


def spans_of(tags: Sequence[str], units: Sequence[Place], text: str | None = None) -> list[Span]:
    """The spans that the tags of units mark.

    Args:
        tags: one a unit.
        units: their places.
        text: of tokens that are units, so that a span leaves out punctuation which is a word of its own.
    """
    found = groups(tags)
    words = running_words(text) if text is not None and found else []
    spans = []
    for first, last, kind in found:
        start, end = units[first][0], units[last][1]
        if text is not None:
            start, end = snapped(text, words, units[first], units[last])
        spans.append((first, last, kind, start, end))
    return spans


def decode_units(
    task: dict[str, Any],
    logits_UC: torch.Tensor,
    units: Sequence[Place],
    placed: Sequence[bool],
    text: str,
    *,
    running: bool,
    words: Sequence[Place] | None,
) -> list[dict[str, Any]]:
    """As ``token-classification``: the spans of tags that mark some, or the tag of every unit.

    Args:
        task: the task's dict.
        logits_UC: of the token that speaks for each unit; anything for a unit that has none.
        units: their places.
        placed: whether a unit has a token.
        text: that the places are in.
        running: whether the units are tokens of running text.
        words: places of the words that were given as a list, whose numbers are given back; None for running text.
    """
    names = task["label_names"]
    scores, best = (values.tolist() for values in logits_UC.softmax(-1).max(-1))
    tags = [names[tag] if there else "O" for tag, there in zip(best, placed, strict=True)]
    answers: list[dict[str, Any]] = []
    if scheme_of(names) is None:
        for unit, (start, end) in enumerate(units):
            if placed[unit]:
                answer = {"entity": tags[unit], "score": scores[unit], "index": unit, "start": start, "end": end}
                answers.append({**answer, "word": text[start:end]})
    else:
        for first, last, kind, start, end in spans_of(tags, units, text if running else None):
            score = sum(scores[first : last + 1]) / (last + 1 - first)
            answer = {"entity_group": kind, "score": score, "word": text[start:end], "start": start, "end": end}
            answers.append(answer)
    if words is not None:
        for answer in answers:
            answer["word_indices"] = [
                number for number, (start, end) in enumerate(words) if start < answer["end"] and end > answer["start"]
            ]
    return answers


def decode_tokens(
    task: dict[str, Any], logits: torch.Tensor, text: str, token_words: TokenWords
) -> list[dict[str, Any]]:
    """As ``token-classification``: the spans of BIO labels, or the label of every word, by the words of its tokens.

    A word has the label of its first token. So answer models of format 1, whose words are the tokenizer's, and types of
    the user's own that name this function.
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
    found = groups([word["entity"] for word in words])
    return [_span(words[first : last + 1], kind, text) for first, last, kind in found]


def _span(words: list[dict[str, Any]], kind: str, text: str) -> dict[str, Any]:
    start, end = words[0]["start"], words[-1]["end"]
    score = sum(word["score"] for word in words) / len(words)
    return {"entity_group": kind, "score": score, "word": text[start:end], "start": start, "end": end}


DECODERS: dict[str, Decoder] = {
    "sequence-classification": decode_sequence,
    "token-classification": decode_tokens,
}
