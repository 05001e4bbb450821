"""One task of a multi-task model as a stock model of the backbone's family."""

import json
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from transformers import FeatureExtractionMixin, PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin
from transformers.utils import logging

from .aliases import Open, TaskDict, Values
from .export_card import export_card
from .export_folder import CARD, push_folder, staged
from .export_speech import speech_processor
from .export_tokenizer import prepared_tokenizer, saved_tokenizer, written_by
from .finite import check_weights
from .fitted import DECISIONS
from .graphs import write_onnx
from .heads import Head
from .inputs import longest_input
from .layers import MIX
from .lifecycle import TaskLifecycle
from .native import WRITING, backbone_class, base_name, reading_part, stock_class
from .processors import tokenizer_of
from .similarity import SentenceSimilarityHead

logger = logging.get_logger(__name__)

# Weights of a shared backbone that the stock model of another task may not have.
_SPARE = ("pooler.", "decoder.", "lm_head", "cls.", "final_logits_bias")

_UNEXPORTED = "so the task is not exported. Take an earlier checkpoint, or train it again."


class ExportableTasks(TaskLifecycle):
    """The part of :class:`MultiTaskModel` that exports tasks."""

    merged_backbone: Callable[[str], PreTrainedModel]

    def task_model(self, name: str) -> PreTrainedModel:
        """One task as a stock model of the backbone's family, with copies of the weights, in evaluation mode.

        Args:
            name: a task with ``pooling="native"``, whose family has a class for its type.

        Returns:
            Such as ``BertForTokenClassification``; the bare backbone for ``sentence-similarity``.

        Raises:
            ValueError: there is no such task, or no stock class can hold its head.
        """
        head = self._head(name)
        if changed := self._changed_inputs([head]):
            raise ValueError(
                f"Task '{name}' reads a backbone that another task gives the input '{changed}', which a stock model of "
                "it alone does not have, so its logits would differ and it is not exported. Save the whole model "
                "instead, or train it in a model without that task."
            )
        return stock_of(self.config.task(name), head, self.merged_backbone(name))

    def export_task(
        self,
        name: str,
        save_directory: str | Path,
        tokenizer: PreTrainedTokenizerBase | FeatureExtractionMixin | ProcessorMixin | None = None,
        *,
        max_shard_size: int | str = "50GB",
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Save one task as a stock model with its tokenizer and a card, independent of this package.

        Everything is written beside the old files first and replaces them once it is complete. A README.md that is
        there stays. A ``sentence-similarity`` task loads with sentence-transformers as well.

        Args:
            name: the task; see :meth:`task_model`.
            save_directory: a folder.
            tokenizer: or the feature extractor, saved beside the model; where None, that beside this model or its
                backbone.
            max_shard_size: as in ``save_pretrained``.
            push_to_hub: whether the folder is uploaded, as in ``save_pretrained``.
            kwargs: of the upload: ``repo_id`` (the folder's name where left out), ``private``, ``token``, ``revision``,
                ``commit_message``, ``commit_description``, ``create_pr``.

        Raises:
            ValueError: no stock class can hold the head, the folder is another model's, or a weight is NaN or infinite.

        Example::

            model.export_task("ner", "out/ner")
            pipeline("token-classification", "out/ner")
        """
        stock, task, head = self.task_model(name), self.config.task(name), self._head(name)
        check_weights(stock, _UNEXPORTED)
        backbone = self.config.backbone_config
        if head.reads_audio:
            reads: Open = speech_processor(tokenizer, self.config, task)
        else:
            given: Open = tokenizer
            reads = prepared_tokenizer(given or saved_tokenizer(self.config), backbone, task)
        if reads is None:
            what = "feature extractor" if head.reads_audio else "tokenizer"
            logger.warning(f"Task '{name}' is exported without a {what}: none lies beside the model. Give one.")
        elif not head.reads_audio and stock.config.get_text_config().pad_token_id is None:
            stock.config.get_text_config().pad_token_id = reads.pad_token_id
        if reads is not None and head.language_model in WRITING:
            writer: Open = tokenizer_of(reads)
            stock.generation_config.update(**written_by(task, writer, backbone))
        folder = Path(save_directory)
        repository = kwargs.pop("repo_id", None) or folder.absolute().name
        with staged(folder) as new:
            stock.save_pretrained(new, max_shard_size=max_shard_size)
            if reads is not None:
                reads.save_pretrained(new)
            if isinstance(head, SentenceSimilarityHead):
                limit = task.get("max_length") if reads is None else longest_input(reads, backbone)
                write_sentence_transformers(new, head.pooling, stock.config.hidden_size, limit, head.prompt)
            card = export_card(
                task,
                stock,
                name=repository if push_to_hub else folder.name,
                backbone=backbone.name_or_path,
                tokenizer=reads,
                pooling=getattr(head, "pooling", None),
            )
            (new / CARD).write_text(card, encoding="utf-8")
            files = [path.relative_to(new).as_posix() for path in new.rglob("*") if path.is_file()]
        if push_to_hub:
            push_folder(folder, repository, files, **kwargs)

    def export_onnx(
        self,
        save_directory: str | Path,
        tokenizer: PreTrainedTokenizerBase | FeatureExtractionMixin | ProcessorMixin | None = None,
        tasks: Sequence[str] | None = None,
    ) -> Path:
        """Write ``model.onnx``, one graph with an output ``<task>_logits`` for every task; see :func:`write_onnx`."""
        return write_onnx(self, save_directory, tokenizer, tasks)


def stock_of(task: TaskDict, head: Head, backbone: PreTrainedModel) -> PreTrainedModel:
    """A stock model with copies of the weights of a backbone and of one head.

    Args:
        task: the task's dict.
        head: its head.
        backbone: the shared one.

    Raises:
        ValueError: the head is not one of the family's own.
    """
    native = getattr(head, "native", None)
    if task.get("subsampler"):
        raise ValueError(
            f"Task '{task['name']}' reads recordings through the subsampler, which no stock class has, so it is not "
            "exported. Save the whole model instead."
        )
    elsewhere = bool(head.language_model) or head.stock_is_backbone
    if native is None and not elsewhere and getattr(head, "auto_class", None) is None:
        raise ValueError(
            f"Task '{task['name']}' of type {task['type']} has a head for which Transformers has no class, so it is "
            "not exported. Save the whole model instead."
        )
    if native is None and not elsewhere:
        raise ValueError(
            f"Task '{task['name']}' has a head that is not the family's own, so no stock class can hold it. "
            "Only heads with pooling='native' of a family that has a class for the task are exported."
        )
    if head.layer is not None:
        what = "a mix of layers" if head.layer == MIX else f"layer {head.layer}"
        raise ValueError(
            f"Task '{task['name']}' has a head on {what} (`layer`), and stock classes read the last layer, so it is "
            "not exported. Save the whole model instead, or train it on the last layer."
        )
    if (beyond := head.beyond_stock()) is not None:
        raise ValueError(
            f"Task '{task['name']}' has {beyond}, which no stock class has, so it is not exported. Save the whole "
            "model instead, or train with decoding='constrained', which a stock class can hold."
        )
    if native is not None:
        config = deepcopy(native.config)
        names = task.get("label_names") or head.default_names
        if names:
            config.id2label = dict(enumerate(names))
            config.label2id = {name: number for number, name in enumerate(names)}
        if decisions := {key: task[key] for key in DECISIONS if task.get(key) is not None}:
            config.decisions = decisions  # which the stock class ignores, and from_task_models reads
        stock: Any = stock_class(config, head.auto_class)(config)
        name = base_name(stock)
        shared = _base(backbone) if name == stock.base_model_prefix else reading_part(backbone).state_dict()
        weights = {f"{name}.{key}": value for key, value in shared.items()}
        weights |= native.state_dict()
    else:
        config = deepcopy(backbone.config)
        stock = (type(backbone) if head.language_model else backbone_class(config))(config)
        weights = backbone.state_dict() if head.language_model else _base(backbone)
    config._name_or_path = ""  # which may be a path on this machine
    weights = {key: value.to("cpu", copy=True) for key, value in weights.items()}
    dtypes = {one.dtype for one in weights.values() if one.is_floating_point()} | {backbone.dtype}
    stock = stock.to(torch.float32 if torch.float32 in dtypes else backbone.dtype)  # without loss of the wider ones
    missing, unexpected = stock.load_state_dict(weights, strict=False)
    missing = [key for key in missing if not head.stock_is_backbone or "pooler." not in key]
    unexpected = [key for key in unexpected if not any(part in key for part in _SPARE)]
    if missing or unexpected:
        raise ValueError(
            f"Task '{task['name']}' does not fit {type(stock).__name__}: {[*missing, *unexpected][0]}. "
            "Save the whole model instead."
        )
    if head.language_model in WRITING:
        stock.generation_config = deepcopy(backbone.generation_config)
        given = {key: task.get(key) for key in ("num_beams", "max_new_tokens")}
        stock.generation_config.update(**{key: value for key, value in given.items() if value is not None})
    stock.tie_weights()
    return stock.eval()


def _base(backbone: PreTrainedModel) -> dict[str, torch.Tensor]:
    return backbone.base_model.state_dict()


def write_sentence_transformers(
    folder: str | Path, pooling: str, width: int, limit: int | None, prompt: str | None = None
) -> None:
    """The files beside a backbone that make it a model of sentence-transformers: pooling, normalization, prompt.

    The prompt is that of all of its methods: ``encode`` uses the default, and the others those of their names.
    """
    folder = Path(folder)
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (path, kind) in enumerate(kinds.items())
    ]
    files: Values = {
        "modules.json": modules,
        "sentence_bert_config.json": {"max_seq_length": limit, "do_lower_case": False},
        "config_sentence_transformers.json": {
            "model_type": "SentenceTransformer",
            "prompts": dict.fromkeys(("query", "document"), prompt or ""),
            "default_prompt_name": None if prompt is None else "query",
            "similarity_fn_name": "cosine",
        },
        "1_Pooling/config.json": {
            "word_embedding_dimension": width,
            "pooling_mode_mean_tokens": pooling == "mean",
            "pooling_mode_cls_token": pooling == "cls",
            "pooling_mode_lasttoken": pooling == "last",
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
            "include_prompt": True,
        },
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (folder / "2_Normalize").mkdir(exist_ok=True)
