"""Branches: top layers of their own for groups of tasks, over lower layers that run once for all."""

import copy

import pytest
import torch
from parameters import few
from processes import BLOCK, run
from safetensors.torch import save_file
from tiny import ALL
from transformers import AutoModel, BigBirdConfig

from hf_multitask import (
    MultipleChoice,
    MultiTaskModel,
    SequenceClassification,
    Summarization,
    TextGeneration,
    TokenClassification,
    Translation,
)
from hf_multitask.modeling import adapted
from hf_multitask.modeling.branches import branch_of, of_branch

REFUSED = ("xlm", "albert")  # attention and feed-forward layers in lists of their own; one layer for all
BRANCHES = {"reviews": ["sentiment", "topic"], "pairs": ["same"]}
ROWS = {  # a row of one task, of two tasks of a branch, of two branches, of none (4)
    "sentiment": torch.tensor([0, 3, 5]),
    "topic": torch.tensor([5, 1]),
    "same": torch.tensor([[1, 2], [3, -1]]),
}


def tasks():
    return {
        "sentiment": SequenceClassification(label_names=["negative", "positive"]),
        "topic": SequenceClassification(label_names=["a", "b", "c"]),
        "same": SequenceClassification(label_names=["no", "yes"], text_pair_column="other"),
    }


