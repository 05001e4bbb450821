"""Embeddings and rankings by the command line: losses of pairs, prompts, dimensions, and groups of rows."""

import json

import pytest
from tiny import read_rows
from transformers import AutoModel

from hf_multitask.cli import main

NEAR = {
    "type": "sentence-similarity",
    "dataset": "documents",
    "text_column": "query",
    "text_pair_column": "document",
    "loss": "triplet",
    "loss_kwargs": {"margin": 0.5},
    "negatives_column": "others",
    "matryoshka_dims": [32, 8],
    "prompt": "query: ",
}
RANKED = {
    "type": "sequence-classification",
    "dataset": "documents",
    "text_column": "query",
    "text_pair_column": "document",
    "label_column": "relevant",
    "group_column": "query",
    "metrics": ["ndcg@10", "mrr@10", "accuracy"],
}


@pytest.fixture
def recipe(kitchen):
    texts = [row["text"] for row in read_rows("sentiment", "train", 60)]
    for split, start in (("train", 0), ("validation", 30)):
        rows = [
            {
                "query": texts[start + row // 4],
                "document": texts[start + row + 5],
                "others": texts[start + 3 : start + 3 + row % 3],
                "relevant": ["no", "yes"][row % 4 == 1],
            }
            for row in range(16)
        ]
        kitchen.write(f"documents/{split}.jsonl", rows)
    files = {split: f"documents/{split}.jsonl" for split in ("train", "validation")}
    recipe = kitchen.changed("tasks", ner=None, sentiment=None, near=NEAR, ranked=RANKED)
    recipe["datasets"] = {"documents": {"path": "json", "data_files": files}}
    recipe["training"]["output_dir"] = str(kitchen.folder / "out")
    return recipe


def test_a_recipe_trains_serves_and_exports_embeddings_and_rankings(kitchen, recipe, capsys):
    code, _, errors = kitchen.run(["train"], recipe)
    assert code == 0, errors
    out = str(kitchen.folder / "out")
    found = json.loads((kitchen.folder / "out" / "all_results.json").read_text())
    assert {"eval_ranked_ndcg@10", "eval_ranked_mrr@10", "eval_near_accuracy"} <= set(found)
    assert "ndcg@10" in (kitchen.folder / "out" / "README.md").read_text()
    task = AutoModel.from_pretrained(out).config.task("near")
    assert {name: task[name] for name in NEAR} == NEAR
    assert kitchen.run(["evaluate", out], recipe, "--split", "validation")[0] == 0
    embeddings = {}
    for words in ([], ["--truncate_dim", "8"]):
        assert main(["predict", out, "A fine place.", "--tasks", "near", *words]) == 0
        embeddings[len(words)] = json.loads(capsys.readouterr().out.splitlines()[-1])["near"]["embedding"]
    assert len(embeddings[0]) == 32 and embeddings[2] == embeddings[0][:8]
    assert main(["predict", out, "A fine place.", "--truncate_dim", "64"]) == 2
    assert "`truncate_dim` should be 32 at most" in capsys.readouterr().err
    assert main(["export", out, "--task", "near", "--output", str(kitchen.folder / "near")]) == 0
    card = (kitchen.folder / "near" / "README.md").read_text()
    assert 'Every text begins with "query: "' in card and "The first 32, 8 dimensions" in card
    prompts = json.loads((kitchen.folder / "near" / "config_sentence_transformers.json").read_text())["prompts"]
    assert set(prompts.values()) == {"query: "}
    library = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    stock = library.SentenceTransformer(str(kitchen.folder / "near"), device="cpu")
    for encode in (stock.encode, stock.encode_query, stock.encode_document):
        assert encode("A fine place.").tolist() == pytest.approx(embeddings[0], abs=1e-6)
        assert encode("A fine place.", truncate_dim=8).tolist() == pytest.approx(embeddings[2], abs=1e-6)


@pytest.mark.parametrize(
    ("task", "change", "message"),
    [
        ("near", {"matryoshka_dims": [64, 8]}, "`matryoshka_dims` should be 32 at most"),
        ("near", {"negatives_column": None}, "there is no negatives_column. Set negatives_column"),
        ("near", {"negatives_column": "hard"}, "has no column 'hard'"),
        ("ranked", {"group_column": "queries"}, "has no column 'queries'; it has"),
        ("ranked", {"group_column": None}, "there is no group_column. Set group_column"),
        ("ranked", {"metrics": ["ndcg@0"]}, "whose K should be a whole number, 1 or more"),
    ],
)
def test_a_mistake_is_one_sentence_before_training(task, change, message, kitchen, recipe):
    recipe["tasks"][task] = {key: value for key, value in (recipe["tasks"][task] | change).items() if value is not None}
    code, _, errors = kitchen.run(["train"], recipe)
    assert code == 2 and message in errors and "Traceback" not in errors
    assert not (kitchen.folder / "out" / "model.safetensors").exists()
