"""Models that read recordings as an ONNX graph, against torch, whatever the batch and its padding."""

import json

import pytest
import torch
from parameters import few
from sounds import (
    FAMILIES,
    LETTERS,
    RATE,
    SPEAKERS,
    batch_of,
    extractor,
    recordings,
    save_encoder,
    save_frame_encoder,
    save_speecht5,
    save_whisper,
)
from transformers import AutoFeatureExtractor

from hf_multitask import AudioClassification, AutomaticSpeechRecognition, MultiTaskModel
from hf_multitask.modeling.speech import PAD

onnxruntime = pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")

GROUP = {"feat_extract_norm": "group", "do_stable_layer_norm": False}
VOCABULARY = [PAD, *LETTERS]
TYPES = {"input_values": torch.float32, "attention_mask": torch.int64}
ENCODERS = [(family, norm) for family in FAMILIES for norm in ("layer", "group")]


def tasks():
    return {
        "speaker": AudioClassification(label_names=list(SPEAKERS)),
        "text": AutomaticSpeechRecognition(vocabulary=VOCABULARY),
    }


def run(path, batch):
    """The outputs of a graph, by name."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    given = {value.name: batch[value.name].numpy() for value in session.get_inputs()}
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, map(torch.from_numpy, session.run(None, given)), strict=True))


def assert_agrees(path, model, batch):
    with torch.no_grad():
        expected = model(**batch, tasks=["speaker", "text"]).logits
    found = run(path, batch)
    assert list(found) == [f"{name}_logits" for name in expected]
    for name, own in expected.items():
        torch.testing.assert_close(found[f"{name}_logits"], own, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("family", "norm"), few(ENCODERS, [("wav2vec2", "group")]))  # fmt: skip
def test_one_graph_has_all_tasks_of_a_speech_encoder(family, norm, tmp_path):
    options = GROUP if norm == "group" else {}
    encoder = save_encoder(tmp_path / "encoder", family, num_hidden_layers=1, **options)
    model = MultiTaskModel.from_backbone(encoder, tasks=tasks()).train()
    path = model.export_onnx(tmp_path / "graph", extractor())
    assert model.training and AutoFeatureExtractor.from_pretrained(tmp_path / "graph").sampling_rate == RATE
    model.eval()
    rows = recordings(7)
    for own in (rows.select([0]), rows.select([1, 2]), rows):
        batch = {name: value.to(TYPES[name]) for name, value in batch_of(own).items()}
        assert bool(batch["attention_mask"].all()) == (len(own) == 1)
        assert_agrees(path, model, batch)
    described = onnxruntime.InferenceSession(str(path)).get_modelmeta().custom_metadata_map["tasks"]
    assert json.loads(described)["text"]["vocabulary"] == VOCABULARY


def test_a_graph_has_the_adapters_of_all_tasks(tmp_path):
    pytest.importorskip("peft", reason="the extra 'peft' is not installed")
    lora = {"r": 2, "init_lora_weights": False}
    encoder = save_encoder(tmp_path / "encoder", num_hidden_layers=1)
    model = MultiTaskModel.from_backbone(encoder, tasks=tasks(), lora=lora, task_lora=lora).eval()
    path = model.export_onnx(tmp_path / "graph")
    for rows in (recordings(1), recordings(5)):
        assert_agrees(path, model, {name: value.to(TYPES[name]) for name, value in batch_of(rows).items()})


def test_a_graph_reads_frames(tmp_path):
    model = MultiTaskModel.from_backbone(save_frame_encoder(tmp_path / "encoder"), tasks=tasks()).eval()
    path = model.export_onnx(tmp_path / "graph")
    generator = torch.Generator().manual_seed(3)
    for lengths in ((21,), (9, 30, 4)):
        mask = (torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)).long()
        features = torch.randn(*mask.shape, 32, generator=generator) * mask.unsqueeze(-1)
        assert_agrees(path, model, {"input_features": features, "attention_mask": mask})


def test_whisper_classifies_in_a_graph_and_writes_in_none(tmp_path):
    own = {"speaker": AudioClassification(label_names=list(SPEAKERS)), "text": AutomaticSpeechRecognition()}
    model = MultiTaskModel.from_backbone(save_whisper(tmp_path / "whisper"), tasks=own).eval()
    with pytest.raises(ValueError, match=r"^Task 'text' writes texts token by token \(automatic-speech-recognition\)"):
        model.export_onnx(tmp_path / "graph", tasks=["text"])
    path = model.export_onnx(tmp_path / "graph")
    features = torch.randn(3, 16, 100, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = model(input_features=features, tasks=["speaker"]).logits["speaker"]
    (found,) = run(path, {"input_features": features}).values()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_speecht5_is_refused(tmp_path):
    own = {"text": AutomaticSpeechRecognition()}
    model = MultiTaskModel.from_backbone(save_speecht5(tmp_path / "speecht5"), tasks=own)
    with pytest.raises(ValueError, match=r"^Task 'text' writes texts token by token"):
        model.export_onnx(tmp_path / "graph")


def test_a_graph_of_recordings_takes_no_tokenizer(tokenizer, tmp_path):
    model = MultiTaskModel.from_backbone(save_encoder(tmp_path / "encoder"), tasks=tasks())
    with pytest.raises(ValueError, match=r"^A task that reads audio needs a feature extractor"):
        model.export_onnx(tmp_path / "graph", tokenizer)
