"""What is evaluated is what is served: metrics of an evaluation are those of the pipeline's answers to the same rows."""

import json
import os

import pytest
import torch
from datasets import Dataset
from parameters import few
from seqeval.metrics.sequence_labeling import get_entities
from tiny import ALL, DATA, SEQUENCE_ONLY, make_tokenizer, read_rows
from transformers import pipeline
from truth import f1, make_rows, make_tasks, measured, question_of

from hf_multitask import MultiTaskTrainer
from hf_multitask.cli import main
from hf_multitask.modeling.inputs import Encoder, padded
from hf_multitask.modeling.kinds import reader_of

EXAMPLE = DATA.parent
STRUCTURES = ["bert", "roberta", "gpt2", "xlm-roberta", "deberta-v2", "t5", "llama", "gemma"]
LACKING = {  # types that a family has no stock class for, or answers otherwise
    "gpt2": ("choice",),
    "llama": ("choice",),
    "gemma": ("choice", "answer"),
    "t5": ("choice",),
    "longformer": ("answer", "choice"),
    "qwen3": ("choice",),
    "gemma2": ("choice", "answer"),
    "gemma3": ("choice", "answer"),
    "bart": ("words", "spans", "pos", "choice"),
    "mbart": ("words", "spans", "pos", "choice"),
    "marian": ("words", "spans", "pos", "choice", "topic", "whole", "set", "number", "pair", "answer"),
    "mt5": ("choice",),
}
PRIMARY = {"words": "f1", "spans": "f1", "pos": "accuracy", "set": "micro_f1", "answer": "f1"}


def trained(family, build_model, arguments, rows, **kwargs):
    tokenizer = make_tokenizer(family)
    tasks = {name: task for name, task in make_tasks().items() if name not in LACKING.get(family, ())}
    data = {"rows": Dataset.from_list(rows)}
    trainer = MultiTaskTrainer(
        build_model(family, tasks=tasks),
        arguments(max_steps=kwargs.pop("steps", 6), learning_rate=5e-3, per_device_eval_batch_size=5, **kwargs),
        train_dataset=data,
        eval_dataset=data,
        processing_class=tokenizer,
    )
    trainer.train()
    return trainer, list(tasks)


def agree(name, one, other):
    # Predictions of a regression that has hardly trained differ in their last digits, which a correlation enlarges.
    assert one == pytest.approx(other, abs=1e-3 if name == "number" else 1e-5 if name == "near" else 1e-12), name


@pytest.mark.parametrize("family", few(STRUCTURES, ["bert", "t5"]))
def test_metrics_are_those_of_the_answers(family, build_model, arguments, tmp_path, capsys):
    rows = make_rows(15, seed=len(family), longest=20)
    trainer, tasks = trained(family, build_model, arguments, rows)
    metrics = trainer.evaluate()
    answer = pipeline("multitask", model=trainer.model, tokenizer=trainer.processing_class)
    for name in tasks:
        found = [one[name] for one in answer([question_of(name, row) for row in rows], tasks=[name], batch_size=4)]
        primary = PRIMARY.get(name, "pearson" if name in ("number", "near") else "accuracy")
        agree(name, metrics[f"eval_{name}_{primary}"], measured(name, rows, found))
    trainer.save_model(str(tmp_path / "model"))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": row["tokens"]}) + "\n" for row in rows))
    capsys.readouterr()
    told = ["--tasks", "words", "--batch_size", "3"]
    assert main(["predict", str(tmp_path / "model"), "--input", str(tmp_path / "rows.jsonl"), *told]) == 0
    found = [json.loads(line)["words"] for line in capsys.readouterr().out.splitlines()]
    agree("words", metrics["eval_words_f1"], measured("words", rows, found))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta"])
