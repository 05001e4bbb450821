"""A run that resumes with other arguments than those it was saved with: which take effect, are kept or are refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainingArguments

from ..plain import Saved, State

# Arguments that say where a run writes and reports, how rows are loaded and processes communicate, and nothing of what
# is trained; and those that other checks compare by their effect: the order of the rows, the balancer, the aggregator.
_ASIDE = {
    *("output_dir", "run_name", "project", "report_to", "disable_tqdm", "log_level", "log_level_replica", "local_rank"),
    *("log_on_each_node", "push_to_hub", "resume_from_checkpoint", "do_train", "do_eval", "do_predict", "debug"),
    *("skip_memory_metrics", "ignore_data_skip", "use_cpu", "include_num_input_tokens_seen", "label_names"),
    *("save_on_each_node", "enable_jit_checkpoint", "remove_unused_columns", "length_column_name", "data_seed"),
    *("sampling", "sampling_kwargs"),
}
_ASIDE_BY_START = ("hub_", "dataloader_", "ddp_", "trackio_", "logging_", "torch_empty_cache", "deepspeed", "fsdp")
# What the checkpoint's state was made with and makes no sense without.
_REFUSED = {
    *("freeze", "tasks", "optim_args", "optim_target_modules", "balancing_kwargs", "aggregation_kwargs"),
    *("metric_for_best_model", "greater_is_better"),
}
_METHODS = {"balancing", "aggregation"}
_NEW_IS_FINE = {"metric_for_best_model", "greater_is_better"}  # where there was none, nothing is compared with it
# What the checkpoint's state replaces.
_KEPT = {"seed": "the random state is the checkpoint's"}
# What rates are made of; a schedule that is no function of the step has made its own of them by now.
_RATES = {"learning_rate", "learning_rates", "layerwise_lr_decay", "lr_scheduler_kwargs"}
# What the groups of an optimizer have of the arguments, and no optimizer changes by itself.
_OF_ARGUMENTS = ("initial_lr", "weight_decay", "betas", "eps", "momentum")


def compared(arguments: TrainingArguments, teachers: Mapping[str, str]) -> State:
    """The arguments that are compared when a run resumes, as plain values.

    Args:
        arguments: of the run.
        teachers: by task, a hash of its teacher.
    """
    values = {
        name: value
        for name, value in arguments.to_dict().items()
        if name not in _ASIDE and not name.startswith(_ASIDE_BY_START)
    }
    values["teachers"] = dict(teachers)
    return json.loads(json.dumps(values, default=lambda value: type(value).__name__))


def check_arguments(then: Saved, now: Saved, folder: str, optimizer: Saved) -> list[str]:
    """Check that a run can resume with its arguments, and list what happens to those that differ.

    Args:
        then: of the checkpoint; none where it is of an earlier version.
        now: of the run.
        folder: the checkpoint.
        optimizer: what the state of the optimizer fits.

    Raises:
        ValueError: one is refused.
    """
    differ = [name for name in now if name in then and then[name] != now[name]]
    for method in _METHODS & set(differ):  # whose own check says so
        differ = [name for name in differ if name not in (method, f"{method}_kwargs")]
    follows_steps = optimizer.get("schedule", LambdaLR.__name__) == LambdaLR.__name__
    for name in differ:
        if name in _NEW_IS_FINE and then[name] is None:
            continue
        if name in _REFUSED or (name in _RATES and not follows_steps):
            raise ValueError(
                f"The {name} of this run and of checkpoint '{folder}' differ: {_shown(now[name])} now, "
                f"{_shown(then[name])} then. Put it back, or start a new run from the checkpoint's weights with "
                "MultiTaskModel.from_pretrained."
            )
    messages = []
    followed = [name for name in differ if name not in _KEPT]
    if followed:
        changes = ", ".join(f"{name} {_shown(now[name])} (then {_shown(then[name])})" for name in followed)
        messages.append(f"The run resumes from '{folder}' with other arguments, which now take effect: {changes}.")
    messages += [
        f"The run resumes from '{folder}' with the {name} {_shown(now[name])} (then {_shown(then[name])}), which has "
        f"no effect: {_KEPT[name]}."
        for name in differ
        if name in _KEPT
    ]
    return messages


def _shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def describe_optimizer(optimizer: torch.optim.Optimizer, schedule: object, model: torch.nn.Module) -> State:
    """What the state of an optimizer and of its schedule fits, as plain values.

    Args:
        optimizer: as it trains, maybe wrapped.
        schedule: of its rates.
        model: whose parameters it has.
    """
    plain = _unwrapped(optimizer)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [
        [len(group["params"]), _hash_of(names.get(id(parameter), "") for parameter in group["params"])]
        for group in plain.param_groups
    ]
    return {"class": type(plain).__name__, "schedule": type(schedule).__name__, "groups": groups}


def _unwrapped(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    while isinstance(inner := getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = inner
    return optimizer


def _hash_of(names: Iterable[str]) -> str:
    return hashlib.blake2b("\n".join(names).encode(), digest_size=8).hexdigest()


def check_optimizer_state(then: Saved, now: Saved, folder: str) -> None:
    """Check that the state of an optimizer in a checkpoint fits the optimizer of the run.

    Raises:
        ValueError: it is of another, or of other parameters.
    """
    weights = "start a new run from the checkpoint's weights with MultiTaskModel.from_pretrained"
    for key, words, fix in (
        ("class", "optimizer", "optim"),
        ("schedule", "learning rate schedule", "lr_scheduler_type"),
    ):
        if key in then and then[key] != now[key]:
            raise ValueError(
                f"The {words} of this run and of checkpoint '{folder}' differ: {now[key]} now, {then[key]} then, and "
                f"the state of one fits no other. Put {fix} back, or {weights}."
            )
    if "groups" in then and then["groups"] != now["groups"]:
        sizes = [", ".join(str(size) for size, _ in one["groups"]) for one in (now, then)]
        raise ValueError(
            f"The optimizer of this run and of checkpoint '{folder}' have other groups of parameters: {sizes[0]} "
            f"tensors now, {sizes[1]} then. Put freeze, learning_rates, weight_decays and layerwise_lr_decay back, or "
            f"{weights}."
        )


class Settings:
    """The settings of an optimizer and its schedule by arguments, which replace those in the state of a checkpoint.

    Without it they would keep the old arguments, and the next step the learning rate of the old plan.

    Args:
        optimizer: fresh.
        schedule: fresh.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, schedule: object) -> None:
        self.optimizer, self.schedule = optimizer, schedule
        self._groups = [{key: group[key] for key in _OF_ARGUMENTS if key in group} for group in optimizer.param_groups]
        self._base_rates = list(getattr(schedule, "base_lrs", ()))

    def put_back(self) -> None:
        """Put them over the state that was loaded; the same values where no argument differs."""
        for group, values in zip(self.optimizer.param_groups, self._groups, strict=True):
            group.update(values)
        if type(self.schedule) is LambdaLR:
            self.schedule.base_lrs = self._base_rates
            rates = [
                base * factor(self.schedule.last_epoch)
                for base, factor in zip(self._base_rates, self.schedule.lr_lambdas, strict=True)
            ]
            for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
                if isinstance(group["lr"], torch.Tensor):
                    group["lr"].fill_(rate)
                else:
                    group["lr"] = rate
            self.schedule._last_lr = rates
