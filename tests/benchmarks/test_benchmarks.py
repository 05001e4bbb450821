"""Every benchmark runs, on a tiny backbone and a few rows; what it measures then means nothing."""

import argparse
import asyncio
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from reading import tree_of
from tiny import DATA, read_rows
from torch.nn.modules.module import register_module_forward_hook
from transformers import BertModel

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    def load(name):
        monkeypatch.syspath_prepend(str(BENCHMARKS))
        spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)  # dataclasses look their module up
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def folder(tmp_path):
    """The data folder that benchmarks take, with the demo's rows in every dataset."""
    reviews, sentences = read_rows("sentiment", "train", 48), read_rows("ner", "train", 24)
    numbered = [row | {"label": number % 2} for number, row in enumerate(reviews)]
    articles = [{"title": f"t{number % 3}", "context": row["text"] * 3} for number, row in enumerate(reviews[:12])]
    utterances = [
        {"tokens": row["tokens"], "slot_tags": row["ner_tags"], "intent": f"i{number % 2}"}
        for number, row in enumerate(sentences)
    ]
    for name, rows in {
        "sst2": numbered,
        "tweeteval_emotion": numbered,
        "tweeteval_irony": numbered[:24],
        "xquad_en": articles,
        "demo/ner": sentences,
        "atis": utterances,
        "trec": [row | {"coarse_label": row["label"]} for row in numbered],
        "banking77": numbered,
        "sick": [{"sentence1": row["text"], "sentence2": "A film.", "label": row["label"]} for row in numbered],
        "stsb_en": [
            {"sentence1": row["text"], "sentence2": "A film.", "label": row["label"] + 0.5} for row in numbered
        ],
        "ud_english_ewt": [{"tokens": row["tokens"], "upos": row["ner_tags"]} for row in sentences],
        "ud_french_sequoia": [{"tokens": row["tokens"], "upos": row["ner_tags"], **tree_of(row)} for row in sentences],
        "tiny_shakespeare": reviews,
        "multi30k_en_de": [{"source": row["text"], "target": row["text"][:20]} for row in reviews],
    }.items():
        (tmp_path / name).mkdir(parents=True)
        for split in ("train", "validation", "test"):
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (tmp_path / name / f"{split}.jsonl").write_text(text, encoding="utf-8")
    return tmp_path


# Of a step: operations beyond those of the plain Trainer, and reads by the host.
LAUNCHES = {
    "one task": (9, 4),
    "two tasks": (40, 4),
    "eight tasks": (69, 4),
    "eight tasks, uncertainty": (89, 4),
    "two tasks, two forwards": (480, 5),
    "two tasks, pcgrad": (250, 6),
    "eight tasks, upgrad": (250, 8),
}


def test_launches(benchmark, backbone_path):
    figures = benchmark("launches").main(["--backbone", backbone_path()])
    plain = figures.pop("plain Trainer, one model")["operations"]
    assert set(figures) == set(LAUNCHES)
    found = {name: (own["operations"] - plain, own["reads"]) for name, own in figures.items()}
    assert {name: own for name, own in found.items() if own[0] > LAUNCHES[name][0] or own[1] > LAUNCHES[name][1]} == {}
    assert found["eight tasks"][0] <= found["one task"][0] + 60


@pytest.mark.parametrize("setting", ["short", pytest.param("long", marks=pytest.mark.slow)])
def test_throughput(setting, benchmark, folder, backbone_path, capsys):
    words = ["--data", str(folder), "--setting", setting, "--steps", "2", "--turn", "2", "--batch", "8"]
    output = folder / "figures.json"
    figures = benchmark("throughput").main([*words, "--backbone", backbone_path(), "--output", str(output)])
    assert list(figures) == ["ours", "plain random", "plain group", "plain rebalance", "mixed random", "ceiling"]
    assert figures == json.loads(output.read_text())
    assert figures["ceiling"]["padding"] == 0
    assert 0 <= figures["ours"]["padding"] < figures["mixed random"]["padding"]
    assert figures["mixed random"]["forwards_per_step"] == 1
    assert figures["plain rebalance"]["forwards_per_step"] == 4
    assert "ours, as a multiple of" in capsys.readouterr().out


@pytest.mark.slow
def test_throughput_of_sharing(benchmark, folder, backbone_path, monkeypatch):
    monkeypatch.setitem(benchmark("suites").SUITES, "small", (["trec", "stsb", "ner"], 16))
    words = ["--data", str(folder), "--setting", "sharing", "--steps", "2", "--turn", "2", "--batch", "8"]
    words += ["--backbone", backbone_path(), "--systems", "plain random", "ours branches", "ours alone"]
    figures = benchmark("throughput").main(words)
    assert list(figures) == ["ours", "plain random", "ours branches", "ours alone"]
    assert figures["plain random"]["steps"] == figures["ours alone"]["steps"] == 6
    assert figures["ours branches"]["padding"] == figures["ours"]["padding"]


