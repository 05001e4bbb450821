"""Prompts and their answers, in the formats of TRL: which tokens a row has, and which of them train."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..modeling.chats import ASSISTANT, is_chat, marks_assistant, prompt_ids, prompt_text, rendered, tokens_of
from ..modeling.heads import IGNORE
from ..modeling.inputs import as_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..modeling.aliases import Function
    from .base import Task
    from .columns import Cells, Columns

PROMPT, COMPLETION, MESSAGES = "prompt_column", "completion_column", "messages_column"
_FORMAT = "a list of messages, each with 'role' and 'content'"
# How rows are reported that a further column marks, by its kind.
REMARKS = {
    "spent": "have no token of the answer within this limit and do not count",
    "apart": "have a prompt whose last token changes when the answer follows, as after a space at its end; prompt and "
    "answer are tokenized apart, as the pipeline reads the prompt. Move such a space to the answer",
}


@dataclass
class Prompted:
    """A row.

    Args:
        ids: all tokens of prompt and answer.
        trains: which of them are the answer's; None in a row without an answer.
        apart: whether the two are tokenized apart.
        spent: whether no token of the answer is left.
    """

    ids: list[int]
    trains: list[bool] | None
    apart: bool = False
    spent: bool = False

    def cut(self, limit: int | None) -> bool:
        """Keep the first ``limit`` tokens, and say whether there were more."""
        long = limit is not None and len(self.ids) > limit
        if long:
            self.ids = self.ids[:limit]
        if self.trains is not None:
            self.trains = self.trains[: len(self.ids)]
            if not any(self.trains[1:]):  # nothing predicts the first token
                self.trains, self.spent = None, True
        return long

    @property
    def labels(self) -> list[int] | None:
        """The tokens that train, -100 for the others."""
        if self.trains is None:
            return None
        return [token if own else IGNORE for token, own in zip(self.ids, self.trains, strict=True)]


def check_prompted(task: Task, given: dict[str, object]) -> None:
    """Check the arguments of a task on prompts, as far as they depend on each other.

    Args:
        task: the task.
        given: its arguments on columns and blocks, the usual ones as None.

    Raises:
        ValueError: they contradict each other.
    """
    for name in (PROMPT, COMPLETION, MESSAGES):
        if given[name] is not None and (not isinstance(given[name], str) or not given[name]):
            raise task.error(f"`{name}` should be one column. Found `{name} = {given[name]!r}`.")
    for name, other in ((PROMPT, COMPLETION), (COMPLETION, PROMPT)):
        if given[name] is not None and given[other] is None:
            raise task.error(f"`{name}` needs `{other}`. Found `{name} = {given[name]!r}` alone. Set `{other}`.")
    found = next((name for name in (PROMPT, MESSAGES) if given[name] is not None), None)
    if found is None:
        return
    for name in (MESSAGES, "text_column", "block_size"):
        if name != found and given[name] is not None:
            raise task.error(
                f"`{found}` and `{name}` exclude each other. Found `{found} = {given[found]!r}` and "
                f"`{name} = {given[name]!r}`. Leave out one."
            )


def read_prompted(
    task: Task, rows: Columns, indices: Sequence[int], tokenizer: PreTrainedTokenizerBase, split: str
) -> list[Prompted]:
    """Rows of prompts and completions, or of messages.

    Raises:
        ValueError: a row has another format, or the chat template does not say where the answer is; the message names
            the row.
    """
    arguments = task.to_dict()
    if arguments[MESSAGES] is not None:
        reader = _Rows(task, indices, tokenizer, split)
        return [reader.chat(place, cell) for place, cell in enumerate(rows[arguments[MESSAGES]])]
    prompts, answers = rows[arguments[PROMPT]], rows[arguments[COMPLETION]]
    return _Rows(task, indices, tokenizer, split).pairs(prompts, answers)


class _Rows:
    """A batch of rows.

    Args:
        task: that reads them.
        indices: of the rows in their dataset.
        tokenizer: of the backbone.
        split: for messages.
    """

    def __init__(self, task: Task, indices: Sequence[int], tokenizer: PreTrainedTokenizerBase, split: str) -> None:
        self.task, self.indices, self.tokenizer, self.split = task, indices, tokenizer, split

    def pairs(self, prompts: Cells, answers: Cells) -> list[Prompted]:
        """Prompts with their answers."""
        return [self._pair(place, *pair) for place, pair in enumerate(zip(prompts, answers, strict=True))]

    def _pair(self, place: int, prompt: object, answer: object) -> Prompted:
        tokenizer = self.tokenizer
        if answer is None:
            asked = [] if prompt is None else self._made(place, lambda: prompt_ids(tokenizer, prompt))
            return Prompted(asked or _anything(tokenizer), None)
        if is_chat(prompt):
            if not is_chat(answer):
                raise self._error(place, f"the prompt is a chat, and the answer should be {_FORMAT}", answer)
            before = self._made(place, lambda: prompt_text(tokenizer, prompt))
            return self._behind(place, before, self._made(place, lambda: rendered(tokenizer, [*prompt, *answer])))
        text, own = self._text(place, prompt, PROMPT), self._ended(self._text(place, answer, COMPLETION))
        whole = tokens_of(tokenizer, text + own, special=True)
        if tokenizer.num_special_tokens_to_add() and whole[-2:] == [tokenizer.eos_token_id] * 2:
            whole = whole[:-1]  # of a tokenizer that adds one to every text
        return self._joined(prompt_ids(tokenizer, text), whole, own)

    def chat(self, place: int, messages: Any) -> Prompted:  # noqa: ANN401 - a cell of the data
        """A chat: the words of the assistant train that the template marks, or else those of its last message."""
        tokenizer = self.tokenizer
        if messages is None:
            return Prompted(_anything(tokenizer), None)
        if not is_chat(messages):
            raise self._error(place, f"a chat should be {_FORMAT}", messages)
        answered = [number for number, one in enumerate(messages) if one["role"] == ASSISTANT]
        if not answered:
            raise self._error(place, f"a chat should have a message of the role '{ASSISTANT}'", messages)
        if marks_assistant(tokenizer):
            marked = {"tokenize": True, "return_assistant_tokens_mask": True}
            found = self._made(place, lambda: rendered(tokenizer, messages, **marked))
            if not any(found["assistant_masks"]):
                raise self._error(place, "the chat template marks no word of the assistant in this chat", messages)
            return Prompted(list(found["input_ids"]), [bool(one) for one in found["assistant_masks"]])
        last = answered[-1]
        before = ""
        if last:
            before = self._made(place, lambda: rendered(tokenizer, messages[:last], add_generation_prompt=True))
        return self._behind(place, before, self._made(place, lambda: rendered(tokenizer, messages[: last + 1])))

    def _behind(self, place: int, before: str, whole: str) -> Prompted:
        """The tokens of a chat, of which those behind a prompt train."""
        if not before or not whole.startswith(before):
            raise self._error(
                place,
                "the chat template does not say where the last message of the assistant begins: the chat before it, "
                "with the beginning of an answer, is not the beginning of the whole chat. Mark what the assistant "
                "says with {% generation %} and {% endgeneration %} in tokenizer.chat_template",
            )
        tokenizer = self.tokenizer
        return self._joined(tokens_of(tokenizer, before), tokens_of(tokenizer, whole), whole[len(before) :])

    def _joined(self, before: list[int], whole: list[int], answer: str) -> Prompted:
        """The tokens of prompt and answer, of which those of the answer train."""
        apart = whole[: len(before)] != before
        if apart:
            whole = [*before, *tokens_of(self.tokenizer, answer)]
        return Prompted(whole, [number >= len(before) for number in range(len(whole))], apart=apart)

    def _ended(self, answer: str) -> str:
        """An answer that ends with the end-of-text token, if the tokenizer has one."""
        end = self.tokenizer.eos_token or ""
        return answer if answer.endswith(end) else answer + end

    def _text(self, place: int, value: object, argument: str) -> str:
        try:
            return as_text(value)
        except TypeError:
            column = getattr(self.task, argument)
            raise self._error(place, f"column '{column}': a text or {_FORMAT}, should be there", value) from None

    def _made(self, place: int, make: Function) -> Any:  # noqa: ANN401 - what is made
        """What a chat template makes of a row; what it refuses is an error that names the row."""
        from jinja2 import TemplateError

        try:
            return make()
        except (ValueError, TypeError) as problem:
            raise self._error(place, str(problem)) from None
        except TemplateError as problem:
            raise self._error(place, f"the chat template refuses the messages: {problem}. Fix the row") from None

    def _error(self, place: int, sentence: str, *found: object) -> ValueError:
        shown = [f". Found {str(one)[:200]}. Fix the row" for one in found]
        return self.task.row_error(self.indices[place], self.split, f"{sentence}{''.join(shown)}.")


def _anything(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """A token for a row that has none."""
    return [next(one for one in (tokenizer.eos_token_id, tokenizer.pad_token_id, 0) if one is not None)]
