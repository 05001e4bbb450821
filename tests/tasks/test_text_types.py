"""Labels, masks, blocks, groups and bad input of the types that read, choose and write."""

import numpy as np
import pytest
import torch
from datasets import Dataset, IterableDataset
from reading import TASKS, rows_of
from tiny import make_tokenizer
from transformers import AutoConfig, MBartTokenizer

from hf_multitask import (
    FillMask,
    MultipleChoice,
    MultiTaskTrainer,
    QuestionAnswering,
    SentenceSimilarity,
    Summarization,
    TextGeneration,
    TokenClassification,
    Translation,
)
from hf_multitask.data import MixtureCollator, encode_dataset, group_tasks
from hf_multitask.modeling.generation import generation_kwargs
from hf_multitask.modeling.spans import CONTEXT, END, START
from hf_multitask.tasks import build_task
from hf_multitask.tasks.metrics import Rouge, Squad, Translations

CONTEXT_TEXT = "The old house in London was built by Ada Lovelace in the year of the great fire, and it stands."


@pytest.fixture
def encode(backbone_path):
    """Rows of a task as a trainer encodes them, by the tokenizer of a family."""

    def make(task, rows, family="bert", training=True):
        data = Dataset.from_list(rows) if isinstance(rows, list) else rows
        task = build_task("t", task.to_dict()).resolve(data, [])
        path = backbone_path(family)
        config, tokenizer = AutoConfig.from_pretrained(path), make_tokenizer(family)
        task.check_tokenizer(tokenizer)
        given = {"tokenizer": tokenizer, "config": config, "split": "train", "training": training}
        encoded = encode_dataset("t", data, [task], **given)
        return task, encoded, tokenizer

    return make


# Question answering


def answers(text, start):
    return {"question": "Who built it?", "context": CONTEXT_TEXT, "answers": {"text": [text], "answer_start": [start]}}


def test_the_answer_is_marked_in_the_windows_that_hold_it_whole(encode):
    place = CONTEXT_TEXT.index("Ada Lovelace")
    _, encoded, tokenizer = encode(QuestionAnswering(max_length=30, doc_stride=8), [answers("Ada Lovelace", place)])
    row = encoded.rows[0]
    label, windows = row["labels:t"], row["input_ids"]
    assert len(windows) > 1
    found = 0
    for marks, offsets, ids in zip(label["marks"], label["offsets"], windows, strict=True):
        (start,), (end,) = ([place for place, mark in enumerate(marks) if mark & bit] for bit in (START, END))
        if start:
            found += 1
            assert CONTEXT_TEXT[offsets[start][0] : offsets[end][1]] == "Ada Lovelace"
        else:
            assert end == 0  # the first token stands for no answer
        context = [token for token, mark in enumerate(marks) if mark & CONTEXT]
        assert tokenizer.decode([ids[context[0]]]).strip("#") in CONTEXT_TEXT.lower()
    assert found
    covered = {offset[0] for offsets in label["offsets"] for offset in offsets}
    assert covered >= {CONTEXT_TEXT.index(word) for word in ("The", "stands")}  # nothing of the context is lost


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            answers("Grace Hopper", 5),
            r"row 0 of the train data, the answer 'Grace Hopper' is not at character 5",
        ),
        (answers("stands", 900), r"is outside of the context of \d+ characters. Fix the offset"),
        (answers("x", -3), "is outside of the context"),
        (answers("The", "0"), "the start '0' of the answer 'The' is not a whole number"),
        (
            {**answers("x", 0), "answers": {"text": ["a", "b"], "answer_start": [1]}},
            "2 answers have 1 starts. Use one start per answer",
        ),
    ],
)
def test_answers_that_are_not_there_are_named(row, message, encode):
    with pytest.raises(ValueError, match=f"Task 't': .*{message}"):
        encode(QuestionAnswering(unanswerable=True), [row])


def test_questions_without_answer_follow_from_the_data(encode):
    nothing = {**answers("x", 0), "answers": {"text": [], "answer_start": []}}
    place = CONTEXT_TEXT.index("London")
    assert encode(QuestionAnswering(), [answers("London", place), nothing])[0].unanswerable is True
    assert encode(QuestionAnswering(), [answers("London", place)])[0].unanswerable is False
    with pytest.raises(ValueError, match=r"row 1 .*the question has no answer. Set unanswerable, or remove the row"):
        encode(QuestionAnswering(unanswerable=False), [answers("London", place), nothing])


