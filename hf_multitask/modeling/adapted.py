"""What adapters add to a model: adding and merging them, and saving a model without the backbone that they are for."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch.nn.modules.module import _IncompatibleKeys
from transformers import PreTrainedModel

from .adapters import (
    adapter_of,
    drop,
    fold,
    inject,
    lora_settings,
    merged,
    plain_name,
    rename,
    set_trained,
    task_settings,
    unwrap,
)
from .aliases import Settings, Values
from .backbone import resolve_backbone
from .branches import Branching
from .config import SHARED
from .native import build_backbone
from .padded_norm import run_time_norms_once
from .precision import HALF, is_mixed, widen
from .quantized import check_fresh, is_quantized, loading_of, refuse_quantized, take_out
from .shared import SharedModel, adapter_settings

_HUB = ("token", "cache_dir", "trust_remote_code", "local_files_only", "force_download", "proxies")


class Adapted(SharedModel):
    """The part of :class:`MultiTaskModel` that has adapters."""

    _rest_unread: Callable[[], None]
    _backbone_of: Callable[[str], PreTrainedModel]

    def add_adapters(self, lora: object = None, task_lora: object = None, *, source: Values | None = None) -> None:
        r"""Put LoRA on the backbone, whose own weights are frozen then: :math:`W + s_0 B_0 A_0 + s_t B_t A_t`.

        LoRA: Low-Rank Adaptation of Large Language Models (ICLR 2022), https://arxiv.org/abs/2106.09685. On a backbone
        in half precision adapters and heads are float32.

        Args:
            lora: of the adapter that all tasks share, a ``peft.LoraConfig`` or a dict of its arguments; none where
                None.
            task_lora: the same for an adapter of each task; or a dict of them by task, for some tasks.
            source: where the backbone comes from as it is, so that saving can leave it out; for ``from_backbone``.

        Raises:
            ImportError: PEFT is not installed.
            ValueError: an argument is not usable, or there is such an adapter already.
        """
        before = self.config.adapters or {"shared": None, "tasks": {}, "source": source, "only": False}
        adapters = {**before, "tasks": dict(before["tasks"])}
        names = []
        if lora is not None:
            if before["shared"] is not None:
                raise ValueError("The tasks share an adapter already. Merge it first, or continue to train it.")
            adapters["shared"] = lora_settings(lora, "lora", self.backbone)
            names.append(SHARED)
        for name, given in ({} if task_lora is None else task_settings(task_lora, self.config.task_names)).items():
            if name in before["tasks"]:
                raise ValueError(f"Task '{name}' has an adapter already. Leave it out of task_lora.")
            adapters["tasks"][name] = lora_settings(given, "task_lora", self.backbone)
            names.append(name)
        if not names:
            raise ValueError("There is no adapter to add. Give `lora`, `task_lora`, or both.")
        if source is not None and is_quantized(self.backbone):
            check_fresh(self.backbone, source["fresh"])
            adapters |= {"only": True, "source": {**source, "quantization": take_out(self.backbone)}}
        self.config.adapters = adapters
        inject(self, names)
        if self.backbone.dtype in HALF:
            widen(self)

    def merge_adapters(self) -> None:
        """Add the adapter that all tasks share to the weights of the backbone, permanently.

        Adapters of single tasks stay: :meth:`task_model` adds one to a copy. Without any, the backbone trains again.

        Raises:
            ValueError: the tasks share no adapter.
        """
        if self.config.adapters is None or self.config.adapters["shared"] is None:
            raise ValueError("The tasks share no adapter to merge. Those of single tasks leave with task_model(name).")
        refuse_quantized(self.backbone, "The adapter cannot be merged")
        if is_mixed(self):
            self.backbone.float()  # in half precision little of an adapter would be left
        fold(self.backbone, [SHARED])
        source = self.config.adapters["source"]
        self._without(shared=None, source=source and {**source, "name": None}, only=False)

    def drop_adapter(self, task: str) -> None:
        """Remove the adapter of a task, if it has one."""
        if self.config.adapters and task in self.config.adapters["tasks"]:
            drop(self.backbone, [task])
            self._without(tasks={name: own for name, own in self.config.adapters["tasks"].items() if name != task})

    def rename_adapter(self, task: str, new: str) -> None:
        """Follow a task to its new name, where it has an adapter."""
        if self.config.adapters and task in self.config.adapters["tasks"]:
            rename(self.backbone, task, new)
            tasks = self.config.adapters["tasks"]
            self._without(tasks={new if name == task else name: own for name, own in tasks.items()})

    def _without(self, **changes: object) -> None:
        """Record the adapters that are left; without an adapter the backbone is as it was before there was one."""
        adapters = {**self.config.adapters, **changes}  # type: ignore[dict-item]
        left = adapters["shared"] is not None or adapters["tasks"]
        self.config.adapters = adapters if left else None
        self.routing.tasks = set(adapters["tasks"])
        if left:
            return
        unwrap(self.backbone)
        self.backbone.requires_grad_(True)
        self._rest_unread()

    def _build_adapters(self) -> None:
        """Put the layers of the configuration's adapters into a backbone that has none."""
        adapters = self.config.adapters
        if adapters is not None:
            inject(self, [*([] if adapters["shared"] is None else [SHARED]), *adapters["tasks"]])
            if adapters["only"]:
                left_out = left_out_weights(self)
                patterns = {f"^{re.escape(name)}$" for name in left_out}
                self._keys_to_ignore_on_load_missing = {*(self._keys_to_ignore_on_load_missing or ()), *patterns}
                tied = self.all_tied_weights_keys.items()  # reported as corrupted where both are missing
                self.all_tied_weights_keys = {name: other for name, other in tied if name not in left_out}

    def _complete(self, language_model: str | None, kwargs: Settings) -> None:
        """Fetch the backbone of a loaded model that was saved without, and let what trains have a gradient."""
        if self.config.float32_heads:
            widen(self)
        if self.config.adapters is not None:
            set_trained(self)
            if self.config.adapters["only"]:
                fetch_backbone(self, language_model, kwargs)
                self.all_tied_weights_keys = self.get_expanded_tied_weights_keys(all_submodels=True)
                self.tie_weights()

    def merged_backbone(self, task: str) -> PreTrainedModel:
        """The backbone as a task reads it: a copy with its branch in place and its adapters merged, or itself.

        In float32 where the adapters are: in half precision little of them would be left.
        """
        own = self._backbone_of(task)
        refuse_quantized(self.backbone, f"Task '{task}' cannot be taken out as a stock model")
        if not self.config.adapters:
            return own
        return merged(own, [SHARED, task], torch.float32 if is_mixed(self) else self.backbone.dtype)

    def _set_gradient_checkpointing(self, enable: bool = True, *args: Any, **kwargs: Any) -> None:
        if enable and not self.backbone.supports_gradient_checkpointing:
            raise ValueError(
                f"The backbone family '{self.backbone.config.model_type}' does not support activation checkpointing. "
                "Leave it off, or choose another backbone."
            )
        if "gradient_checkpointing_func" in kwargs:
            kwargs["gradient_checkpointing_func"] = self.routing.checkpointed(kwargs["gradient_checkpointing_func"])
        super()._set_gradient_checkpointing(enable, *args, **kwargs)
        run_time_norms_once(self.backbone)

    # Saving without the backbone

    def load_state_dict(self, state_dict: Settings, strict: bool = True, assign: bool = False) -> _IncompatibleKeys:
        """Load weights, as in ``torch.nn.Module``; a backbone that is not saved is there already, and not missing."""
        result = super().load_state_dict(state_dict, strict=strict, assign=assign)
        if self.config.adapters and self.config.adapters["only"]:
            left_out = left_out_weights(self)
            result.missing_keys[:] = [name for name in result.missing_keys if name not in left_out]
        return result

    def leave_out_backbone(self) -> None:
        """Save and push only adapters and heads from now on; loading then fetches the backbone from its source.

        Raises:
            ValueError: there are no adapters, or the backbone is not one that could be fetched.
        """
        if self.config.adapters is None:
            raise ValueError("The model has no adapters, so there is nothing to save without the backbone. Add some.")
        left_out_weights(self)
        self.config.adapters = {**self.config.adapters, "only": True}

    @contextmanager
    def _only(self, adapters_only: bool | None) -> Iterator[None]:
        """Leave the backbone out of saves within this context, or not; None keeps the setting of the configuration."""
        before = self.config.adapters
        if adapters_only:
            self.leave_out_backbone()
        elif before is not None and adapters_only is not None:
            refuse_quantized(self.backbone, "The whole model cannot be saved, as adapters_only=False asks")
            self.config.adapters = {**before, "only": False}
        try:
            yield
        finally:
            self.config.adapters = before

    def _saved_weights(self, state_dict: Settings | None) -> Settings | None:
        """What is saved: all weights, or adapters, heads, and what the backbone's checkpoint does not have."""
        if not (self.config.adapters and self.config.adapters["only"]):
            return state_dict
        left_out = left_out_weights(self)
        if any(one.requires_grad for name, one in self.named_parameters() if name in left_out):
            raise ValueError(
                "The backbone trains together with its adapters, so it is no longer the one that they belong to. "
                "Save the whole model: adapters_only=False."
            )
        weights: Settings = self.state_dict() if state_dict is None else state_dict
        return {name: value for name, value in weights.items() if name not in left_out}


