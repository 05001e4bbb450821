"""Predictions of several processes and in Parquet: one file in the order of the input, also after an interruption."""

import json
import socket

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from launch import accelerate, start
from predicting import rank_of_two
from tiny import read_rows

from hf_multitask.cli import main, predict, shares

COUNT = 60


@pytest.fixture
def saved(build_model, tokenizer, tmp_path):
    build_model().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def call(saved, monkeypatch, capsys):
    monkeypatch.setattr(predict, "WINDOW", 16)

    def make(source, output, *words):
        code = main(
            ["predict", str(saved), "--input", str(source), "--output", str(output), "--batch_size", "4", *words]
        )
        return code, capsys.readouterr().err

    return make


@pytest.fixture
def rows(tmp_path):
    """The same rows as JSON lines and as Parquet."""
    found = [
        {"text": row["text"], "number": number} for number, row in enumerate(read_rows("sentiment", "train", COUNT))
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(found), tmp_path / "in.parquet", row_group_size=7)
    return found


def lines_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_parquet_is_read_and_written_like_json_lines(call, rows, tmp_path):
    assert call(tmp_path / "in.jsonl", tmp_path / "out.jsonl", "--id_column", "number")[0] == 0
    assert call(tmp_path / "in.parquet", tmp_path / "out.parquet", "--id_column", "number")[0] == 0
    answers = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert answers == lines_of(tmp_path / "out.jsonl") and [one["id"] for one in answers] == list(range(COUNT))
    assert {path.name for path in tmp_path.iterdir() if path.name.startswith("out.")} == {"out.jsonl", "out.parquet"}
    code, said = call(tmp_path / "in.parquet", tmp_path / "out.parquet")
    assert code == 2 and "already exists. Remove it, or set another --output." in said


def test_a_parquet_output_resumes(call, rows, tmp_path, monkeypatch):
    write, calls = shares.AnswerFile.write, []

    def broken(self, lines):
        calls.append(len(lines))
        if len(calls) == 3:
            raise KeyboardInterrupt
        write(self, lines)

    monkeypatch.setattr(shares.AnswerFile, "write", broken)
    output = tmp_path / "out.parquet"
    assert call(tmp_path / "in.parquet", output)[0] == 130 and not output.exists()
    code, said = call(tmp_path / "in.parquet", output)
    assert code == 0 and "contains 32 answers of an interrupted run. Resuming after them." in said
    assert call(tmp_path / "in.jsonl", tmp_path / "out.jsonl")[0] == 0
    assert pq.read_table(output).to_pylist() == lines_of(tmp_path / "out.jsonl")


@pytest.mark.process
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_two_processes_write_what_one_writes(suffix, call, saved, rows, tmp_path, context):
    assert call(tmp_path / "in.jsonl", tmp_path / "alone.jsonl")[0] == 0
    output = tmp_path / f"out.{suffix}"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [str(saved), "--input", str(tmp_path / "in.parquet"), "--output", str(output), "--batch_size", "4"]
    both = [context.Process(target=rank_of_two, args=(words, rank, port)) for rank in (0, 1)]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
    assert [process.exitcode for process in both] == [0, 0]
    found = lines_of(output) if suffix == "jsonl" else pq.read_table(output).to_pylist()
    assert found == lines_of(tmp_path / "alone.jsonl")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("out.")] == [output.name]


def test_what_is_no_parquet_file_and_what_prints_nothing_is_said(call, saved, rows, tmp_path, monkeypatch, capsys):
    (tmp_path / "torn.parquet").write_bytes((tmp_path / "in.parquet").read_bytes()[:100])
    code, said = call(tmp_path / "torn.parquet", tmp_path / "out.jsonl")
    assert code == 2 and "torn.parquet' is not a whole Parquet file" in said
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["predict", str(saved), "A text."]) == 2
    assert "2 processes answer together, and print nothing. Set --output FILE." in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.process
def test_accelerate_launches_them(call, saved, rows, tmp_path):
    assert call(tmp_path / "in.jsonl", tmp_path / "alone.jsonl")[0] == 0
    files = ["--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.jsonl"), "--batch_size", "4"]
    launched = start(accelerate(2, "-m", "hf_multitask.cli", "predict", str(saved), *files), ACCELERATE_USE_CPU="true")
    assert launched.returncode == 0, launched.stderr
    assert [set(line) for line in lines_of(tmp_path / "out.jsonl")] == [{"sentiment", "ner"}] * COUNT
