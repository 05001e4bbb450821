"""Predictions for a file: in the order of the input, in bounded memory, written as they come, and gone on with."""

import json
import os
import random
import signal
import time

import pytest
from predicting import child
from tiny import read_rows

from hf_multitask import SequenceClassification
from hf_multitask.cli import answers, main, predict

COUNT = 150


@pytest.fixture
def saved(build_model, tokenizer, tasks, tmp_path):
    folder = tmp_path / "model"
    pairs = SequenceClassification(text_pair_column="other", label_names=["no", "yes"])
    build_model(tasks=tasks | {"pairs": pairs}).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "in.jsonl"
    rows = [{"text": row["text"], "id": number} for number, row in enumerate(read_rows("sentiment", "train", COUNT))]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def call(saved, texts, monkeypatch, capsys):
    monkeypatch.setattr(predict, "WINDOW", 16)

    def make(output, *words, code=0):
        arguments = [str(saved), "--input", str(texts), "--output", str(output), "--batch_size", "4", *words]
        assert main(["predict", *arguments]) == code
        return capsys.readouterr().err

    return make


def lines_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_answers_stand_in_the_order_of_the_input(call, saved, texts, tmp_path, capsys):
    call(tmp_path / "out.jsonl", "--tasks", "sentiment")
    assert main(["predict", str(saved), "--input", str(texts), "--tasks", "sentiment", "--batch_size", "1"]) == 0
    alone = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    batched = lines_of(tmp_path / "out.jsonl")
    assert len(batched) == len(alone) == COUNT
    for one, other in zip(batched, alone, strict=True):
        assert one["sentiment"]["label"] == other["sentiment"]["label"]
        assert one["sentiment"]["score"] == pytest.approx(other["sentiment"]["score"], abs=1e-5)
    assert not list(tmp_path.glob("out.jsonl.*"))


@pytest.mark.process
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_interrupted_run_goes_on_to_the_same_bytes(number, call, saved, texts, tmp_path, context):
    call(tmp_path / "whole.jsonl")
    output = tmp_path / "out.jsonl"
    words = [str(saved), "--input", str(texts), "--output", str(output), "--batch_size", "4"]
    draw, ended, kills = random.Random(7), None, 0
    while ended != 0:
        process = context.Process(target=child, args=(words, 16, kills > 3))
        process.start()
        size = output.stat().st_size if output.exists() else 0
        until = time.monotonic() + 60
        while process.is_alive() and time.monotonic() < until and kills <= 3:
            if output.exists() and output.stat().st_size > size:
                time.sleep(draw.uniform(0, 0.04))
                os.kill(process.pid, number)
                break
            time.sleep(0.001)
        process.join(60)
        ended = process.exitcode
        assert ended in (0, -signal.SIGKILL if number == signal.SIGKILL else 130)
        kills += ended != 0
    assert kills
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


@pytest.mark.parametrize("cut", [0, 1, 900, 5000])
def test_torn_line_is_cut_and_written_again(cut, call, texts, tmp_path):
    output, rows = tmp_path / "out.jsonl", texts.read_text().splitlines(keepends=True)
    call(output)
    whole = output.read_bytes()
    output.unlink()
    texts.write_text("".join([*rows[:100], "{\n", *rows[101:]]))
    assert f"line 101 of '{texts}' is not valid JSON" in call(output, code=2)
    kept = output.read_bytes()
    assert kept == b"".join(whole.splitlines(keepends=True)[:96])  # of the windows before the bad line
    texts.write_text("".join(rows))
    output.write_bytes(kept[: len(kept) - cut])
    count = output.read_bytes().count(b"\n")
    assert f"contains {count} answers of an interrupted run. Resuming after them." in call(output)
    assert output.read_bytes() == whole


def stop_early(call, texts, output):
    """Leave the output of a run that met a bad line."""
    rows = texts.read_text().splitlines(keepends=True)
    texts.write_text("".join([*rows[:100], '{"text": 7}\n', *rows[101:]]))
    error = call(output, code=2)
    texts.write_text("".join(rows))
    return error, rows


