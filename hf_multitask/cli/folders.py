"""Folders of recordings, which are loaded without decoding their files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
from datasets.packaged_modules.audiofolder.audiofolder import AudioFolder

from ..tasks.recordings import AudioFile
from .document import Values

# Arguments of load_dataset for the preparation, and those that its builder does not take.
_PREPARED = ("download_config", "download_mode", "verification_mode", "num_proc", "storage_options")
_OWN = ("verification_mode", "keep_in_memory", "num_proc", "save_infos", "streaming")


def is_audio_folder(arguments: Values) -> bool:
    """Whether ``load_dataset`` reads the arguments with its builder ``audiofolder``."""
    path = str(arguments["path"])
    if path == "audiofolder":
        return True
    return Path(path).is_absolute() and isinstance(_builder(arguments), AudioFolder)


def load_audio_folder(arguments: Values) -> Mapping[str, Any]:
    """The result of ``load_dataset`` for a folder of recordings, with its ``metadata`` or its labels."""
    # In a folder of its own: what `datasets` finds there has columns that are not decoded.
    cache = os.path.join(arguments.get("cache_dir") or datasets.config.HF_DATASETS_CACHE, "recordings")
    builder: Any = _builder({**arguments, "cache_dir": cache})
    builder.BASE_FEATURE = AudioFile
    if arguments.get("streaming"):
        return builder.as_streaming_dataset()
    builder.download_and_prepare(**{key: value for key, value in arguments.items() if key in _PREPARED})
    return builder.as_dataset(in_memory=bool(arguments.get("keep_in_memory")))


def _builder(arguments: Values) -> datasets.DatasetBuilder:
    return datasets.load_dataset_builder(**{key: value for key, value in arguments.items() if key not in _OWN})
