"""What the server answers is what the pipeline answers, whatever other clients ask."""

import json
import threading

import pytest
from asking import Running
from reading import INPUTS, TEXT, assert_same
from tiny import read_rows

from hf_multitask.serving import batching

MIXED = [TEXT, "", {"text": TEXT, "text_pair": "A place."}, ["A", "fine", "place."], *INPUTS.values()]


def test_inputs_of_all_kinds_are_answered_as_by_the_pipeline(serve):
    server = serve()
    expected = server.pipeline(MIXED)
    assert_same(server.ask(MIXED), expected)
    for value, answer in zip(MIXED, expected):
        if not isinstance(value, list):  # which is a list of inputs, as it is to the pipeline
            assert_same(server.ask(value), answer)
    assert server.ask([]) == []
    assert_same(server.ask(TEXT, tasks=["token-classification"]), server.pipeline(TEXT, tasks=["token-classification"]))
    only = {"tasks": "sequence-classification"}
    assert_same(server.ask([TEXT], parameters=only), server.pipeline([TEXT], **only))


def test_clients_at_once_get_their_own_answers(serve):
    server = serve(max_wait_ms=20)
    texts = [row["text"] for row in read_rows("sentiment", "test", 60)]
    names = ["sequence-classification", "token-classification"]
    bodies = [{"inputs": texts[place], "tasks": names[: 1 + place % 2]} for place in range(60)]
    bodies += [{"inputs": texts[place : place + 3]} for place in range(0, 60, 6)]
    expected = [server.pipeline(body["inputs"], tasks=body.get("tasks", names)) for body in bodies]
    server.pipeline.passes.clear()
    for (status, answer, _), body, own in zip(server.ask_all(bodies), bodies, expected):
        assert status == 200
        answers = answer if isinstance(body["inputs"], list) else [answer]
        own = own if isinstance(body["inputs"], list) else [own]
        for one, other in zip(answers, own, strict=True):
            assert_same({name: one[name] for name in other}, other)
    assert sum(server.pipeline.passes) == 90 and len(server.pipeline.passes) < 30
    assert server.figure("hf_multitask_batch_size_sum") == 90
    assert server.batcher.pending == 0


def test_tasks_of_several_clients_share_one_pass_of_the_backbone(serve, build_pipeline):
    server = serve(build_pipeline(READ := ("sequence-classification", "token-classification")), max_wait_ms=500)
    server.pipeline.gate.clear()
    passes = []
    server.pipeline.model.backbone.register_forward_hook(lambda _, __, output: passes.append(len(output[0])))
    bodies = [{"inputs": text, "tasks": [READ[number % 2]]} for number, text in enumerate(("A place.", "No.", "So."))]
    with_gate = threading.Timer(1.5, server.pipeline.gate.set)
    with_gate.start()
    answers = [answer for _, answer, _ in server.ask_all(bodies)]
    assert [list(answer) for answer in answers] == [body["tasks"] for body in bodies]
    assert passes == [3] and server.pipeline.passes == [3]


def test_texts_are_written_with_the_parameters_of_each_client(serve, build_pipeline):
    pytest.importorskip("sacrebleu", reason="the extra 'generation' is not installed")
    server = serve(build_pipeline(("translation", "sequence-classification"), "t5"), max_wait_ms=200)
    short, long = {"max_new_tokens": 2}, {"max_new_tokens": 9, "num_beams": 2}
    bodies = [{"inputs": TEXT, "parameters": {"generate_kwargs": one}} for one in (short, long)]
    bodies.append({"inputs": TEXT, "tasks": ["sequence-classification"]})
    expected = [server.pipeline(TEXT, generate_kwargs=one) for one in (short, long)]
    expected.append(server.pipeline(TEXT, tasks=["sequence-classification"]))
    assert_same([answer for _, answer, _ in server.ask_all(bodies)], expected)
    assert len(server.pipeline.passes) == 2  # the third joins one of the others