def test_the_head_learns_from_the_data_that_a_question_may_have_no_answer(build_model, arguments, tokenizer):
    model = build_model(tasks={"t": QuestionAnswering()})
    assert not model.heads["t"].unanswerable
    rows = rows_of("question-answering")
    MultiTaskTrainer(model, arguments(), train_dataset={"t": rows}, processing_class=tokenizer)
    assert model.heads["t"].unanswerable and model.config.task("t")["unanswerable"]
    logits = torch.zeros(1, 6, 2)
    logits[0, 0] = 9.0  # the first token, which stands for no answer
    marks = torch.tensor([[0, CONTEXT, CONTEXT, CONTEXT, CONTEXT, 0]])
    assert model.heads["t"].best(logits, marks)[1:3].tolist() == [-1, -1]
    logits[0, 2, 0] = logits[0, 3, 1] = 20.0
    assert model.heads["t"].best(logits, marks)[:3].tolist() == [0, 2, 3]
    assert model.heads["t"].best(logits, marks)[3].item() == pytest.approx(1, abs=1e-3)


def test_squad_counts_as_squad_does():
    predictions = ["The Eiffel Tower!", "in 1889", "", "nothing"]
    references = [["Eiffel Tower"], ["1889", "the year 1889"], [""], [""]]
    scores = Squad().compute(predictions=predictions, references=references)
    assert scores["exact_match"] == pytest.approx(2 / 4)
    assert scores["f1"] == pytest.approx((1 + 2 / 3 + 1 + 0) / 4)


# Choices


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "a", "choices": [], "label": 0}, r"row 0 .*a row needs a list of choices. Found \[\]"),
        ({"question": "a", "choices": ["b", "c"], "label": 2}, "should be a number from 0 to 1. Found 2"),
        ({"question": "a", "choices": ["b", "c"], "label": -1}, "should be a number from 0 to 1. Found -1"),
    ],
)
def test_choices_that_are_none_are_named(row, message, encode):
    with pytest.raises(ValueError, match=f"Task 't': .*{message}"):
        encode(MultipleChoice(), [row])


def test_rows_of_several_texts_are_one_item_of_a_batch(encode):
    task, encoded, tokenizer = encode(TASKS["multiple-choice"](), rows_of("multiple-choice", 4))
    features = [
        {"inputs": {key: row[key] for key in ("input_ids", "attention_mask")}, "labels": {"t": row["labels:t"]}}
        for row in encoded.rows
        if row["labels:t"] is not None
    ]
    batch = MixtureCollator(tokenizer, {"t": task})(features)
    assert batch["task_rows"]["t"].tolist() == [[0, 1, -1, -1], [2, 3, 4, -1], [5, 6, 7, 8]]
    assert batch["input_ids"].shape[0] == 9
    assert batch["labels"]["t"].tolist() == [0, 1, 0]


# Similarity


def test_scores_move_to_0_to_1_and_groups_follow_the_data(encode):
    rows = [{"sentence1": f"a {n}", "sentence2": f"b {n}", "label": float(n)} for n in range(5)]
    task, encoded, _ = encode(SentenceSimilarity(label_column="label"), rows)
    assert task.score_range == [0.0, 4.0]
    assert [row["labels:t"] for row in encoded.rows] == [[0.0], [0.25], [0.5], [0.75], [1.0]]
    task, encoded, _ = encode(SentenceSimilarity(negatives=2), rows)
    assert [len(row["input_ids"]) for row in encoded.rows] == [4, 4, 2]
    pairs = [[[0, 1], [2, 3]], [[0, 1], [2, 3]], [[0, 1], [-100, -100]]]
    assert task.collate([row["labels:t"] for row in encoded.rows], 9, "right").tolist() == pairs


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (SentenceSimilarity(label_column="label"), "has fewer than two different scores. Set score_range"),
        (SentenceSimilarity(label_column="sentence1"), "one number per row is needed"),
    ],
)
def test_scores_that_are_none_are_named(task, message, encode):
    with pytest.raises(ValueError, match=f"Task 't': .*{message}"):
        encode(task, [{"sentence1": "a", "sentence2": "b", "label": 3.0}] * 2)


# Language modelling


