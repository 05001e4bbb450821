"""The model as a graph: ONNX against torch, torch.export, torch.compile."""

import json
import sys

import pytest
import torch
from adapting import BOTH
from launch import start
from parameters import few
from reading import TASKS, TEXT
from torch.export import Dim
from transformers import AutoConfig, AutoModel, AutoTokenizer

from hf_multitask import MultiTaskModel

TEXTS = (
    [TEXT],
    [TEXT * 2, "No.", "Short one."],
    ["I will never go back there again! " * 9, TEXT, "Yes.", "So.", TEXT],
)
READ = ["sequence-classification", "token-classification", "question-answering", "sentence-similarity"]
KINDS = {
    "bert": [*READ, "multiple-choice", "fill-mask", "span-classification"],
    "roberta": READ,
    "distilbert": [*READ, "multiple-choice"],
    "modernbert": READ,
    "gpt2": ["sequence-classification", "token-classification"],
}

ALONE = """
import json, sys
import numpy
import onnxruntime

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
given = {name: numpy.array(value, dtype="int64") for name, value in json.loads(sys.argv[2]).items()}
names = [output.name for output in session.get_outputs()]
outputs = {name: value.tolist() for name, value in zip(names, session.run(None, given))}
tasks = json.loads(session.get_modelmeta().custom_metadata_map["tasks"])
print(json.dumps([outputs, tasks, [name for name in ("torch", "transformers", "hf_multitask") if name in sys.modules]]))
"""


@pytest.fixture
def build(backbone_path):
    def make(family, kinds, **kwargs):
        path = backbone_path(family)
        torch.manual_seed(1)
        model = MultiTaskModel.from_backbone(path, tasks={kind: TASKS[kind]() for kind in kinds}, **kwargs)
        tokenizer = AutoTokenizer.from_pretrained(path)
        if family == "gpt2":
            tokenizer.pad_token = tokenizer.eos_token
            model.set_pad_token_id(tokenizer.pad_token_id)
        return model, tokenizer

    return make


