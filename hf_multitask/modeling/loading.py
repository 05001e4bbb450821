"""Loading a saved model: what is rejected, and the message where the Hub or a file fails."""

import contextlib
import json
import logging
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError
from transformers import GenerationConfig

from .aliases import Function, Settings, Values
from .backbone import attending, check_loading
from .config import MultiTaskConfig
from .registry import load_types
from .sizes import loading, mismatch, saved_shapes

_HUB = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
_OTHER_WEIGHTS = ("key_mapping", "state_dict", "quantization_config", "variant", "gguf_file")  # than the files have
_AGAIN = "Save them again, or download them again with force_download=True."
_LOGIN = "Log in with `hf auth login`, or give another token."


def load_model(load: Function, source: str | os.PathLike[str], *args: Any, **kwargs: Any) -> tuple[Any, Values]:
    """A saved model and Transformers' notes on its weights.

    Args:
        load: the inherited ``from_pretrained``.
        source: folder or Hub id.
        args: of ``from_pretrained``.
        kwargs: likewise.

    Raises:
        ValueError: it is not a multi-task model, or its configuration and weights do not belong together.
        OSError: the Hub does not give it, or there are no weights in safetensors.
    """
    if kwargs.pop("use_safetensors", True) is False:
        raise ValueError("`use_safetensors` should not be False: weights of other forms are pickles. Leave it out.")
    check_loading(kwargs)
    ignores = kwargs.pop("ignore_mismatched_sizes", False)
    hub = {key: kwargs[key] for key in _HUB if key in kwargs}
    with explained(str(source), kwargs.get("revision")):
        with loading(str(source), None):
            if (
                kwargs.get("config") is None
            ):  # first, because the client tries every file for long where the Hub cannot be reached
                MultiTaskConfig.get_config_dict(source, **hub)
        if kwargs.get("trust_remote_code"):
            load_types(str(source), kwargs)
        others = ignores or any(kwargs.get(name) is not None for name in _OTHER_WEIGHTS)
        shapes = None if others else saved_shapes(source, hub)
        with loading(str(source), shapes), _without_report(not ignores), attending(kwargs):
            model, info = load(
                source, *args, output_loading_info=True, use_safetensors=True, ignore_mismatched_sizes=True, **kwargs
            )
    _check_loaded(str(source), model.config, info if not ignores else info | {"mismatched_keys": ()})
    if model.backbone.can_generate():
        with contextlib.suppress(OSError):  # a model saved without one has the configuration's
            model.backbone.generation_config = GenerationConfig.from_pretrained(source, **hub)
    return model, info


def _check_loaded(source: str, config: MultiTaskConfig, info: Settings) -> None:
    fix = "Use a config and weights that were saved together."
    for problem, keys in (("no", info["missing_keys"]), ("foreign", info["unexpected_keys"])):
        if keys:
            raise ValueError(
                f"Checkpoint '{source}' has {problem} weights for {_owner(keys)} (tasks in its config: "
                f"{', '.join(config.task_names) or 'none'}; {len(keys)} tensors). {fix}"
            )
    if info["mismatched_keys"]:
        key, found, wanted = min(info["mismatched_keys"])
        raise ValueError(mismatch(source, key, found, wanted))


def _owner(keys: Collection[str]) -> str:
    """What some weights belong to, in words: a head where one is among them."""
    parts = [key.split(".") for key in sorted(keys)]
    heads = sorted({part[1] for part in parts if part[0] == "heads"})
    return f"head '{heads[0]}'" if heads else f"'{min(keys)}'"


@contextlib.contextmanager
def _without_report(wanted: bool) -> Iterator[None]:
    """Suppress Transformers' table of weights that do not fit, which an error of this package sums up in a sentence."""
    logger = logging.getLogger("transformers.modeling_utils")

    def keep(record: logging.LogRecord) -> bool:
        return not wanted or "LOAD REPORT" not in record.getMessage()

    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)


@contextlib.contextmanager
def explained(source: str, revision: str | None = None) -> Iterator[None]:
    """Explain in one sentence why a folder or a repository cannot be loaded.

    Raises:
        OSError: the Hub does not give a file, or the file does not exist.
        ValueError: a file is not complete.
    """
    try:
        yield
    except SafetensorError as problem:
        raise ValueError(
            f"The weights of '{source}' are not complete, or not in safetensors ({problem}). {_AGAIN}"
        ) from problem
    except json.JSONDecodeError as problem:
        raise ValueError(
            f"A JSON file of '{source}', its tokenizer or index of weights, is not complete ({problem}). {_AGAIN}"
        ) from problem
    except Exception as problem:
        if not Path(source).is_dir() and (said := _said_of_hub(problem, source, revision)):
            raise OSError(said) from problem
        if isinstance(problem, FileNotFoundError) and "safetensors" in str(problem):
            raise OSError(f"The weights of '{source}' are not complete: {problem}. {_AGAIN}") from problem
        if isinstance(problem, OSError) and "safetensors" in str(problem):
            raise OSError(
                f"There is no model.safetensors in '{source}'. Weights of another form, such as the pickle "
                "pytorch_model.bin, are not loaded, because reading one can run code. Save the model as safetensors."
            ) from problem
        raise


def _said_of_hub(problem: BaseException, source: str, revision: str | None) -> str | None:
    reason = hub_failure(problem)
    if reason is None:
        return None
    at = f"Model '{source}'" + (f", revision '{revision}'" if revision else "")
    return f"{at} cannot be loaded from {_endpoint()}: {reason}"


class PushError(OSError):
    """A push that the Hub refused, or for which it could not be reached."""


@contextlib.contextmanager
def pushing(name: str) -> Iterator[None]:
    """Explain in one sentence why a repository cannot be pushed to.

    Raises:
        PushError: the Hub refuses, or is not there.
    """
    try:
        yield
    except Exception as problem:
        if (reason := hub_failure(problem)) is None:
            raise
        raise PushError(f"The repository '{name}' cannot be pushed to: {reason}") from problem


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT") or constants.ENDPOINT


def hub_failure(problem: BaseException | None) -> str | None:
    """The reason and the fix of an error of the Hub; None for any other error."""
    chain: list[BaseException] = []
    while problem is not None and problem not in chain:
        chain.append(problem)
        problem = problem.__cause__ or problem.__context__
    for error in chain:
        if said := _said_by(error):
            return said
    if any(isinstance(error, LocalEntryNotFoundError) for error in chain):
        return "it is not in the cache, and nothing was asked. Allow downloads, or name a local folder."
    return None


def _said_by(error: BaseException) -> str | None:
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set. Unset it, or name a local folder."
    if isinstance(error, RevisionNotFoundError):
        return "there is no such revision. Name a branch, a tag or a commit of the repository."
    if isinstance(error, RepositoryNotFoundError):
        return f"there is no such repository, or it is not open to the token. Check the name. {_LOGIN}"
    if isinstance(error, HfHubHTTPError) and not isinstance(error, EntryNotFoundError):
        status = error.response.status_code
        if status == 401:
            return f"the token is not valid. {_LOGIN}"
        told = " ".join((error.server_message or "").split())
        if status == 403:
            return f"the token has no right to that{f' ({told})' if told else ''}. {_LOGIN}"
        return f"the Hub answered {status}{f' ({told})' if told else ''}. Try again later."
    if "Consistency check failed" in str(error):
        return "a file did not arrive completely. Load it again; what is in the cache stays."
    if type(error).__module__.startswith(("httpx", "httpcore")):  # which of them is up to the version of the client
        return f"the connection failed ({str(error) or type(error).__name__}). Check the network, and try again."
    return None
