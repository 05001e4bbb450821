"""Models with adapters are saved, loaded, merged and exported, whole or without the backbone."""

import copy
import json
import re
import sys

import pytest
import torch
from adapting import BOTH, ENCODER, KINDS, batch, build_adapted
from parameters import few
from processes import BLOCK, run
from reading import TASKS
from safetensors import safe_open
from transformers import AutoModel, BertConfig, BertModel

from hf_multitask import MultiTaskModel


@pytest.fixture
def build(backbone_path):
    def make(family="bert", kinds=ENCODER[:2], **kwargs):
        return build_adapted(backbone_path(family), kinds, **kwargs)

    return make


@pytest.mark.parametrize("only", [False, True])
@pytest.mark.parametrize("family", few(["bert", "gpt2", "bart", "t5"], ["bert", "t5"]))
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


@pytest.mark.process
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


@pytest.mark.process
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
    with pytest.raises(ValueError, match=r"for the backbone '.*', and what is there now has no 'embeddings"):
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
    with pytest.raises(ValueError, match=r"The backbone trains together with its adapters.*adapters_only=False"):
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