def test_passes_are_within_the_limits(serve, monkeypatch):
    monkeypatch.setattr(batching, "TOKENS", 160)
    server = serve(max_wait_ms=20, max_batch_size=4)
    texts = [row["text"] for row in read_rows("sentiment", "test", 24)]
    names, sizes = ["sequence-classification"], []
    expected = server.pipeline(texts, tasks=names)
    backbone = server.pipeline.model.backbone.base_model
    backbone.register_forward_pre_hook(
        lambda _, __, given: sizes.append(given["attention_mask"].shape), with_kwargs=True
    )
    assert_same(server.ask(texts, tasks=names), expected)
    assert sum(server.pipeline.passes) == 24 and max(server.pipeline.passes) == 4
    assert max(rows * length for rows, length in sizes) <= 160 and len(sizes) > 6
    assert server.figure("hf_multitask_batch_tokens_sum") == sum(rows * length for rows, length in sizes)


def test_a_large_request_does_not_delay_a_small_one(serve):
    server = serve(max_batch_size=2, max_wait_ms=0)
    server.pipeline.gate.clear()
    order, texts = [], [row["text"] for row in read_rows("sentiment", "test", 24)]

    def ask(name, inputs):
        server.ask(inputs, tasks=["sequence-classification"])
        order.append(name)

    threads = [threading.Thread(target=ask, args=one) for one in (("large", texts), ("small", texts[:1]))]
    for count, thread in zip((24, 25), threads):
        thread.start()
        while server.batcher.pending < count:
            pass
    server.pipeline.gate.set()
    for thread in threads:
        thread.join()
    assert order == ["small", "large"]


def test_an_input_that_fails_in_the_model_fails_alone(build_pipeline, serve):
    server = serve(build_pipeline(("sequence-classification",)), max_wait_ms=300)
    bad, inner = "This one fails.", type(server.pipeline)._forward

    def fail(inputs, **kwargs):
        if any(reading["sequence-classification"].rest[0] == bad for reading in inputs["readings"]):
            raise RuntimeError(f"The kernel failed on {bad}")
        return inner(server.pipeline, inputs, **kwargs)

    server.pipeline._forward = fail
    responses = server.ask_all([{"inputs": text} for text in ("A place.", bad, "So.")])
    assert [status for status, _, _ in responses] == [200, 500, 200]
    assert bad not in json.dumps(responses[1][1])
    assert server.figure('hf_multitask_requests_total{status="500"}') == 1


def test_tasks_that_are_served_limit_those_of_a_request(build_pipeline):
    kinds = ("sequence-classification", "token-classification", "question-answering")
    server = Running(build_pipeline(kinds, tasks=list(kinds[1:])))
    try:
        assert list(server.get("/tasks")[1]["tasks"]) == list(kinds[1:])
        assert list(server.ask(TEXT)) == ["token-classification"]
        status, content, _ = server.send("POST", "/predict", json.dumps({"inputs": TEXT, "tasks": [kinds[0]]}))
        assert status == 422 and content["detail"][0]["loc"] == ["body", "tasks"]
        assert "'sequence-classification' is not served here" in content["detail"][0]["msg"]
        status, content, _ = server.send("POST", "/predict", json.dumps({"inputs": {"text": TEXT, "text_pair": "A."}}))
        assert status == 422 and content["detail"][0]["loc"] == ["body", "inputs"]
    finally:
        server.close()


@pytest.mark.slow
def test_onnx_runtime_gives_the_same_answers(serve, build_pipeline):
    pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")
    from hf_multitask.serving.graph import run_by_graph

    pipeline = build_pipeline()
    inputs = [*MIXED, TEXT * 20]  # of several windows
    expected = pipeline(inputs)
    run_by_graph(pipeline)
    assert all(weight.is_meta for weight in pipeline.model.backbone.parameters())
    server = serve(pipeline, max_wait_ms=20)
    assert_same(server.ask(inputs), expected)
    assert_same(
        [answer for _, answer, _ in server.ask_all([{"inputs": value} for value in inputs if value != inputs[3]])],
        [answer for value, answer in zip(inputs, expected) if value != inputs[3]],
    )