ACCELERATOR = {
    **{
        f"training, {shape}, {mixture}": ["ours", "plain random", "plain group", "ours varlen", "ceiling"]
        for shape in ("bert-base", "ModernBERT-base")
        for mixture in ("long", "short")
    },
    **{f"conflict, bert-base, K = {tasks}": ["none", "pcgrad", "upgrad"] for tasks in (2, 4, 8)},
    "balancing, bert-base, 4 tasks": ["none", "uncertainty", "gradnorm", "famo"],
    "inference, bert-base, 8 heads": ["one model of 8 heads", "8 pipelines of one task"],
}


@pytest.mark.slow
def test_accelerator(benchmark, tmp_path, capsys):
    accelerator = benchmark("accelerator")
    output = tmp_path / "accelerator.json"
    found = accelerator.main(["--tiny", "--batch", "8", "--peak", "1", "--output", str(output)])
    assert found == json.loads(output.read_text())
    assert not any("problem" in row for row in found["rows"].values()), capsys.readouterr().err
    assert {name: list(row["systems"]) for name, row in found["rows"].items()} == ACCELERATOR
    for name, row in found["rows"].items():
        keys = set(accelerator.COLUMNS[row["kind"]]) - {"padding", "interval", "steady_steps"}
        assert all(own[key] > 0 for own in row["systems"].values() for key in keys), name
        if row["kind"] == "training":
            assert row["systems"]["ceiling"]["padding"] == 0 < row["systems"]["plain random"]["padding"] < 1
            assert row["systems"]["ceiling"]["of_ceiling"] == 1
    out = capsys.readouterr().out
    accelerator.main(["table", str(output)])
    assert capsys.readouterr().out.strip() in out
    assert [
        len([line for line in out.splitlines() if line.startswith(f"| {name.partition(', ')[2]} |")])
        for name in ACCELERATOR
    ] == [len(systems) for systems in ACCELERATOR.values()]


@pytest.mark.slow
@pytest.mark.process
def test_accelerator_that_is_cut_off(benchmark, tmp_path, capsys):
    output = tmp_path / "accelerator.json"
    words = [str(BENCHMARKS / "accelerator.sh"), "--tiny", "--batch", "8", "--output", str(output)]
    environment = os.environ | {"PYTHON": sys.executable}
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True) as process:
        assert any(" s: training" in line for line in process.stdout)  # reads up to the first
        os.killpg(process.pid, signal.SIGKILL)
    found = benchmark("accelerator").main(["table", str(output)])
    assert 1 <= len(found["rows"]) < len(ACCELERATOR) and found["hardware"]["device"]
    assert "| bert-base, long | ours |" in capsys.readouterr().out


def test_accelerator_without_time(benchmark, tmp_path, capsys):
    found = benchmark("accelerator").main(["--tiny", "--minutes", "0", "--output", str(tmp_path / "found.json")])
    assert found["left_out"] == list(ACCELERATOR) and not found["rows"]
    assert "No time was left for: training, bert-base, long" in capsys.readouterr().out


def test_operations_of_a_token(benchmark):
    accelerator = benchmark("accelerator")
    bert, modern = (make(**accelerator.SMALL) for make in accelerator.SHAPES.values())
    # Of a layer: four projections of 32, two of 32 x 48, their biases, two norms.
    weights = 2 * (4 * (32 * 32 + 32) + 32 * 48 + 48 + 48 * 32 + 32 + 2 * 64)
    embeddings, pooler = (600 + 512 + 2 + 2) * 32, 32 * 32 + 32
    assert accelerator.count_weights(bert) == (weights + embeddings + pooler, weights)
    assert accelerator.flops_per_token(bert, weights, [10, 10]) == 6 * weights + 2 * 12 * 32 * 10
    grown = accelerator.flops_per_token(modern, 0, [256]) - accelerator.flops_per_token(modern, 0, [128])
    assert grown == 12 * 32 * 128  # of the first layer, as the second has a window of 128


@pytest.mark.slow
def test_padding(benchmark, folder, backbone_path, capsys):
    words = ["--data", str(folder), "--setting", "short", "--batch", "8", "--backbone", backbone_path()]
    figures = benchmark("padding").main(words)
    assert list(figures) == ["random", "padded, CPU", "padded, accelerator", "packed"]
    assert figures["packed"]["padding"] == 0 < figures["padded, CPU"]["padding"] < figures["random"]["padding"]
    assert figures["packed"]["forwards_per_step"] == figures["random"]["forwards_per_step"] == 1
    assert "tokens read" in capsys.readouterr().out


