"""What is saved beside weights and configuration: the code that runs them where the package is not installed."""

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from transformers import PreTrainedModel
from transformers.dynamic_module_utils import get_relative_import_files

from .config import MultiTaskConfig
from .handler import FOR_ADAPTERS, FOR_AUDIO, REQUIREMENTS
from .kinds import reader_of
from .readers import TEXTS
from .travel import write_extensions

HANDLER, NEEDS = "handler.py", "requirements.txt"  # of Inference Endpoints


@cache
def _own_files() -> tuple[str, ...]:
    """The files of the configuration, the model and the pipeline, with all that they import from this folder."""
    from .model import MultiTaskModel
    from .pipeline import MultiTaskPipeline

    own = [str(sys.modules[one.__module__].__file__) for one in (MultiTaskConfig, MultiTaskModel, MultiTaskPipeline)]
    return tuple(dict.fromkeys(file for path in own for file in (path, *get_relative_import_files(path))))


@contextmanager
def code_named(model: PreTrainedModel) -> Iterator[None]:
    """Within it, saving a model writes where its code is, and leaves the code to :func:`write_code`.

    Transformers would find and copy the files of the model and those of its configuration, which are the same, at
    every save. It does so for the classes of a user.
    """
    from .model import MultiTaskModel

    config = model.config
    if type(model) is not MultiTaskModel or type(config) is not MultiTaskConfig:
        yield
        return
    named = {
        one._auto_class: f"{one.__module__.rpartition('.')[2]}.{one.__name__}"
        for one in (MultiTaskConfig, MultiTaskModel)
    }
    config.auto_map = (getattr(config, "auto_map", None) or {}) | named
    # Of the objects, by which Transformers decides.
    model.is_remote_code, config._auto_class = lambda: False, None  # type: ignore[method-assign, misc]
    try:
        yield
    finally:
        del model.is_remote_code, config._auto_class


def write_code(folder: Path, config: MultiTaskConfig) -> None:
    """Write what runs a model without this package, and the handler of Inference Endpoints with its requirements.

    Args:
        folder: where the model is saved.
        config: of the model.
    """
    for file in _own_files():
        shutil.copyfile(file, folder / Path(file).name)
    shutil.copyfile(Path(__file__).with_name(HANDLER), folder / HANDLER)
    hears = any(reader_of(task).modality != TEXTS for task in config.tasks)
    needs = [*REQUIREMENTS, *(FOR_AUDIO if hears else ()), *(FOR_ADAPTERS if config.adapters else ())]
    (folder / NEEDS).write_text("".join(f"{line}\n" for line in needs), encoding="utf-8")
    write_extensions(folder, config.tasks)
