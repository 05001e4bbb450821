"""How to answer with an exported model as the task does: thresholds and a temperature, as numbers and as code."""

from .aliases import Settings
from .fitted import SETS, temperature_of, thresholds_of

_CODE = """from math import exp

from transformers import pipeline

answer = pipeline("{tag}", model="{name}", top_k=None, function_to_apply="none")
logits = {{one["label"]: one["score"]{temperature} for one in answer([{example}])[0]}}
{decision}"""
_SETS = """probabilities = {label: 1 / (1 + exp(-logit)) for label, logit in logits.items()}
"""
_CLASSES = """total = sum(map(exp, logits.values()))
probabilities = {label: exp(logit) / total for label, logit in logits.items()}
"""


def answer_facts(task: Settings) -> list[str]:
    """The numbers that an exported model does not apply by itself, as sentences."""
    facts = []
    if (temperature := temperature_of(task)) is not None:
        facts.append(f"Divide the logits by {temperature:.6g} for calibrated probabilities (temperature scaling).")
    if thresholds := thresholds_of(task):
        shown = ", ".join(f"`{label}`: {least:.6g}" for label, least in thresholds.items())
        facts.append(f"A label is answered from this probability on: {shown}.")
    return facts


def answer_code(task: Settings, tag: str, name: str, example: str) -> str | None:
    """Code that answers as the task does; None where the stock pipeline alone does.

    Args:
        task: the task's dict.
        tag: of the stock pipeline.
        name: what the model is loaded by.
        example: an input, as code.
    """
    temperature, thresholds = temperature_of(task), thresholds_of(task)
    if temperature is None and thresholds is None:
        return None
    if task.get("problem_type") == SETS:
        decision = _SETS + f"thresholds = {thresholds or dict.fromkeys(task['label_names'], 0.5)}\n"
        decision += "print([label for label, score in probabilities.items() if score >= thresholds[label]])\n"
    elif thresholds is not None:
        ((second, least),) = thresholds.items()
        first = task["label_names"][0]
        decision = f"{_CLASSES}print({second!r} if probabilities[{second!r}] >= {least!r} else {first!r})\n"
    else:
        decision = f"{_CLASSES}print(max(probabilities, key=probabilities.get))\n"
    divided = "" if temperature is None else f" / {temperature!r}"
    return _CODE.format(tag=tag, name=name, temperature=divided, example=example, decision=decision)
