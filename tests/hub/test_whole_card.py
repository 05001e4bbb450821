"""A card whole after a real run: its text to the letter, its metadata and its code."""

import platform
import re
from importlib.metadata import version
from importlib.util import find_spec

import processes
import pytest
import yaml
from huggingface_hub import ModelCard

import hf_multitask

EXPECTED = """---
library_name: transformers
pipeline_tag: text-classification
tags:
- hf_multitask
- multi-task-learning
- generated_from_trainer
metrics:
- accuracy
- f1
model-index:
- name: out
  results:
  - task:
      type: text-classification
      name: sentiment
    dataset:
      name: sentiment
      type: sentiment
      split: validation
    metrics:
    - type: accuracy
      value: {eval_sentiment_accuracy!r}
    - type: macro_f1
      value: {eval_sentiment_macro_f1!r}
    - type: f1
      value: {eval_sentiment_f1!r}
  - task:
      type: text-classification
      name: sentiment
    dataset:
      name: sentiment
      type: sentiment
      split: test
    metrics:
    - type: accuracy
      value: {test_sentiment_accuracy!r}
    - type: macro_f1
      value: {test_sentiment_macro_f1!r}
    - type: f1
      value: {test_sentiment_f1!r}
  - task:
      type: token-classification
      name: ner
    dataset:
      name: ner
      type: ner
      split: validation
    metrics:
    - type: f1
      value: {eval_ner_f1!r}
    - type: precision
      value: {eval_ner_precision!r}
    - type: recall
      value: {eval_ner_recall!r}
    - type: accuracy
      value: {eval_ner_accuracy!r}
  - task:
      type: token-classification
      name: ner
    dataset:
      name: ner
      type: ner
      split: test
    metrics:
    - type: f1
      value: {test_ner_f1!r}
    - type: precision
      value: {test_ner_precision!r}
    - type: recall
      value: {test_ner_recall!r}
    - type: accuracy
      value: {test_ner_accuracy!r}
license: apache-2.0
---

<!-- hf_multitask: intro -->

# out

A `bert` backbone with a head for 2 tasks, fine-tuned with `hf_multitask`.

<!-- end of intro -->

## Tasks

<!-- hf_multitask: tasks -->

| task | type | labels | metric | validation | test |
|---|---|---|---|---|---|
| sentiment | sequence-classification | `negative`, `positive` | accuracy | {eval_sentiment_accuracy:.4f} | {test_sentiment_accuracy:.4f} |
| ner | token-classification | `O`, `B-PER`, `I-PER`, `B-ORG`, `I-ORG`, `B-LOC`, `I-LOC`, `B-MISC`, `I-MISC` | f1 | {eval_ner_f1:.4f} | {test_ner_f1:.4f} |

<!-- end of tasks -->

## Use

<!-- hf_multitask: use -->

```python
from transformers import pipeline

multitask = pipeline("multitask", model="out", trust_remote_code=True)
print(multitask("Ada Lovelace loved this place."))
```

The answer is a dict by task. `trust_remote_code=True` runs the code that lies beside the weights; where
`hf_multitask` is imported it is not needed.

Logits without the pipeline:

```python
import torch
from transformers import AutoModel, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("out", trust_remote_code=True)
model = AutoModel.from_pretrained("out", trust_remote_code=True)
tokens = tokenizer("Ada Lovelace loved this place.", return_tensors="pt")
with torch.no_grad():
    logits = model(**tokens).logits  # a dict by task
print({{task: tuple(tensor.shape) for task, tensor in logits.items()}})
```

<!-- end of use -->

## Results

<!-- hf_multitask: results -->

| task | metric | validation | test |
|---|---|---|---|
| sentiment | loss | {eval_sentiment_loss:.4f} | {test_sentiment_loss:.4f} |
| sentiment | accuracy | {eval_sentiment_accuracy:.4f} | {test_sentiment_accuracy:.4f} |
| sentiment | macro_f1 | {eval_sentiment_macro_f1:.4f} | {test_sentiment_macro_f1:.4f} |
| sentiment | f1 | {eval_sentiment_f1:.4f} | {test_sentiment_f1:.4f} |
| ner | loss | {eval_ner_loss:.4f} | {test_ner_loss:.4f} |
| ner | f1 | {eval_ner_f1:.4f} | {test_ner_f1:.4f} |
| ner | precision | {eval_ner_precision:.4f} | {test_ner_precision:.4f} |
| ner | recall | {eval_ner_recall:.4f} | {test_ner_recall:.4f} |
| ner | accuracy | {eval_ner_accuracy:.4f} | {test_ner_accuracy:.4f} |
| **mean of the primary metrics** |  | {eval_average:.4f} | {test_average:.4f} |

Measured on validation at step 4, on test at step 4.
{curves}
### By class, on test

sentiment:

| label | precision | recall | F1 | support |
|---|---|---|---|---|
{sentiment_classes}

ner:

| label | precision | recall | F1 | support |
|---|---|---|---|---|
{ner_classes}
{matrices}
<!-- end of results -->

## Training

<!-- hf_multitask: training -->

Trained for 4 optimizer steps (0.5 epochs of the mixture).

### Data

| dataset | tasks | training rows | validation rows | test rows |
|---|---|---|---|---|
| sentiment | sentiment | 40 | 8 | 10 |
| ner | ner | 24 | 4 | 6 |

### Plan

```
Plan: 4 steps of 8 rows
task         dataset  rows  labelled  classes  share  passes
sentiment  sentiment    40        40        2  62.5%    0.50
ner              ner    24        24        9  37.5%    0.50
```

### Hyperparameters

- `learning_rate`: 0.001
- `max_steps`: 4
- `per_device_train_batch_size`: 8
- `gradient_accumulation_steps`: 1
- `optim`: {optimizer}
- `adam_beta1`: 0.9
- `adam_beta2`: 0.999
- `adam_epsilon`: 1e-08
- `lr_scheduler_type`: linear
- `warmup_steps`: 0
- `weight_decay`: 0.0
- `max_grad_norm`: 1.0
- `seed`: 42
- `sampling`: proportional
- `task_weights`: {{"ner": 2}}

<!-- end of training -->

## Versions

<!-- hf_multitask: versions -->

- Python {python}
- hf_multitask {own}
- torch {torch}
- transformers {transformers}
- datasets {datasets}
- tokenizers {tokenizers}

<!-- end of versions -->

<!-- hf_multitask keeps what you change here: {digests} -->
"""
PICTURE = "\n![Training loss and primary metric of each task by optimizer step](learning_curves.png)\n"
MATRICES = "\n![Confusion matrices on test: labels by row, answers by column](confusion_matrices.png)\n"


