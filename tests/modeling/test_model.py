import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_multitask import MultiTaskModel, SequenceClassification, TokenClassification


@pytest.fixture
def batch(tokenizer):
    texts = ["A fine place.", "I will never go back there again!", "No.", "Good food, good service, bad music."]
    return dict(tokenizer(texts, padding=True, return_tensors="pt"))


def test_one_backbone_pass_serves_every_head(build_model, batch):
    model = build_model()
    passes = []
    model.backbone.register_forward_hook(lambda *_: passes.append(1))
    output = model(**batch)
    assert len(passes) == 1
    assert output.logits["sentiment"].shape == (4, 2)
    assert output.logits["ner"].shape == (*batch["input_ids"].shape, 9)
    assert output.loss is None


def test_tasks_names_the_heads_that_run(build_model, batch):
    assert list(build_model()(**batch, tasks=["ner"]).logits) == ["ner"]
    assert list(build_model()(**batch, tasks="ner").logits) == ["ner"]
    with pytest.raises(ValueError, match=r"no task 'nre'; it has sentiment, ner. Did you mean 'ner'?"):
        build_model()(**batch, tasks=["nre"])


def test_labels_are_by_task(build_model, batch):
    model, labels = build_model(), torch.zeros(4, dtype=torch.long)
    with pytest.raises(ValueError, match=r"no task 'sentimen'.* Did you mean 'sentiment'?"):
        model(**batch, labels={"sentimen": labels})
    with pytest.raises(TypeError, match="`labels` should be a dict by task"):
        model(**batch, labels=labels)


def test_output_comes_as_a_tuple_where_that_is_asked_for(build_model, batch):
    model, labels = build_model(), {"sentiment": torch.zeros(4, dtype=torch.long)}
    output, (loss, losses, logits) = model(**batch, labels=labels), model(**batch, labels=labels, return_dict=False)
    assert loss == output.loss and losses == output.losses
    assert torch.equal(logits["ner"], output.logits["ner"])


def test_rows_reach_their_own_head_in_any_order(build_model, batch):
    model = build_model()
    rows = {"sentiment": torch.tensor([3, 0]), "ner": torch.tensor([1])}
    with torch.no_grad():
        everything, routed = model(**batch).logits, model(**batch, task_rows=rows).logits
    torch.testing.assert_close(routed["sentiment"], everything["sentiment"][[3, 0]])
    torch.testing.assert_close(routed["ner"], everything["ner"][[1]])


def test_head_sees_only_its_own_rows(build_model, batch):
    model = build_model()
    seen = []
    model.heads["ner"].native.classifier.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[0]))
    model(**batch, task_rows={"sentiment": torch.tensor([0, 1, 2]), "ner": torch.tensor([3])})
    assert seen == [1]


def test_loss_of_a_task_is_its_mean_and_the_loss_their_sum(build_model, batch):
    model = build_model()
    labels = {"sentiment": torch.tensor([0, 1]), "ner": torch.full((1, batch["input_ids"].shape[1]), -100)}
    labels["ner"][0, 1:4] = torch.tensor([0, 1, 2])
    output = model(**batch, task_rows={"sentiment": torch.tensor([0, 1]), "ner": torch.tensor([2])}, labels=labels)
    expected = -sum(output.logits["sentiment"].log_softmax(-1)[row, label] for row, label in enumerate([0, 1])) / 2
    torch.testing.assert_close(output.losses["sentiment"], expected)
    expected = -sum(output.logits["ner"].log_softmax(-1)[0, token, tag] for token, tag in zip([1, 2, 3], [0, 1, 2])) / 3
    torch.testing.assert_close(output.losses["ner"], expected)
    torch.testing.assert_close(output.loss, output.losses["sentiment"] + output.losses["ner"])


def test_absent_task_leaves_its_head_without_gradient(build_model, batch):
    model = build_model()
    model(
        **batch,
        task_rows={"ner": torch.tensor([0])},
        labels={"ner": torch.zeros(1, batch["input_ids"].shape[1]).long()},
    ).loss.backward()
    assert all(parameter.grad is None for parameter in model.heads["sentiment"].parameters())
    assert all(parameter.grad is not None for parameter in model.heads["ner"].parameters())


@pytest.mark.parametrize("set_to_none", [True, False])
def test_gradients_of_every_parameter_are_reset(set_to_none, build_model):
    model = build_model()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    model.zero_grad(set_to_none)
    left = {name: one.grad for name, one in model.named_parameters() if one.grad is not None}
    assert left.keys() == (set() if set_to_none else dict(model.named_parameters()).keys())
    assert not any(gradient.any() for gradient in left.values())


def test_batch_without_any_label_has_a_loss_of_zero_that_reaches_the_backbone(build_model, batch):
    model = build_model()
    loss = model(**batch, task_rows={}, labels={}).loss
    loss.backward()
    assert loss == 0
    assert model.backbone.embeddings.word_embeddings.weight.grad.abs().sum() == 0


def test_backbone_weights_are_the_pretrained_ones(build_model, backbone_path):
    saved = load_file(f"{backbone_path()}/model.safetensors")
    model = build_model()
    assert saved.keys() == model.backbone.state_dict().keys()
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(value, saved[name]), name
    assert all(parameter.device.type == "cpu" for parameter in model.parameters())


@pytest.mark.parametrize("pooling", ["native", "mean"])
def test_fresh_heads_follow_the_seed_and_the_familys_initialisation(pooling, build_model):
    first, second = build_model(pooling=pooling), build_model(pooling=pooling)
    for name, value in first.heads.state_dict().items():
        assert torch.equal(value, second.heads.state_dict()[name])
        expected = 0.0 if name.endswith("bias") else 0.02
        assert value.std() == pytest.approx(expected, abs=0.008)