@pytest.mark.slow
def test_audio_throughput(benchmark, tmp_path, capsys):
    pytest.importorskip("soundfile")
    words = ["--rows", "24", "--long", "0.3", "--turns", "2", "--turn", "2", "--batch", "4", "--hidden", "32"]
    output = tmp_path / "figures.json"
    figures = benchmark("audio_throughput").main([*words, "--layers", "1", "--output", str(output)])
    assert list(figures) == ["ours", "plain random", "plain group"]
    assert figures == json.loads(output.read_text())
    assert figures["ours"]["padding"] < figures["plain random"]["padding"]
    assert figures["plain random"]["forwards_per_step"] == 1
    assert "ours, as a multiple of" in capsys.readouterr().out


def test_overhead(benchmark, backbone_path, capsys):
    words = ["--steps", "4", "--turn", "2", "--batch", "4", "--rows", "24", "--backbone", backbone_path()]
    figures = benchmark("overhead").main(words)  # which refuses figures of unequal work
    assert figures["steps"] == 4
    assert figures["seconds"]["interval"][0] <= figures["seconds"]["ratio"] <= figures["seconds"]["interval"][1]
    assert "ours over plain" in capsys.readouterr().out


@pytest.mark.slow
def test_insight(benchmark, backbone_path, capsys):
    benchmark("overhead")
    words = ["--pairs", "2", "--turn", "2", "--batch", "6", "--tasks", "3", "--rows", "24", "--length", "8"]
    figures = benchmark("insight").main([*words, "--backbone", backbone_path()])
    assert figures["cpu"]["interval"][0] <= figures["cpu"]["ratio"] <= figures["cpu"]["interval"][1]
    assert "measured over plain" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.process
def test_many_tasks(benchmark, backbone_path, capsys):
    benchmark("overhead")
    words = [
        "--tasks",
        "2",
        "3",
        "--steps",
        "2",
        "--turn",
        "2",
        "--batch",
        "4",
        "--rows",
        "24",
        "--evaluation-rows",
        "9",
    ]
    figures = benchmark("many_tasks").main([*words, "--only-steps", "--backbone", backbone_path()])
    assert list(figures) == ["2", "3"]
    assert figures["2"]["seconds"]["ratio"] == 1
    alone = benchmark("many_tasks").main([*words, "--alone", "3", "--backbone", backbone_path()])
    assert list(alone) == ["build", "prepare", "evaluate", "checkpoint", "save", "load", "memory"]
    assert "ms a step" in capsys.readouterr().out


def test_preprocessing(benchmark, folder, backbone_path, capsys):
    words = ["--data", str(folder), "--rows", "60", "--repeats", "1", "--backbone", backbone_path()]
    figures = benchmark("preprocessing").main(words)
    assert list(figures["classification"]) == ["ours", "bare tokenizer", "ours, cached"]
    assert list(figures["tagging"]) == ["ours", "bare tokenizer", "example's alignment", "ours, cached"]
    assert "60 rows, medians of 1" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.process
def test_startup(benchmark, folder, backbone_path):
    recipe = yaml.safe_load((DATA.parent / "recipe.yaml").read_text(encoding="utf-8"))
    shutil.copytree(DATA, folder / "data")
    recipe["backbone"] = backbone_path()
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    seconds = benchmark("preprocessing").first_step(folder / "recipe.yaml", str(folder / "cache"), str(folder / "out"))
    assert seconds > 0


@pytest.mark.slow
def test_text_tasks(benchmark, folder, backbone_path, capsys):
    runs = ["trec", "language", "writing"]
    words = ["--data", str(folder), "--backbone", backbone_path(), "--max_steps", "2", "--runs", *runs]
    benchmark("text_tasks").main(words)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("RESULT")]
    assert [line.split()[1] for line in lines] == runs


@pytest.mark.slow
def test_tags(benchmark, folder, backbone_path, capsys):
    words = ["--data", str(folder), "--backbone", backbone_path(), "--rows", "8", "--epochs", "1", "--seeds", "1"]
    benchmark("tags").main(words)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("RESULT")]
    decodings = ["argmax", "constrained", "crf"]
    assert [line.split()[1:5:3] for line in lines] == [
        [name, f"{one}:"] for name in ("demo/ner", "atis") for one in decodings
    ]


@pytest.mark.slow
def test_parsing(benchmark, folder, backbone_path, capsys):
    output = folder / "runs.jsonl"
    words = ["--data", str(folder), "--seeds", "1", "--epochs", "1", "--output", str(output)]
    for _ in range(2):  # of which the second finds all runs
        benchmark("parsing").main([*words, "--rows", "8", "--backbone", backbone_path()])
    assert len(output.read_text().splitlines()) == 4
    out = capsys.readouterr().out
    assert all(f"{system:<9} {key:<13} 0." in out for system, key in (("shared", "parse_las"), ("pos", "pos_accuracy")))
    benchmark("parsing").main(["--turns", "1", "--backbone", backbone_path()])
    assert "COST parse + pos: " in capsys.readouterr().out