def classes(report):
    """The rows of a table of classes."""
    return "\n".join(
        f"| `{label}` | {own['precision']:.4f} | {own['recall']:.4f} | {own['f1']:.4f} | {own['support']} |"
        for label, own in report["classes"].items()
    )


@pytest.mark.process
def test_card_of_a_real_run_is_as_expected(build, data, tmp_path):
    trainer = build()
    trainer.train()
    trainer.evaluate(data(10, 6, "test"), metric_key_prefix="test")
    trainer.create_model_card(license="apache-2.0")
    trainer.save_model()
    found = {}
    for entry in trainer.state.log_history:
        found |= {key: value for key, value in entry.items() if key.startswith(("eval_", "test_"))}
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    index = text.index("\n---\n")
    has_pictures, reports = find_spec("matplotlib"), trainer.evaluator.reports.of("test")
    figures = {**found, "curves": PICTURE if has_pictures else "", "optimizer": trainer.args.optim.value}
    figures |= {"matrices": MATRICES if has_pictures else ""}
    figures |= {f"{task}_classes": classes(report) for task, report in reports.items()}
    versions = {name: version(name) for name in ("torch", "transformers", "datasets", "tokenizers")}
    versions |= {"python": platform.python_version(), "own": hf_multitask.__version__}
    digests = re.findall(r"here: (\{.*\}) -->\n$", text)[0]
    rounded = {key: round(value, 4) if isinstance(value, float) else value for key, value in figures.items()}
    head, _, body = EXPECTED.partition("\n---\n")
    assert text[:index] == head.format(**rounded)
    assert text[index + 5 :] == body.format(**figures, **versions, digests=digests)
    # The metadata are the Hub's library's own, to the letter, and say what was measured.
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert yaml.safe_load(card.data.to_yaml()) == yaml.safe_load(text[4:index])
    measured = {(one.task_name, one.dataset_split, one.metric_type): one.metric_value for one in card.data.eval_results}
    assert measured["ner", "test", "f1"] == rounded["test_ner_f1"] and len(measured) == 14
    # The code runs where the package is not installed.
    first, second = (
        code.replace('"out"', repr(str(tmp_path / "out")))
        for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    )
    told = processes.run(processes.BLOCK + first + "\nprint(json.dumps(list(multitask('A fine place.'))))")
    assert told == ["sentiment", "ner"]
    told = processes.run(
        processes.BLOCK + second + "\nprint(json.dumps({name: own.shape[-1] for name, own in logits.items()}))"
    )
    assert told == {"sentiment": 2, "ner": 9}
