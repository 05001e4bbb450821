"""Arguments of the Trainer that a mixture of tasks cannot follow, and those that have no effect without others."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING

from accelerate import ParallelismConfig
from transformers.trainer_pt_utils import AcceleratorConfig
from transformers.trainer_utils import SaveStrategy

from ..modeling.config import close_match

if TYPE_CHECKING:
    from .arguments import MultiTaskTrainingArguments

# Arguments that would be ignored, or break the step or the measures, and what they have to stay at.
KEPT = {
    "label_smoothing_factor": 0.0,
    "train_sampling_strategy": "random",
    "length_column_name": "length",
    "label_names": None,
    "average_tokens_across_devices": True,
    "dataloader_drop_last": False,
    "dataloader_in_order": True,
    "prediction_loss_only": False,
    "batch_eval_metrics": False,
    "eval_do_concat_batches": True,
    "eval_use_gather_object": False,
    "include_for_metrics": [],
    "use_liger_kernel": False,
}
# What replaces them.
_INSTEAD = {
    "label_smoothing_factor": ", and set `label_smoothing` in the tasks that are to have it",
    "label_names": ", and set the column of labels in each task",
}
# How accelerate divides batches, which the sampler does by itself.
_DIVIDING = ("split_batches", "dispatch_batches", "even_batches", "use_seedable_sampler")
# Optimizers that update weights in the backward pass; the layer-wise ones as well.
_IN_BACKWARD = ("lomo", "adalomo")
# Arguments that only have an effect with one of others.
_NEEDS = {
    "dataloader_persistent_workers": ("dataloader_num_workers",),
    "dataloader_multiprocessing_context": ("dataloader_num_workers",),
    "fsdp_config": ("fsdp",),
    "liger_kernel_config": ("use_liger_kernel",),
    "activation_checkpointing_kwargs": ("activation_checkpointing", "gradient_checkpointing"),
    "gradient_checkpointing_kwargs": ("activation_checkpointing", "gradient_checkpointing"),
    "load_best_model_at_end": ("eval_strategy",),
    "eval_steps": ("eval_strategy",),
}
# Variables of launchers, one of which is set where there are several processes.
_LAUNCHED = ("LOCAL_RANK", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "WORLD_SIZE")


def check_given(args: MultiTaskTrainingArguments) -> None:
    """Check arguments that the Trainer's own checks stumble over.

    Raises:
        ValueError: one is not usable here.
    """
    if args.ddp_backend is not None and not any(name in os.environ for name in _LAUNCHED):
        raise ValueError(
            "Parameter `ddp_backend` is for several processes, and this run is one. Found `ddp_backend = "
            f"{args.ddp_backend!r}`. Leave it out, or start the processes with torchrun or accelerate launch."
        )
    if args.deepspeed and importlib.util.find_spec("deepspeed") is None:
        raise ValueError(
            "Parameter `deepspeed` needs the package 'deepspeed', which is not installed. Run: pip install deepspeed"
        )
    known = [one.name for one in fields(AcceleratorConfig)]
    for name in args.accelerator_config if isinstance(args.accelerator_config, Mapping) else ():
        if name not in known:
            raise ValueError(
                f"Parameter `accelerator_config` should hold {', '.join(known)}. Found {name!r}."
                + close_match(str(name), known)
            )
    if args.parallelism_config is not None and not isinstance(args.parallelism_config, ParallelismConfig):
        raise ValueError(
            "Parameter `parallelism_config` should be an accelerate.ParallelismConfig. Found `parallelism_config = "
            f"{args.parallelism_config!r}`. Leave it out."
        )


def check_supported(args: MultiTaskTrainingArguments) -> None:
    """Check that no argument is given that a mixture of tasks cannot follow.

    Raises:
        ValueError: one is.
    """
    optimizer = str(getattr(args.optim, "value", args.optim))
    if optimizer in _IN_BACKWARD or optimizer.endswith("_layerwise"):
        raise ValueError(
            "Parameter `optim` should not update weights in the backward pass: a step has several of them, and is "
            f"run again without a task whose loss is NaN. Found `optim = '{optimizer}'`. Choose another, such as "
            "adamw_torch."
        )
    if args.fp16 and args.device.type == "cpu":  # accelerate would compute in float32
        raise ValueError(
            "Parameter `fp16` needs an accelerator, and this run is on a CPU. Found `fp16 = True`. Leave it out, or "
            "set bf16."
        )
    for name, usual in KEPT.items():
        if (value := getattr(args, name)) != usual:
            raise ValueError(
                f"Parameter `{name}` is not supported for a mixture of tasks. Found `{name} = {value!r}`. Leave it at "
                f"{usual}{_INSTEAD.get(name, '')}."
            )
    for name in _DIVIDING if isinstance(args.accelerator_config, AcceleratorConfig) else ():
        value, usual = getattr(args.accelerator_config, name), getattr(AcceleratorConfig(), name)
        if value != usual:
            raise ValueError(
                f"Parameter `accelerator_config` should leave `{name}` at {usual}: the sampler divides the rows of a "
                f"step by itself. Found `{name} = {value!r}`. Leave it out."
            )
    if args.save_strategy == SaveStrategy.BEST and args.eval_strategy == "no":
        raise ValueError(
            "Parameter `save_strategy` watches evaluations where it is 'best'. Set eval_strategy to 'epoch' or 'steps'."
        )


def idle(args: MultiTaskTrainingArguments) -> Iterator[str]:
    """Messages on arguments that have no effect because others are off; before the Trainer's arguments change them."""
    for name, others in _NEEDS.items():
        known = [other for other in others if hasattr(args, other)]  # Transformers 5.17 has fewer
        value = _plain(getattr(args, name, None))
        if value and not any(_is_on(args, other) for other in known):
            off = " and ".join(f"{other} is {_plain(getattr(args, other))!r}" for other in known)
            yield f"Parameter `{name}` has no effect, because {off}. Found `{name} = {value!r}`. Set both, or neither."


def _is_on(args: MultiTaskTrainingArguments, name: str) -> bool:
    if name == "fsdp" and os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        return True  # by accelerate launch
    return _plain(getattr(args, name, None)) not in (None, False, 0, "", "no")


def _plain(value: object) -> object:
    return getattr(value, "value", value)
