"""Joint models and several languages on real data, through the command line.

The data are a folder per dataset with ``train.jsonl`` and ``validation.jsonl``, named by ``HF_MULTITASK_DATA``:
xquad_en, scitldr, sst2, wikiann_de, ud_french_sequoia, stsb_de.
"""

import json
import os
from pathlib import Path

import pytest
import torch
import yaml
from tiny import ALL, make_tokenizer
from transformers import AutoModel

from hf_multitask.cli import main

DATA = os.environ.get("HF_MULTITASK_DATA")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(DATA is None, reason="HF_MULTITASK_DATA names no folder of datasets"),
]
LANGUAGES = {"en": 0, "de": 1, "fr": 2}


@pytest.fixture
def backbone(tmp_path):
    def make(family, **values):
        config = ALL[family]()
        for name, value in values.items():
            setattr(config, name, value)
        torch.manual_seed(0)
        AutoModel.from_config(config).save_pretrained(tmp_path / family)
        make_tokenizer(family).save_pretrained(tmp_path / family)
        return family

    return make


@pytest.fixture
def train(tmp_path):
    """Train a recipe of tasks; its log and its results."""

    def run(backbone, tasks, files=None, **training):
        names = {task.get("dataset", name) for name, task in tasks.items()}
        files = {name: Path(str(DATA)) / name for name in names} | (files or {})
        recipe = {
            "backbone": backbone,
            "datasets": {
                name: {
                    "path": "json",
                    "data_files": {s: str(files[name] / f"{s}.jsonl") for s in ("train", "validation")},
                }
                for name in sorted(names)
            },
            "tasks": tasks,
            "training": {
                "output_dir": "out",
                "max_steps": 60,
                "learning_rate": 3e-3,
                "per_device_train_batch_size": 16,
                "max_train_samples": 64,
                "max_eval_samples": 16,
                "logging_steps": 10,
                "sampling": "uniform",
                "report_to": "none",
                "save_strategy": "no",
                "use_cpu": True,
                **training,
            },
        }
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
        assert main(["train", str(path)]) == 0
        log = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
        return log, json.loads((tmp_path / "out" / "eval_results.json").read_text())

    return run


def assert_losses_fall(log, tasks):
    losses = [entry for entry in log if "loss" in entry]
    for task in tasks:
        assert losses[-1][f"{task}_loss"] < losses[0][f"{task}_loss"], task


@pytest.mark.parametrize("family", ["bart", "t5"])
def test_answers_and_summaries_on_one_encoder_decoder(family, backbone, train):
    tasks = {
        "answers": {"type": "question-answering", "dataset": "xquad_en", "doc_stride": 16},
        "tldr": {"type": "summarization", "dataset": "scitldr", "max_target_length": 24, "prefix": "summarize: "},
    }
    log, results = train(backbone(family), tasks)
    assert_losses_fall(log, tasks)
    assert {"eval_answers_f1", "eval_answers_exact_match", "eval_tldr_rougeL"} <= results.keys()


def test_answers_and_summaries_as_texts(backbone, train, tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for split in ("train", "validation"):
        text = (Path(str(DATA)) / "xquad_en" / f"{split}.jsonl").read_text(encoding="utf-8")
        rows = [json.loads(line) for line in text.split("\n") if line]
        lines = [
            json.dumps({"source": f"{row['question']} {row['context']}", "target": row["answers"]["text"][0]}) + "\n"
            for row in rows
        ]
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    tasks = {
        "answers": {"type": "text2text-generation", "dataset": "texts", "prefix": "answer: ", "max_target_length": 16},
        "tldr": {"type": "summarization", "dataset": "scitldr", "max_target_length": 24, "prefix": "summarize: "},
    }
    log, results = train(backbone("t5"), tasks, {"texts": folder})
    assert_losses_fall(log, tasks)
    assert {"eval_answers_rougeL", "eval_tldr_rougeL"} <= results.keys()


@pytest.mark.parametrize("family", ["xlm-roberta", "xlm"])
def test_english_german_and_french_on_one_backbone(family, backbone, train):
    ids = {
        "n_langs": 3,
        "use_lang_emb": True,
        "lang2id": LANGUAGES,
        "id2lang": {n: code for code, n in LANGUAGES.items()},
    }
    tasks = {
        "reviews": {"type": "sequence-classification", "dataset": "sst2", "language": "en"},
        "namen": {"type": "token-classification", "dataset": "wikiann_de", "language": "de"},
        "mots": {
            "type": "token-classification",
            "dataset": "ud_french_sequoia",
            "tags_column": "upos",
            "language": "fr",
        },
        "paare": {
            "type": "sequence-classification",
            "dataset": "stsb_de",
            "text_column": "sentence1",
            "text_pair_column": "sentence2",
            "problem_type": "regression",
            "language": "de",
        },
    }
    if family != "xlm":
        for task in tasks.values():
            del task["language"]
    log, results = train(backbone(family, **(ids if family == "xlm" else {})), tasks)
    assert_losses_fall(log, ["namen", "mots", "paare"])
    assert {"eval_reviews_accuracy", "eval_namen_f1", "eval_mots_accuracy", "eval_paare_pearson"} <= results.keys()
