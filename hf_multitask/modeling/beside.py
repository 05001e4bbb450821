"""What is saved beside weights and configuration: the code that runs them where the package is not installed."""

import shutil
from pathlib import Path

from transformers.dynamic_module_utils import custom_object_save

from .config import MultiTaskConfig
from .handler import FOR_ADAPTERS, FOR_AUDIO, REQUIREMENTS
from .kinds import reader_of
from .readers import TEXTS
from .travel import write_extensions

HANDLER, NEEDS = "handler.py", "requirements.txt"  # of Inference Endpoints


def write_code(folder: Path, config: MultiTaskConfig) -> None:
    """Write the pipeline, the handler of Inference Endpoints with its requirements, and the user's own task types.

    Args:
        folder: that has the code of the model already.
        config: of the model.
    """
    from .pipeline import MultiTaskPipeline

    custom_object_save(MultiTaskPipeline, folder)
    shutil.copyfile(Path(__file__).with_name(HANDLER), folder / HANDLER)
    hears = any(reader_of(task).modality != TEXTS for task in config.tasks)
    needs = [*REQUIREMENTS, *(FOR_AUDIO if hears else ()), *(FOR_ADAPTERS if config.adapters else ())]
    (folder / NEEDS).write_text("".join(f"{line}\n" for line in needs), encoding="utf-8")
    write_extensions(folder, config.tasks)
