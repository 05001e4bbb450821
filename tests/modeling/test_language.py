"""Native language models under their heads: losses, logits where there are labels only, generation, joint models."""

import pytest
import reading
import torch
from datasets import Dataset
from parameters import few
from reading import TASKS, TEXT, rows_of
from tiny import DATA, NER_LABELS, read_rows
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    pipeline,
)

from hf_multitask import MultiTaskModel, MultiTaskTrainer, SequenceClassification, TokenClassification
from hf_multitask.modeling.language import Text2TextHead

STOCK = {
    "fill-mask": AutoModelForMaskedLM,
    "text-generation": AutoModelForCausalLM,
    "translation": AutoModelForSeq2SeqLM,
}
PAIRS = [
    *(("fill-mask", family) for family in ("bert", "roberta", "xlm", "distilbert", "electra", "albert", "modernbert")),
    *(("text-generation", family) for family in ("gpt2", "llama", "qwen3", "gemma", "gemma2", "gemma3")),
    *(("translation", family) for family in ("bart", "mbart", "marian", "t5", "mt5")),
]
WRITING = [pair for pair in PAIRS if pair[0] != "fill-mask"]


@pytest.fixture
def model_of(backbone_path):
    def make(family, *kinds):
        path = backbone_path(family)
        torch.manual_seed(1)
        model = MultiTaskModel.from_backbone(path, tasks={kind: TASKS[kind]() for kind in kinds}, dropout=0.0)
        tokenizer = AutoTokenizer.from_pretrained(path)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
            model.set_pad_token_id(tokenizer.pad_token_id)
        return model, tokenizer

    return make


def stock_of(model, kind):
    """The stock class with the shared model's weights."""
    stock = STOCK[kind].from_config(model.backbone.config).eval()
    stock.load_state_dict(model.backbone.state_dict())
    return stock


@pytest.mark.parametrize(("kind", "family"), PAIRS)
def test_loss_and_logits_are_the_stock_classes(kind, family, model_of):
    model, tokenizer = model_of(family, kind)
    tokens = dict(tokenizer([TEXT, "Short one."], padding=True, return_tensors="pt"))
    tokens = {name: tokens[name] for name in ("input_ids", "attention_mask")}
    labels = tokens["input_ids"].masked_fill(tokens["attention_mask"] == 0, -100)
    labels[0, 3:5] = -100  # not told
    if kind == "translation":
        labels = labels[:, :6].contiguous()
    stock = stock_of(model, kind)
    with torch.no_grad():
        ours, theirs = model(**tokens, labels={kind: labels}), stock(**tokens, labels=labels)
    told = model.heads[kind].targets(labels) != -100
    assert ours.logits[kind].shape == (int(told.sum()), theirs.logits.shape[-1])  # computed where there are labels
    torch.testing.assert_close(ours.logits[kind], theirs.logits[told], rtol=0, atol=1e-5)
    assert ours.loss.item() == pytest.approx(theirs.loss.item(), abs=1e-5)


