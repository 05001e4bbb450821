"""Teachers whose weights do not fit into memory: every layer is read from the files of the model whenever it runs."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import psutil
import torch
from accelerate.hooks import attach_align_device_hook, remove_hook_from_submodules
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.integrations.accelerate import load_offloaded_parameter

from ...modeling import MultiTaskModel
from ...modeling.backbone import resolve_backbone
from ...modeling.branches import BranchedLayer
from ...modeling.config import MultiTaskConfig
from ...modeling.importing import stock_in_place
from ...modeling.sizes import weight_files
from ...tasks import Task

_SHARE = 0.9  # of the available memory; the rest is for the states of a pass
_DISK = "disk"  # accelerate's name of the place
_CGROUP = Path("/sys/fs/cgroup")
_TOKENS = 8


def available_memory(device: torch.device) -> int:
    """The bytes that this process may fill with weights: of the machine, its container and the device."""
    found = [psutil.virtual_memory().available, *_left_in_container()]
    found = [one // int(os.environ.get("LOCAL_WORLD_SIZE", 1)) for one in found]
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        found.append(torch.cuda.mem_get_info(device)[0] + unused)
    return int(_SHARE * max(min(found), 0))


def _left_in_container() -> Iterator[int]:
    """What the control groups of this process leave of their limits; files in memory are given up when it is needed."""
    try:
        own = Path("/proc/self/cgroup").read_text(encoding="utf-8").rpartition("::/")[2].strip()
    except OSError:
        return
    for folder in (_CGROUP / own, *(_CGROUP / own).parents):
        try:
            most = int((folder / "memory.max").read_text(encoding="utf-8"))  # or "max"
            used = int((folder / "memory.current").read_text(encoding="utf-8"))
            lines = (folder / "memory.stat").read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError):
            continue
        yield most - used + sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))


def saved_size(path: str) -> int:
    """The bytes of the weights of a saved model, with those of the backbone that it was saved without."""
    values, _ = PreTrainedConfig.get_config_dict(path)
    sources = [path]
    if left_out := _source_of(values):
        sources.append(resolve_backbone(left_out))
    files = [Path(file) for source in sources for file in weight_files(source, {}, shards_of_hub=True)]
    return sum(file.stat().st_size for file in files)


def _source_of(values: dict[str, Any]) -> str | None:
    """Where the backbone of a model comes from that was saved without."""
    adapters = values.get("adapters") or {}
    return str(adapters["source"]["name"]) if adapters.get("only") else None


def load_streamed(path: str, task: Task, device: torch.device) -> MultiTaskModel:
    """A saved model whose layers stay in its files.

    Args:
        path: folder or Hub id of a multi-task model, or of a stock model.
        task: of the stock model.
        device: where it runs, and where all but the layers is.

    Raises:
        ValueError: it cannot be read layer by layer.
    """
    values, _ = PreTrainedConfig.get_config_dict(path)
    if left_out := _source_of(values):
        raise ValueError(
            f"it was saved without its backbone '{left_out}', and cannot be read layer by layer. Save it with "
            "adapters_only=False."
        )
    if values.get("quantization_config") or (values.get("backbone_config") or {}).get("quantization_config"):
        raise ValueError("it is quantized, and cannot be read layer by layer.")
    name, mapping = str(task.name), None
    if values.get("model_type") == MultiTaskConfig.model_type:
        config = MultiTaskConfig.from_pretrained(path)
    else:
        config, mapping = stock_in_place(name, path, {"type": task.type})
    with torch.device("meta"):
        empty = MultiTaskModel(config)
    places = {**dict(_places("backbone", empty.backbone, str(device))), "heads": str(device)}
    layers = [part for part, place in places.items() if place == _DISK]
    if not layers:
        raise ValueError(f"its backbone, {type(empty.backbone).__name__}, has no list of layers that could be read.")
    _check_parts(empty, layers, device)
    with _loading_streamed():
        if mapping is None:
            model, missing = MultiTaskModel.from_pretrained(path, device_map=places), set[str]()
        else:  # without the checks of a saved multi-task model, which expect what no task of a stock one reads
            load: Any = super(MultiTaskModel, MultiTaskModel).from_pretrained
            given = {"config": config, "key_mapping": mapping, "device_map": places, "use_safetensors": True}
            model, info = load(path, **given, output_loading_info=True)
            missing = info["missing_keys"]
    unread = unread_weights(model, name)
    read = [key for key, _ in model.named_parameters() if key not in unread]
    if lost := missing & set(read):
        raise ValueError(f"there are no weights for '{min(lost)}' ({len(lost)} tensors).")
    _hold_whole(model, [layer for layer in layers if any(key.startswith(f"{layer}.") for key in read)], device)
    _try_out(model, name, device)
    return cast(MultiTaskModel, model)


@contextmanager
def _loading_streamed() -> Iterator[None]:
    """Within it, accelerate does not tell what this package tells, and weights in another form are explained."""
    notes = logging.getLogger("accelerate.big_modeling")
    level = notes.level
    notes.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():  # a parameter may be in no module that has a place of its own
            warnings.filterwarnings("ignore", "The following device_map keys")
            yield
    except ValueError as problem:
        if "offload_folder" not in str(problem):
            raise
        raise ValueError(
            "its weights are saved in another form than that in which they are used, as those of experts are, so they "
            "cannot be read layer by layer. Save it with save_original_format=False."
        ) from problem
    finally:
        notes.setLevel(level)


def unread_weights(model: MultiTaskModel, name: str) -> set[str]:
    """The names of the weights that a task does not read."""
    unread = {id(value) for value in model.unread_parameters([name])}
    return {key for key, value in model.named_parameters(remove_duplicate=False) if id(value) in unread}


def _places(name: str, module: nn.Module, device: str) -> Iterator[tuple[str, str]]:
    """Where each part of a backbone is: the items of its lists of layers in its files, and the rest on the device."""
    if isinstance(module, nn.ModuleList):
        for number, item in enumerate(module):
            yield from _items(f"{name}.{number}", item, device)
    elif any(isinstance(part, nn.ModuleList) for part in module.modules()):
        yield from ((f"{name}.{key}", device) for key, _ in module.named_parameters(recurse=False))
        own = dict(module.named_buffers(recurse=False)).keys() - module._non_persistent_buffers_set
        yield from ((f"{name}.{key}", device) for key in own)
        for key, child in module.named_children():
            yield from _places(f"{name}.{key}", child, device)
    else:
        yield name, device


def _items(name: str, item: nn.Module, device: str) -> Iterator[tuple[str, str]]:
    if isinstance(item, nn.ModuleList):
        yield from _places(name, item, device)
    elif isinstance(item, BranchedLayer):  # of which a task runs one branch
        yield from ((f"{name}.branches.{branch}", _DISK) for branch in item.branches)
    else:
        yield name, _DISK


def _check_parts(empty: MultiTaskModel, layers: list[str], device: torch.device) -> None:
    """Check that the largest layer fits into memory, beside all that is not in a layer."""
    sizes = [_bytes(empty.get_submodule(layer)) for layer in layers]
    least, available = _bytes(empty) - sum(sizes) + max(sizes), available_memory(device)
    if least > available:
        raise ValueError(
            f"its largest layer and what is not in a layer take {amount(least)}, and {amount(available)} of memory is "
            "available."
        )


def _bytes(module: nn.Module) -> int:
    return sum(value.numel() * value.element_size() for value in module.parameters())


def amount(size: int) -> str:
    """A number of bytes in words."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"


