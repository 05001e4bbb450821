"""Long texts: read whole in windows that overlap, or cut and counted, within the memory of a batch."""

import tracemalloc

import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny import NER_LABELS, make_tokenizer, read_rows
from transformers import pipeline

from hf_multitask import MultiTaskTrainer, QuestionAnswering, SequenceClassification, TokenClassification
from hf_multitask.data import encode_dataset, group_tasks
from hf_multitask.modeling.inputs import Encoder
from hf_multitask.tasks import build_task

WORDS = [word for row in read_rows("ner", "train", 60) for word in row["tokens"]]
TAGS = [tag for row in read_rows("ner", "train", 60) for tag in row["ner_tags"]]
LONG = {"tokens": WORDS[:400], "ner_tags": TAGS[:400], "label": "a"}
SHORT = {"tokens": WORDS[:5], "ner_tags": TAGS[:5], "label": "b"}


def ner(**kwargs):
    return TokenClassification(dataset="rows", label_names=NER_LABELS, **kwargs)


def topic(**kwargs):
    return SequenceClassification(dataset="rows", text_column="tokens", label_names=["a", "b"], **kwargs)


def train(build_model, arguments, tasks, rows, family="bert", **kwargs):
    return MultiTaskTrainer(
        build_model(family, tasks=tasks),
        arguments(per_device_eval_batch_size=4, **kwargs.pop("args", {})),
        train_dataset={"rows": Dataset.from_list(rows)},
        eval_dataset={"rows": Dataset.from_list(rows)},
        processing_class=make_tokenizer(family),
        **kwargs,
    )


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("family", ["bert", "xlm-roberta", "t5", "llama", "gpt2"])
@pytest.mark.parametrize("stride", [0, 5, 40])
def test_windows_hold_every_token_and_begin_as_the_text_is_cut(family, side, stride, build_model):
    tokenizer = make_tokenizer(family)
    tokenizer.truncation_side = side
    text = " ".join(WORDS[:200])
    encoder = Encoder(tokenizer, build_model(family).config.backbone_config, {"max_length": 50})
    windows = encoder.windows(text, stride)
    assert windows.rows[0]["input_ids"] == tokenizer(text, truncation=True, max_length=50)["input_ids"]
    assert all(len(row["input_ids"]) <= 50 for row in windows.rows)
    whole = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    assert [windows.rows[window]["input_ids"][place] for window, place in windows.home()] == whole
    if stride:  # the edges of a window that are not those of the text count in its neighbour
        inside = [place for window, place in windows.home()[60:-60]]
        assert min(inside) >= windows.lead + stride // 2
        assert max(inside) < windows.lead + windows.room - stride // 2 + 1
    with pytest.raises(ValueError, match=r"`stride` should be below \d+, the tokens of a text in a window of 50"):
        encoder.windows(text, 50)


@pytest.mark.parametrize("make", [ner, topic])
def test_a_stride_as_long_as_a_window_is_refused_where_all_texts_are_short(make, build_model, arguments):
    with pytest.raises(ValueError, match=r"Task 't': `stride` should be below 8, .* Found `stride = 8`"):
        train(
            build_model, arguments, {"t": make(stride=8, max_length=10)}, [SHORT | {"tokens": ["a"], "ner_tags": ["O"]}]
        )


def test_long_text_is_answered_by_all_of_its_words(build_model, arguments):
    tasks = {"name": TokenClassification(dataset="rows", tags_column="names", label_names=["no", "yes"])}
    rows = [{**row, "names": ["no" if tag == "O" else "yes" for tag in row["ner_tags"]]} for row in (LONG, SHORT)]
    trainer = train(build_model, arguments, tasks, rows, args={"max_steps": 1})
    trainer.train()
    answer = pipeline("multitask", model=trainer.model, tokenizer=trainer.processing_class)
    found = answer([row["tokens"] for row in rows], batch_size=2)
    hits = 0
    for row, of_row in zip(rows, found, strict=True):
        assert [tag["word_indices"] for tag in of_row["name"]] == [[index] for index in range(len(row["tokens"]))]
        assert [tag["word"] for tag in of_row["name"]] == row["tokens"]
        hits += sum(tag["entity"] == name for tag, name in zip(of_row["name"], row["names"], strict=True))
    assert trainer.evaluate()["eval_name_accuracy"] == pytest.approx(hits / 405)


