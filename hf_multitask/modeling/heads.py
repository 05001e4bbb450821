"""Task heads: shared states in, logits and the loss of every row out.

Legend: B rows of the batch, N rows of one task, L tokens, D hidden, C classes.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import ClassVar, cast

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, PreTrainedConfig

from .aliases import AutoClass, Open, TaskDict, Values
from .chain import LinearChain
from .config import close_match
from .layers import MIX, LayerMix, layer_of, number_of_layers
from .losses import IGNORE, class_losses, label_weights, loss_options, number_losses, precise, set_losses
from .native import States, stock_head
from .structure import Structure, Tagged

PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")


def pooled_states(hidden_NLD: torch.Tensor, attention_mask_NL: torch.Tensor | None, pooling: str) -> torch.Tensor:
    """One state for each text, (N, L, D) to (N, D): of its first token, its last, or the mean of all.

    Args:
        hidden_NLD: states.
        attention_mask_NL: which tokens are there; all of them where None.
        pooling: ``"cls"``, ``"last"`` or ``"mean"``.
    """
    if attention_mask_NL is None:
        attention_mask_NL = torch.ones(hidden_NLD.shape[:2], device=hidden_NLD.device)
    if pooling == "mean":
        mask_NL = attention_mask_NL.to(hidden_NLD.dtype)
        return (hidden_NLD * mask_NL.unsqueeze(-1)).sum(1) / mask_NL.sum(1, keepdim=True).clamp(min=1)
    positions_L = torch.arange(hidden_NLD.shape[1], device=hidden_NLD.device)
    seen_NL = attention_mask_NL.long() * (positions_L + 1 if pooling == "last" else hidden_NLD.shape[1] - positions_L)
    rows_N = torch.arange(hidden_NLD.shape[0], device=hidden_NLD.device)
    return hidden_NLD[rows_N, seen_NL.argmax(1)]


def with_one_end(input_ids_NL: torch.Tensor, attention_mask_NL: torch.Tensor | None, end: int) -> torch.Tensor:
    """Tokens (N, L) for a head that looks for the last end-of-sequence token and wants as many in every row.

    A text may hold ``</s>`` itself, or have been cut before its end: all but the last one become -1, and the last token
    that is there replaces it where there is none.
    """
    mask_NL = torch.ones_like(input_ids_NL) if attention_mask_NL is None else attention_mask_NL.long()
    ends_NL = input_ids_NL.eq(end).long() * mask_NL
    places_L = torch.arange(1, input_ids_NL.shape[1] + 1, device=input_ids_NL.device)
    looked_NL = torch.where(ends_NL.sum(1, keepdim=True) > 0, ends_NL, mask_NL) * places_L
    last_NL = looked_NL.eq(looked_NL.amax(1, keepdim=True))
    ordinary_NL = input_ids_NL.masked_fill(input_ids_NL.eq(end), -1)
    return ordinary_NL.masked_fill(last_NL, end)


def dropout_of(config: PreTrainedConfig) -> float:
    """The probability of dropout before the layers of a head that are not the family's own."""
    dropout = getattr(config, "classifier_dropout", None)
    return getattr(config, "hidden_dropout_prob", 0.1) if dropout is None else dropout


class PooledLinear(nn.Module):
    """Dropout and a linear layer over one pooled state, for those who do not want the family's own head."""

    def __init__(self, config: PreTrainedConfig, *, num_labels: int, pooling: str) -> None:
        super().__init__()
        self.pooling = pooling
        self.dropout = nn.Dropout(dropout_of(config))
        self.classifier = nn.Linear(config.hidden_size, num_labels)

    def forward(self, hidden_NLD: torch.Tensor, attention_mask_NL: torch.Tensor | None) -> torch.Tensor:
        """(N, L, D) to (N, C)."""
        return self.classifier(self.dropout(pooled_states(hidden_NLD, attention_mask_NL, self.pooling)))


