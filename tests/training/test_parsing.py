"""Dependencies in training: exact over accumulation, measured as they are answered, beside tags of the same rows."""

import json
import random

import pytest
import torch
from comparing import Operations
from datasets import Dataset
from fork_server import python
from layouts import relative_difference
from parameters import few
from reading import rows_of, tree_of
from tiny import make_tokenizer, read_rows
from transformers import AutoModel, pipeline

from hf_multitask import DependencyParsing, MultiTaskTrainer, SequenceClassification, TokenClassification
from hf_multitask.tasks.sentences import heads_of

NAMES = ["left", "left:name", "right", "root"]
COMMON = {"dataset": "treebank"}
TASKS = {
    "parse": DependencyParsing(label_names=NAMES, **COMMON),
    "pos": TokenClassification(tags_column="upos", label_names=["NAME", "REST"], **COMMON),
    "feats": TokenClassification(tags_column="feats", label_names=["_", "Case=Upper"], **COMMON),
}
WITHOUT = """
import json, sys
sys.modules["hf_multitask"] = None
from transformers import pipeline
print(json.dumps(pipeline("multitask", sys.argv[1], trust_remote_code=True)(json.loads(sys.argv[2]))))
"""


def treebank(count, longest=12, seed=0):
    """Rows with heads, relations, parts of speech and features; every fifth is longer than a window."""
    draw = random.Random(seed)
    words = [word for row in read_rows("ner", "train", 60) for word in row["tokens"]]
    rows = []
    for number in range(count):
        tokens = draw.sample(words, draw.randint(1, longest) if number % 5 else 8 * longest)
        row = {"tokens": tokens, "ner_tags": ["B-PER" if word[:1].isupper() else "O" for word in tokens]}
        names = [tag != "O" for tag in row["ner_tags"]]
        tree = tree_of(row)
        tree["deprel"] = ["left:name" if r == "left" and name else r for r, name in zip(tree["deprel"], names)]
        upos, feats = (
            ["NAME" if name else "REST" for name in names],
            ["Case=Upper" if name else "_" for name in names],
        )
        rows.append({"tokens": tokens, "upos": upos, "feats": feats, **tree})
    return rows


@pytest.fixture
def trained(build_model, arguments):
    def run(family="bert", steps=30, tasks=TASKS, rows=None, **kwargs):
        rows = treebank(20) if rows is None else rows
        data = {"treebank": Dataset.from_list(rows)}
        trainer = MultiTaskTrainer(
            build_model(family, tasks=tasks, **kwargs),
            arguments(max_steps=steps, learning_rate=5e-3, per_device_eval_batch_size=4),
            train_dataset=data,
            eval_dataset=data,
            processing_class=make_tokenizer(family),
        )
        trainer.train()
        return trainer, rows

    return run


def measured(rows, answers):
    """LAS and UAS of answers, word by word."""
    arcs = relations = total = 0
    for row, words in zip(rows, answers, strict=True):
        told = {one["id"]: (one["head"], one["deprel"]) for one in words}
        total += len(row["tokens"])
        for number, (head, deprel) in enumerate(zip(row["head"], row["deprel"], strict=True), 1):
            found, relation = told.get(number, (-1, ""))
            arcs += found == head
            relations += found == head and relation.split(":")[0] == deprel.split(":")[0]
    return {"las": relations / total, "uas": arcs / total}


@pytest.mark.parametrize("family", few(["bert", "gpt2", "bart", "t5"], ["bert"]))
def test_metrics_are_those_of_the_answers(family, trained, caplog):
    rows = treebank(20)
    rows[3]["tokens"][0] = " "
    trainer, _ = trained(family, tasks={"parse": TASKS["parse"]}, rows=rows)
    assert "Task 'parse': 1 labels (train) are of words or spans without a token" in caplog.text
    metrics, predicted = trainer.evaluate(), trainer.predict({"treebank": Dataset.from_list(rows)})["parse"]
    answer = pipeline("multitask", model=trainer.model, tokenizer=trainer.processing_class)
    found = [one["parse"] for one in answer([{"text": row["tokens"]} for row in rows], batch_size=3)]
    expected = measured(rows, found)
    assert {key: metrics[f"eval_parse_{key}"] for key in expected} == pytest.approx(expected, abs=1e-12)
    assert predicted.metrics["test_parse_las"] == metrics["eval_parse_las"] == metrics["eval_average"]
    assert predicted.predictions.shape == (20, 96, 3) and predicted.label_ids.shape == (20, 96, 2)
    assert expected["uas"] > 0.3  # which a guess among a hundred words does not have
    for row, words in zip(rows, found, strict=True):
        if len(words) == len(row["tokens"]):
            heads = [one["head"] for one in words]
            assert heads_of(row["tokens"], heads) == heads


