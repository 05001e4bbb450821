"""From stock models of single tasks to one model of all: their heads, on one of their backbones or the mean of all."""

import dataclasses
import re
from collections.abc import Mapping
from copy import deepcopy
from typing import Any, TypeVar

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForCTC,
    PreTrainedConfig,
    PreTrainedModel,
)

from .aliases import AutoClass, Open, Settings, Values
from .config import MultiTaskConfig, check_task_name, close_match
from .heads import Head
from .kinds import KINDS, head_class, num_labels
from .lifecycle import TaskLifecycle, language_model, task_dict
from .native import LANGUAGE_MODELS, WRITING, backbone_class, family_kind
from .speech import PAD
from .symbols import own_symbols
from .trial import check_family, check_reading

Model = TypeVar("Model", bound=TaskLifecycle)
AVERAGE = "average"

# What configurations may differ in: it does not change what a model computes from its weights.
_FREE = re.compile(r"dropout|pdrop|drop_rate|use_cache|initializer|init_std|gradient_checkpointing|pad_token_id")
_OF_CTC = re.compile(r"vocab_size|ctc_")  # of speech encoders, which have no tokens


def from_stock(cls: type[Model], models: Settings, *, backbone: str, tasks: Settings | None, kwargs: Values) -> Model:
    """See :meth:`MultiTaskModel.from_task_models`."""
    if not models:
        raise ValueError("The model has no tasks. Give at least one in `models`.")
    for name in models:
        check_task_name(name)
    if backbone != AVERAGE and backbone not in models:
        known = [*models, AVERAGE]
        raise ValueError(
            f"Parameter `backbone` should be one of {', '.join(known)}. Found `backbone = {backbone!r}`."
            + close_match(backbone, known)
        )
    for name in tasks or {}:
        if name not in models:
            raise ValueError(
                f"`tasks` names the task '{name}', and the models are {', '.join(models)}."
                + close_match(name, list(models))
            )
    stocks = {name: _loaded(name, given, kwargs) for name, given in models.items()}
    first = next(iter(stocks)) if backbone == AVERAGE else backbone
    for name, stock in stocks.items():
        _check_alike(first, stocks[first], name, stock)
    dicts = [_task_of(name, stock, (tasks or {}).get(name), models[name], kwargs) for name, stock in stocks.items()]
    model = cls(MultiTaskConfig(backbone_config=_shared_config(stocks, first), tasks=dicts))
    model.to(stocks[first].dtype)  # type: ignore[arg-type]
    model.config.dtype = stocks[first].dtype
    if (attention := stocks[first].config._attn_implementation) != model.backbone.config._attn_implementation:
        model.set_attn_implementation(attention)
    shared = {name: _backbone_weights(stock, model.backbone, model._head(name)) for name, stock in stocks.items()}
    weights = {f"backbone.{key}": value for key, value in _merged(shared, model.backbone, backbone).items()}
    for name, stock in stocks.items():
        weights |= _head_weights(name, stock, model._head(name))
    model.load_state_dict(weights)
    model.tie_weights()
    if (kind := language_model(model.config)) in WRITING:
        writers = [name for name in (first, *stocks) if head_class(model.config.task(name)).language_model == kind]
        model.backbone.generation_config = deepcopy(stocks[writers[0]].generation_config)
    model._rest_unread()
    check_reading(model.eval())
    check_family(model)
    return model


def _loaded(name: str, given: Open, kwargs: Values) -> PreTrainedModel:
    """A stock model: the one that is given, or the one that its configuration names."""
    if isinstance(given, PreTrainedModel):
        return given
    config = AutoConfig.from_pretrained(given, **_of_hub(kwargs))
    architecture = next(iter(config.architectures or ()), None)
    kind: Any = getattr(transformers, architecture or "", None)
    if not (isinstance(kind, type) and issubclass(kind, PreTrainedModel)):
        raise ValueError(
            f"Task '{name}': the config of '{given}' names {architecture or 'no architecture'}, which is not a "
            "model class of Transformers. Name another model, or give the model itself."
        )
    loaded: Any = kind.from_pretrained(given, output_loading_info=True, **kwargs)
    stock, info = loaded
    if missing := info["missing_keys"]:
        raise ValueError(
            f"Task '{name}': checkpoint '{given}' has no weights for '{min(missing)}' of {architecture} "
            f"({len(missing)} tensors). Name a model that was trained for the task."
        )
    return stock