def _hold_whole(model: MultiTaskModel, layers: list[str], device: torch.device) -> None:
    """Read all weights of a layer when it runs: some families use those of a part without running the part."""
    hooks = (getattr(module, "_hf_hook", None) for module in model.get_submodule(layers[0]).modules())
    weights = next(hook.weights_map.dataset for hook in hooks if hook is not None and hook.offload)
    for name in layers:
        layer = model.get_submodule(name)
        remove_hook_from_submodules(layer)
        attach_align_device_hook(
            layer,
            device,
            offload=True,
            weights_map=weights,
            module_name=name,
            skip_keys=cast(Any, model._skip_keys_device_placement),
            preload_module_classes=[type(layer).__name__],
        )


def _try_out(model: MultiTaskModel, name: str, device: torch.device) -> None:
    """Run a short text, as weights that a family uses elsewhere than in their layer are not there."""
    ids = torch.ones((1, _TOKENS), dtype=torch.long, device=device)
    try:
        with torch.no_grad():
            model(input_ids=ids, attention_mask=ids, task_rows={name: torch.zeros(1, dtype=torch.long)})
    except (RuntimeError, NotImplementedError, KeyError) as problem:
        raise ValueError(
            f"its backbone, {type(model.backbone).__name__}, cannot be read layer by layer "
            f"({type(problem).__name__}: {' '.join(str(problem).split())})."
        ) from problem


def streamed(model: nn.Module) -> bool:
    """Whether some weights of a model are not in memory until they are used."""
    return any(parameter.is_meta for parameter in model.parameters())


def weights_of(model: PreTrainedModel, aside: Collection[str] = ()) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights of a model by name, without some, in the order of the names; each is read when its turn comes."""
    for name, value in sorted(model.state_dict().items()):
        if name not in aside:
            yield name, load_offloaded_parameter(model, name) if value.is_meta else value