@pytest.mark.slow
def test_language_head(benchmark, capsys):
    benchmark("language_head").main(["--rows", "16", "--length", "64", "--repeats", "1"])  # more than building it takes
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["all", "labelled", "share"]


@pytest.mark.slow
def test_joint(benchmark, folder, capsys):
    recordings = DATA.parent.parent / "spoken_digits" / "data"
    (folder / "fsdd").mkdir()
    for split in ("train", "test"):
        rows = [json.loads(line) for line in (recordings / f"{split}.jsonl").read_text().splitlines()[:4]]
        rows = [row | {"audio": str(recordings / row["audio"])} for row in rows]
        (folder / "fsdd" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--data", str(folder), "--seeds", "1", "2", "--steps", "2", "--rows", "4"]
    output = folder / "joint.json"
    found = benchmark("joint").main(["heart", *words, "--families", "t5", "--output", str(output)])
    assert found == json.loads(output.read_text()) and [run["seed"] for run in found["t5"]] == [1, 2]
    assert found["t5"][0]["exact"].keys() == {"translation", "transcript"}
    joint, alone, *_ = benchmark("joint").main(["alone", *words])
    assert joint["translation_rows"] == alone["translation_rows"] == 8  # of two steps
    assert "transcript_word_accuracy" in joint and "transcript_word_accuracy" not in alone
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [line.split()[1] for line in lines] == ["backbone", "t5", "t5", "model", "joint", "alone"]


@pytest.mark.slow
def test_atis(benchmark, folder, backbone_path, capsys):
    words = ["--data", str(folder), "--seeds", "1", "2", "--backbone", backbone_path()]
    benchmark("atis").main([*words, "--max_steps", "2", "--use_cpu", "true", "--report_to", "none"])
    last = capsys.readouterr().out.splitlines()[-4:]
    assert [line.split()[0] for line in last] == ["seed", "1", "2", "mean"]


@pytest.mark.slow
def test_mixture(benchmark, folder, backbone_path, capsys):
    runs = ["none", "balancing=famo", "aggregation=pcgrad", "weights=3", "single"]
    words = ["--data", str(folder), "--backbone", backbone_path(), "--rows", "8", "--epochs", "1", "--cpu"]
    words += ["--output", str(folder / "mixture.jsonl"), "--seeds", "1", "--runs"]
    found = benchmark("mixture").main([*words, *runs[:2]])
    assert benchmark("mixture").main([*words, *runs])[:2] == found  # from the file
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| `")]
    assert {row.split("`")[1] for row in rows} == set(runs)
    alike = benchmark("mixture").main([*words, "none", "--mixture", "alike"])  # into the same file, and none from it
    assert [[*run["test"]] for run in alike] == [["sentiment", "trec", "emotion", "irony", "entailment", "average"]]


def test_serving(benchmark, folder, backbone_path, capsys):
    words = ["--data", str(folder), "--rounds", "2", "--batch", "4", "--backbone", backbone_path()]
    serving = benchmark("serving")
    passes = []

    def count(module, *_):
        if isinstance(module, BertModel):
            passes.append(module)

    with register_module_forward_hook(count):
        heads = serving.main(["heads", *words, "--heads", "3", "--output", str(folder / "heads.json")])
    assert heads == json.loads((folder / "heads.json").read_text())
    assert list(heads["cpu"]) == ["all heads", "models", "one head"]
    assert heads["cpu"]["all heads"]["ratio"] == 1
    # The trial of the backbone, a check of one against three models, then warm-up and two rounds of all heads, three models and one head.
    assert len(passes) == 1 + (1 + 3) + 3 * (1 + 3 + 1)
    batches = serving.main(["pipeline", *words, "--tweets", "24", "--turn", "8"])
    assert list(batches["seconds"]) == ["batches", "one at a time", "text-classification"]
    assert "3 heads" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.process
def test_serving_load(benchmark, folder, backbone_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(BENCHMARKS.parent))
    words = ["--data", str(folder), "--backbone", backbone_path(), "--tasks", "2", "--seconds", "1", "--steps", "2"]
    figures = benchmark("serving_load").main([*words, "--output", str(folder / "load.json")])
    assert figures == json.loads((folder / "load.json").read_text()) and list(figures) == ["shared", "single"]
    for rates in figures.values():
        assert [one["rate"] for one in rates] == [5, 10] and all(one["sent"] for one in rates)
        assert not any(one["wrong"] or one["refused"] or one["lost"] or one["crossed"] for one in rates)


@pytest.mark.slow
@pytest.mark.process
def test_soak(benchmark, folder, backbone_path, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PYTHONPATH", str(BENCHMARKS.parent))
    backbone = str(shutil.copytree(backbone_path(), tmp_path / "backbone"))
    model = BertModel.from_pretrained(backbone)
    with torch.no_grad():  # so that answers to texts differ
        for weight in model.parameters():
            weight.mul_(10 if weight.dim() > 1 else 1)
    model.save_pretrained(backbone)
    words = ["--data", str(folder), "--backbone", backbone, "--tasks", "3", "--seconds", "1", "--patience", "120"]
    load = benchmark("serving_load")
    figures = load.main([*words, "--soak", "0.1", "--output", str(tmp_path / "soak.json")])
    assert figures == json.loads((tmp_path / "soak.json").read_text())
    assert figures["sent"] == figures["answered"] > 10 and figures["rate"] == figures["full_load"] / 2
    assert not any(figures[name] for name in ("refused", "late", "lost", "wrong", "crossed"))
    memory = figures["memory"]
    assert 0 < memory["start"] <= memory["largest"] and memory["end"] <= memory["largest"]
    assert "minute 1: " in capsys.readouterr().out

    given = argparse.Namespace(tasks=3, backbone=backbone, seed=0, seconds=2.0, most=20, patience=120.0)
    made = load.save_models(tmp_path, given)
    texts = [row["text"] for row in read_rows("sentiment", "train", 48)]
    texts, answers = load.distinct(texts, made["pipeline"](texts))
    assert len(texts) > 10
    with load.servers([tmp_path / "shared"], []) as ports:
        changed = [{name: {**one, "score": one["score"] + 0.5} for name, one in text.items()} for text in answers]
        crossed, wrong = (
            asyncio.run(load.measure(ports, texts, expected, 10, given))
            for expected in (answers[1:] + answers[:1], changed)
        )
    assert crossed["crossed"] == crossed["answered"] > 0 and crossed["wrong"] == 0
    assert wrong["wrong"] == wrong["answered"] > 0 and wrong["crossed"] == 0


def test_slope_of_memory(benchmark):
    load = benchmark("serving_load")
    assert load.slope([(10.0, 100.0), (11.0, 101.0), (12.0, 102.0)]) == pytest.approx(3600)
    assert load.slope([(10.0, 100.0), (11.0, 100.0)]) == 0


@pytest.mark.slow
@pytest.mark.process
def test_import(benchmark):
    assert benchmark("serving").main(["import", "--rounds", "1"])["seconds"]["median"] > 0


@pytest.mark.slow
def test_balancing(benchmark, backbone_path, capsys):
    benchmark("overhead")
    words = ["--systems", "famo", "famo-exact", "gradnorm", "--steps", "4", "--turn", "2", "--batch", "8"]
    figures = benchmark("balancing").main([*words, "--rows", "64", "--length", "8", "--backbone", backbone_path()])
    assert list(figures) == ["none", "famo", "famo-exact", "gradnorm"] and figures["none"]["cpu"]["ratio"] == 1
    forwards = {name: of_one["forwards"] / of_one["steps"] for name, of_one in figures.items()}
    assert forwards == {"none": 1, "famo": 1, "famo-exact": 2, "gradnorm": 1}
    assert "over none" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.slow
def test_conflict(benchmark, backbone_path, capsys):
    benchmark("overhead")
    words = ["--rows", "6", "--length", "9", "--tasks", "2", "3", "--rounds", "2", "--torchjd"]
    methods = ["--methods", "sum per task", "sum", "pcgrad", "measured"]
    figures = benchmark("conflict").main([*words, *methods, "--backbone", backbone_path()])
    assert list(figures) == ["2", "3"]
    torchjds = ["torchjd backward", "torchjd mtl_backward", "torchjd autogram"]
    assert list(figures["2"]) == ["none", *methods[1:], *torchjds]
    assert figures["2"]["none"]["seconds"][1] == 1
    assert "K = 3, 6 rows of 9 tokens" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.slow
def test_speech_conflict(benchmark, capsys):
    pytest.importorskip("jiwer", reason="the extra 'speech' is not installed")
    words = "--rows 3 --seconds 0.2 --width 16 --layers 1 --channels 8 --rounds 1"
    benchmark("speech_conflict").main(words.split())
    lines = capsys.readouterr().out.splitlines()[2:]
    assert [line.split(" | ")[:2] for line in lines] == [
        [f"| {rows}", f"`{name}`"] for rows in ("shared", "separate") for name in ("none", "upgrad")
    ]


def test_systems_of_the_conflict_benchmark_make_the_same_update(benchmark, backbone_path):
    benchmark("overhead")
    conflict = benchmark("conflict")
    given = conflict.parse(["--rows", "6", "--length", "9", "--backbone", backbone_path()])
    found = {}
    for name in ("upgrad", "upgrad per task", *conflict.TORCHJD):
        step, model = conflict.build(given, 3, name)
        step()
        shared = [one.grad.flatten() for one in model.backbone.parameters() if one.grad is not None]
        found[name] = torch.cat(shared) * (3 if name.startswith("torchjd") else 1)
    for name, gradient in found.items():
        assert float((gradient - found["upgrad"]).norm() / found["upgrad"].norm()) < 1e-3, name


@pytest.mark.slow
def test_toy_conflict(benchmark, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    words = ["--methods", "sum", "upgrad", "--steps", "20", "--output", str(tmp_path / "toy.png")]
    ends = benchmark("toy_conflict").main(words)
    assert list(ends) == ["sum", "upgrad"] and all(len(each) == 5 for each in ends.values())
    assert (tmp_path / "toy.png").stat().st_size > 5_000
    assert "0 of 5" in capsys.readouterr().out


@pytest.mark.slow
def test_listening_compares_one_model_with_three(benchmark, tmp_path, capsys):
    pytest.importorskip("jiwer", reason="the extra 'speech' is not installed")
    out = tmp_path / "listening.json"
    benchmark("listening").main(f"--seeds 0 --epochs 1 --rows 20 --output {out}".split())
    (run,) = json.loads(out.read_text())["runs"]
    assert list(run) == ["one model", "one model, equal time", "three models"]
    for own in run.values():
        assert set(own) == {"digit", "speaker", "transcript", "train", "speed"} and own["speed"] > 0
    assert "| three models | " in capsys.readouterr().out
    module = benchmark("listening")
    module.main(["--seeds", "0", "--epochs", "1", "--rows", "20", "--systems", "one model, equal time"])
    assert capsys.readouterr().out.count("| one model") == 1


@pytest.mark.slow
def test_learning(benchmark, folder, backbone_path, tmp_path, monkeypatch, capsys):
    suites, gains, module = benchmark("suites"), benchmark("gains"), benchmark("learning")
    monkeypatch.setattr(module, "BACKBONE", backbone_path())
    monkeypatch.setitem(suites.SUITES, "small", (["trec", "ner"], 16))
    monkeypatch.setattr(gains, "DRAWS", 50)
    words = ["--suite", "small", "--output", str(tmp_path / "runs")]
    made = ["run", "--data", str(folder), *words, "--settings", "1e-3x1", "--systems", "single"]
    made += ["refined", "refined-branches", "taught-branches", "weighted-2"]
    model = {"branches": "kind", "branch_layers": 1}  # which auto does not choose for so few layers
    monkeypatch.setitem(module.SYSTEMS, "refined-branches", module.System(model=model, refined_branches=True))
    module.main([*made, "--seeds", "1"])
    files = sorted((tmp_path / "runs").glob("*/run.json"))
    names = ["refined-1e-3x1-1", "refined-branches-1e-3x1-1", "single-1e-3x1-1-ner", "single-1e-3x1-1-trec"]
    names += ["taught-branches-1e-3x1-1", "weighted-2-1e-3x1-1"]
    assert [path.parent.name for path in files] == [f"small-{name}" for name in names]
    for place in (0, 1, 4, 5):
        told = json.loads(files[place].read_text())
        for name, rows in told["test"].items():
            assert 0 <= suites.metric(name, suites.np.array(rows)) <= 1
    # Two classes, in equal parts: a model that is not trained is right about half of them.
    assert 0.2 < suites.metric("trec", suites.np.array(told["test"]["trec"])) < 0.8
    times = {path: path.stat().st_mtime_ns for path in files}
    module.main([*made, "--seeds", "1"])
    assert times == {path: path.stat().st_mtime_ns for path in files}  # nothing is trained twice
    capsys.readouterr()
    module.main(["table", *words, "--validation"])
    assert "| taught-branches | 1e-3x1 |" in capsys.readouterr().out
    module.main(["table", *words])
    shown = capsys.readouterr().out
    assert "| system | mean | trec | ner | minutes | seeds |" in shown
    assert "taught-branches against single, points:" in shown
    words = ["run", "--data", str(folder), *words]
    module.main([*words, "--settings", "best", "--systems", "single", "weighted-2", "--seeds", "2"])
    more = {path.parent.name for path in (tmp_path / "runs").glob("*/run.json")} - {path.parent.name for path in files}
    assert more == {"small-single-1e-3x1-2-ner", "small-single-1e-3x1-2-trec", "small-weighted-2-1e-3x1-2"}
    with pytest.raises(SystemExit, match=r"No run of shared in .* give --settings"):
        module.main([*words, "--settings", "best", "--systems", "shared", "--seeds", "2"])


def test_settings_of_learning(benchmark):
    gains = benchmark("gains")

    def run(seconds: float, **validation: float) -> dict[str, object]:
        return {"validation": validation, "test": dict.fromkeys(validation, seconds), "seconds": {None: seconds}}

    def alone(one: float, other: float | None = None) -> dict[str, object]:
        found = {"one": one} | ({} if other is None else {"other": other})
        return {"validation": found, "test": found, "seconds": found}

    names = ["one", "other"]
    # Chosen by the seed that both settings have, although the mean over the seeds of each is higher for low.
    shared = {
        "low": {1: run(1, one=0.5, other=0.5), 2: run(2, one=1, other=1)},
        "high": {1: run(3, one=0.6, other=0.5)},
    }
    assert gains.tuned("shared", shared, names) == {"one": "high", "other": "high"}
    assert [(seed, found["seconds"]) for seed, found in gains.chosen("shared", shared, names).items()] == [(1, 3)]
    shared["low"][1] = run(1, one=0.7, other=0.5)
    assert [(seed, found["seconds"]) for seed, found in gains.chosen("shared", shared, names).items()] == [
        (1, 1),
        (2, 2),
    ]
    # Each task has its own setting, and the seeds that both have there.
    single = {
        "low": {1: alone(0.5, 0.9), 2: alone(0.1, 0.9)},
        "high": {1: alone(0.6, 0.8), 2: alone(0.2), 3: alone(0.9)},
    }
    assert gains.tuned("single", single, names) == {"one": "high", "other": "low"}
    found = gains.chosen("single", single, names)
    assert {seed: whole["test"] for seed, whole in found.items()} == {
        1: {"one": 0.6, "other": 0.9},
        2: {"one": 0.2, "other": 0.9},
    }
    assert found[2]["seconds"] == pytest.approx(1.1)
    assert not gains.measured({"low": {1: alone(0.5)}}, names)
    with pytest.raises(SystemExit, match="have no seed in common"):
        gains.tuned("shared", {"low": {1: run(1, one=1, other=1)}, "high": {2: run(1, one=1, other=1)}}, names)


def test_statistics_of_learning(benchmark):
    suites, gains = benchmark("suites"), benchmark("gains")
    assert gains.holm({"a": 0.01, "b": 0.04, "c": 0.03}) == {"a": 0.03, "c": 0.06, "b": 0.06}
    assert suites.spans(["B-A", "I-A", "O", "I-B", "B-B"]) == {("A", 0, 1), ("B", 3, 3), ("B", 4, 4)}
    right, wrong = [[1.0, 1.0]] * 40, [[1.0, 1.0], [0.0, 1.0]] * 20
    runs = [{seed: {"test": {"trec": suites.np.array(rows)}} for seed in (1, 2)} for rows in (right, wrong)]
    point, low, high, value = gains.compared(*runs, ["trec"])["trec"]
    assert point == 0.5
    assert 0.3 < low < 0.5 < high < 0.7
    assert value < 0.01


@pytest.mark.slow
def test_imbalance(benchmark, folder, backbone_path, capsys):
    output = folder / "figures.json"
    words = ["--data", str(folder), "--steps", "2", "--seeds", "2", "--share", "0.2", "--backbone", backbone_path()]
    figures = benchmark("imbalance").main([*words, "--output", str(output)])
    assert list(figures) == ["plain", "balanced"] and figures == json.loads(output.read_text())
    assert all(0 <= value <= 1 for results in figures.values() for result in results for value in result.values())
    assert "balanced macro_f1" in capsys.readouterr().out


def taken(seconds, cpu, **figures):
    return {"seconds": seconds, "cpu": cpu, "units": 100, "share": 1.0, "busy": False, **figures}


def test_summary_of_rivals(benchmark):
    rivals = benchmark("rivals")
    losses = [{"held_out": {"a": {"loss": loss}, "b": {"loss": 1.0}}} for loss in (0.2, 0.4, 3.0)]
    runs = {
        "ours": [taken(4, 2, positions=125), taken(8, 4, positions=125), taken(2, 1, positions=200)],
        "other": [taken(8, 6, **losses[0]), taken(8, 6, **losses[1]), taken(6, 3, **losses[2]) | {"busy": True}],
        "none yet": [],
    }
    runs = {name: {str(number): run for number, run in enumerate(own)} for name, own in runs.items()}
    runs["ours"]["3"] = runs["ours"]["1"]  # which the other does not have
    found = rivals.summary(runs, "ours")
    assert list(found) == ["ours", "other"] and found["other"]["repetitions"] == 3
    assert found["ours"]["cpu"] == pytest.approx(0.03) and found["ours"]["seconds"] == pytest.approx(0.06)
    # Within repetitions, not of the medians, whose ratio by CPU time is 3.
    assert found["other"]["cpu_ratio"] == [3.0, 1.5, 3.0]
    assert found["other"]["seconds_ratio"] == [1.5, 1.0, 2.0]  # of those that were not disturbed
    assert found["ours"]["padding"] == pytest.approx(0.2) and found["other"]["loss"] == pytest.approx(0.7)
    assert found["other"]["busy"] and not found["ours"]["busy"]
    shown = rivals.table({"rows": {"conflict, K = 2": runs | {"none": runs["ours"]}}, "problems": {"b": "It fails."}})
    assert "| other * | 3 | 60 | 80 | 3.00 [1.50, 3.00] | 1.50 [1.00, 2.00] |" in shown and "b: It fails." in shown


def test_busy_repetitions_of_rivals(benchmark):
    calm, shares = benchmark("rivals").calm, [0.5, 0.95, 0.7]
    tries = iter(shares)
    assert calm(lambda: {"a": {"share": next(tries)}}, 0.9, 3) == {"a": {"share": 0.95, "busy": False}}
    assert list(tries) == [0.7]  # the second one counted
    tries = iter(shares)
    assert calm(lambda: {"a": {"share": next(tries)}}, 0.99, 3) == {"a": {"share": 0.95, "busy": True}}
    assert list(tries) == []


def test_rivals_continue(benchmark, folder, backbone_path, monkeypatch, capsys):
    rivals, seen, broken = benchmark("rivals"), [], ["tasknet"]

    def execute(job, python, seed):
        seen.append((job.row, job.systems[0], seed, python == sys.executable))
        if job.systems[0] in broken or len(seen) == 6:
            raise (RuntimeError if job.systems[0] in broken else KeyboardInterrupt)("cut off")
        assert set(json.loads(Path(job.given["rows"]).read_text())) == {"emotion", "irony", "ner"}
        return {name: taken(1 + seed, 1, held_out={"a": {"loss": 1}}, total_cpu=1) for name in job.systems}

    monkeypatch.setattr(rivals, "execute", execute)
    monkeypatch.setattr(rivals, "environment", lambda folder, name: name or sys.executable)
    monkeypatch.setattr(rivals, "versions", lambda python, names: {"python": python})
    output = folder / "rivals.json"
    words = ["--data", str(folder), "--environments", str(folder / "environments"), "--output", str(output)]
    words += ["--rows", "training, short", "--repetitions", "2", "--short_steps", "4", "--batch", "4"]
    words += ["--backbone", backbone_path()]
    with pytest.raises(KeyboardInterrupt):
        rivals.main(words)
    first = json.loads(output.read_text())
    assert sorted(map(len, first["rows"]["training, short"].values())) == [0, 1, 1, 1, 1]
    assert first["problems"] == {"training, short, tasknet": "cut off"}
    assert first["versions"]["tasknet"] == {"python": "tasknet"}
    before, broken[:] = len(seen), []
    found = rivals.main(words)
    systems = ["ours", *rivals.PLAIN, "tasknet"]
    assert {name: len(runs) for name, runs in found["rows"]["training, short"].items()} == dict.fromkeys(systems, 2)
    assert found == json.loads(output.read_text()) and found["problems"] == {}
    assert len(seen) == before + 10 - 4  # none of the four again
    assert {own for _, name, _, own in seen if name == "tasknet"} == {False}
    assert "| tasknet | 2 | 100 | 67 | 1.00 [1.00, 1.00] |" in capsys.readouterr().out
    with pytest.raises(ValueError, match="should be of the same batch"):
        rivals.main([*words, "--batch", "2"])
    first, found["rows"]["training, short"]["tasknet"]["1"] = len(seen), taken(9, 9) | {"busy": True, "share": 0.4}
    output.write_text(json.dumps(found))
    repeated = rivals.main(words)["rows"]["training, short"]["tasknet"]
    assert seen[first:] == [("training, short", "tasknet", 1, False)] and not repeated["1"]["busy"]
    rivals.main(["table", str(output)])
    assert "| tasknet | 2 | 100 | 67 | 1.00 [1.00, 1.00] |" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.timeout(1800)  # it makes an environment
def test_rivals(benchmark, folder, backbone_path):
    words = ["--data", str(folder), "--environments", str(folder / "environments"), "--tries", "1", "--batch", "4"]
    words += ["--output", str(folder / "rivals.json"), "--repetitions", "1", "--held_out", "8", "--texts", "16"]
    words += ["--short_steps", "4", "--rows", "training, short", "inference, 2 heads", "--backbone", backbone_path()]
    found = benchmark("rivals").main(words)
    assert found["problems"] == {} and found["versions"]["tasknet"]["tasknet"] == "1.60"
    assert (folder / "environments" / "tasknet" / "made").exists()
    training = {name: runs["0"] for name, runs in found["rows"]["training, short"].items()}
    assert len({own["units"] for own in training.values()}) == 1  # the same tokens
    assert {name: own["steps"] for name, own in training.items()} == dict.fromkeys(training, 4)
    assert all(list(own["held_out"]) == ["emotion", "irony", "ner"] for own in training.values())
    assert len({runs["0"]["units"] for runs in found["rows"]["inference, 2 heads"].values()}) == 1
    for systems in found["rows"].values():
        assert all(runs["0"][key] > 0 for runs in systems.values() for key in ("cpu", "startup", "memory", "share"))
