"""What docs/speech.md says is run, block by block, on tiny models in the place of those that it names."""

import gc
import json
import re

import numpy as np
import pytest
import yaml
from pages import DOCS
from sounds import SPEAKERS, WIDE, extractor, recordings, save_encoder, save_whisper, wav
from tiny import save_backbone
from transformers import AutoTokenizer, GenerationConfig

from hf_multitask import (
    AudioClassification,
    AutomaticSpeechRecognition,
    MultiTaskModel,
    MultiTaskTrainer,
    MultiTaskTrainingArguments,
)
from hf_multitask.cli import main
from hf_multitask.modeling.subsampler import DEFAULTS

PAGE = (DOCS / "speech.md").read_text(encoding="utf-8")
QUICK = "--max_steps=1 --save_strategy=no --report_to=none --use_cpu=true --disable_tqdm=true"


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Backbones under the names of the page, and the files that it reads, to stand in."""
    monkeypatch.chdir(tmp_path)
    whisper = save_whisper(tmp_path / "openai" / "whisper-tiny")
    number = AutoTokenizer.from_pretrained(whisper).convert_tokens_to_ids
    settings = GenerationConfig.from_pretrained(whisper)
    settings.is_multilingual, settings.no_timestamps_token_id = True, number("<|notimestamps|>")
    settings.lang_to_id, settings.task_to_id = {"<|en|>": number("<|en|>")}, {"transcribe": number("<|transcribe|>")}
    settings._from_model_config = False
    settings.save_pretrained(whisper)
    save_backbone("bart", tmp_path / "facebook" / "bart-base")
    (tmp_path / "calls").mkdir()
    (row,) = blocks("json")
    calls = []
    for place, one in enumerate(recordings(6, rate=WIDE), 1):
        (tmp_path / "calls" / f"{place}.wav").write_bytes(wav(one["audio"]["array"], WIDE))
        calls.append(
            {**json.loads(row), "audio": f"calls/{place}.wav", "text": one["text"], "mood": SPEAKERS[place % 2]}
        )
    table = [f"{place}.wav,{one['text']},{one['mood']}" for place, one in enumerate(calls, 1)]
    (tmp_path / "calls" / "metadata.csv").write_text("\n".join(["file_name,text,mood", *table]) + "\n")
    sentences = [{"en": f"a small dog {number}", "de": f"ein kleiner Hund {number}"} for number in range(6)]
    for name, rows in (("calls", calls), ("sentences", sentences)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    return tmp_path


@pytest.mark.trainer
def test_python_blocks_and_the_recipe_run(folder):
    first, asked, joint, mixed, *_ = blocks("python")
    (recipe,) = blocks("yaml")
    (folder / "recipe.yaml").write_text(recipe)
    names = {}
    quick = 'num_train_epochs=3, max_steps=1, report_to="none", use_cpu=True'
    exec(compile(first.replace("num_train_epochs=3", quick), "docs/speech.md", "exec"), names)
    exec(compile(asked, "docs/speech.md", "exec"), names)
    assert names["answer"]["transcript"].keys() == {"text"} and names["answer"]["mood"]["label"] in SPEAKERS
    assert json.loads((folder / "stock" / "config.json").read_text())["architectures"] == [
        "WhisperForConditionalGeneration"
    ]
    exec(compile(joint, "docs/speech.md", "exec"), names)
    settings = yaml.safe_load(recipe)["model"]["subsampler"]
    assert names["model"].config.subsampler == {**DEFAULTS, **settings}
    assert main(["train", "recipe.yaml", *QUICK.split()]) == 0
    assert json.loads((folder / "joint" / "config.json").read_text())["subsampler"] == {**DEFAULTS, **settings}
    exec(compile(mixed, "docs/speech.md", "exec"), names)
    assert [list(answer) for answer in names["answers"]] == [["translation"], ["transcript"]]


@pytest.mark.trainer
@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")
def test_a_folder_trains_as_a_table_and_as_a_stream(folder):
    names = {}
    exec(compile(blocks("python")[-3], "docs/speech.md", "exec"), names)
    backbone = save_encoder("encoder")
    for rows, sampling in ((names["calls"], "proportional"), (names["stream"], "uniform")):
        tasks = {"transcript": AutomaticSpeechRecognition(dataset="calls", vocabulary=list("abc"))}
        trainer = MultiTaskTrainer(
            MultiTaskModel.from_backbone(backbone, tasks=tasks),
            MultiTaskTrainingArguments(
                "out",
                max_steps=1,
                sampling=sampling,
                report_to="none",
                use_cpu=True,
                disable_tqdm=True,
                save_strategy="no",
            ),
            train_dataset={"calls": rows},
            processing_class=extractor(),
        )
        assert np.isfinite(trainer.train().training_loss) and trainer.engine.tally.seen
    gc.collect()  # the builder of datasets leaves metadata.csv open


def test_the_settings_are_those_of_the_subsampler():
    table = re.findall(r"^\| `(\w+)` \| `?([^|`]+)`? \|", PAGE, flags=re.MULTILINE)
    assert {name: json.loads(value) for name, value in table if name in DEFAULTS} == DEFAULTS
    seconds = int(re.search(r"1,024 positions of BART that is (\d+) seconds", PAGE)[1])
    assert seconds == 1024 * int(np.prod(DEFAULTS["strides"])) // 100 + (1024 * 4 % 100 > 50)


def test_the_checkpoint_of_the_page_brings_its_head(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    vocabulary = ["<pad>", "<s>", "</s>", "<unk>", " ", "E", "T"]
    tasks = {"transcript": AutomaticSpeechRecognition(vocabulary=vocabulary)}
    model = MultiTaskModel.from_backbone(save_encoder("encoder"), tasks=tasks)
    model.export_task("transcript", "facebook/wav2vec2-base-960h", extractor())
    names = {"MultiTaskModel": MultiTaskModel, "AudioClassification": AudioClassification}
    exec(compile(blocks("python")[-2], "docs/speech.md", "exec"), names)
    assert names["model"].config.task("transcript")["vocabulary"] == vocabulary
    assert names["model"].config.task_names == ["transcript", "mood"]


def test_the_graph_of_the_page_runs(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")
    monkeypatch.chdir(tmp_path)
    tasks = {
        "speaker": AudioClassification(label_names=list(SPEAKERS)),
        "transcript": AutomaticSpeechRecognition(vocabulary=["<pad>", "a", "b"]),
    }
    MultiTaskModel.from_backbone(save_encoder("encoder"), tasks=tasks).save_pretrained("digits")
    extractor().save_pretrained("digits")
    waves = [np.asarray(row["audio"]["array"], np.float32) for row in recordings(3)]
    names = {"waves": waves, "MultiTaskModel": MultiTaskModel}
    exec(compile(blocks("python")[-1], "docs/speech.md", "exec"), names)
    assert names["speaker"].shape == (3, 2) and names["transcript"].shape[::2] == (3, 3)
