import random

import numpy as np
import pytest
import torch
from datasets import Dataset
from reading import INPUTS, TEXT
from seqeval.metrics.sequence_labeling import get_entities
from transformers import AutoTokenizer, pipeline

from hf_multitask import SequenceClassification
from hf_multitask.data import encode_dataset
from hf_multitask.modeling.decoding import decode_sequence, decode_tokens, is_bio
from hf_multitask.modeling.words import groups, running_words, scheme_of
from hf_multitask.tasks import build_task


@pytest.fixture
def multitask(build_model, backbone_path):
    def make(**kwargs):
        model = build_model(**kwargs).eval()
        return pipeline("multitask", model=model, tokenizer=AutoTokenizer.from_pretrained(backbone_path()))

    return make


def test_one_text_and_many_give_the_same_answers(multitask):
    texts = ["A fine place.", "I will never go back there again!", "No.", ""]
    pipe = multitask()
    single = [pipe(text) for text in texts]
    for batch_size in (1, 3):
        for one, other in zip(single, pipe(texts, batch_size=batch_size), strict=True):
            assert one["sentiment"]["label"] == other["sentiment"]["label"]
            assert one["sentiment"]["score"] == pytest.approx(other["sentiment"]["score"], abs=1e-5)
            assert [span["word"] for span in one["ner"]] == [span["word"] for span in other["ner"]]
    for one, other in zip(single, pipe(Dataset.from_dict({"text": texts})["text"]), strict=True):
        assert one["sentiment"] == other["sentiment"]


def test_answers_are_those_of_the_stock_pipelines(build_model, backbone_path):
    model = build_model().eval()
    tokenizer = AutoTokenizer.from_pretrained(backbone_path())
    head = model.heads["sentiment"].native
    stock = type(head)(head.config).eval()
    stock.bert, stock.classifier = model.backbone, head.classifier
    stock.config.id2label = {0: "negative", 1: "positive"}
    expected = pipeline("text-classification", model=stock, tokenizer=tokenizer)("A fine place.")[0]
    answer = pipeline("multitask", model=model, tokenizer=tokenizer)("A fine place.", tasks=["sentiment"])
    assert answer == {"sentiment": {"label": expected["label"], "score": pytest.approx(expected["score"], abs=1e-6)}}


def test_tasks_on_pairs_answer_for_pairs(multitask, tasks):
    pipe = multitask(tasks=tasks | {"nli": SequenceClassification(text_pair_column="other", label_names=["no", "yes"])})
    assert list(pipe("A fine place.")) == ["sentiment", "ner"]
    assert list(pipe({"text": "A fine place.", "text_pair": "It is good."})) == ["nli"]
    with pytest.raises(ValueError, match=r"Task 'nli' takes pairs"):
        pipe("A fine place.", tasks=["nli"])
    with pytest.raises(ValueError, match=r"no task 'nil'.* Did you mean 'nli'?"):
        pipe("A fine place.", tasks=["nil"])


@pytest.mark.parametrize("kind", ["sequence-classification", "token-classification", "question-answering", "fill-mask"])
def test_task_of_name_and_type_alone_answers(kind, multitask):
    names = {"label_names": ["O", "B-X"]} if "classification" in kind else {}
    assert list(multitask(tasks={"t": {"type": kind, **names}})(INPUTS.get(kind, TEXT))) == ["t"]


def test_choices_are_a_list(multitask):
    with pytest.raises(ValueError, match=r"Task 't' needs a list of one choice or more. Found 'abc'"):
        multitask(tasks={"t": {"type": "multiple-choice"}})({"question": "Which?", "choices": "abc"})


@pytest.mark.parametrize(("family", "kind"), [("gpt2", "text-generation"), ("bart", "translation")])
def test_texts_are_written_within_the_positions_of_the_backbone(family, kind, build_model, backbone_path):
    model = build_model(family, tasks={"t": {"type": kind}})
    model.backbone.generation_config.eos_token_id = model.backbone.generation_config.forced_eos_token_id = None
    tokenizer = AutoTokenizer.from_pretrained(backbone_path(family))
    assert (tokenizer.pad_token is None) == (family == "gpt2")
    pipe = pipeline("multitask", model=model, tokenizer=tokenizer)
    assert model.config.backbone_config.pad_token_id == tokenizer.pad_token_id is not None
    text = "word " * 200 + "and so on"
    alone, (other, _) = pipe(text), pipe([text, "Short."], batch_size=2)
    assert alone == other
    if kind == "text-generation":  # from the end of what is there
        before = "another " * 90
        assert pipe(before + text)["t"]["generated_text"] == before + alone["t"]["generated_text"]


