"""The model card: tasks, plan, measured metrics and how to use the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

if TYPE_CHECKING:
    from ..modeling import MultiTaskConfig

# Types whose name on the Hub is another.
_HUB_TASKS = {"sequence-classification": "text-classification"}
_SPLITS = {"eval": "validation", "test": "test"}

# Training arguments that are shown.
_SHOWN = (
    "learning_rate",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "optim",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
    "seed",
    "sampling",
    "sampling_kwargs",
    "task_weights",
)

_TEMPLATE = """---
{data}
---

# {name}

One `{family}` backbone ({backbone}) shared by {count} tasks, fine-tuned with `hf_multitask`.

## Tasks

{tasks}

## Use

```python
from transformers import pipeline

multitask = pipeline("multitask", model="{name}", trust_remote_code=True)
multitask({example})
```

`trust_remote_code=True` runs the code in this repository; with `hf_multitask` imported it is not needed.

## Results

{results}

## Training

{plan}
{hyperparameters}
"""


def model_card(
    config: MultiTaskConfig,
    *,
    name: str,
    history: Sequence[Mapping[str, Any]],
    plan: str | None,
    arguments: Any,
    metadata: Mapping[str, Any],
) -> ModelCard:
    """Write the card of a trained model.

    Args:
        config: the model's configuration.
        name: name of the model.
        history: the trainer's log; the last evaluation of each split gives the results.
        plan: what each dataset got, as text.
        arguments: the training arguments.
        metadata: further fields of the card's metadata.
    """
    results = _results(config, history)
    backbone = config.backbone_config.name_or_path or "not named"
    data = ModelCardData(
        model_name=name,
        library_name="transformers",
        tags=["hf_multitask", "multi-task-learning", *metadata.get("tags", [])],
        base_model=backbone if _is_hub_id(backbone) else None,
        eval_results=_eval_results(config, results) or None,
        **{key: value for key, value in metadata.items() if key != "tags"},
    )
    return ModelCard(
        _TEMPLATE.format(
            data=data.to_yaml(),
            name=name,
            example=_example(config),
            family=config.backbone_config.model_type,
            backbone=f"`{backbone}`",
            count=len(config.task_names),
            tasks=_tasks(config),
            results=_table(results) if results else "Not evaluated.",
            plan=f"```\n{plan}\n```\n" if plan else "",
            hyperparameters="\n".join(
                f"- `{key}`: {getattr(value, 'value', value)}"
                for key, value in ((key, getattr(arguments, key)) for key in _SHOWN)
                if value is not None
            ),
        )
    )


def _example(config: MultiTaskConfig) -> str:
    """An input that the model takes, as code: a text where a task reads one."""
    examples = {
        "question-answering": '{"question": "Who loved it?", "context": "Ada Lovelace loved this place."}',
        "multiple-choice": '{"question": "Ada Lovelace loved", "choices": ["this place.", "nothing."]}',
    }
    pair = '{"text": "Ada Lovelace loved this place.", "text_pair": "She liked it."}'
    found = [
        examples.get(task["type"], pair if task.get("text_pair_column") else '"Ada Lovelace loved this place."')
        for task in config.tasks
    ]
    return min(found, key=lambda example: (not example.startswith('"'), found.index(example)))


def _is_hub_id(backbone: str) -> bool:
    return not backbone.startswith(("package:", "/", ".")) and backbone.count("/") <= 1 and backbone != "not named"


def _tasks(config: MultiTaskConfig) -> str:
    lines = ["| task | type | labels |", "|---|---|---|"]
    for task in config.tasks:
        labels = ", ".join(f"`{label}`" for label in task.get("label_names") or [])
        lines.append(f"| {task['name']} | {task['type']} | {labels or '-'} |")
    return "\n".join(lines)


def _results(config: MultiTaskConfig, history: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str, float]]:
    """(split, task, metric, value) of the last evaluation of each split."""
    found: dict[tuple[str, str, str], float] = {}
    for entry in history:
        for key, value in entry.items():
            split, _, rest = key.partition("_")
            # The longest name that fits: 'stance' is no owner of 'stance_climate_accuracy' beside 'stance_climate'.
            owners = [task for task in config.task_names if split in _SPLITS and rest.startswith(f"{task}_")]
            if owners:
                task = max(owners, key=len)
                found[split, task, rest.removeprefix(f"{task}_")] = value
            if split in _SPLITS and rest == "average":
                found[split, "average", "average"] = value
    return [(*key, value) for key, value in found.items()]


def _table(results: Sequence[tuple[str, str, str, float]]) -> str:
    lines = ["| split | task | metric | value |", "|---|---|---|---|"]
    lines += [f"| {_SPLITS[split]} | {task} | {metric} | {value:.4f} |" for split, task, metric, value in results]
    return "\n".join(lines)


def _eval_results(config: MultiTaskConfig, results: Sequence[tuple[str, str, str, float]]) -> list[EvalResult]:
    return [
        EvalResult(
            task_type=_HUB_TASKS.get(config.task(task)["type"], config.task(task)["type"]),
            dataset_type=config.task(task).get("dataset") or task,
            dataset_name=config.task(task).get("dataset") or task,
            dataset_split=_SPLITS[split],
            metric_type=metric,
            metric_value=round(value, 4),
        )
        for split, task, metric, value in results
        if task != "average" and metric != "loss"
    ]
