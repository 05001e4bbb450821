"""Adapters by row: what PEFT makes of each task alone, whatever else is in the batch."""

import copy
import json
import re
import sys

import pytest
import torch
from peft import LoraConfig, LoraModel
from processes import BLOCK, run
from reading import INPUTS, TASKS, TEXT
from safetensors import safe_open
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, pipeline

from hf_multitask import MultiTaskModel
from hf_multitask.modeling.config import SHARED

ENCODER = ("sequence-classification", "token-classification", "question-answering", "multiple-choice")
KINDS = {
    "bert": (*ENCODER, "sentence-similarity", "fill-mask"),
    "roberta": ENCODER,
    "distilbert": ENCODER,
    "modernbert": (*ENCODER, "fill-mask"),
    "gpt2": (*ENCODER[:3], "text-generation"),
    "llama": (*ENCODER[:3], "text-generation"),
    "bart": ("sequence-classification", "question-answering", "translation", "summarization"),
    "t5": ("sequence-classification", "token-classification", "translation"),
}
BOTH = {"lora": {"r": 2, "init_lora_weights": False}, "task_lora": {"r": 3, "init_lora_weights": False}}


@pytest.fixture
def build(backbone_path):
    """A model of some types on a tiny backbone, the same weights at every call, whatever its adapters."""

    def make(family="bert", kinds=("sequence-classification", "token-classification"), **kwargs):
        path = backbone_path(family)
        torch.manual_seed(1)
        model = MultiTaskModel.from_backbone(path, tasks={kind: TASKS[kind]() for kind in kinds}, **kwargs)
        tokenizer = AutoTokenizer.from_pretrained(path)
        model.set_pad_token_id(tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id)
        return model

    return make


