"""What each type of task reads of an input of the pipeline, and what it answers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers.utils import logging

from .decoding import token_words
from .generation import generation_kwargs, languages
from .heads import IGNORE
from .inputs import Encoder, as_text, cut_rows, encode, text_columns
from .spans import NO_TOKEN, answer_text, context_marks, windows

logger = logging.get_logger(__name__)

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Reading:
    """What a task reads of one input.

    Args:
        key: the same for tasks that read the same, which then share a pass of the backbone.
        rows: model inputs of the texts, one or more.
        rest: what the answer needs beside the logits.
    """

    key: Any
    rows: list[dict[str, list[int]]]
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

    def read(self, task: Row, row: Row, encoder: Encoder) -> Reading:  # noqa: ARG002
        """The input as model inputs."""
        text = as_text(row["text"])
        pair = None if row.get("text_pair") is None else as_text(row["text_pair"])
        rows, encoding = self._encode(encoder, [text], None if pair is None else [pair])
        words = token_words(encoding) if encoder.tokenizer.is_fast else []
        return Reading(("text", text, pair, encoder.limit, encoder.language), rows, (text, words))

    def answer(self, task: Row, logits: torch.Tensor, rest: Any, model: Any, tokenizer: Any) -> Any:  # noqa: ARG002
        """What a person reads of the logits of one item."""
        return model.decode(task["name"], logits, *rest)

    def _encode(self, encoder: Encoder, texts: list[str], pairs: list[str] | None = None) -> tuple[list[Any], Any]:
        encoding, cut = encoder.encode_once(texts, pairs)
        if cut:
            logger.warning(f"An input is longer than {encoder.limit} tokens and was cut.")
        return rows_of(encoder.inputs(encoding)), encoding


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
        encoding, _ = windows(encoder.tokenizer, question, context, encoder.limit, int(task.get("doc_stride", 128)))
        marks = [context_marks(encoding, window) for window in range(len(encoding["input_ids"]))]
        rest = context, encoding["offset_mapping"], marks
        return Reading(("qa", task["name"], question, context), rows_of(encoder.inputs(encoding)), rest)

    def answer(self, task: Row, logits: torch.Tensor, rest: Any, model: Any, tokenizer: Any) -> Any:
        """As ``question-answering``: ``{"score", "start", "end", "answer"}``."""
        context, offsets, marks = rest
        length = logits.shape[1]
        left = tokenizer.padding_side == "left"
        filled = [[NO_TOKEN] * (length - len(row)) for row in marks]
        marks_GL = torch.tensor([pad + row if left else row + pad for pad, row in zip(filled, marks, strict=True)])
        best = model.heads[task["name"]].best(logits[: len(marks)], marks_GL)
        if left and best[1] >= 0:
            best[1:3] -= len(filled[int(best[0])])
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
        rows, _ = self._encode(encoder, [question] * len(choices), choices)
        return Reading(("choice", question, tuple(choices), encoder.limit), rows, choices)

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

    def read(self, task: Row, row: Row, encoder: Encoder) -> Reading:  # noqa: ARG002
        """See :class:`Reader`."""
        texts = [as_text(row[key]) for key in ("text", "text_pair") if row.get(key) is not None]
        rows, _ = self._encode(encoder, texts)
        if len(texts) == 1:
            return Reading(("text", texts[0], None, encoder.limit, encoder.language), rows, 1)
        return Reading(("texts", *texts, encoder.limit), rows, 2)

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

    def read(self, task: Row, row: Row, encoder: Encoder) -> Reading:  # noqa: ARG002
        """See :class:`Reader`."""
        text = as_text(row["text"])
        rows, _ = self._encode(encoder, [text])
        return Reading(("text", text, None, encoder.limit, encoder.language), rows, rows[0]["input_ids"])

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
        text = as_text(row["text"])
        if task["type"] == "text-generation":
            return Reading(("write", task["name"], text), [self._prompt(task, text, encoder)], text)
        with languages(encoder.tokenizer, task):
            rows, _ = self._encode(encoder, [(task.get("prefix") or "") + text])
        return Reading(("write", task["name"], text), rows, text)

    def _prompt(self, task: Row, text: str, encoder: Encoder) -> dict[str, list[int]]:
        """The end of a text, as far as the backbone has positions for it and for what follows."""
        tokenizer, most = encoder.tokenizer, encoder.limit
        if most is not None and (positions := getattr(encoder.config, "max_position_embeddings", None)) is not None:
            most = min(most, positions - generation_kwargs(tokenizer, task, encoder.config)["max_new_tokens"])
        side, tokenizer.truncation_side = tokenizer.truncation_side, "left"
        try:
            encoding = encode(tokenizer, [text], None, most)
            cut = any(cut_rows(tokenizer, encoding, [text], None, most))
        finally:
            tokenizer.truncation_side = side
        (row,) = rows_of(encoder.inputs(encoding))
        if cut:
            logger.warning(f"An input is longer than {most} tokens, and is gone on from its last ones.")
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
        known = {key: batch[key] for key in ("input_ids", "attention_mask") if key in batch}
        ids = model.generate(**known, task=task["name"], **given)
        if task["type"] == "text-generation":
            ids = ids[:, batch["input_ids"].shape[1] :]
        return tokenizer.batch_decode(ids, skip_special_tokens=True)

    def text(self, task: Row, rest: str, written: str) -> Any:
        """As ``text-generation``, the text with its continuation, and as ``text2text-generation``, the new text."""
        return {"generated_text": (rest if task["type"] == "text-generation" else "") + written}


_WRITING = WritingReader()
_TEXTS = Reader()
READERS: dict[str, Reader] = {
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
    """The reader of a task's type."""
    return READERS.get(task["type"], _TEXTS)


def rows_of(inputs: Mapping[str, list[list[int]]]) -> list[dict[str, list[int]]]:
    """Lists by name of an input to the inputs of single rows."""
    return [dict(zip(inputs, values, strict=True)) for values in zip(*inputs.values(), strict=True)]
