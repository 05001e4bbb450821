"""A saved model and its tokenizer or feature extractor, as the commands load them."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerBase, ProcessorMixin

from ..modeling import MultiTaskModel
from ..modeling.aliases import Open
from ..modeling.kinds import loading_reader
from ..modeling.loading import explained


def load_saved(name: str) -> tuple[MultiTaskModel, Open]:
    """Load a folder or a Hub id.

    Raises:
        ValueError: the name is a path without a model, or the model is not a multi-task model.
        OSError: the Hub does not return it.
    """
    path = Path(name).expanduser()
    if path.is_dir() and not (path / "config.json").is_file():
        raise ValueError(f"The folder '{name}' contains no model: it has no config.json. Use the output_dir of a run.")
    if not path.is_dir() and (path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1):
        raise ValueError(f"There is no folder '{name}'. Check the path.")
    model = MultiTaskModel.from_pretrained(name)
    with explained(name):
        return model, loading_reader(model.config.tasks).load(name)


def processor_of(given: Open) -> dict[str, Open]:
    """The argument of a pipeline for what :func:`load_saved` gives beside the model."""
    if isinstance(given, ProcessorMixin):
        return {"processor": given}
    return {"tokenizer" if isinstance(given, PreTrainedTokenizerBase) else "feature_extractor": given}
