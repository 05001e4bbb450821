"""Recordings come in base64 or as samples, and a client cannot name a file of the server."""

import base64
import json

import pytest
from asking import Gated
from reading import assert_same
from sounds import SPEAKERS, extractor, recordings, save_encoder, wav

from hf_multitask import AudioClassification, MultiTaskModel

pytest.importorskip("soundfile", reason="the extra 'speech' is not installed")


@pytest.fixture
def server(tmp_path, serve):
    tasks = {"speaker": AudioClassification(label_names=list(SPEAKERS))}
    model = MultiTaskModel.from_backbone(save_encoder(tmp_path / "encoder"), tasks=tasks, branches="none").eval()
    return serve(Gated(model=model, feature_extractor=extractor()), max_wait_ms=20)


def test_files_in_base64_and_samples_are_answered_as_by_the_pipeline(server):
    (row,) = recordings(1)
    file = wav(row["audio"]["array"])
    text = base64.b64encode(file).decode()
    assert_same(server.ask(text), server.pipeline(file))
    assert_same(server.ask([{"audio": {"bytes": text}}, {"bytes": text}, {"audio": text}]), server.pipeline([file] * 3))
    assert_same(server.ask([row["audio"], {"audio": row["audio"]}]), server.pipeline([row["audio"]] * 2))


def test_files_of_the_server_are_not_read(server, tmp_path):
    path = tmp_path / "secret.wav"
    path.write_bytes(wav(recordings(1)[0]["audio"]["array"]))
    inputs = [str(path), {"path": str(path)}, {"audio": str(path)}, {"audio": {"path": str(path)}}]
    inputs += [{"bytes": str(path)}, {"audio": {"bytes": None, "path": str(path)}}, "", "AAAA", {"array": ["x"]}]
    for value in inputs:
        status, content, _ = server.send("POST", "/predict", json.dumps({"inputs": value}))
        assert status == 422 and content["detail"][0]["loc"][:2] == ["body", "inputs"], value
    assert server.batcher.pending == 0
