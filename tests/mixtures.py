"""Mixtures of tasks on the demo's rows, and trainers for them, each made of a description that fits into JSON.

Nothing but public names of the package is used here, so that an earlier revision of it can run the same descriptions.
"""

import os
import random
from dataclasses import replace
from pathlib import Path

import torch
from building import build as build_model
from datasets import Dataset, SplitDict, SplitInfo
from reading import spans_of
from rooting import MASK, add_root
from sounds import WIDE, recordings
from tiny import NER_LABELS, read_rows
from transformers import AutoTokenizer

from hf_multitask import (
    AutomaticSpeechRecognition,
    FillMask,
    MultipleChoice,
    MultiTaskTrainer,
    MultiTaskTrainingArguments,
    QuestionAnswering,
    SentenceSimilarity,
    SequenceClassification,
    SpanClassification,
    TokenClassification,
    Translation,
)

NO_ANSWER = {"text": [], "answer_start": []}
TOPICS = ["and", "the", "was", "not"]
KINDS = ("sentiment", "topics", "stars", "pairs", "ner", "person")
TEXTS = ("answers", "choices", "scored", "groups", "masks", "nested")  # rows of several texts, masks, spans
# By task, options of its loss.
LOSSES = {
    "sentiment": {"class_weights": {"negative": 0.3}, "weight_column": "weight"},
    "topics": {"class_weights": {"the": 3.0}, "loss": "focal", "loss_kwargs": {"gamma": 1.5}},
    "stars": {"loss": "huber", "loss_kwargs": {"delta": 0.2}, "weight_column": "weight"},
    "pairs": {"class_weights": "balanced", "label_smoothing": 0.1, "weight_column": "weight"},
    "ner": {"class_weights": "balanced", "label_smoothing": 0.2, "weight_column": "weight"},
    "person": {"loss": "focal", "class_weights": {"yes": 4.0}},
    "choices": {"label_smoothing": 0.3, "weight_column": "weight"},
    **{name: {"weight_column": "weight"} for name in ("answers", "scored", "groups", "turned", "nested")},
}
NO_WEIGHTS = {"scored", "groups", "masks", "turned", "heard"}  # tasks whose head has none of its own
DATASET = {
    "answers": "questions",
    "choices": "choices",
    "scored": "pairs",
    "groups": "pairs",
    "masks": "reviews",
    "sentiment": "reviews",
    "topics": "reviews",
    "stars": "stars",
    "pairs": "pairs",
    "ner": "wiki",
    "person": "wiki",
    "chained": "wiki",
    "nested": "wiki",
    "turned": "pairs",
    "heard": "tones",
}


def make_tasks(names):
    every = {
        "sentiment": SequenceClassification(label_names=["negative", "positive"], dataset="reviews"),
        "topics": SequenceClassification(
            label_names=TOPICS,
            label_column="topics",
            problem_type="multi_label_classification",
            dataset="reviews",
        ),
        "stars": SequenceClassification(problem_type="regression", label_column="stars"),
        "pairs": SequenceClassification(label_names=["no", "yes"], text_pair_column="other"),
        "ner": TokenClassification(label_names=NER_LABELS, dataset="wiki"),
        "chained": TokenClassification(label_names=NER_LABELS, dataset="wiki", decoding="crf"),
        "nested": SpanClassification(
            label_names=["PER", "NAME", "ORG"],
            text_column="tokens",
            dataset="wiki",
            max_span_length=5,
            negative_spans=30,
        ),
        "person": SequenceClassification(
            label_names=["no", "yes"], text_column="tokens", label_column="person", dataset="wiki"
        ),
        "answers": QuestionAnswering(dataset="questions", max_length=40, doc_stride=8),
        "choices": MultipleChoice(),
        "scored": SentenceSimilarity(
            text_column="text", text_pair_column="other", label_column="score", score_range=[0, 5], dataset="pairs"
        ),
        "groups": SentenceSimilarity(text_column="text", text_pair_column="other", negatives=3, dataset="pairs"),
        "masks": FillMask(dataset="reviews"),
        # Of an encoder-decoder.
        "turned": Translation(source_column="text", target_column="other", dataset="pairs", max_target_length=6),
        "heard": AutomaticSpeechRecognition(dataset="tones", max_target_length=6),
    }
    return {name: every[name] for name in names}