def batch(model, rows=6, length=9):
    ids = torch.randint(7, 500, (rows, length), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    mask[3, 4:] = 0
    pad = model.config.get_text_config().pad_token_id or 0
    return {"input_ids": ids.masked_fill(mask == 0, pad), "attention_mask": mask}


@pytest.fixture
def build(backbone_path):
    """A family's model with branches whose weights differ, as after training."""

    def make(family="bert", branches=BRANCHES, given=None, *, moved=True, **kwargs):
        torch.manual_seed(0)
        model = MultiTaskModel.from_backbone(
            backbone_path(family), tasks=given or tasks(), branches=branches, pooling="mean", **kwargs
        ).double()
        if model.config.get_text_config().pad_token_id is None:
            model.set_pad_token_id(4)
        if moved:
            with torch.no_grad():
                for name, weight in model.named_parameters():
                    if ".branches." in name:
                        weight += 0.3 * torch.randn_like(weight)
        return model

    return make


def alone(model, name, tokens, rows):
    """A task's logits where no other task runs, on a model of its branch alone."""
    single = copy.deepcopy(model)
    for other in [task for task in model.config.task_names if task != name]:
        single.remove_task(other)
    rows = rows[rows >= 0]
    return single(**{key: value[rows] for key, value in tokens.items()}).logits[name]


@pytest.mark.parametrize("family", few(sorted(set(ALL) - set(REFUSED)), ["bert", "deberta-v2", "gpt2", "gemma2", "t5"]))
def test_every_row_goes_through_the_branch_of_its_task(family, build):
    model = build(family)
    tokens = batch(model)
    flat = {name: rows.flatten() for name, rows in ROWS.items()}
    found = model(**tokens, task_rows={name: rows[rows >= 0] for name, rows in flat.items()}).logits
    everything = model(**tokens).logits
    for name, rows in flat.items():
        rows = rows[rows >= 0]
        wanted = alone(model, name, tokens, rows)
        torch.testing.assert_close(found[name], wanted, rtol=0, atol=1e-9)
        torch.testing.assert_close(everything[name][rows], wanted, rtol=0, atol=1e-9)
        torch.testing.assert_close(model(**tokens, tasks=[name]).logits[name][rows], wanted, rtol=0, atol=1e-9)
    unmoved = build(family, moved=False)(**tokens).logits
    assert all(not torch.allclose(everything[name], unmoved[name], atol=1e-3) for name in flat)


def test_the_attention_is_that_of_all_branches(build):
    model = build(attn_implementation="eager")
    for attention in ("sdpa", "eager"):
        model.set_attn_implementation(attention)
        layers = [one for one in model.backbone.modules() if hasattr(getattr(one, "config", None), "hidden_size")]
        assert len(layers) > 3 and {one.config._attn_implementation for one in layers} == {attention}


@pytest.mark.parametrize("family", REFUSED)
def test_families_without_a_list_of_layers_are_refused(family, build):
    with pytest.raises(ValueError, match="cannot have branches"):
        build(family)


def test_fresh_branches_leave_the_logits_as_they_are(build, backbone_path):
    plain = build(branches=None)
    tokens = batch(plain)
    before = plain(**tokens).logits
    plain.add_branches("kind")
    assert plain.config.branches == {"texts": ["sentiment", "topic"], "pairs": ["same"]}
    assert plain.config.branch_layers == 1
    for name, logits in plain(**tokens).logits.items():
        torch.testing.assert_close(logits, before[name], rtol=0, atol=1e-12)
    stock = AutoModel.from_pretrained(backbone_path("bert")).state_dict()
    fresh = MultiTaskModel.from_backbone(backbone_path("bert"), tasks=tasks(), branches="kind").backbone.state_dict()
    top = {name: value for name, value in stock.items() if name.startswith("encoder.layer.1.")}
    for branch in ("texts", "pairs"):
        for name, value in top.items():
            inner = name.removeprefix("encoder.layer.1.")
            assert torch.equal(fresh[f"encoder.layer.1.branches.{branch}.{inner}"], value)


def test_lower_layers_run_once_for_a_row_that_several_branches_read(build):
    model = build()
    seen = []
    layers = model.backbone.encoder.layer
    layers[0].register_forward_hook(lambda module, args, output: seen.append(("below", len(args[0]))))
    for name, layer in layers[1].branches.items():
        layer.register_forward_hook(lambda module, args, output, name=name: seen.append((name, len(args[0]))))
    model(**batch(model), task_rows={"sentiment": torch.tensor([0, 1, 2]), "same": torch.tensor([1, 2, 3, 4])})
    assert seen == [("below", 6), ("reviews", 4), ("pairs", 4)]  # row 5, which no task reads, is in the first


def test_gradients_are_those_of_separate_passes(build):
    model = build("bert").train()
    tokens, rows = batch(model), {name: own.flatten()[own.flatten() >= 0] for name, own in ROWS.items()}
    labels = {name: torch.zeros(len(own), dtype=torch.long) for name, own in rows.items()}
    model.eval()
    model(**tokens, task_rows=rows, labels=labels).loss.backward()
    together = {name: one.grad.clone() for name, one in model.named_parameters()}
    model.zero_grad()
    for name, own in rows.items():
        given = {key: value[own] for key, value in tokens.items()}
        model(**given, tasks=[name], labels={name: labels[name]}).loss.backward()
    for name, one in model.named_parameters():
        torch.testing.assert_close(together[name], one.grad, rtol=0, atol=1e-12)


def test_branches_that_no_row_needs_get_a_gradient_of_zero_where_processes_wait_for_it(build):
    model = build()
    tokens = batch(model)
    rows, labels = {"sentiment": torch.tensor([0, 2])}, {"sentiment": torch.tensor([0, 1])}
    model(**tokens, task_rows=rows, labels=labels).loss.backward()
    away = [one for name, one in model.named_parameters() if ".pairs." in name]
    assert away
    assert all(one.grad is None for one in away)
    model.zero_grad()
    model(**tokens, task_rows=rows, labels=labels, all_heads=True).loss.backward()
    assert all(one.grad is not None and not one.grad.any() for one in away)
    model.zero_grad()
    model(**tokens, task_rows={}, labels={}, all_heads=True).loss.backward()
    assert all(one.grad is not None and not one.grad.any() for one in model.parameters())


@pytest.mark.parametrize("family", few(["bert", "gpt2", "t5"], ["bert", "t5"]))
def test_models_with_branches_load(family, build, tmp_path):
    model = build(family)
    tokens = batch(model)
    model.save_pretrained(tmp_path)
    again = MultiTaskModel.from_pretrained(tmp_path)
    assert again.config.branches == BRANCHES
    assert model.state_dict().keys() == again.state_dict().keys()
    wanted = model(**tokens).logits
    assert all(torch.equal(wanted[name], logits) for name, logits in again(**tokens).logits.items())


@pytest.mark.process
def test_models_with_branches_load_without_the_package(build, tmp_path):
    model = build()
    model.save_pretrained(tmp_path / "saved")
    tokens = batch(model)
    save_file({**tokens, **{f"wanted {name}": one for name, one in model(**tokens).logits.items()}}, tmp_path / "batch")
    script = f"""
{BLOCK}
import torch
from safetensors.torch import load_file
from transformers import AutoModel
given = load_file({str(tmp_path / "batch")!r})
model = AutoModel.from_pretrained({str(tmp_path / "saved")!r}, trust_remote_code=True)
logits = model(input_ids=given["input_ids"], attention_mask=given["attention_mask"]).logits
assert len(logits) == 3
assert all(torch.equal(given["wanted " + name], one) for name, one in logits.items())
print('"equal"')
"""
    assert run(script) == "equal"


@pytest.mark.parametrize("family", few(["bert", "gpt2", "t5"], ["bert"]))
def test_every_task_is_exported_as_a_stock_model(family, backbone_path):
    given = {"sentiment": tasks()["sentiment"], "ner": TokenClassification(label_names=["O", "B-X", "I-X"])}
    if family == "t5":
        given.pop("ner")
        given["topic"] = tasks()["topic"]
    by_branch = {name: [name] for name in given}
    model = MultiTaskModel.from_backbone(backbone_path(family), tasks=given, branches=by_branch).double()
    with torch.no_grad():
        for weight in model.backbone.parameters():
            weight += 0.1 * torch.randn_like(weight)
    if model.config.get_text_config().pad_token_id is None:
        model.set_pad_token_id(4)
    tokens = batch(model)
    if family == "t5":
        tokens["input_ids"][torch.arange(6), tokens["attention_mask"].sum(1) - 1] = 1
    ours = model(**tokens).logits
    for name in given:
        stock = model.task_model(name)
        assert not any("branches" in key for key in stock.state_dict())
        logits = stock(**tokens).logits
        there = tokens["attention_mask"].bool() if name == "ner" else slice(None)
        torch.testing.assert_close(ours[name][there], logits[there], rtol=0, atol=1e-12)


def test_tasks_join_open_and_leave_branches(build):
    model = build()
    tokens = batch(model)
    before = model(**tokens).logits
    model.add_task("sarcasm", SequenceClassification(label_names=["no", "yes"]))  # of texts, which had no such branch
    assert model.config.branches["texts"] == ["sarcasm"]
    model.add_task("entailment", SequenceClassification(label_names=["no", "yes"]), branch="pairs")
    assert model.config.branches["pairs"] == ["same", "entailment"]
    model.rename_task("same", "paraphrase")
    assert model.config.branches["pairs"] == ["paraphrase", "entailment"]
    after = model(**tokens).logits
    assert torch.equal(after["sentiment"], before["sentiment"])
    assert torch.equal(after["paraphrase"], before["same"])
    with pytest.raises(ValueError, match=r"Branch name 'a\.b' is not usable"):
        model.add_task("other", SequenceClassification(label_names=["no", "yes"]), branch="a.b")
    assert "other" not in model.config.task_names
    model.remove_task("sarcasm")
    assert list(model.config.branches) == ["reviews", "pairs"]
    assert not any("texts" in name for name in model.state_dict())
    assert torch.equal(model(**tokens).logits["sentiment"], before["sentiment"])


def test_adapters_and_branches_go_together(build, tmp_path):
    model = build(
        moved=False,
        lora={"r": 2, "init_lora_weights": False},
        task_lora={"sentiment": {"r": 2, "init_lora_weights": False}},
    )
    model.double()
    tokens = batch(model)
    rows = {"sentiment": torch.tensor([0, 3, 5]), "topic": torch.tensor([5, 1, 0]), "same": torch.tensor([3, 1, 2])}
    found = model(**tokens, task_rows=rows).logits
    for name, own in rows.items():
        given = {key: value[own] for key, value in tokens.items()}
        torch.testing.assert_close(found[name], model(**given, tasks=[name]).logits[name], rtol=0, atol=1e-12)
        merged = copy.deepcopy(model.heads[name])
        states = model.merged_backbone(name)(**given)
        torch.testing.assert_close(
            found[name], merged(states, given["input_ids"], given["attention_mask"]), rtol=0, atol=1e-6
        )
    trained = {name for name, one in model.named_parameters() if one.requires_grad}
    assert not any(".pairs." in name and ".sentiment." in name for name in trained)
    assert any(".reviews." in name and ".sentiment." in name for name in trained)
    model.save_pretrained(tmp_path, adapters_only=False)
    again = MultiTaskModel.from_pretrained(tmp_path)
    assert all(torch.equal(found[name], logits) for name, logits in again(**tokens, task_rows=rows).logits.items())


@pytest.mark.parametrize(
    ("given", "layers", "message"),
    [
        ("kinds", None, "Did you mean 'kind'"),
        ({"a": ["sentiment"]}, None, "Task 'topic' is in no branch"),
        ({"a": ["sentiment", "topic", "same"], "b": ["same"]}, None, "Task 'same' is in 2 branches"),
        ({"a": ["sentiment", "topics"], "b": ["same"]}, None, "names the task 'topics'"),
        ({"a": ["sentiment", "topic", "same"], "b": []}, None, "Branch 'b' has no task"),
        ({"a": ["sentiment", "topic", "same"], "b": None}, None, "a list with names of tasks for each branch. Found"),
        ({"a": ["sentiment", "topic"], "b": 3}, None, "a list with names of tasks for each branch. Found"),
        ({"a b": ["sentiment", "topic", "same"]}, None, "Branch name 'a b' is not usable"),
        ({"_": ["sentiment", "topic", "same"]}, None, "Branch name '_' is not usable: names begin with a letter"),
        ("kind", 2, "should be from 1 to 1"),
        ("kind", 0, "should be a whole number of layers"),
        (None, "x", "should be a whole number of layers"),
        (None, 1, "`branch_layers` is for a model with branches"),
        ("auto", 1, "and `branches = 'auto'`, which chooses no branches, as a backbone of 2 layers has none to spare"),
    ],
)
def test_mistakes_are_named_when_the_model_is_built(given, layers, message, build):
    with pytest.raises(ValueError, match=message):
        build(branches=given, branch_layers=layers)


def test_the_backbone_alone_does_not_know_the_branch(build):
    model = build()
    with pytest.raises(RuntimeError, match="Call the model"):
        model.backbone(**batch(model))


@pytest.mark.parametrize("branch", [["reviews"], 3, {}])
def test_a_branch_that_is_no_name_leaves_the_model_as_it_is(branch, build):
    model = build()
    with pytest.raises(ValueError, match="`branch` should be the name of one branch"):
        model.add_task("more", SequenceClassification(label_names=["no", "yes"]), branch=branch)
    assert model.config.task_names == ["sentiment", "topic", "same"] and model.config.branches == BRANCHES
    model.add_task("more", SequenceClassification(label_names=["no", "yes"]), branch="reviews")
    assert model.config.branches["reviews"] == ["sentiment", "topic", "more"]


@pytest.mark.parametrize("given", [{"branches": "kind"}, {"branches": None}, {"branch_layers": 1}])
def test_a_saved_model_keeps_its_branches(given, build, tmp_path):
    build().save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=f"Parameter `{next(iter(given))}` is for from_backbone: a saved model has the"
    ):
        MultiTaskModel.from_pretrained(tmp_path, **given)