def batch(rows=6, length=9):
    ids = torch.randint(6, 500, (rows, length), generator=torch.Generator().manual_seed(3))
    ids[:, -1] = 3  # an end, which BART looks for
    mask = torch.ones_like(ids)
    mask[0, length // 2 :] = 0
    ids[0, length // 2 - 1] = 3
    return {"input_ids": ids.masked_fill(mask == 0, 0), "attention_mask": mask}


def reading(kinds):
    """Rows of each type, some read by several and some by none, and labels of those that need them."""
    places = {
        "sequence-classification": [0, 3],
        "token-classification": [3, 1, 2],
        "question-answering": [[2, 1], [4, -1]],
        "multiple-choice": [[4, 0, -1], [0, 3, 1]],
        "sentence-similarity": [[1, 2], [3, 4]],
        "fill-mask": [1, 3],
        "text-generation": [4, 2],
        "translation": [2, 0],
        "summarization": [1],
    }
    rows = {kind: torch.tensor(places[kind]) for kind in kinds}
    targets = torch.full((6, 9), -100)
    targets[:, 2:4] = batch()["input_ids"][:, 2:4]
    labels = {kind: targets[rows[kind]] for kind in kinds if kind in ("fill-mask", "text-generation")}
    labels |= {
        kind: batch()["input_ids"][rows[kind]][:, :4] for kind in kinds if kind in ("translation", "summarization")
    }
    return rows, labels


def through_peft(model, plain, kind):
    """PEFT's own layers, with two adapters active, in a model without any that has one task's rows only."""
    targets = dict.fromkeys((SHARED, kind), model.config.adapters["tasks"][kind]["target_modules"])
    turned = model.config.backbone_config.model_type == "gpt2"
    configs = {
        name: LoraConfig(r=rank, target_modules=targets[name], fan_in_fan_out=turned)
        for name, rank in ((SHARED, 2), (kind, 3))
    }
    tuner = LoraModel(plain.backbone, configs, SHARED)
    tuner.inject_adapter(plain.backbone, kind)
    tuner.set_adapter([SHARED, kind])
    weights = {
        name: value
        for name, value in model.state_dict().items()
        if re.search(rf"\.lora_[AB]\.({SHARED}|{kind})\.", name)
    }
    _, unexpected = plain.load_state_dict(weights, strict=False)
    assert not unexpected and len(weights) == 4 * sum(hasattr(one, "lora_A") for one in plain.modules())
    return plain


@pytest.mark.parametrize("family", KINDS)
def test_a_mixed_batch_is_each_task_alone_through_peft(family, build):
    kinds = KINDS[family]
    model, inputs, (rows, labels) = build(family, kinds, **BOTH).double(), batch(), reading(kinds)
    bare = build(family, kinds).double()
    with torch.no_grad():
        mixed = model(**inputs, task_rows=rows, labels=labels).logits
        for kind in kinds:
            plain = copy.deepcopy(bare)
            own = {"task_rows": {kind: rows[kind]}, "labels": {kind: labels[kind]} if kind in labels else None}
            unadapted = plain(**inputs, **own).logits[kind]
            alone = through_peft(model, plain, kind)(**inputs, **own).logits[kind]
            torch.testing.assert_close(mixed[kind], alone, rtol=0, atol=1e-12)
            assert not torch.allclose(alone, unadapted)


@pytest.mark.parametrize("family", ["bert", "gpt2", "bart"])
def test_all_tasks_at_once_are_each_alone(family, build):
    kinds = [kind for kind in KINDS[family] if kind not in ("translation", "summarization")]
    model, inputs = build(family, kinds, **BOTH).double(), batch()
    with torch.no_grad():
        together = model(**inputs).logits
        assert list(together) == kinds
        for kind in kinds:
            alone = model(**inputs, tasks=[kind]).logits[kind]
            torch.testing.assert_close(together[kind], alone, rtol=0, atol=1e-12)


def test_tasks_without_an_adapter_share_their_rows(build):
    kinds = KINDS["bert"]
    own = dict.fromkeys(kinds[:2], BOTH["task_lora"])
    model, inputs, (rows, labels) = build("bert", kinds, task_lora=own).double(), batch(), reading(kinds)
    seen = []
    model.backbone.bert.encoder.layer[0].register_forward_hook(lambda layer, given, output: seen.append(len(given[0])))
    with torch.no_grad():
        mixed = model(**inputs, task_rows=rows, labels=labels).logits
        plain = build("bert", kinds).double()(**inputs, task_rows=rows, labels=labels).logits
    assert seen == [5 + 2 + 3]  # those that the other tasks read, and each of the two tasks' own
    for kind in kinds[2:]:
        torch.testing.assert_close(mixed[kind], plain[kind], rtol=0, atol=1e-12)
    assert not torch.allclose(mixed[kinds[0]], plain[kinds[0]])


@pytest.mark.parametrize(
    ("family", "kind"), [("gpt2", "text-generation"), ("bart", "translation"), ("t5", "translation")]
)
def test_generation_goes_through_the_tasks_adapter(family, kind, build):
    kinds = KINDS[family]
    model, inputs = build(family, kinds, **BOTH).double(), batch()
    given = {**inputs, "max_new_tokens": 6, "num_beams": 2, "pad_token_id": 0}
    expected = through_peft(model, build(family, kinds).double(), kind).generate(**given, task=kind)
    assert torch.equal(model.generate(**given, task=kind), expected)
    assert model.routing.blocks == ()


def step(model, inputs, rows, labels, **kwargs):
    model.zero_grad()
    model(**inputs, task_rows=rows, labels=labels, **kwargs).loss.backward()
    return {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}


def test_checkpointed_layers_run_again_with_the_rows_of_the_first_run(build):
    kinds = KINDS["bart"]
    model, inputs, (rows, labels) = build("bart", kinds, dropout=0.0, **BOTH).double().train(), batch(), reading(kinds)
    rows, labels = {kind: rows[kind] for kind in labels}, labels
    whole = step(model, inputs, rows, labels)
    model.activation_checkpointing_enable()
    again = step(model, inputs, rows, labels)
    assert whole.keys() == again.keys()
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


def test_gradients_reach_what_trains_and_nothing_else(build):
    kinds = KINDS["bert"]
    model, inputs, (rows, labels) = build("bert", kinds, **BOTH).train(), batch(), reading(kinds)
    fill_mask = {"fill-mask": rows["fill-mask"]}, {"fill-mask": labels["fill-mask"]}
    alone = step(model, inputs, *fill_mask)
    fresh = {f"backbone.{name}" for name in model.config.adapters["source"]["fresh"]}
    adapters = {name for name, _ in model.named_parameters() if re.search(rf"lora_[AB]\.({SHARED}|fill-mask)\.", name)}
    assert adapters <= alone.keys() <= adapters | fresh
    trained = {name for name, one in model.named_parameters() if one.requires_grad}
    assert trained == step(model, inputs, *fill_mask, all_heads=True).keys()
    filler = step(model, inputs, {}, {})
    assert filler and all(not gradient.any() for gradient in filler.values())


def test_compiles_without_a_graph_break(build):
    model, inputs = build(**BOTH), batch()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        for kind, value in compiled(**inputs).logits.items():
            torch.testing.assert_close(value, model(**inputs).logits[kind])


def test_a_copy_routes_by_itself(build):
    model, inputs = build(**BOTH), batch()
    twin = copy.deepcopy(model)
    with torch.no_grad():
        expected = model(**inputs).logits
        for layer in model.backbone.modules():
            if hasattr(layer, "lora_A"):
                layer.routing.tasks.clear()
        found = twin(**inputs).logits
    assert all(torch.equal(found[kind], expected[kind]) for kind in expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_its_kind(dtype, build):
    model, inputs = build(**BOTH, dtype=dtype), batch()
    assert {one.dtype for one in model.parameters()} == {dtype}
    assert {value.dtype for value in model(**inputs).logits.values()} == {dtype}


@pytest.mark.parametrize("name", ["layer", "query", "lora_A", "base_layer", "default", "get_base_layer", "shared"])
def test_a_task_may_have_the_name_of_a_layer(name, backbone_path, tmp_path):
    tasks = {name: TASKS["sequence-classification"](), "other": TASKS["token-classification"]()}
    model, inputs = MultiTaskModel.from_backbone(backbone_path(), tasks=tasks, **BOTH), batch()
    model.save_pretrained(tmp_path, adapters_only=True)
    loaded = MultiTaskModel.from_pretrained(tmp_path)
    with torch.no_grad():
        before = model(**inputs).logits
        assert all(torch.equal(value, loaded(**inputs).logits[task]) for task, value in before.items())
        loaded.drop_adapter("other")
        assert torch.equal(loaded(**inputs, tasks=[name]).logits[name], model(**inputs, tasks=[name]).logits[name])
        loaded.merge_adapters()
        after = loaded(**inputs, tasks=[name]).logits[name]
    torch.testing.assert_close(after, before[name], rtol=0, atol=1e-5)
    of_heads, layers = 4, 4
    assert sum(one.requires_grad for one in model.parameters()) == of_heads + layers * 2 * 3


# Saving and loading


@pytest.mark.parametrize("only", [False, True])
@pytest.mark.parametrize("family", ["bert", "gpt2", "bart", "t5"])
def test_saved_adapters_load(family, only, build, tmp_path):
    model = build(family, KINDS[family], **BOTH)
    model.save_pretrained(tmp_path / "saved", adapters_only=only)
    again = MultiTaskModel.from_pretrained(tmp_path / "saved")
    again.save_pretrained(tmp_path / "twice")
    for loaded in (again, AutoModel.from_pretrained(tmp_path / "twice")):
        ours, theirs = model.state_dict(), loaded.state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
        trained = {name: one.requires_grad for name, one in model.named_parameters()}
        assert trained == {name: one.requires_grad for name, one in loaded.named_parameters()}
    with safe_open(tmp_path / "twice" / "model.safetensors", framework="pt") as weights:
        names = set(weights.keys())
    adapters = {name for name in names if ".lora_" in name}
    assert len(adapters) == sum(".lora_" in name for name in ours)
    fresh = {f"backbone.{name}" for name in model.config.adapters["source"]["fresh"]}
    assert (names - adapters <= fresh | {name for name in ours if name.startswith("heads.")}) == only


def test_adapters_alone_are_a_small_part_of_the_whole(tmp_path):
    torch.manual_seed(0)
    BertModel(
        BertConfig(vocab_size=3000, hidden_size=192, num_attention_heads=4, intermediate_size=768)
    ).save_pretrained(tmp_path / "backbone")
    tasks = {kind: TASKS[kind]() for kind in ENCODER[:2]}
    model = MultiTaskModel.from_backbone(str(tmp_path / "backbone"), tasks=tasks, lora={"r": 8}, task_lora={"r": 4})
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "only", adapters_only=True)
    whole, only = (sum(file.stat().st_size for file in (tmp_path / name).rglob("*")) for name in ("whole", "only"))
    assert only < 0.06 * whole
    assert not model.config.adapters["only"]


LOAD = (
    BLOCK
    + """
import torch
from transformers import AutoModel

answers = []
for folder in sys.argv[1:]:
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    ids = torch.arange(6, 30).reshape(2, 12)
    with torch.no_grad():
        logits = model(ids, torch.ones_like(ids)).logits
    answers.append({name: value.tolist() for name, value in logits.items()})
    model.save_pretrained(folder + "-again")
print(json.dumps(answers))
"""
)


def test_adapters_load_where_the_package_is_not_installed(build, tmp_path):
    folders = [str(tmp_path / name) for name in ("whole", "only")]
    for folder in folders:
        build(**BOTH).save_pretrained(folder, adapters_only=folder.endswith("only"))
    for folder, answer in zip(folders, run(LOAD, *folders), strict=True):
        ids = torch.arange(6, 30).reshape(2, 12)
        for name in (folder, f"{folder}-again"):
            with torch.no_grad():
                logits = AutoModel.from_pretrained(name)(ids, torch.ones_like(ids)).logits
            assert answer == {kind: value.tolist() for kind, value in logits.items()}


REFUSED = (
    BLOCK
    + """
sys.modules["peft"] = None
from transformers import AutoModel

AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
try:
    AutoModel.from_pretrained(sys.argv[2], trust_remote_code=True)
except ImportError as problem:
    print(json.dumps(str(problem)))
"""
)


def test_without_peft_one_sentence_says_how_to_install_it(build, tmp_path, monkeypatch):
    build().save_pretrained(tmp_path / "plain")
    build(**BOTH).save_pretrained(tmp_path / "adapted")
    told = run(REFUSED, str(tmp_path / "plain"), str(tmp_path / "adapted"))
    assert told == "Adapters need PEFT, which is not installed. Run: pip install 'hf_multitask[peft]'"
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=re.escape(told)):
        build(**BOTH)
    with pytest.raises(ImportError, match=re.escape(told)):
        MultiTaskModel.from_pretrained(tmp_path / "adapted")


def test_a_backbone_that_is_gone_or_another_is_named(build, backbone_path, tmp_path):
    model = build(**BOTH)
    source = model.config.adapters["source"]
    source["name"] = str(tmp_path / "nowhere")
    model.save_pretrained(tmp_path / "gone", adapters_only=True)
    with pytest.raises(
        ValueError, match=r"for the backbone '.*nowhere', which could not be loaded: .* available there\."
    ):
        MultiTaskModel.from_pretrained(tmp_path / "gone")
    source["name"] = backbone_path("gpt2")
    model.save_pretrained(tmp_path / "other", adapters_only=True)
    with pytest.raises(ValueError, match=r"for the backbone '.*', and what is there now has no fitting 'embeddings"):
        MultiTaskModel.from_pretrained(tmp_path / "other")


def test_only_a_backbone_that_could_be_fetched_is_left_out(build, tmp_path):
    plain = build()
    with pytest.raises(ValueError, match="The model has no adapters, so there is nothing to save without the backbone"):
        plain.save_pretrained(tmp_path, adapters_only=True)
    plain.add_adapters(lora={"r": 2})
    with pytest.raises(ValueError, match="The backbone is not known to be as it was loaded"):
        plain.save_pretrained(tmp_path, adapters_only=True)
    trained = build(**BOTH)
    trained.backbone.requires_grad_(True)
    with pytest.raises(ValueError, match=r"The backbone trains beside its adapters.*adapters_only=False"):
        trained.save_pretrained(tmp_path, adapters_only=True)


def test_a_missing_adapter_is_named(build, tmp_path):
    build().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["adapters"] = build(**BOTH).config.adapters
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"has no weights for 'backbone\..*"):
        MultiTaskModel.from_pretrained(tmp_path)
    config["adapters"]["tasks"]["nobody"] = {}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="The model has no task 'nobody'"):
        MultiTaskModel.from_pretrained(tmp_path)
    config["adapters"] = {"shared": 3}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="Key 'adapters' of the configuration has no usable 'shared'"):
        MultiTaskModel.from_pretrained(tmp_path)