def test_masks_depend_on_seed_step_and_row_alone(encode):
    task, encoded, tokenizer = encode(FillMask(mlm_probability=0.5), rows_of("fill-mask"))
    inputs = {"input_ids": encoded.rows[0]["input_ids"], "attention_mask": encoded.rows[0]["attention_mask"]}
    feature = {"inputs": inputs, "labels": {"t": encoded.rows[0]["labels:t"]}}

    def draw(seed, step, row):
        return MixtureCollator(tokenizer, {"t": task}, seed=seed)([{**feature, "draw": (step, row)}])

    first, again = draw(1, 2, 3), draw(1, 2, 3)
    assert torch.equal(first["input_ids"], again["input_ids"])
    for other in (draw(1, 2, 4), draw(1, 3, 3), draw(2, 2, 3)):
        assert not torch.equal(first["labels"]["t"], other["labels"]["t"])
    label = first["labels"]["t"][0]
    told = label != -100
    assert label[told].tolist() == torch.tensor(inputs["input_ids"])[told].tolist()
    assert torch.equal(first["input_ids"][0][~told], torch.tensor(inputs["input_ids"])[~told])
    assert not {tokenizer.cls_token_id, tokenizer.sep_token_id} & set(label[told].tolist())


def test_of_the_chosen_tokens_80_percent_become_the_mask(encode):
    task, _, tokenizer = encode(FillMask(mlm_probability=0.15), rows_of("fill-mask"))
    ids = [100] * 20_000
    inputs, label = task.masked({"input_ids": ids}, [-100] * len(ids), tokenizer, np.random.default_rng(0))
    chosen = [new for new, told in zip(inputs["input_ids"], label, strict=True) if told != -100]
    assert len(chosen) / len(ids) == pytest.approx(0.15, abs=0.01)
    assert chosen.count(tokenizer.mask_token_id) / len(chosen) == pytest.approx(0.8, abs=0.03)
    assert chosen.count(100) / len(chosen) == pytest.approx(0.1, abs=0.03)


def test_blocks_tell_every_token_once_and_hold_one_text_each(encode):
    texts = ["A fine place. " * 12, "Short.", ""]
    task, encoded, tokenizer = encode(TextGeneration(block_size=16), [{"text": text} for text in texts], "gpt2")
    told = []
    for row in encoded.rows:
        assert len(row["input_ids"]) <= 16
        told += task.targets(np.array([row["labels:t"]]))[0][: len(row["input_ids"]) - 1].tolist()
    end = [tokenizer.eos_token_id]
    # The tokenizer has no token for the beginning, so that nothing tells the first one of a text.
    assert told == [token for text in texts for token in [*tokenizer(text)["input_ids"], *end][1:]]


def test_a_mask_is_needed_to_fill_it(encode):
    with pytest.raises(ValueError, match=r"Task 't': the tokenizer \w+ has no mask token. Use a backbone"):
        encode(FillMask(), rows_of("fill-mask"), "gpt2")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"type": "fill-mask", "mlm_probability": 0}, "`mlm_probability` should be above 0"),
        ({"type": "text-generation", "block_size": 1}, "`block_size` should be a whole number of tokens, 2 or more"),
        ({"type": "question-answering", "doc_stride": -1}, "`doc_stride` should be a whole number"),
        ({"type": "sentence-similarity", "negatives": 1}, "`negatives` should be a whole number, 2 or more"),
        ({"type": "sentence-similarity", "loss": "tripplet"}, "`loss` should be one of .* Did you mean 'triplet'"),
        ({"type": "sentence-similarity", "loss": "triplet"}, ".* there is no negatives_column. Set negatives_column"),
        ({"type": "sentence-similarity", "loss": "cosine"}, ".* there is no label_column. Set label_column"),
        (
            {"type": "sentence-similarity", "loss": "multiple_negatives", "label_column": "score"},
            ".* reads no scores. Found `label_column = 'score'`. Leave out one",
        ),
        (
            {"type": "sentence-similarity", "label_column": "score", "negatives_column": "hard"},
            "`negatives_column` is for the losses multiple_negatives and triplet, and the loss is cosine",
        ),
        (
            {"type": "sentence-similarity", "loss_kwargs": {"margin": 1}},
            ".* unknown key 'margin'; .* Set loss to triplet",
        ),
        (
            {"type": "sentence-similarity", "loss_kwargs": {"scale": 0}},
            "`scale` of `loss_kwargs` should be a number, above 0",
        ),
        ({"type": "sentence-similarity", "loss_kwargs": {"scale": 5}, "scale": 7}, "`scale` is given twice"),
        ({"type": "sentence-similarity", "scale": -1}, "`scale` should be a number above 0"),
        (
            {"type": "sentence-similarity", "loss": "triplet", "negatives_column": "n", "loss_kwargs": {"margin": -1}},
            "`margin` of `loss_kwargs` should be a number, 0 or more",
        ),
        (
            {
                "type": "sentence-similarity",
                "loss": "triplet",
                "negatives_column": "n",
                "loss_kwargs": {"distance": "cos"},
            },
            "`distance` of `loss_kwargs` should be one of euclidean, cosine",
        ),
        (
            {"type": "sentence-similarity", "matryoshka_dims": [8, 0]},
            "`matryoshka_dims` should be a list of different whole",
        ),
        (
            {"type": "sentence-similarity", "matryoshka_dims": [8, 8]},
            "`matryoshka_dims` should be a list of different whole",
        ),
        (
            {"type": "sentence-similarity", "matryoshka_dims": []},
            "`matryoshka_dims` should be a list of different whole",
        ),
        ({"type": "sentence-similarity", "matryoshka_dims": 8}, "`matryoshka_dims` should be a list"),
        ({"type": "sentence-similarity", "prompt": 3}, "`prompt` should be a string"),
        (
            {"type": "sentence-similarity", "score_range": [5, 0]},
            "`score_range` should be two numbers in ascending order",
        ),
        ({"type": "translation", "num_beams": 0}, "`num_beams` should be a whole number, 1 or more"),
        ({"type": "token-classification", "text_column": "text"}, "`text_column` and `spans_column` belong together"),
    ],
)
def test_unusable_arguments_fail_when_built(values, message):
    with pytest.raises(ValueError, match=f"Task 't': {message}"):
        build_task("t", values)