def test_saved_pipeline_loads(multitask, tmp_path):
    pipe = multitask()
    pipe.save_pretrained(tmp_path)
    assert pipeline("multitask", model=str(tmp_path))("A fine place.").keys() == pipe("A fine place.").keys()
    assert (tmp_path / "pipeline.py").is_file()


def test_words_of_a_list_are_the_words_that_are_tagged(multitask):
    pipe = multitask()
    one, other = pipe([["A", "fine", "place", "."]])[0], pipe("A fine place .")
    assert one["sentiment"] == other["sentiment"]
    indices = [answer.pop("word_indices") for answer in one["ner"]]
    assert one["ner"] == other["ner"]
    words = ["A", "fine", "place", "."]
    assert [" ".join(words[index] for index in of_one) for of_one in indices] == [a["word"] for a in one["ner"]]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("the U.K., by e-mail", ["the", "U.K.", ",", "by", "e-mail"]),
        ('He said: "(Oslo)!"', ["He", "said", ":", '"', "(", "Oslo", ")", "!", '"']),
        ("on the 18th...\r\nnow", ["on", "the", "18th", "...", "now"]),
        ("don't dogs' $5 @user #tag", ["don't", "dogs", "'", "$", "5", "@user", "#tag"]),
        (" \t\n", []),
        ("", []),
        ("?", ["?"]),
        ("a\u0301 \u00a0b", ["a\u0301", "b"]),
    ],
)
def test_words_of_running_text(text, words):
    assert [text[start:end] for start, end in running_words(text)] == words


def test_special_tokens_in_running_text_are_words():
    text = "in[MASK], <s> </s>. [MASKED]"
    words = [text[start:end] for start, end in running_words(text, ["[MASK]", "<s>", "</s>", ""])]
    assert words == ["in", "[MASK]", ",", "<s>", "</s>", ".", "[", "MASKED", "]"]


@pytest.mark.parametrize("names", [["O", "B-X", "I-X"], ["O", "B-X", "I-X", "E-X", "S-X"]])
def test_spans_are_those_that_seqeval_reads(names):
    draw = random.Random(0)
    for _ in range(500):
        names_of_all = [*names, *(name.replace("X", "Y") for name in names[1:])]
        tags = [draw.choice(names_of_all) for _ in range(draw.randint(1, 8))]
        assert groups(tags) == [(first, last, kind) for kind, first, last in get_entities(tags)]
        assert groups([tag.replace("E-", "L-").replace("S-", "U-") for tag in tags]) == groups(tags)


def logits_for(labels: list[str], names: list[str]) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor([names.index(label) for label in labels]), len(names)) * 9.0


def test_spans_open_and_close_as_bio_says():
    names = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    text = "Ada Lovelace met Mary in London"
    # One token a word, but two for Lovelace; the second one's label does not count.
    words = [
        (None, 0, 0),
        (0, 0, 3),
        (1, 4, 8),
        (1, 8, 12),
        (2, 13, 16),
        (3, 17, 21),
        (4, 22, 24),
        (5, 25, 31),
        (None, 0, 0),
    ]
    labels = ["O", "B-PER", "I-PER", "O", "O", "I-PER", "O", "I-LOC", "B-PER"]
    spans = decode_tokens({"label_names": names}, logits_for(labels, names), text, words)
    assert [(span["entity_group"], span["word"], span["start"], span["end"]) for span in spans] == [
        ("PER", "Ada Lovelace", 0, 12),
        ("PER", "Mary", 17, 21),
        ("LOC", "London", 25, 31),
    ]
    assert all(0.99 < span["score"] <= 1 for span in spans)


def test_adjacent_spans_stay_apart():
    names = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    words = [(0, 0, 1), (1, 2, 3), (2, 4, 5)]
    spans = decode_tokens({"label_names": names}, logits_for(["B-PER", "B-PER", "I-LOC"], names), "a b c", words)
    assert [(span["entity_group"], span["word"]) for span in spans] == [("PER", "a"), ("PER", "b"), ("LOC", "c")]


