"""What teachers answer, and which teachers are refused."""

import json
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, load_dataset
from mixtures import make_data, make_tasks
from tiny import NER_LABELS, read_rows
from transformers import AutoModel, AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer

from hf_multitask import MultiTaskModel, SequenceClassification, TokenClassification
from hf_multitask.training.distillation import answers

pytestmark = pytest.mark.trainer


def soft_of(trainer, row):
    return trainer.train_dataset[row]["soft"]


def test_answers_are_those_of_the_stock_model_in_the_order_of_the_labels(build, teachers, data):
    trainer = build(teachers)
    model = AutoModelForSequenceClassification.from_pretrained(teachers["sentiment"]).eval()
    reads = AutoTokenizer.from_pretrained(teachers["sentiment"])
    found = np.array([soft_of(trainer, row)["sentiment"] for row in range(20)])
    assert found.std(0).min() > 1e-4
    for row, text in enumerate(data(20, 12)["sentiment"]["text"]):
        with torch.no_grad():
            positive, negative = model(**reads(text, truncation=True, return_tensors="pt")).logits[0].tolist()
        assert found[row] == pytest.approx([negative, positive], abs=1e-5)


def test_rows_that_a_teacher_reads_a_part_of_are_told(build, build_model, tokenizer, tmp_path, caplog):
    rows = [
        {"text": f"{word} day " * count, "label": count % 2} for word, count in (("one", 1), ("two", 20), ("six", 30))
    ]
    data = {"sentiment": Dataset.from_list(rows), "ner": Dataset.from_list(read_rows("ner", "train", 2))}
    for name, options, told in (
        ("short", {"max_length": 12}, True),
        ("windows", {"max_length": 12, "stride": 4}, False),
    ):
        task = SequenceClassification(label_names=["negative", "positive"], **options)
        build_model(tasks={"sentiment": task}).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        caplog.clear()
        build({"sentiment": str(tmp_path / name)}, train_dataset=data)
        said = "its teacher reads at most 12 tokens, so that its answers to 2 rows of 'sentiment' are to a part of them"
        assert (said in caplog.text) is told


def test_a_decoder_without_a_padding_token_teaches(build, teacher_of, data):
    path = teacher_of("sequence", ["negative", "positive"], "gpt2")
    trainer = build({"sentiment": path})
    model, reads = AutoModelForSequenceClassification.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)
    assert model.config.pad_token_id is None
    for row, text in enumerate(data(20, 12)["sentiment"]["text"][:3]):
        with torch.no_grad():
            logits = model(**reads(text, truncation=True, return_tensors="pt")).logits[0].tolist()
        assert soft_of(trainer, row)["sentiment"] == pytest.approx(logits, abs=1e-5)


def test_tags_of_another_tokenizer_are_matched_by_word(build, teachers, data):
    trainer = build(teachers)
    model = AutoModelForTokenClassification.from_pretrained(teachers["ner"]).eval()
    reads = AutoTokenizer.from_pretrained(teachers["ner"])
    compared = 0
    for row in range(12):
        feature = trainer.train_dataset[20 + row]
        words, numbers = data(20, 12)["ner"]["tokens"][row], feature["soft"]["ner"]
        if len(words) > 20:  # which both read in windows
            continue
        compared += 1
        told, places = np.reshape(numbers[0], (-1, len(NER_LABELS))), numbers[1]
        labels = feature["labels"]["ner"]
        assert places == [place for place, label in enumerate(labels) if label != -100]
        text, starts = " ".join(words), np.cumsum([0, *(len(word) + 1 for word in words)])
        encoding = reads(text, truncation=True, return_tensors="pt", return_offsets_mapping=True)
        offsets = encoding.pop("offset_mapping")[0].tolist()
        with torch.no_grad():
            logits = model(**encoding).logits[0]
        assert len(told) == len(words)
        for word, values in enumerate(told):
            first = next(n for n, (start, end) in enumerate(offsets) if start < end and end > starts[word])
            assert values == pytest.approx(logits[first].tolist()[::-1], abs=1e-4)
    assert compared > 2