def left_out_weights(model: SharedModel) -> set[str]:
    """Names of the weights that are not saved with the adapters, because the backbone's own checkpoint has them.

    Raises:
        ValueError: the backbone has none.
    """
    source = adapter_settings(model)["source"]
    if source is None or source["name"] is None:
        raise ValueError(
            "The backbone is not known to be as it was loaded, so adapters alone could not be loaded again. Save the "
            "whole model, or start with from_backbone(..., lora=...)."
        )
    fresh = set(source["fresh"])
    names = (name for name in model.backbone.state_dict() if adapter_of(name) is None)
    return {f"backbone.{name}" for name in names if plain_name(name) not in fresh}


def _requantize(model: SharedModel, fetched: PreTrainedModel) -> None:
    """Put a quantized backbone under the adapters of a model, in place of the one that its configuration has built."""
    before = dict(model.backbone.named_parameters())
    adapters = adapter_settings(model)
    take_out(fetched)
    if model.config.branches is not None:
        Branching(fetched, model.routing, model.config.branch_layers or 0).put(model.config.branches)
    model.backbone, model.config.backbone_config = fetched, fetched.config
    inject(model, [*([] if adapters["shared"] is None else [SHARED]), *adapters["tasks"]])
    for name, value in model.backbone.named_parameters():
        if adapter_of(name) is not None or plain_name(name) in adapters["source"]["fresh"]:
            value.data = before[name].data.to(value.device)
    if model.backbone.dtype in HALF and model.config.float32_heads:
        widen(model)


