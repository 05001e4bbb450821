"""The place of the answer to a question in a text. Legend as in ``heads``; G windows of an item."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModelForQuestionAnswering, BatchEncoding, PreTrainedConfig, PreTrainedTokenizerBase

from .aliases import Open, TaskDict
from .examples import TEXT, Example
from .heads import Head, at_least_float32
from .inputs import Encoder, as_text, one_at_a_time, rows_of
from .native import States, family_kind
from .processors import stand_in
from .readers import Reader, Reading, Row

# Bits of the label of a token: it belongs to the context, the answer begins there, the answer ends there.
CONTEXT, START, END = 1, 2, 4
NO_TOKEN = -1


class QuestionAnsweringHead(Head):
    """Start and end of an answer. An item is a question, whose context may take several windows.

    Its loss is the mean over its windows of half the cross-entropies of start and end, over all tokens of the window:
    that of the stock class for one window. A window without the answer points to its first token.
    """

    auto_class = AutoModelForQuestionAnswering
    reads_several: ClassVar[bool] = True

    @classmethod
    def outputs(cls, task: TaskDict) -> int:  # noqa: ARG003
        """Start and end."""
        return 2

    def build(self, task: TaskDict, config: PreTrainedConfig, pooling: str) -> None:
        """Make the family's stock layers; for an encoder-decoder, a linear layer on its encoder."""
        self.adopt(task)
        self.linear = None
        if family_kind(config) == "encoder-decoder":
            self.linear = nn.Linear(config.hidden_size, 2)
        else:
            super().build(task, config, pooling)

    def adopt(self, task: TaskDict) -> None:
        """See :meth:`Head.adopt`."""
        self.max_answer_length = int(task.get("max_answer_length") or 30)
        self.unanswerable = bool(task.get("unanswerable"))

    def forward(
        self, states: States, input_ids: torch.Tensor | None, attention_mask: torch.Tensor | None
    ) -> torch.Tensor:
        """States of single windows (M, L, D) to logits of start and end, (M, L, 2)."""
        if self.linear is not None:
            return self.linear(states.last_hidden_state)
        output = self.native(input_ids=input_ids, attention_mask=attention_mask, inputs_embeds=states)
        return torch.stack([output.start_logits, output.end_logits], -1)

    def items(self, labels: torch.Tensor) -> torch.Tensor:
        """1 per question, (N, G, L) to (N,)."""
        return torch.ones(labels.shape[0], dtype=torch.long, device=labels.device)

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Logits (N, G, L, 2) and the marks of the tokens (N, G, L) to (N,)."""
        there_NGL = labels != NO_TOKEN
        windows_NG = there_NGL.any(-1)
        logits_NGLK = at_least_float32(logits).masked_fill(~there_NGL.unsqueeze(-1), torch.finfo(torch.float32).min)
        total_NG = torch.zeros_like(logits_NGLK[:, :, 0, 0])
        for output, mark in enumerate((START, END)):
            place_NG = (there_NGL & (labels & mark > 0)).int().argmax(-1)
            log_NGL = F.log_softmax(logits_NGLK[..., output], -1)
            total_NG = total_NG - log_NGL.gather(-1, place_NG.unsqueeze(-1)).squeeze(-1) / 2
        return total_NG.masked_fill(~windows_NG, 0.0).sum(1) / windows_NG.sum(1).clamp(min=1)

    def predictions(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Window, first and last token of the best answer, and its score, (N, 4); tokens of -1 for no answer."""
        return torch.stack([self.best(one, marks) for one, marks in zip(logits, labels, strict=True)])

    def references(self, labels: torch.Tensor) -> torch.Tensor:
        """Window, first and last token of the answer in the labels, (N, 3), counted in the same way; -1 without one."""
        rows = []
        for marks_GL in labels.cpu():
            inside_GL = (marks_GL != NO_TOKEN) & (marks_GL & CONTEXT > 0)
            found = [(inside_GL & (marks_GL & mark > 0)).nonzero()[:1].tolist() for mark in (START, END)]
            first, last = ((one[0] if one else [0, NO_TOKEN]) for one in found)
            before = int((marks_GL[first[0]] != NO_TOKEN).int().argmax()) if first[1] >= 0 else 0
            rows.append([first[0], first[1] - before, last[1] - before])
        return torch.tensor(rows)

    def best(self, logits_GL2: torch.Tensor, marks_GL: torch.Tensor) -> torch.Tensor:
        """The same for one question, (4,); tokens are counted from the first of their window that is no padding.

        The score is the product of the probabilities of start and end among the tokens of the context in all windows,
        and, where questions may have no answer, the first tokens of the windows.
        """
        logits_GLK = at_least_float32(logits_GL2.cpu())
        marks_GL = marks_GL.cpu()
        there_GL = marks_GL != NO_TOKEN
        context_GL = there_GL & (marks_GL & CONTEXT > 0)
        log_GLK = logits_GLK.masked_fill(~context_GL.unsqueeze(-1), float("-inf"))
        firsts_G = there_GL.int().argmax(-1)
        rows_G = torch.arange(len(firsts_G))
        nulls_GK = logits_GLK[rows_G, firsts_G].masked_fill(~there_GL.any(-1, keepdim=True), float("inf"))
        null_K = nulls_GK[nulls_GK.sum(-1).argmin()]  # of the window that is surest of an answer
        both = [log_GLK.flatten(0, 1), *([null_K.unsqueeze(0)] if self.unanswerable else [])]
        norm_K = torch.cat(both).logsumexp(0)
        length = log_GLK.shape[1]
        band_LL = torch.ones(length, length, dtype=torch.bool).triu().tril(self.max_answer_length - 1)
        value, window, place = torch.tensor(float("-inf")), 0, 0
        for number, log_LK in enumerate(log_GLK):  # window by window: a table of all of them grows with the text
            sums_LL = (log_LK[:, None, 0] + log_LK[None, :, 1]).masked_fill(~band_LL, float("-inf")).flatten()
            best = int(sums_LL.argmax())
            if sums_LL[best] > value:
                value, window, place = sums_LL[best], number, best
        before = int(firsts_G[window])
        start, end = place // length - before, place % length - before
        if torch.isinf(value) or (self.unanswerable and null_K.sum() > value):
            value, window, start, end = null_K.sum(), 0, NO_TOKEN, NO_TOKEN
        score = (value - norm_K.sum()).exp().clamp(max=1.0).nan_to_num(0.0)
        return torch.tensor([window, start, end, float(score)], dtype=torch.float64)


