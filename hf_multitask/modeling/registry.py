"""Making task types from outside the package known: the user's, and those that a saved model brings along."""

import inspect
from typing import Any

from transformers import PreTrainedConfig
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.utils import TRANSFORMERS_DYNAMIC_MODULE_NAME

from .aliases import Parts, Settings
from .config import MultiTaskConfig
from .entries import load_entries
from .extensions import EXTENSIONS
from .heads import Head
from .kinds import KINDS, add_extension
from .readers import Decoder, Reader
from .travel import ROOM, keep_source, kept_sources

_HUB = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token")


def add_type(
    kind: str, head: type[Head] | None, decode: Decoder | None = None, reader: type[Reader] | None = None
) -> None:
    """Make a type known to the models of this process.

    A type of the package is known already, by its row in ``kinds``, and names none of the parts.

    Raises:
        TypeError: ``head`` is not a head that can be built, ``reader`` not a reader, or ``decode`` cannot be called.
        ValueError: the file of one of them could not travel with a saved model.
    """
    if head is decode is reader is None and kind in KINDS and kind not in EXTENSIONS:
        return
    if not (isinstance(head, type) and issubclass(head, Head)):
        raise TypeError(f"Type '{kind}': `head` should be a subclass of hf_multitask.modeling.Head. Found {head!r}.")
    if inspect.isabstract(head):
        missing = ", ".join(sorted(head.__abstractmethods__))
        raise TypeError(f"Type '{kind}': the head {head.__name__} does not define {missing}. Define it.")
    if reader is not None and not (isinstance(reader, type) and issubclass(reader, Reader)):
        raise TypeError(
            f"Type '{kind}': `reader` should be a subclass of hf_multitask.modeling.readers.Reader. Found {reader!r}."
        )
    answers = reader is not None and reader.answer is not Reader.answer
    if not (callable(decode) or (decode is None and answers)):
        raise TypeError(f"Type '{kind}': `decode` should be a function. Found {decode!r}.")
    _add(kind, (head, decode) if reader is None else (head, decode, reader))


def _add(kind: str, parts: Parts) -> None:
    for part in filter(None, parts):
        keep_source(kind, part)
    EXTENSIONS[kind] = parts
    add_extension(kind, *parts)


def load_types(source: str, kwargs: Settings) -> None:
    """Make known the types of a trusted saved model that are missing here, by running the code saved with it.

    Where the package is imported, its own model class is used and not the one beside the weights, so the types from
    outside are all that has to come from there. A type that is registered here, or that an installed package
    has, is left as it is.

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
    missing = {task["type"]: task["name"] for task in config.tasks if not _is_here(task["type"])}
    for kind in missing.keys() - KINDS.keys():
        load_entries(kind, KINDS)
    wanted = {kind: task for kind, task in missing.items() if not _is_here(kind)}
    if not wanted:
        return
    try:
        brought: Any = get_class_from_dynamic_module("extensions.EXTENSIONS", source, **hub)
    except OSError:
        brought = {}  # no code beside the model: the head will be missed by name
    for kind in wanted.keys() & brought.keys():
        if kind not in EXTENSIONS:
            _add(kind, brought[kind])
        elif kept_sources(EXTENSIONS[kind]) != kept_sources(brought[kind]):
            raise ValueError(
                f"Task '{wanted[kind]}' of '{source}' has the type '{kind}', and a model loaded earlier brought other "
                "code for that type. Load one of them in a process of its own, or where hf_multitask is not imported."
            )


def _is_here(kind: str) -> bool:
    """Whether a type is the package's or the user's, and not one that came with another model."""
    if kind not in EXTENSIONS:
        return kind in KINDS
    module = EXTENSIONS[kind][0].__module__
    return module.rpartition(".")[0] == ROOM or not module.startswith(f"{TRANSFORMERS_DYNAMIC_MODULE_NAME}.")
