"""Tags of the words of a text, and the spans that they mark: what is read, and what is answered."""

from collections.abc import Sequence

import torch

from .aliases import Open, TaskDict, Values
from .examples import TEXT
from .fitted import scaled
from .inputs import Encoder, as_text
from .readers import Reader, Reading, Row, TokenWords, text_windows, window_stride
from .schemes import ARGMAX, decoding_in, scheme_in
from .spans import NO_TOKEN
from .structure import Tagged
from .words import Place, first_tokens, groups, joined, running_words, snapped, token_units

# Of a span: first and last unit, label, first character and the one behind the last.
Span = tuple[int, int, str, int, int]


class TagReader(Reader):
    """A text, or a list of words, that is read to its end; the answer is a list of spans or tags.

    A list of words is what a task on words was trained on. Running text is split into words for it by
    :func:`running_words`. A task that was trained on spans of running text tags tokens.
    """

    def read(self, task: Row, row: Row, encoder: Encoder) -> Reading:
        """See :class:`Reader`."""
        if not encoder.tokenizer.is_fast:
            raise ValueError(
                f"Task '{task['name']}' needs a fast tokenizer, which gives the position of a token in the text. Give "
                "one, or name other tasks."
            )
        if encoder.format_version == 1:
            encoder.tell(
                "The model is of format 1, so its tags are read by the words of its tokenizer, and long texts are cut. "
                "To convert it, set model.config.format_version = 2 and save it."
            )
            return super().read(task, row, encoder)
        running = task.get("spans_column") is not None
        value = row["text"] if running or row.get("tokens") is None else row["tokens"]
        text, words = joined(value) if isinstance(value, list | tuple) and as_text(value) else (as_text(value), None)
        stride = window_stride(task, encoder.limit)
        windows, marks = encoder.windows(text, stride), encoder.tokenizer.all_special_tokens
        if running:
            units, tokens = token_units(text, windows.offsets)
        else:
            units = running_words(text, marks) if words is None else words
            tokens = first_tokens(windows.offsets, units)
        home = windows.home()
        places = [home[token] if token >= 0 else (0, NO_TOKEN) for token in tokens]
        return Reading(text_windows(text, encoder, stride), (text, units, places, running, words, marks))

    def stock_example(self, task: Row, tokenizer: Open) -> tuple[str, str] | None:  # noqa: ARG002
        """See :class:`Reader`."""
        grouped = is_bio(task.get("label_names") or []) and scheme_in(task) is not None
        return TEXT, ', aggregation_strategy="first"' if grouped else ""

    def stock_note(self, task: Row) -> str | None:
        """See :class:`Reader`."""
        if decoding_in(task) == ARGMAX:
            return None
        return (
            f"The multi-task model answers the best sequence of tags that {scheme_in(task)} allows. The pipeline below "
            "answers the best tag of each word instead, so it may find sequences that are not allowed, such as a span "
            "without a beginning."
        )

    def answer(self, task: Row, logits: torch.Tensor, rest: Open, model: Open, tokenizer: Open) -> Open:
        """As ``token-classification``, aggregated for tags that mark spans."""
        if len(rest) == 2:
            return super().answer(task, logits, rest, model, tokenizer)
        text, units, places, running, words, marks = rest
        logits_GLC = logits if logits.dim() == 3 else logits.unsqueeze(0)
        index = torch.tensor(places, dtype=torch.long).reshape(-1, 2).clamp(min=0)
        placed = [token >= 0 for _, token in places]
        logits_UC = scaled(task, logits_GLC[index[:, 0], index[:, 1]])
        tagged = model.heads[task["name"]].tagged(logits_UC.unsqueeze(0), torch.tensor([placed], dtype=torch.bool))
        read = {"running": running, "words": words, "marks": marks, "tagged": tagged}
        return decode_units(dict(task), logits_UC, units, placed, text, **read)


