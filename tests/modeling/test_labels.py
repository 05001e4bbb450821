"""More labels for trained heads: what they say of the labels that they had stays, bit for bit."""

import logging

import pytest
import torch
from datasets import Dataset
from reading import TASKS, TEXT
from tiny import NER_LABELS
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hf_multitask import (
    MultiTaskModel,
    MultiTaskPipeline,
    MultiTaskTrainer,
    SequenceClassification,
    TokenClassification,
)

SETS = {"problem_type": "multi_label_classification"}
MOODS, MORE_TAGS = ["negative", "positive"], ["B-LAW", "I-LAW"]
GROWING = {
    "classes": (lambda: SequenceClassification(label_names=MOODS), ["neutral"]),
    "sets": (lambda: SequenceClassification(label_names=["a", "b", "c", "d", "e"], **SETS), ["f", "g"]),
    "tags": (lambda: TokenClassification(label_names=NER_LABELS), MORE_TAGS),
    "constrained": (lambda: TokenClassification(label_names=NER_LABELS, decoding="constrained"), MORE_TAGS),
    "crf": (lambda: TokenClassification(label_names=NER_LABELS, decoding="crf"), MORE_TAGS),
    "words": (lambda: TokenClassification(label_names=["NOUN", "VERB"], tags_column="upos"), ["ADJ"]),
}


def trained(backbone_path, family, tasks, **kwargs):
    """A model whose heads are not fresh."""
    torch.manual_seed(2)
    model = MultiTaskModel.from_backbone(backbone_path(family), tasks=tasks, **kwargs).eval()
    with torch.no_grad():
        for parameter in model.heads.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def logits(model, tokenizer, texts=(TEXT, "Short one.", "Another.")):
    """What a model says of texts together, and of each alone."""
    found = []
    for batch in (list(texts), *([text] for text in texts)):
        tokens = tokenizer(batch, padding=True, return_tensors="pt")
        with torch.no_grad():
            found.append(model(tokens["input_ids"], tokens["attention_mask"]).logits)
    return found


def assert_old_logits_stay(found, before, name, count):
    for now, then in zip(found, before, strict=True):
        assert torch.equal(now[name][..., :count], then[name])
        assert now[name].shape[-1] > count
        assert all(torch.equal(now[other], then[other]) for other in then if other != name)


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
@pytest.mark.parametrize("kind", GROWING)
def test_old_logits_stay_bit_for_bit_and_new_rows_are_fresh(kind, family, backbone_path, tmp_path):
    make, names = GROWING[kind]
    other = SequenceClassification(label_names=["x", "y"])
    model = trained(backbone_path, family, {"grown": make(), "other": other})
    tokenizer = AutoTokenizer.from_pretrained(backbone_path(family))
    before, count = logits(model, tokenizer), len(make().label_names)
    old = {name: value.clone() for name, value in model.heads["grown"].state_dict().items()}
    torch.manual_seed(5)
    fresh = MultiTaskModel.from_backbone(
        backbone_path(family), tasks={"grown": {**make().to_dict(), "label_names": [*make().label_names, *names]}}
    )
    torch.manual_seed(5)
    drawn = torch.get_rng_state()
    fresh._replace_heads(["grown"])
    torch.set_rng_state(drawn)
    model.add_labels("grown", names)
    assert model.config.task("grown")["label_names"] == [*make().label_names, *names]
    assert_old_logits_stay(logits(model, tokenizer), before, "grown", count)
    for name, value in model.heads["grown"].state_dict().items():
        begun = fresh.heads["grown"].state_dict()[name].clone()
        begun[tuple(slice(size) for size in old[name].shape)] = old[name]
        assert torch.equal(value, begun), name
    assert list(model.heads) == ["grown", "other"] and not model.heads["grown"].training

    model.save_pretrained(tmp_path)
    loaded = MultiTaskModel.from_pretrained(tmp_path)
    assert_old_logits_stay(logits(loaded, tokenizer), before, "grown", count)
    loaded.rename_task("grown", "renamed")
    grown = logits(loaded, tokenizer)
    more = ["B-x", "I-x"] if "-" in names[0] else ["more"]
    loaded.add_labels("renamed", more)
    assert_old_logits_stay(logits(loaded, tokenizer), grown, "renamed", count + len(names))
    assert loaded.config.label_groups == {"renamed": [count, len(names), len(more)]}
    loaded.remove_task("renamed")
    assert loaded.config.label_groups is None