def _of_hub(kwargs: Values) -> Values:
    return {key: kwargs[key] for key in ("revision", "token", "cache_dir") if key in kwargs}


def _task_of(name: str, stock: PreTrainedModel, given: Open, source: Open, kwargs: Values) -> Values:
    """The dict of a task: the options of its stock model, overridden by those that are given."""
    values = {} if given is None else {key: one for key, one in task_dict(name, given).items() if one is not None}
    kind, wanted = type_of(stock), values.get("type")
    bare = type(stock) is backbone_class(stock.config)
    fits = kind is not None and (wanted in (None, kind) or _stock_class(wanted) is _stock_class(kind))
    of_backbone = [name for name, one in KINDS.items() if one.head.stock_is_backbone]
    if not fits and not (bare and wanted in of_backbone):
        can = f"a task of type {kind}" if kind else ""
        if bare and not kind:
            can = f"a task of type {' or '.join(of_backbone)}, if `tasks` says so"
        raise ValueError(
            f"Task '{name}': {type(stock).__name__} makes {can or 'no task'}"
            + (f", and none of type {wanted}. " if wanted else ". ")
            + "Name another model, or a type that fits in `tasks`."
        )
    config: Any = stock.config
    known: Values = {"name": name, "type": wanted or kind}
    if kind and not any(key.endswith("_column") for key in values):
        known |= KINDS[kind].columns
    if kind:
        known |= KINDS[kind].head.options_of(config)
    names = values.get("label_names")
    if names is not None and len(names) != config.num_labels:
        raise ValueError(
            f"Task '{name}': {type(stock).__name__} has a head for {config.num_labels} labels, and {len(names)} are "
            "given. Leave label_names out."
        )
    task = known | values
    of_ctc = AutoModelForCTC._model_mapping.get(type(config), None) is type(stock)
    if of_ctc and task.get("vocabulary") is None:
        task["vocabulary"] = own_symbols(source, stock, _of_hub(kwargs))
    if of_ctc and num_labels(task) != config.vocab_size:
        raise ValueError(
            f"Task '{name}': {type(stock).__name__} has {config.vocab_size} outputs, and `vocabulary` has "
            f"{num_labels(task)} symbols. Give the task in `tasks`, with the symbols of its tokenizer in their order: "
            f"'{PAD}' for the blank, and a space for the delimiter of words."
        )
    return task


def _stock_class(kind: str) -> AutoClass | None:
    """The stock class of a type; those that make a text of a text have one."""
    return KINDS[kind].stock_class if kind in KINDS else None


def type_of(stock: PreTrainedModel) -> str | None:
    """The type of task that a stock model does, by its class; None if there is no such type."""
    config, family = stock.config, family_kind(stock.config)
    for name, kinds in ((name, (kind, *kind.architectures.values())) for name, kind in KINDS.items()):
        for kind in kinds:
            mapped = kind.stock_class is not None and kind.stock_class._model_mapping.get(type(config), None)
            reads = kind.head.language_model  # BART's language model is mapped as a masked one, too
            if mapped is type(stock) and (reads is None or LANGUAGE_MODELS[reads][1] == family):
                return name
    return None


def _shared_config(stocks: Mapping[str, PreTrainedModel], first: str) -> PreTrainedConfig:
    """The configuration of the shared backbone, without the options of one task."""
    config: Any = deepcopy(stocks[first].config)
    config.is_encoder_decoder = type(config)().is_encoder_decoder  # T5's token classifier sets it to False
    config.problem_type = None
    vars(config).pop("decisions", None)
    config.architectures = None
    config.num_labels = 2
    config.id2label = {0: "LABEL_0", 1: "LABEL_1"}
    config.label2id = {"LABEL_0": 0, "LABEL_1": 1}
    pads = [stock.config.get_text_config().pad_token_id for stock in stocks.values()]
    if config.get_text_config().pad_token_id is None:
        config.get_text_config().pad_token_id = next((pad for pad in pads if pad is not None), None)
    return config


