"""The layer that a head reads: an index of the hidden states, or a mix of all."""

import pytest
import torch
from adapting import BOTH
from parameters import few
from processes import BLOCK, run
from reading import TASKS
from safetensors.torch import save_file
from sounds import SPEAKERS, batch_of, recordings, save_encoder
from tiny import ALL, NER_LABELS, WRITERS

from hf_multitask import (
    AudioClassification,
    FillMask,
    MultipleChoice,
    MultiTaskModel,
    QuestionAnswering,
    SentenceSimilarity,
    SequenceClassification,
    TextGeneration,
    TokenClassification,
)
from hf_multitask.modeling.native import asked_inputs, reading_part
from hf_multitask.modeling.routing import States

OFF = -1e9  # a weight whose share is 0
TYPES = {
    "sentiment": lambda **given: SequenceClassification(label_names=["negative", "positive"], **given),
    "ner": lambda **given: TokenClassification(label_names=NER_LABELS, **given),
    "answers": QuestionAnswering,
    "choices": MultipleChoice,
    "alike": SentenceSimilarity,
}


@pytest.fixture
def build(backbone_path):
    """A model whose tasks read some layers; the same weights at every call."""

    def make(layers, family="bert", *, pooling="native", **kwargs):
        tasks = {name: TYPES[name](layer=layer) for name, layer in layers.items()}
        kwargs, path = {"branches": None, "dropout": 0.0, **kwargs}, backbone_path(family)
        torch.manual_seed(1)
        model = MultiTaskModel.from_backbone(path, tasks=tasks, pooling=pooling, **kwargs)
        if model.config.get_text_config().pad_token_id is None:
            model.set_pad_token_id(4)
        return model.eval()

    return make