# Merging, export, the life of tasks


@pytest.mark.parametrize("family", ["bert", "gpt2", "t5"])
def test_merging_the_shared_adapter_keeps_the_logits(family, build, tmp_path):
    inputs = batch()
    for kwargs in ({"lora": BOTH["lora"]}, BOTH):
        model = build(family, KINDS[family][:2], **kwargs)
        with torch.no_grad():
            before = model(**inputs).logits
            model.merge_adapters()
            model.save_pretrained(tmp_path / family)
            for merged in (model, MultiTaskModel.from_pretrained(tmp_path / family)):
                for kind, value in merged(**inputs).logits.items():
                    torch.testing.assert_close(value, before[kind], rtol=1e-5, atol=1e-5)
        assert (model.config.adapters is None) == ("task_lora" not in kwargs)
        with pytest.raises(ValueError, match="The tasks share no adapter to merge"):
            model.merge_adapters()
    assert not any("_shared" in name for name in model.state_dict())


@pytest.mark.parametrize(
    ("family", "kind"),
    [("bert", "token-classification"), ("bert", "fill-mask"), ("gpt2", "text-generation"), ("bart", "translation")],
)
def test_a_task_leaves_with_its_adapters_merged(family, kind, build, tmp_path):
    model, inputs = build(family, KINDS[family], **BOTH), batch()
    before = copy.deepcopy(model.state_dict())
    model.export_task(kind, tmp_path)
    stock = type(model.task_model(kind)).from_pretrained(tmp_path)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    assert "lora" not in (tmp_path / "config.json").read_text() and not hasattr(stock, "peft_config")
    with torch.no_grad():
        if kind == "translation":
            labels = inputs["input_ids"][:, :4].contiguous()
            ours = model(**inputs, tasks=[kind], labels={kind: labels}).losses[kind]
            torch.testing.assert_close(ours, stock(**inputs, labels=labels).loss, rtol=0, atol=1e-5)
        else:
            ours = model(**inputs, tasks=[kind]).logits[kind]
            torch.testing.assert_close(ours, stock(**inputs).logits, rtol=0, atol=1e-5)