@torch.no_grad()
def fetch_backbone(model: SharedModel, language_model: str | None, kwargs: Settings) -> None:
    """Fill in the backbone of a model that was saved without.

    Args:
        model: with its heads and adapters.
        language_model: as in :func:`build_backbone`.
        kwargs: arguments of ``from_pretrained``.

    Raises:
        ValueError: the backbone is not there, or is another one.
    """
    source, backbone = adapter_settings(model)["source"], model.backbone
    where = f"These adapters are for the backbone '{source['name']}'"
    missing: list[str] = []
    hub = {key: kwargs[key] for key in _HUB if key in kwargs}
    hub |= {"revision": source["revision"]} if source["revision"] else {}
    try:
        path = resolve_backbone(source["name"])
        quantized: Values = {}
        config = deepcopy(model.config.backbone_config)
        if source.get("quantization"):
            config, quantized = loading_of(config, path, hub, source["quantization"])
        fetched = build_backbone(
            config,
            language_model=language_model,
            needs_pooler=getattr(backbone.base_model, "pooler", None) is not None,
            path=path,
            missing=missing,
            dtype=backbone.dtype,
            **quantized,
            **hub,
        )
    except OSError as problem:
        reason = " ".join(str(problem).split())
        raise ValueError(f"{where}, which could not be loaded: {reason} Make it available there.") from None
    if is_quantized(fetched):
        _requantize(model, fetched)
        return
    theirs = fetched.state_dict()
    for name, value in backbone.state_dict(keep_vars=True).items():
        plain = plain_name(name)
        if adapter_of(name) is not None or plain in source["fresh"]:
            continue
        if plain in missing or plain not in theirs or theirs[plain].shape != value.shape:
            raise ValueError(
                f"{where}, and what is there now has no '{plain}' of the same shape. Use the original backbone."
            )
        value.copy_(theirs[plain])
