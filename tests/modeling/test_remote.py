"""What is saved runs where the package is not installed: every type of task, to the bit, and from there once more."""

import inspect
import json

import pytest
import torch
from processes import BLOCK, REFUSED, run
from reading import INPUTS, TASKS, TEXT
from transformers import AutoModel, AutoTokenizer, pipeline

from hf_multitask.modeling.head_types import HEADS
from hf_multitask.training.preparation import ensure_pad_token


def read(model, tokenizer, text):
    """The logits of every task; where a task reads a target, of the text itself."""
    batch = dict(tokenizer(text, return_tensors="pt"))
    writes = [name for name in model.config.task_names if model.heads[name].writes]
    with torch.no_grad():
        logits = model(**batch, labels=dict.fromkeys(writes, batch["input_ids"]) or None).logits
    assert list(logits) == model.config.task_names
    return {name: value.tolist() for name, value in logits.items()}


def aligned(model):
    """The model, its weights laid where torch lays them: those of a file lie anywhere, and kernels round as they lie."""
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()
    return model


LOAD = (
    BLOCK
    + "import torch\n"
    + inspect.getsource(read)
    + inspect.getsource(aligned)
    + """
import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer, pipeline

asked, *folders = json.loads(sys.argv[1])
found = []
for folder in folders:
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    model = aligned(AutoModel.from_pretrained(folder, trust_remote_code=True))
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    assert config.__module__.startswith("transformers_modules") and config.task_names == model.config.task_names
    ask = pipeline("multitask", folder, trust_remote_code=True)
    aligned(ask.model)
    answers = [ask(one) for one in asked[folder]]
    model.save_pretrained(folder + "-again")
    tokenizer.save_pretrained(folder + "-again")
    again = pipeline("multitask", folder + "-again", trust_remote_code=True)
    aligned(again.model)
    found.append([read(model, tokenizer, asked[folder][0]), answers, [again(one) for one in asked[folder]]])
print(json.dumps(found))
"""
)
READERS = (
    "sequence-classification",
    "token-classification",
    "question-answering",
    "multiple-choice",
    "sentence-similarity",
)
MODELS = {
    "bert": (*READERS, "fill-mask"),
    "gpt2": ("text-generation", "sequence-classification"),
    "bart": ("translation", "summarization", "text2text-generation", "question-answering"),
    "t5": ("summarization", "sequence-classification"),
}


@pytest.fixture
def saved(build_model, backbone_path, tmp_path):
    """Folders with a saved model each, together of all types; by folder, what it is asked."""
    asked = {}
    for family, kinds in MODELS.items():
        folder = str(tmp_path / family)
        model = build_model(family, tasks={kind: TASKS[kind]() for kind in kinds})
        tokenizer = AutoTokenizer.from_pretrained(backbone_path(family))
        ensure_pad_token(tokenizer)
        model.set_pad_token_id(tokenizer.pad_token_id)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        asked[folder] = [TEXT, *(INPUTS[kind] for kind in kinds if kind in INPUTS)]
    assert {kind for kinds in MODELS.values() for kind in kinds} == set(TASKS) == set(HEADS)
    return asked


def test_every_type_runs_without_the_package_and_is_saved_from_there(saved):
    expected = []
    for folder, inputs in saved.items():
        logits = read(aligned(AutoModel.from_pretrained(folder)), AutoTokenizer.from_pretrained(folder), inputs[0])
        ask = pipeline("multitask", folder)
        aligned(ask.model)
        answers = [ask(one) for one in inputs]
        assert {name for answer in answers for name in answer} == set(logits)
        expected.append(json.loads(json.dumps([logits, answers, answers])))
    assert run(LOAD, json.dumps([saved, *saved])) == expected
    for folder, (_, answers, _), inputs in zip(saved, expected, saved.values()):
        again = pipeline("multitask", folder + "-again")
        aligned(again.model)
        assert json.loads(json.dumps([again(one) for one in inputs])) == answers
        one, other = (AutoModel.from_pretrained(path).state_dict() for path in (folder, folder + "-again"))
        assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_without_the_package_and_without_trust_transformers_says_so(build_model, tmp_path):
    build_model().save_pretrained(tmp_path)
    assert "trust_remote_code=True" in run(REFUSED, str(tmp_path))