@pytest.mark.parametrize("more", [{}, {"task_lora": {"r": 2, "init_lora_weights": False}}], ids=["whole", "adapters"])
@pytest.mark.parametrize("family", few(["bert", "gpt2", "t5"], ["bert"]))
def test_checkpointing_gives_the_same_gradients(family, more, build):
    model = build(family, dropout=0.0, **more).train()
    tokens = batch(model)
    rows = {"sentiment": torch.tensor([0, 3]), "topic": torch.tensor([1]), "same": torch.tensor([1, 2, 5])}
    labels = {name: torch.zeros(len(own), dtype=torch.long) for name, own in rows.items()}

    def gradients():
        model.zero_grad()
        model(**tokens, task_rows=rows, labels=labels).loss.backward()
        return {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}

    plain = gradients()
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    again = gradients()
    assert plain.keys() == again.keys()
    assert any(".pairs." in name for name in plain)
    assert all(torch.equal(plain[name], gradient) for name, gradient in again.items())


def test_items_of_several_rows_find_them_above_the_branches(build):
    given = {
        "choice": MultipleChoice(),
        "long": SequenceClassification(label_names=["no", "yes"], stride=2),
    }
    model = build(given=given, branches={"choices": ["choice"], "windows": ["long"]})
    tokens = batch(model)
    rows = {"choice": torch.tensor([[0, 3], [5, 1]]), "long": torch.tensor([[1, 2], [3, -1]])}
    found = model(**tokens, task_rows=rows).logits
    for name, own in rows.items():
        flat = own[own >= 0]
        places = torch.full_like(own, -1).masked_scatter(own >= 0, torch.arange(len(flat)))
        alone = model(**{key: value[flat] for key, value in tokens.items()}, task_rows={name: places}).logits[name]
        torch.testing.assert_close(found[name], alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("family", "writes"),
    [("gpt2", TextGeneration()), ("t5", Translation()), ("bart", Summarization())],
)
def test_texts_are_written_through_the_branch_of_their_task(family, writes, build):
    given = {"sentiment": tasks()["sentiment"], "writes": writes}
    model = build(family, given=given, branches={"reads": ["sentiment"], "writes": ["writes"]})
    tokens = batch(model)
    tokens = {key: value[[0, 2, 4]] for key, value in tokens.items()}
    stock = model.task_model("writes").double()
    given = {"max_new_tokens": 8, "do_sample": False}
    written = model.generate(**tokens, task="writes", **given)
    assert torch.equal(written, stock.generate(**tokens, **given))
    labels = {"writes": tokens["input_ids"], "sentiment": torch.tensor([1])}
    rows = {"writes": torch.arange(3), "sentiment": torch.tensor([1])}
    losses = model(**tokens, task_rows=rows, labels=labels).losses
    theirs = stock(**tokens, labels=labels["writes"]).loss
    torch.testing.assert_close(losses["writes"], theirs, rtol=0, atol=1e-5, check_dtype=False)