def _check_alike(first: str, one: PreTrainedModel, name: str, other: PreTrainedModel) -> None:
    """Check that two models can share a backbone."""

    def differ(what: str, found: object, expected: object) -> ValueError:
        return ValueError(
            f"Tasks '{first}' and '{name}' cannot share a backbone: {what} is {expected} of the first and {found} of "
            "the other. Take models that were made from one backbone."
        )

    if type(one.config) is not type(other.config):
        raise differ("the family", other.config.model_type, one.config.model_type)
    speech = hasattr(one.config, "conv_kernel")
    general = {field.name for field in dataclasses.fields(PreTrainedConfig)} - {"tie_word_embeddings"}
    for field in dataclasses.fields(type(one.config)):
        mine, theirs = getattr(one.config, field.name, None), getattr(other.config, field.name, None)
        free = _FREE.search(field.name) or (speech and _OF_CTC.match(field.name))
        if field.name not in general and not free and mine != theirs:
            raise differ(field.name, theirs, mine)
    pads = {config.get_text_config().pad_token_id for config in (one.config, other.config)} - {None}
    if len(pads) > 1 and not speech:
        raise differ("pad_token_id", other.config.pad_token_id, one.config.pad_token_id)
    if one.dtype != other.dtype:
        raise differ("the dtype", other.dtype, one.dtype)
    mine, theirs = one.base_model.state_dict(), other.base_model.state_dict()
    for key in mine.keys() & theirs.keys():
        if mine[key].shape != theirs[key].shape:
            raise differ(f"the shape of {key}", tuple(theirs[key].shape), tuple(mine[key].shape))


def _backbone_weights(stock: PreTrainedModel, backbone: PreTrainedModel, head: Head) -> dict[str, torch.Tensor]:
    """A stock model's weights that the shared backbone has, by their names there.

    A pooler that the task's head does not read is left out: that of a bare backbone may never have been trained.
    """
    known = backbone.state_dict().keys()
    if type(stock) is type(backbone):
        found = stock.state_dict()
    else:
        base = backbone.base_model
        prefix = "" if base is backbone else f"{backbone.base_model_prefix}."
        found = {f"{prefix}{key}": value for key, value in stock.base_model.state_dict().items()}
    return {key: value for key, value in found.items() if key in known and (head.needs_pooler or "pooler." not in key)}


def _merged(
    shared: Mapping[str, dict[str, torch.Tensor]], backbone: PreTrainedModel, wanted: str
) -> dict[str, torch.Tensor]:
    """The backbone's weights: those of the wanted model where it has them, or else the mean of all that have them."""
    result = {}
    for key, own in backbone.state_dict().items():
        found = [weights[key] for weights in shared.values() if key in weights]
        if wanted in shared and key in shared[wanted]:
            found = [shared[wanted][key]]
        if not found:
            result[key] = own
        elif not own.is_floating_point() or all(torch.equal(found[0], one) for one in found[1:]):
            result[key] = found[0]
        else:
            mean = torch.stack([one.to("cpu", torch.promote_types(one.dtype, torch.float32)) for one in found]).mean(0)
            result[key] = mean.to(own.dtype)
    # Of tied weights the source counts: a language model's last layer follows the embeddings.
    return result | {key: result[source] for key, source in backbone.all_tied_weights_keys.items() if key in result}


def _head_weights(name: str, stock: PreTrainedModel, head: Head) -> dict[str, torch.Tensor]:
    """A stock model's weights outside its base model, by their names in the shared model."""
    native = getattr(head, "native", None)
    if native is None:
        if next(head.parameters(), None) is not None:
            raise ValueError(
                f"Task '{name}': the head of {type(stock).__name__} reads the decoder, and the shared model's reads "
                "the encoder. Leave the task out, or train it again with add_task."
            )
        return {}
    found, own = stock.state_dict(), head.state_dict()  # with what no stock class has, as it begins
    return {
        f"heads.{name}.{key}": found[key.removeprefix("native.")] if key.startswith("native.") else value
        for key, value in own.items()
    }