@pytest.mark.parametrize("more", [{}, {"aggregation": "pcgrad"}, {"balancing": "uncertainty"}], ids=str)
def test_accumulation_does_not_change_the_update(more, build_model, arguments, data, tokenizer):
    tasks = {"parse": DependencyParsing(label_names=NAMES), "sentiment": SequenceClassification(label_names=["negative", "positive"])}  # fmt: skip
    rows = {"parse": Dataset.from_list(treebank(24)), "sentiment": data(56, 1)["sentiment"]}

    def run(batch, accumulation):
        model = build_model(dropout=0.0, tasks=tasks).double()
        args = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation, **more}
        trainer = MultiTaskTrainer(model, arguments(**args), train_dataset=rows, processing_class=tokenizer)
        trainer.train()
        return model.state_dict()

    whole = run(32, 1)
    assert whole["heads.parse.root"].abs().min() > 0
    assert relative_difference(whole, run(8, 4)) < 1e-9


def test_the_loss_is_divided_by_the_words_of_the_step(build_model, tokenizer):
    model = build_model(tasks={"parse": TASKS["parse"]}).eval()
    tokens = tokenizer(["Ada met him.", "No."], return_tensors="pt", padding=True)
    labels = torch.full((2, 3, 3), -100)
    labels[0] = torch.tensor([[1, 2, 0], [2, 0, 3], [3, 2, 2]])
    labels[1, 0] = torch.tensor([1, 0, 3])
    output = model(**tokens, labels={"parse": labels})
    sums = model.heads["parse"].loss(output.logits["parse"], labels)
    assert output.losses["parse"].item() == pytest.approx(sums.sum().item() / 4)


def test_a_row_of_a_treebank_is_one_pass_for_all_its_tasks(trained, tokenizer):
    trainer, rows = trained(steps=2)
    encoded = trainer.train_dataset.datasets
    assert len(encoded) == 1 and encoded[0].tasks == list(TASKS)
    batch = trainer.data_collator(trainer.train_dataset.__getitems__([1, 2, 3]))
    assert batch["input_ids"].shape[0] == 3 and batch["task_rows"].keys() == TASKS.keys()
    assert {"eval_parse_las", "eval_pos_accuracy", "eval_feats_accuracy"} <= trainer.evaluate().keys()
    passes = []
    trainer.model.backbone.register_forward_hook(lambda *_: passes.append(1))
    answer = pipeline("multitask", model=trainer.model, tokenizer=tokenizer)([rows[1]["tokens"]])
    assert answer[0].keys() == TASKS.keys() and len(passes) == 1


@pytest.mark.process
def test_saved_models_answer_alike_without_the_package(trained, tmp_path):
    trainer, rows = trained(steps=2)
    trainer.save_model(str(tmp_path))
    asked = [rows[0]["tokens"], "Ada met him."]
    answer = pipeline("multitask", model=str(tmp_path))(asked)
    result = python(WITHOUT, str(tmp_path), json.dumps(asked), folder=tmp_path)
    assert result.returncode == 0, result.stderr[-2000:]
    for own, theirs in zip(answer, json.loads(result.stdout.splitlines()[-1]), strict=True):
        assert [word | {"score": 0} for word in own["parse"]] == [word | {"score": 0} for word in theirs["parse"]]
    loaded = AutoModel.from_pretrained(tmp_path)
    assert torch.equal(loaded.heads["parse"].root, trainer.model.heads["parse"].root)
    data = {"treebank": Dataset.from_list(rows)}
    again = MultiTaskTrainer(loaded, trainer.args, eval_dataset=data, processing_class=trainer.processing_class)
    assert again.evaluate()["eval_parse_las"] == trainer.evaluate()["eval_parse_las"]


def test_rows_without_a_tree_are_predicted(trained):
    trainer, rows = trained(steps=2)
    bare = Dataset.from_list([{"tokens": row["tokens"]} for row in rows])
    found = trainer.predict({"treebank": bare})["parse"]
    known = trainer.predict({"treebank": Dataset.from_list(rows)})["parse"]
    assert found.label_ids is None and found.metrics == {}
    assert (found.predictions[..., :2] == known.predictions[..., :2]).all()


def test_parsers_have_no_teachers(build_model, arguments, tokenizer):
    rows = {"parse": rows_of("dependency-parsing")}
    model = build_model(tasks={"parse": DependencyParsing(label_names=["root", "left", "right"])})
    with pytest.raises(ValueError, match="dependency-parsing cannot have a teacher: its outputs are not classes"):
        MultiTaskTrainer(model, arguments(), train_dataset=rows, processing_class=tokenizer, teachers={"parse": model})


def test_a_step_of_the_head_is_a_bounded_number_of_operations(build_model, tokenizer):
    """Whatever the number of words: no loop over words or relations."""
    model = build_model(tasks={"parse": TASKS["parse"]})
    counts = []
    for words in (3, 11):
        tokens = tokenizer(["word " * words] * 4, return_tensors="pt")
        labels = torch.stack([torch.arange(1, words + 1), torch.arange(words), torch.full((words,), 2)], 1)
        for which in ({}, {"labels": {"parse": labels.expand(4, -1, -1)}}):
            with Operations() as counted:
                output = model(**tokens, **which)
                (output.loss if which else output.logits["parse"].sum()).backward()
            counts.append(counted.count)
            model.zero_grad()
    assert counts[1] - counts[0] == counts[3] - counts[2] < 200