@pytest.mark.parametrize("family", few(["bert", "t5", "mt5", "bart", "deberta-v2", "gpt2", "llama"], ["t5", "gpt2"]))
def test_branches_of_several_layers_pass_on_what_layers_share(family, tmp_path):
    config = ALL[family]()
    config.update({"n_layer": 3} if family == "gpt2" else {"num_hidden_layers": 3})
    AutoModel.from_config(config).save_pretrained(tmp_path)
    model = MultiTaskModel.from_backbone(
        str(tmp_path), tasks=tasks(), branches=BRANCHES, branch_layers=2, pooling="mean"
    ).double()
    if model.config.get_text_config().pad_token_id is None:
        model.set_pad_token_id(4)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".branches." in name:
                weight += 0.3 * torch.randn_like(weight)
    tokens = batch(model)
    everything = model(**tokens).logits
    rows = {name: own.flatten()[own.flatten() >= 0] for name, own in ROWS.items()}
    found = model(**tokens, task_rows=rows).logits
    for name, own in rows.items():
        wanted = model(**tokens, tasks=[name]).logits[name]
        torch.testing.assert_close(everything[name], wanted, rtol=0, atol=1e-9)
        torch.testing.assert_close(found[name], wanted[own], rtol=0, atol=1e-9)


def test_states_of_layers_are_those_of_one_branch(build):
    model = build()
    tokens = batch(model)
    states = model(**tokens, tasks=["sentiment", "topic"], output_hidden_states=True).hidden_states
    assert len(states) == 3
    wanted = of_branch(model.backbone, "reviews")(**tokens, output_hidden_states=True).hidden_states
    assert all(torch.equal(one, other) for one, other in zip(states, wanted, strict=True))
    with pytest.raises(ValueError, match="tasks of one branch"):
        model(**tokens, output_hidden_states=True)