def test_heads_that_are_not_the_familys_and_adapters_grow(backbone_path, tmp_path):
    tasks = {"grown": SequenceClassification(label_names=MOODS), "ner": TASKS["token-classification"]()}
    tokenizer = AutoTokenizer.from_pretrained(backbone_path())
    for kwargs in ({"pooling": "mean"}, {"lora": {"r": 2}, "task_lora": {"r": 2}}, {"dtype": torch.float64}):
        model = trained(backbone_path, "bert", tasks, **kwargs)
        before = logits(model, tokenizer)
        model.add_labels("grown", ["neutral", "mixed"])
        assert_old_logits_stay(logits(model, tokenizer), before, "grown", 2)
        model.save_pretrained(tmp_path)
        loaded = MultiTaskModel.from_pretrained(tmp_path)
        assert_old_logits_stay(logits(loaded, tokenizer), before, "grown", 2)


def test_a_frozen_head_stays_frozen_and_its_dtype_stays(build_model):
    model = build_model(dtype=torch.bfloat16)
    model.heads["sentiment"].requires_grad_(False)
    model.add_labels("sentiment", ["neutral"])
    parameters = list(model.heads["sentiment"].parameters())
    assert {(one.requires_grad, one.dtype) for one in parameters} == {(False, torch.bfloat16)}


def test_a_grown_head_trains_answers_and_leaves(build_model, data, arguments, tokenizer, tmp_path):
    model = build_model()
    rows = data()
    args = arguments(save_strategy="steps", save_steps=1, max_steps=1)
    MultiTaskTrainer(model, args, train_dataset=rows, processing_class=tokenizer).train()
    model.add_labels("sentiment", ["neutral"])
    before = model.heads["sentiment"].native.classifier.weight.detach().clone()
    trainer = MultiTaskTrainer(model, arguments(), train_dataset=rows, processing_class=tokenizer)
    with pytest.raises(ValueError, match=r"head 'sentiment' for other labels: 2 \(negative, positive\) then, 3 \(neg"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-1"))
    rows["sentiment"] = Dataset.from_list([{**row, "label": "neutral"} for row in rows["sentiment"]])
    trainer = MultiTaskTrainer(
        model, arguments(max_steps=8, learning_rate=0.02), train_dataset=rows, processing_class=tokenizer
    )
    trainer.train()
    weight = model.heads["sentiment"].native.classifier.weight
    assert all((weight[row] != before[row]).any() for row in range(3))
    answer = MultiTaskPipeline(model=model.eval(), tokenizer=tokenizer)(TEXT)["sentiment"]
    assert answer["label"] == "neutral"
    model.export_task("sentiment", tmp_path / "stock", tokenizer)
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path / "stock")
    assert stock.config.id2label == {0: "negative", 1: "positive", 2: "neutral"}
    assert torch.equal(stock.classifier.weight, weight)
    tokens = tokenizer([TEXT, "Short one."], padding=True, return_tensors="pt")
    with torch.no_grad():
        found, expected = model(**tokens, tasks=["sentiment"]).logits["sentiment"], stock(**tokens).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_options_by_label_follow(build_model, caplog):
    fitted = {"temperature": 1.5, "threshold": {"a": 0.3, "b": 0.7}}
    tuned = {"threshold": "tune", "calibration": "temperature"}
    model = build_model(
        tasks={
            "sets": SequenceClassification(
                label_names=["a", "b"], class_weights={"a": 2}, fitted=fitted, **tuned, **SETS
            ),
            "classes": SequenceClassification(
                label_names=["a", "b"], fitted={"temperature": 1.5}, calibration="temperature"
            ),
            "two": SequenceClassification(label_names=["a", "b"], threshold=0.3, class_weights={"b": 3}),
        }
    )
    with caplog.at_level(logging.WARNING, "transformers"):
        model.add_labels("sets", ["c"])
    assert not caplog.records
    task = model.config.task("sets")
    assert task["fitted"] == {"temperature": 1.5, "threshold": {"a": 0.3, "b": 0.7, "c": 0.5}}
    assert task["class_weights"] == {"a": 2.0, "c": 1.0}
    assert model.heads["sets"].loss_options.class_weights == (2.0, 1.0, 1.0)
    with caplog.at_level(logging.WARNING, "transformers"):
        model.add_labels("classes", ["c"])
        model.add_labels("two", ["c"])
    assert [record.getMessage() for record in caplog.records] == [
        "Task 'classes': `fitted = {'temperature': 1.5}` belonged to the 2 classes that it had, and is removed. "
        "Evaluate again to fit what is fitted.",
        "Task 'two': `threshold = 0.3` belonged to the 2 classes that it had, and is removed. Evaluate "
        "again to fit what is fitted.",
    ]
    assert model.config.task("classes")["calibration"] == "temperature"
    assert model.config.task("classes")["fitted"] is model.config.task("two")["threshold"] is None
    assert model.config.task("two")["class_weights"] == {"b": 3.0, "c": 1.0}


