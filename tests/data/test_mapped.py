"""The cache of mapped rows: files of it that are cut, and a full storage."""

import gc
from pathlib import Path

import pyarrow as pa
import pytest
from datasets import Dataset, load_dataset

from hf_multitask.data.mapped import cached_map

ROWS = 2500


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    Dataset.from_dict({"text": [f"row {row}" for row in range(ROWS)]}).to_json(path)
    return load_dataset("json", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))


def lengths(rows, indices):
    return {"length": [len(text) + index for text, index in zip(rows["text"], indices, strict=True)]}


def run(rows):
    return cached_map(rows, lengths, batched=True, with_indices=True, new_fingerprint="f")


def ends_of_batches(path):
    with pa.memory_map(str(path)) as file:
        stream = pa.ipc.open_stream(file)
        while True:
            try:
                stream.read_next_batch()
            except StopIteration:
                return
            yield file.tell()


def test_a_file_that_is_cut_anywhere_is_replaced(rows):
    wanted = run(rows)["length"][:]
    file = Path(run(rows).cache_files[0]["filename"])
    whole, ends = file.read_bytes(), list(ends_of_batches(file))
    assert len(ends) == 3
    for cut in (0, 3, 8, 300, len(whole) // 2, len(whole) - 4, *ends):
        file.unlink()  # it is mapped
        file.write_bytes(whole[:cut])
        assert run(rows)["length"][:] == wanted
        assert file.read_bytes() == whole
    changed = file.stat().st_mtime_ns
    assert run(rows)["length"][:] == wanted
    assert file.stat().st_mtime_ns == changed  # and one that is complete is read


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_storage_is_named(rows, full):
    folder = Path(rows.cache_files[0]["filename"]).parent
    with (
        full(2000),
        pytest.raises(OSError, match=r"The rows cannot be cached in '.*' \(file too large\)\. Free") as told,
    ):
        run(rows)
    assert str(folder) in str(told.value)
    assert len(run(rows)) == ROWS
    del told
    gc.collect()  # datasets leaves the file open that it could not write