def test_adapters_follow_their_tasks(build):
    model, inputs = build(**BOTH), batch()
    first, second = model.config.task_names
    with torch.no_grad():
        expected = model(**inputs, tasks=[first]).logits[first]
        model.drop_adapter(second)
        assert torch.equal(model(**inputs, tasks=[first]).logits[first], expected)
        assert not any(second in name for name, _ in model.backbone.named_parameters())
        model.rename_adapter(first, "new")
        model.config.tasks[0]["name"] = "new"
        model.heads["new"] = model.heads.pop(first)
        assert torch.equal(model(**inputs, tasks=["new"]).logits["new"], expected)
        model.add_adapters(task_lora={second: {"r": 5}})
        assert torch.equal(model(**inputs, tasks=["new"]).logits["new"], expected)
        model.drop_adapter("new"), model.drop_adapter(second)
    assert model.config.adapters["tasks"] == {} and model.config.adapters["shared"]


def test_pipeline_answers_with_each_tasks_adapter(build, backbone_path):
    kinds = KINDS["bert"]
    tokenizer = AutoTokenizer.from_pretrained(backbone_path())
    answers = pipeline("multitask", model=build("bert", kinds, **BOTH), tokenizer=tokenizer)
    rows = [TEXT, "Short one.", *INPUTS.values()]
    together, alone = answers(rows, batch_size=len(rows)), [answers(row) for row in rows]
    plain = pipeline("multitask", model=build("bert", kinds), tokenizer=tokenizer)(rows)
    for one, other in zip(together, alone, strict=True):
        assert one.keys() == other.keys()
    score = [answer["sequence-classification"]["score"] for answer in (together[0], alone[0], plain[0])]
    assert score[0] == pytest.approx(score[1], abs=1e-6) and score[0] != pytest.approx(score[2], abs=1e-4)