def test_a_task_that_cuts_shares_the_first_window(build_model, arguments, caplog):
    tasks = {"topic": topic(), "ner": ner()}
    assert list(group_tasks({name: build_task(name, task.to_dict()) for name, task in tasks.items()})) == ["rows"]
    trainer = train(build_model, arguments, tasks, [LONG, SHORT])
    assert "1 of 2 rows of 'rows' (train) are longer than 78 tokens and were cut" in caplog.text
    batch = trainer.data_collator(trainer.train_dataset.__getitems__([0, 1]))
    assert batch["task_rows"]["topic"].tolist() == [0, batch["task_rows"]["ner"].max().item()]
    assert batch["labels"]["ner"].dim() == 3
    model, passes = trainer.model.eval(), []
    model.backbone.register_forward_pre_hook(lambda *_: passes.append(1))
    answer = pipeline("multitask", model=model, tokenizer=trainer.processing_class)([LONG["tokens"]])[0]
    assert len(passes) == 1
    cut = trainer.processing_class(" ".join(LONG["tokens"]), truncation=True, return_tensors="pt")
    logits = model(**cut, tasks=["topic"]).logits["topic"]
    assert answer["topic"]["score"] == pytest.approx(logits.softmax(-1).max().item(), abs=1e-5)


def test_stride_averages_the_windows_of_a_classifier(build_model):
    model, tokenizer = build_model(tasks={"topic": topic(stride=20)}).eval(), make_tokenizer("bert")
    text = " ".join(LONG["tokens"])
    windows = tokenizer(
        text, truncation=True, stride=20, return_overflowing_tokens=True, padding=True, return_tensors="pt"
    )
    windows.pop("overflow_to_sample_mapping")
    expected = model(**windows).logits["topic"].mean(0).softmax(-1).max().item()
    answer = pipeline("multitask", model=model, tokenizer=tokenizer)
    assert answer(text)["topic"]["score"] == pytest.approx(expected, abs=1e-5)
    assert answer([text, "Short."], batch_size=2)[0]["topic"]["score"] == pytest.approx(expected, abs=1e-5)


def test_stride_is_for_single_texts():
    with pytest.raises(ValueError, match="`stride` applies to single texts"):
        SequenceClassification(stride=8, text_pair_column="other")


@pytest.mark.parametrize("task_lora", [None, {"r": 2, "init_lora_weights": False}])
def test_a_pass_in_parts_is_the_pass(task_lora, build_model, arguments):
    tasks = {
        "ner": ner(),
        "topic": topic(stride=10),
        "answer": QuestionAnswering(dataset="rows", context_column="tokens", doc_stride=10),
    }
    rows = [{**row, "question": "Who?", "answers": {"text": [], "answer_start": []}} for row in (LONG, SHORT)]
    trainer = train(build_model, arguments, tasks, rows)
    model = trainer.model.double().train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    if task_lora is not None:
        pytest.importorskip("peft")
        model.add_adapters(None, {"topic": task_lora})
        model.double()
    features = [trainer.train_dataset.__getitems__(list(range(len(trainer.train_dataset))))]
    found = []
    for in_parts in (True, False):
        model.reads_in_parts = in_parts
        model.zero_grad()
        shapes: list[int] = []

        def note(_, __, given, shapes=shapes):
            shapes.append(len(given["input_ids"]))

        hook = model.backbone.register_forward_pre_hook(note, with_kwargs=True)
        output = model(**trainer.data_collator(features[0]))
        output.loss.backward()
        hook.remove()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        found.append((output, gradients, max(shapes)))
    (one, ours, most), (other, theirs, all_rows) = found
    assert most <= 24 < all_rows
    for name in tasks:
        torch.testing.assert_close(one.losses[name], other.losses[name], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(one.logits[name], other.logits[name], rtol=1e-9, atol=1e-12)
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-8, atol=1e-12)


def test_evaluation_keeps_the_tags_of_labelled_tokens_only(build_model, arguments):
    huge = {"tokens": WORDS * 4, "ner_tags": TAGS * 4}
    short = {"tokens": SHORT["tokens"], "ner_tags": SHORT["ner_tags"]}
    trainer = train(build_model, arguments, {"ner": ner()}, [huge, *[short] * 300])
    padded = 301 * len(huge["tokens"]) * len(NER_LABELS) * 4  # bytes, were every row as long as the longest
    tracemalloc.start()
    trainer.evaluate()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < padded / 4
    found = trainer.predict({"rows": Dataset.from_list([short, short])})["ner"]
    assert found.predictions.shape == (2, 5, len(NER_LABELS))
    assert found.label_ids.tolist() == [[NER_LABELS.index(tag) for tag in SHORT["ner_tags"]]] * 2


