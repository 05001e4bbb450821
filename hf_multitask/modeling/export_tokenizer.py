"""The tokenizer of an exported task, and its settings for ``generate``."""

from copy import deepcopy

from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from .aliases import Settings, Values
from .backbone import resolve_backbone
from .config import MultiTaskConfig
from .generation import generation_kwargs
from .inputs import input_names, longest_input
from .processors import with_padding

_CODES = (("source_lang", "src_lang"), ("target_lang", "tgt_lang"))


def saved_tokenizer(config: MultiTaskConfig) -> PreTrainedTokenizerBase | None:
    """The tokenizer saved with a model, or else with its backbone; None if both have none."""
    for source in (config, config.backbone_config):
        if not source.name_or_path:
            continue
        revision = getattr(source, "_commit_hash", None)
        given = {} if revision is None else {"revision": revision}
        try:
            found = AutoTokenizer.from_pretrained(
                resolve_backbone(source.name_or_path), config=config.backbone_config, **given
            )
        except (OSError, ValueError, ImportError):
            continue
        if len(found) > len(found.all_special_tokens):  # made of nothing where there are no files, not an error
            return found
    return None


def prepared_tokenizer(
    tokenizer: PreTrainedTokenizerBase | None, config: PreTrainedConfig, task: Settings
) -> PreTrainedTokenizerBase | None:
    """A copy of a tokenizer that makes the inputs of the backbone, and cuts, pads and names languages as the task does.

    Args:
        tokenizer: the backbone's.
        config: the backbone's configuration.
        task: the task's dict.
    """
    if tokenizer is None:
        return None
    tokenizer = with_padding(deepcopy(tokenizer), config)
    limit = longest_input(tokenizer, config, task.get("max_length"))
    if limit is not None:
        tokenizer.model_max_length = limit
    tokenizer.model_input_names = input_names(tokenizer, config)
    for key, attribute in _CODES:
        if task.get(key) is not None:
            setattr(tokenizer, attribute, task[key])
    return tokenizer


def written_by(task: Settings, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> Values:
    """What the stock model's ``generation_config`` holds for its ``generate`` to write as the task does."""
    kwargs = generation_kwargs(tokenizer, task, config)
    return {**kwargs, "max_length": None, "pad_token_id": tokenizer.pad_token_id}
