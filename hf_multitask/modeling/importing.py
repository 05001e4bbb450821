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
from .backbone import check_loading, resolve_backbone
from .config import MultiTaskConfig, check_task_name, close_match
from .heads import Head
from .kinds import KINDS, head_class, num_labels
from .lifecycle import TaskLifecycle, language_model, task_dict
from .merging import DENSITY, SCALE, TIES, Ties, check_ties, mean
from .native import LANGUAGE_MODELS, WRITING, backbone_class, base_name, family_kind
from .speech import PAD
from .symbols import own_symbols
from .trial import check_family, check_reading

Model = TypeVar("Model", bound="ImportedTasks")
AVERAGE = "average"

# What configurations may differ in: it does not change what a model computes from its weights.
_FREE = re.compile(r"dropout|pdrop|drop_rate|use_cache|initializer|init_std|gradient_checkpointing|pad_token_id")
_OF_CTC = re.compile(r"vocab_size|ctc_")  # of speech encoders, which have no tokens


class ImportedTasks(TaskLifecycle):
    """The part of :class:`MultiTaskModel` that is made of stock models."""

    @classmethod
    def from_task_models(
        cls: type[Model],
        models: Settings,
        *,
        backbone: str,
        tasks: Settings | None = None,
        base: Open = None,
        density: float = DENSITY,
        scale: float = SCALE,
        **kwargs: Any,
    ) -> Model:
        """Put the heads of stock models of single tasks on one backbone of theirs.

        A head was trained on its own backbone: on another one, or on a merged one, it has to be trained on.

        Args:
            models: by task name, stock models such as ``BertForTokenClassification``, or folders or Hub ids of such.
            backbone: the task whose model's backbone is shared unchanged; or ``"average"`` for the mean of all their
                weights (Model soups, ICML 2022, section 2, https://arxiv.org/abs/2203.05482: the uniform soup), or
                ``"ties"``, see :class:`Ties`. What another task reads and the backbone, or ``base``, does not have, a
                pooler or a language model's last layers, is the mean of those that have it.
            tasks: by name, task objects or their dicts where columns, or another of the types that a class serves, are
                wanted; type, labels and problem type are the models' own where None.
            base: of ``"ties"``, the checkpoint that the models were fine-tuned from: a model, a folder or a Hub id.
            density: of ``"ties"``, the share of a model's changes that is kept.
            scale: of ``"ties"``, the factor of the merged changes.
            kwargs: handed to ``from_pretrained`` of every model: ``dtype``, ``attn_implementation``, ``token``...

        Raises:
            ValueError: a model does no task there is a type for, the models cannot share a backbone, or an argument is
                not usable.

        Example::

            MultiTaskModel.from_task_models({"ner": "me/ner", "sentiment": "me/sentiment"}, backbone="ner")
        """
        check_loading(kwargs)
        if backbone == TIES:
            check_ties(base, density, scale)
        else:
            for name, value, usual in (("base", base, None), ("density", density, DENSITY), ("scale", scale, SCALE)):
                if value is not usual and value != usual:
                    raise ValueError(
                        f"`{name}` is for `backbone = 'ties'`. Found `backbone = {backbone!r}`. Leave `{name}` out, or "
                        "set backbone='ties'."
                    )
        return _from_stock(
            cls, models, backbone=backbone, tasks=tasks, kwargs=kwargs, ties=(base, float(density), float(scale))
        )


