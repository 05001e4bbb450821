"""What every kind of task has, for tasks on recordings: adapters, task gradients, ranks, diagnosis, TensorBoard."""

from pathlib import Path

import numpy as np
import pytest
import torch
from launch import start, torchrun
from safetensors.torch import load_file
from sounds import LETTERS, SPEAKERS, batch_of, extractor, recordings, save_encoder
from transformers import AutoModelForAudioClassification, AutoModelForCTC

from hf_multitask import (
    AudioClassification,
    AutomaticSpeechRecognition,
    MultiTaskModel,
    MultiTaskPipeline,
    MultiTaskTrainer,
)
from hf_multitask.modeling.speech import PAD
from hf_multitask.training.diagnosis.diagnosis import Diagnosis
from hf_multitask.training.diagnosis.trainer import DiagnosingTrainer

NAMES = {"speaker": list(SPEAKERS), "letter": list(LETTERS)}
MASKS = {"mask_time_prob": 0.3, "mask_time_length": 2, "mask_time_min_masks": 1, "mask_feature_prob": 0.1, "mask_feature_length": 4}  # fmt: skip
OWN = {"r": 3, "init_lora_weights": False}


def tasks():
    classes = {
        name: AudioClassification(dataset="tones", label_column=name, label_names=names)
        for name, names in NAMES.items()
    }
    return {**classes, "word": AutomaticSpeechRecognition(dataset="tones", vocabulary=[PAD, *LETTERS])}


@pytest.fixture
def train(tmp_path, arguments):
    """A trainer on recordings, trained unless ``steps`` is 0; what begins with ``model_`` is the model's."""

    def run(steps=3, *, resume=None, model=None, init=None, **kwargs):
        own = {key[6:]: kwargs.pop(key) for key in list(kwargs) if key.startswith("model_")}
        if model is None:
            path = save_encoder(tmp_path / "encoder", **own.pop("options", {}))
            torch.manual_seed(1)
            model = MultiTaskModel.from_backbone(path, tasks=tasks(), **own)
        trainer = MultiTaskTrainer(
            model,
            arguments(max_steps=steps or 3, **kwargs),
            train_dataset={"tones": recordings(24)},
            eval_dataset={"tones": recordings(12, seed=1)},
            processing_class=extractor(),
        )
        if steps:
            trainer.train(resume_from_checkpoint=resume)
        return trainer

    return run


ADAPTERS = {
    "shared": {"model_lora": {"r": 2}},
    "own": {"model_task_lora": OWN},
    "both": {"model_lora": {"r": 2}, "model_task_lora": {"speaker": OWN}},
}


