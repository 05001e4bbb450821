"""Folders of recordings as data of a recipe, read without torchcodec."""

import gc
import json

import datasets
import pytest
import yaml
from sounds import extractor, recordings, save_encoder, wav

from hf_multitask import AutomaticSpeechRecognition, MultiTaskModel, MultiTaskTrainer
from hf_multitask.cli import main
from hf_multitask.cli.recipe import read_recipe

TASKS = {
    "speaker": {"type": "audio-classification", "dataset": "d", "label_column": "speaker"},
    "word": {"type": "automatic-speech-recognition", "dataset": "d"},
}


def save(folder, form):
    """A folder per split, with the files of its rows and what is known of them."""
    for split, count, seed in (("train", 12, 0), ("validation", 5, 1)):
        place = folder / "calls" / split
        place.mkdir(parents=True)
        rows = [dict(row, speaker=row["speaker"] or "low") for row in recordings(count, seed)]
        for number, row in enumerate(rows):
            own = place / row["speaker"] if form == "labels" else place
            own.mkdir(exist_ok=True)
            (own / f"{number}.wav").write_bytes(wav(row["audio"]["array"]))
        cells = [{"file_name": f"{number}.wav", "speaker": row["speaker"], "text": row["text"]} for number, row in enumerate(rows)]  # fmt: skip
        if form == "csv":
            lines = ["file_name,speaker,text", *(",".join(row.values()) for row in cells)]
            (place / "metadata.csv").write_text("\n".join(lines) + "\n")
        elif form == "jsonl":
            (place / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in cells))


# The builder of datasets leaves metadata.csv open.
pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def collect():
    yield
    gc.collect()


@pytest.fixture
def recipe(tmp_path):
    def make(tasks, **source):
        training = {"output_dir": "out", "max_steps": 2, "save_strategy": "no", "report_to": "none", "use_cpu": True, "disable_tqdm": True}  # fmt: skip
        if source.get("streaming"):
            training["sampling"] = "uniform"
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump({"backbone": "encoder", "datasets": {"d": source}, "tasks": tasks, "training": training}))  # fmt: skip
        return path

    return make


@pytest.mark.parametrize("form", ["csv", "jsonl", "labels"])
@pytest.mark.parametrize("source", [{"path": "audiofolder", "data_dir": "calls"}, {"path": "calls"}, {"path": "calls", "streaming": True}])  # fmt: skip
def test_rows_are_those_of_the_folder(form, source, recipe, tmp_path):
    save(tmp_path, form)
    column = "label" if form == "labels" else "speaker"
    splits = read_recipe(recipe({"speaker": TASKS["speaker"] | {"label_column": column}}, **source)).load()["d"]
    assert set(splits) == {"train", "validation"}
    for split, count, seed in (("train", 12, 0), ("validation", 5, 1)):
        rows = list(splits[split])
        wanted = sorted((tmp_path / "calls" / split).rglob("*.wav"))
        assert len(rows) == count and sorted(row["audio"]["path"] for row in rows) == list(map(str, wanted))
        names = splits[split].features["label"].names if form == "labels" else None
        for row in rows:
            number = int(row["audio"]["path"].rsplit("/")[-1].removesuffix(".wav"))
            label = names[row["label"]] if names else row["speaker"]  # of a stream, too
            given = recordings(count, seed)[number]
            assert label == (given["speaker"] or "low") and (names or row["text"] == given["text"])


def test_a_folder_of_recordings_is_trained_and_measured(recipe, tmp_path):
    save(tmp_path, "csv")
    save_encoder(tmp_path / "encoder")
    assert main(["train", str(recipe(TASKS, path="audiofolder", data_dir="calls"))]) == 0
    measured = json.loads((tmp_path / "out" / "eval_results.json").read_text())
    assert {"eval_speaker_accuracy", "eval_word_word_accuracy"} <= measured.keys()


def test_a_folder_of_recordings_is_trained_as_a_stream(recipe, tmp_path):
    save(tmp_path, "jsonl")
    save_encoder(tmp_path / "encoder")
    tasks = {"speaker": TASKS["speaker"] | {"label_names": ["high", "low"]}, "word": TASKS["word"] | {"vocabulary": list("abc")}}  # fmt: skip
    assert main(["train", str(recipe(tasks, path="calls", streaming=True))]) == 0
    assert json.loads((tmp_path / "out" / "train_results.json").read_text())["train_loss"] > 0


def test_a_table_names_files_relative_to_it(recipe, tmp_path):
    save(tmp_path, "csv")
    files = {split: f"calls/{split}/metadata.csv" for split in ("train", "validation")}
    word = TASKS["word"] | {"audio_column": "file_name"}
    splits = read_recipe(recipe({"word": word}, path="csv", data_files=files)).load()["d"]
    assert splits["train"][3]["file_name"] == str(tmp_path / "calls" / "train" / "3.wav")


def test_a_file_that_is_not_there_is_named(recipe, tmp_path, capsys):
    save(tmp_path, "csv")
    save_encoder(tmp_path / "encoder")
    (tmp_path / "calls" / "train" / "4.wav").unlink()
    assert main(["train", str(recipe(TASKS, path="calls"))]) == 2
    said = capsys.readouterr().err
    assert f"row 4 of the train data, column 'audio': there is no file '{tmp_path}/calls/train/4.wav'." in said


@pytest.mark.parametrize("decode", [True, False])
def test_a_stream_of_audio_columns_trains(decode, tmp_path, arguments):
    files = []
    for number, row in enumerate(recordings(12)):
        (tmp_path / f"{number}.wav").write_bytes(wav(row["audio"]["array"]))
        files.append({"audio": str(tmp_path / f"{number}.wav"), "text": row["text"]})
    rows = datasets.Dataset.from_list(files).cast_column("audio", datasets.Audio(decode=decode))
    rows.to_parquet(tmp_path / "rows.parquet")
    stream = datasets.load_dataset("parquet", data_files=str(tmp_path / "rows.parquet"), split="train", streaming=True)
    assert isinstance(stream.features["audio"], datasets.Audio)
    model = MultiTaskModel.from_backbone(
        save_encoder(tmp_path / "encoder"), tasks={"word": AutomaticSpeechRecognition(vocabulary=list("abc"))}
    )
    trainer = MultiTaskTrainer(model, arguments(sampling="uniform", max_steps=2, eval_strategy="no"), train_dataset={"word": stream}, processing_class=extractor())  # fmt: skip
    assert trainer.train().training_loss > 0
