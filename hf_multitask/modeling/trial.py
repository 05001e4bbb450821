"""Whether a backbone does what the tasks need of it, tried when a model is built."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import cast

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from .aliases import Open, Values
from .forks import as_task
from .heads import Head
from .keywords import parameter_names
from .native import reading_part
from .precision import fitted
from .routing import States
from .shared import SharedModel
from .varlen import VARLEN

_FAILS = (AttributeError, IndexError, KeyError, TypeError)  # whatever the numbers are
_WORDS = 50
_ROWS, _TOKENS = 1, 16  # several rows would need a padding token, which some families have none of
ANYWHERE = ("eager", "sdpa", VARLEN, None)  # attention that runs where the weights are now
# Most that states of a stream may differ from those of rows, relative to the largest.
_TOLERANCE, _TOLERANCE_LOW = {torch.float64: 1e-8, torch.float32: 1e-4}, 5e-2


@contextmanager
def evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Within it, a module is in evaluation mode."""
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)


def check_own_code(name: str, config: PreTrainedConfig, backbone: PreTrainedModel | None = None) -> None:
    """Check that a backbone's classes are there wherever a saved model is loaded, and did not come with its files.

    Args:
        name: of the backbone.
        config: its configuration.
        backbone: itself, where it is built.

    Raises:
        ValueError: they came with its files.
    """
    for part in (config, backbone):
        if type(part).__module__.split(".")[0] == "transformers_modules":
            raise ValueError(
                f"The backbone '{name}' runs code of its own ({type(part).__name__}), which a saved multi-task model "
                "does not bring along, so it could not be loaded. Take a backbone of a family that Transformers "
                f"has, or leave trust_remote_code out if it knows '{config.model_type}'."
            )


def check_reading(model: SharedModel) -> None:
    """Run the backbone of a model once, on a short text, with the inputs that tokenizers make.

    What runs only elsewhere than the weights are now, such as an attention of GPUs, or is spread over processes, is
    taken as it is.

    Args:
        model: a multi-task model with its weights, in evaluation mode.

    Raises:
        ValueError: the family reads something else, as Tapas tables, or texts of one length only.
    """
    part, config = reading_part(model.backbone), model.config.backbone_config
    names = parameter_names(part.forward)
    elsewhere = config._attn_implementation not in ANYWHERE or getattr(model.backbone, "is_quantized", False)
    if "input_ids" not in names or elsewhere or not _whole(part):
        return
    ids_NL = torch.ones(_ROWS, _TOKENS, dtype=torch.long, device=model.backbone.device)
    given = {"input_ids": ids_NL, "attention_mask": ids_NL}
    if "token_type_ids" in names:
        given["token_type_ids"] = torch.zeros_like(ids_NL)
    try:
        with torch.no_grad(), as_task(model.routing, model.config.task_names[0]):
            part(**given)
    except (NotImplementedError, torch.OutOfMemoryError):  # of a dtype on this device
        return
    except (*_FAILS, RuntimeError) as problem:
        raise ValueError(
            f"The backbone family '{config.model_type}' is not supported: {type(part).__name__}, set as the checkpoint "
            f"has it, does not read a text of {_TOKENS} tokens ({type(problem).__name__}: "
            f"{' '.join(str(problem).split())}). Choose another backbone."
        ) from problem