def test_words_that_the_teacher_cuts_off_keep_their_labels(build, teacher_of, build_model, data, tasks):
    """A teacher of few positions reads long texts in windows, so that only words without a token are missing."""
    rows = Dataset.from_list([{"tokens": ["Ada", " ", "Oslo"], "ner_tags": [NER_LABELS[0]] * 3}] * 2)
    trainer = build({"ner": teacher_of("token", NER_LABELS)}, train_dataset={**data(4, 4), "ner": rows})
    numbers, places = soft_of(trainer, 5)["ner"]
    assert (len(numbers), len(places)) == (2 * len(NER_LABELS), 2)


def test_a_model_of_ours_teaches_numbers_pairs_sets_choices_and_scores(build, backbone_path):
    names = ("stars", "pairs", "topics", "choices", "scored")
    kinds, rows = make_tasks(names), make_data({"stars": 6, "pairs": 6, "reviews": 6, "choices": 6}, 0.0, 0)
    path = backbone_path()
    torch.manual_seed(5)
    teacher = MultiTaskModel.from_backbone(path, tasks=kinds, dropout=0.0)
    model = MultiTaskModel.from_backbone(path, tasks=kinds, dropout=0.0).double()
    with pytest.raises(ValueError, match=r"a teacher should have the task 'ner'\. Found stars, pairs"):
        build({"ner": teacher})
    device, training = teacher.device, teacher.training
    trainer = build(dict.fromkeys(names, teacher), model, rows, max_steps=2, per_device_train_batch_size=24)
    assert (teacher.device, teacher.training) == (device, training)
    taught = {name for feature in trainer.train_dataset for name in feature["soft"]}
    assert taught == set(names)
    # Gold weight 0 in the first step: a model that is its own teacher has the least loss that there is.
    own = build(
        dict.fromkeys(names, model), model, rows, max_steps=1, learning_rate=0.0, per_device_train_batch_size=24
    )
    own.train()
    assert own.state.log_history[0]["stars_loss"] == pytest.approx(0, abs=1e-6)
    assert own.state.log_history[0]["scored_loss"] == pytest.approx(0, abs=1e-6)
    trainer.train()
    assert trainer.state.global_step == 2


def test_rows_of_all_are_answered_where_they_contain_the_same_kind_of_input(build, backbone_path):
    names = ("sentiment", "topics", "pairs", "ner", "person", "stars")
    rows = make_data({"reviews": 6, "pairs": 5, "wiki": 4, "stars": 3}, 0.4, 1)
    model = MultiTaskModel.from_backbone(backbone_path(), tasks=make_tasks(names), dropout=0.0)
    trainer = build(
        dict.fromkeys(("sentiment", "pairs", "ner", "stars"), model),
        model,
        rows,
        distillation_kwargs={"rows": "all"},
        per_device_train_batch_size=18,
        max_steps=2,
    )
    taught = {}
    for feature in trainer.train_dataset:
        taught.setdefault(feature["dataset"], set()).add(tuple(sorted(feature["soft"])))
    # 'person' reads the words of 'wiki' as a text.
    assert taught == {
        "reviews": {("sentiment", "stars")},
        "pairs": {("pairs",)},
        "stars": {("sentiment", "stars")},
        "wiki": {("ner", "sentiment", "stars")},
    }
    trainer.train()


def cached(rows, folder):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path = folder / f"rows-{zlib.crc32(text.encode())}.jsonl"
    if not path.exists():  # a file that is written again is another for `datasets`
        path.write_text(text, encoding="utf-8")
    return load_dataset("json", data_files=str(path), split="train", cache_dir=str(folder / "cache"))


