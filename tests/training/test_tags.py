"""Tags that are decoded as sequences: training, evaluation, answers, and what holds them."""

import copy
import json

import pytest
import torch
from adapting import BOTH
from datasets import Dataset
from fork_server import python
from layouts import relative_difference
from parameters import few
from tiny import NER_LABELS, make_tokenizer
from transformers import AutoModel, AutoModelForTokenClassification, pipeline
from truth import TAGS, make_rows, measured

from hf_multitask import MultiTaskModel, MultiTaskTrainer, SequenceClassification, TokenClassification
from hf_multitask.modeling.chain import LinearChain
from hf_multitask.modeling.schemes import is_allowed
from hf_multitask.training.preparation.setup import begin_model
from hf_multitask.training.runtime import PlainRuntime

COMMON = {"dataset": "rows", "label_names": TAGS}
WORDS = {"tags_column": "tags", **COMMON}
TASKS = {
    "constrained": TokenClassification(decoding="constrained", **WORDS),
    "parts": TokenClassification(decoding="constrained", label_all_tokens=True, **WORDS),
    "iob1": TokenClassification(decoding="constrained", scheme="IOB1", **WORDS),
    "crf": TokenClassification(decoding="crf", **WORDS),
    "spans": TokenClassification(decoding="crf", text_column="text", spans_column="spans", **COMMON),
    "pos": TokenClassification(decoding="crf", tags_column="pos", dataset="rows", label_names=["NAME", "REST"]),
}
WITHOUT = """
import json, sys
sys.modules["hf_multitask"] = None
from transformers import pipeline
print(json.dumps(pipeline("multitask", sys.argv[1], trust_remote_code=True)(json.loads(sys.argv[2]))))
"""


def crf(**kwargs):
    return TokenClassification(label_names=NER_LABELS, decoding="crf", **kwargs)