@pytest.mark.parametrize("family", few(KINDS, ["bert"]))
def test_onnx_agrees_with_torch_whatever_the_batch(family, build, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")
    writes = ["text-generation"] if family == "gpt2" else []
    model, tokenizer = build(family, [*KINDS[family], *writes])
    (tmp_path / "model.onnx").write_text("the last one")
    path = model.train().export_onnx(tmp_path, *([] if writes else [tokenizer]))
    assert model.training
    model.eval()
    assert [file.name for file in tmp_path.glob("model*")] == ["model.onnx"]
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == [f"{kind}_logits" for kind in KINDS[family]]
    names = [value.name for value in session.get_inputs()]
    for texts in TEXTS:
        # ModernBERT's classifier reads the first token, which is padding on the left, far from all that it attends to.
        for side in ("right",) if family == "modernbert" else ("right", "left"):
            tokens = tokenizer(texts, padding=True, padding_side=side, truncation=True, return_tensors="pt")
            tokens = {name: tokens[name] for name in names}
            with torch.no_grad():
                expected = model(**tokens, tasks=KINDS[family]).logits
            for kind, value in zip(KINDS[family], session.run(None, {k: v.numpy() for k, v in tokens.items()})):
                own = expected[kind].squeeze(1) if model.heads[kind].reads_several else expected[kind]
                found = torch.from_numpy(value)
                assert found.shape == own.shape, kind
                if own.dim() >= 3:  # padding reads nothing, and says anything
                    found, own = found[tokens["attention_mask"] == 1], own[tokens["attention_mask"] == 1]
                torch.testing.assert_close(found, own, rtol=0, atol=1e-4)


ADAPTERS = {
    "few": (READ[1:3], {**BOTH, "task_lora": {"question-answering": {"r": 3, "init_lora_weights": False}}}),
    "shared": (KINDS["bert"], {"lora": BOTH["lora"]}),
    "own": (KINDS["bert"], {"task_lora": BOTH["task_lora"]}),
    "branches": (READ[:2], {"branches": "kind"}),
    "mixed": (KINDS["bert"], {**BOTH, "task_lora": dict.fromkeys(KINDS["bert"][2::2], BOTH["task_lora"])}),
}


def test_adapters_of_tasks_in_several_branches_are_refused(build, tmp_path):
    pytest.importorskip("peft", reason="the extra 'peft' is not installed")
    model, tokenizer = build("bert", READ[1:3], **BOTH, branches="kind")
    with pytest.raises(ValueError, match="in several branches cannot be in one graph"):
        model.export_onnx(tmp_path, tokenizer)


@pytest.mark.slow
@pytest.mark.parametrize("adapters", ADAPTERS)
def test_graphs_have_the_adapters_and_branches_of_all_tasks(adapters, build, tmp_path):
    pytest.importorskip("peft", reason="the extra 'peft' is not installed")
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")
    kinds, kwargs = ADAPTERS[adapters]
    model, tokenizer = build("bert", kinds, **kwargs)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".branches." in name:
                weight += 0.1 * torch.randn_like(weight)
    path = model.export_onnx(tmp_path, tokenizer)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    shapes = {value.name: {0: Dim.DYNAMIC, 1: Dim.DYNAMIC} for value in session.get_inputs()}

    def batch(texts):
        tokens = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        return {name: tokens[name] for name in shapes}

    program = torch.export.export(model, (), batch(TEXTS[1]), dynamic_shapes=shapes).module()
    for texts in TEXTS:
        tokens = batch(texts)
        with torch.no_grad():
            expected, exported = model(**tokens).logits, program(**tokens).logits
        assert list(exported) == list(expected) == kinds
        found = session.run(None, {name: value.numpy() for name, value in tokens.items()})
        for kind, value in zip(kinds, found, strict=True):
            torch.testing.assert_close(exported[kind], expected[kind], rtol=0, atol=1e-5)
            own = expected[kind].squeeze(1) if model.heads[kind].reads_several else expected[kind]
            torch.testing.assert_close(torch.from_numpy(value), own, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_onnx_runs_where_nothing_but_its_runtime_is(build, tmp_path):
    pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")
    model, tokenizer = build("bert", ["sequence-classification", "token-classification"])
    path = model.export_onnx(tmp_path, tokenizer, tasks=["token-classification"])
    tokens = AutoTokenizer.from_pretrained(tmp_path)([TEXT, "No."], padding=True)
    alone = start([sys.executable, "-c", ALONE, str(path), json.dumps(dict(tokens))])
    assert alone.returncode == 0, alone.stderr
    outputs, tasks, foreign = json.loads(alone.stdout)
    assert foreign == []
    assert tasks == {
        "token-classification": {
            "type": "token-classification",
            "label_names": model.config.task("token-classification")["label_names"],
            "output": "token-classification_logits",
        }
    }
    with torch.no_grad():
        expected = model(**{name: torch.tensor(value) for name, value in tokens.items()}).logits
    found = torch.tensor(outputs["token-classification_logits"])
    torch.testing.assert_close(found, expected["token-classification"], rtol=0, atol=1e-4)


def test_onnx_says_what_it_cannot_do_and_leaves_the_last_graph(build, tmp_path, caplog):
    pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")
    model, _ = build("gpt2", ["sequence-classification", "text-generation"])
    path = tmp_path / "model.onnx"
    path.write_text("the last one")
    with pytest.raises(ValueError, match=r"Task 'text-generation' writes texts token by token .* Name other tasks."):
        model.export_onnx(tmp_path, tasks=["text-generation"])
    with pytest.raises(ValueError, match=r"no task 'sequence'; it has"):
        model.export_onnx(tmp_path, tasks=["sequence"])
    with pytest.raises(ValueError, match=r"An ONNX graph is made of a model in float32, and this one is in .*bfloat16"):
        build("bert", READ, dtype=torch.bfloat16)[0].export_onnx(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    assert path.read_text() == "the last one"


@pytest.mark.slow
def test_a_family_that_cannot_be_traced_is_named_and_leaves_the_last_graph(build, tmp_path):
    pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")
    path = tmp_path / "model.onnx"
    path.write_text("the last one")
    model, _ = build("longformer", ["sequence-classification"])
    with pytest.raises(
        ValueError, match=r"the backbone family 'longformer' cannot be made an ONNX graph: .*with torch"
    ):
        model.export_onnx(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    assert path.read_text() == "the last one"


@pytest.mark.parametrize("family", few(["bert", "gpt2"], ["bert"]))
def test_torch_exports_the_model_with_any_batch_and_length(family, build, tmp_path):
    kinds = READ if family == "bert" else KINDS["gpt2"]
    model, tokenizer = build(family, kinds)
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if family == "bert" else [])]

    def batch(texts):
        tokens = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        return {name: tokens[name] for name in names}

    shapes = {name: {0: Dim.DYNAMIC, 1: Dim.DYNAMIC} for name in names}
    program = torch.export.export(model, (), batch(TEXTS[1]), dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    for texts in TEXTS:
        with torch.no_grad():
            expected, found = model(**batch(texts)), loaded(**batch(texts))
        assert list(found.logits) == kinds
        for kind in kinds:
            torch.testing.assert_close(found.logits[kind], expected.logits[kind], rtol=0, atol=1e-5)


def calls(model, length):
    """Ways to call a model on three rows: by name, arguments beside the tokens and whether it trains."""
    ignored = torch.full((2, length), -100)
    tags, masked, several = ignored.clone(), ignored.clone(), torch.tensor([[0, 1], [2, -1]])
    tags[:, 1:3], masked[0, 1] = 1, 5
    rows = {"sequence-classification": torch.tensor([2]), "token-classification": torch.tensor([0, 1])}
    labels = {"sequence-classification": torch.tensor([1]), "token-classification": tags}
    everything = {**rows, "fill-mask": torch.tensor([0, 2]), "question-answering": several, "multiple-choice": several}
    marks = torch.ones(2, 2, length).long()
    marks[1, 1] = -1
    more = {"fill-mask": masked, "question-answering": marks, "multiple-choice": torch.tensor([1, 0])}
    counts = {name: torch.tensor(7) for name in rows}
    return {
        "all": ({}, False),
        "tasks": ({"tasks": ["token-classification"]}, False),
        "rows": ({"task_rows": rows}, False),
        "several": (
            {"task_rows": {name: everything[name] for name in ("question-answering", "multiple-choice")}},
            False,
        ),
        "labels": ({"task_rows": rows, "labels": labels}, True),
        "step": ({"task_rows": rows, "labels": labels, "num_items_in_batch": counts, "all_heads": True}, True),
        "every type": ({"task_rows": everything, "labels": labels | more}, True),
        "filler": ({"task_rows": {}, "labels": {}}, True),
    }


@pytest.fixture
def compiled_call(build):
    def make(backend, name):
        kinds = [*KINDS["bert"]]
        model, tokenizer = build("bert", kinds, dropout=0.0)
        tokens = dict(tokenizer(TEXTS[1], padding=True, return_tensors="pt"))
        given, trains = calls(model, tokens["input_ids"].shape[1])[name]
        model.train(trains)
        torch.compiler.reset()
        results = []
        for call in (model, torch.compile(model, fullgraph=True, backend=backend)):
            model.zero_grad()
            output = call(**tokens, **given)
            if trains:
                output.loss.backward()
            grads = {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}
            results.append((output, grads))
        return results

    return make


def assert_same_results(results, tolerance):
    (plain, plain_grads), (compiled, grads) = results
    assert compiled.logits.keys() == plain.logits.keys()
    assert (compiled.loss is None) == (plain.loss is None)
    pairs = [(plain.logits[name], compiled.logits[name]) for name in plain.logits]
    assert grads.keys() == plain_grads.keys()
    pairs += [(plain_grads[name], grads[name]) for name in grads]
    if plain.loss is not None:
        pairs.append((plain.loss, compiled.loss))
    for one, other in pairs:
        torch.testing.assert_close(other, one, rtol=0, atol=tolerance)


CALLS = ["all", "tasks", "rows", "several", "labels", "step", "every type", "filler"]


@pytest.mark.parametrize("name", few(CALLS, ["step", "every type"]))
def test_forward_compiles_without_a_break(name, compiled_call):
    assert_same_results(compiled_call("eager", name), 1e-6)


# inductor imports parts of torch that still use it
@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_compiled_code_agrees(name, compiled_call):
    assert_same_results(compiled_call("inductor", name), 1e-4)


def test_weights_that_are_not_finite_make_no_graph(build, tmp_path):
    pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")
    model, _ = build("bert", ["sequence-classification", "token-classification"])
    with torch.no_grad():
        model.heads["token-classification"].native.classifier.bias[0] = torch.nan
    said = (
        r"^Weight 'heads.token-classification.native.classifier.bias' is NaN or infinite in 1 of its 9 numbers, so no"
    )
    with pytest.raises(ValueError, match=said):
        model.export_onnx(tmp_path / "graph")
    assert not (tmp_path / "graph").exists()


def test_a_graph_with_branches_of_several_layers_takes_any_number_of_rows(backbone_path, tmp_path):
    pytest.importorskip("onnxscript", reason="the extra 'onnx' is not installed")
    path = backbone_path("bert")
    AutoModel.from_config(AutoConfig.from_pretrained(path, num_hidden_layers=3)).save_pretrained(tmp_path / "three")
    tasks = {kind: TASKS[kind]() for kind in READ[:2]}
    model = MultiTaskModel.from_backbone(str(tmp_path / "three"), tasks=tasks, branches="kind", branch_layers=2)
    assert len(model.config.branches) == 2
    model.export_onnx(
        tmp_path / "graph", tokenizer=AutoTokenizer.from_pretrained(path)
    )  # compares batches of all sizes
