"""Losses of pairs: those of sentence-transformers, the same update however it is accumulated, prompts, and dimensions."""

import random
from dataclasses import replace

import pytest
import torch
from datasets import Dataset
from layouts import relative_difference
from parameters import few
from tiny import read_rows

from hf_multitask import MultiTaskModel, MultiTaskTrainer, SentenceSimilarity
from hf_multitask.modeling import MultiTaskPipeline

HARD = {"negatives_column": "hard"}
TRIPLET = {"loss": "triplet", "negatives_column": "one"}
# By loss, the task, the loss of sentence-transformers, and the columns that it reads.
PARITY = {
    "cosine": ({"label_column": "score", "score_range": [0, 1]}, "CosineSimilarityLoss", {}, ()),
    "multiple_negatives": ({"negatives": 4}, "MultipleNegativesRankingLoss", {}, ()),
    "hard negatives": (
        {"negatives": 4, "negatives_column": "two", "loss_kwargs": {"scale": 7}},
        "MultipleNegativesRankingLoss",
        {"scale": 7},
        ("one", "other"),
    ),
    "triplet": (TRIPLET, "TripletLoss", {}, ("one",)),
    "margin": (TRIPLET | {"loss_kwargs": {"margin": 0.1}}, "TripletLoss", {"triplet_margin": 0.1}, ("one",)),
    "matryoshka": (
        {"negatives": 4, "negatives_column": "one", "matryoshka_dims": [32, 16, 4], "prompt": "query: "},
        "MultipleNegativesRankingLoss",
        {},
        ("one",),
    ),
    "matryoshka triplet": (TRIPLET | {"matryoshka_dims": [8, 32]}, "TripletLoss", {}, ("one",)),
}


def rows_of(count, start=0):
    """Pairs with a score, and hard negatives: one, two, or some of them."""
    texts = [row["text"] for row in read_rows("sentiment", "train", 150)]
    chance = random.Random(start)

    def make(row):
        first, second, one, other, more = (texts[start + row + 20 * place] for place in range(5))
        hard = [None, one, [one, other, more], [], [more]][row % 5]
        return {
            **{"sentence1": first, "sentence2": second, "score": row % 7 / 6, "one": one, "other": other},
            **{
                "two": [one, other],
                "hard": [hard] if isinstance(hard, str) else hard,
                "weight": chance.choice([0.5, 2]),
            },
        }

    return Dataset.from_list([make(row) for row in range(count)])


@pytest.fixture
def build(backbone_path, arguments, tokenizer):
    def make(tasks, data, dtype=torch.float64, **kwargs):
        torch.manual_seed(1)
        model = MultiTaskModel.from_backbone(backbone_path(), tasks=tasks, dropout=0.0).to(dtype)
        data = dict.fromkeys(tasks, data) if isinstance(data, Dataset) else data
        return MultiTaskTrainer(
            model, arguments(**kwargs), train_dataset=data, eval_dataset=data, processing_class=tokenizer
        )

    return make


@pytest.mark.parametrize("name", few(PARITY, ["hard negatives", "triplet", "matryoshka"]))
def test_losses_are_those_of_sentence_transformers(name, build, tokenizer, tmp_path):
    library = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    options, kind, kwargs, more = PARITY[name]
    rows = rows_of(4)
    trainer = build({"e": SentenceSimilarity(**options)}, rows)
    dataset, model = trainer.train_dataset, trainer.model.eval()
    ours = model(**trainer.data_collator([dataset[row] for row in range(len(dataset))])).losses["e"]
    ours.backward()
    model.export_task("e", tmp_path, tokenizer)
    stock = library.SentenceTransformer(str(tmp_path), device="cpu", model_kwargs={"dtype": torch.float64}).eval()
    loss = getattr(library.sentence_transformer.losses, kind)(stock, **kwargs)
    if options.get("matryoshka_dims"):
        loss = library.sentence_transformer.losses.MatryoshkaLoss(stock, loss, options["matryoshka_dims"])
    columns = [list(rows[column]) for column in ("sentence1", "sentence2", *more)]
    features = [stock.preprocess(texts, prompt=options.get("prompt")) for texts in columns]
    theirs = loss(features, torch.tensor(rows["score"]) if kind == "CosineSimilarityLoss" else None)
    theirs.backward()
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-6)
    one, other = (part.embeddings.word_embeddings.weight.grad for part in (model.backbone, stock[0].auto_model))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    assert trainer.evaluate()["eval_e_loss"] == pytest.approx(theirs.item(), abs=1e-6)


