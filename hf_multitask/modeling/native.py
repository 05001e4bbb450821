"""The stock classes of a backbone's family: their heads, taken whole, over states that another module computed."""

import inspect
from collections.abc import Iterable
from copy import deepcopy
from functools import partial
from types import MethodType
from typing import Any, cast

import torch
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForSpeechSeq2Seq,
    PreTrainedConfig,
    PreTrainedModel,
)

from .aliases import AutoClass, Function, Open, Values
from .backbone import attending
from .finite import check_weights
from .keywords import parameter_names
from .quantized import is_quantized, settle
from .routing import States

# By the kind of language model that a head reads: the class that brings it, and what its backbones are.
LANGUAGE_MODELS: dict[str, tuple[AutoClass, str, str]] = {
    "masked": (AutoModelForMaskedLM, "bidirectional", "an encoder such as BERT, RoBERTa, XLM-R or ModernBERT"),
    "causal": (AutoModelForCausalLM, "causal", "a decoder such as GPT-2, Llama, Qwen3 or Gemma"),
    "text2text": (AutoModelForSeq2SeqLM, "encoder-decoder", "BART, mBART, T5, mT5 or Marian"),
    "speech2text": (AutoModelForSpeechSeq2Seq, "encoder-decoder", "Whisper or SpeechT5"),
}
WRITING = ("causal", "text2text", "speech2text")  # those whose class has generate

# By class and configuration, stock heads on the meta device, with the second result of stock_head.
_BUILT: dict[str, tuple[PreTrainedModel, bool]] = {}
_MOST_BUILT = 16


class SharedStates(nn.Module):
    """Replaces the base model of a stock model and returns the states that it is given.

    A stock model passes ``inputs_embeds`` to its base model untouched; here that argument carries the output which
    the shared backbone has computed for these rows, and the stock forward takes over from there.

    Args:
        given: the output, for a stock model that reshapes that argument.
    """

    def __init__(self, given: States | None = None) -> None:
        super().__init__()
        self.given = given

    def forward(self, *args: object, inputs_embeds: States | None = None, **kwargs: object) -> States | None:  # noqa: ARG002
        """Return what is given."""
        return inputs_embeds if self.given is None else self.given

    def get_input_embeddings(self) -> None:
        """None: the embeddings are the shared backbone's."""


class Over:
    """A stock model, one of whose modules has computed its states already, for one call.

    The model itself stays as it is, so that other threads may be in it. A plain object, which ``torch.compile`` traces.

    Args:
        model: the model.
        name: of the module.
        states: what it has computed.
    """

    def __init__(self, model: nn.Module, name: str, states: States) -> None:
        self._native, self._replaced = model, {name: SharedStates(states)}
        for method in ("forward", "_old_forward"):  # accelerate's, of a model that is spread over devices
            if method in model.__dict__:
                self.__dict__[method] = _bound(model.__dict__[method], model, self)

    def __getattr__(self, name: str) -> Open:
        """What the model has."""
        return self._replaced[name] if name in self._replaced else getattr(self._native, name)

    def forward(self, **inputs: object) -> Open:
        """The model's own, which finds the states where it calls the module."""
        return type(self._native).forward(self, **inputs)


def _bound(method: Function, model: nn.Module, other: object) -> Function:
    """What is bound to a model, bound to another object."""
    if isinstance(method, partial):
        return partial(method.func, *(other if one is model else one for one in method.args), **method.keywords)
    if isinstance(method, MethodType) and method.__self__ is model:
        return MethodType(method.__func__, other)
    return method