def batch(rows=4, length=9):
    ids = torch.randint(7, 500, (rows, length), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


def only(mix, state):
    """Give all weight of a mix to one state."""
    with torch.no_grad():
        mix.weights.fill_(OFF)
        mix.weights[state] = 0.0


@torch.no_grad()
@pytest.mark.parametrize("kind", TYPES)
def test_the_last_layer_is_what_heads_read_anyway(kind, build):
    plain, last, mixed = (build({kind: layer}) for layer in (None, 2, "mix"))
    wanted = plain(**batch()).logits[kind]
    assert plain.state_dict().keys() == last.state_dict().keys()
    assert torch.equal(last(**batch()).logits[kind], wanted)
    assert last.heads[kind].layer is None and last.config.task(kind)["layer"] == 2
    only(mixed.heads[kind].mix, 2)
    assert torch.equal(mixed(**batch()).logits[kind], wanted)


@torch.no_grad()
@pytest.mark.parametrize("family", few(sorted(ALL), ["bert", "albert", "gpt2", "longformer", "xlm"]))
def test_a_head_reads_the_states_of_its_layer(family, build):
    pooling = "mean" if family in WRITERS else "native"
    model = build({"sentiment": 1}, family, pooling=pooling)
    tokens = batch()
    found = model(**tokens).logits["sentiment"]
    asked = asked_inputs(model.config.backbone_config, model.heads.modules(), tokens["input_ids"])
    hidden = reading_part(model.backbone)(**tokens, **asked, output_hidden_states=True).hidden_states
    assert len(hidden) == 3
    head = model.heads["sentiment"]
    pooler = getattr(model.backbone.base_model, "pooler", None) if head.needs_pooler else None
    states = States(last_hidden_state=hidden[1])
    if isinstance(pooler, torch.nn.Linear):
        states.pooler_output = model.backbone.base_model.pooler_activation(pooler(hidden[1][:, 0]))
    elif pooler is not None:
        states.pooler_output = pooler(hidden[1])
    assert torch.equal(found, head(states, tokens["input_ids"], tokens["attention_mask"]))
    assert not torch.allclose(found, build({"sentiment": None}, family, pooling=pooling)(**tokens).logits["sentiment"])
    bottom = build({"sentiment": 0}, family, pooling=pooling)
    mixed = build({"sentiment": "mix"}, family, pooling=pooling)
    only(mixed.heads["sentiment"].mix, 0)
    assert torch.equal(bottom(**tokens).logits["sentiment"], mixed(**tokens).logits["sentiment"])


@torch.no_grad()
def test_a_new_mix_is_the_mean_of_all_states(build):
    model, tokens = build({"ner": "mix"}, "gpt2"), batch()
    hidden = reading_part(model.backbone)(**tokens, output_hidden_states=True).hidden_states
    assert model.heads["ner"].mix.weights.shape == (3,) and model.heads["ner"].mix.scale == 1
    head = model.heads["ner"]
    wanted = head(States(last_hidden_state=sum(hidden) / 3), tokens["input_ids"], tokens["attention_mask"])
    torch.testing.assert_close(model(**tokens).logits["ner"], wanted)
    head.mix.scale.fill_(2.0)
    wanted = head(States(last_hidden_state=2 * sum(hidden) / 3), tokens["input_ids"], tokens["attention_mask"])
    torch.testing.assert_close(model(**tokens).logits["ner"], wanted)


@torch.no_grad()
def test_one_pass_serves_all_tasks(build):
    model, tokens = build({"sentiment": 1, "ner": "mix", "alike": None, "choices": 0}), batch()
    passes = []
    model.backbone.register_forward_hook(lambda *_: passes.append(1))
    rows = {"sentiment": torch.tensor([3, 1]), "ner": torch.tensor([1]), "choices": torch.tensor([[0, 1], [2, -1]])}
    some, every = model(**tokens, task_rows=rows).logits, model(**tokens).logits
    assert len(passes) == 2
    torch.testing.assert_close(some["sentiment"], every["sentiment"][[3, 1]])
    torch.testing.assert_close(some["ner"], every["ner"][[1]])
    torch.testing.assert_close(some["choices"][0], every["choices"][[0, 1], 0])
    states = model(**tokens, tasks=["sentiment"], output_hidden_states=True).hidden_states
    assert len(states) == 3
    passes.clear()
    shown = []
    model.backbone.encoder.register_forward_hook(lambda *given: shown.append(given[2].hidden_states))
    assert model(**tokens, tasks=["alike"]).logits.keys() == {"alike"} and not any(shown)


@torch.no_grad()
@pytest.mark.parametrize("family", few(["bert", "gpt2", "t5", "longformer"], ["bert", "longformer"]))
def test_layers_of_branches_are_those_of_the_tasks_own(family, build):
    branches = {"branches": {"one": ["ner"], "other": ["sentiment"]}, "branch_layers": 1, "pooling": "mean"}
    pooling, tokens = {"pooling": "mean"}, batch()
    rows = {"sentiment": torch.tensor([0, 2, 1]), "ner": torch.tensor([1, 3])}
    for layer in (0, 1, 2, "mix"):
        model = build({"sentiment": layer, "ner": layer}, family, **branches)
        for name, weight in model.named_parameters():
            if ".branches.other." in name:
                weight += 0.1
        whole, some = model(**tokens).logits, model(**tokens, task_rows=rows).logits
        for name, own in rows.items():
            torch.testing.assert_close(some[name], whole[name][own], rtol=1e-4, atol=1e-5)
            alone = model(**tokens, tasks=[name]).logits[name]
            torch.testing.assert_close(alone, whole[name], rtol=1e-4, atol=1e-5)
        plain = build({"sentiment": layer, "ner": layer}, family, **pooling)
        wanted = plain(**tokens).logits
        torch.testing.assert_close(whole["ner"], wanted["ner"], rtol=1e-4, atol=1e-5)
        assert torch.allclose(whole["sentiment"], wanted["sentiment"], atol=1e-5) == (layer in (0, 1))


@pytest.mark.parametrize("more", [{}, BOTH, {"branches": {"a": ["ner"], "b": ["sentiment"]}, "branch_layers": 1}])
def test_checkpointing_gives_the_same_gradients(more, build):
    model = build({"sentiment": 1, "ner": "mix"}, **more).double().train()
    tokens = batch()
    rows = {"sentiment": torch.tensor([0, 3]), "ner": torch.tensor([1])}
    labels = {"sentiment": torch.tensor([0, 1]), "ner": torch.ones(1, 9, dtype=torch.long)}

    def gradients():
        model.zero_grad()
        model(**tokens, task_rows=rows, labels=labels).loss.backward()
        return {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}

    plain = gradients()
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    again = gradients()
    assert plain.keys() == again.keys() and plain["heads.ner.mix.weights"].any()
    assert all(torch.equal(plain[name], gradient) for name, gradient in again.items())


def test_layers_that_no_task_reads_rest(build):
    model = build({"sentiment": 1, "choices": 0})
    resting = {name for name, one in model.named_parameters() if not one.requires_grad}
    assert resting and all(name.startswith("backbone.encoder.layer.1.") for name in resting)
    layers = {*model.backbone.encoder.layer.parameters()}
    assert layers.intersection(model.unread_parameters(["choices"])) == layers
    assert layers.isdisjoint(model.unread_parameters(["choices", "sentiment"], layers=False))
    model.add_task("ner", TYPES["ner"]())
    assert all(one.requires_grad for one in model.parameters())
    model.remove_task("ner")
    assert {name for name, one in model.named_parameters() if not one.requires_grad} == resting


def test_heads_without_rows_get_a_gradient_of_zero_where_processes_wait_for_it(build):
    model = build({"sentiment": 1, "ner": "mix"}).train()
    rows, labels = {"sentiment": torch.tensor([0])}, {"sentiment": torch.tensor([1])}
    model(**batch(), task_rows=rows, labels=labels, all_heads=True).loss.backward()
    assert all(one.grad is not None for one in model.parameters())
    assert not model.heads["ner"].mix.weights.grad.any()
    model.zero_grad()
    model(**batch(), task_rows={}, labels={}, all_heads=True).loss.backward()
    assert all(one.grad is not None and not one.grad.any() for one in model.parameters())


@pytest.mark.slow
@pytest.mark.process
def test_models_load_without_the_package(build, tmp_path):
    model = build({"sentiment": 1, "ner": "mix", "alike": 0})
    torch.nn.init.normal_(model.heads["ner"].mix.weights)
    model.save_pretrained(tmp_path / "saved")
    tokens = batch()
    with torch.no_grad():
        wanted = model(**tokens).logits
    again = MultiTaskModel.from_pretrained(tmp_path / "saved")
    assert all(torch.equal(logits, wanted[name]) for name, logits in again(**tokens).logits.items())
    save_file({**tokens, **{f"wanted {name}": one for name, one in wanted.items()}}, tmp_path / "batch")
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


def test_only_the_last_layer_is_exported(build, tmp_path):
    model = build({"sentiment": 2, "ner": "mix", "choices": 1, "alike": 0})
    stock = model.task_model("sentiment")
    with torch.no_grad():
        assert torch.equal(stock(**batch()).logits, model(**batch()).logits["sentiment"])
    for name, what in (("ner", "a mix of layers"), ("choices", "layer 1"), ("alike", "layer 0")):
        with pytest.raises(
            ValueError, match=rf"Task '{name}' has a head on {what} \(`layer`\), and stock classes read"
        ):
            model.export_task(name, tmp_path / name)


@pytest.mark.slow
def test_graphs_have_the_layers_of_all_tasks(build, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    model = build({"sentiment": 1, "ner": "mix"})
    path, tokens = model.export_onnx(tmp_path), batch()
    given = {name: one.numpy() for name, one in tokens.items()}
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    given |= {one.name: given["input_ids"] * 0 for one in session.get_inputs() if one.name not in given}
    found = dict(zip([one.name for one in session.get_outputs()], session.run(None, given), strict=True))
    with torch.no_grad():
        for name, logits in model(**tokens).logits.items():
            torch.testing.assert_close(
                torch.from_numpy(found[f"{name}_logits"])[[0, 2]], logits[[0, 2]], atol=1e-5, rtol=0
            )


@pytest.mark.parametrize("layerdrop", [0.0, 1.0])
def test_recordings_are_read_at_a_layer(layerdrop, tmp_path):
    path = save_encoder(tmp_path / "encoder", layerdrop=layerdrop, apply_spec_augment=False, do_stable_layer_norm=False)

    def build(layer):
        torch.manual_seed(1)
        tasks = {"speaker": AudioClassification(label_names=list(SPEAKERS), layer=layer)}
        return MultiTaskModel.from_backbone(path, tasks=tasks, dropout=0.0)

    rows = batch_of(recordings(3))
    with torch.no_grad():
        last, below, bottom = (build(layer).eval()(**rows).logits["speaker"] for layer in (None, 1, 0))
        count = build(None).config.backbone_config.num_hidden_layers
        assert torch.equal(build(count).eval()(**rows).logits["speaker"], last)
        assert not torch.allclose(below, last) and not torch.allclose(below, bottom)
        trained = build(1).train()(**rows).logits["speaker"]
        torch.testing.assert_close(trained, bottom if layerdrop else below)  # all layers are left out


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (lambda: TYPES["ner"](layer=-1), r"`layer` should be the number of a layer.*'mix'. Found `layer = -1`"),
        (lambda: TYPES["ner"](layer=True), r"Found `layer = True`"),
        (lambda: TYPES["ner"](layer="mixx"), r"Found `layer = 'mixx'`. Did you mean 'mix'\?"),
        (lambda: TextGeneration(layer=1), r"TextGeneration: `layer` is for types with a head of their own"),
        (lambda: FillMask(layer="mix"), r"FillMask: `layer` is for types with a head of their own"),
    ],
)
def test_what_is_no_layer_is_refused(task, message):
    with pytest.raises(ValueError, match=message):
        task()


def test_layers_that_a_backbone_does_not_have_are_refused(build, backbone_path):
    with pytest.raises(ValueError, match=r"Task 'ner': `layer` should be from 0 to 2, as the backbone has 2 layers"):
        build({"ner": 3})
    with pytest.raises(ValueError, match=r"Task 'sentiment': `layer` is for heads on the states of a layer.* on bart"):
        build({"sentiment": 1}, "bart")
    task = TASKS["fill-mask"]().to_dict() | {"layer": 1}
    with pytest.raises(ValueError, match=r"Task 'words': `layer` is for heads on the states of a layer"):
        MultiTaskModel.from_backbone(backbone_path("bert"), tasks={"words": task})
    model = build({"ner": 1})
    with pytest.raises(ValueError, match=r"Task 'ner' has a head on `layer = 1`, and 2 is given. Keep the layer"):
        model.set_task("ner", {**model.config.task("ner"), "layer": 2})