def packing_problem(model: SharedModel, read: Callable[[Values], States]) -> str | None:
    """What is wrong with the states that a backbone makes of texts in a stream, in words; None if nothing is.

    The attention of the trial is ``varlen``, which runs where the weights are; what is spread over processes, or
    quantized, is taken as it is.

    Args:
        model: a multi-task model with its weights.
        read: one pass of the backbone over the inputs of two texts.
    """
    config = model.backbone.config
    if not _whole(model.backbone) or getattr(model.backbone, "is_quantized", False):
        return None
    size = min(getattr(config.get_text_config(), "vocab_size", _WORDS), _WORDS)
    ids_NL = torch.arange(2 * _TOKENS, device=model.backbone.device).view(2, _TOKENS) % size
    mask_NL = torch.ones_like(ids_NL)
    mask_NL[1, _TOKENS // 2 :] = 0
    implementation = config._attn_implementation
    states: list[Open] = []
    config._attn_implementation = VARLEN
    try:
        for packs in (False, True):
            model.packs = packs
            with torch.no_grad(), evaluating(model):
                states.append(read({"input_ids": ids_NL, "attention_mask": mask_NL}))
    except (*_FAILS, RuntimeError, ValueError) as problem:
        return f"{type(problem).__name__}: {' '.join(str(problem).split())}"
    finally:
        model.packs = False
        config._attn_implementation = implementation
    there = mask_NL.bool()
    pairs = [[one.last_hidden_state[there] for one in states], [one.pooler_output for one in states]]
    for wanted, found in pairs:
        if wanted is not None:
            difference = float((found - wanted).abs().max() / wanted.abs().max())
            if not difference <= _TOLERANCE.get(wanted.dtype, _TOLERANCE_LOW):
                return f"its states differ by {difference:.1e} of the largest"
    return None


def _whole(module: torch.nn.Module) -> bool:
    """Whether all weights are in the memory of this process."""
    return all(weight.numel() and not weight.is_meta for weight in module.parameters())


def check_languages(model: SharedModel) -> None:
    """Check that a model that is prompted with languages, Whisper, knows those of its tasks.

    Raises:
        ValueError: it knows English alone, or does not know one.
    """
    for task in model.config.tasks if model.config.backbone_config.model_type == "whisper" else ():
        language = task.get("language")
        if language is None or not cast(Head, model.heads[task["name"]]).writes:
            continue
        known = getattr(getattr(model.backbone, "generation_config", None), "lang_to_id", None) or {}
        if f"<|{language}|>" not in known:
            has = f"it knows {', '.join(sorted(known)).replace('<|', '').replace('|>', '')}" if known else "it has none"
            raise ValueError(
                f"Task '{task['name']}': `language` should be a code that the generation_config of the Whisper model "
                f"has, and {has}. Found `language = {language!r}`. Leave it out, or take a multilingual Whisper."
            )


def check_family(model: SharedModel, heads: Mapping[str, torch.nn.Module] | None = None) -> None:
    """Run each type of head of a model once, on states without content.

    Args:
        model: a multi-task model with its weights.
        heads: by task, heads to run in place of the model's.

    Raises:
        ValueError: the stock class of a task needs of the family's backbone what other families do not have.
    """
    config, tried = model.config.backbone_config, dict(model.heads.items()) if heads is None else heads
    size = getattr(config.get_text_config(), "hidden_size", None)
    kept = {name: head for name, head in tried.items() if head.language_model is None and _whole(head)}
    firsts = {cast(type[Head], type(head)): name for name, head in reversed(kept.items())}
    if not isinstance(size, int):
        return
    for kind, name in firsts.items():
        weight = next(tried[name].parameters(), next(model.backbone.parameters()))
        hidden_NLD = torch.zeros(_ROWS, _TOKENS, size, device=weight.device, dtype=model.backbone.dtype)
        ids_NL = torch.ones(_ROWS, _TOKENS, dtype=torch.long, device=weight.device)
        states = States(last_hidden_state=hidden_NLD, pooler_output=hidden_NLD[:, 0])
        try:
            with torch.no_grad():
                tried[name](fitted(states, tried[name]), ids_NL, None if kind.reads_audio else torch.ones_like(ids_NL))
        except _FAILS as problem:
            raise ValueError(
                f"The backbone family '{config.model_type}' is not supported for task '{name}': the stock class of its "
                f"type reads more of {type(model.backbone.base_model).__name__} than the states of its last layer "
                f"({kind.__name__}: {' '.join(str(problem).split())}). Choose another backbone."
            ) from problem
