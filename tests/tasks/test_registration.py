"""A task type of the user's own: what registration refuses, and that it trains and answers like ours."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
import yaml
from datasets import Dataset
from pages import files_of
from safetensors.torch import load_file
from tiny import read_rows
from transformers import AutoTokenizer, pipeline

from hf_multitask import MultiTaskModel, MultiTaskTrainer, SequenceClassification, Task, TokenClassification
from hf_multitask import register_task as register
from hf_multitask.cli import main
from hf_multitask.data.encoding import encode_dataset
from hf_multitask.modeling import Head
from hf_multitask.modeling.decoding import decode_sequence
from hf_multitask.modeling.heads import SequenceClassificationHead
from hf_multitask.modeling.kinds import KINDS
from hf_multitask.tasks import TASK_TYPES, build_task

FILES = files_of("your-own-task.md")


def entities(split, count):
    """NER sentences with the number of their entities; every fifth number is missing."""
    rows = read_rows("ner", split, count)
    return Dataset.from_list(
        [
            {"tokens": row["tokens"], "ner_tags": row["ner_tags"]}
            | {"count": None if number % 5 == 4 else sum(tag.startswith("B-") for tag in row["ner_tags"])}
            for number, row in enumerate(rows)
        ]
    )


@pytest.fixture
def mixture(count, tasks, data):
    """Ours and the user's type: a text task, and two that share rows."""
    tasks = tasks | {"entities": count.Count(dataset="ner", text_column="tokens")}

    def make(split="train", sentiment=24, ner=25):
        return data(sentiment, ner, split) | {"ner": entities(split, ner)}

    return tasks, make


@pytest.fixture
def trainer(mixture, build_model, arguments, backbone_path):
    tasks, rows = mixture

    def make(model=None, **kwargs):
        return MultiTaskTrainer(
            model or build_model(tasks=tasks),
            arguments(**kwargs),
            train_dataset=rows(),
            eval_dataset=rows("validation", 9, 10),
            processing_class=AutoTokenizer.from_pretrained(backbone_path()),
        )

    return make


def test_own_type_trains_beside_ours_and_answers(trainer, tmp_path):
    one = trainer(max_steps=12, learning_rate=5e-3)
    before = one.evaluate()
    one.train()
    after = one.evaluate()
    assert after["eval_entities_loss"] < before["eval_entities_loss"]
    assert {"eval_entities_accuracy", "eval_entities_within_one", "eval_ner_f1", "eval_sentiment_accuracy"} < set(after)
    primary = [after[name] for name in ("eval_sentiment_accuracy", "eval_ner_f1", "eval_entities_accuracy")]
    assert after["eval_average"] == pytest.approx(sum(primary) / 3)
    assert any("entities_loss" in entry for entry in one.state.log_history)

    one.save_model()
    answer = pipeline("multitask", model=str(tmp_path / "out"))("Ada Lovelace loved this place.")
    assert list(answer) == ["sentiment", "ner", "entities"]
    assert set(answer["entities"]) == {"count", "expected"}
    loaded = trainer(MultiTaskModel.from_pretrained(tmp_path / "out"))
    assert loaded.evaluate()["eval_entities_loss"] == pytest.approx(after["eval_entities_loss"], abs=1e-6)


def test_loss_is_that_of_a_naive_loop(count, build_model, tokenizer):
    model = build_model(tasks={"entities": count.Count()})
    inputs = tokenizer(["Ada Lovelace met Charles Babbage.", "No."], padding=True, return_tensors="pt")
    labels = torch.tensor([2, 0])
    output = model(**inputs, labels={"entities": labels})
    states = model.backbone(**inputs).last_hidden_state
    losses = []
    for row, label in enumerate(labels):
        kept = states[row][inputs["attention_mask"][row].bool()]
        rate = model.heads["entities"].rate(kept).exp().sum()
        losses.append(rate - label * rate.log())
    torch.testing.assert_close(output.loss, torch.stack(losses).mean())


def test_resume_is_exact(trainer, tmp_path):
    common = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    trainer(output_dir=str(tmp_path / "alone"), **common).train()
    resumed = trainer(output_dir=str(tmp_path / "resumed"), **common)
    resumed.train(resume_from_checkpoint=str(tmp_path / "alone" / "checkpoint-3"))
    ours, theirs = (load_file(tmp_path / name / "checkpoint-6" / "model.safetensors") for name in ("resumed", "alone"))
    assert "heads.entities.rate.weight" in ours
    assert all(torch.equal(value, ours[name]) for name, value in theirs.items())