class Head(nn.Module, ABC):
    """One task's layers, its loss, and what counts as an item of it.

    A custom head overrides :meth:`build` and :meth:`forward`, or names an ``auto_class`` whose stock head it
    takes. What it holds are parameters and persistent buffers, which the checkpoint keeps.

    Args:
        task: the task's dict from the configuration.
        config: the backbone's configuration.
        pooling: see :class:`MultiTaskConfig`.
    """

    auto_class: ClassVar[AutoClass]
    # Which of the native language models the backbone has to be: "masked", "causal" or "text2text".
    language_model: ClassVar[str | None] = None
    # The value of the outputs of an item of several rows where it has no row.
    absent: ClassVar[float] = 0.0
    # Whether an item reads several rows of a batch, (N, G).
    reads_several: ClassVar[bool] = False
    # Whether predictions are those of labeled tokens, (M, ...), row by row.
    predicts_labelled: ClassVar[bool] = False
    # Whether the answer is a text, which the backbone generates.
    writes: ClassVar[bool] = False
    # Whether it reads frames, of which a batch has other numbers than its mask.
    reads_audio: ClassVar[bool] = False
    # Whether its outputs for chunks of a recording, joined, are those of the recording.
    joins_chunks: ClassVar[bool] = False
    # Why its outputs are not those of a graph, in words that follow the name of a task.
    beyond_graph: ClassVar[str | None] = None
    # Whether the stock model of a task is the backbone alone.
    stock_is_backbone: ClassVar[bool] = False
    # Names of the outputs of a task that names none.
    default_names: ClassVar[list[str] | None] = None
    needs_pooler = False
    reads_decoder = False  # its states, in place of the encoder's
    # The hidden states that it reads, or the mix of all; None for those of the last layer.
    layer: int | str | None = None
    problem_type: str | None = None

    def __init__(self, task: TaskDict, config: PreTrainedConfig, *, pooling: str) -> None:
        super().__init__()
        self.num_labels = self.outputs(task)
        self.loss_options = loss_options(task)
        self.build(task, config, pooling)
        self.layer = layer_of(task, config, decodes=self.reads_decoder or self.language_model is not None)
        self.mix = LayerMix(number_of_layers(config) + 1) if self.layer == MIX else None

    @classmethod
    def outputs(cls, task: TaskDict) -> int:
        """Outputs of the head: one per label name, one for a regression without names, 0 while labels are unknown."""
        names = task.get("label_names")
        return len(names) if names else int(task.get("problem_type") == "regression")

    @classmethod
    def options_of(cls, config: PreTrainedConfig) -> Values:  # noqa: ARG003
        """The options of a task that follow from the configuration of a stock model."""
        return {}

    def build(self, task: TaskDict, config: PreTrainedConfig, pooling: str) -> None:  # noqa: ARG002
        """Make the layers: those of the family's stock class."""
        self.native, self.needs_pooler = stock_head(
            config, self.auto_class, num_labels=self.num_labels, problem_type=task.get("problem_type")
        )

    def forward(
        self, states: States, input_ids: torch.Tensor | None, attention_mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Logits of the N rows whose states and inputs are given."""
        return self.native(input_ids=input_ids, attention_mask=attention_mask, inputs_embeds=states).logits

    def adopt(self, task: TaskDict) -> None:
        """Apply what a new dict of the task sets beside its labels."""
        self.problem_type = task.get("problem_type")
        self.loss_options = loss_options(task)

    def decoder_ids(
        self,
        input_ids: torch.Tensor | None,
        labels: torch.Tensor | None,  # noqa: ARG002
    ) -> torch.Tensor | None:
        """What the decoder is to predict for a head that reads it, (N, T): the inputs themselves."""
        return input_ids

    def predictions(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """What evaluation keeps of the logits of N items, (N, ...): all of them."""
        return logits

    def references(self, labels: torch.Tensor) -> torch.Tensor:
        """What evaluation keeps of the labels of N items, (N, ...): all of them."""
        return labels

    def of_windows(self, logits: torch.Tensor, there_NG: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """What the logits of an item's rows, (N, G, ...), are together; ``there_NG`` says which rows there are."""
        return logits

    def tagged(self, logits: torch.Tensor, there: torch.Tensor) -> Tagged | None:  # noqa: ARG002
        """The answers to the tokens that count, for heads that decode a sequence as a whole.

        Args:
            logits: of the tokens of N sequences, (N, ..., C).
            there: which of them count, (N, ...).

        Returns:
            Those of the M tokens that count, in their order; None if the best class of each token is its answer.
        """
        return None

    def loss_parameters(self) -> Iterable[nn.Parameter]:
        """The parameters that the loss reads and the logits do not."""
        return ()

    def beyond_stock(self) -> str | None:
        """What of the head no stock class has, in words; None if there is nothing."""
        return None

    def described(self) -> Values:
        """What a reader of its logits needs beside the labels, as plain values."""
        return {}

    @abstractmethod
    def items(self, labels: torch.Tensor) -> torch.Tensor:
        """How many items each row holds: labels (N, ...) to counts (N,)."""

    @abstractmethod
    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The sum of the item losses of each row, (N,), in float32 or better."""

    def item_weights(self, labels: torch.Tensor) -> torch.Tensor | None:  # noqa: ARG002
        """The sum of the class weights of each row's items, (N,), where the losses have them; None where not."""
        return None

    def weighted_loss(
        self, logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None = None
    ) -> torch.Tensor:
        """:meth:`loss`, times the weight of each row, (N,), where rows have weights."""
        losses = self.loss(logits, labels)
        return losses if weights is None else losses * weights

    def weighted_items(
        self, labels: torch.Tensor, weights: torch.Tensor | None = None, *, classes: bool = True
    ) -> torch.Tensor:
        """What the losses of each row are divided by, (N,): :meth:`items`, or the sum of their weights.

        Args:
            labels: of N rows.
            weights: of the rows, (N,).
            classes: whether class weights count.
        """
        own = self.item_weights(labels) if classes else None
        items = self.items(labels) if own is None else own
        return items if weights is None else items * weights.to(precise(weights.device))


class SequenceClassificationHead(Head):
    """Classes, label sets or numbers for a text or a pair of texts. An item is a row.

    A row's loss is the cross-entropy for ``single_label_classification``, the mean over classes of the binary
    cross-entropy for ``multi_label_classification``, the mean over outputs of the squared error for ``regression``;
    averaged over rows, each is the loss of the stock Transformers class. Options of the task change it, see
    :mod:`losses`.
    """

    auto_class: ClassVar[AutoClass] = AutoModelForSequenceClassification
    runs_together = True
    default_names: ClassVar[list[str] | None] = ["LABEL_0"]

    @classmethod
    def options_of(cls, config: PreTrainedConfig) -> Values:
        """See :meth:`Head.options_of`."""
        kind = config.problem_type or ("regression" if config.num_labels == 1 else None)
        unnamed = kind == "regression" and config.num_labels == 1
        decisions = getattr(config, "decisions", None) or {}
        return {"label_names": None if unnamed else _names_of(config), "problem_type": kind, **decisions}

    def build(self, task: TaskDict, config: PreTrainedConfig, pooling: str) -> None:
        """Make the family's stock layers, or a linear layer on the pooled states."""
        self.problem_type = task.get("problem_type")
        if self.problem_type is not None and self.problem_type not in PROBLEM_TYPES:
            raise ValueError(
                f"Task '{task['name']}': `problem_type` should be one of {', '.join(PROBLEM_TYPES)}. "
                f"Found `problem_type = {self.problem_type!r}`." + close_match(str(self.problem_type), [*PROBLEM_TYPES])
            )
        self.pooled = None if pooling == "native" else PooledLinear(config, num_labels=self.num_labels, pooling=pooling)
        if self.pooled is None:
            super().build(task, config, pooling)
            self.reads_decoder = config.is_encoder_decoder

    def forward(
        self, states: States, input_ids: torch.Tensor | None, attention_mask: torch.Tensor | None
    ) -> torch.Tensor:
        """(N, L, D) to (N, C)."""
        if self.pooled is None:
            if self.reads_decoder and input_ids is not None:
                input_ids = with_one_end(input_ids, attention_mask, self.native.config.eos_token_id)
            return super().forward(states, input_ids, attention_mask)
        return self.pooled(cast(torch.Tensor, states.last_hidden_state), attention_mask)

    def of_windows(self, logits: torch.Tensor, there_NG: torch.Tensor) -> torch.Tensor:
        """The mean of the logits of a text's windows, (N, G, C) to (N, C)."""
        return logits.sum(1) / there_NG.sum(1, keepdim=True)

    def items(self, labels: torch.Tensor) -> torch.Tensor:
        """1 per row, 0 for a class that the model does not have."""
        if self._problem_type(labels) == "single_label_classification" and labels.dim() == 1:
            return (labels < self.num_labels).to(torch.long)
        return torch.ones(labels.shape[0], dtype=torch.long, device=labels.device)

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Logits (N, C) and labels (N,), or (N, C) for label sets, numbers and soft labels, to (N,)."""
        logits_NC, options = at_least_float32(logits), self.loss_options
        problem_type = self._problem_type(labels)
        if problem_type == "single_label_classification":
            known = labels if labels.dim() > 1 else labels.masked_fill(labels >= self.num_labels, IGNORE)
            return class_losses(logits_NC, known, options)
        targets_NC = labels[:, : self.num_labels].to(logits_NC.dtype)
        of_problem = set_losses if problem_type == "multi_label_classification" else number_losses
        return of_problem(logits_NC, targets_NC, options)

    def item_weights(self, labels: torch.Tensor) -> torch.Tensor | None:
        """See :meth:`Head.item_weights`: of classes; those of label sets are in the loss."""
        single = self._problem_type(labels) == "single_label_classification"
        return label_weights(labels, self.loss_options) if single else None

    def references(self, labels: torch.Tensor) -> torch.Tensor:
        """See :meth:`Head.references`: the most probable classes of soft labels."""
        return labels.argmax(-1) if self.loss_options.soft else labels

    def _problem_type(self, labels: torch.Tensor) -> str:
        """The task's, or what the labels suggest where it has none, as Transformers does."""
        if self.problem_type is not None:
            return self.problem_type
        if self.loss_options.soft or not labels.is_floating_point():
            return "single_label_classification"
        return "regression" if self.num_labels == 1 else "multi_label_classification"


class TokenClassificationHead(Head):
    """A tag for every word, read at its labeled tokens. An item is a labeled token; its loss is the cross-entropy.

    A text is a row, or several windows, of which each labels other tokens. With ``decoding="crf"`` the loss of a text
    is that of the sequence of its tags, see :class:`LinearChain`. An item is still a labeled token, so the loss is one
    per token, and is the cross-entropy as long as the scores of the chain are 0.
    """

    auto_class = AutoModelForTokenClassification
    runs_together = True
    predicts_labelled: ClassVar[bool] = True

    def __init__(self, task: TaskDict, config: PreTrainedConfig, *, pooling: str) -> None:
        super().__init__(task, config, pooling=pooling)
        self.crf: LinearChain | None = None
        self._structure(task)

    def adopt(self, task: TaskDict) -> None:
        """See :meth:`Head.adopt`: the scheme and the decoding, with a new chain where there was none."""
        super().adopt(task)
        self._structure(task)

    def _structure(self, task: TaskDict) -> None:
        structure = Structure.of(task)
        if not structure.chained:
            self.crf = None
        elif self.crf is None:
            like = next(self.parameters())
            self.crf = LinearChain(self.num_labels).to(like.device, like.dtype).train(self.training)
        self.structure = structure

    @classmethod
    def options_of(cls, config: PreTrainedConfig) -> Values:
        """See :meth:`Head.options_of`."""
        return {"label_names": _names_of(config)}

    def items(self, labels: torch.Tensor) -> torch.Tensor:
        """Labeled tokens of each text, (N, L) or (N, G, L) to (N,)."""
        return ((labels != IGNORE) & (labels < self.num_labels)).flatten(1).sum(1)

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Logits (N, L, C) or (N, G, L, C) and labels (N, L) or (N, G, L), -100 where there is none, to (N,)."""
        known_NL = labels.masked_fill(labels >= self.num_labels, IGNORE).flatten(1)
        logits_NLC = at_least_float32(logits).flatten(1, -2)
        if self.crf is not None:
            return self.crf(logits_NLC, known_NL, known_NL != IGNORE)
        return class_losses(logits_NLC.transpose(1, 2), known_NL, self.loss_options).sum(1)

    def item_weights(self, labels: torch.Tensor) -> torch.Tensor | None:
        """See :meth:`Head.item_weights`."""
        weights = label_weights(labels, self.loss_options)
        return None if weights is None else weights.flatten(1).sum(1)

    @torch.no_grad()
    def tagged(self, logits: torch.Tensor, there: torch.Tensor) -> Tagged | None:
        """See :meth:`Head.tagged` and :class:`Structure`."""
        return self.structure.tagged(at_least_float32(logits).flatten(1, -2), there.flatten(1), self.crf)

    def loss_parameters(self) -> Iterable[nn.Parameter]:
        """See :meth:`Head.loss_parameters`: those of the chain."""
        return () if self.crf is None else self.crf.parameters()

    def beyond_stock(self) -> str | None:
        """See :meth:`Head.beyond_stock`: the chain."""
        return None if self.crf is None else "the scores of tags that follow each other (decoding='crf')"

    def described(self) -> Values:
        """See :meth:`Head.described`: the scheme, the decoding, and the scores of the chain."""
        return self.structure.described(self.crf)

    def predictions(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Logits of the labeled tokens of all texts, (M, C)."""
        return logits[labels != IGNORE]

    def references(self, labels: torch.Tensor) -> torch.Tensor:
        """Labels of the labeled tokens of all texts, (M,)."""
        return labels[labels != IGNORE]


def _names_of(config: Open) -> list[str]:
    return [config.id2label[number] for number in range(config.num_labels)]


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in float32, or in float64 where it is."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
