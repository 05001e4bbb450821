"""Heads that are a native language model's own: what they read of it, their loss, and the texts that they answer with.

Legend as in ``heads``; T target tokens, V words of the vocabulary, M labeled tokens of all rows of a task.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from transformers import PreTrainedConfig, PreTrainedModel

from .aliases import Open, TaskDict, Values
from .chats import ASSISTANT, chat_template, is_chat, is_prompted, prompt_ids
from .examples import CHAT, ONE, TEXT, Example
from .generation import generation_kwargs, languages
from .heads import IGNORE, Head, at_least_float32
from .inputs import Encoder, as_text, cut_rows, encode, one_at_a_time, rows_of
from .native import States, check_language_model, language_logits
from .readers import Reader, Reading, Row


class LanguageHead(Head):
    """A head without layers of its own: the backbone is a native language model, and this reads its last layers.

    An item is a labeled token; its loss is the cross-entropy. Logits are computed at labeled tokens only.
    """

    language_model: ClassVar[str]

    @classmethod
    def outputs(cls, task: TaskDict) -> int:  # noqa: ARG003
        """The vocabulary is the backbone's."""
        return 1

    def build(self, task: TaskDict, config: PreTrainedConfig, pooling: str) -> None:  # noqa: ARG002
        """Check that the backbone has the language model."""
        check_language_model(task["name"], task["type"], self.language_model, config)

    def read(self, backbone: PreTrainedModel, states: States, labels: torch.Tensor | None) -> torch.Tensor:
        """Logits (M, V) of the labeled tokens, row by row, or of all, (N, T, V), where no labels are given."""
        hidden_NTD = cast(torch.Tensor, states.last_hidden_state)
        if labels is None:
            return language_logits(backbone, hidden_NTD.flatten(0, 1)).unflatten(0, hidden_NTD.shape[:2])
        return language_logits(backbone, hidden_NTD[self.targets(labels) != IGNORE])

    def targets(self, labels: torch.Tensor) -> torch.Tensor:
        """For each state, (N, T), the token that it is to predict."""
        return labels

    def dummy_labels(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Labels (N, L) with one labeled token, for a pass that only has to reach every weight."""
        labels = torch.full_like(input_ids, IGNORE)
        labels[:, -1] = 0
        return labels

    def items(self, labels: torch.Tensor) -> torch.Tensor:
        """Labeled tokens of each row, (N, T) to (N,)."""
        return (self.targets(labels) != IGNORE).sum(1)

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Logits (M, V) and labels (N, T), -100 where there is none, to (N,)."""
        targets_NT = self.targets(labels)
        known_NT = targets_NT != IGNORE
        losses_M = F.cross_entropy(at_least_float32(logits), targets_NT[known_NT], reduction="none")
        return losses_M.new_zeros(len(labels)).index_add(0, known_NT.nonzero()[:, 0], losses_M)

    def predictions(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The likeliest token at every labeled place, (N, T); -100 at the others."""
        known_NT = self.targets(labels) != IGNORE
        result = torch.full_like(labels, IGNORE)
        result[known_NT] = logits.argmax(-1)
        return result


class FillMaskHead(LanguageHead):
    """The words behind the mask."""

    language_model: ClassVar[str] = "masked"


class TextGenerationHead(LanguageHead):
    r"""The next word, by the chain rule :math:`P(w_1, ..., w_n) = \prod_i P(w_i \mid w_1, ..., w_{i-1})`."""

    language_model: ClassVar[str] = "causal"

    def targets(self, labels: torch.Tensor) -> torch.Tensor:
        """Every state predicts the next token."""
        return F.pad(labels[:, 1:], (0, 1), value=IGNORE)


class Text2TextHead(LanguageHead):
    """A text from a text: the decoder predicts the target token by token."""

    language_model: ClassVar[str] = "text2text"
    writes: ClassVar[bool] = True
    reads_decoder = True

    def decoder_ids(self, input_ids: torch.Tensor | None, labels: torch.Tensor | None) -> torch.Tensor | None:  # noqa: ARG002
        """The targets."""
        return labels

    def dummy_labels(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Targets of one token."""
        return torch.zeros_like(input_ids[:, :1])


_MASKED = Example(
    'f"Ada Lovelace loved this {multitask.tokenizer.mask_token}."',
    'f"Ada Lovelace loved this {tokenizer.mask_token}."',
)
_WRITTEN = replace(ONE, writes=True)


class MaskReader(Reader):
    """A text with one mask or more."""

    examples: ClassVar[tuple[Example, ...]] = (_MASKED,)
    answers_rows: ClassVar[bool] = False  # which hold no mask

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

    def labels(self, inputs: Mapping[str, torch.Tensor], rows: torch.Tensor, given: object) -> torch.Tensor:
        """See :class:`Reader`: the logits of the masks."""
        return torch.where(inputs["input_ids"][rows] == self.processor(given).mask_token_id, 0, IGNORE)

    def stock_example(self, task: Row, tokenizer: Open) -> tuple[str, str]:  # noqa: ARG002
        """See :class:`Reader`."""
        return TEXT.replace("place", getattr(tokenizer, "mask_token", None) or "[MASK]"), ""

    def answer(self, task: Row, logits: torch.Tensor, rest: Open, model: Open, tokenizer: Open) -> Open:  # noqa: ARG002
        """As ``fill-mask``: the five likeliest words of the mask; a list of such lists where there are several."""
        places = [place for place, token in enumerate(rest) if token == tokenizer.mask_token_id]
        answers: list[list[Values]] = []
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
    """A text to make another of."""

    input_names: ClassVar[tuple[str, ...]] = ("input_ids", "attention_mask")  # those that generate reads
    examples: ClassVar[tuple[Example, ...]] = (_WRITTEN,)
    writes: ClassVar[bool] = True

    def takes(self, task: Row) -> str:  # noqa: ARG002
        """See :class:`Reader`."""
        return "single texts"

    def accepts(self, task: Row, row: Row, encoder: Encoder) -> bool:  # noqa: ARG002
        """See :class:`Reader`."""
        return row.get("text") is not None and row.get("text_pair") is None

    def read(self, task: Row, row: Row, encoder: Encoder) -> Reading:
        """See :class:`Reader`."""
        text = as_text(row["text"])
        with one_at_a_time(), languages(encoder.tokenizer, task):
            (ids,), _ = self._encode(task, encoder, [(task.get("prefix") or "") + text])
        return Reading([(("write", task["name"], text), ids)], text)

    def write(
        self, model: Open, task: Row, batch: dict[str, torch.Tensor], tokenizer: Open, **kwargs: Any
    ) -> list[str]:
        """The texts that the model writes for some rows."""
        return tokenizer.batch_decode(self._written(model, task, batch, tokenizer, kwargs), skip_special_tokens=True)

    def _written(
        self, model: Open, task: Row, batch: dict[str, torch.Tensor], tokenizer: Open, kwargs: Values
    ) -> torch.Tensor:
        given = {
            **generation_kwargs(tokenizer, task, model.config.backbone_config),
            "pad_token_id": tokenizer.pad_token_id,
            **kwargs,
        }
        known: Values = {key: batch[key] for key in self.input_names if key in batch}  # as in training
        return model.generate(**known, task=task["name"], **given)

    def text(self, task: Row, rest: str, written: str) -> Open:  # noqa: ARG002
        """As ``text2text-generation``: the new text."""
        return {"generated_text": written}


class ContinuingReader(WritingReader):
    """A text or a chat to continue, padded on the left.

    What a prompt is follows from the task: for one that was trained on prompts, the tokens that the tokenizer makes of
    it, as in the pipeline of Transformers; else a text that begins with the beginning-of-text token.
    """

    input_names: ClassVar[tuple[str, ...]] = Reader.input_names
    examples: ClassVar[tuple[Example, ...]] = (_WRITTEN, CHAT)

    def columns(self, task: Row) -> dict[str, str]:
        """See :class:`Reader`."""
        column = task.get("messages_column")
        return super().columns(task) if column is None else {"messages": column}

    def example_of(self, task: Row) -> Example:
        """See :class:`Reader`."""
        return self.examples[task.get("messages_column") is not None]

    def example(self, task: Row, row: Row) -> Values:
        """See :class:`Reader`: a chat without the answer that the row has."""
        found = super().example(task, row)
        if is_chat(messages := found.get("messages")):
            places = [place for place, one in enumerate(messages) if one["role"] == ASSISTANT]
            found["messages"] = messages[: places[-1]] if places and places[-1] else messages
        return found

    def own_part(self, task: Row, given: Row, answer: Open) -> Open:
        """See :class:`Reader`: what is written after a prompt; of a chat as a whole its label is the whole chat."""
        written, prompt = answer["generated_text"], given.get("text")
        if prompt is None or task.get("prompt_column") is None:
            return answer
        return {"generated_text": written[len(prompt if is_chat(prompt) else as_text(prompt)) :]}

    def takes(self, task: Row) -> str:  # noqa: ARG002
        """See :class:`Reader`."""
        return "single texts, and chats where the tokenizer has a chat template"

    def accepts(self, task: Row, row: Row, encoder: Encoder) -> bool:
        """See :class:`Reader`."""
        if row.get("messages") is not None:
            return is_chat(row["messages"]) and chat_template(encoder.tokenizer) is not None
        return super().accepts(task, row, encoder)

    def read(self, task: Row, row: Row, encoder: Encoder) -> Reading:
        """See :class:`Reader`: the end of a text, as far as the backbone has positions for it and for what follows."""
        given = row["text"] if row.get("messages") is None else row["messages"]
        text = given if is_chat(given) else as_text(given)
        whole = is_chat(text) or is_prompted(task)
        inputs = self._prompt(task, text, encoder) if whole else self._begun(task, as_text(text), encoder)
        return Reading([(("write", task["name"], str(text)), inputs)], text)

    def _most(self, task: Row, encoder: Encoder) -> int | None:
        most = encoder.limit
        if most is not None and (positions := getattr(encoder.config, "max_position_embeddings", None)) is not None:
            new = generation_kwargs(encoder.tokenizer, task, encoder.config)["max_new_tokens"]
            most = min(most, positions - new)
        return most

    def _prompt(self, task: Row, prompt: Open, encoder: Encoder) -> dict[str, list[int]]:
        tokenizer, most = encoder.tokenizer, self._most(task, encoder)
        ids = prompt_ids(tokenizer, prompt)
        if not ids:  # as generate begins without a prompt
            ids = [next(one for one in (tokenizer.bos_token_id, tokenizer.eos_token_id, 0) if one is not None)]
        if most is not None and len(ids) > most:
            ids = ids[-most:]
            self._tell_continued(task, most, encoder)
        begin = {"input_ids": ids, "attention_mask": [1] * len(ids), "token_type_ids": [0] * len(ids)}
        (row,) = rows_of(encoder.inputs({name: [values] for name, values in begin.items()}))
        return row

    def _begun(self, task: Row, text: str, encoder: Encoder) -> dict[str, list[int]]:
        tokenizer, most = encoder.tokenizer, self._most(task, encoder)
        with one_at_a_time():
            side, tokenizer.truncation_side = tokenizer.truncation_side, "left"
            try:
                encoding = encode(tokenizer, [text], None, most)
                cut = any(cut_rows(tokenizer, encoding, [text], None, most))
            finally:
                tokenizer.truncation_side = side
        (row,) = rows_of(encoder.inputs(encoding))
        if cut:
            self._tell_continued(task, most, encoder)
        first = tokenizer.bos_token_id
        if first is not None and row["input_ids"][0] != first:  # as in training
            begin = {"input_ids": first, "attention_mask": 1}
            drop = int(len(row["input_ids"]) == most)
            row = {name: [begin.get(name, 0), *values[drop:]] for name, values in row.items()}
        return row

    @staticmethod
    def _tell_continued(task: Row, most: int | None, encoder: Encoder) -> None:
        encoder.tell(
            f"Task '{task['name']}': an input is longer than {most} tokens, and is continued from its last ones; "
            "this is said once."
        )

    def stock_example(self, task: Row, tokenizer: Open) -> tuple[Open, str]:
        """See :class:`Reader`."""
        if task.get("messages_column") is not None:
            return [{"role": "user", "content": TEXT}], ""
        begin = "" if is_prompted(task) else getattr(tokenizer, "bos_token", None) or ""
        return f"{begin}Ada Lovelace", ""

    def _written(
        self, model: Open, task: Row, batch: dict[str, torch.Tensor], tokenizer: Open, kwargs: Values
    ) -> torch.Tensor:
        return super()._written(model, task, batch, tokenizer, kwargs)[:, batch["input_ids"].shape[1] :]

    def text(self, task: Row, rest: Open, written: str) -> Open:  # noqa: ARG002
        """As ``text-generation``: the text with its continuation, or the chat with the answer.

        The last message of a chat is continued if it is the assistant's, and else answered.
        """
        if not is_chat(rest):
            return {"generated_text": rest + written}
        *before, last = rest
        if last["role"] == ASSISTANT:
            return {"generated_text": [*before, {**last, "content": last["content"] + written}]}
        return {"generated_text": [*rest, {"role": ASSISTANT, "content": written}]}