def spread(model, seed=0):
    """Draw the scores of all chains of a model."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        for parameter in module.parameters() if isinstance(module, LinearChain) else ():
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def given(name, row):
    return {"text": row["text"] if name == "spans" else row["tokens"]}


@pytest.fixture
def trained(build_model, arguments):
    """A model of all tasks that has learned a little, with long rows and rows that no scheme allows."""

    def run(family, **kwargs):
        rows = make_rows(21, seed=5, longest=15)
        data = {"rows": Dataset.from_list(rows)}
        trainer = MultiTaskTrainer(
            spread(build_model(family, tasks=TASKS, **kwargs)),
            arguments(max_steps=6, learning_rate=5e-3, per_device_eval_batch_size=5),
            train_dataset=data,
            eval_dataset=data,
            processing_class=make_tokenizer(family),
        )
        trainer.train()
        return trainer, rows

    return run


@pytest.mark.parametrize("family", few(["bert", "gpt2"], ["bert"]))
def test_metrics_are_those_of_the_answers(family, trained, caplog):
    trainer, rows = trained(family)
    assert (
        "Task 'crf': " in caplog.text and "rows (train) have tags in an order that its scheme does not" in caplog.text
    )
    metrics, predicted = trainer.evaluate(), trainer.predict({"rows": Dataset.from_list(rows)})
    answer = pipeline("multitask", model=trainer.model, tokenizer=trainer.processing_class)
    for name in TASKS:
        found = [one[name] for one in answer([given(name, row) for row in rows], tasks=[name], batch_size=4)]
        key = "accuracy" if name == "pos" else "f1"
        kind = name if name in ("spans", "pos") else "words"
        assert metrics[f"eval_{name}_{key}"] == pytest.approx(measured(kind, rows, found), abs=1e-12), name
        assert predicted[name].metrics[f"test_{name}_{key}"] == metrics[f"eval_{name}_{key}"], name
        assert predicted[name].predictions.shape[-1] == len(trainer.model.config.task(name)["label_names"])
        assert all(0 <= tag["score"] <= 1 + 1e-6 for of_row in found for tag in of_row)


def test_answers_are_allowed_and_those_of_argmax_are_not(trained):
    trainer, _ = trained("bert")
    names, changed = TAGS, 0
    for name in ("constrained", "crf"):
        head = trainer.model.heads[name]
        logits = 5 * torch.randn(40, 9, len(names), generator=torch.Generator().manual_seed(1))
        there = torch.ones(40, 9, dtype=torch.bool)
        for tags, best in zip(head.tagged(logits, there).tags.view(40, 9), logits.argmax(-1)):
            assert is_allowed([names[tag] for tag in tags.tolist()], "BIO")
            changed += not is_allowed([names[tag] for tag in best.tolist()], "BIO")
    assert changed


def test_argmax_is_as_it_was(build_model, tokenizer):
    model = build_model(tasks={"ner": TokenClassification(label_names=NER_LABELS)}).eval()
    assert "heads.ner.crf.transitions" not in model.state_dict()
    logits = model(**tokenizer("Ada Lovelace met him.", return_tensors="pt")).logits["ner"]
    assert model.heads["ner"].tagged(logits, torch.ones(logits.shape[:2], dtype=torch.bool)) is None
    labels = torch.randint(9, logits.shape[:2])
    expected = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none").sum(1)
    assert torch.equal(model.heads["ner"].loss(logits, labels), expected)


@pytest.mark.parametrize("more", [{}, {"aggregation": "pcgrad"}, {"balancing": "uncertainty"}], ids=str)
def test_accumulation_does_not_change_the_update(more, build_model, arguments, data, tokenizer):
    tasks = {"ner": crf(), "sentiment": SequenceClassification(label_names=["negative", "positive"])}

    def run(batch, accumulation):
        model = spread(build_model(dropout=0.0, tasks=tasks).double())
        args = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation, **more}
        trainer = MultiTaskTrainer(model, arguments(**args), train_dataset=data(56, 24), processing_class=tokenizer)
        trainer.train()
        return model.state_dict()

    whole = run(32, 1)
    moved = whole["heads.ner.crf.transitions"] - spread(build_model(tasks=tasks).double()).heads["ner"].crf.transitions
    assert moved.abs().min() > 1e-2  # at a hundred times the rate of 1e-3, which sinks over three steps
    assert relative_difference(whole, run(8, 4)) < 1e-9


def test_the_loss_is_divided_by_the_words_of_the_step(build_model, tokenizer):
    model = build_model(tasks={"ner": crf()}).eval()
    tokens = tokenizer(["Ada Lovelace met him.", "No."], return_tensors="pt", padding=True)
    labels = torch.full(tokens["input_ids"].shape, -100)
    labels[0, 1:4], labels[1, 1] = torch.tensor([1, 2, 0]), 0
    output = model(**tokens, labels={"ner": labels})
    plain = torch.nn.functional.cross_entropy(output.logits["ner"][labels >= 0], labels[labels >= 0])
    assert output.losses["ner"].item() == pytest.approx(plain.item(), abs=1e-6)  # as the scores are 0
    labels[0, 2] = 99  # a tag that the model does not have, as evaluation may find
    assert model.heads["ner"].items(labels).tolist() == [2, 1]
    assert model.heads["ner"].loss(output.logits["ner"], labels).isfinite().all()


@pytest.mark.slow
@pytest.mark.process
def test_saved_models_answer_alike_without_the_package(trained, tmp_path):
    trainer, rows = trained("bert")
    trainer.save_model(str(tmp_path))
    asked = [rows[0]["tokens"], rows[1]["text"]]
    answer = pipeline("multitask", model=str(tmp_path))(asked)
    result = python(WITHOUT, str(tmp_path), json.dumps(asked), folder=tmp_path)
    assert result.returncode == 0, result.stderr[-2000:]
    for own, theirs in zip(answer, json.loads(result.stdout.splitlines()[-1]), strict=True):
        assert own.keys() == theirs.keys() == TASKS.keys()
        for name, spans in own.items():
            assert [span | {"score": 0} for span in spans] == [span | {"score": 0} for span in theirs[name]]
            assert [span["score"] for span in spans] == pytest.approx(
                [span["score"] for span in theirs[name]], abs=1e-5
            )
    loaded = AutoModel.from_pretrained(tmp_path)
    assert loaded.config.task("iob1")["scheme"] == "IOB1" and loaded.config.task("crf")["decoding"] == "crf"
    assert torch.equal(loaded.heads["crf"].crf.transitions, trainer.model.heads["crf"].crf.transitions)


def test_a_stock_model_holds_constrained_tags_and_no_chain(build_model, tokenizer, tmp_path):
    tasks = {"ner": TokenClassification(label_names=NER_LABELS, decoding="constrained"), "chain": crf()}
    model = build_model(tasks=tasks).eval()
    with pytest.raises(ValueError, match=r"Task 'chain' has the scores of tags .*\(decoding='crf'\), which no stock"):
        model.export_task("chain", tmp_path / "chain", tokenizer)
    model.export_task("ner", tmp_path / "ner", tokenizer)
    tokens = dict(tokenizer("Ada Lovelace met him.", return_tensors="pt"))
    stock = copy.deepcopy(AutoModelForTokenClassification.from_pretrained(tmp_path / "ner"))
    assert torch.equal(stock(**tokens).logits, copy.deepcopy(model)(**tokens, tasks=["ner"]).logits["ner"])
    card = (tmp_path / "ner" / "README.md").read_text()
    assert "the best sequence of tags that BIO allows" in card and 'aggregation_strategy="first"' in card


def test_a_stock_model_becomes_a_task_with_a_chain(build_model, backbone_path, tokenizer):
    model = build_model(tasks={"ner": TokenClassification(label_names=NER_LABELS)}).eval()
    stock, tokens = model.task_model("ner"), tokenizer("Ada Lovelace met him.", return_tensors="pt")
    taken = MultiTaskModel.from_task_models({"ner": stock}, backbone="ner", tasks={"ner": crf()})
    assert not taken.heads["ner"].crf.transitions.any()
    torch.testing.assert_close(taken(**tokens).logits["ner"], model(**tokens).logits["ner"])


@pytest.mark.slow
def test_a_graph_says_how_its_logits_are_decoded(build_model, tokenizer, tmp_path):
    onnx = pytest.importorskip("onnx", reason="the extra 'onnx' is not installed")
    tasks = {"ner": TokenClassification(label_names=NER_LABELS, decoding="constrained"), "chain": crf()}
    model = spread(build_model(tasks=tasks))
    written = onnx.load(str(model.export_onnx(tmp_path, tokenizer)), load_external_data=False)
    described = json.loads({entry.key: entry.value for entry in written.metadata_props}["tasks"])
    assert {key: described["ner"][key] for key in ("decoding", "scheme")} == {
        "decoding": "constrained",
        "scheme": "BIO",
    }
    assert "crf" not in described["ner"] and described["chain"]["crf"].keys() == {"starts", "ends", "transitions"}
    assert torch.equal(torch.tensor(described["chain"]["crf"]["transitions"]), model.heads["chain"].crf.transitions)


def test_the_decoding_of_a_trained_task_can_be_changed(build_model, arguments, data, tokenizer):
    model = build_model(tasks={"ner": TokenClassification(label_names=NER_LABELS)})
    rows = {"ner": data(1, 12)["ner"]}

    def measure(decoding):
        task = {"ner": TokenClassification(label_names=NER_LABELS, decoding=decoding)}
        return MultiTaskTrainer(
            model, arguments(), tasks=task, eval_dataset=rows, processing_class=tokenizer
        ).evaluate()

    found = {decoding: measure(decoding) for decoding in ("argmax", "constrained", "crf")}
    assert model.config.task("ner")["decoding"] == "crf" and not model.heads["ner"].crf.transitions.any()
    # A new chain is a softmax, decoded as the scheme allows.
    assert (
        found["crf"]["eval_ner_accuracy"]
        == found["constrained"]["eval_ner_accuracy"]
        != found["argmax"]["eval_ner_accuracy"]
    )
    assert len({round(one["eval_ner_loss"], 5) for one in found.values()}) == 1
    measure(None)  # a task that names none, as the recipe of an evaluation may, keeps that of the model
    assert model.config.task("ner")["decoding"] == "crf" and model.heads["ner"].crf is not None
    measure("argmax")
    assert not any("crf" in name for name in model.state_dict())
    before = model.config.task("ner")
    with pytest.raises(ValueError, match="Task 'ner': `decoding` should be one of argmax, constrained, crf"):
        model.set_task("ner", {**before, "decoding": "best"})
    assert model.config.task("ner") is before


@pytest.mark.parametrize("more", [{"branches": "kind", "branch_layers": 1}, BOTH], ids=["branches", "adapters"])
def test_chains_train_beside_branches_and_adapters(more, build_model, arguments, data, tokenizer, tmp_path):
    tasks = {"ner": crf(), "sentiment": SequenceClassification(label_names=["negative", "positive"])}
    model = build_model(tasks=tasks, **more)
    trainer = MultiTaskTrainer(model, arguments(), train_dataset=data(16, 16), processing_class=tokenizer)
    trainer.train()
    assert model.heads["ner"].crf.transitions.any()
    trainer.save_model(str(tmp_path / "model"))
    loaded = MultiTaskModel.from_pretrained(tmp_path / "model")
    assert torch.equal(loaded.heads["ner"].crf.transitions, model.heads["ner"].crf.transitions)


def test_every_parameter_has_a_gradient_where_processes_wait_for_it(build_model, tokenizer):
    model = build_model(tasks={"ner": crf(), "sentiment": SequenceClassification(label_names=["a", "b"])})
    tokens = tokenizer(["Good."], return_tensors="pt")
    rows = {"sentiment": torch.tensor([0])}
    output = model(**tokens, task_rows=rows, labels={"sentiment": torch.tensor([0])}, all_heads=True)
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in model.heads["ner"].parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheme": "IOB2"}, "`scheme` should be one of BIO, BIOES, BILOU, IOB1, none.*'IOB2'"),
        ({"decoding": "viterbi"}, "`decoding` should be one of argmax, constrained, crf.*'viterbi'"),
        ({"scheme": "BIO", "label_names": ["O", "S-A"]}, "`scheme = 'BIO'` is for the label O and .*B-, I-.*'S-A'"),
        ({"scheme": "BILOU", "label_names": ["O", "B-A", "E-A"]}, "begin with B-, I-, L-, U-. Found the label 'E-A'"),
        ({"scheme": "IOB1", "label_names": ["O", "NOUN"]}, "Found the label 'NOUN'"),
        ({"decoding": "constrained", "scheme": "none"}, "needs a scheme, .*Found `scheme = 'none'`"),
        (
            {"decoding": "constrained", "label_names": ["N", "V"]},
            "needs a scheme, .*the labels N, V, which are of none",
        ),
        ({"decoding": "constrained", "label_names": ["O", "I-A"]}, "never answer the label 'I-A'.* scheme BIO allows"),
        ({"decoding": "crf", "label_names": ["O", "B-A", "S-A"]}, "never answer the label 'B-A'.* scheme BIOES allows"),
        ({"decoding": "constrained", "label_names": ["B-A", "E-A"]}, "needs a label for a word of its own"),
        ({"decoding": "crf", "label_all_tokens": True}, "`label_all_tokens` labels parts of words. Leave one of them"),
        (
            {"scheme": "IOB1", "text_column": "text", "spans_column": "spans"},
            "is for tags of words, and `spans_column`",
        ),
    ],
)
def test_unusable_structures_fail_when_built(options, message, build_model):
    with pytest.raises(ValueError, match=f"TokenClassification: .*{message}"):
        TokenClassification(**options)
    plain = {"type": "token-classification", "label_names": ["O", "B-A"], **options}
    if not {"label_all_tokens", "spans_column"} & options.keys():
        with pytest.raises(ValueError, match=f"Task 't': .*{message}"):
            build_model(tasks={"t": plain})


def test_sharded_weights_are_refused_for_chains(build_model, arguments):
    class Sharded(PlainRuntime):
        engine = "FSDP"

    model = build_model(tasks={"ner": crf()})
    runtime = Sharded(arguments(), model, torch.optim.SGD(model.parameters()))
    with pytest.raises(
        ValueError, match=r"Task 'ner': its loss reads weights .* FSDP shards them\. .* decoding='constrained'"
    ):
        begin_model(model, runtime)


@pytest.mark.parametrize("option", [{"class_weights": {"B-A": 2}}, {"label_smoothing": 0.1}, {"loss": "focal"}])
def test_losses_of_single_tags_are_not_for_chains(option, build_model):
    task = {"type": "token-classification", "label_names": ["O", "B-A"], "decoding": "crf", **option}
    with pytest.raises(ValueError, match=f"Task 't': `{next(iter(option))}` changes the loss of single tags"):
        build_model(tasks={"t": task})


def test_labels_without_a_scheme_may_be_chained():
    assert TokenClassification(label_names=["N", "V"], decoding="crf").metric_names == ["accuracy"]
    assert TokenClassification(label_names=["O", "B-A", "I-A"], scheme="none", decoding="crf").metric_names == [
        "accuracy"
    ]
    assert TokenClassification(label_names=["O", "I-A"], scheme="IOB1", decoding="constrained").metric_names[0] == "f1"


@pytest.mark.parametrize("teacher", ["argmax", "crf"])
def test_chains_have_no_teachers_and_are_none(teacher, build_model, arguments, data, tokenizer):
    tasks = {name: {"ner": TokenClassification(label_names=NER_LABELS, decoding=name)} for name in ("argmax", "crf")}
    student = tasks["crf" if teacher == "argmax" else "argmax"]
    with pytest.raises(
        ValueError, match="whole sequences, and teachers" if teacher == "argmax" else "Found decoding='crf'"
    ):
        MultiTaskTrainer(
            build_model(tasks=student),
            arguments(),
            train_dataset={"ner": data(1, 8)["ner"]},
            processing_class=tokenizer,
            teachers={"ner": build_model(tasks=tasks[teacher])},
        )