def backbone_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The family's class without a head, such as ``BertModel``.

    Raises:
        ValueError: the family has no such class, or several.
    """
    found = AutoModel._model_mapping.get(type(config), None)
    if not isinstance(found, type):
        number = "no class" if found is None else f"{len(found)} classes"
        raise ValueError(
            f"The backbone family '{config.model_type}' is not supported: it has {number} without a head, and tasks "
            "share one. Choose another backbone."
        )
    return found


def family_kind(config: PreTrainedConfig) -> str:
    """What a family is: ``"encoder-decoder"``, ``"causal"`` or ``"bidirectional"``."""
    if config.is_encoder_decoder:
        return "encoder-decoder"
    masked = type(config) in AutoModelForMaskedLM._model_mapping
    return "causal" if not masked and type(config) in AutoModelForCausalLM._model_mapping else "bidirectional"


def check_language_model(task: str, kind: str, language_model: str, config: PreTrainedConfig) -> None:
    """Check that a family has the language model that a task needs.

    Args:
        task: name of the task.
        kind: its type.
        language_model: a key of ``LANGUAGE_MODELS``.
        config: the backbone's configuration.

    Raises:
        ValueError: it has not.
    """
    auto_class, wanted, examples = LANGUAGE_MODELS[language_model]
    found = family_kind(config)
    if found != wanted or type(config) not in auto_class._model_mapping:
        raise ValueError(
            f"Task '{task}': {kind} needs {'an' if wanted[0] == 'e' else 'a'} {wanted} backbone with a language model; "
            f"{config.model_type} is {found}. Take {examples}."
        )


def build_backbone(
    config: PreTrainedConfig,
    *,
    language_model: str | None,
    needs_pooler: bool,
    path: str | None = None,
    missing: list[str] | None = None,
    **kwargs: Any,
) -> PreTrainedModel:
    """The shared backbone: the family's class without a head, or its native language model where a task needs it.

    Args:
        config: its configuration.
        language_model: a key of ``LANGUAGE_MODELS``, or None.
        needs_pooler: whether a head reads the pooler, which language models come without.
        path: where the weights are; fresh ones where None.
        missing: is given the names of the weights that are not there, and are fresh.
        kwargs: of ``from_pretrained``.

    Raises:
        ValueError: a weight of the checkpoint is NaN or infinite.
    """

    def build(auto_class: AutoClass, **more: object) -> tuple[PreTrainedModel, list[str]]:
        if path is None:
            return auto_class.from_config(config, **more), []
        with attending(kwargs):
            model, info = auto_class.from_pretrained(path, config=config, output_loading_info=True, **more, **kwargs)
        return model, sorted(info["missing_keys"])

    if language_model is None:
        backbone, lacks = build(AutoModel, **backbone_kwargs(config, needs_pooler=needs_pooler))
    else:
        backbone, lacks = build(LANGUAGE_MODELS[language_model][0])
        if needs_pooler and getattr(backbone.base_model, "pooler", None) is None:
            base, base_lacks = build(AutoModel)
            take_pooler(backbone.base_model, base)
            lacks += [f"{backbone.base_model_prefix}.{name}" for name in base_lacks if name.startswith("pooler.")]
    if missing is not None:
        missing.extend(lacks)
    if is_quantized(backbone):
        settle(backbone)
    if path is not None:
        check_weights(backbone, f"so '{path}' is no backbone to start from. Take another checkpoint.")
    return backbone


def take_pooler(base: nn.Module, other: nn.Module) -> None:
    """Give a base model the pooler of another; ALBERT's has its activation beside it."""
    for name in ("pooler", "pooler_activation"):
        if hasattr(other, name):
            setattr(base, name, getattr(other, name))


def language_model_class(config: PreTrainedConfig, language_model: str) -> type[PreTrainedModel]:
    """The family's native language model of a kind, such as ``BertForMaskedLM``."""
    return LANGUAGE_MODELS[language_model][0]._model_mapping[type(config)]


def refitted(old: PreTrainedModel, new: PreTrainedModel) -> PreTrainedModel:
    """A backbone as another class of its family, which has or has not a language model's last layers.

    Args:
        old: as it is.
        new: an empty one of the other class, on the meta device.

    Returns:
        ``new`` with the modules of ``old``, which are marked as set, and the missing ones on the meta device; or what
        ``old`` has under its last layers.
    """
    base = old.base_model
    for module in base.modules():
        module._is_hf_initialized = True  # type: ignore[assignment]
    for tensor in (*base.parameters(), *base.buffers()):
        tensor._is_hf_initialized = True  # type: ignore[attr-defined]
    if new.base_model is not new:
        setattr(new, new.base_model_prefix, base)
        new.config = old.config
        return new
    if base is not old:
        return base  # type: ignore[return-value]
    for name, child in old.named_children():  # T5, whose language model has the same modules and one more
        if name in new._modules:
            setattr(new, name, child)
    new.config = old.config
    return new