def test_run_with_another_input_or_other_settings_is_refused(call, texts, tmp_path):
    output = tmp_path / "out.jsonl"
    error, rows = stop_early(call, texts, output)
    assert f"line 101 of '{texts}' should be an object with 'text' or 'question'" in error
    kept = output.read_bytes()
    for changed in ([rows[1], rows[0], *rows[2:]], rows[:50]):
        texts.write_text("".join(changed))
        assert "The first 96 inputs differ from those that the interrupted run has read" in call(output, code=2)
    texts.write_text("".join(rows))
    assert "interrupted run with another tasks: None, and now ['ner']" in call(output, "--tasks", "ner", code=2)
    assert "interrupted run with another batch_size: 4, and now 2" in call(output, "--batch_size", "2", code=2)
    assert output.read_bytes() == kept
    texts.write_text("".join([*rows, rows[0]]))  # what comes behind may change
    call(output)
    assert len(lines_of(output)) == COUNT + 1
    assert "already exists and was not left by an interrupted run" in call(output, code=2)


def test_run_that_repeats_ids_and_texts_goes_on_with_them(call, texts, tmp_path):
    output, words = tmp_path / "out.jsonl", ("--id_column", "id", "--include_inputs")
    call(tmp_path / "whole.jsonl", *words)
    rows = texts.read_text().splitlines(keepends=True)
    texts.write_text("".join([*rows[:100], "\n", '{"text": "no id"}\n', *rows[100:]]))
    assert f"line 102 of '{texts}' has no column 'id'; it has text" in call(output, *words, code=2)
    texts.write_text("".join(rows))
    assert "another id_column: 'id', and now None" in call(output, "--include_inputs", code=2)
    assert "another include_inputs: True, and now None" in call(output, "--id_column", "id", code=2)
    assert "contains 96 answers of an interrupted run" in call(output, *words)
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    given = [json.loads(row) for row in rows]
    assert [(one["id"], one["input"]) for one in lines_of(output)] == [(row["id"], row["text"]) for row in given]


def test_input_that_no_task_takes_is_named_by_its_line(call, texts, tmp_path):
    rows = texts.read_text().splitlines(keepends=True)
    texts.write_text("".join([*rows[:40], "\n", '{"text": ["a", 7]}\n', *rows[41:]]))
    output = tmp_path / "out.jsonl"
    assert f"line 42 of '{texts}': a text should be a string or a list of words" in call(output, code=2)
    assert len(lines_of(output)) == 32
    assert f"line 1 of '{texts}': Task 'pairs' takes pairs" in call(tmp_path / "pairs", "--tasks", "pairs", code=2)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"text": "cut off \\ud83d"}', "contains half of a character"),
        ('{"text": ' + "[" * 100_000 + "]" * 100_000 + "}", "is not valid JSON (maximum recursion depth"),
        ('{"text": "a", "id": ' + "9" * 5000 + "}", "is not valid JSON (Exceeds the limit"),
    ],
)
def test_line_that_cannot_be_read_is_named(line, problem, call, texts, tmp_path):
    texts.write_text('{"text": "A fine place."}\n' + line + "\n")
    assert f"line 2 of '{texts}' {problem}" in call(tmp_path / "out.jsonl", code=2)


def test_mark_of_the_byte_order_is_no_part_of_a_text(call, texts, tmp_path):
    rows = ['{"text": "A fine place."}\n'] * 2
    texts.write_text("".join(rows), encoding="utf-8-sig")  # as Windows writes it
    call(tmp_path / "out.jsonl")
    first, second = lines_of(tmp_path / "out.jsonl")
    assert first == second


def test_input_is_read_window_by_window(call, texts, tmp_path, monkeypatch):
    read, most = [], []
    inner, write = predict.read_inputs, answers.AnswerFile.write

    def watched(*args):
        for row in inner(*args):
            read.append(row)
            yield row

    def counted(self, lines):
        write(self, lines)
        most.append(len(read) - len(lines_of(self.path)))

    monkeypatch.setattr(predict, "read_inputs", watched)
    monkeypatch.setattr(answers.AnswerFile, "write", counted)
    call(tmp_path / "out.jsonl", "--tasks", "sentiment")
    assert len(most) == -(-COUNT // 16)
    assert max(most) == 0  # every answer is in the file before the next input is read


def test_progress_shows_in_a_log_of_a_long_run_only(call, tmp_path, monkeypatch):
    assert "inputs" not in call(tmp_path / "short.jsonl", "--tasks", "sentiment")
    monkeypatch.setattr(predict, "_LONG", COUNT)
    assert f"{COUNT}/{COUNT}" in call(tmp_path / "long.jsonl", "--tasks", "sentiment")
