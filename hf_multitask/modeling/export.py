"""One task of a multi-task model as a stock model of the backbone's family."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .heads import Head
from .inputs import longest_input
from .lifecycle import TaskLifecycle
from .native import backbone_class, stock_class
from .similarity import SentenceSimilarityHead

# Weights of a shared backbone that a stock model of another task may lack.
_SPARE = ("pooler.", "decoder.", "lm_head", "cls.", "final_logits_bias")


class ExportableTasks(TaskLifecycle):
    """The part of :class:`MultiTaskModel` that exports tasks."""

    def task_model(self, name: str) -> PreTrainedModel:
        """One task as a stock model of the backbone's family, with copies of the weights, in evaluation mode.

        Args:
            name: a task with ``pooling="native"``, whose family has a class for its type.

        Returns:
            Such as ``BertForTokenClassification``; the bare backbone for ``sentence-similarity``.

        Raises:
            ValueError: there is no such task, or no stock class can hold its head.
        """
        return stock_of(self.config.task(name), self._head(name), self.backbone)

    def export_task(self, name: str, save_directory: Any, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        """Save one task as a stock model, without a trace of this package; see :meth:`task_model`.

        A ``sentence-similarity`` task loads with sentence-transformers as well.

        Args:
            name: the task.
            save_directory: a folder.
            tokenizer: saved beside the model.
        """
        stock, head = self.task_model(name), self._head(name)
        stock.save_pretrained(save_directory)
        if tokenizer is not None:
            tokenizer.save_pretrained(save_directory)
        if isinstance(head, SentenceSimilarityHead):
            limit = self.config.task(name).get("max_length")
            if limit is None and tokenizer is not None:
                limit = longest_input(tokenizer, self.config.backbone_config)
            write_sentence_transformers(save_directory, head.pooling, stock.config.hidden_size, limit)


def stock_of(task: dict[str, Any], head: Head, backbone: Any) -> PreTrainedModel:
    """A stock model with copies of the weights of a backbone and of one head.

    Args:
        task: the task's dict.
        head: its head.
        backbone: the shared one.

    Raises:
        ValueError: the head is none of the family's own.
    """
    native = getattr(head, "native", None)
    if native is None and not head.language_model and task["type"] != "sentence-similarity":
        raise ValueError(
            f"Task '{task['name']}' has a head that is not the family's own, so no stock class can hold it. "
            "Only heads with pooling='native' of a family that has a class for the task are exported."
        )
    if native is not None:
        config = deepcopy(native.config)
        names = task.get("label_names") or (["LABEL_0"] if task["type"] == "sequence-classification" else None)
        if names:
            config.id2label = dict(enumerate(names))
            config.label2id = {name: number for number, name in enumerate(names)}
        stock: Any = stock_class(config, head.auto_class)(config)
        weights = {f"{stock.base_model_prefix}.{key}": value for key, value in _base(backbone).items()}
        weights |= native.state_dict()
    else:
        config = deepcopy(backbone.config)
        stock = (type(backbone) if head.language_model else backbone_class(config))(config)
        weights = backbone.state_dict() if head.language_model else _base(backbone)
    weights = {key: value.to("cpu", copy=True) for key, value in weights.items()}
    stock = stock.to(backbone.dtype)
    missing, unexpected = stock.load_state_dict(weights, strict=False)
    missing = [key for key in missing if task["type"] != "sentence-similarity" or "pooler." not in key]
    unexpected = [key for key in unexpected if not any(part in key for part in _SPARE)]
    if missing or unexpected:
        raise ValueError(
            f"Task '{task['name']}' does not fit {type(stock).__name__}: {[*missing, *unexpected][0]}. "
            "Save the whole model instead."
        )
    if hasattr(backbone, "generation_config") and head.language_model in ("causal", "text2text"):
        stock.generation_config = deepcopy(backbone.generation_config)
    stock.tie_weights()
    return stock.eval()


def _base(backbone: Any) -> dict[str, torch.Tensor]:
    return backbone.base_model.state_dict()


def write_sentence_transformers(folder: str | Path, pooling: str, width: int, limit: int | None) -> None:
    """The files beside a backbone that make it a model of sentence-transformers: pooling and normalisation."""
    folder = Path(folder)
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (path, kind) in enumerate(kinds.items())
    ]
    files: dict[str, Any] = {
        "modules.json": modules,
        "sentence_bert_config.json": {"max_seq_length": limit, "do_lower_case": False},
        "1_Pooling/config.json": {
            "word_embedding_dimension": width,
            "pooling_mode_mean_tokens": pooling == "mean",
            "pooling_mode_cls_token": pooling == "cls",
            "pooling_mode_lasttoken": pooling == "last",
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
        },
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (folder / "2_Normalize").mkdir(exist_ok=True)