@pytest.mark.parametrize("adapters", ADAPTERS)
def test_adapters_train_alone_resume_and_export(adapters, train, tmp_path):
    common = {**ADAPTERS[adapters], "model_options": MASKS, "save_strategy": "steps", "save_steps": 2}
    alone = train(0, output_dir=str(tmp_path / "alone"), **common)
    frozen = {name: one.clone() for name, one in alone.model.backbone.named_parameters() if not one.requires_grad}
    moving = {name: one.clone() for name, one in alone.model.backbone.named_parameters() if one.requires_grad}
    assert len(frozen) > 20 and moving and all("lora" in name for name in moving)
    alone.args.max_steps = 4
    alone.train()
    after = dict(alone.model.backbone.named_parameters())
    assert all(torch.equal(after[name], one) for name, one in frozen.items())
    assert any(not torch.equal(after[name], one) for name, one in moving.items())
    resumed = train(4, output_dir=str(tmp_path / "again"), resume=str(tmp_path / "alone" / "checkpoint-2"), **common)
    for name, one in resumed.model.state_dict().items():
        assert torch.equal(one, alone.model.state_dict()[name]), name
    batch = batch_of(recordings(3))
    alone.save_model(str(tmp_path / "saved"))
    loaded = MultiTaskModel.from_pretrained(tmp_path / "saved").eval()
    with torch.no_grad():
        expected, found = alone.model.eval()(**batch).logits, loaded(**batch).logits
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6)
        loaded.export_task("speaker", tmp_path / "speaker", extractor())
        stock = AutoModelForAudioClassification.from_pretrained(tmp_path / "speaker").eval()
        torch.testing.assert_close(stock(**batch).logits, expected["speaker"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", [{}, MASKS, {"feat_extract_norm": "group", "do_stable_layer_norm": False}], ids=["layer", "masks", "group"])  # fmt: skip
def test_the_gradients_of_tasks_are_those_of_each_alone(options, train):
    trainer = train(0, model_options=options, model_dtype=torch.float64, aggregation="mean")
    gathered = {}
    model = trainer.model

    def alone(batches):
        for name in model.config.task_names:
            model.zero_grad()
            counts = sum(len(part["labels"].get(name, ())) for batch in batches for part in batch["forwards"])
            for batch in batches:
                for part in batch["forwards"]:
                    if name in part["labels"]:
                        one = {**part, "task_rows": {name: part["task_rows"][name]}, "labels": {name: part["labels"][name]}}  # fmt: skip
                        model.train()(**one, num_items_in_batch={name: torch.tensor(counts)}).loss.backward()
            gathered[name] = {key: value.grad.clone() for key, value in model.backbone.named_parameters() if value.grad is not None}  # fmt: skip

    loader = trainer.get_train_dataloader()
    alone([next(iter(loader))])
    begun = {key: value.clone() for key, value in model.state_dict().items()}
    step = train(1, model=model, aggregation="mean", optim="sgd", learning_rate=1.0, lr_scheduler_type="constant", max_grad_norm=0.0)  # fmt: skip
    after = step.model.backbone.state_dict()
    for key in gathered["word"]:
        mean = torch.stack([gathered[name].get(key, torch.zeros_like(after[key])) for name in gathered]).mean(0)
        torch.testing.assert_close(begun[f"backbone.{key}"] - after[key], mean, rtol=0, atol=1e-6, msg=key)


def test_task_models_become_one(train, tmp_path):
    trainer = train(2)
    for name in ("speaker", "word"):
        trainer.model.export_task(name, tmp_path / name, extractor())
    folders = {"who": str(tmp_path / "speaker"), "what": str(tmp_path / "word")}
    model = MultiTaskModel.from_task_models(folders, backbone="who")
    assert model.config.task("what")["vocabulary"] == [PAD, *LETTERS]
    (tmp_path / "word" / "vocab.json").unlink()
    with pytest.raises(ValueError, match=r"^Task 'what': Wav2Vec2ForCTC has 4 outputs, and `vocabulary` has 0 symbols"):
        MultiTaskModel.from_task_models(folders, backbone="who")
    own = {"what": AutomaticSpeechRecognition(vocabulary=[PAD, *LETTERS])}
    model = MultiTaskModel.from_task_models(folders, backbone="who", tasks=own).eval()
    assert model.config.task("who")["type"] == "audio-classification"
    assert model.config.task("who")["label_names"] == list(SPEAKERS)
    assert model.config.task("what")["vocabulary"] == [PAD, *LETTERS]
    batch = batch_of(recordings(3))
    with torch.no_grad():
        logits = model(**batch).logits
        who = AutoModelForAudioClassification.from_pretrained(tmp_path / "speaker").eval()(**batch).logits
        what = AutoModelForCTC.from_pretrained(tmp_path / "word").eval()(**batch).logits
    assert torch.equal(logits["who"], who)
    there = logits["what"][..., 1:].amax(-1) > -1e3
    assert torch.equal(logits["what"][there], what[there])
    assert set(MultiTaskPipeline(model=model, feature_extractor=extractor())(recordings(1)[0]["audio"])) == {"who", "what"}  # fmt: skip


def test_figures_reach_tensorboard(train, tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train(2, report_to="tensorboard", eval_strategy="epoch")
    (file,) = (tmp_path / "out").rglob("events.out.tfevents.*")
    events = reader.EventAccumulator(str(file))
    events.Reload()
    found = set(events.Tags()["scalars"])
    assert {"train/word_loss", "train/speaker_loss", "eval/word_wer", "eval/speaker_accuracy"} <= found


def test_a_diagnosis_compares_tasks_on_recordings(tmp_path, arguments):
    path = save_encoder(tmp_path / "encoder", **MASKS)
    trainer = DiagnosingTrainer(
        args=arguments(max_steps=3),
        model_init=lambda: MultiTaskModel.from_backbone(path, tasks=tasks()),
        train_dataset={"tones": recordings(24)},
        eval_dataset={"tones": recordings(12, seed=1)},
        processing_class=extractor(),
    )
    report = Diagnosis(trainer, {}, parts=["cosines", "affinity", "single"], measured_steps=2).run()
    assert not report["failed"] and not report["left_out"]
    for name in tasks():
        assert report["cosines"]["mean"][name][name] == pytest.approx(1, abs=1e-6)
    assert "affinity" in report and "single" in report


RANKS = """
import sys
import torch
from sounds import extractor, recordings, save_encoder
from test_speech_extras import MASKS, tasks
from hf_multitask import MultiTaskModel, MultiTaskTrainer, MultiTaskTrainingArguments

out, batch, encoder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
torch.manual_seed(1)
model = MultiTaskModel.from_backbone(encoder, tasks=tasks(), dtype=torch.float64)
args = MultiTaskTrainingArguments(out, use_cpu=True, max_steps=3, per_device_train_batch_size=batch, optim="sgd",
    learning_rate=0.1, report_to="none", save_strategy="no", disable_tqdm=True)
trainer = MultiTaskTrainer(model, args, train_dataset={"tones": recordings(24)}, processing_class=extractor())
trainer.train()
trainer.save_model(out)
"""


@pytest.mark.slow
@pytest.mark.process
def test_two_ranks_are_one_process(tmp_path):
    encoder = save_encoder(tmp_path / "encoder", **MASKS)
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    paths = f"{Path(__file__).parent}:{Path(__file__).parent.parent}:{Path(__file__).parent.parent.parent}"
    for ranks, batch in ((1, 8), (2, 4)):
        done = start(torchrun(ranks, str(script), str(tmp_path / str(ranks)), str(batch), encoder), PYTHONPATH=paths)
        assert done.returncode == 0, done.stderr[-2000:]
    one, two = (load_file(tmp_path / str(ranks) / "model.safetensors") for ranks in (1, 2))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-9, msg=name)
    assert np.isfinite(sum(float(value.abs().sum()) for value in one.values()))
