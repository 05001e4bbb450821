"""One model, or one pipeline, in several threads at once: what a call needs is the call's own."""

import random
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Thread

import pytest
import torch
from adapting import BOTH, KINDS, batch, build_adapted, reading
from reading import INPUTS, TEXT, assert_same
from transformers import AutoTokenizer, pipeline

pytest.importorskip("peft", reason="the extra 'peft' is not installed")

THREADS = 8
CALLS = [12, pytest.param(250, marks=pytest.mark.slow)]  # of each thread
WRITING = {"gpt2": "text-generation", "t5": "translation"}


@pytest.fixture
def build(backbone_path):
    """A model in which some tasks have an adapter of their own, and the others share their rows."""

    def make(family="bert", **kwargs):
        own = {"task_lora": dict.fromkeys(KINDS[family][::2], BOTH["task_lora"])}
        return build_adapted(backbone_path(family), KINDS[family], **{"lora": BOTH["lora"], **own, **kwargs})

    return make


@pytest.fixture(autouse=True)
def impatient():
    """Threads take turns far more often than they do otherwise."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def assert_same_in_threads(calls, count, same):
    """Each of some calls gives in eight threads at once, in any order, what it gives alone."""
    expected = [call() for call in calls]
    start = Barrier(THREADS)

    def work(number):
        drawn = random.Random(number)
        start.wait()
        for _ in range(count):
            which = drawn.randrange(len(calls))
            same(calls[which](), expected[which])

    with ThreadPoolExecutor(THREADS) as pool:
        assert list(pool.map(work, range(THREADS))) == [None] * THREADS


def assert_same_tensors(one, other):
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=1e-5)


def detached(logits):
    return {name: value.detach() for name, value in logits.items()}


def subsets(kinds, drawn):
    return [list(kinds), *([kind] for kind in kinds), *(drawn.sample(kinds, 2) for _ in range(4))]


@pytest.mark.parametrize("count", CALLS)
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_forwards_do_not_mix(family, count, build):
    model, kinds, drawn = build(family), KINDS[family], random.Random(0)
    rows, labels = reading(kinds)

    def asking(tasks, inputs):
        return lambda: detached(model(**inputs, tasks=tasks).logits)

    def with_rows(tasks):
        given = {name: rows[name] for name in tasks}
        known = {name: labels[name] for name in tasks if name in labels}
        return lambda: detached(model(**batch(), task_rows=given, labels=known).logits)

    calls = [asking(tasks, batch(size, 4 + size)) for size, tasks in enumerate(subsets(kinds, drawn), 1)]
    calls += [with_rows(tasks) for tasks in subsets(kinds, drawn)]
    assert_same_in_threads(calls, count, assert_same_tensors)


@pytest.mark.parametrize("count", CALLS)
@pytest.mark.parametrize("family", WRITING)
def test_generation_does_not_mix_with_forwards(family, count, build):
    model, kind = build(family), WRITING[family]
    readers = [name for name in KINDS[family] if name not in WRITING.values()]

    def write(size):
        given = {**batch(size), "max_new_tokens": 4, "pad_token_id": 0}
        return lambda: {kind: model.generate(**given, task=kind)}

    def read(tasks):
        return lambda: detached(model(**batch(), tasks=tasks).logits)

    calls = [*(write(size) for size in (1, 2, 3)), *(read(tasks) for tasks in (readers, readers[:1], readers[1:]))]
    assert_same_in_threads(calls, max(count // 4, 3), assert_same_tensors)


@pytest.mark.parametrize("count", CALLS)
def test_pipelines_do_not_mix(count, build, backbone_path):
    kinds = KINDS["bert"]
    answers = pipeline("multitask", model=build(), tokenizer=AutoTokenizer.from_pretrained(backbone_path()))
    texts = [TEXT, "Short one.", "It was late. " * 9]
    asked = {kind: [INPUTS[kind]] for kind in INPUTS} | {kind: texts for kind in kinds if kind not in INPUTS}

    def asking(inputs, tasks):
        return lambda: answers(inputs, tasks=tasks, batch_size=2)

    calls = [asking(inputs, [kind]) for kind, inputs in asked.items()]
    calls += [asking(inputs, None) for inputs in ([TEXT, *INPUTS.values()], texts[::-1])]
    assert_same_in_threads(calls, count, assert_same)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("adapters_last", [False, True])
def test_a_backward_pass_in_another_thread_has_the_rows_of_the_forward(reentrant, adapters_last, build):
    def gradients(model):
        rows, labels = reading(KINDS["bert"])
        rows = {name: rows[name] for name in ("fill-mask", "sequence-classification")}
        labels = {"fill-mask": labels["fill-mask"], "sequence-classification": torch.tensor([1, 0])}
        loss = model.train()(**batch(), task_rows=rows, labels=labels).loss
        thread = Thread(target=loss.backward)
        thread.start()
        thread.join()
        return {name: one.grad for name, one in model.named_parameters() if one.grad is not None}

    model = build(dropout=0.0, lora=None, task_lora=None) if adapters_last else build(dropout=0.0)
    kwargs = {"use_reentrant": reentrant}
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)(kwargs)
    if adapters_last:
        torch.manual_seed(2)
        model.add_adapters(task_lora={"fill-mask": {"r": 2, "init_lora_weights": False}})
        model.add_adapters(task_lora={"sequence-classification": {"r": 2, "init_lora_weights": False}})
    if reentrant:
        model.enable_input_require_grads()
    again = gradients(model)
    for parameter in model.parameters():
        parameter.grad = None
    getattr(model, "activation_checkpointing_disable", model.gradient_checkpointing_disable)()
    whole = gradients(model)
    assert any(".lora_A.sequence-classification." in name for name in whole)
    assert_same_tensors(again, whole)