def windows(
    tokenizer: PreTrainedTokenizerBase, question: str, context: str, limit: int | None, stride: int
) -> tuple[BatchEncoding, bool]:
    """A question with its context in one or more windows that overlap by ``stride`` tokens, and whether it was cut.

    A question that takes more than half of a window is cut.
    """
    with one_at_a_time():
        return _windows(tokenizer, question, context, limit, stride)


def _windows(
    tokenizer: PreTrainedTokenizerBase, question: str, context: str, limit: int | None, stride: int
) -> tuple[BatchEncoding, bool]:
    cut = False
    if not question and not context and not tokenizer.num_special_tokens_to_add(True):
        question = stand_in(tokenizer)
    if limit is None:
        encoding = tokenizer([question], [context], return_offsets_mapping=True)
        return encoding, cut
    special = tokenizer.num_special_tokens_to_add(True)
    most = max((limit - special) // 2, 1)
    offsets = tokenizer(question, add_special_tokens=False, return_offsets_mapping=True, verbose=False)[
        "offset_mapping"
    ]
    if len(offsets) > most:
        question, cut = question[: offsets[most - 1][1]], True
    room = limit - special - min(len(offsets), most)
    encoding = tokenizer(
        [question],
        [context],
        truncation="only_second",
        max_length=limit,
        stride=max(min(stride, room // 2), 0),
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    return encoding, cut


def context_marks(encoding: BatchEncoding, window: int) -> list[int]:
    """For each token of a window whether it belongs to the context."""
    return [CONTEXT if sequence == 1 else 0 for sequence in encoding.sequence_ids(window)]


def answer_text(
    context: str, offsets_GL: list[list[tuple[int, int]]], best: torch.Tensor | list[float]
) -> tuple[str, int, int]:
    """The best answer of :meth:`QuestionAnsweringHead.best` as text with its first and last character."""
    window, start, end = (int(value) for value in best[:3])
    if start < 0:
        return "", 0, 0
    first, last = int(offsets_GL[window][start][0]), int(offsets_GL[window][end][1])
    text = context[first:last]
    first += len(text) - len(text.lstrip())  # the space before a word, which some tokenizers count in
    return context[first:last].rstrip(), first, first + len(context[first:last].rstrip())


_EXAMPLE = Example(
    f'{{"question": "Who loved it?", "context": "{TEXT}"}}',
    f'"Who loved it?", "{TEXT}"',
)
_CODE = """tokens = tokenizer("Who loved it?", "Ada Lovelace loved this place.", return_tensors="pt")
with torch.no_grad():
    output = model(**tokens)
start, end = int(output.start_logits.argmax()), int(output.end_logits.argmax())
print(tokenizer.decode(tokens["input_ids"][0, start : end + 1]))
"""


class QuestionReader(Reader):
    """A question and the context that holds its answer."""

    fields: ClassVar[tuple[str, ...]] = ("question", "context")
    examples: ClassVar[tuple[Example, ...]] = (_EXAMPLE,)
    stock_code: ClassVar[str | None] = _CODE

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

    def answer(self, task: Row, logits: torch.Tensor, rest: Open, model: Open, tokenizer: Open) -> Open:  # noqa: ARG002
        """As ``question-answering``: ``{"score", "start", "end", "answer"}``."""
        context, offsets, marks = rest
        length = logits.shape[1]
        marks_GL = torch.tensor([row + [NO_TOKEN] * (length - len(row)) for row in marks])
        best = model.heads[task["name"]].best(logits[: len(marks)], marks_GL)
        text, start, end = answer_text(context, offsets, best)
        return {"score": float(best[3]), "start": start, "end": end, "answer": text}