def test_types_that_make_other_rows_read_no_stream(build_model, arguments, tokenizer):
    rows = IterableDataset.from_generator(lambda: iter([{"sentence1": "a", "sentence2": "b"}] * 9))
    with pytest.raises(ValueError, match=r"Task 's': sentence-similarity combines the rows .* ordinary dataset"):
        MultiTaskTrainer(
            build_model(tasks={"s": SentenceSimilarity()}),
            arguments(sampling="uniform"),
            train_dataset={"s": rows},
            processing_class=tokenizer,
        )


# Texts from texts


@pytest.fixture
def speaks():
    words = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    return MBartTokenizer(vocab=[*words, *((letter, -3.0) for letter in "▁abcdefghijklmnopqrstuvwxyz")])


def test_language_codes_reach_source_target_and_generate(speaks):
    task = build_task("t", Translation(source_lang="en_XX", target_lang="de_DE").to_dict())
    task.check_tokenizer(speaks)
    values = {**task.to_dict(), "name": "t"}
    config = AutoConfig.for_model("mbart", vocab_size=len(speaks))
    assert generation_kwargs(speaks, values, config)["forced_bos_token_id"] == speaks.convert_tokens_to_ids("de_DE")
    rows = Dataset.from_list([{"source": "a house", "target": "ein haus"}])
    encoded = encode_dataset("t", rows, [task], tokenizer=speaks, config=config, split="train", training=True).rows[0]
    assert encoded["input_ids"][-1] == speaks.convert_tokens_to_ids("en_XX")
    assert speaks.convert_tokens_to_ids("de_DE") in (encoded["labels:t"][0], encoded["labels:t"][-1])


def test_language_codes_that_are_unknown_are_named(speaks, tokenizer):
    with pytest.raises(ValueError, match=r"Task 't' names the target_lang 'de_DX', and .* does not know it.*'de_DE'"):
        build_task("t", Translation(target_lang="de_DX").to_dict()).check_tokenizer(speaks)
    with pytest.raises(ValueError, match=r"takes no language codes. Leave it out, or name the language in the prefix"):
        build_task("t", Translation(target_lang="de_DE").to_dict()).check_tokenizer(tokenizer)


def test_a_source_without_target_trains_nothing_and_one_that_is_no_text_is_named(encode):
    rows = [{"source": "a", "target": "b"}, {"source": "c", "target": None}]
    _, encoded, _ = encode(Translation(), rows, "bart")
    assert [row["labels:t"] is None for row in encoded.rows] == [False, True]
    with pytest.raises(ValueError, match=r"row 1 of the train data, column 'source'"):
        encode(Translation(), [{"source": "a", "target": "b"}, {"source": None, "target": "b"}], "bart")


def test_targets_are_cut_to_the_positions_of_the_backbone(encode):
    rows = [{"source": "a", "target": "b " * 500}]
    _, encoded, _ = encode(Translation(max_target_length=200), rows, "bart")
    assert len(encoded.rows[0]["labels:t"]) == 80
    _, encoded, _ = encode(Translation(max_target_length=200), rows, "t5")
    assert len(encoded.rows[0]["labels:t"]) == 200