class Mixing(torch.nn.Module):
    """Adds the mean over all rows, which copies that run over some of them do not have."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, hidden, *args, **kwargs):
        return self.layer(hidden, *args, **kwargs) + hidden.mean(0)


@pytest.mark.parametrize("given", ["auto", "kind"])
def test_layers_that_mix_rows_stay_as_they_are(given, build):
    model = build(branches="none")
    for number in range(2):
        model.backbone.encoder.layer[number] = Mixing(model.backbone.encoder.layer[number])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model._plan_branches(BRANCHES, 1, "chosen" if given == "auto" else None)
    if given == "auto":
        model._branch_out()
        assert model.branching_reason == "no branches, which a backbone like bert cannot have"
    else:
        with pytest.raises(ValueError, match="cannot have branches: copies of its layers do not make"):
            model._branch_out()
    assert (model.config.branches, model.config.branch_layers, model.routing.branches) == (None, None, {})
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_idle_branches_run_in_their_place(build):
    """Processes that shard the weights of layers gather those of a branch at the same time, whatever rows they have."""
    model, run = build(), []
    for name, layer in model.backbone.encoder.layer[-1].branches.items():
        layer.register_forward_hook(lambda *_, name=name: run.append(name))
    given = batch(model)
    for rows in ({"sentiment": torch.tensor([0]), "same": torch.tensor([[1, 2]])}, {"same": torch.tensor([[0, 1]])}):
        labels = {task: torch.tensor([1]) for task in rows}
        model(**given, task_rows=rows, labels=labels, all_heads=True)
    assert run == list(BRANCHES) * 2


def test_what_a_backbone_calls_of_its_layers_concerns_all_branches(tmp_path):
    """BigBird reads short texts with full attention, which it sets in every layer at the first of them."""
    config = BigBirdConfig(
        vocab_size=600, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=20,
        max_position_embeddings=256, pad_token_id=0, block_size=4, num_random_blocks=1,
    )  # fmt: skip
    AutoModel.from_config(config).save_pretrained(tmp_path / "backbone")
    model = MultiTaskModel.from_backbone(
        tmp_path / "backbone", tasks=tasks(), branches=BRANCHES, branch_layers=1, pooling="mean"
    ).eval()
    model.save_pretrained(tmp_path / "saved")
    loaded = MultiTaskModel.from_pretrained(tmp_path / "saved").eval()
    for task, logits in model(**batch(model)).logits.items():
        torch.testing.assert_close(loaded(**batch(model)).logits[task], logits)


@pytest.mark.parametrize("quantized", [False, True])
def test_adapters_alone_find_the_weights_of_their_branches(quantized, build, tmp_path, monkeypatch):
    pytest.importorskip("peft", reason="the extra 'peft' is not installed")
    model = build(moved=False, lora={"r": 2, "init_lora_weights": False}).eval()
    model.save_pretrained(tmp_path, adapters_only=True)
    if quantized:  # as bitsandbytes loads it, with weights of the original size
        monkeypatch.setattr(adapted, "is_quantized", lambda _: True)
        monkeypatch.setattr(adapted, "take_out", lambda _: None)
    loaded = MultiTaskModel.from_pretrained(tmp_path).eval()
    assert {branch_of(name) for name, _ in loaded.named_parameters()} == {None, *BRANCHES}
    for task, logits in model(**batch(model)).logits.items():
        torch.testing.assert_close(loaded(**batch(model)).logits[task], logits)


def test_layers_of_branches_by_kind_are_not_set_aside(build):
    same = {name: SequenceClassification(label_names=["a", "b"]) for name in ("one", "two")}
    model = build(given=same, branches="kind", moved=False)
    assert model.config.branches is None
    with pytest.raises(
        ValueError, match=r"Found `branch_layers = 1` and `branches = 'kind'`, and all tasks are of one"
    ):
        model.add_branches("kind", 1)
    assert model.config.branches is None