def test_answers_are_cached_by_rows_and_teacher(build, teacher_of, tmp_path, monkeypatch):
    asked = []
    run = answers.Answers._run
    monkeypatch.setattr(answers.Answers, "_run", lambda self, rows: asked.append(len(rows)) or run(self, rows))
    rows = read_rows("sentiment", "train", 10)

    def count(rows, teacher):
        asked.clear()
        data = {"sentiment": cached(rows, tmp_path), "ner": Dataset.from_list(read_rows("ner", "train", 4))}
        trainer = build({"sentiment": teacher}, train_dataset=data)
        return sum(asked), [soft_of(trainer, row)["sentiment"] for row in range(10)]

    first = teacher_of("sequence", ["positive", "negative"])
    other = teacher_of("sequence", ["positive", "negative"], "roberta")
    number, values = count(rows, first)
    assert number == 10
    assert count(rows, first) == (0, values)
    assert count([*rows[:9], {**rows[9], "text": "other words"}], first)[0] == 10
    assert count(rows, other)[0] == 10
    assert count(rows, first) == (0, values)

    # A run that is killed leaves no file that counts, and a file that is cut is replaced.
    before = set(tmp_path.rglob("cache-*.arrow"))
    monkeypatch.setattr(answers.Answers, "_check", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    third = teacher_of("sequence", ["negative", "positive"])
    with pytest.raises(KeyboardInterrupt):
        count(rows, third)
    assert set(tmp_path.rglob("cache-*.arrow")) == before
    monkeypatch.undo()
    monkeypatch.setattr(answers.Answers, "_run", lambda self, rows: asked.append(len(rows)) or run(self, rows))
    assert count(rows, third)[0] == 10
    (file,) = set(tmp_path.rglob("cache-*.arrow")) - before
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert count(rows, third)[0] == 10
    assert count(rows, third)[0] == 0


def test_the_scale_of_an_adapter_counts_as_its_weights_do(build, build_model, tokenizer, tmp_path):
    pytest.importorskip("peft", reason="the extra 'peft' is not installed")
    build_model(dropout=0.0, task_lora={"r": 2, "lora_alpha": 4}).save_pretrained(tmp_path / "one")
    tokenizer.save_pretrained(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "other")
    text = (tmp_path / "one" / "config.json").read_text()
    (tmp_path / "other" / "config.json").write_text(text.replace('"lora_alpha": 4', '"lora_alpha": 8'))
    given = [build({"sentiment": str(tmp_path / name)}).teachers.digests for name in ("one", "one", "other")]
    assert given[0] == given[1] != given[2]


@pytest.mark.parametrize(
    ("task", "make", "says"),
    [
        ("topic", lambda teacher: teacher("sequence", ["a", "b"]), "`teachers` names the task 'topic'"),
        ("sentiment", lambda teacher: teacher("sequence", ["a", "b"]), "should have the labels negative, positive"),
        ("sentiment", lambda teacher: teacher("sequence", ["positive"] * 1), "problem_type single_label"),
        ("sentiment", lambda teacher: teacher("token", ["negative", "positive"]), "its teacher .* cannot be loaded"),
        ("sentiment", lambda _: "/no/such/folder", "there is no such folder"),
        ("sentiment", lambda _: 7, "a teacher should be a model, its folder"),
        ("ner", lambda teacher: teacher("token", NER_LABELS[:-1]), "is missing there"),
    ],
)
def test_teachers_that_do_not_fit_are_refused(task, make, says, build, teacher_of):
    with pytest.raises((ValueError, TypeError), match=says) as problem:
        build({task: make(teacher_of)})
    assert "\n" not in str(problem.value)


def test_a_run_does_not_overwrite_its_teacher(build, teacher_of):
    folder = teacher_of("sequence", ["negative", "positive"])
    with pytest.raises(ValueError, match=r"its teacher and `output_dir` are the same folder, .* another output_dir"):
        build({"sentiment": folder}, output_dir=f"{folder}/../{Path(folder).name}")


@pytest.mark.parametrize(
    "place", ["checkpoint-2", "best/step-4", "stage-1", "stage-1/checkpoint-2", "teachers/sentiment"]
)
def test_a_teacher_is_not_where_the_run_writes(place, build, teacher_of, tmp_path):
    shutil.copytree(teacher_of("sequence", ["negative", "positive"]), tmp_path / "out" / place)
    given = {"sentiment": str(tmp_path / "out" / place)}
    if place.startswith("teachers"):  # of ``--teachers auto``
        build(given, output_dir=str(tmp_path / "out"))
        return
    with pytest.raises(ValueError, match=r"Task 'sentiment': its teacher .* is in `output_dir`, .* another output_dir"):
        build(given, output_dir=str(tmp_path / "out"))


def test_many_rows_without_a_label_come_before_one_with(build, teacher_of, monkeypatch):
    """The type of a column of answers is known before the first of them."""
    monkeypatch.setattr(answers, "_CHUNK", 2)
    labels = [None] * 4 + [0, 1]
    rows = Dataset.from_list(
        [{**row, "label": label} for row, label in zip(read_rows("sentiment", "train", 6), labels)]
    )
    words = read_rows("ner", "train", 6)
    tags = Dataset.from_list(
        [{**row, "ner_tags": None if number < 4 else row["ner_tags"]} for number, row in enumerate(words)]
    )
    teachers = {"sentiment": teacher_of("sequence", ["negative", "positive"]), "ner": teacher_of("token", NER_LABELS)}
    trainer = build(teachers, train_dataset={"sentiment": rows, "ner": tags})
    taught = [sorted(trainer.train_dataset[row].get("soft", {})) for row in range(len(trainer.train_dataset))]
    assert taught.count(["sentiment"]) == taught.count(["ner"]) == 2


@pytest.mark.parametrize("ours", [False, True])
def test_answers_depend_on_the_side_on_which_texts_are_cut(ours, build, teacher_of, tokenizer, tmp_path, monkeypatch):
    asked = []
    run = answers.Answers._run
    monkeypatch.setattr(answers.Answers, "_run", lambda self, rows: asked.append(len(rows)) or run(self, rows))
    teacher = teacher_of("token", NER_LABELS)
    rows = {
        "ner": cached(read_rows("ner", "train", 6), tmp_path),
        "sentiment": Dataset.from_list(read_rows("sentiment", "train", 4)),
    }

    def count(side):
        asked.clear()
        if ours:
            monkeypatch.setattr(tokenizer, "truncation_side", side)
        else:
            AutoTokenizer.from_pretrained(teacher, truncation_side=side).save_pretrained(teacher)
        build({"ner": teacher}, train_dataset=rows)
        return sum(asked)

    assert [count(side) for side in ("right", "right", "left", "left")] == [6, 0, 6, 0]


def test_code_of_a_teacher_is_neither_run_nor_offered(build, teacher_of, tmp_path):
    folder, trace = Path(teacher_of("sequence", ["negative", "positive"])), tmp_path / "it ran"
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "of-their-own", "auto_map": {"AutoConfig": "own.Own"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(f"open({str(trace)!r}, 'w').close()\n")
    with pytest.raises(ValueError, match=r"its teacher .* cannot be loaded") as problem:
        build({"sentiment": str(folder)})
    assert "\n" not in str(problem.value) and not trace.exists()


def test_a_teacher_that_answers_nan_is_refused(build, teacher_of):
    model = AutoModelForSequenceClassification.from_pretrained(teacher_of("sequence", ["negative", "positive"]))
    model.classifier.bias.data.fill_(float("nan"))
    with pytest.raises(
        ValueError, match=r"Task 'sentiment': its teacher .* NaN or infinity for row \d+ of the training"
    ):
        build({"sentiment": model})


def test_what_the_run_of_a_teacher_measured_is_known(build, teachers, tmp_path):
    found = {"eval_ner_f1": 0.5, "test_ner_f1": 0.25, "eval_average": 0.5, "eval_sentiment_loss": 1.0}
    (Path(teachers["ner"]) / "all_results.json").write_text(json.dumps(found))
    assert build(teachers).teachers.results == {"sentiment": {}, "ner": {"eval_ner_f1": 0.5, "test_ner_f1": 0.25}}


def test_a_bare_model_teaches_nothing_but_similarity(build, backbone_path):
    with pytest.raises(ValueError, match="its teacher the BertModel that was given cannot be loaded"):
        build({"sentiment": AutoModel.from_pretrained(backbone_path())})


@pytest.mark.parametrize(
    ("name", "says"),
    [("answers", "positions among the tokens"), ("groups", "other pairs of its group"), ("masks", "own vocabulary")],
)
def test_types_whose_outputs_do_not_match_are_refused(name, says, build, backbone_path):
    model = MultiTaskModel.from_backbone(backbone_path(), tasks=make_tasks([name]))
    rows = make_data({"questions": 4, "pairs": 6, "reviews": 4}, 0.0, 0)
    rows = {source: own for source, own in rows.items() if source == make_tasks([name])[name].source}
    with pytest.raises(ValueError, match=f"Task '{name}': a task of type .* cannot have a teacher: .*{says}"):
        build({name: model}, model, rows)


def test_streams_and_texts_with_spans_of_another_tokenizer_are_refused(build, build_model, teacher_of, data):
    teacher = teacher_of("sequence", ["negative", "positive"])
    rows = data(8, 8)
    with pytest.raises(
        ValueError, match="answers every row once, before training, and dataset 'sentiment' is a stream"
    ):
        build({"sentiment": teacher}, train_dataset={**rows, "sentiment": rows["sentiment"].to_iterable_dataset()})
    spans = [{"text": "Ada saw Oslo", "spans": [{"start": 0, "end": 3, "label": "PER"}]}] * 4
    tasks = {"names": TokenClassification(text_column="text", spans_column="spans")}
    names = ["B-PER", "I-PER", "O"]
    for family in ("bert", "roberta"):
        made = {"names": teacher_of("token", names, family)}
        model = build_model(tasks=tasks)
        if family == "bert":
            trainer = build(made, model, {"names": Dataset.from_list(spans)})
            assert len(soft_of(trainer, 0)["names"][1]) == sum(
                label != -100 for label in trainer.train_dataset[0]["labels"]["names"]
            )
        else:
            with pytest.raises(ValueError, match="should have the tokenizer of the shared model"):
                build(made, model, {"names": Dataset.from_list(spans)})


def test_arguments_of_distillation_are_checked(arguments, build):
    for kwargs, says in (
        ({"distillation": "anealed"}, "Did you mean 'annealed'|annealed, fixed"),
        ({"distillation_kwargs": {"temprature": 2}}, "unknown key 'temprature'"),
        ({"distillation_kwargs": {"temperature": 0}}, "above 0. Found 0"),
        ({"distillation_kwargs": {"rows": "some"}}, "one of own, all. Found 'some'"),
        ({"distillation_kwargs": {"weight": 0.3}}, "is for `distillation = 'fixed'`"),
        ({"distillation": "fixed", "distillation_kwargs": {"weight": 2}}, "from 0 to 1. Found 2"),
    ):
        with pytest.raises(ValueError, match=says):
            arguments(**kwargs)
    with pytest.raises(ValueError, match="is for runs with teachers"):
        build(distillation_kwargs={"temperature": 2})
    with pytest.raises(TypeError, match="should be a dict of models or folders by task"):
        build("folder")


def test_tasks_may_be_resolved_from_the_data(build, build_model, teacher_of, data):
    model = build_model(tasks={"sentiment": SequenceClassification(), "ner": TokenClassification()})
    trainer = build({"sentiment": teacher_of("sequence", ["positive", "negative"])}, model, data(8, 8))
    assert len(soft_of(trainer, 0)["sentiment"]) == 2