def _from_stock(
    cls: type[Model],
    models: Settings,
    *,
    backbone: str,
    tasks: Settings | None,
    kwargs: Values,
    ties: tuple[Open, float, float],
) -> Model:
    if not models:
        raise ValueError("The model has no tasks. Give at least one in `models`.")
    for name in models:
        check_task_name(name)
    if backbone == TIES and TIES in models:
        raise ValueError("`backbone = 'ties'` is a method and the name of a task as well. Rename the task in `models`.")
    if backbone not in (AVERAGE, TIES) and backbone not in models:
        known = [*models, AVERAGE, TIES]
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
    first = backbone if backbone in stocks else next(iter(stocks))
    for name, stock in stocks.items():
        _check_alike(f"Tasks '{first}' and '{name}'", stocks[first], stock)
    dicts = [_task_of(name, stock, (tasks or {}).get(name), models[name], kwargs) for name, stock in stocks.items()]
    model = cls(MultiTaskConfig(backbone_config=_shared_config(stocks, first), tasks=dicts))
    model.to(stocks[first].dtype)  # type: ignore[arg-type]
    model.config.dtype = stocks[first].dtype
    if (attention := stocks[first].config._attn_implementation) != model.backbone.config._attn_implementation:
        model.set_attn_implementation(attention)
    shared = {
        name: _backbone_weights(stock, model.backbone, pooler=model._head(name).needs_pooler)
        for name, stock in stocks.items()
    }
    merges = None
    if backbone == TIES:
        base, density, scale = ties
        start = _base_weights(base, f"Task '{first}' and `base`", stocks[first], model.backbone, kwargs)
        merges = Ties(start, shared, density, scale)
    weights = {f"backbone.{key}": value for key, value in _merged(shared, model.backbone, backbone, merges).items()}
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


def stock_in_place(name: str, source: str, given: Open) -> tuple[MultiTaskConfig, dict[str, str]]:
    """The configuration of a model of one task, and the ``key_mapping`` that loads a stock model's weights into it.

    Raises:
        ValueError: the stock model does no such task.
    """
    config, kind = _class_of(name, source, {})
    with torch.device("meta"):
        stock = kind(config)
    task = _task_of(name, stock, given, source, {})
    own = MultiTaskConfig(backbone_config=_shared_config({name: stock}, name), tasks=[task], dtype=config.dtype)
    base = re.escape(base_name(stock))
    return own, {rf"^{base}\.": "backbone.", rf"^(?!{base}\.|backbone\.)": f"heads.{name}.native."}


def _class_of(name: str, given: Open, kwargs: Values) -> tuple[PreTrainedConfig, type[PreTrainedModel]]:
    """The configuration of a saved stock model, and the class that it names."""
    # Code that comes with a model is not run, and nobody is asked whether it may.
    config = AutoConfig.from_pretrained(given, **_of_hub(kwargs), trust_remote_code=False)
    architecture = next(iter(config.architectures or ()), None)
    kind: Any = getattr(transformers, architecture or "", None)
    if not (isinstance(kind, type) and issubclass(kind, PreTrainedModel)):
        raise ValueError(
            f"Task '{name}': the config of '{given}' names {architecture or 'no architecture'}, which is not a "
            "model class of Transformers. Name another model, or give the model itself."
        )
    return config, kind


