"""Learning rates, weight decays and freezing, as the optimizer has them and as the weights show them."""

import re
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from reading import TASKS, TEXT, rows_of
from tiny import ALL, CONFIGS
from transformers import AutoModel, AutoTokenizer, CanineConfig, DebertaV2Config, Wav2Vec2Config, WhisperConfig

from hf_multitask import MultiTaskModel, MultiTaskTrainer
from hf_multitask.training.parameters import freeze, layer_factors, shared_parameters


@pytest.fixture
def build(build_model, data, arguments, tokenizer):
    def make(family="bert", model=None, **kwargs):
        return MultiTaskTrainer(
            build_model(family, dropout=0.0, **(model or {})),
            arguments(**kwargs),
            train_dataset=data(),
            processing_class=tokenizer,
        )

    return make


def wav2vec2():
    sizes = {"conv_dim": (8,) * 5, "conv_kernel": (3,) * 5, "conv_stride": (2,) * 5, "num_feat_extract_layers": 5}
    sizes |= {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16, "num_hidden_layers": 3}
    return Wav2Vec2Config(**sizes, num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2)


def whisper():
    sizes = {"d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    return WhisperConfig(**sizes, **heads, vocab_size=50, pad_token_id=0, bos_token_id=1, eos_token_id=2)


def settings(trainer):
    """By parameter, its learning rate and weight decay."""
    optimizer = trainer.create_optimizer()
    names = {parameter: name for name, parameter in trainer.model.named_parameters()}
    return {
        names[parameter]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def test_rates_and_decays_by_task_and_of_the_backbone(build):
    found = settings(
        build(
            learning_rate=1e-3,
            weight_decay=0.1,
            learning_rates={"ner": 5e-3, "backbone": 1e-4},
            weight_decays={"ner": 0},
        )
    )
    assert found["heads.ner.native.classifier.weight"] == (5e-3, 0)
    assert found["heads.sentiment.native.classifier.weight"] == (1e-3, 0.1)
    assert found["heads.sentiment.native.classifier.bias"] == (1e-3, 0)  # biases and norms never decay
    assert found["backbone.encoder.layer.0.output.dense.weight"] == (1e-4, 0.1)
    assert found["backbone.embeddings.LayerNorm.weight"] == (1e-4, 0)
    assert found.keys() == dict(build().model.named_parameters()).keys()


def test_layers_below_the_branches_have_a_rate_of_their_own(build):
    given = {"learning_rate": 1e-3, "weight_decay": 0.1, "weight_decays": {"shared_layers": 0.2}}
    rates = {"shared_layers": 1e-4, "ner": 5e-3}
    below, above, head = (
        "backbone.encoder.layer.0.output.dense.weight",
        "backbone.encoder.layer.1.branches.{}.output.dense.weight",
        "heads.{}.native.classifier.weight",
    )
    model = {"branches": {"words": ["ner"], "texts": ["sentiment"]}, "branch_layers": 1}
    found = settings(build(model=model, learning_rates=rates, **given))
    assert found[below] == found["backbone.embeddings.word_embeddings.weight"] == (1e-4, 0.2)
    assert found[above.format("words")] == found[above.format("texts")] == (1e-3, 0.1)
    assert (found[head.format("ner")], found[head.format("sentiment")]) == ((5e-3, 0.1), (1e-3, 0.1))
    found = settings(build(model=model, learning_rates={"backbone": 1e-5, **rates}, **given))
    assert (found[below][0], found[above.format("words")][0]) == (1e-4, 1e-5)
    found = settings(build(learning_rates=rates, **given))  # all layers are below none
    assert found["backbone.encoder.layer.1.output.dense.weight"] == (1e-4, 0.2)


def test_rates_of_what_does_not_train_are_told(build, caplog):
    trainer = build(learning_rates={"ner": 1e-3, "shared_layers": 1e-4, "backbone": 1e-4}, weight_decays={"ner": 0.1})
    freeze(trainer.model, ["ner"])
    trainer.create_optimizer()
    told = [one for one in caplog.messages if "has no effect" in one]
    assert [re.findall("[`'](.+?)[`']", one) for one in told] == [
        ["learning_rates", "backbone"],  # without branches, all layers are shared
        ["learning_rates", "ner"],
        ["weight_decays", "ner"],
    ]


def test_weight_decay_does_not_depend_on_what_tasks_and_branches_are_called(build, tasks):
    found = {}
    for name in ("reviews", "gender_bias"):
        reviews = replace(tasks["sentiment"], dataset="sentiment")
        own = {"tasks": {name: reviews, "ner": tasks["ner"]}, "task_lora": {"r": 2}}
        trainer = build(model={**own, "branches": {name: [name], "tags": ["ner"]}}, weight_decay=0.1)
        for parameter in trainer.model.parameters():
            parameter.requires_grad_(True)
        found[name] = {key.replace(name, "reviews"): value for key, value in settings(trainer).items()}
    assert found["gender_bias"] == found["reviews"]
    assert {decay for _, decay in found["reviews"].values()} == {0, 0.1}


def test_without_such_arguments_the_optimizer_is_the_trainers(build):
    assert [len(group["params"]) for group in build().create_optimizer().param_groups] == [
        len(group["params"]) for group in super(MultiTaskTrainer, build()).create_optimizer().param_groups
    ]


def test_layerwise_decay_is_the_papers_formula(build):
    found = settings(build(learning_rate=1e-3, layerwise_lr_decay=0.5))
    expected = {
        "backbone.pooler.dense.weight": 1e-3,
        "backbone.encoder.layer.1.output.dense.weight": 1e-3,
        "backbone.encoder.layer.0.output.dense.weight": 5e-4,
        "backbone.embeddings.word_embeddings.weight": 2.5e-4,
        "heads.ner.native.classifier.weight": 1e-3,
    }
    assert {name: found[name][0] for name in expected} == expected


@pytest.mark.parametrize("family", CONFIGS)
def test_layers_and_embeddings_of_every_family_are_found(family, build_model, tasks):
    model = build_model(family, tasks={"sentiment": tasks["sentiment"]})
    factors = layer_factors([name for name, _ in model.named_parameters()], 0.5)
    embedding = next(
        name for name, value in model.named_parameters() if value is model.backbone.get_input_embeddings().weight
    )
    layers = 1 if family == "albert" else 2  # whose layers share their weights
    assert factors[embedding] == 0.5**layers
    assert set(factors.values()) == {0.5**power for power in range(layers + 1)}


@pytest.mark.parametrize(
    ("config", "below", "layers"),
    [
        *((ALL[family], ("shared.",), 2) for family in ("bart", "mbart", "marian", "t5", "mt5")),
        (ALL["mpnet"], ("embeddings.", "encoder.relative_attention_bias."), 2),
        (wav2vec2, ("feature_extractor.", "feature_projection.", "encoder.pos_conv_embed.", "masked_spec_embed"), 3),
        (whisper, ("encoder.conv1.", "encoder.conv2.", "encoder.embed_positions.", "decoder.embed_tokens."), 2),
    ],
)
def test_what_is_below_all_layers_has_the_lowest_rate(config, below, layers):
    with torch.device("meta"):
        model = AutoModel.from_config(config())
    factors = layer_factors([f"backbone.{name}" for name, _ in model.named_parameters()], 0.5)
    lowest = {name for name, factor in factors.items() if factor == 0.5**layers}
    assert all(any(name.startswith(f"backbone.{part}") for name in lowest) for part in below)
    assert lowest >= {name for name in factors if name.startswith(tuple(f"backbone.{part}" for part in below))}
    assert min(factors.values()) == 0.5**layers and max(factors.values()) == 1


def test_convolutions_between_and_above_layers_are_not_below_them():
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 20}
    for config, name in (
        (CanineConfig(**sizes), "projection.conv.weight"),
        (DebertaV2Config(**sizes, vocab_size=50, conv_kernel_size=3, conv_act="gelu"), "encoder.conv.conv.weight"),
    ):
        with torch.device("meta"):
            model = AutoModel.from_config(config)
        factors = layer_factors([f"backbone.{name}" for name, _ in model.named_parameters()], 0.5)
        assert factors[f"backbone.{name}"] == 1, name


@pytest.mark.parametrize("part", ["backbone", "ner"])
def test_frozen_parts_stay_and_the_others_train(part, build):
    trainer = build(freeze=[part], weight_decay=0.1)
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    moved = {name for name, value in trainer.model.named_parameters() if not torch.equal(value, before[name])}
    prefix = "backbone." if part == "backbone" else "heads.ner."
    assert not any(name.startswith(prefix) for name in moved)
    assert any(name.startswith("heads.sentiment.") for name in moved)
    assert any(name.startswith("backbone.") for name in moved) == (part != "backbone")


@pytest.mark.parametrize(
    ("frozen", "moving"),
    [
        ((), ("branches.words.", "branches.texts.", "heads.ner.", "heads.sentiment.")),
        (("ner",), ("branches.texts.", "heads.sentiment.", "pooler.")),  # which ner does not read
    ],
)
def test_frozen_shared_layers_leave_branches_and_heads_to_the_tasks_that_train(frozen, moving, build):
    model = {"branches": {"words": ["ner"], "texts": ["sentiment"]}, "branch_layers": 1}
    trainer = build(model=model, freeze=["shared_layers", *frozen], weight_decay=0.1)
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    moved = [name for name, value in trainer.model.named_parameters() if not torch.equal(value, before[name])]
    assert all(any(part in name for part in moving) for name in moved)
    assert all(any(part in name for name in moved) for part in moving)


@pytest.mark.parametrize(
    ("frozen", "trained", "pooler"),
    [
        ((), None, False),
        (("ner",), None, True),  # which ner does not read
        ((), ["sentiment"], False),
        (("ner",), ["sentiment", "more"], True),
        (("ner",), ["sentiment"], False),  # which a task reads that neither trains nor is frozen by name
    ],
)
def test_a_frozen_backbone_has_its_branches(frozen, trained, pooler, build_model, tasks):
    given = {**tasks, "more": replace(tasks["sentiment"], dataset="sentiment")}
    branches = {"words": ["ner"], "texts": ["sentiment", "more"]}
    model = build_model(tasks=given, branches=branches, branch_layers=1)
    freeze(model, ["backbone", *frozen], trained)
    training = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    own = {f"heads.{name}." for name in given if name not in frozen and name in (trained or given)}
    own |= {"backbone.pooler."} if pooler else set()
    assert {next((part for part in own if name.startswith(part)), name) for name in training} == own


def test_a_new_branch_trains_alone_and_the_others_need_no_data(build_model, data, arguments, tasks, tokenizer):
    model = build_model(tasks=tasks, branches={"words": ["ner"], "texts": ["sentiment"]}, branch_layers=1)
    model.add_task("new", replace(tasks["sentiment"], dataset="new"), branch="fresh")
    tokens = tokenizer([TEXT, "Short one."], padding=True, return_tensors="pt")
    with torch.no_grad():
        before = model.eval()(**tokens, tasks=["ner", "sentiment"]).logits
    own = {"new": data()["sentiment"]}
    args = arguments(freeze=["shared_layers", "ner", "sentiment"], weight_decay=0.1)
    weights = {name: value.clone() for name, value in model.named_parameters()}
    MultiTaskTrainer(model, args, train_dataset=own, processing_class=tokenizer).train()
    with torch.no_grad():
        after = model.eval()(**tokens, tasks=["ner", "sentiment"]).logits
    assert all(torch.equal(after[name], before[name]) for name in before)
    moved = [name for name, value in model.named_parameters() if not torch.equal(value, weights[name])]
    assert any("branches.fresh." in name for name in moved)
    assert all("branches.fresh." in name or name.startswith("heads.new.") for name in moved)


@pytest.mark.parametrize(
    ("family", "kind", "fresh"),
    [
        ("bert", "sequence-classification", "backbone.pooler."),
        ("bert", "fill-mask", "backbone.cls."),
        ("distilbert", "question-answering", "heads.new."),
        ("bart", "sequence-classification", "heads.new."),
    ],
)
def test_a_new_task_trains_alone_and_the_others_need_no_data(
    family, kind, fresh, backbone_path, build_model, arguments, tmp_path
):
    tokenizer = AutoTokenizer.from_pretrained(backbone_path(family))
    old = {"old": TASKS["question-answering" if family == "bart" else "token-classification"]()}
    build_model(family, tasks=old).save_pretrained(tmp_path / "old")
    model = MultiTaskModel.from_pretrained(tmp_path / "old")
    model.add_task("new", TASKS[kind]())
    tokens = tokenizer([TEXT, "Short one."], padding=True, return_tensors="pt")
    with torch.no_grad():
        before = model(**tokens, tasks=["old"]).logits["old"]
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = MultiTaskTrainer(
        model,
        arguments(freeze=["backbone", "old"], weight_decay=0.1, eval_strategy="epoch"),
        train_dataset={"new": rows_of(kind)},
        eval_dataset={"new": rows_of(kind, 6, "validation")},
        processing_class=tokenizer,
    )
    trainer.train()
    with torch.no_grad():
        assert torch.equal(model.eval()(**tokens, tasks=["old"]).logits["old"], before)
    moved = [name for name, value in model.state_dict().items() if not torch.equal(value, weights[name])]
    assert any(name.startswith(fresh) for name in moved)
    assert all(name.startswith((fresh, "heads.new.")) for name in moved)
    assert "eval_old_loss" not in trainer.evaluate()


def test_patience_of_a_new_task_ends_the_training_of_it_alone(build_model, data, arguments, tasks, tokenizer):
    model = build_model(tasks={"ner": tasks["ner"]})
    model.add_task("sentiment", tasks["sentiment"])
    trainer = MultiTaskTrainer(
        model,
        arguments(
            freeze=["backbone", "ner"],
            learning_rate=0.0,
            eval_strategy="steps",
            eval_steps=1,
            max_steps=9,
            task_early_stopping_patience=1,
        ),
        train_dataset={"sentiment": data()["sentiment"]},
        eval_dataset=data(split="validation"),
        processing_class=tokenizer,
    )
    trainer.train()
    assert trainer.state.global_step == 2
    assert set(trainer.progress.finished) == {"sentiment"}


def test_frozen_head_still_teaches_the_backbone(build, data, build_model, arguments, tokenizer):
    model = build_model(dropout=0.0)
    before = model.backbone.encoder.layer[0].output.dense.weight.clone()
    MultiTaskTrainer(
        model,
        arguments(freeze=["ner"], task_weights={"sentiment": 0}),
        train_dataset=data(),
        processing_class=tokenizer,
    ).train()
    assert not torch.equal(before, model.backbone.encoder.layer[0].output.dense.weight)


@pytest.fixture
def with_model(data, arguments, tokenizer):
    """A trainer of a given model."""

    def make(model, **kwargs):
        return MultiTaskTrainer(model, arguments(**kwargs), train_dataset=data(), processing_class=tokenizer)

    return make


def resting(model):
    return {name for name, parameter in model.named_parameters() if not parameter.requires_grad}


@pytest.mark.parametrize("parts", [["backbone"], ["ner"], ["shared_layers", "sentiment"]])
def test_every_trainer_freezes_what_its_own_arguments_name(parts, build_model, with_model, data, tokenizer, arguments):
    model = build_model(dropout=0.0, branches={"words": ["ner"], "texts": ["sentiment"]}, branch_layers=1)
    model.backbone.embeddings.requires_grad_(False)
    by_hand = resting(model)
    first = with_model(model, freeze=parts)
    frozen = resting(model)
    assert frozen > by_hand
    MultiTaskTrainer(model, arguments(), eval_dataset=data(), processing_class=tokenizer)  # trains nothing
    assert resting(model) == frozen
    with pytest.raises(
        ValueError, match=r"leaves nothing to train. Found `freeze = \['backbone', 'ner', 'sentiment'\]`"
    ):
        with_model(model, freeze=["backbone", "ner", "sentiment"])
    assert resting(model) == by_hand
    second = with_model(model)
    assert resting(model) == by_hand
    for trainer, still in [(first, frozen), (second, by_hand)]:
        before = {name: value.clone() for name, value in model.named_parameters()}
        trainer.train()
        assert resting(model) == still
        assert {name for name, value in model.named_parameters() if torch.equal(value, before[name])} == still


def test_what_is_frozen_in_parts_is_turned_on_together(build_model):
    model = build_model()
    model.freeze_parameters(model.heads["ner"].parameters())
    model.freeze_parameters(model.heads.parameters())
    assert resting(model) == {f"heads.{name}" for name, _ in model.heads.named_parameters()}
    model.unfreeze_parameters()
    assert resting(model) == set()


def test_a_copy_knows_what_is_frozen(build_model, with_model):
    model = build_model(dropout=0.0)
    with_model(model, freeze=["backbone"])
    copy = deepcopy(model)
    with_model(copy)
    assert resting(copy) == set() != resting(model)


@pytest.mark.parametrize("change", ["task", "branch", "branches", "labels", "removal"])
def test_a_changed_model_is_frozen_by_no_earlier_trainer(change, build_model, with_model, tasks):
    model = build_model(dropout=0.0, **({"branches": "kind", "branch_layers": 1} if change == "branch" else {}))
    with_model(model, freeze=["backbone", "ner"])
    if change in ("task", "branch"):
        model.add_task("more", tasks["ner"], **({"branch": "own"} if change == "branch" else {}))
    elif change == "branches":
        model.add_branches({"words": ["ner"], "texts": ["sentiment"]}, 1)
    elif change == "labels":
        model.add_labels("ner", ["B-NEW", "I-NEW"])
    else:
        model.remove_task("sentiment")
    rest = {id(parameter) for parameter in model.unread_parameters(model.heads)}
    assert all(parameter.requires_grad == (id(parameter) not in rest) for parameter in model.parameters())


def test_a_backbone_that_was_frozen_rests_under_its_adapters(build_model, with_model):
    pytest.importorskip("peft", reason="the extra 'peft' is not installed")
    fresh = build_model(dropout=0.0)
    fresh.add_adapters(lora={"r": 2})
    model = build_model(dropout=0.0)
    with_model(model, freeze=["backbone"])
    model.add_adapters(lora={"r": 2})
    assert resting(model) == resting(fresh)
    with_model(model, freeze=["backbone"])
    with_model(model)
    assert resting(model) == resting(fresh)


def test_unusable_arguments_fail_when_built(build):
    for kwargs, message in [
        ({"freeze": ["backbone", "ner", "sentiment"]}, "`freeze` leaves nothing to train"),
        ({"freeze": ["nre"]}, "`freeze` names the task 'nre'.* Did you mean 'ner'?"),
        ({"freeze": True}, "Parameter `freeze` should be a list of names. Found `freeze = True`"),
        ({"tasks": ["ner", 3]}, r"Parameter `tasks` should be a list of names. Found `tasks = \['ner', 3\]`"),
        ({"learning_rates": {"bakbone": 1e-3}}, "`learning_rates` names the task 'bakbone'.* Did you mean 'backbone'?"),
        (
            {"learning_rates": {"ner": -1e-3}},
            "`learning_rates` should hold numbers of 0 or more. Found -0.001 for 'ner'",
        ),
        ({"layerwise_lr_decay": 0.0}, "`layerwise_lr_decay` should be more than 0 and at most 1"),
        ({"optim": "lomo"}, "`optim` should not update weights in the backward pass.*Found `optim = 'lomo'`"),
        ({"optim": "galore_adamw_layerwise"}, "`optim` should not update weights in the backward pass"),
    ]:
        with pytest.raises(ValueError, match=message):
            build(**kwargs)


def test_adapters_of_single_tasks_are_not_shared(build_model):
    pytest.importorskip("peft", reason="the extra 'peft' is not installed")
    model = build_model(lora={"r": 2}, task_lora={"r": 3})
    shared = {id(parameter) for parameter in shared_parameters(model)}
    names = [name for name, parameter in model.named_parameters() if id(parameter) in shared]
    assert names and all(".lora_" in name and "._shared." in name for name in names)
