"""Texts and recordings in one recipe: trained, measured and asked by the command line, as in the example."""

import contextlib
import io
import json
import runpy
import shutil
from pathlib import Path

import pytest

from hf_multitask.cli import main

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
QUICK = "--max_steps=2 --per_device_train_batch_size=8 --max_train_samples=40 --max_eval_samples=4 --eval_strategy=no --save_strategy=no --report_to=none --use_cpu=true --load_best_model_at_end=false --disable_tqdm=true"  # fmt: skip


def copy_example(folder):
    """The example as it lies there, beside the recordings that it shares."""
    shutil.copytree(EXAMPLES / "spoken_digits" / "data", folder / "spoken_digits" / "data")
    example = folder / "speech_translation"
    example.mkdir()
    for name in ("recipe.yaml", "make_sentences.py", "make_backbone.py", "mixed.jsonl"):
        shutil.copy(EXAMPLES / "speech_translation" / name, example)
    return example


def run_scripts(example):
    for name in ("make_sentences.py", "make_backbone.py"):
        runpy.run_path(str(example / name), run_name="__main__")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of the example, trained for two steps into `out`, with what was printed."""
    example = copy_example(tmp_path_factory.mktemp("examples"))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("HF_MULTITASK_DATA", raising=False)
        patch.setattr("sys.argv", [""])
        run_scripts(example)
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        assert main(["train", str(example / "recipe.yaml"), f"--output_dir={example / 'out'}", *QUICK.split()]) == 0
    (example / "shown.txt").write_text(shown.getvalue())
    return example


@pytest.fixture
def example(trained, monkeypatch):
    monkeypatch.chdir(trained)
    return trained


def lines(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def rows_of(example, split):
    text = (example / "data" / f"{split}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.slow
def test_the_sentences_are_pairs_of_which_none_is_in_two_splits(example):
    splits = {split: rows_of(example, split) for split in ("train", "validation", "test")}
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 2000, "validation": 200, "test": 200}
    sources = [row["source"] for rows in splits.values() for row in rows]
    assert len({*sources}) == len(sources)
    by_source = {row["source"]: row["target"] for row in splits["train"]}
    assert by_source["in the evening one friendly woman stands on the beach"] == (
        "am Abend steht eine freundliche Frau am Strand"
    )


def test_the_captions_of_the_data_folder_are_taken_where_it_is_named(tmp_path, monkeypatch):
    example = copy_example(tmp_path)
    (tmp_path / "given" / "multi30k_en_de").mkdir(parents=True)
    for split in ("train", "validation", "test"):
        text = "".join(json.dumps({"source": f"{split} {number}", "target": "Hund"}) + "\n" for number in range(3))
        (tmp_path / "given" / "multi30k_en_de" / f"{split}.jsonl").write_text(text)
    monkeypatch.setenv("HF_MULTITASK_DATA", str(tmp_path / "given"))
    runpy.run_path(str(example / "make_sentences.py"), run_name="__main__")
    assert rows_of(example, "test") == [{"source": f"test {number}", "target": "Hund"} for number in range(3)]


def test_both_tasks_are_measured_and_the_card_asks_for_both(example, capsys):
    measured = json.loads((example / "out" / "test_results.json").read_text())
    assert {"test_translation_chrf", "test_transcript_word_accuracy"} <= measured.keys()
    card = (example / "out" / "README.md").read_text()
    assert "pipeline_tag: translation" in card and 'multitask({"audio": "recording.wav"})' in card
    config = json.loads((example / "out" / "config.json").read_text())
    assert config["subsampler"]["num_mel_bins"] == 40
    limit = ["--max_eval_samples", "4"]
    assert main(["evaluate", "out", "recipe.yaml", "--split", "test", *limit]) == 0
    assert "word_accuracy" in capsys.readouterr().out


def test_rows_of_both_kinds_are_answered_wherever_the_command_runs(example, tmp_path, monkeypatch, capsys):
    assert main(["predict", "out", "--input", "mixed.jsonl"]) == 0
    answers = lines(capsys)
    assert [list(answer) for answer in answers] == [["translation"], ["transcript"], ["translation", "transcript"]]
    assert answers[0]["translation"].keys() == {"generated_text"} and answers[1]["transcript"].keys() == {"text"}
    monkeypatch.chdir(tmp_path)
    elsewhere = [str(example / "out"), "--input", str(example / "mixed.jsonl"), "--batch_size", "1"]
    assert main(["predict", *elsewhere]) == 0
    assert lines(capsys) == answers
    assert main(["predict", *elsewhere, "--tasks", "translation", "--output", "some.jsonl"]) != 0
    assert "line 2 of" in capsys.readouterr().err


def test_the_cells_of_a_table_are_left_out_where_they_are_empty(example, capsys):
    one = "../spoken_digits/data/audio/0_george_2.wav"
    (example / "mixed.csv").write_text(f"source,audio\ntwo dogs sleep,\n,{one}\n")
    assert main(["predict", "out", "--input", "mixed.csv"]) == 0
    assert [list(answer) for answer in lines(capsys)] == [["translation"], ["transcript"]]


def test_a_line_without_columns_is_a_text_or_with_the_task_a_recording(example, capsys):
    one = "../spoken_digits/data/audio/0_george_2.wav"
    assert main(["predict", "out", "--input", "mixed.jsonl"]) == 0
    (_, heard, _) = lines(capsys)
    (example / "rows.jsonl").write_text('"three young girls play in the park"\n')
    assert main(["predict", "out", "--input", "rows.jsonl", "--include_inputs"]) == 0
    (answer,) = lines(capsys)
    assert answer["input"] == "three young girls play in the park"
    assert main(["predict", "out", answer["input"]]) == 0
    assert lines(capsys) == [{"translation": answer["translation"]}]
    (example / "names.txt").write_text(f"{one}\n")
    for words in ([one], ["--input", "names.txt"]):
        assert main(["predict", "out", *words, "--tasks", "transcript"]) == 0
        assert lines(capsys) == [heard]
        assert main(["predict", "out", *words]) != 0
        said = capsys.readouterr().err
        assert f"is the file '{one}', and the tasks read texts and recordings. Select --tasks transcript" in said


def test_rows_with_neither_are_named_with_what_is_missing(example, capsys):
    (example / "bad.jsonl").write_text('{"sorce": "two dogs"}\n')
    assert main(["predict", "out", "--input", "bad.jsonl"]) != 0
    said = "line 1 of 'bad.jsonl' should have a text in the column 'source' or a recording in the column 'audio'."
    assert said in capsys.readouterr().err


def test_the_task_of_texts_is_exported_and_that_of_recordings_is_not(example, capsys):
    assert main(["export", "out", "--task", "translation", "--output", "stock"]) == 0
    assert json.loads((example / "stock" / "config.json").read_text())["architectures"] == [
        "BartForConditionalGeneration"
    ]
    assert main(["export", "out", "--task", "transcript", "--output", "other"]) != 0
    assert "reads recordings through the subsampler, which no stock class has" in capsys.readouterr().err


def test_an_example_of_each_kind_is_shown(example):
    shown = (example / "shown.txt").read_text()
    assert shown.count("Example: ") == 2 and "0_george_2.wav" in shown
    assert "  translation:" in shown and "  transcript:" in shown


def test_a_subsampler_that_cannot_be_used_is_refused_before_data_are_read(trained, tmp_path, capsys):
    text = (trained / "recipe.yaml").read_text().replace("num_mel_bins: 40", "bands: 40")
    (trained / "bad.yaml").write_text(text)
    assert main(["train", str(trained / "bad.yaml"), f"--output_dir={tmp_path}"]) != 0
    assert "`subsampler` has the unknown key 'bands'" in capsys.readouterr().err


@pytest.mark.parametrize("parts", [["cosines", "affinity", "single"], pytest.param(["prices"], marks=pytest.mark.slow)])
def test_diagnose_compares_texts_and_recordings(parts, example, capsys):
    quick = [word for word in QUICK.split() if not word.startswith(("--eval_strategy", "--load_best"))]
    words = ["--output_dir", "compared", "--measured_steps", "2", *quick, "--max_steps", "4"]
    assert main(["diagnose", "recipe.yaml", "--parts", *parts, *words]) == 0, capsys.readouterr().err
    report = json.loads((example / "compared" / "diagnosis" / "report.json").read_text())
    assert not report["failed"] and set(parts) <= report.keys()
    assert report["tasks"] == ["translation", "transcript"] and set(report["budget"]["rows"].values()) == {16}
    if "prices" in parts:
        assert {"uniform", "gradnorm"} <= report["prices"]["balancing"].keys()
        assert {"mean", "upgrad"} <= report["prices"]["aggregation"].keys()
        return
    assert (
        report["cosines"]["norms"]["transcript"] > 0
        and -1 <= report["cosines"]["mean"]["translation"]["transcript"] < 1
    )
    assert report["affinity"]["mean"]["transcript"]["transcript"] > 0
    assert report["single"]["metric"] == {"translation": "chrf", "transcript": "word_accuracy"}
