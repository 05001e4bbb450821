"""What each type of task reads of an input of the pipeline, and what it answers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from .decoding import DECODERS, TokenWords, decode_sequence, decode_tokens, decode_units, token_words
from .generation import generation_kwargs, languages
from .heads import IGNORE
from .inputs import Encoder, as_text, cut_rows, encode, one_at_a_time, rows_of, text_columns
from .spans import NO_TOKEN, answer_text, context_marks, windows
from .words import first_tokens, joined, running_words, token_units, trimmed

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Reading:
    """What a task reads of one input.

    Args:
        rows: model inputs of the texts, one or more, each under a key that is the same for tasks that read the same,
            which then share the pass of the backbone.
        rest: what the answer needs beside the logits.
    """

    rows: list[tuple[Any, dict[str, list[int]]]]
    rest: Any


class Reader:
    """Texts, and pairs of texts for tasks that take pairs; the answer is the type's decoder's."""

    def takes(self, task: Row) -> str:
        """What the task takes, in words."""
        return "single texts" if text_columns(dict(task))[1] is None else "pairs, {'text': ..., 'text_pair': ...}"

    def accepts(self, task: Row, row: Row, encoder: Encoder) -> bool:  # noqa: ARG002
        """Whether the task can answer for the input."""
        pair = text_columns(dict(task))[1] is not None
        return row.get("text") is not None and (row.get("text_pair") is not None) == pair

    def example(self, task: Row, row: Row) -> dict[str, Any]:
        """A row of the task's data as an input of the pipeline."""
        text, pair = text_columns(dict(task))
        return {"text": row[text], **({} if pair is None else {"text_pair": row[pair]})}

    def read(self, task: Row, row: Row, encoder: Encoder) -> Reading:
        """The input as model inputs."""
        text = as_text(row["text"])
        if row.get("text_pair") is not None or not encoder.tokenizer.is_fast:
            pair = None if row.get("text_pair") is None else as_text(row["text_pair"])
            rows, encoding = self._encode(task, encoder, [text], None if pair is None else [pair])
            words = token_words(encoding) if encoder.tokenizer.is_fast else []
            return Reading([(("text", text, pair, encoder.limit, encoder.language), rows[0])], (text, words))
        stride = task.get("stride")
        rows = text_windows(text, encoder, stride or 0)
        if stride is None:
            self._tell_cut(task, encoder, len(rows) > 1)
            rows = rows[:1]
        reads_words = DECODERS.get(task["type"]) is not decode_sequence
        return Reading(rows, (text, self._token_words(row["text"], text, encoder) if reads_words else []))

    def answer(self, task: Row, logits: torch.Tensor, rest: Any, model: Any, tokenizer: Any) -> Any:  # noqa: ARG002
        """What a person reads of the logits of one item."""
        return model.decode(task["name"], logits, *rest)

    @staticmethod
    def _token_words(value: Any, text: str, encoder: Encoder) -> TokenWords:
        """For each token of the first window its word, by the one notion of a word, for decoders of the user's own."""
        windows = encoder.windows(text)
        if encoder.format_version == 1:
            encoding, _ = encoder.encode_once([text])
            return token_words(encoding)
        units = (
            joined(value)[1]
            if isinstance(value, list | tuple)
            else running_words(text, encoder.tokenizer.all_special_tokens)
        )
        starts = sorted((token, unit) for unit, token in enumerate(first_tokens(windows.offsets, units)) if token >= 0)
        words: TokenWords = [(None, 0, 0)] * len(windows.rows[0]["input_ids"])
        place, current = 0, None
        for token in range(min(len(windows.offsets), len(words))):
            while place < len(starts) and starts[place][0] <= token:
                current = starts[place][1]
                place += 1
            start = windows.starts[0]
            if start <= token < start + windows.room:
                begin, end = trimmed(text, windows.offsets[token])
                words[windows.lead + token - start] = (current if end > begin else None, begin, end)
        return words

    def _encode(
        self, task: Row, encoder: Encoder, texts: list[str], pairs: list[str] | None = None
    ) -> tuple[list[Any], Any]:
        encoding, cut = encoder.encode_once(texts, pairs)
        self._tell_cut(task, encoder, cut)
        return rows_of(encoder.inputs(encoding)), encoding

    @staticmethod
    def _tell_cut(task: Row, encoder: Encoder, cut: bool) -> None:
        if cut:
            encoder.tell(
                f"Task '{task['name']}': an input is longer than {encoder.limit} tokens and was cut; this is said "
                "once. The task's max_length sets the limit"
                + (", and its stride has long texts read whole." if task["type"] == "sequence-classification" else ".")
            )


