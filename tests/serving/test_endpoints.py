"""What the server says of itself, and its page."""

import json
import re

from reading import TEXT

from hf_multitask.serving.app import PAGE
from hf_multitask.serving.requests import GENERATION, PARAMETERS


def test_tasks_are_described(serve):
    status, content = serve().get("/tasks")
    assert status == 200 and content["model"] == "out"
    assert content["tasks"]["sequence-classification"] == {
        "type": "sequence-classification",
        "label_names": ["negative", "positive"],
        "takes": "single texts",
        "keys": ["text"],
    }
    assert content["tasks"]["question-answering"]["keys"] == ["question", "context"]


def test_figures_are_counted(serve):
    server = serve()
    server.ask([TEXT, TEXT], tasks=["token-classification"])
    server.ask(TEXT, tasks=["token-classification", "sequence-classification"])
    assert server.figure('hf_multitask_requests_total{status="200"}') == 2
    assert server.figure('hf_multitask_request_seconds_count{task="token-classification"}') == 2
    assert server.figure('hf_multitask_request_seconds_count{task="sequence-classification"}') == 1
    assert server.figure("hf_multitask_batch_size_sum") == 3
    assert server.figure("hf_multitask_queue") == 0


def test_the_interface_is_described(serve):
    server = serve()
    status, content = server.get("/openapi.json")
    assert status == 200 and set(content["paths"]) == {"/health", "/ready", "/tasks", "/metrics", "/predict"}
    (schema,) = [one["schema"] for one in content["paths"]["/predict"]["post"]["requestBody"]["content"].values()]
    assert set(schema["properties"]) == {"inputs", "tasks", "parameters"} and schema["required"] == ["inputs"]
    assert all(name in json.dumps(schema) for name in (*GENERATION, *PARAMETERS))
    assert server.get("/docs")[0] == 200


def test_the_page_needs_nothing_from_elsewhere(serve):
    status, content, headers = serve().send("GET", "/")
    text = content.decode()
    assert status == 200 and text == PAGE.read_text(encoding="utf-8")
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert not re.search(r"https?://|src=|@import|innerHTML|insertAdjacentHTML|document\.write|eval\(", text)