def _loaded(name: str, given: Open, kwargs: Values) -> PreTrainedModel:
    """A stock model: the one that is given, or the one that its configuration names."""
    if isinstance(given, PreTrainedModel):
        return given
    _, kind = _class_of(name, given, kwargs)
    loaded: Any = kind.from_pretrained(given, output_loading_info=True, **kwargs)
    stock, info = loaded
    if missing := info["missing_keys"]:
        raise ValueError(
            f"Task '{name}': checkpoint '{given}' has no weights for '{min(missing)}' of {kind.__name__} "
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


def _differ(who: str, what: str, found: object, expected: object) -> ValueError:
    return ValueError(
        f"{who} cannot share a backbone: {what} is {expected} of the first and {found} of the other. Take models that "
        "were made from one backbone."
    )


def _check_alike(who: str, one: PreTrainedModel, other: PreTrainedModel, *, dtype: bool = True) -> None:
    """Check that two models can share a backbone.

    Args:
        who: the two of them, for the message.
        one: a stock model.
        other: another.
        dtype: whether they need the same.
    """
    _check_configs(who, one.config, other.config)
    if dtype and one.dtype != other.dtype:
        raise _differ(who, "the dtype", other.dtype, one.dtype)
    mine, theirs = one.base_model.state_dict(), other.base_model.state_dict()
    for key in mine.keys() & theirs.keys():
        if mine[key].shape != theirs[key].shape:
            raise _differ(who, f"the shape of {key}", tuple(theirs[key].shape), tuple(mine[key].shape))


def _check_configs(who: str, one: PreTrainedConfig, other: PreTrainedConfig) -> None:
    if type(one) is not type(other):
        raise _differ(who, "the family", other.model_type, one.model_type)
    speech = hasattr(one, "conv_kernel")
    general = {field.name for field in dataclasses.fields(PreTrainedConfig)} - {"tie_word_embeddings"}
    for field in dataclasses.fields(type(one)):
        mine, theirs = getattr(one, field.name, None), getattr(other, field.name, None)
        free = _FREE.search(field.name) or (speech and _OF_CTC.match(field.name))
        if field.name not in general and not free and mine != theirs:
            raise _differ(who, field.name, theirs, mine)
    pads = {config.get_text_config().pad_token_id for config in (one, other)} - {None}
    if len(pads) > 1 and not speech:
        raise _differ(who, "pad_token_id", other.pad_token_id, one.pad_token_id)


def _base_weights(
    base: Open, who: str, stock: PreTrainedModel, backbone: PreTrainedModel, kwargs: Values
) -> dict[str, torch.Tensor]:
    """The weights that merged models were fine-tuned from, by their names in the shared backbone.

    Those that it does not have, and tied ones, which follow others, are left out, and so are buffers.

    Args:
        base: a model, a folder or a Hub id.
        who: a stock model and the base, for messages.
        stock: the stock model.
        backbone: the shared one.
        kwargs: of ``from_pretrained``.
    """
    missing: set[str] = set()
    if not isinstance(base, PreTrainedModel):
        given, base = base, resolve_backbone(str(base))
        _check_configs(who, stock.config, AutoConfig.from_pretrained(base, **_of_hub(kwargs)))
        loaded: Any = type(backbone).from_pretrained(base, output_loading_info=True, **kwargs)
        base, missing = loaded[0], loaded[1]["missing_keys"]
        prefix = "" if backbone.base_model is backbone else f"{backbone.base_model_prefix}."
        if lost := [key for key in missing if key.startswith(prefix) and "pooler." not in key]:
            raise ValueError(
                f"`base` should be the checkpoint that the models were fine-tuned from, and '{given}' has no weights "
                f"for '{min(lost)}' ({len(lost)} tensors). Name another."
            )
    _check_alike(who, stock, base, dtype=False)
    aside = {*missing, *backbone.all_tied_weights_keys, *(name for name, _ in backbone.named_buffers())}
    return {key: value for key, value in _backbone_weights(base, backbone).items() if key not in aside}


def _backbone_weights(
    stock: PreTrainedModel, backbone: PreTrainedModel, *, pooler: bool = True
) -> dict[str, torch.Tensor]:
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
    return {key: value for key, value in found.items() if key in known and (pooler or "pooler." not in key)}


def _merged(
    shared: Mapping[str, dict[str, torch.Tensor]], backbone: PreTrainedModel, wanted: str, ties: Ties | None
) -> dict[str, torch.Tensor]:
    """The backbone's weights: those of the wanted model where it has them, or else the merged ones of all that do."""
    result = {}
    for key, own in backbone.state_dict().items():
        found = [weights[key] for weights in shared.values() if key in weights]
        if wanted in shared and key in shared[wanted]:
            found = [shared[wanted][key]]
        if not found:
            result[key] = own
        elif ties is not None and key in ties.base:
            result[key] = ties.merged(key).to(own.dtype)
        else:
            result[key] = mean(found)
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