def text_windows(text: str, encoder: Encoder, stride: int) -> list[tuple[Any, dict[str, list[int]]]]:
    """The rows of a text, with keys by which tasks share them; the first row is the same whatever the stride."""
    key = ("text", text, None, encoder.limit, encoder.language)
    rows = encoder.windows(text, stride).rows
    return [(key if not number else (*key, stride, number), row) for number, row in enumerate(rows)]


def window_stride(task: Row, limit: int | None) -> int:
    """Tokens by which the windows of a long text overlap, for a task that tags: a quarter of a window unless given."""
    return task["stride"] if task.get("stride") is not None else (limit or 0) // 4


class TagReader(Reader):
    """A text, or a list of words, that is read to its end; the answer is a list of spans or tags.

    A list of words is what a task on words was trained on. Running text is split into words for it by
    :func:`running_words`. A task that was trained on spans of running text tags tokens.
    """

    def read(self, task: Row, row: Row, encoder: Encoder) -> Reading:
        """See :class:`Reader`."""
        if not encoder.tokenizer.is_fast:
            raise ValueError(
                f"Task '{task['name']}' needs a fast tokenizer, which knows where a token stands in the text. Give "
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
        windows = encoder.windows(text, stride)
        if running:
            units, tokens = token_units(text, windows.offsets)
        else:
            units = running_words(text, encoder.tokenizer.all_special_tokens) if words is None else words
            tokens = first_tokens(windows.offsets, units)
        home = windows.home()
        places = [home[token] if token >= 0 else (0, NO_TOKEN) for token in tokens]
        return Reading(text_windows(text, encoder, stride), (text, units, places, running, words))

    def answer(self, task: Row, logits: torch.Tensor, rest: Any, model: Any, tokenizer: Any) -> Any:
        """As ``token-classification``, aggregated for tags that mark spans."""
        if len(rest) == 2:
            return super().answer(task, logits, rest, model, tokenizer)
        text, units, places, running, words = rest
        logits_GLC = logits if logits.dim() == 3 else logits.unsqueeze(0)
        index = torch.tensor(places, dtype=torch.long).reshape(-1, 2).clamp(min=0)
        placed = [token >= 0 for _, token in places]
        logits_UC = logits_GLC[index[:, 0], index[:, 1]]
        return decode_units(dict(task), logits_UC, units, placed, text, running=running, words=words)


class QuestionReader(Reader):
    """A question and the context that holds its answer."""

    def takes(self, task: Row) -> str:  # noqa: ARG002
        """See :class:`Reader`."""
        return "{'question': ..., 'context': ...}"

    def accepts(self, task: Row, row: Row, encoder: Encoder) -> bool:  # noqa: ARG002
        """See :class:`Reader`."""
        return row.get("question") is not None and row.get("context") is not None

    def example(self, task: Row, row: Row) -> dict[str, Any]:
        """See :class:`Reader`."""
        return {"question": row[task["question_column"]], "context": row[task["context_column"]]}

    def read(self, task: Row, row: Row, encoder: Encoder) -> Reading:
        """See :class:`Reader`."""
        question, context = as_text(row["question"]), as_text(row["context"])
        encoding, cut = windows(encoder.tokenizer, question, context, encoder.limit, int(task.get("doc_stride", 128)))
        if cut:
            encoder.tell(
                f"Task '{task['name']}': a question takes more than half of {encoder.limit} tokens and was cut; this "
                "is said once."
            )
        marks = [context_marks(encoding, window) for window in range(len(encoding["input_ids"]))]
        rows = rows_of(encoder.inputs(encoding))
        key = ("qa", task["name"], question, context)
        return Reading(
            [((*key, number), row) for number, row in enumerate(rows)], (context, encoding["offset_mapping"], marks)
        )

    def answer(self, task: Row, logits: torch.Tensor, rest: Any, model: Any, tokenizer: Any) -> Any:  # noqa: ARG002
        """As ``question-answering``: ``{"score", "start", "end", "answer"}``."""
        context, offsets, marks = rest
        length = logits.shape[1]
        marks_GL = torch.tensor([row + [NO_TOKEN] * (length - len(row)) for row in marks])
        best = model.heads[task["name"]].best(logits[: len(marks)], marks_GL)
        text, start, end = answer_text(context, offsets, best)
        return {"score": float(best[3]), "start": start, "end": end, "answer": text}


class ChoiceReader(Reader):
    """A question and its choices."""

    def takes(self, task: Row) -> str:  # noqa: ARG002
        """See :class:`Reader`."""
        return "{'question': ..., 'choices': [...]}"

    def accepts(self, task: Row, row: Row, encoder: Encoder) -> bool:  # noqa: ARG002
        """See :class:`Reader`."""
        return row.get("question") is not None and row.get("choices") is not None

    def example(self, task: Row, row: Row) -> dict[str, Any]:
        """See :class:`Reader`."""
        return {"question": row[task["question_column"]], "choices": row[task["choices_column"]]}

    def read(self, task: Row, row: Row, encoder: Encoder) -> Reading:
        """See :class:`Reader`."""
        if not isinstance(row["choices"], list | tuple) or not row["choices"]:
            raise ValueError(f"Task '{task['name']}' needs a list of one choice or more. Found {row['choices']!r}.")
        choices = [as_text(choice) for choice in row["choices"]]
        question = as_text(row["question"])
        rows, _ = self._encode(task, encoder, [question] * len(choices), choices)
        key = ("choice", question, tuple(choices), encoder.limit)
        return Reading([((*key, number), row) for number, row in enumerate(rows)], choices)

    def answer(self, task: Row, logits: torch.Tensor, rest: Any, model: Any, tokenizer: Any) -> Any:  # noqa: ARG002
        """The best choice: its number, text and probability."""
        score, best = logits[: len(rest)].softmax(-1).max(-1)
        return {"index": int(best), "choice": rest[int(best)], "score": float(score)}


class SimilarityReader(Reader):
    """A text, or two of them."""

    def takes(self, task: Row) -> str:  # noqa: ARG002
        """See :class:`Reader`."""
        return "single texts and pairs"

    def accepts(self, task: Row, row: Row, encoder: Encoder) -> bool:  # noqa: ARG002
        """See :class:`Reader`."""
        return row.get("text") is not None

    def read(self, task: Row, row: Row, encoder: Encoder) -> Reading:
        """See :class:`Reader`."""
        texts = [as_text(row[key]) for key in ("text", "text_pair") if row.get(key) is not None]
        rows, _ = self._encode(task, encoder, texts)
        keys = [("text", text, None, encoder.limit, encoder.language) for text in texts]
        return Reading(list(zip(keys, rows, strict=True)), len(texts))

    def answer(self, task: Row, logits: torch.Tensor, rest: Any, model: Any, tokenizer: Any) -> Any:  # noqa: ARG002
        """The embedding of a text; the cosine of two."""
        if rest == 1:
            return {"embedding": logits[0].tolist()}
        return {"score": float(logits[0] @ logits[1])}


class MaskReader(Reader):
    """A text with one mask or more."""

    def takes(self, task: Row) -> str:  # noqa: ARG002
        """See :class:`Reader`."""
        return "single texts that hold the tokenizer's mask token"

    def accepts(self, task: Row, row: Row, encoder: Encoder) -> bool:
        """See :class:`Reader`."""
        return super().accepts(task, row, encoder) and str(encoder.tokenizer.mask_token) in as_text(row["text"])

    def read(self, task: Row, row: Row, encoder: Encoder) -> Reading:
        """See :class:`Reader`."""
        text = as_text(row["text"])
        (ids,), _ = self._encode(task, encoder, [text])
        return Reading([(("text", text, None, encoder.limit, encoder.language), ids)], ids["input_ids"])

    def labels(self, input_ids: torch.Tensor, tokenizer: Any) -> torch.Tensor:
        """Labels that ask for the logits of the masks only."""
        return torch.where(input_ids == tokenizer.mask_token_id, 0, IGNORE)

    def answer(self, task: Row, logits: torch.Tensor, rest: Any, model: Any, tokenizer: Any) -> Any:  # noqa: ARG002
        """As ``fill-mask``: the five likeliest words of the mask; a list of such lists where there are several."""
        places = [place for place, token in enumerate(rest) if token == tokenizer.mask_token_id]
        answers: list[list[dict[str, Any]]] = []
        for place, row in zip(places, logits.softmax(-1), strict=True):
            answers.append([])
            for score, token in zip(*(values.tolist() for values in row.topk(min(5, len(row)))), strict=True):
                ids = [*rest[:place], token, *rest[place + 1 :]]
                sequence = tokenizer.decode(ids, skip_special_tokens=len(places) == 1)
                answers[-1].append(
                    {"score": score, "token": token, "token_str": tokenizer.decode([token]), "sequence": sequence}
                )
        return answers[0] if len(answers) == 1 else answers


class WritingReader(Reader):
    """A text to go on from, or to make another of."""

    def takes(self, task: Row) -> str:  # noqa: ARG002
        """See :class:`Reader`."""
        return "single texts"

    def accepts(self, task: Row, row: Row, encoder: Encoder) -> bool:  # noqa: ARG002
        """See :class:`Reader`."""
        return row.get("text") is not None and row.get("text_pair") is None

    def read(self, task: Row, row: Row, encoder: Encoder) -> Reading:
        """See :class:`Reader`."""
        text, key = as_text(row["text"]), ("write", task["name"])
        if task["type"] == "text-generation":
            return Reading([((*key, text), self._prompt(task, text, encoder))], text)
        with one_at_a_time(), languages(encoder.tokenizer, task):
            (ids,), _ = self._encode(task, encoder, [(task.get("prefix") or "") + text])
        return Reading([((*key, text), ids)], text)

    def _prompt(self, task: Row, text: str, encoder: Encoder) -> dict[str, list[int]]:
        """The end of a text, as far as the backbone has positions for it and for what follows."""
        tokenizer, most = encoder.tokenizer, encoder.limit
        if most is not None and (positions := getattr(encoder.config, "max_position_embeddings", None)) is not None:
            most = min(most, positions - generation_kwargs(tokenizer, task, encoder.config)["max_new_tokens"])
        with one_at_a_time():
            side, tokenizer.truncation_side = tokenizer.truncation_side, "left"
            try:
                encoding = encode(tokenizer, [text], None, most)
                cut = any(cut_rows(tokenizer, encoding, [text], None, most))
            finally:
                tokenizer.truncation_side = side
        (row,) = rows_of(encoder.inputs(encoding))
        if cut:
            encoder.tell(
                f"Task '{task['name']}': an input is longer than {most} tokens, and is continued from its last ones; "
                "this is said once."
            )
        first = tokenizer.bos_token_id
        if first is not None and row["input_ids"][0] != first:  # as in training
            begin = {"input_ids": first, "attention_mask": 1}
            drop = int(len(row["input_ids"]) == most)
            row = {name: [begin.get(name, 0), *values[drop:]] for name, values in row.items()}
        return row

    def write(self, model: Any, task: Row, batch: dict[str, torch.Tensor], tokenizer: Any, **kwargs: Any) -> list[str]:
        """The texts that the model writes for some rows, padded on the left for a decoder."""
        given = {
            **generation_kwargs(tokenizer, task, model.config.backbone_config),
            "pad_token_id": tokenizer.pad_token_id,
            **kwargs,
        }
        names = ["input_ids", "attention_mask", *(["token_type_ids"] if task["type"] == "text-generation" else [])]
        known: dict[str, Any] = {key: batch[key] for key in names if key in batch}  # as in training
        ids = model.generate(**known, task=task["name"], **given)
        if task["type"] == "text-generation":
            ids = ids[:, batch["input_ids"].shape[1] :]
        return tokenizer.batch_decode(ids, skip_special_tokens=True)

    def text(self, task: Row, rest: str, written: str) -> Any:
        """As ``text-generation``, the text with its continuation, and as ``text2text-generation``, the new text."""
        return {"generated_text": (rest if task["type"] == "text-generation" else "") + written}


_WRITING = WritingReader()
_TEXTS = Reader()
_TAGS = TagReader()
READERS: dict[str, Reader] = {
    "token-classification": _TAGS,
    "question-answering": QuestionReader(),
    "multiple-choice": ChoiceReader(),
    "sentence-similarity": SimilarityReader(),
    "fill-mask": MaskReader(),
    "text-generation": _WRITING,
    "translation": _WRITING,
    "summarization": _WRITING,
    "text2text-generation": _WRITING,
}


def reader_of(task: Row) -> Reader:
    """The reader of a task's type; a type of the user's own that answers with tags reads as those do."""
    own = _TAGS if DECODERS.get(task["type"]) is decode_tokens else _TEXTS
    return READERS.get(task["type"], own)
