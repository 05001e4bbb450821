"""Making task types from outside the package known: the user's, and those that a saved model brings along."""

import inspect
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.utils import TRANSFORMERS_DYNAMIC_MODULE_NAME

from .config import MultiTaskConfig
from .decoding import DECODERS, Decoder
from .extensions import EXTENSIONS
from .head_types import HEADS
from .heads import Head
from .travel import ROOM, keep_source, kept_source

_HUB = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token")


def add_type(kind: str, head: type[Head], decode: Decoder) -> None:
    """Make a type known to the models of this process.

    Raises:
        TypeError: ``head`` is no head that can be built, or ``decode`` cannot be called.
        ValueError: the file of one of them could not travel with a saved model.
    """
    if not (isinstance(head, type) and issubclass(head, Head)):
        raise TypeError(f"Type '{kind}': `head` should be a subclass of hf_multitask.modeling.Head. Found {head!r}.")
    if inspect.isabstract(head):
        missing = ", ".join(sorted(head.__abstractmethods__))
        raise TypeError(f"Type '{kind}': the head {head.__name__} does not define {missing}. Define it.")
    if not callable(decode):
        raise TypeError(f"Type '{kind}': `decode` should be a function. Found {decode!r}.")
    for thing in (head, decode):
        keep_source(kind, thing)
    _add(kind, head, decode)


def _add(kind: str, head: Any, decode: Any) -> None:
    HEADS[kind], DECODERS[kind] = head, decode
    EXTENSIONS[kind] = (head, decode)


def load_types(source: str, kwargs: Mapping[str, Any]) -> None:
    """Make known what a saved model that the user trusts needs and this process lacks, by running the code beside it.

    Where the package is imported, its own model class is used and not the one beside the weights, so the types from
    outside are all that has to come from there. A type that is registered here is left as it is.

    Args:
        source: folder or Hub id.
        kwargs: arguments of ``from_pretrained``.

    Raises:
        ValueError: the code beside the model has other code for a type that an earlier model brought along.
    """
    hub = {key: kwargs[key] for key in _HUB if key in kwargs}
    config = kwargs.get("config")
    if not isinstance(config, PreTrainedConfig):
        folder = {key: kwargs[key] for key in ("subfolder",) if key in kwargs}
        config = MultiTaskConfig.from_pretrained(config or source, **hub, **folder)
    wanted = {task["type"]: task["name"] for task in config.tasks if not _is_here(task["type"])}
    if not wanted:
        return
    try:
        brought: Any = get_class_from_dynamic_module("extensions.EXTENSIONS", source, **hub)
    except OSError:
        brought = {}  # no code beside the model: the head will be missed by name
    for kind in wanted.keys() & brought.keys():
        head, decode = brought[kind]
        if kind not in EXTENSIONS:
            for thing in (head, decode):
                keep_source(kind, thing)
            _add(kind, head, decode)
        elif [kept_source(thing) for thing in EXTENSIONS[kind]] != [kept_source(thing) for thing in brought[kind]]:
            raise ValueError(
                f"Task '{wanted[kind]}' of '{source}' has the type '{kind}', and a model loaded earlier brought other "
                "code for that type. Load one of them in a process of its own, or where hf_multitask is not imported."
            )


def _is_here(kind: str) -> bool:
    """Whether a type is ours or the user's, and not one that an earlier model brought along."""
    if kind not in EXTENSIONS:
        return kind in HEADS
    module = EXTENSIONS[kind][0].__module__
    return module.rpartition(".")[0] == ROOM or not module.startswith(f"{TRANSFORMERS_DYNAMIC_MODULE_NAME}.")


for _kind, (_head, _decode) in EXTENSIONS.items():
    HEADS[_kind], DECODERS[_kind] = _head, _decode