@pytest.mark.parametrize(("kind", "family"), [("fill-mask", "bert"), ("translation", "bart"), ("translation", "t5")])
def test_a_language_model_whose_weights_are_on_disk_gives_the_same(kind, family, model_of, tmp_path):
    model, tokenizer = model_of(family, kind)
    tokens = dict(tokenizer([TEXT], return_tensors="pt"))
    tokens, labels = {"input_ids": tokens["input_ids"]}, {kind: tokens["input_ids"]}
    model.save_pretrained(tmp_path / "model")
    places = {"device_map": {"backbone": "disk", "heads": "cpu"}, "offload_folder": tmp_path / "offload"}
    spread = MultiTaskModel.from_pretrained(tmp_path / "model", **places)
    assert {parameter.device.type for parameter in spread.parameters()} == {"meta"}
    with torch.no_grad():
        expected, found = (one(**tokens, labels=labels).logits[kind] for one in (model, spread))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_the_chain_rule_gives_the_probability_of_a_text(model_of):
    model, tokenizer = model_of("gpt2", "text-generation")
    ids = tokenizer(TEXT, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        total = model(ids, labels={"text-generation": ids}).losses["text-generation"] * (ids.shape[1] - 1)
        by_hand = 0.0
        for end in range(1, ids.shape[1]):
            logits = model(ids[:, :end]).logits["text-generation"][0, -1]
            by_hand -= logits.log_softmax(-1)[ids[0, end]].item()
    assert total.item() == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.parametrize(("kind", "family"), WRITING)
@pytest.mark.parametrize("beams", [1, 3])
def test_generation_is_the_backbones_own_token_for_token(kind, family, beams, model_of, tmp_path):
    model, tokenizer = model_of(family, kind, "sentence-similarity")
    tokens = tokenizer([TEXT, "Short one."], padding=True, padding_side="left", return_tensors="pt")
    given = {name: tokens[name] for name in ("input_ids", "attention_mask")}
    options = {"max_new_tokens": 8, "num_beams": beams, "do_sample": False, "pad_token_id": tokenizer.pad_token_id}
    expected = stock_of(model, kind).generate(**given, **options)
    assert torch.equal(model.generate(**given, task=kind, **options), expected)
    model.save_pretrained(tmp_path)
    assert torch.equal(AutoModel.from_pretrained(tmp_path).generate(**given, task=kind, **options), expected)


def test_generation_settings_travel_with_the_model(model_of, tmp_path):
    model, _ = model_of("bart", "translation")
    model.backbone.generation_config.no_repeat_ngram_size = 2
    model.save_pretrained(tmp_path)
    assert AutoModel.from_pretrained(tmp_path).backbone.generation_config.no_repeat_ngram_size == 2


def test_a_task_that_writes_nothing_is_named(model_of):
    model, tokenizer = model_of("gpt2", "text-generation", "sequence-classification")
    tokens = tokenizer(TEXT, return_tensors="pt")
    with pytest.raises(ValueError, match=r"'sequence-classification' of type sequence-classification writes no text"):
        model.generate(**tokens, task="sequence-classification")


def test_the_language_model_stays_tied_to_the_embeddings(model_of, tmp_path):
    for family, kind in (("bert", "fill-mask"), ("gpt2", "text-generation"), ("bart", "translation")):
        model, _ = model_of(family, kind)
        model.save_pretrained(tmp_path / family)
        for one in (model, AutoModel.from_pretrained(tmp_path / family)):
            assert one.backbone.get_output_embeddings().weight is one.backbone.get_input_embeddings().weight


def test_a_classifier_beside_a_masked_language_model_keeps_the_pretrained_pooler(backbone_path):
    path = backbone_path("bert")
    tasks = {"words": TASKS["fill-mask"](), "sentiment": TASKS["sequence-classification"]()}
    pooler = MultiTaskModel.from_backbone(path, tasks=tasks).backbone.base_model.pooler
    assert torch.equal(pooler.dense.weight, AutoModel.from_pretrained(path).pooler.dense.weight)


@pytest.mark.parametrize(
    ("family", "kind", "message"),
    [
        ("bert", "text-generation", "needs a causal backbone with a language model; bert is bidirectional. Take a"),
        ("gpt2", "fill-mask", "needs a bidirectional backbone with a language model; gpt2 is causal. Take an encoder"),
        ("bert", "summarization", "needs an encoder-decoder backbone .*; bert is bidirectional. Take BART, mBART, T5"),
        ("t5", "text-generation", "needs a causal backbone .*; t5 is encoder-decoder"),
    ],
)
def test_backbones_that_would_not_do_are_refused_with_those_that_would(family, kind, message, backbone_path):
    with pytest.raises(ValueError, match=f"Task 't': {kind} {message}"):
        MultiTaskModel.from_backbone(backbone_path(family), tasks={"t": TASKS[kind]()})


def test_a_decoder_that_nobody_reads_rests(model_of):
    model, _ = model_of("t5", "question-answering")
    resting = {name for name, value in model.named_parameters() if not value.requires_grad}
    assert resting
    assert all(".decoder." in name for name in resting)
    model, _ = model_of("t5", "question-answering", "summarization")
    assert all(value.requires_grad for value in model.parameters())


# Joint models, as training runs

JOINT = {
    "bart: answers and summaries": ("bart", ["question-answering", "summarization"]),
    "t5: answers and summaries": ("t5", ["question-answering", "summarization"]),
    "t5: both as texts": ("t5", ["text2text-generation", "summarization"]),
    "gpt2: language, classes and tags": (
        "gpt2",
        ["text-generation", "sequence-classification", "token-classification"],
    ),
    "bert: masks and tags": ("bert", ["fill-mask", "token-classification"]),
    "t5: classes from the decoder": ("t5", ["sequence-classification", "translation"]),
}


@pytest.mark.parametrize("name", few(JOINT, ["t5: answers and summaries", "gpt2: language, classes and tags"]))
def test_joint_models_learn(name, backbone_path, arguments, tmp_path):
    family, kinds = JOINT[name]
    path = backbone_path(family)
    torch.manual_seed(1)
    trainer = MultiTaskTrainer(
        MultiTaskModel.from_backbone(path, tasks={kind: TASKS[kind]() for kind in kinds}, dropout=0.0),
        arguments(max_steps=60, learning_rate=5e-3, sampling="uniform", logging_steps=30),
        train_dataset={kind: rows_of(kind) for kind in kinds},
        processing_class=AutoTokenizer.from_pretrained(path),
    )
    train = {kind: rows_of(kind) for kind in kinds}
    before = trainer.evaluate(train)
    trainer.train()
    after = trainer.evaluate(train)
    for kind in kinds:
        assert after[f"eval_{kind}_loss"] < before[f"eval_{kind}_loss"] * 0.9, kind
    trainer.save_model(str(tmp_path / "saved"))
    pipe = pipeline("multitask", model=str(tmp_path / "saved"))
    for kind in kinds:
        reading_of = reading.INPUTS.get(kind, TEXT)
        assert list(pipe(reading_of, tasks=[kind])) == [kind]


def test_writers_stay_out_of_a_pass_without_targets(model_of):
    model, tokenizer = model_of("bart", "question-answering", "summarization")
    assert isinstance(model.heads["summarization"], Text2TextHead)
    tokens = tokenizer(TEXT, return_tensors="pt")
    tokens = {name: tokens[name] for name in ("input_ids", "attention_mask")}
    assert list(model(**tokens).logits) == ["question-answering"]
    with pytest.raises(ValueError, match=r"'summarization' reads the decoder. Give labels, or use generate"):
        model(**tokens, tasks=["summarization"])


# Many languages


@pytest.mark.parametrize("family", ["xlm-roberta", "xlm"])
def test_tasks_of_several_languages_share_a_backbone(family, backbone_path, arguments, tmp_path):
    from transformers import AutoConfig

    folder = tmp_path / "backbone"
    config = AutoConfig.from_pretrained(backbone_path(family))
    languages = {"en": 0, "de": 1, "fr": 2}
    if family == "xlm":
        config.n_langs, config.use_lang_emb = 3, True
        config.lang2id, config.id2lang = languages, {number: name for name, number in languages.items()}
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(backbone_path(family)).save_pretrained(folder)

    def spoken(language):
        return {"language": language} if family == "xlm" else {}

    tasks = {
        "english": SequenceClassification(label_names=["negative", "positive"], dataset="reviews", **spoken("en")),
        "german": TokenClassification(label_names=NER_LABELS, dataset="wiki", **spoken("de")),
        "french": TokenClassification(label_names=NER_LABELS, dataset="wiki", **spoken("fr")),
    }
    data = {
        "reviews": Dataset.from_list(read_rows("sentiment", "train", 16)),
        "wiki": Dataset.from_list(read_rows("ner", "train", 16)),
    }
    assert DATA.exists()
    trainer = MultiTaskTrainer(
        MultiTaskModel.from_backbone(str(folder), tasks=tasks),
        arguments(),
        train_dataset=data,
        eval_dataset=data,
        processing_class=AutoTokenizer.from_pretrained(folder),
    )
    trainer.train()
    assert {f"eval_{name}_loss" for name in tasks} <= set(trainer.evaluate())
    trainer.save_model(str(tmp_path / "saved"))
    answer = pipeline("multitask", model=str(tmp_path / "saved"))(TEXT)
    assert list(answer) == list(tasks)
    if family == "xlm":
        names = set(trainer.train_dataset.tasks)
        assert names == {"reviews", "german", "french"}  # the same rows in two languages are two inputs
        seen = {name: rows.rows[0]["langs"][0] for name, rows in zip(names, trainer.train_dataset.datasets)}
        assert set(seen.values()) == {0, 1, 2}
        with pytest.raises(ValueError, match=r"Task 'x' has the language 'dd', and the backbone xlm knows de, en, fr"):
            MultiTaskTrainer(
                MultiTaskModel.from_backbone(
                    str(folder), tasks={"x": SequenceClassification(label_names=["a", "b"], language="dd")}
                ),
                arguments(),
                train_dataset={"x": Dataset.from_list([{"text": "a", "label": "a"}])},
                processing_class=AutoTokenizer.from_pretrained(folder),
            )