def test_what_takes_no_labels_is_refused_and_changes_nothing(build_model):
    model = build_model(
        tasks={
            "ner": TokenClassification(label_names=["O", "B-PER", "I-PER"], decoding="constrained"),
            "stars": SequenceClassification(problem_type="regression"),
            "numbers": SequenceClassification(problem_type="regression", label_names=["x", "y"]),
            "answer": TASKS["question-answering"](),
            "mood": SequenceClassification(label_names=MOODS),
            "later": SequenceClassification(),
        }
    )
    tasks, heads = list(model.config.tasks), dict(model.heads)
    for name, labels, message in [
        ("moods", ["c"], "has no task 'moods'.*Did you mean 'mood'"),
        ("later", ["c"], "Task 'later' has no head, because its labels are not known"),
        ("stars", ["c"], "Task 'stars' of type sequence-classification takes no more labels: its outputs are numbers"),
        ("numbers", ["c"], "takes no more labels: its outputs are numbers"),
        ("answer", ["c"], "Task 'answer' of type question-answering takes no more labels: it has no named labels"),
        ("mood", ["neutral", "positive"], "Task 'mood' has the label 'positive' already"),
        ("mood", ["neutral", "neutral"], "Task 'mood' is given the label 'neutral' twice"),
        ("mood", [], "`names` should be a list of labels, one or more"),
        ("mood", "neutral", "`names` should be a list of labels"),
        ("mood", [3], "`names` should be strings. Found 3"),
        ("ner", ["MISC"], "has tags of the scheme BIO, and with MISC they would be of none"),
        ("ner", ["I-LOC"], "Task 'ner': `decoding = 'constrained'` could never answer the label 'I-LOC'"),
    ]:
        with pytest.raises(ValueError, match=message):
            model.add_labels(name, labels)
    assert model.config.tasks == tasks and model.config.label_groups is None
    assert dict(model.heads) == heads


def test_a_damaged_configuration_is_refused(build_model, tmp_path):
    model = build_model()
    model.add_labels("sentiment", ["neutral"])
    model.save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace('"neutral"', '"neutral", "more"'))
    with pytest.raises(ValueError, match="`label_groups` should be numbers whose sum is that of the labels, 4"):
        MultiTaskModel.from_pretrained(tmp_path)
