"""What is saved runs where the package is not installed: every type of task, to the bit, and from there once more."""

import json

import pytest
import torch
from processes import BLOCK, REFUSED, run
from reading import INPUTS, TASKS, TEXT
from transformers import AutoModel, AutoTokenizer

from hf_multitask import SentenceSimilarity
from hf_multitask.modeling.kinds import KINDS
from hf_multitask.modeling.readers import TEXTS
from hf_multitask.training.preparation.processors import ensure_pad_token

READ = """
import importlib.util, json, sys
import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer, pipeline


def aligned(model):
    # Weights laid where torch lays them: those of a file lie anywhere, and kernels round as they lie.
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()
    return model


def read(model, tokenizer, text):
    # The logits of every task; where a task reads a target, of the text itself.
    batch = dict(tokenizer(text, return_tensors="pt"))
    writes = [name for name in model.config.task_names if model.heads[name].writes]
    with torch.no_grad():
        logits = model(**batch, labels=dict.fromkeys(writes, batch["input_ids"]) or None).logits
    assert list(logits) == model.config.task_names
    return {name: value.tolist() for name, value in logits.items()}


trust = "hf_multitask" not in sys.modules
asked, *folders = json.loads(sys.argv[1])
found = []
for folder in folders:
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust)
    model = aligned(AutoModel.from_pretrained(folder, trust_remote_code=trust))
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)
    assert config.__module__.startswith("transformers_modules") == trust and config.task_names == model.config.task_names
    ask = pipeline("multitask", folder, trust_remote_code=trust)
    aligned(ask.model)
    found.append([read(model, tokenizer, asked[folder][0]), [ask(one) for one in asked[folder]]])
    spec = importlib.util.spec_from_file_location("handler", folder + "/handler.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    handler = module.EndpointHandler(folder)
    aligned(handler.pipeline.model)
    assert json.loads(json.dumps([handler({"inputs": one}) for one in asked[folder]])) == found[-1][1]
    if trust:
        model.save_pretrained(folder + "-again")
        tokenizer.save_pretrained(folder + "-again")
print(json.dumps(found))
"""
# One thread, and MKL's kernels chosen by nothing but the processor: two processes then compute the same bits.
SAME_BITS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "MKL_CBWR": "COMPATIBLE"}
READERS = (
    "sequence-classification",
    "token-classification",
    "span-classification",
    "question-answering",
    "multiple-choice",
    "sentence-similarity",
    "dependency-parsing",
)
MODELS = {
    "bert": (*READERS, "fill-mask"),
    "gpt2": ("text-generation", "sequence-classification"),
    "bart": ("translation", "summarization", "text2text-generation", "question-answering"),
    "t5": ("summarization", "sequence-classification"),
}

MORE = {
    "bert": {
        "near": SentenceSimilarity(
            loss="triplet",
            negatives_column="hard",
            matryoshka_dims=[8, 32],
            prompt="query: ",
            loss_kwargs={"margin": 1},
        )
    }
}


@pytest.fixture
def saved(build_model, backbone_path, tmp_path):
    """Folders with a saved model each, together of all types; by folder, what it is asked."""
    asked = {}
    for family, kinds in MODELS.items():
        folder = str(tmp_path / family)
        model = build_model(family, tasks={kind: TASKS[kind]() for kind in kinds} | MORE.get(family, {}))
        tokenizer = AutoTokenizer.from_pretrained(backbone_path(family))
        ensure_pad_token(tokenizer)
        model.set_pad_token_id(tokenizer.pad_token_id)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        asked[folder] = [TEXT, *(INPUTS[kind] for kind in kinds if kind in INPUTS)]
    of_texts = {
        name for name, kind in KINDS.items() if kind.reader.modality == TEXTS
    }  # others: tests/cli/test_speech.py
    assert {kind for kinds in MODELS.values() for kind in kinds} == set(TASKS) == of_texts
    return asked


@pytest.mark.process
def test_every_type_runs_without_the_package_and_is_saved_from_there(saved):
    again = {folder + "-again": asked for folder, asked in saved.items()}
    without = run(BLOCK + READ, json.dumps([saved, *saved]), **SAME_BITS)
    for folder, (logits, answers) in zip(saved, without):
        assert {name for answer in answers for name in answer} == set(logits)
        one, other = (AutoModel.from_pretrained(path).state_dict() for path in (folder, folder + "-again"))
        assert all(torch.equal(value, other[name]) for name, value in one.items())
    # In a process that is as young as the other, so that nothing but the package can make a difference.
    ours = run("import hf_multitask\n" + READ, json.dumps([saved | again, *saved, *again]), **SAME_BITS)
    assert ours == without * 2


@pytest.mark.process
def test_without_the_package_and_without_trust_transformers_says_so(build_model, tmp_path):
    build_model().save_pretrained(tmp_path)
    assert "trust_remote_code=True" in run(REFUSED, str(tmp_path))
