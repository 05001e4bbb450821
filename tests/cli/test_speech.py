"""Recordings from a recipe: trained, measured, asked and exported by the command line."""

import json
import runpy
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from processes import BLOCK, run
from sounds import extractor, recordings, save_encoder, wav

from hf_multitask import AudioClassification, AutomaticSpeechRecognition, MultiTaskModel
from hf_multitask.cli import main
from hf_multitask.cli.recipe import read_recipe


@pytest.fixture
def folder(tmp_path):
    """A recipe with data in a folder of their own, whose files are relative to it."""
    save_encoder(tmp_path / "encoder")
    for split, count, seed in (("train", 24, 0), ("validation", 9, 1)):
        (tmp_path / "data" / split).mkdir(parents=True)
        rows = [dict(row) for row in recordings(count, seed)]
        for number, row in enumerate(rows):
            samples, row["audio"] = row["audio"]["array"], f"{split}/{number}.wav"
            (tmp_path / "data" / row["audio"]).write_bytes(wav(samples, subtype="FLOAT"))
        (tmp_path / "data" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = {"dataset": "tones", "audio_column": "audio"}
    recipe = {
        "backbone": "encoder",
        "datasets": {"tones": {"path": "json", "data_files": {split: f"data/{split}.jsonl" for split in ("train", "validation")}}},
        "tasks": {
            "speaker": {"type": "audio-classification", "label_column": "speaker", **common},
            "word": {"type": "automatic-speech-recognition", "text_column": "text", **common},
        },
        "training": {"output_dir": "out", "max_steps": 4, "eval_strategy": "epoch", "save_strategy": "no", "report_to": "none", "use_cpu": True, "disable_tqdm": True},
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return tmp_path


def lines(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


# The pipeline of a saved model where the package is not installed.
ALONE = (
    BLOCK
    + """
from transformers import pipeline
pipe = pipeline("multitask", sys.argv[1], trust_remote_code=True)
assert type(pipe.model).__module__.startswith("transformers_modules")
print(json.dumps(pipe(sys.argv[2])))
"""
)


@pytest.fixture
def saved(tmp_path):
    """A folder with a model that reads recordings, and six of them, of which two cannot be used."""
    torch.manual_seed(0)
    tasks = {"speaker": AudioClassification(label_names=["high", "low"]), "word": AutomaticSpeechRecognition(vocabulary=list("abc"))}  # fmt: skip
    MultiTaskModel.from_backbone(save_encoder(tmp_path / "encoder"), tasks=tasks).save_pretrained(tmp_path / "out")
    extractor().save_pretrained(tmp_path / "out")
    (tmp_path / "calls" / "more").mkdir(parents=True)
    for number, row in enumerate(recordings(6)):
        name = f"more/{number}.WAV" if number == 5 else f"{number}.wav"
        content = wav(row["audio"]["array"]) if number not in (1, 4) else b"no audio"
        (tmp_path / "calls" / name).write_bytes(content)
    return tmp_path


REASON = "cannot be read as audio"


@pytest.mark.parametrize("form", ["folder", "lines", "rows", "table"])
def test_rows_beside_one_that_cannot_be_used_are_answered(form, saved, monkeypatch, capsys):
    monkeypatch.chdir(saved)
    names = [f"calls/{number}.wav" for number in range(5)] + ["calls/more/5.WAV"]
    Path("names.txt").write_text("".join(f"{name}\n" for name in names))
    Path("names.jsonl").write_text("".join(json.dumps({"audio": name}) + "\n" for name in names))
    Path("names.csv").write_text("".join(f"{name}\n" for name in ["audio", *names]))
    given = {"folder": "calls", "lines": "names.txt", "rows": "names.jsonl", "table": "names.csv"}[form]
    assert main(["predict", "out", "--input", given, "--batch_size", "2"]) == 2
    shown = capsys.readouterr()
    answers = [json.loads(line) for line in shown.out.splitlines()]
    first = {"folder": "file '1.wav' of 'calls'", "lines": "line 2", "rows": "line 2", "table": "line 3"}[form]
    assert [set(answer) for answer in answers] == [{"error"} if number in (1, 4) else {"speaker", "word"} for number in range(6)]  # fmt: skip
    assert answers[1]["error"].startswith(first) and REASON in answers[1]["error"]
    assert "error: 2 rows have no answer" in shown.err and shown.err.count(first) == 2
    assert main(["predict", "out", names[5]]) == 0
    (alone,) = lines(capsys)
    assert answers[5]["word"] == alone["word"] and answers[5]["speaker"]["label"] == alone["speaker"]["label"]


def test_a_folder_is_answered_into_a_file_with_the_names(saved, monkeypatch, capsys):
    monkeypatch.chdir(saved)
    words = [
        "predict",
        "out",
        "--input",
        "calls",
        "--tasks",
        "word",
        "--id_column",
        "file",
        "--output",
        "answers.jsonl",
    ]
    assert main(words) == 2
    answers = [json.loads(line) for line in Path("answers.jsonl").read_text().splitlines()]
    assert [answer["id"] for answer in answers] == ["0.wav", "1.wav", "2.wav", "3.wav", "4.wav", "more/5.WAV"]
    assert ["error" in answer for answer in answers] == [False, True, False, False, True, False]
    assert not Path("answers.jsonl.unfinished.json").exists()
    capsys.readouterr()
    for number in (1, 4):
        Path(f"calls/{number}.wav").unlink()
    chunks = ["--chunk_length_s", "0.1", "--stride_length_s", "0.02", "0.01"]
    assert main(["predict", "out", "--input", "calls", "--tasks", "word", *chunks]) == 0
    assert len(lines(capsys)) == 4


def test_a_row_without_audio_is_told_beside_the_others(saved, monkeypatch, capsys):
    monkeypatch.chdir(saved)
    Path("rows.jsonl").write_text('{"audio": null}\n{"audio": "calls/0.wav"}\n')
    assert main(["predict", "out", "--input", "rows.jsonl"]) == 2
    first, second = lines(capsys)
    assert first == {"error": "line 1 of 'rows.jsonl': there is no audio. Fix or remove the row."}
    assert set(second) == {"speaker", "word"}


def test_a_folder_without_recordings_is_refused(saved, monkeypatch, capsys):
    monkeypatch.chdir(saved)
    Path("empty").mkdir()
    assert main(["predict", "out", "--input", "empty"]) == 2
    assert "The folder 'empty' has no recording (.wav, .flac" in capsys.readouterr().err


@pytest.mark.process
def test_a_recipe_is_trained_measured_asked_and_exported(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert main(["train", "recipe.yaml"]) == 0
    shown = capsys.readouterr().out
    assert "Example: " in shown and "speaker: " in shown and "word: " in shown
    card = (folder / "out" / "README.md").read_text()
    assert "pipeline_tag: audio-classification" in card and 'multitask("recording.wav")' in card
    assert "AutoTokenizer" not in card
    measured = json.loads((folder / "out" / "eval_results.json").read_text())
    assert main(["evaluate", "out", "recipe.yaml", "--split", "validation"]) == 0
    capsys.readouterr()
    assert {"eval_speaker_accuracy", "eval_word_word_accuracy"} <= measured.keys()

    one = "data/validation/0.wav"
    assert main(["predict", "out", one]) == 0
    (answer,) = lines(capsys)
    assert answer.keys() == {"speaker", "word"} and answer["word"].keys() == {"text"}
    assert main(["predict", "out", "--input", "data/validation.jsonl", "--batch_size", "1"]) == 0
    of_rows = lines(capsys)
    assert len(of_rows) == 9 and of_rows[0] == answer
    (folder / "data" / "names.txt").write_text("validation/0.wav\nvalidation/1.wav\n")
    assert main(["predict", "out", "--input", "data/names.txt", "--batch_size", "1"]) == 0
    assert lines(capsys) == of_rows[:2]
    (folder / "data" / "bad.jsonl").write_text('{"audio": "validation/0.wav"}\n{"audio": "gone.wav"}\n')
    assert main(["predict", "out", "--input", "data/bad.jsonl"]) != 0
    assert "line 2 of 'data/bad.jsonl': there is no file 'data/gone.wav'. Fix the path." in capsys.readouterr().err
    (folder / "data" / "other.jsonl").write_text('{"sound": "validation/0.wav"}\n')
    assert main(["predict", "out", "--input", "data/other.jsonl"]) != 0
    assert "should have a recording in the column 'audio'. Found the columns sound." in capsys.readouterr().err

    assert main(["export", "out", "--all", "--output", "stock"]) == 0
    assert (folder / "stock" / "word" / "vocab.json").is_file()
    alone = run(ALONE, str(folder / "out"), str(folder / one))
    assert alone["word"] == answer["word"] and alone["speaker"] == pytest.approx(answer["speaker"], abs=1e-6)


def test_the_example_is_read_as_it_lies_there(tmp_path, monkeypatch):
    example = Path(__file__).parent.parent.parent / "examples" / "spoken_digits"
    for name in ("recipe.yaml", "make_encoder.py"):
        shutil.copy(example / name, tmp_path)
    shutil.copytree(example / "data", tmp_path / "data")
    runpy.run_path(str(tmp_path / "make_encoder.py"), run_name="__main__")
    rows = read_recipe(tmp_path / "recipe.yaml").load()["digits"]
    assert {split: len(of_split) for split, of_split in rows.items()} == {"train": 420, "validation": 60, "test": 60}
    words = [f"--max_steps=1 --output_dir={tmp_path / 'out'} --eval_strategy=no --save_strategy=no --report_to=none --use_cpu=true --load_best_model_at_end=false"]  # fmt: skip
    assert main(["train", str(tmp_path / "recipe.yaml"), *words[0].split()]) == 0
    measured = json.loads((tmp_path / "out" / "test_results.json").read_text())
    assert {"test_digit_accuracy", "test_speaker_accuracy", "test_transcript_word_accuracy"} <= measured.keys()
    assert (tmp_path / "out" / "preprocessor_config.json").is_file()