@pytest.mark.parametrize("kind", [Translation, Summarization])
def test_written_texts_are_compared_with_the_whole_targets_of_the_data(kind, encode):
    rows = [
        {"source": "a", "target": "  Ada LOVED this fine old place 😀 in London. "},
        {"source": "b", "target": None},
    ]
    columns = {"source_column": "source", "target_column": "target"}
    task, encoded, tokenizer = encode(kind(max_target_length=4, **columns), rows, "bart", training=False)
    labels = encoded.rows["labels:t"][0]
    assert len(labels) == 4
    written = tokenizer.decode(labels, skip_special_tokens=True)
    given = np.array([labels])
    scores = task.score(
        given, given, unseen=[], references=list(encoded.references("t")), loss=0.0, tokenizer=tokenizer
    )
    assert scores == task.text_metrics([written], [rows[0]["target"].strip()])
    assert max(scores.values()) < 1


def test_prefixes_make_rows_of_their_own():
    tasks = {
        name: build_task(name, Translation(dataset="d", prefix=prefix).to_dict())
        for name, prefix in (("one", "a: "), ("two", "b: "), ("three", "a: "))
    }
    assert {name: [task.name for task in own] for name, own in group_tasks(tasks).items()} == {
        "one": ["one", "three"],
        "two": ["two"],
    }


def test_written_texts_are_scored_from_0_to_1():
    same = ["a small brown house stands here"]
    for metric in (Rouge(), Translations()):
        scores = metric.compute(predictions=same, references=same)
        assert scores == pytest.approx(dict.fromkeys(scores, 1.0))
        assert max(metric.compute(predictions=["zzz"], references=same).values()) < 0.1


# Tags from spans


def test_spans_become_tags_of_the_tokens_that_they_cover(encode):
    text = "Send twenty pounds to Ada Lovelace now"
    spans = [{"slot": "amount", "start": 5, "end": 18}, {"slot": "person", "start": 22, "end": 34}]
    task, encoded, tokenizer = encode(
        TokenClassification(text_column="text", spans_column="slots"), [{"text": text, "slots": spans}] * 2
    )
    assert task.label_names == ["O", "B-amount", "I-amount", "B-person", "I-person"]
    encoding = tokenizer([text], return_offsets_mapping=True)
    for (start, end), tag in zip(encoding["offset_mapping"][0], encoded.rows[0]["labels:t"], strict=True):
        if start == end:
            assert tag == -100
            continue
        kind = next((span["slot"] for span in spans if start < span["end"] and end > span["start"]), None)
        mark = "B" if any(start == span["start"] for span in spans) else "I"
        assert task.label_names[tag] == ("O" if kind is None else f"{mark}-{kind}")


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([{"slot": "a", "start": 2, "end": 99}], "row 0 of the train data has a span from 2 to 99 .* 10 characters"),
        ([{"slot": "a", "start": 3, "end": 3}], "the span .* goes from 3 to 3"),
        (
            [{"slot": "a", "start": 0, "end": 4}, {"slot": "a", "start": 3, "end": 6}],
            "has spans that overlap at character 3. A token has one tag: remove one",
        ),
        ([{"slot": "z", "start": 0, "end": 4}], "has the label 'B-z' in column 'slots'"),
    ],
)
def test_spans_that_do_not_fit_are_named(spans, message, encode):
    task = TokenClassification(text_column="text", spans_column="slots", label_names=["O", "B-a", "I-a"])
    with pytest.raises(ValueError, match=f"Task 't': .*{message}"):
        encode(task, [{"text": "0123 56 89", "slots": spans}])


def test_label_names_of_spans_hold_what_lies_outside(encode):
    with pytest.raises(ValueError, match="`label_names` has no 'O', the tag of the tokens outside of spans"):
        TokenClassification(text_column="text", spans_column="slots", label_names=["B-a", "I-a"])
    with pytest.raises(ValueError, match="`label_names` has no 'I-a'"):
        TokenClassification(text_column="text", spans_column="slots", label_names=["O", "B-a"])


def test_a_span_of_white_space_is_gold_and_never_found():
    task = TokenClassification(text_column="text", spans_column="slots", label_names=["O", "B-a", "I-a"])
    gold = {"text": "a \nOslo", "starts": [0, 3], "ends": [1, 7], "places": [0, 1], "spans": [[3, 3, 1], [3, 7, 1]]}
    scores = task.score(
        [np.array([0, 1])], None, unseen=[], references=[gold], loss=0.0, tokenizer=make_tokenizer("bert")
    )
    assert scores == {"f1": pytest.approx(2 / 3), "precision": 1.0, "recall": 0.5}