def test_metrics_are_those_of_the_answers_of_a_graph(family, build_model, arguments, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")
    rows = make_rows(12, seed=3, longest=20)
    trainer, _ = trained(family, build_model, arguments, rows)
    metrics, model, tokenizer = trainer.evaluate(), trainer.model, trainer.processing_class
    session = onnxruntime.InferenceSession(str(model.export_onnx(tmp_path, tokenizer)))
    wanted = {put.name for put in session.get_inputs()}
    for name in ("words", "pos", "spans", "topic", "set"):
        task, found = model.config.task(name), []
        for row in rows:
            reading = reader_of(task).read(
                task, question_of(name, row), Encoder(tokenizer, model.config.backbone_config, task)
            )
            batch = padded(tokenizer, [inputs for _, inputs in reading.rows])
            given = {key: value.numpy() for key, value in batch.items() if key in wanted}
            logits = torch.from_numpy(session.run([f"{name}_logits"], given)[0])
            logits = logits if task["type"] == "token-classification" else logits[0]
            found.append(reader_of(task).answer(task, logits, reading.rest, model, tokenizer))
        agree(name, metrics[f"eval_{name}_{PRIMARY.get(name, 'accuracy')}"], measured(name, rows, found))


@pytest.mark.parametrize("family", ["bert", "electra"])  # whose stock pipeline knows words
def test_answers_are_those_of_the_exported_model_in_the_stock_pipeline(family, build_model, arguments, tmp_path):
    """Of words that its tokenizer has as they are: no punctuation inside, and no window more than one."""
    rows = make_rows(12, seed=4, longest=12)
    for row in rows:
        kept = [
            (word, tag)
            for word, tag in zip(row["tokens"], row["tags"], strict=True)
            if word.isascii() and word.isalpha()
        ]
        row["tokens"], row["tags"] = [list(part) for part in zip(*kept[:12], strict=True)] if kept else (["old"], ["O"])
        row["text"], row["spans"], row["pos"] = " ".join(row["tokens"]), [], ["REST"] * len(row["tokens"])
    trainer, _ = trained(family, build_model, arguments, rows)
    ours = pipeline("multitask", model=trainer.model, tokenizer=trainer.processing_class)
    answers = ours([row["text"] for row in rows], tasks=["words", "topic"])
    for name, kind in (("words", "token-classification"), ("topic", "text-classification")):
        trainer.model.export_task(name, tmp_path / name, trainer.processing_class)
        stock = pipeline(kind, str(tmp_path / name), **({"aggregation_strategy": "first"} if name == "words" else {}))
        for row, answer in zip(rows, answers, strict=True):
            found = stock(row["text"])
            if name == "topic":
                assert found[0]["label"] == answer["topic"]["label"]
                continue
            spans = [
                (span["entity_group"], span["start"], span["end"]) for span in found if span["entity_group"] != "O"
            ]
            assert spans == [(span["entity_group"], span["start"], span["end"]) for span in answer["words"]]


@pytest.mark.slow
@pytest.mark.parametrize("family", [family for family in ALL if family not in SEQUENCE_ONLY])
def test_metrics_are_those_of_the_answers_on_many_rows(family, build_model, arguments):
    for seed in range(int(os.environ.get("HF_MULTITASK_SEEDS", "3"))):
        rows = make_rows(60, seed=100 + seed, longest=40)
        trainer, tasks = trained(family, build_model, arguments, rows, steps=20)
        metrics = trainer.evaluate()
        answer = pipeline("multitask", model=trainer.model, tokenizer=trainer.processing_class)
        for name in tasks:
            found = [one[name] for one in answer([question_of(name, row) for row in rows], tasks=[name], batch_size=8)]
            primary = PRIMARY.get(name, "pearson" if name in ("number", "near") else "accuracy")
            agree(name, metrics[f"eval_{name}_{primary}"], measured(name, rows, found))


@pytest.mark.slow
def test_metrics_of_the_demo_are_those_of_its_answers(tmp_path, capsys):
    """On the test split of the demo, by the command line and by the pipeline of the saved model."""
    recipe = str(EXAMPLE / "recipe.yaml")
    assert main(["train", recipe, "--output_dir", str(tmp_path), "--num_train_epochs", "1", "--use_cpu", "true"]) == 0
    metrics = json.loads((tmp_path / "test_results.json").read_text())
    answer = pipeline("multitask", model=str(tmp_path))
    reviews, sentences = read_rows("sentiment", "test"), read_rows("ner", "test")
    found = answer([row["text"] for row in reviews], tasks=["sentiment"], batch_size=16)
    hits = [row["label"] == one["sentiment"]["label"] for row, one in zip(reviews, found, strict=True)]
    assert metrics["test_sentiment_accuracy"] == pytest.approx(sum(hits) / len(hits), abs=1e-12)
    found = [one["ner"] for one in answer([row["tokens"] for row in sentences], tasks=["ner"], batch_size=16)]
    told = [{(a["entity_group"], a["word_indices"][0], a["word_indices"][-1]) for a in own} for own in found]
    true = [set(get_entities(row["ner_tags"])) for row in sentences]
    assert metrics["test_ner_f1"] == pytest.approx(f1(told, true), abs=1e-12)
