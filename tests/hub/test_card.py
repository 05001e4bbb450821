"""The card whole after real runs: its text, its metadata, its code and its picture."""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path

import processes
import pytest
import yaml
from datasets import Dataset
from huggingface_hub import ModelCard
from tiny import read_rows

import hf_multitask
from hf_multitask import MultiTaskTrainer, SequenceClassification
from hf_multitask.hub.card import CURVES_NAME, write_card

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
| sentiment | f1 | {eval_sentiment_f1:.4f} | {test_sentiment_f1:.4f} |
| ner | loss | {eval_ner_loss:.4f} | {test_ner_loss:.4f} |
| ner | f1 | {eval_ner_f1:.4f} | {test_ner_f1:.4f} |
| ner | precision | {eval_ner_precision:.4f} | {test_ner_precision:.4f} |
| ner | recall | {eval_ner_recall:.4f} | {test_ner_recall:.4f} |
| ner | accuracy | {eval_ner_accuracy:.4f} | {test_ner_accuracy:.4f} |
| **mean of the primary metrics** |  | {eval_average:.4f} | {test_average:.4f} |

Measured on validation at step 4, on test at step 4.
{curves}
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
dataset        tasks  rows  share  passes
sentiment  sentiment    40  62.5%    0.50
ner              ner    24  37.5%    0.50
```

### Hyper-parameters

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
PICTURE = "\n![Training loss and primary metric of the tasks by optimizer step](learning_curves.png)\n"


@pytest.fixture
def build(build_model, arguments, data, tokenizer):
    def make(model=None, evaluation=True, **kwargs):
        values = {"max_steps": 4, "eval_strategy": "steps", "eval_steps": 2, "task_weights": {"ner": 2}, **kwargs}
        return MultiTaskTrainer(
            model or build_model(),
            arguments(**values),
            train_dataset=data(),
            eval_dataset=data(8, 4, "validation") if evaluation else None,
            processing_class=tokenizer,
        )

    return make


def has_matplotlib():
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


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
    figures = {**found, "curves": PICTURE if has_matplotlib() else "", "optimizer": trainer.args.optim.value}
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
    assert measured["ner", "test", "f1"] == rounded["test_ner_f1"] and len(measured) == 12
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


def test_card_shows_gradients_where_they_were_measured(build, tmp_path):
    build(gradient_logging_steps=2, save_strategy="steps", save_steps=4).train()
    text = (tmp_path / "out" / "README.md").read_text()
    assert "- `gradient_logging_steps`: 2" in text
    picture = "by optimizer step, norms of their gradients and the cosines between those](learning_curves.png)"
    assert (picture in text) == has_matplotlib()


def test_card_of_the_best_model_tells_its_figures_and_its_step(build, tmp_path):
    trainer = build(load_best_model_at_end=True, save_strategy="steps", save_steps=2, learning_rate=0.0)
    trainer.train()  # nothing is better than the first evaluation
    text = (tmp_path / "out" / "README.md").read_text()  # written at the end of training
    assert "The weights are those of step 2, the best by `eval_average`." in text
    assert "Measured on validation at step 2." in text
    trainer.evaluate()
    trainer.create_model_card()
    assert "Measured on validation at step 2." in (tmp_path / "out" / "README.md").read_text()


def test_card_of_a_model_that_was_not_evaluated(build, tmp_path):
    trainer = build(evaluation=False, eval_strategy="no", logging_strategy="no")
    trainer.train()
    assert not (tmp_path / "out" / "README.md").exists()  # it saves nothing by itself
    trainer.save_model()
    text = (tmp_path / "out" / "README.md").read_text()
    assert "Not evaluated." in text and "learning_curves" not in text and "Trained for 4 optimizer steps" in text
    assert "model-index" not in text and "| task | type | labels |\n" in text
    assert not (tmp_path / "out" / CURVES_NAME).exists()
    ModelCard.load(tmp_path / "out" / "README.md")


def test_evaluating_a_trained_model_leaves_what_its_card_says_of_the_training(build, data, tmp_path):
    trainer = build()
    trainer.train()
    trainer.save_model()
    later = build(trainer.model)
    later.create_model_card()
    text = (tmp_path / "out" / "README.md").read_text()
    assert "Trained for 4 optimizer steps" in text and "Measured on validation at step 4." in text
    assert ModelCard.load(tmp_path / "out" / "README.md").data.eval_results
    later.evaluate(data(10, 6, "test"), metric_key_prefix="test")
    later.create_model_card()
    text = (tmp_path / "out" / "README.md").read_text()
    assert "Trained for 4 optimizer steps" in text and "Measured on test at step 0." in text


def test_metadata_that_are_given_stay_in_later_cards_and_no_licence_is_made_up(build, tmp_path):
    trainer = build()
    trainer.train()
    trainer.hub_datasets = {"ner": "owner/wikigold"}
    trainer.save_model(str(tmp_path / "first"))
    data = ModelCard.load(tmp_path / "first" / "README.md").data
    assert data.license is None and data.language is None and data.datasets == ["owner/wikigold"]
    assert {(one.dataset_type, one.dataset_name) for one in data.eval_results} == {
        ("sentiment", "sentiment"),
        ("owner/wikigold", "ner"),
    }
    assert (
        "[owner/wikigold](https://huggingface.co/datasets/owner/wikigold)"
        in (tmp_path / "first" / "README.md").read_text()
    )
    trainer.create_model_card(language=["en", "de"], license="mit", tags="news", datasets="imdb", finetuned_from="a/b")
    trainer.save_model(str(tmp_path / "second"))
    for folder in ("out", "second"):
        data = ModelCard.load(tmp_path / folder / "README.md").data
        assert (data.language, data.license, data.datasets, data.base_model) == (["en", "de"], "mit", "imdb", "a/b")
        assert data.tags == ["hf_multitask", "multi-task-learning", "generated_from_trainer", "news"]
    with pytest.raises(TypeError, match="licence"):
        trainer.create_model_card(licence="mit")


def test_edits_on_the_hub_survive_a_push(build, tmp_path, caplog):
    trainer = build(max_steps=1)
    trainer.create_model_card()
    path = tmp_path / "out" / "README.md"
    config, run = trainer.model.config, trainer._told_run()

    def push(here, on_hub):
        path.write_text(here)
        missed = write_card(path.parent, config, run, name="out", repository="out", given={}, on_hub=on_hub)
        return path.read_text(), missed

    fresh = path.read_text()
    old = fresh.replace("a head for 2 tasks", "a head for 3 tasks")
    mine, theirs = fresh.replace("## Use", "Mine.\n\n## Use"), fresh.replace("## Use", "Theirs.\n\n## Use")
    assert push(fresh, fresh) == (fresh, False) and push("", fresh) == (fresh, False)
    assert push(fresh, theirs) == (theirs, False) and push("", theirs) == (theirs, False)
    assert push(mine, fresh) == (mine, False) and push(mine, mine) == (mine, False)
    assert push(mine, theirs) == (mine, True) and push(fresh, old) == (old, False)


def test_card_on_the_hub_is_read_before_a_push(tmp_path):
    class Hub(BaseHTTPRequestHandler):
        def do_GET(self):
            text = b"---\nlicense: mit\n---\n# Theirs\n"
            known = self.path == "/me/model/resolve/main/README.md"
            self.send_response(200 if known else 404)
            for name, value in (("X-Repo-Commit", "0" * 40), ("ETag", '"one"'), ("Content-Length", str(len(text)))):
                self.send_header(name, value)
            if not known:
                self.send_header("X-Error-Code", "EntryNotFound")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(text)

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    script = """
import json, sys
from types import SimpleNamespace
from hf_multitask.training.describing import DescribingTrainer
args = SimpleNamespace(hub_revision=None, hub_token=None)
print(json.dumps([DescribingTrainer._card_on_hub(SimpleNamespace(hub_model_id=name, args=args)) for name in sys.argv[1:]]))
"""
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environment = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_OFFLINE": "0"}
        environment |= {"HF_HOME": str(tmp_path / "hub"), "HF_HUB_DISABLE_XET": "1"}
        command = [sys.executable, "-c", script, "me/model", "me/none"]
        told = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        server.shutdown()
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout.splitlines()[-1]) == ["---\nlicense: mit\n---\n# Theirs\n", None]


def test_the_page_on_the_card_runs(build, tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "model-card.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(code, {"trainer": build()})
    data = ModelCard.load(tmp_path / "out" / "README.md").data
    assert (data.language, data.license, data.datasets) == ("en", "apache-2.0", ["owner/reviews"])
    assert "reviews" in data.tags
    text = (tmp_path / "out" / "README.md").read_text()
    for heading in re.findall(r"^\| ([A-Z]\w+) \|", page, re.MULTILINE):
        assert f"## {heading}\n" in text
    # Its advice on a part that is to be written anew.
    text = text.replace("- Python", "- My Python")
    start, end = text.index("## Versions"), text.index("<!-- end of versions -->") + len("<!-- end of versions -->\n")
    (tmp_path / "out" / "README.md").write_text(re.sub('"# versions": "[^"]*"(, )?', "", text[:start] + text[end:]))
    build().create_model_card()
    assert "## Versions" in (tmp_path / "out" / "README.md").read_text()


def test_card_names_the_repository_in_its_code(build, tmp_path):
    trainer = build(hub_model_id="me/two-tasks", max_steps=1)
    trainer.create_model_card()
    text = (tmp_path / "out" / "README.md").read_text()
    assert "\n# two-tasks\n" in text and text.count('"me/two-tasks"') == 3
    trainer.create_model_card(model_name="you/other")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "\n# other\n" in text and text.count('"you/other"') == 3 and "two-tasks" not in text


def test_tasks_of_one_type_on_one_dataset_stay_apart(build_model, arguments, tokenizer, tmp_path):
    texts = [row["text"] for row in read_rows("sentiment", "train", 12)]
    rows = Dataset.from_dict({"text": texts, "a": ["x", "y"] * 6, "b": ["y", "x"] * 6})
    tasks = {
        name: SequenceClassification(label_names=["x", "y"], label_column=name, dataset="shared") for name in ("a", "b")
    }
    trainer = MultiTaskTrainer(
        build_model(tasks=tasks),
        arguments(),
        train_dataset={"shared": rows},
        eval_dataset={"shared": rows},
        processing_class=tokenizer,
    )
    trainer.train()
    metrics = trainer.evaluate()
    for _ in range(2):
        trainer.create_model_card()
        found = ModelCard.load(tmp_path / "out" / "README.md").data.eval_results
        assert {
            (one.task_name, one.dataset_config): one.metric_value for one in found if one.metric_type == "accuracy"
        } == {(name, name): round(metrics[f"eval_{name}_accuracy"], 4) for name in ("a", "b")}
        assert {one.dataset_type for one in found} == {"shared"}
    assert "| shared | a, b | 12 | 12 |" in (tmp_path / "out" / "README.md").read_text()


def test_card_of_many_tasks_folds_its_tables(build_model, arguments, tokenizer, tmp_path):
    texts = [row["text"] for row in read_rows("sentiment", "train", 30)]
    names = [f"t{number:02d}" for number in range(25)]
    data = {name: Dataset.from_dict({"text": texts[n : n + 2], "label": ["no", "yes"]}) for n, name in enumerate(names)}
    labels = ["no", "yes", "a|b", "`", *(f"label {number}" for number in range(30))]
    trainer = MultiTaskTrainer(
        build_model(tasks={name: SequenceClassification(label_names=labels) for name in names}),
        arguments(max_steps=8),
        train_dataset=data,
        eval_dataset=data,
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.evaluate()
    trainer.create_model_card()
    path = tmp_path / "out" / "README.md"
    text = path.read_text()
    for summary in ("25 tasks", "Results of 25 tasks", "25 datasets"):
        assert f"<summary>{summary}</summary>" in text
    assert "... 19 more" in text  # in the plan
    assert r"`no`, `yes`, `a\|b`, `` ` ``, `label 0`" in text and "... (34 in all)" in text
    assert len(ModelCard.load(path).data.eval_results) == 25 * len(
        {one.metric_type for one in ModelCard.load(path).data.eval_results}
    )


def test_card_that_finds_no_place_loses_neither_model_nor_card(build, tmp_path, caplog):
    trainer = build(save_strategy="steps", save_steps=4)
    (tmp_path / "out" / "_README.md.tmp").mkdir(parents=True)  # in the way of what is written
    trainer.train()
    trainer.save_model()
    assert caplog.text.count("could not be written (is a directory). The model is not touched.") == 2
    assert (tmp_path / "out" / "model.safetensors").is_file() and not (tmp_path / "out" / "README.md").exists()
    (tmp_path / "out" / "_README.md.tmp").rmdir()
    (tmp_path / "out" / "README.md").write_text("---\nlicense: [mit\n---\nMine.\n")
    trainer.save_model()
    assert "stays as it is: its metadata are no valid YAML" in caplog.text
    assert (tmp_path / "out" / "README.md").read_text() == "---\nlicense: [mit\n---\nMine.\n"


def test_without_matplotlib_the_card_says_nothing_of_a_picture(build, tmp_path):
    trainer = build(max_steps=2)
    trainer.train()
    state = json.dumps(trainer.state.log_history)
    script = processes.BLOCK.replace("NoPackage", "NoPicture").replace('"hf_multitask"', '"matplotlib"')
    script += """
from pathlib import Path
from hf_multitask import MultiTaskTrainingArguments
from hf_multitask.hub import Run, write_card
from hf_multitask.modeling import MultiTaskConfig
config = MultiTaskConfig(tasks=[{"name": name, "type": "sequence-classification"} for name in ("sentiment", "ner")])
arguments = MultiTaskTrainingArguments(sys.argv[1], report_to="none", use_cpu=True)
run = Run(arguments=arguments, history=json.loads(sys.argv[2]), step=2)
write_card(sys.argv[1], config, run, name="a", repository="a", given={})
print(json.dumps(sorted(path.name for path in Path(sys.argv[1]).iterdir())))
"""
    folder = tmp_path / "bare"
    assert processes.run(script, str(folder), state) == ["README.md"]
    text = (folder / "README.md").read_text()
    assert "learning_curves" not in text and "Measured on validation at step 2." in text


def test_picture_is_drawn_anew_for_new_figures_only_and_not_over_the_users_own(build, tmp_path):
    pytest.importorskip("matplotlib", reason="the extra 'report' is not installed")
    trainer = build()
    trainer.train()
    trainer.save_model()
    path = tmp_path / "out" / CURVES_NAME
    first, stamp = path.read_bytes(), path.stat().st_mtime_ns
    trainer.save_model()
    assert path.stat().st_mtime_ns == stamp
    trainer.state.log_history.insert(0, {"loss": 3.0, "ner_loss": 3.0, "step": 0})
    trainer.save_model()
    assert path.read_bytes() != first and path.read_bytes().startswith(b"\x89PNG")
    path.write_bytes(b"mine")
    trainer.state.log_history.pop(0)
    trainer.save_model()
    assert path.read_bytes() == b"mine" and "learning_curves.png" in (tmp_path / "out" / "README.md").read_text()


def test_edits_survive_a_second_run(build, tmp_path):
    path = tmp_path / "out" / "README.md"
    trainer = build()
    trainer.train()
    trainer.save_model()
    text = path.read_text()
    text = text.replace("---\nlibrary_name", "---\nlicense: mit  # agreed\nlibrary_name", 1)
    text = text.replace("- multi-task-learning\n", "- multi-task-learning\n- reviews\n")
    text = text.replace("A `bert` backbone", "My model. A `bert` backbone")
    text = text.replace("## Training\n", "## Limitations\n\nEnglish only.\n\n## Training\n")
    text = re.sub(r"## Versions.*<!-- end of versions -->\n\n", "", text, flags=re.DOTALL)
    path.write_text(text)
    again = build(trainer.model, max_steps=6, eval_steps=6)
    again.train()
    again.save_model()
    text = path.read_text()
    for kept in (
        "license: mit  # agreed",
        "- reviews",
        "My model. A `bert`",
        "## Limitations\n\nEnglish only.\n\n## Training\n",
    ):
        assert text.count(kept) == 1
    assert "Versions" not in text
    assert "Trained for 6 optimizer steps" in text and "Measured on validation at step 6." in text
    card = ModelCard.load(path)
    (measured,) = [
        one.metric_value for one in card.data.eval_results if (one.task_name, one.metric_type) == ("ner", "f1")
    ]
    (last,) = [entry["eval_ner_f1"] for entry in again.state.log_history if "eval_ner_f1" in entry]
    assert measured == round(last, 4) and card.data.license == "mit"
    shutil.copy(path, tmp_path / "before.md")
    again.save_model()
    assert path.read_text() == (tmp_path / "before.md").read_text()


def test_card_of_the_demo_has_valid_metadata():
    path = Path(__file__).parents[2] / "model_cards" / "sentiment-ner-minilm" / "README.md"
    card = ModelCard.load(path)
    assert {(one.dataset_name, one.metric_type) for one in card.data.eval_results} == {
        ("Sentiment Labelled Sentences", "accuracy"),
        ("Wikigold", "f1"),
    }
    for one in card.data.eval_results:  # the metadata and the table say the same
        assert f"**{one.metric_value:.3f}**" in card.content
