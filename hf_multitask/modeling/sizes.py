"""What a configuration requires, compared with the saved weights, before any memory is allocated."""

import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from safetensors import safe_open
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file
from transformers.utils.hub import get_checkpoint_shard_files

from .aliases import Settings, Values

_MOST_PARTS = 1000  # layers, experts and the like that are built whatever the weights are: in seconds
_MOST_SIZE = 10**8
_SLACK = 10**7  # numbers that may be missing: buffers, and what the family does not save
_PARTS = re.compile(r"(layers?|blocks?|block_sizes|block_repeats|groups?|experts|depths?|stages?|group_num)$")
_COUNTS = re.compile(r"(heads?|layers?|size|dim)$")
_NO_SIZE = re.compile(r"(_id|_ids|seed|theta|base|scale|factor|eps|version)$")
_FIX = "Use a config and weights that were saved together."


class Loading:
    """A model that is loaded: where from, and the shapes of its weights, None where they are not compared."""

    def __init__(self, source: str, shapes: Mapping[str, tuple[int, ...]] | None) -> None:
        self.source, self.shapes = source, shapes
        self.built = False

    @property
    def numbers(self) -> int:
        """How many the weights hold."""
        return sum(_product(shape) for shape in (self.shapes or {}).values())


_LOADING: ContextVar[Loading | None] = ContextVar("loading", default=None)


@contextmanager
def loading(source: str, shapes: Mapping[str, tuple[int, ...]] | None) -> Iterator[None]:
    """Within it, a model that is built is compared with the shapes, and a configuration that makes none is named.

    Raises:
        ValueError: they do not fit each other.
    """
    state = Loading(source, shapes)
    token = _LOADING.set(state)
    try:
        yield
    except (ValueError, OSError, ImportError):
        raise
    except Exception as problem:
        if state.built or "unexpected keyword argument" in str(problem):
            raise
        said = " ".join(str(problem).split()) or type(problem).__name__
        raise ValueError(
            f"The config.json of '{source}' makes no model ({type(problem).__name__}: {said}). {_FIX}"
        ) from problem
    finally:
        _LOADING.reset(token)


def saved_shapes(source: str | os.PathLike[str], hub: Settings) -> dict[str, tuple[int, ...]] | None:
    """The shapes of saved weights by their headers; None where there are no such files.

    Args:
        source: folder or Hub id.
        hub: arguments about finding files.
    """
    found: dict[str, tuple[int, ...]] = {}
    for path in weight_files(source, hub):
        with safe_open(path, framework="pt") as weights:
            found |= {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    return found or None


def weight_files(source: str | os.PathLike[str], hub: Settings, *, shards_of_hub: bool = False) -> list[str]:
    """The files of saved weights in safetensors; none where there are no such files.

    Args:
        source: folder or Hub id.
        hub: arguments about finding files.
        shards_of_hub: whether to fetch those of a repository, which are many, and else come with the model.
    """
    quiet: Values = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    quiet["_raise_exceptions_for_gated_repo"] = False
    # A download that is forced takes place when the model is loaded.
    quiet |= {key: value for key, value in hub.items() if key != "force_download"}
    if path := cached_file(source, SAFE_WEIGHTS_NAME, **quiet):
        return [path]
    index = cached_file(source, SAFE_WEIGHTS_INDEX_NAME, **quiet)
    if index is None or not (shards_of_hub or Path(source).is_dir()):
        return []
    shards, _ = get_checkpoint_shard_files(source, index, subfolder=hub.get("subfolder") or "")
    return [path for path in shards if Path(path).is_file()]


def check_config(config: PreTrainedConfig | Settings) -> None:
    """Check that a loaded configuration has no more parts than can be built, no absurd sizes, and no NaN.

    Raises:
        ValueError: it does.
    """
    state = _LOADING.get()
    if state is None:
        return
    most = {True: max(_MOST_PARTS, len(state.shapes or ())), False: max(_MOST_SIZE, state.numbers)}
    values = dict(config.to_dict() if isinstance(config, PreTrainedConfig) else config)
    values.pop("quantization_config", None)  # whose numbers are no sizes
    for name, value in _numbers(values):
        if math.isnan(value):
            raise ValueError(f"The config.json of '{state.source}' has `{name} = NaN`, which is not a number. {_FIX}")
        if isinstance(value, float):
            continue  # no size
        if value < 0 and _COUNTS.search(name):
            raise ValueError(f"The config.json of '{state.source}' has `{name} = {value}`, below 0. {_FIX}")
        limit = most[_PARTS.search(name) is not None]
        if value > limit and not _NO_SIZE.search(name):
            raise ValueError(
                f"The config.json of '{state.source}' has `{name} = {value}`, and its weights are "
                f"{len(state.shapes or ()):,} tensors of {state.numbers:,} numbers in all. {_FIX}"
            )


def _numbers(values: object, name: str = "") -> Iterator[tuple[str, int | float]]:
    if isinstance(values, Mapping):
        for key, value in values.items():
            yield from _numbers(value, str(key))
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _numbers(value, name)
    elif isinstance(values, int | float) and not isinstance(values, bool):
        yield name, values


def check_shapes(model: PreTrainedModel, *, whole: bool) -> None:
    """Compare a model that is built on the meta device with the weights that it is to get.

    Args:
        model: of :func:`loading`; of another nothing is known.
        whole: whether all of it is to come from the weights, and not the heads alone.

    Raises:
        ValueError: the shape of a tensor is another, or the model is larger than its weights by far.
    """
    state = _LOADING.get()
    if state is None or state.built:
        return
    state.built = True
    if state.shapes is None:
        return
    tensors = dict(model.state_dict())
    differ = [
        (name, state.shapes[name], tuple(tensor.shape)) for name, tensor in tensors.items() if name in state.shapes
    ]
    if wrong := [one for one in differ if one[1] != one[2]]:
        raise ValueError(mismatch(state.source, *min(wrong)))
    own = {**tensors, **dict(model.named_buffers())}
    lacking = sum(tensor.numel() for name, tensor in own.items() if name not in state.shapes)
    if whole and lacking > 2 * state.numbers + _SLACK:
        largest = max((name for name in own if name not in state.shapes), key=lambda name: own[name].numel())
        raise ValueError(
            f"Checkpoint '{state.source}' has no weights for '{largest}' {list(own[largest].shape)}: its config makes "
            f"a model with {lacking:,} numbers more than its weights have. {_FIX}"
        )


def mismatch(source: str, name: str, found: Iterable[int], wanted: Iterable[int]) -> str:
    """The message about a tensor of another shape than the configuration gives it."""
    parts = name.split(".")
    owner = f"head '{parts[1]}'" if parts[0] == "heads" else f"'{name}'"
    return (
        f"Checkpoint '{source}' has weights of another size for {owner}: '{name}' is {list(found)}, and the config "
        f"makes it {list(wanted)}. Check the label_names and sizes in config.json. {_FIX}"
    )


def _product(shape: tuple[int, ...]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product
