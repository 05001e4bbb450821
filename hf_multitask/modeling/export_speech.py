"""What lies beside an exported task that reads recordings: a feature extractor, and the symbols of its transcripts."""

import json
import tempfile
from pathlib import Path

from transformers import ProcessorMixin

from .aliases import Open, Settings
from .backbone import resolve_backbone
from .config import MultiTaskConfig
from .kinds import reader_of
from .readers import Reader
from .speech import PAD
from .symbols import END, START, UNKNOWN

_SPACE = "|"  # of the stock tokenizer, whatever it is told


def speech_processor(given: object, config: MultiTaskConfig, task: Settings) -> Open:
    """The feature extractor of a task, or the processor that holds it and a tokenizer; None where there is none.

    Args:
        given: what the user gives; where None, what lies beside the model or its backbone.
        config: of the model.
        task: the task's dict.

    Raises:
        ValueError: the stock tokenizer cannot hold a symbol.
    """
    from transformers import Wav2Vec2CTCTokenizer, Wav2Vec2Processor  # here, as they take their time

    reader = reader_of(task)
    if reader.writes:  # with a tokenizer that is there already
        return given if isinstance(given, ProcessorMixin) else _saved(config, reader)
    found = _saved(config, reader) if given is None else reader.processor(given)
    if found is None or not task.get("vocabulary"):
        return found
    if _SPACE in task["vocabulary"]:
        raise ValueError(
            f"Task '{task['name']}' is not exported: its vocabulary has the symbol {_SPACE!r}, which the stock "
            "tokenizer reads as a space. Save the whole model instead."
        )
    numbers = {_SPACE if symbol == " " else symbol: number for number, symbol in enumerate(task["vocabulary"])}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "vocab.json"
        file.write_text(json.dumps(numbers, ensure_ascii=False), encoding="utf-8")
        # Special tokens that are no outputs of the head would have numbers behind them.
        roles = {"unk_token": (UNKNOWN, PAD), "bos_token": (START, None), "eos_token": (END, None)}
        special = {role: token if token in numbers else other for role, (token, other) in roles.items()}
        tokenizer = Wav2Vec2CTCTokenizer(str(file), pad_token=PAD, clean_up_tokenization_spaces=False, **special)
    return Wav2Vec2Processor(feature_extractor=found, tokenizer=tokenizer)


def _saved(config: MultiTaskConfig, reader: Reader) -> Open:
    for source in (config, config.backbone_config):
        if not source.name_or_path:
            continue
        revision = getattr(source, "_commit_hash", None)
        given = {} if revision is None else {"revision": revision}
        try:
            return reader.load(resolve_backbone(source.name_or_path), **given)
        except (OSError, ValueError, ImportError):
            continue
    return None