def materialise(module: nn.Module, *, device: torch.device, dtype: torch.dtype) -> None:
    """Make parameters and buffers that are on the meta device zeros on another, where their values are set afterwards.

    Not all are: Longformer leaves the bias of its language model's last layer as it is.
    """
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None and parameter.is_meta:
                part._parameters[name] = nn.Parameter(torch.zeros_like(parameter, device=device, dtype=dtype))
        for name, buffer in part._buffers.items():
            if buffer is not None and buffer.is_meta:
                kind = dtype if buffer.is_floating_point() else buffer.dtype
                part._buffers[name] = torch.zeros_like(buffer, device=device, dtype=kind)


def reading_part(backbone: PreTrainedModel) -> nn.Module:
    """The module of a backbone that reads the inputs: its encoder, or all of it but a language model's last layers."""
    return backbone.get_encoder() if backbone.config.is_encoder_decoder else backbone.base_model


def language_logits(backbone: PreTrainedModel, hidden_MD: torch.Tensor) -> torch.Tensor:
    """What a native language model's last layers make of some states: (M, D) to (M, V).

    The model's own forward runs, over these states in place of its base model, or of the decoder of those that have
    none.
    """
    states = States(last_hidden_state=hidden_MD.unsqueeze(0))
    name = "decoder" if backbone.base_model is backbone else backbone.base_model_prefix
    inputs: Values = {"inputs_embeds": states}
    if name == "decoder":
        inputs = {"decoder_inputs_embeds": states, "encoder_outputs": states}
    elif "inputs_embeds" not in parameter_names(type(backbone).forward):  # it reads recordings
        inputs = {}
    return Over(backbone, name, states).forward(**inputs).logits.squeeze(0)


def decoder_states(
    backbone: PreTrainedModel, ids_NT: torch.Tensor, states: States, mask: torch.Tensor | None
) -> States:
    """What the decoder of an encoder-decoder makes of the tokens before each one.

    Args:
        backbone: the encoder-decoder.
        ids_NT: the tokens that it is to predict; -100 is padding.
        states: of the encoder, (N, L, D).
        mask: of its inputs, (N, L), or (N, S) of samples of which a frame has several.
    """
    decoder, encoder_hidden = backbone.get_decoder(), cast(torch.Tensor, states.last_hidden_state)
    taken = parameter_names(decoder.forward)
    given: Values = {"encoder_hidden_states": encoder_hidden, "use_cache": False}
    given["input_ids" if "input_ids" in taken else "input_values"] = shifted_right(ids_NT, backbone.config)
    if "encoder_attention_mask" in taken:
        frames = getattr(getattr(backbone.get_encoder(), "prenet", None), "_get_feature_vector_attention_mask", None)
        if mask is not None and frames is not None:
            mask = frames(encoder_hidden.shape[1], mask)
        given["encoder_attention_mask"] = mask
    return States(last_hidden_state=decoder(**given).last_hidden_state)


def shifted_right(ids_NT: torch.Tensor, config: PreTrainedConfig) -> torch.Tensor:
    """What a decoder reads to predict some tokens, as the families' own models make it of them; -100 is padding."""
    pad = config.pad_token_id or 0
    ids_NT = ids_NT.masked_fill(ids_NT == -100, pad)
    if config.model_type == "mbart":  # the last token, the language's code, comes first
        last_N1 = (ids_NT != pad).sum(1, keepdim=True).clamp(min=1) - 1
        first_N1 = ids_NT.gather(1, last_N1)
    else:
        first_N1 = torch.full_like(ids_NT[:, :1], int(config.decoder_start_token_id))
    return torch.cat([first_N1, ids_NT[:, :-1]], 1)