@pytest.mark.trainer
def test_recipes_name_the_type(count, backbone_path, tmp_path, capsys):
    for split in ("train", "validation"):
        entities(split, 12).to_json(tmp_path / f"{split}.jsonl")
    recipe = {
        "backbone": backbone_path(),
        "datasets": {"ner": {"path": "json", "data_files": {"train": "train.jsonl", "validation": "validation.jsonl"}}},
        "tasks": {"entities": {"type": "count", "dataset": "ner", "text_column": "tokens"}},
        "training": {
            "output_dir": "out",
            "max_steps": 2,
            "use_cpu": True,
            "report_to": "none",
            "eval_strategy": "steps",
        },
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["train", str(tmp_path / "recipe.yaml")]) == 0
    assert "\n  entities: {'count': " in capsys.readouterr().out
    assert main(["predict", str(tmp_path / "out"), "A fine place."]) == 0
    assert '"entities": {"count": ' in capsys.readouterr().out


def test_our_head_and_decode_under_a_type_of_ones_own(registry, build_model, tokenizer, tmp_path):
    @dataclass(kw_only=True)
    class Stance(SequenceClassification):
        """Labels with a metric of their own."""

        type: ClassVar[str] = "stance"

        def metrics(self, predictions, labels, unseen):
            return {"wins": 1.0}

    register(Stance, head=SequenceClassificationHead, decode=decode_sequence)
    task = Stance(label_names=["no", "yes"], problem_type="single_label_classification")
    build_model(tasks={"stance": task}).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert "from .heads import SequenceClassificationHead as head_0" in (tmp_path / "extensions.py").read_text()
    assert not list(tmp_path.glob("extension_*"))
    assert pipeline("multitask", model=str(tmp_path))("So be it.")["stance"]["label"] in ("no", "yes")


def test_the_same_class_registers_twice(count):
    import count_head

    register(count.Count, head=count_head.CountHead, decode=count_head.decode_count)
    assert TASK_TYPES["count"] is count.Count
    assert isinstance(build_task("t", {"type": "count"}), count.Count)


def test_a_class_of_a_reloaded_file_takes_its_own_place(count, import_file):
    again = import_file("count_task", FILES["count_task.py"])
    assert TASK_TYPES["count"] is again.Count is not count.Count


def test_labels_are_encoded_anew_when_the_class_changes(count, import_file, backbone_path, tokenizer):
    def labels(module):
        task = build_task("count", {"type": "count", "text_column": "tokens"})
        rows = Dataset.from_list([{"tokens": ["a"], "count": 3}])
        config = MultiTaskModel.from_backbone(backbone_path(), tasks={"count": task}).config.backbone_config
        encoded = encode_dataset(
            "count", rows, [task], tokenizer=tokenizer, config=config, split="train", training=True
        )
        return encoded.rows._fingerprint, encoded.rows["labels:count"][0]

    first = labels(count)
    assert labels(count) == first
    changed = FILES["count_task.py"].replace(
        "return rows[self.count_column]", "return [n + 1 for n in rows[self.count_column]]"
    )
    fingerprint, label = labels(import_file("count_task", changed, folder="changed"))
    assert (fingerprint != first[0], label) == (True, 4)


@dataclass(kw_only=True)
class Plain(Task):
    """Has what a task must have."""

    type: ClassVar[str] = "plain"
    text_column: str = "text"

    @property
    def target_column(self):
        return "label"

    def encode_labels(self, rows, indices, encoding, unseen, split):
        return rows["label"]

    def metrics(self, predictions, labels, unseen):
        return {}


def derived(**attributes):
    """A subclass of Plain with other attributes, as a dataclass."""
    return dataclass(kw_only=True)(type("Derived", (Plain,), attributes))


class Nameless(Task):
    """Has no type."""


class Unfinished(Task):
    """Defines none of the methods."""

    type: ClassVar[str] = "unfinished"