# What is not usable


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"lora": {"rank": 4}}, r"`lora` has the unknown argument 'rank' of peft.LoraConfig\."),
        ({"task_lora": {"lora_dropuot": 0.1}}, r"unknown argument 'lora_dropuot'.* Did you mean 'lora_dropout'\?"),
        ({"lora": {"r": 0}}, r"`lora.r` should be a whole number of 1 or more. Found `r = 0`"),
        ({"lora": {"lora_dropout": 1.5}}, r"`lora.lora_dropout` should be at least 0 and less than 1\. Found 1\.5"),
        ({"lora": {"bias": "all"}}, r"`lora` sets 'bias', which is not supported.*peft.get_peft_model"),
        ({"lora": {"modules_to_save": ["heads"]}}, "`lora` sets 'modules_to_save'.*heads always train"),
        ({"lora": {"use_dora": True}}, "`lora` sets 'use_dora', which is not supported"),
        ({"lora": {"init_lora_weights": "pissa"}}, "`lora.init_lora_weights` should be true, false, .* Found 'pissa'"),
        ({"lora": {"target_modules": ["qurey"]}}, r"`lora.target_modules` names no layer of the backbone 'bert'\."),
        (
            {"lora": {"target_modules": ["word_embeddings"]}},
            "names 'embeddings.word_embeddings', a Embedding that cannot",
        ),
        ({"task_lora": {"sentence": {"r": 2}}}, "`task_lora` has the unknown argument 'sentence'"),
    ],
)
def test_unusable_settings_are_named(kwargs, message, build):
    with pytest.raises(ValueError, match=message):
        build(**kwargs)


def test_adapters_are_added_once(build):
    model = build(**BOTH)
    with pytest.raises(ValueError, match="The tasks share an adapter already"):
        model.add_adapters(lora={"r": 2})
    with pytest.raises(ValueError, match="Task 'sequence-classification' has an adapter already"):
        model.add_adapters(task_lora={"r": 2})
    with pytest.raises(ValueError, match="There is no adapter to add"):
        model.add_adapters()
    with pytest.raises(TypeError, match=r"`lora` should be a peft\.LoraConfig or a dict of its arguments\. Found 8"):
        build(lora=8)


def test_layers_without_an_axis_of_rows_are_refused_for_tasks(build):
    model = build("longformer", ENCODER[:2], task_lora={"r": 2, "target_modules": ["query"]})
    with pytest.raises(ValueError, match=r"keep one row per text, and 'encoder\.layer\.0\..*' was given .* for 10\."):
        model(**batch(5, 16))