def test_other_tags_come_word_by_word():
    names = ["NOUN", "VERB"]
    answer = decode_tokens(
        {"label_names": names}, logits_for(["VERB", "NOUN"], names), "run home", [(0, 0, 3), (1, 3, 8)]
    )
    assert [(tag["entity"], tag["word"], tag["start"], tag["end"]) for tag in answer] == [
        ("VERB", "run", 0, 3),
        ("NOUN", "home", 4, 8),
    ]


def test_label_sets_and_numbers():
    sets = {"problem_type": "multi_label_classification", "label_names": ["joy", "fear"]}
    answer = decode_sequence(sets, torch.tensor([-1.0, 2.0]), "", [])
    assert [value["label"] for value in answer] == ["fear", "joy"]
    assert answer[0]["score"] == pytest.approx(torch.tensor(2.0).sigmoid().item())
    assert decode_sequence({"problem_type": "regression"}, torch.tensor([3.5]), "", []) == {
        "label": "LABEL_0",
        "score": 3.5,
    }


@pytest.mark.parametrize(
    ("names", "answer"),
    [
        (["O", "B-A", "I-A"], True),
        (["O", "B-A"], True),
        (["NOUN", "O"], False),
        (["O", "I-A"], False),
        (["B-A", "X"], False),
    ],
)
def test_is_bio(names, answer):
    assert is_bio(names) is answer


@pytest.mark.parametrize(
    ("names", "scheme"),
    [
        (["O", "B-A", "I-A"], "BIO"),
        (["O", "I-A"], "BIO"),  # IOB1 without two spans side by side
        (["O", "B-A", "I-A", "E-A", "S-A"], "BIOES"),
        (["O", "S-A"], "BIOES"),
        (["O", "B-A", "I-A", "L-A", "U-A"], "BILOU"),
        (["O", "B-A", "X"], None),
        (["NOUN", "O"], None),
        (["O"], None),
    ],
)
def test_scheme_of_tags(names, scheme):
    assert scheme_of(names) == scheme


def test_tagging_needs_a_fast_tokenizer(multitask):
    with pytest.raises(ValueError, match=r"needs a fast tokenizer"):
        decode_tokens({"name": "ner", "label_names": ["O", "B-A"]}, torch.zeros(3, 2), "a b c", [])


def test_a_row_of_the_data_is_read_by_its_words(multitask):
    words = ["A", "fine place", ".", ""]
    one, other = multitask()([words])[0], multitask()({"tokens": words, "text": "Something else."}, tasks=["ner"])
    assert one["ner"] == other["ner"]


def test_a_span_on_a_special_token_keeps_its_brackets(build_model, tokenizer):
    labels, text = ["O", "B-X", "I-X"], "Call [MASK], now."
    task = build_task(
        "t", {"type": "token-classification", "label_names": labels, "text_column": "text", "spans_column": "spans"}
    )
    model = build_model(tasks={"t": task})
    reader, values = task.reader, model.config.task("t")
    reading = reader.read(values, {"text": text}, reader.encoder(tokenizer, model.config.backbone_config, values))
    ids = torch.tensor(reading.rows[0][1]["input_ids"])
    logits = torch.nn.functional.one_hot((ids == tokenizer.mask_token_id).long(), 3) * 9.0
    (span,) = reader.answer(values, logits, reading.rest, model, tokenizer)
    assert (span["word"], span["start"], span["end"]) == ("[MASK]", 5, 11)
    # And so it counts in evaluation.
    rows = Dataset.from_list([{"text": text, "spans": [{"start": 5, "end": 11, "label": "X"}]}])
    options = {"tokenizer": tokenizer, "config": model.config.backbone_config, "split": "test", "training": False}
    encoded = encode_dataset("t", rows, [task], **options)
    tags = [np.array([tag for tag in encoded.rows["labels:t"][0] if tag != -100])]
    references = encoded.references("t")
    scores = task.score(tags, None, unseen=[], references=references, loss=0.0, tokenizer=tokenizer)
    assert scores["f1"] == 1.0