def is_bio(label_names: list[str]) -> bool:
    """Whether the labels mark spans in BIO: every one is ``O``, ``B-...`` or ``I-...``, and one begins a span."""
    return any(name.startswith("B-") for name in label_names) and all(
        name == "O" or name.startswith(("B-", "I-")) for name in label_names
    )


def spans_of(
    tags: Sequence[str], units: Sequence[Place], text: str | None = None, marks: Sequence[str] = ()
) -> list[Span]:
    """The spans that the tags of units mark.

    Args:
        tags: one a unit.
        units: their places.
        text: of tokens that are units, so that a span leaves out punctuation which is a word of its own.
        marks: what is a word of its own wherever it stands; see :func:`running_words`.
    """
    found = groups(tags)
    words = running_words(text, marks) if text is not None and found else []
    spans = []
    for first, last, kind in found:
        start, end = units[first][0], units[last][1]
        if text is not None:
            start, end = snapped(text, words, units[first], units[last])
        spans.append((first, last, kind, start, end))
    return spans


def decode_units(
    task: TaskDict,
    logits_UC: torch.Tensor,
    units: Sequence[Place],
    placed: Sequence[bool],
    text: str,
    *,
    running: bool,
    words: Sequence[Place] | None,
    marks: Sequence[str] = (),
    tagged: Tagged | None = None,
) -> list[Values]:
    """As ``token-classification``: the spans of tags that mark some, or the tag of every unit.

    Args:
        task: the task's dict.
        logits_UC: of the token that represents each unit; any values for a unit without one.
        units: their places.
        placed: whether a unit has a token.
        text: that the places are in.
        running: whether the units are tokens of running text.
        words: places of the words that were given as a list, whose numbers are given back; None for running text.
        marks: see :func:`spans_of`.
        tagged: the tags of the units that have a token, and their scores; those with the highest logit where None.
    """
    names = task["label_names"]
    scores, best = (values.tolist() for values in logits_UC.softmax(-1).max(-1))
    if tagged is not None:
        for unit, tag, score in zip(
            (unit for unit, there in enumerate(placed) if there), *(one.tolist() for one in tagged), strict=True
        ):
            best[unit], scores[unit] = tag, score
    tags = [names[tag] if there else "O" for tag, there in zip(best, placed, strict=True)]
    answers: list[Values] = []
    if scheme_in(task) is None:
        for unit, (start, end) in enumerate(units):
            if placed[unit]:
                answer = {"entity": tags[unit], "score": scores[unit], "index": unit, "start": start, "end": end}
                answers.append({**answer, "word": text[start:end]})
    else:
        for first, last, kind, start, end in spans_of(tags, units, text if running else None, marks):
            score = sum(scores[first : last + 1]) / (last + 1 - first)
            answer = {"entity_group": kind, "score": score, "word": text[start:end], "start": start, "end": end}
            answers.append(answer)
    if words is not None:
        for answer in answers:
            answer["word_indices"] = [
                number for number, (start, end) in enumerate(words) if start < answer["end"] and end > answer["start"]
            ]
    return answers


def decode_tokens(task: TaskDict, logits: torch.Tensor, text: str, token_words: TokenWords) -> list[Values]:
    """As ``token-classification``: the spans of BIO labels, or the label of every word, by the words of its tokens.

    A word has the label of its first token. So answer models of format 1, whose words are the tokenizer's, and types of
    the user's own that name this function.
    """
    if not token_words:
        raise ValueError(
            f"Task '{task['name']}' needs a fast tokenizer, which gives the position of a token in the text. Give "
            "one, or name other tasks."
        )
    names = task["label_names"]
    scores, best = (values.tolist() for values in logits.softmax(-1).max(-1))
    words: list[Values] = []
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


def _span(words: list[Values], kind: str, text: str) -> Values:
    start, end = words[0]["start"], words[-1]["end"]
    score = sum(word["score"] for word in words) / len(words)
    return {"entity_group": kind, "score": score, "word": text[start:end], "start": start, "end": end}
