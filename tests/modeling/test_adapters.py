"""Adapters by row: what PEFT makes of each task alone, whatever else is in the batch."""

import copy
import re

import pytest
import torch
from adapting import BOTH, ENCODER, KINDS, batch, build_adapted, reading
from peft import LoraConfig, LoraModel
from reading import INPUTS, TASKS, TEXT
from transformers import AutoTokenizer, pipeline

from hf_multitask import MultiTaskModel
from hf_multitask.modeling.config import SHARED


@pytest.fixture
def build(backbone_path):
    def make(family="bert", kinds=ENCODER[:2], **kwargs):
        return build_adapted(backbone_path(family), kinds, **kwargs)

    return make


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


@pytest.mark.parametrize("family", ["bert", "gpt2", "bart"])
def test_logits_are_the_same_where_adapters_have_not_trained(family, build):
    kinds = KINDS[family]
    inputs, (some, labels) = batch(), reading(kinds)
    writers = [kind for kind in kinds if kind in ("translation", "summarization")]
    targets = dict.fromkeys(writers, inputs["input_ids"][:, :4])
    every = {kind: torch.arange(6) for kind in kinds}
    several = {kind: rows for kind, rows in some.items() if rows.dim() == 2}
    calls = [
        {},
        {"tasks": [kind for kind in kinds if kind not in writers][::-1]},
        {"task_rows": every, "labels": targets or None},  # rows that are items, of tasks with several rows an item too
        {"task_rows": some, "labels": labels or None},
        {"task_rows": several},
    ]
    plain = build(family, kinds)
    own = {kind: {"r": 2} for kind in kinds[1::2]}
    for adapters in ({"lora": {"r": 2}}, {"task_lora": own}, {"lora": {"r": 2}, "task_lora": {"r": 2}}):
        model = build(family, kinds, **adapters)
        model.load_state_dict(plain.state_dict(), strict=False)
        with torch.no_grad():
            for call in calls:
                expected, found = plain(**inputs, **call).logits, model(**inputs, **call).logits
                assert list(found) == list(expected)
                for kind, value in expected.items():
                    assert found[kind].shape == value.shape, kind
                    torch.testing.assert_close(found[kind], value, rtol=0, atol=1e-5)
    items = plain(**inputs, task_rows={kind: every[kind] for kind in several}).logits
    assert all(value.shape[:2] == (6, 1) for value in items.values())


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
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
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


@pytest.mark.slow
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
