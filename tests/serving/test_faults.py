"""Bad requests get the right status with the field at fault, and the server keeps running."""

import json
import socket
import threading

import pytest
from asking import wait
from reading import TEXT

from hf_multitask.serving import app, requests

BODY = {"inputs": TEXT}
NESTED = "[" * 5000 + "]" * 5000
BAD = {
    "no body": (b"", ["body"], "not JSON"),
    "garbage": (b"\x00\x01garbage", ["body"], "not JSON"),
    "half": (b'{"inputs": "A', ["body"], "not JSON"),
    "invalid UTF-8": (b'{"inputs": "\xff\xfe"}', ["body"], "not JSON in UTF-8"),
    "a surrogate": (b'{"inputs": "\\ud800"}', ["body"], "not JSON in UTF-8"),
    "nested": (f'{{"inputs": {NESTED}}}'.encode(), ["body"], "not JSON"),
    "no object": (b"[]", ["body"], "object"),
    "no inputs": (b"{}", ["body", "inputs"], "required"),
    "null": (b'{"inputs": null}', ["body", "inputs"], "An input should be"),
    "a number": (b'{"inputs": 7}', ["body", "inputs"], "7"),
    "a list of numbers": (b'{"inputs": ["A.", 7]}', ["body", "inputs", 1], "7"),
    "no text": (b'{"inputs": {"txt": "A."}}', ["body", "inputs"], "An input should be"),
    "another field": (json.dumps(BODY | {"task": "x"}).encode(), ["body", "task"], "not permitted"),
    "no task": (json.dumps(BODY | {"tasks": []}).encode(), ["body", "tasks"], "one task name or more"),
    "another task": (json.dumps(BODY | {"tasks": ["nerd"]}).encode(), ["body", "tasks"], "nerd"),
    "tasks by key": (
        json.dumps(BODY | {"parameters": {"tasks": {"sequence-classification": 1}}}).encode(),
        ["body", "parameters", "tasks"],
        "should be a list",
    ),
    "tasks of numbers": (json.dumps(BODY | {"tasks": [1]}).encode(), ["body", "tasks", 0], "string"),
    "a task that does not accept it": (
        json.dumps(BODY | {"tasks": ["question-answering"]}).encode(),
        ["body", "inputs"],
        "'question'",
    ),
    "parameters of another type": (json.dumps(BODY | {"parameters": 1}).encode(), ["body", "parameters"], "an object"),
    "another parameter": (
        json.dumps(BODY | {"parameters": {"top_k": 2}}).encode(),
        ["body", "parameters", "top_k"],
        "no parameter 'top_k'",
    ),
    "chunks": (
        json.dumps(BODY | {"parameters": {"chunk_length_s": -1}}).encode(),
        ["body", "parameters", "chunk_length_s"],
        "seconds",
    ),
    "code from elsewhere": (
        json.dumps(BODY | {"parameters": {"generate_kwargs": {"custom_generate": "me/code"}}}).encode(),
        ["body", "parameters", "generate_kwargs", "custom_generate"],
        "no argument 'custom_generate'",
    ),
    "too long an answer": (
        json.dumps(BODY | {"parameters": {"generate_kwargs": {"max_new_tokens": 10**9}}}).encode(),
        ["body", "parameters", "generate_kwargs", "max_new_tokens"],
        "between 1 and 1024",
    ),
    "nothing to write": (
        json.dumps(BODY | {"parameters": {"generate_kwargs": {"max_new_tokens": 3}}}).encode(),
        ["body", "parameters", "generate_kwargs"],
        "the model has none",
    ),
}


@pytest.fixture
def server(serve):
    return serve(max_queue=8)


def test_bad_bodies_name_the_field(server):
    expected = server.pipeline(TEXT)
    for name, (body, place, said) in BAD.items():
        status, content, _ = server.send("POST", "/predict", body)
        assert status == 422, (name, content)
        (problem,) = content["detail"]
        assert problem["loc"] == place and said in problem["msg"], (name, problem)
        assert len(problem["msg"]) <= 500
    assert list(server.ask(TEXT)) == list(expected)
    assert server.figure('hf_multitask_requests_total{status="422"}') == len(BAD)
    assert server.batcher.pending == 0


def test_other_paths_and_methods(server):
    assert server.get("/nothing")[0] == 404
    assert server.get("/predict")[0] == 405
    assert server.send("POST", "/tasks")[0] == 405
    assert [server.send("HEAD", path)[0] for path in ("/", "/health", "/ready")] == [200, 200, 200]