def make_data(sizes, missing, seed, split="train"):
    """Rows of the demo with labels of several tasks, some of them missing; never all of a task."""
    chance = random.Random(seed)

    def maybe(row, value):
        return value if row == 0 or chance.random() >= missing else None

    def weighted(row, name):
        return rows[name](row) | {"weight": [0.4, 1.0, 2.5, 0.0][row % 4]}

    texts = [row["text"] for row in read_rows("sentiment", split, 120)]
    labels = [row["label"] for row in read_rows("sentiment", split, 120)]
    wiki = read_rows("ner", split, 60)
    rows = {
        "reviews": lambda row: {
            "text": texts[row],
            "label": maybe(row, labels[row]),
            "topics": maybe(row, [word for word in TOPICS if f" {word} " in texts[row]]),
        },
        "stars": lambda row: {"text": texts[-1 - row], "stars": maybe(row, len(texts[-1 - row]) / 100)},
        "pairs": lambda row: {
            "text": texts[row],
            "other": texts[-1 - row],
            "label": maybe(row, ["no", "yes"][row % 2]),
            "score": maybe(row, row % 6),
        },
        "questions": lambda row: {
            "question": texts[-1 - row],
            "context": texts[row] * 2,
            "answers": maybe(row, {"text": [texts[row][2:9]], "answer_start": [2]} if row % 3 else NO_ANSWER),
        },
        "choices": lambda row: {
            "question": texts[row],
            "choices": texts[row + 1 : row + 3 + row % 2],
            "label": maybe(row, row % 2),
        },
        "wiki": lambda row: {
            "tokens": wiki[row]["tokens"],
            "ner_tags": maybe(row, wiki[row]["ner_tags"]),
            "spans": maybe(row, spans_of(wiki[row])),
            "person": maybe(row, ["no", "yes"]["B-PER" in wiki[row]["ner_tags"]]),
        },
    }
    made = {name: Dataset.from_list([weighted(row, name) for row in range(size)]) for name, size in sizes.items() if name in rows}  # fmt: skip
    return made | ({"tones": recordings(sizes["tones"], seed, rate=WIDE)} if "tones" in sizes else {})


def as_stream(rows):
    """A dataset as a stream that declares its rows."""
    stream = rows.to_iterable_dataset(num_shards=2)
    stream.info.splits = SplitDict({"train": SplitInfo("train", num_examples=len(rows))})
    return stream


def build(description, backbone, output, batch, accumulation, *, trainer_class=MultiTaskTrainer, callbacks=(), **more):
    """A trainer of a description: its batch on a device, its accumulation, and arguments besides the description's."""
    tasks = make_tasks(description["tasks"])
    if family := description.get("family"):  # another than that of the launch, in the folder beside it
        (backbone,) = map(str, Path(backbone).parent.glob(f"{family}[0-9]"))
    options = LOSSES if description.get("losses") else {}
    tasks = {name: replace(task, **options.get(name, {})) for name, task in tasks.items()}
    for task in tasks.values():
        task.max_length = description.get("max_length")
    model = build_model(backbone, tasks, dropout=description.get("dropout", 0.0), **description["adapters"])
    model = model.to(getattr(torch, description["dtype"]))
    args = {
        "output_dir": str(output),
        "per_device_train_batch_size": batch,
        "per_device_eval_batch_size": 4,
        "gradient_accumulation_steps": accumulation,
        "report_to": "none",
        "use_cpu": "RANK" not in os.environ or torch.accelerator.is_available(),  # ranks find each other without
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "learning_rate": 1e-3,
        "seed": 3 + description["seed"],
        **description["args"],
        **more,
    }
    more_rows = description.get("evaluation_rows", 0)
    # Rows of 'stars' whose squared error is infinite in float32, or, where rooted, their gradient alone.
    poisoned, rooted = description.get("poisoned"), description.get("rooted")
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    if rooted:
        add_root(model, "stars", tokenizer)
    sizes = {name: 7 + more_rows + 2 * place for place, name in enumerate(description["sizes"])}
    evaluates = args.get("eval_strategy", "no") != "no"
    train = make_data(
        description["sizes"], description["missing"], description.get("seed_of_data", description["seed"])
    )
    if rooted:
        texts = [f"{text} {MASK}" if row in poisoned else text for row, text in enumerate(train["stars"]["text"])]
        train["stars"] = train["stars"].remove_columns("text").add_column("text", texts)
    elif poisoned:
        stars = [1e30 if row in poisoned else value for row, value in enumerate(train["stars"]["stars"])]
        train["stars"] = train["stars"].remove_columns("stars").add_column("stars", stars)
    taught = None
    if names := description.get("taught"):
        teacher = build_model(backbone, tasks, seed=7, dropout=0.0)
        taught = dict.fromkeys(names, teacher)
    return trainer_class(
        model,
        MultiTaskTrainingArguments(**args),
        teachers=taught,
        train_dataset=train | {name: as_stream(train[name]) for name in description.get("streams", ())},
        eval_dataset=make_data(sizes, 0.2, 9, "validation") if evaluates else None,
        processing_class=tokenizer,
        callbacks=list(callbacks),
    )