def stock_class(config: PreTrainedConfig, auto_class: AutoClass) -> type[PreTrainedModel]:
    """The family's own class for a task, such as ``BertForTokenClassification``.

    Raises:
        ValueError: the family has none.
    """
    if config.model_type == "longformer" and auto_class in (AutoModelForQuestionAnswering, AutoModelForMultipleChoice):
        raise ValueError(
            f"Longformer's class for {auto_class.__name__} gives the question global attention, which one pass for all "
            "tasks does not. Choose another backbone."
        )
    try:
        return auto_class._model_mapping[type(config)]
    except KeyError:
        pools = auto_class is AutoModelForSequenceClassification
        raise ValueError(
            f"The backbone family '{config.model_type}' has no class for {auto_class.__name__}. Choose another backbone"
            + (", or set pooling to 'cls', 'mean' or 'last'." if pools else ".")
        ) from None


def stock_head(
    config: PreTrainedConfig,
    auto_class: AutoClass,
    *,
    num_labels: int,
    problem_type: str | None,
) -> tuple[PreTrainedModel, bool]:
    """Build the family's stock model for a task without its base model.

    Returns:
        The stock model with :class:`SharedStates` as its base, weights not yet set, and whether its own base model
        has a pooler, which the shared backbone then needs as well.
    """
    head_config: Any = deepcopy(config)
    head_config.num_labels = num_labels
    head_config.problem_type = problem_type
    device = torch.get_default_device()
    # A stock model brings all layers of its base model, which takes its time: tasks alike share one to copy from.
    kind = f"{auto_class.__name__} {head_config._attn_implementation} {torch.get_default_dtype()}"
    key = f"{kind} {head_config.to_json_string(use_diff=False)}"
    if key not in _BUILT:
        # Some speech encoders draw weights on the CPU all the same, which must not depend on what was built before.
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            built = stock_class(config, auto_class)(head_config)
        needs_pooler = getattr(built.base_model, "pooler", None) is not None
        setattr(built, base_name(built), SharedStates())
        if len(_BUILT) == _MOST_BUILT:
            _BUILT.pop(next(iter(_BUILT)))
        _BUILT[key] = built, needs_pooler
    head, needs_pooler = _BUILT[key]
    with torch.device("meta"):
        head = deepcopy(head)
    if device.type != "meta":
        head.to_empty(device=device)
    return head, needs_pooler


def base_name(stock: nn.Module) -> str:
    """What a stock model calls the part of it that is the backbone: Whisper's classifier has its encoder alone."""
    prefix = str(stock.base_model_prefix)
    return prefix if hasattr(stock, prefix) else "encoder"


def backbone_kwargs(config: PreTrainedConfig, *, needs_pooler: bool) -> Values:
    """Arguments that leave out a pooler which no head reads, where the family has an argument for it.

    An unused pooler has no gradient, and parameters without gradient break distributed training.
    """
    takes = "add_pooling_layer" in inspect.signature(backbone_class(config)).parameters
    return {"add_pooling_layer": needs_pooler} if takes else {}


def asked_inputs(
    config: PreTrainedConfig, heads: Iterable[nn.Module], input_ids: torch.Tensor | None
) -> dict[str, torch.Tensor]:
    """Inputs (B, L) that the stock models of some heads make for their base model by themselves.

    Longformer's sequence classifier gives the first token global attention. One backbone pass serves all heads, so a
    model that has such a head gives it always, whichever heads run: a token classifier beside it sees it as well. A
    token classifier alone has local attention only, as its stock class.
    """
    if config.model_type != "longformer" or input_ids is None:
        return {}
    classifier = stock_class(config, AutoModelForSequenceClassification)
    if not any(isinstance(head, classifier) for head in heads):
        return {}
    mask = torch.zeros_like(input_ids)
    mask[:, 0] = 1
    return {"global_attention_mask": mask}