def test_pooler_is_left_out_where_no_head_reads_it(build_model, tasks):
    assert build_model().backbone.pooler is not None
    assert build_model(tasks={"ner": tasks["ner"]}).backbone.pooler is None
    assert build_model(pooling="mean").backbone.pooler is None


def test_dropout_sets_every_probability(build_model, batch):
    assert {
        module.p for module in build_model("gpt2", dropout=0.0).modules() if isinstance(module, torch.nn.Dropout)
    } == {0.0}
    model = build_model(dropout=0.0).train()
    with torch.no_grad():
        first, second = model(**batch).logits, model(**batch).logits
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert {module.p for module in build_model(dropout=0.3).modules() if isinstance(module, torch.nn.Dropout)} == {0.3}


@pytest.mark.parametrize("pooling", ["cls", "mean", "last"])
def test_pooling_reads_the_states_it_names(pooling, build_model, batch, tmp_path):
    model = build_model(pooling=pooling)
    with torch.no_grad():
        hidden = model.backbone(**batch).last_hidden_state
        mask = batch["attention_mask"].bool()
        pooled = torch.stack(
            [
                {"cls": row[keep][0], "mean": row[keep].mean(0), "last": row[keep][-1]}[pooling]
                for row, keep in zip(hidden, mask)
            ]
        )
        torch.testing.assert_close(
            model(**batch).logits["sentiment"], model.heads["sentiment"].pooled.classifier(pooled)
        )
    model.save_pretrained(tmp_path)
    loaded = MultiTaskModel.from_pretrained(tmp_path)
    assert torch.equal(loaded(**batch).logits["sentiment"], model(**batch).logits["sentiment"])


def test_dtype_and_attention_reach_the_backbone(build_model, batch, tmp_path):
    model = build_model(dtype=torch.bfloat16, attn_implementation="eager")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.backbone.config._attn_implementation == "eager"
    model.save_pretrained(tmp_path)
    assert MultiTaskModel.from_pretrained(tmp_path, dtype="auto").dtype == torch.bfloat16


def test_missing_or_foreign_head_in_a_checkpoint_is_an_error_that_names_it(build_model, tmp_path):
    build_model().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    partial = {name: value for name, value in weights.items() if not name.startswith("heads.ner")}
    save_file(partial, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"has no weights for head 'ner'"):
        MultiTaskModel.from_pretrained(tmp_path)
    weights["heads.pos.native.classifier.bias"] = torch.zeros(3)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"has foreign weights for head 'pos'"):
        MultiTaskModel.from_pretrained(tmp_path)


def test_head_waits_for_its_labels(build_model, batch, tmp_path):
    model = build_model(tasks={"sentiment": SequenceClassification(), "ner": TokenClassification()})
    with pytest.raises(ValueError, match=r"Task 'sentiment' has no head, because its labels are not known"):
        model(**batch)
    with pytest.raises(ValueError, match=r"Task 'sentiment' has no head"):
        model.save_pretrained(tmp_path)
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    model.set_task("ner", TokenClassification(label_names=["O", "B-X"]).to_dict())
    assert all(torch.equal(value, before[name]) for name, value in model.backbone.state_dict().items())
    assert model(**batch, tasks=["ner"]).logits["ner"].shape[-1] == 2
    with pytest.raises(ValueError, match=r"Task 'ner' has a head for 2 labels, and 3 are given"):
        model.set_task("ner", TokenClassification(label_names=["O", "B-X", "I-X"]).to_dict())


def test_embeddings_resize_through_the_model(build_model, tmp_path):
    model = build_model()
    model.resize_token_embeddings(650)
    assert model.backbone.embeddings.word_embeddings.num_embeddings == 650
    model.save_pretrained(tmp_path)
    assert MultiTaskModel.from_pretrained(tmp_path).backbone.embeddings.word_embeddings.num_embeddings == 650


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"tasks": {}}, "The model has no tasks"),
        ({"dropout": 1.5}, "`dropout` should be at least 0 and less than 1. Found `dropout = 1.5`"),
        ({"pooling": "maen"}, "`pooling` should be one of .* Did you mean 'mean'?"),
        ({"tasks": {"x": {"type": "token-clasification"}}}, "unknown type .* Did you mean 'token-classification'?"),
    ],
)
def test_unusable_arguments_fail_when_built(build_model, kwargs, message):
    with pytest.raises(ValueError, match=message):
        build_model(**kwargs)


@pytest.mark.parametrize("task", [None, "token-classification", SequenceClassification])
def test_what_is_no_task_is_refused(task, build_model):
    with pytest.raises(TypeError, match="Task 'mood' should be a task object"):
        build_model().add_task("mood", task)


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_labels_that_come_late_make_the_model_they_would_have_made(family, build_model, tmp_path):
    tasks = {"ner": TokenClassification(), "pos": TokenClassification()}
    model = build_model(family, tasks=tasks)
    for name in tasks:
        model.set_task(name, TokenClassification(label_names=["O", "B-X"]).to_dict())
    model.save_pretrained(tmp_path)
    assert MultiTaskModel.from_pretrained(tmp_path).state_dict().keys() == model.state_dict().keys()


def test_last_token_is_found_in_half_precision():
    from transformers import BertConfig

    from hf_multitask.modeling.heads import PooledLinear

    head = PooledLinear(BertConfig(hidden_size=4), num_labels=4, pooling="last").eval()
    torch.nn.init.eye_(head.classifier.weight)
    torch.nn.init.zeros_(head.classifier.bias)
    hidden, mask = torch.randn(2, 600, 4).bfloat16(), torch.ones(2, 600, dtype=torch.long)
    mask[1, 300:] = 0
    assert torch.equal(head.bfloat16()(hidden, mask), torch.stack([hidden[0, 599], hidden[1, 299]]))