@dataclass(kw_only=True)
class Textless(Task):
    """Reads nothing."""

    type: ClassVar[str] = "textless"
    target_column = "label"

    def encode_labels(self, rows, indices, encoding, unseen, split):
        return []

    def metrics(self, predictions, labels, unseen):
        return {}


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (Head, "`task` should be a subclass of hf_multitask.Task"),
        (Plain(), "`task` should be a subclass of hf_multitask.Task"),
        (Nameless, "Nameless has no type name. Add a class attribute `type"),
        (derived(type=3), "Type name 3 of Derived is invalid"),
        (derived(type="../x"), "Type name '../x' of Derived is invalid: names consist of letters, digits"),
        (derived(type="x_y"), "Type name 'x_y' of Derived is invalid"),
        (derived(type=""), "Type name '' of Derived is invalid"),
        (derived(type="x-"), "Type name 'x-' of Derived is invalid"),
        (derived(type="x\n"), r"Type name 'x\\n' of Derived is invalid"),
        (Unfinished, "Type 'unfinished': the class Unfinished does not define encode_labels, metrics, target_column"),
        (type("Bare", (Plain,), {"type": "bare"}), "Type 'bare': Bare is not a dataclass. Decorate it"),
        (derived(type="x", __annotations__={"type": "str"}), "Type 'x': `type` is a field of Derived"),
        (Textless, "Type 'textless': Textless does not define its text column. Add a field `text_column`"),
        (
            derived(type="token-classification"),
            "Type 'token-classification' is taken by hf_multitask.tasks.token_class.*Choose another name",
        ),
        (type("Inherits", (TokenClassification,), {}), "is not a dataclass"),
        (dataclass(type("Inherits", (TokenClassification,), {})), "Type 'token-classification' is taken by"),
    ],
)
def test_unusable_task_classes_fail_when_registered(task, message, registry):
    before = dict(TASK_TYPES), dict(KINDS)
    with pytest.raises((TypeError, ValueError), match=message):
        register(task, head=SequenceClassificationHead, decode=decode_sequence)
    assert before == (TASK_TYPES, KINDS)


def test_a_name_that_another_class_has_is_taken(count):
    with pytest.raises(ValueError, match=r"Type 'count' is taken by count_task.Count. Choose another name"):
        register(derived(type="count"), head=SequenceClassificationHead, decode=decode_sequence)


HEAD = FILES["count_head.py"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "from hf_multitask import Task\n" + HEAD,
            "imports 'hf_multitask', which is not there where the package is not",
        ),
        (
            HEAD + "\ndef late():\n    from hf_multitask.tasks.labels import close\n",
            "imports 'hf_multitask.tasks.labels'",
        ),
        ("import hf_multitask.training\n" + HEAD, "imports 'hf_multitask.training'"),
        ("import hf_multitask.modeling.heads\n" + HEAD, "imports 'hf_multitask.modeling.heads'.* Write 'from hf_mul"),
        ("from hf_multitask.modeling import MultiTaskModel\n" + HEAD, "imports 'MultiTaskModel' .* every head"),
        ("from hf_multitask.modeling.model import MultiTaskOutput\n" + HEAD, "which itself imports every head"),
        ("from hf_multitask.modeling import heads\n" + HEAD, "imports 'heads' from .* no name of one of its files"),
        ("from torch import nn; from hf_multitask.modeling import Head\n" + HEAD, "line 1: an import shares its line"),
        ("import own_layers\n" + HEAD, "imports 'own_layers', which is in no installed package"),
        ("if False:\n    from .layers import Layer\n" + HEAD, "imports '.layers', or has a line that reads so"),
        ('"""\nfrom .layers import Layer\n"""\n' + HEAD, "imports '.layers', or has a line that reads so"),
        (HEAD.replace("class CountHead(Head)", "class CountHead(nn.Module)"), "`head` should be a subclass of"),
        (HEAD.replace("def items", "def itens"), "the head CountHead does not define items. Define it"),
        (HEAD + "\ndecode_count = 3\n", "`decode` should be a function. Found 3"),
        (HEAD + "\ndecode_count = lambda *_: 0\n", "<lambda> is not found under that name in own_head.py"),
        (HEAD + "\nCountHead.__module__ = '__main__'\n", "CountHead is defined in the script or notebook itself"),
        (HEAD + "\nCountHead.__module__ = 'sys'\n", "CountHead is defined in no Python file"),
    ],
)
def test_heads_that_could_not_travel_fail_when_registered(text, message, import_file):
    import_file("own_layers", "")
    head = import_file("own_head", text)
    with pytest.raises((TypeError, ValueError), match=f"^Type 'plain': .*{message}"):
        register(Plain, head=head.CountHead, decode=head.decode_count)
    assert "plain" not in {**TASK_TYPES, **KINDS}


def test_unregistered_types_are_told_how(build_model):
    with pytest.raises(ValueError, match=r"Task 't' has the unknown type 'count'.* Register a type of your own with"):
        build_task("t", {"type": "count"})
    with pytest.raises(
        ValueError, match=r"unknown type 'count'.* A type of your own needs register_task first, or trust_"
    ):
        build_model(tasks={"t": {"type": "count", "text_column": "text"}})