def test_what_is_too_large_is_refused(server, monkeypatch):
    ten = b'{"inputs": "' + b"A fine place. " * 750_000 + b'"}'
    assert server.send("POST", "/predict", ten)[0] == 413
    # In parts of unknown number, and larger than what is read to the end.
    assert server.send("POST", "/predict", iter([ten[: 1 << 20]] * 9))[0] == 413
    status, content, _ = server.send("POST", "/predict", json.dumps({"inputs": ["A.", "x" * 100_001]}))
    assert status == 413 and content["detail"][0]["loc"] == ["body", "inputs", 1]
    assert "at most 100000 characters. Found 100001" in content["detail"][0]["msg"]
    assert server.send("POST", "/predict", json.dumps({"inputs": ["A."] * 9}))[0] == 413
    monkeypatch.setattr(requests, "TOKENS", 200)
    status, content, _ = server.send("POST", "/predict", json.dumps({"inputs": TEXT * 40}))
    assert status == 413 and "at most 200 tokens" in content["detail"][0]["msg"]
    assert server.ask("") and server.batcher.pending == 0


def test_a_full_queue_says_when_to_come_back(server):
    server.pipeline.gate.clear()
    first = threading.Thread(target=server.ask, args=([TEXT] * 8,))
    first.start()
    wait(lambda: server.batcher.pending == 8)
    status, content, headers = server.send("POST", "/predict", json.dumps(BODY))
    assert status == 429 and int(headers["Retry-After"]) >= 1 and "Too many inputs" in content["detail"]
    assert server.figure("hf_multitask_queue") == 8
    server.pipeline.gate.set()
    first.join()
    assert server.ask(TEXT) and server.figure('hf_multitask_requests_total{status="429"}') == 1


def post(server, body, announced=None):
    """A connection that has sent a request, of which the body may not be whole."""
    connection = socket.create_connection(("127.0.0.1", server.port))
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {announced or len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    return connection


def test_inputs_of_a_client_that_is_gone_are_not_run(server):
    server.pipeline.gate.clear()
    first = threading.Thread(target=server.ask, args=(TEXT,))
    first.start()
    wait(lambda: server.batcher.pending == 1 and not any(job.waiting for job in server.batcher.jobs))
    post(server, json.dumps({"inputs": [TEXT] * 3}).encode()).close()
    wait(lambda: server.figure('hf_multitask_requests_total{status="499"}') == 1)
    wait(lambda: server.batcher.pending == 1)
    server.pipeline.gate.set()
    first.join()
    assert server.ask(TEXT) and server.pipeline.passes == [1, 1]


def test_a_client_that_goes_while_it_sends_leaves_nothing(server):
    post(server, b'{"inputs": "A', 1000).close()
    wait(lambda: server.figure('hf_multitask_requests_total{status="499"}') == 1)
    assert server.ask(TEXT) and server.batcher.pending == 0


def test_slow_clients_do_not_delay_others(server, monkeypatch):
    monkeypatch.setattr(app, "BODY_SECONDS", 0.5)
    slow = [post(server, b'{"inputs": "A', 1000) for _ in range(20)]
    assert server.ask(TEXT)
    for connection in slow:
        assert b" 408 " in connection.recv(1 << 16)
        connection.close()


def test_what_was_accepted_before_a_signal_is_answered(serve):
    server = serve(max_batch_size=2)
    server.pipeline.gate.clear()
    bodies, responses = [{"inputs": f"{TEXT} {number}"} for number in range(12)], []
    asking = threading.Thread(target=lambda: responses.extend(server.ask_all(bodies)))
    asking.start()
    wait(lambda: server.batcher.pending == 12)
    slow = post(server, b'{"inputs": "A', 1000)
    idle = socket.create_connection(("127.0.0.1", server.port))
    wait(lambda: len(server.server.server_state.connections) == 14)
    server.server.service.drain()
    assert server.get("/ready") == (503, {"status": "draining"}) and server.get("/health")[0] == 200
    status, _, headers = server.send("POST", "/predict", json.dumps(BODY))
    assert status == 503 and headers["Retry-After"]
    assert b" 503 " in slow.recv(1 << 16)  # whose body was never accepted
    server.terminate()
    server.pipeline.gate.set()
    asking.join(60)
    server.thread.join(60)
    assert not server.thread.is_alive() and [status for status, _, _ in responses] == [200] * 12
    slow.close()
    idle.close()


def test_a_token_is_needed_where_there_is_one(serve, capfd):
    server = serve(token="s3cret-token")
    body = json.dumps(BODY)
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic s3cret-token"}):
        status, _, answered = server.send("POST", "/predict", body, **headers)
        assert status == 401 and answered["WWW-Authenticate"] == "Bearer"
        assert [server.get(path, **headers)[0] for path in ("/tasks", "/metrics")] == [401, 401]
    own = {"Authorization": "Bearer s3cret-token"}
    assert server.send("POST", "/predict", body, **own)[0] == 200
    assert [server.get(path, **own)[0] for path in ("/tasks", "/metrics")] == [200, 200]
    assert [server.get(path)[0] for path in ("/health", "/ready", "/")] == [200, 200, 200]
    assert "s3cret" not in repr(server.server.service.settings)
    assert "s3cret" not in "".join(capfd.readouterr())