def test_losses_are_those_of_a_loop_over_texts(build):
    """Of pairs with different numbers of hard negatives, in a group that is smaller than the others, too."""
    tasks = {
        "group": SentenceSimilarity(negatives=5, matryoshka_dims=[6, 32], **HARD),
        "triplet": SentenceSimilarity(loss="triplet", loss_kwargs={"margin": 0.2, "distance": "cosine"}, **HARD),
    }
    rows = rows_of(8)
    trainer = build(tasks, rows)
    embed = MultiTaskPipeline(model=trainer.model.eval(), tokenizer=trainer.processing_class)

    def embedding(text, dim):
        found = torch.tensor(embed(text, tasks=["group"], truncate_dim=dim)["group"]["embedding"], dtype=torch.float64)
        return found / found.norm()

    def loss_of(row, group, dim):
        cosines = [embedding(row["sentence1"], dim) @ embedding(other["sentence2"], dim) for other in group]
        hard = [text for other in group for text in other["hard"] or []]
        cosines += [embedding(row["sentence1"], dim) @ embedding(text, dim) for text in hard]
        return -(20 * torch.stack(cosines)).log_softmax(0)[group.index(row)]

    rows = list(rows)
    groups = [rows[:5], rows[5:]]
    found = trainer.evaluate()
    expected = sum(loss_of(row, group, dim) for group in groups for row in group for dim in (6, 32)) / len(rows)
    assert found["eval_group_loss"] == pytest.approx(expected.item(), abs=1e-5)
    losses, right = [], []
    for row in rows:
        first, second = (embedding(row[column], 32) for column in ("sentence1", "sentence2"))
        for text in row["hard"] or []:
            gain = first @ second - first @ embedding(text, 32)
            losses.append(max(0.0, 0.2 - gain.item()))
            right.append(gain.item() > 0)
    assert found["eval_triplet_loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-5)
    assert found["eval_triplet_accuracy"] == pytest.approx(sum(right) / len(right)) and len(set(right)) == 2


@pytest.mark.slow  # of every type of task: test_invariance.py
def test_pairs_make_one_update_however_it_is_accumulated(build, record_property):
    tasks = {
        "group": SentenceSimilarity(negatives=3, matryoshka_dims=[8, 32], weight_column="weight", **HARD),
        "triplet": SentenceSimilarity(loss="triplet", loss_kwargs={"margin": 0.3}, weight_column="weight", **HARD),
        "scored": SentenceSimilarity(label_column="score", matryoshka_dims=[4], prompt="query: "),
    }
    data = {name: rows_of(30, place) for place, name in enumerate(tasks)}

    def run(batch, accumulation):
        trainer = build(
            tasks, data, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation, max_steps=3
        )
        start = {name: value.clone() for name, value in trainer.model.state_dict().items()}
        trainer.train()
        found = {name: value.clone() for name, value in trainer.model.state_dict().items()}
        assert relative_difference(start, found) > 1e-3
        return found, trainer.evaluate()

    whole, metrics = run(32, 1)
    for batch in (8, 2):
        parts, other = run(batch, 32 // batch)
        record_property(f"32x1 against {batch}x{32 // batch}, relative norm", relative_difference(whole, parts))
        assert relative_difference(whole, parts) < 1e-9
        for name in ("eval_group_loss", "eval_triplet_loss", "eval_triplet_accuracy", "eval_scored_pearson"):
            assert metrics[name] == pytest.approx(other[name], abs=1e-7)


def test_a_training_on_pairs_resumes_to_the_bit(build, tmp_path):
    tasks = {
        "group": SentenceSimilarity(negatives=3, matryoshka_dims=[8, 32], **HARD),
        "triplet": SentenceSimilarity(loss="triplet", **HARD),
    }

    def run(checkpoint=None):
        saving = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "output_dir": str(tmp_path / "out")}
        trainer = build(tasks, rows_of(20), dtype=torch.float32, **saving)
        trainer.train(resume_from_checkpoint=checkpoint)
        return trainer.model.state_dict()

    alone, resumed = run(), run(str(tmp_path / "out" / "checkpoint-2"))
    assert all(torch.equal(value, resumed[name]) for name, value in alone.items())


def test_a_hard_negative_that_is_right_does_not_count(build):
    rows = [{"sentence1": "a b", "sentence2": "c", "hard": hard} for hard in (["c"], ["a b", "d"], ["C"], ["e"])]
    tasks = {
        "group": SentenceSimilarity(negatives=4, **HARD),
        "triplet": SentenceSimilarity(loss="triplet", **HARD),
    }
    trainer = build(tasks, Dataset.from_list(rows))
    dataset, heads = trainer.train_dataset, trainer.model.heads
    batch = trainer.data_collator([dataset[row] for row in range(len(dataset))])
    assert heads["triplet"].items(batch["labels"]["triplet"]).tolist() == [0, 1, 0, 1]
    with torch.no_grad():
        logits = trainer.model.eval()(**batch).logits["group"]
    scores = heads["group"]._scores(heads["group"]._texts(logits, batch["labels"]["group"]), batch["labels"]["group"])
    # Of four second texts that are all "c", each pair has its own; of the negatives, "d" and "e".
    assert (scores > torch.finfo(scores.dtype).min).sum(2).tolist() == [[3, 3, 3, 3]]


def test_the_constant_loss_is_that_of_equal_embeddings(build):
    tasks = {
        "group": SentenceSimilarity(negatives=5, matryoshka_dims=[6, 32], **HARD),
        "triplet": SentenceSimilarity(loss="triplet", loss_kwargs={"margin": 0.3}, **HARD),
    }
    trainer = build(tasks, rows_of(10))
    with torch.no_grad():
        for name in ("weight", "bias"):
            getattr(trainer.model.backbone.encoder.layer[-1].output.LayerNorm, name).fill_(name == "bias")
    found = trainer.evaluate()
    for dataset in trainer.train_dataset.datasets:
        (name,) = dataset.tasks
        labels = dataset.references(name)
        expected = trainer.tasks[name].constant_loss(labels, dataset.rows, trainer.processing_class)
        assert found[f"eval_{name}_loss"] == pytest.approx(expected, rel=1e-5)


def test_a_prompt_begins_every_text_in_training_and_in_the_pipeline(build, tokenizer):
    rows = rows_of(6)
    plain = SentenceSimilarity(negatives=3, **HARD)
    said = rows.map(
        lambda row: {
            **{name: "query: " + row[name] for name in ("sentence1", "sentence2")},
            "hard": [f"query: {text}" for text in row["hard"]] if row["hard"] else row["hard"],
        }
    )
    one = build({"e": replace(plain, prompt="query: ")}, rows)
    other, bare = build({"e": plain}, said), build({"e": plain}, rows)
    assert one.evaluate()["eval_e_loss"] == other.evaluate()["eval_e_loss"] != bare.evaluate()["eval_e_loss"]
    asked = MultiTaskPipeline(model=one.model, tokenizer=tokenizer)
    given = MultiTaskPipeline(model=other.model, tokenizer=tokenizer)
    for ask, say in (
        ("Hello.", "query: Hello."),
        ({"text": "a", "text_pair": "b"}, {"text": "query: a", "text_pair": "query: b"}),
    ):
        assert asked(ask) == given(say)


def test_tasks_with_other_prompts_or_losses_do_not_share_rows(build):
    rows = rows_of(6)
    tasks = {
        "plain": SentenceSimilarity(negatives=3, negatives_column="one", dataset="d"),
        "prompt": SentenceSimilarity(negatives=3, negatives_column="one", dataset="d", prompt="query: "),
        "triplet": SentenceSimilarity(dataset="d", **TRIPLET),
        "dims": SentenceSimilarity(negatives=3, negatives_column="one", dataset="d", matryoshka_dims=[16]),
    }
    trainer = build(tasks, {"d": rows})
    assert trainer.train_dataset.tasks == {"plain": ["plain", "dims"], "prompt": ["prompt"], "triplet": ["triplet"]}
    assert trainer.train_dataset.sizes == {"plain": 2, "prompt": 2, "triplet": 6}
    again = build({"plain": replace(tasks["plain"], **TRIPLET)}, {"d": rows})  # whose cache is not that of groups
    assert again.train_dataset.sizes == {"d": 6}


def test_the_pipeline_keeps_the_first_dimensions(build, tokenizer):
    trainer = build({"e": SentenceSimilarity(matryoshka_dims=[8, 32])}, rows_of(4), dtype=torch.float32)
    ask = MultiTaskPipeline(model=trainer.model, tokenizer=tokenizer)
    whole = ask("A fine place.")["e"]["embedding"]
    assert len(whole) == 32 and ask("A fine place.", truncate_dim=8)["e"]["embedding"] == whole[:8]
    short = MultiTaskPipeline(model=trainer.model, tokenizer=tokenizer, truncate_dim=8)
    one, other = (torch.tensor(answer["e"]["embedding"]) for answer in short(["A fine place.", "Another."]))
    expected = torch.cosine_similarity(one, other, dim=0).item()
    assert short({"text": "A fine place.", "text_pair": "Another."})["e"]["score"] == pytest.approx(expected, abs=1e-6)
    for dim, message in ((0, "a whole number of 1 or more"), (33, "should be 32 at most"), (True, "whole number")):
        with pytest.raises(ValueError, match=f"`truncate_dim` .*{message}"):
            ask("A fine place.", truncate_dim=dim)


def test_whole_embeddings_that_are_not_trained_are_reported(build, caplog):
    build({"e": SentenceSimilarity(matryoshka_dims=[8, 32])}, rows_of(4))
    assert "matryoshka_dims" not in caplog.text
    build({"e": SentenceSimilarity(matryoshka_dims=[8, 4])}, rows_of(4))
    assert "Task 'e': `matryoshka_dims` are without 32, so whole embeddings" in caplog.text


def test_a_teacher_of_pairs_answers_cosines_with_its_own_prompt(build, arguments, tokenizer, backbone_path):
    rows = rows_of(4)
    teacher = build({"e": SentenceSimilarity(prompt="query: ", **TRIPLET)}, rows, dtype=torch.float32).model
    student = MultiTaskModel.from_backbone(backbone_path(), tasks={"e": SentenceSimilarity(label_column="score")})
    trainer = MultiTaskTrainer(
        student, arguments(), train_dataset={"e": rows}, processing_class=tokenizer, teachers={"e": teacher}
    )
    ask = MultiTaskPipeline(model=teacher, tokenizer=tokenizer)
    told = [ask({"text": row["sentence1"], "text_pair": row["sentence2"]})["e"]["score"] for row in rows]
    assert [score for (score,) in trainer.train_dataset.datasets[0].rows["soft:e"]] == pytest.approx(told, abs=1e-6)
    with pytest.raises(ValueError, match=r"Task 'e': .* cannot have a teacher: without scores a pair has no output"):
        MultiTaskTrainer(
            teacher, arguments(), train_dataset={"e": rows}, processing_class=tokenizer, teachers={"e": teacher}
        )


def test_a_graph_says_with_which_prompt_its_texts_begin(build_model):
    heads = build_model(tasks={"e": SentenceSimilarity(prompt="query: "), "f": SentenceSimilarity()}).heads
    assert heads["e"].described() == {"prompt": "query: "} and heads["f"].described() == {}


def test_no_embedding_is_no_embedding_to_truncate(build_model, tokenizer):
    with pytest.raises(ValueError, match=r"`truncate_dim` is for tasks that answer embeddings, and the model has none"):
        MultiTaskPipeline(model=build_model(), tokenizer=tokenizer, truncate_dim=8)


def test_dimensions_that_the_backbone_does_not_have_are_refused(build_model, tmp_path):
    with pytest.raises(ValueError, match=r"Task 'e': `matryoshka_dims` should be 32 at most, .* Found 64"):
        build_model(tasks={"e": SentenceSimilarity(matryoshka_dims=[16, 64])})
    build_model(tasks={"e": SentenceSimilarity()}).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"Task 'e': `matryoshka_dims` should be 32 at most"):
        MultiTaskModel.from_pretrained(tmp_path).set_task("e", SentenceSimilarity(matryoshka_dims=[33]).to_dict())


def test_rows_without_a_negative_have_no_triplet_and_are_counted(build, caplog):
    rows = rows_of(10)
    trainer = build({"e": SentenceSimilarity(loss="triplet", **HARD)}, rows)
    assert "Task 'e': 4 of 10 rows of the train data have no label." in caplog.text
    assert len(trainer.train_dataset.datasets[0].labelled("e")) == 6
    with pytest.raises(ValueError, match=r"row 0 of the train data, column 'score': hard negatives should be a text"):
        build({"e": SentenceSimilarity(negatives_column="score")}, rows)