def test_logits_are_preprocessed_batch_by_batch(build_model, arguments):
    seen = []

    def metric(prediction):
        seen.append(prediction.predictions)
        hits = (prediction.predictions == prediction.label_ids)[prediction.label_ids != -100]
        return {"accuracy": hits.mean()}

    kept = {"ner": lambda logits, labels: logits.argmax(-1)}
    trainer = train(
        build_model,
        arguments,
        {"ner": ner()},
        [LONG, SHORT],
        compute_metrics={"ner": metric},
        preprocess_logits_for_metrics=kept,
    )
    expected = train(build_model, arguments, {"ner": ner()}, [LONG, SHORT]).evaluate()["eval_ner_accuracy"]
    assert trainer.evaluate()["eval_ner_accuracy"] == pytest.approx(expected)
    assert seen[0].shape == (2, 400)
    assert np.issubdtype(seen[0].dtype, np.integer)
    kwargs = {"compute_metrics": {"ner": metric}, "preprocess_logits_for_metrics": kept["ner"]}
    other = train(build_model, arguments, {"ner": ner()}, [LONG, SHORT], **kwargs)
    assert other.evaluate()["eval_ner_accuracy"] == pytest.approx(expected)
    with pytest.raises(ValueError, match="`preprocess_logits_for_metrics` names the task 'ner'"):
        train(build_model, arguments, {"ner": ner()}, [SHORT], preprocess_logits_for_metrics=kept)


def test_all_tokens_of_a_word_may_train_and_the_first_one_answers(build_model, arguments):
    rows = [LONG, SHORT]
    one = train(build_model, arguments, {"ner": ner()}, rows)
    other = train(build_model, arguments, {"ner": ner(label_all_tokens=True)}, rows)
    found, expected = other.evaluate(), one.evaluate()
    for metric in ("f1", "precision", "recall", "accuracy"):
        assert found[f"eval_ner_{metric}"] == expected[f"eval_ner_{metric}"]


def test_labels_without_a_token_are_counted_and_stay_gold(build_model, arguments, caplog):
    rows = [{"tokens": ["Ada", "", "\u200d", "Oslo"], "ner_tags": ["B-PER", "B-PER", "O", "B-LOC"]}] * 3
    trainer = train(build_model, arguments, {"ner": ner()}, rows)
    assert "Task 'ner': 3 labels (train) are of words or spans without a token" in caplog.text.replace(
        "6 labels", "3 labels"
    )
    logits = np.zeros((4, len(NER_LABELS)))
    gold = trainer.eval_dataset.references("ner")[0]
    assert len(gold["tags"]) == 4
    for place, tag in enumerate(gold["tags"]):
        if gold["places"][place] >= 0:
            logits[gold["places"][place], tag] = 1
    found = trainer.tasks["ner"].score(
        [logits], None, unseen=[], references=[gold], loss=0.0, tokenizer=trainer.processing_class
    )
    assert found["recall"] == pytest.approx(2 / 3)
    assert found["precision"] == 1


def test_targets_that_are_cut_are_counted(build_model, caplog):
    model = build_model("t5", tasks={"tldr": {"type": "summarization", "max_target_length": 8}})
    task = build_task("tldr", {"type": "summarization", "max_target_length": 8})
    rows = Dataset.from_list(
        [{"document": "one", "summary": " ".join(WORDS[:40])}, {"document": "two", "summary": "a"}]
    )
    encoded = encode_dataset(
        "tldr",
        rows,
        [task],
        tokenizer=make_tokenizer("t5"),
        config=model.config.backbone_config,
        split="train",
        training=True,
    )
    assert encoded.total("cut", "tldr") == 1


def test_a_length_that_the_backbone_lacks_is_refused(build_model, arguments):
    with pytest.raises(ValueError, match=r"Task 'ner': `max_length` should be 80 tokens at most, .* `max_length = 81`"):
        train(build_model, arguments, {"ner": ner(max_length=81)}, [SHORT])
    trainer = train(build_model, arguments, {"topic": topic(max_length=200)}, [LONG, SHORT], family="t5")
    assert max(trainer.train_dataset.lengths()["rows"]) == 200
