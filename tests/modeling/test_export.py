"""One task as a stock model: the same weights, the same logits, no trace of the package."""

import json
import re
from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import ModelCard
from reading import TASKS, TEXT, refusal
from tiny import ALL, WRITERS
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    pipeline,
)
from transformers.utils import logging

from hf_multitask import MultiTaskModel, MultiTaskPipeline
from hf_multitask.modeling import export_folder

AUTO = {
    "sequence-classification": AutoModelForSequenceClassification,
    "token-classification": AutoModelForTokenClassification,
    "question-answering": AutoModelForQuestionAnswering,
    "multiple-choice": AutoModelForMultipleChoice,
    "fill-mask": AutoModelForMaskedLM,
    "text-generation": AutoModelForCausalLM,
    "translation": AutoModelForSeq2SeqLM,
}
PAIRS = {
    "bert": ["sequence-classification", "token-classification", "question-answering", "multiple-choice", "fill-mask"],
    "xlm-roberta": ["sequence-classification", "multiple-choice"],
    "gpt2": ["sequence-classification", "token-classification", "question-answering", "text-generation"],
    "bart": ["sequence-classification", "translation"],
    "t5": ["sequence-classification", "token-classification", "translation"],
}
# Whose cards are run: every type once, and what a family does in its own way.
WITHOUT = ("span-classification", "dependency-parsing")  # a stock class
CARDS = {
    "bert": [kind for kind in TASKS if kind not in ("sentence-similarity", *WITHOUT)],
    "gpt2": ["sentence-similarity", "text-generation"],
    "bart": ["translation"],
    "t5": ["summarization", "text2text-generation"],
}


@pytest.fixture
def build(backbone_path):
    def make(family, kinds, **kwargs):
        path = backbone_path(family)
        tasks = {kind: TASKS[kind]() for kind in kinds}
        tokenizer = AutoTokenizer.from_pretrained(path)
        model = MultiTaskModel.from_backbone(path, tasks=tasks, **kwargs)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
            model.set_pad_token_id(tokenizer.pad_token_id)
        return model, tokenizer

    return make


@pytest.mark.parametrize(("family", "kind"), [(family, kind) for family, kinds in PAIRS.items() for kind in kinds])
def test_exported_tasks_give_the_logits_of_the_shared_model_to_the_bit(family, kind, build, tmp_path):
    check_logits(kind, *build(family, PAIRS[family]), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("family", ALL)
def test_every_type_of_every_family_gives_the_logits_to_the_bit(family, build, tmp_path):
    unset = {("longformer", "fill-mask")}  # Transformers leaves a bias of a fresh one unset
    for kind in AUTO:
        if (
            (family, kind) not in unset
            and refusal(family, kind) is None
            and (kind != "question-answering" or family not in WRITERS)
        ):
            check_logits(kind, *build(family, [kind]), tmp_path / kind)


def check_logits(kind, model, tokenizer, tmp_path):
    """An exported task against the model that it comes from."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.export_task(kind, tmp_path, tokenizer)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not list(tmp_path.glob("*.py"))
    assert "hf_multitask" not in (tmp_path / "config.json").read_text()
    # Weights of a file lie differently in memory than others, and kernels round accordingly: copies lie alike.
    model, stock = deepcopy(model), deepcopy(AUTO[kind].from_pretrained(tmp_path))
    tokens = dict(tokenizer([TEXT, "Short one."], padding=True, return_tensors="pt"))
    tokens = {name: tokens[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        if kind == "translation":
            labels = tokens["input_ids"][:, :5].contiguous()
            ours = model(**tokens, tasks=[kind], labels={kind: labels}).losses[kind]
            theirs = stock(**tokens, labels=labels).loss
            assert ours.item() == pytest.approx(theirs.item(), abs=1e-6)
            given = {"max_new_tokens": 5, "pad_token_id": tokenizer.pad_token_id}
            assert torch.equal(model.generate(**tokens, task=kind, **given), stock.generate(**tokens, **given))
        elif kind == "multiple-choice":
            ours = model(**tokens, task_rows={kind: torch.tensor([[0, 1]])}).logits[kind]
            assert torch.equal(ours, stock(**{name: value.unsqueeze(0) for name, value in tokens.items()}).logits)
        else:
            ours, theirs = model(**tokens, tasks=[kind]).logits[kind], stock(**tokens)
            if kind == "question-answering":
                ours = ours[:, 0]  # one window each
                theirs.logits = torch.stack([theirs.start_logits, theirs.end_logits], -1)
            assert torch.equal(ours, theirs.logits)
    names = model.config.task(kind).get("label_names")
    if names:
        assert [stock.config.id2label[number] for number in range(len(names))] == names


@pytest.mark.parametrize(
    ("family", "kind", "pooling"), [("bert", "sequence-classification", "mean"), ("t5", "question-answering", "native")]
)
def test_heads_that_are_not_the_familys_own_are_refused(family, kind, pooling, build, tmp_path):
    model, _ = build(family, [kind], pooling=pooling)
    with pytest.raises(ValueError, match=f"Task '{kind}' has a head that is not the family's own"):
        model.export_task(kind, tmp_path)


def tokenizer_of(folder):
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("family", ["bert", "gpt2", "bart", "t5"])
def test_the_card_alone_says_how_to_use_what_lies_beside_it(family, build, tmp_path, monkeypatch, capsys):
    kinds = [kind for kind in TASKS if refusal(family, kind) is None and kind in CARDS[family]]
    model, _ = build(family, kinds)
    model.config.backbone_config.name_or_path, path = "google/tiny", model.config.backbone_config.name_or_path
    tokenizer = tokenizer_of(path)
    monkeypatch.chdir(tmp_path)
    for kind in kinds:
        model.export_task(kind, kind, tokenizer)
        text = (tmp_path / kind / "README.md").read_text()
        card = ModelCard(text)
        assert card.data.base_model == "google/tiny"
        assert card.data.pipeline_tag == {"sequence-classification": "text-classification"}.get(kind, kind)
        assert all(f"`{label}`" in text for label in model.config.task(kind).get("label_names") or [])
        exec(re.search(r"```python\n(.*?)```", text, flags=re.DOTALL)[1], {})
        for file in (tmp_path / kind).rglob("*"):
            assert file.is_dir() or (b"multitask" not in file.read_bytes() and path.encode() not in file.read_bytes())
        assert tokenizer_of(tmp_path / kind).pad_token_id is not None


@pytest.mark.parametrize("loaded", [False, True])
def test_the_tokenizer_comes_along_by_itself(loaded, build, tmp_path):
    model, tokenizer = build("bert", ["token-classification"])
    if loaded:
        model.save_pretrained(tmp_path / "saved")
        tokenizer.add_tokens(["[NEW]"])
        tokenizer.save_pretrained(tmp_path / "saved")
        model = MultiTaskModel.from_pretrained(tmp_path / "saved")
    model.export_task("token-classification", tmp_path / "out")
    assert len(tokenizer_of(tmp_path / "out")) == len(tokenizer)


def test_without_a_tokenizer_the_model_is_exported_and_a_warning_says_so(build, tmp_path, caplog, monkeypatch):
    model, _ = build("bert", ["token-classification"])
    model.config.backbone_config.name_or_path = ""
    monkeypatch.setattr(logging.get_logger("transformers"), "propagate", True)
    model.export_task("token-classification", tmp_path)
    assert "exported without a tokenizer: none lies beside the model" in caplog.text
    assert not list(tmp_path.glob("tokenizer*"))


def test_pipelines_of_the_exported_tasks_answer_as_ours(build, tmp_path):
    model, tokenizer = build("bert", ["sequence-classification", "token-classification", "fill-mask"])
    ours = MultiTaskPipeline(model=model, tokenizer=tokenizer)
    text = "Ada [MASK] loved London ."
    answers = ours(text)
    for kind in answers:
        model.export_task(kind, tmp_path / kind)
    theirs = pipeline("text-classification", str(tmp_path / "sequence-classification"))(text)
    assert theirs == [pytest.approx(answers["sequence-classification"], abs=1e-6)]
    theirs = pipeline("token-classification", str(tmp_path / "token-classification"), aggregation_strategy="first")(
        text
    )
    parts = ("entity_group", "start", "end")
    assert [[entity[part] for part in parts] for entity in theirs] == [
        [entity[part] for part in parts] for entity in answers["token-classification"]
    ]
    assert [float(entity["score"]) for entity in theirs] == pytest.approx(
        [entity["score"] for entity in answers["token-classification"]], abs=1e-6
    )
    theirs = pipeline("fill-mask", str(tmp_path / "fill-mask"))(text)
    assert [word["token"] for word in theirs] == [word["token"] for word in answers["fill-mask"]]


@pytest.mark.parametrize(
    ("family", "kind"), [("gpt2", "text-generation"), ("bart", "summarization"), ("t5", "translation")]
)
def test_exported_writers_write_as_ours(family, kind, build, tmp_path):
    model, tokenizer = build(family, [kind])
    model.export_task(kind, tmp_path)
    expected = MultiTaskPipeline(model=model, tokenizer=tokenizer)(TEXT)[kind]["generated_text"]
    if kind == "text-generation":
        assert pipeline(kind, str(tmp_path), do_sample=False)(TEXT)[0]["generated_text"] == expected
        return
    tokens = tokenizer_of(tmp_path)((model.config.task(kind).get("prefix") or "") + TEXT, return_tensors="pt")
    written = AutoModelForSeq2SeqLM.from_pretrained(tmp_path).generate(**tokens)
    assert tokenizer.decode(written[0], skip_special_tokens=True) == expected


def test_a_new_export_replaces_the_old_one_and_leaves_the_rest(build, tmp_path):
    model, _ = build("bert", ["sentence-similarity", "token-classification"])
    model.export_task("sentence-similarity", tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    (tmp_path / "README.md").write_text("Mine.")
    (tmp_path / "notes.txt").write_text("Mine, too.")
    model.export_task("token-classification", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "notes.txt",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert (tmp_path / "README.md").read_text() == "Mine."
    assert AutoModelForTokenClassification.from_pretrained(tmp_path).config.label2id["B-PER"] == 1


def test_an_export_that_fails_leaves_the_old_files_whole(build, tmp_path):
    model, tokenizer = build("bert", ["token-classification"])
    model.export_task("token-classification", tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    class Broken(type(tokenizer)):
        def save_pretrained(self, folder, **kwargs):
            raise OSError(28, "No space left on device")

    tokenizer.__class__ = Broken
    for folder in ("out", "new"):
        with pytest.raises(OSError, match="no space left on device"):
            model.export_task("token-classification", tmp_path / folder, tokenizer)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert not (tmp_path / "new").exists()


def test_no_export_overwrites_a_multi_task_model(build, tmp_path):
    model, _ = build("bert", ["token-classification"])
    model.save_pretrained(tmp_path / "saved")
    with pytest.raises(
        ValueError, match=r"saved' holds a multi-task model, which an export would overwrite. Name another"
    ):
        model.export_task("token-classification", tmp_path / "saved")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"file' is a file. Name a folder"):
        model.export_task("token-classification", tmp_path / "file")


@pytest.fixture
def exported(build, tmp_path):
    model, tokenizer = build("bert", ["sentence-similarity", "sequence-classification"])
    model.export_task("sentence-similarity", tmp_path, tokenizer)
    tokens = tokenizer([TEXT, "Short one."], padding=True, return_tensors="pt")
    with torch.no_grad():
        return tmp_path, tokens, model(**tokens, tasks=["sentence-similarity"]).logits["sentence-similarity"][:, 0]


def test_embeddings_leave_as_a_backbone_with_pooling_beside_it(exported):
    folder, tokens, expected = exported
    assert [module["path"] for module in json.loads((folder / "modules.json").read_text())] == [
        "",
        "1_Pooling",
        "2_Normalize",
    ]
    with torch.no_grad():
        states = AutoModel.from_pretrained(folder)(**tokens).last_hidden_state
    mask = tokens["attention_mask"].unsqueeze(-1)
    mean = (states * mask).sum(1) / mask.sum(1)
    torch.testing.assert_close(torch.nn.functional.normalize(mean), expected, rtol=0, atol=1e-6)


def test_sentence_transformers_loads_embeddings(exported):
    library = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    folder, _, expected = exported
    embeddings = library.SentenceTransformer(str(folder), device="cpu").encode([TEXT, "Short one."])
    torch.testing.assert_close(torch.tensor(embeddings), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("there", [False, True])
def test_push_uploads_what_was_written_and_leaves_the_card_of_the_repository(there, build, tmp_path, monkeypatch):
    calls = []

    class Hub:  # in place of the wire; what goes over it is tested with a server
        def __init__(self, token=None):
            calls.append(("token", token))

        def create_repo(self, repo_id, **kwargs):
            calls.append(("repo", repo_id, kwargs))
            return SimpleNamespace(repo_id=f"me/{repo_id}")

        def file_exists(self, repo_id, name, revision=None):
            return there

        def create_branch(self, repo_id, **kwargs):
            calls.append(("branch", repo_id, kwargs["branch"]))

        def upload_folder(self, repo_id, folder_path, allow_patterns, **kwargs):
            calls.append(("upload", repo_id, folder_path, sorted(allow_patterns), kwargs))

    monkeypatch.setattr(export_folder, "HfApi", Hub)
    model, _ = build("bert", ["token-classification"])
    (tmp_path / "ner").mkdir()
    (tmp_path / "ner" / "private.txt").touch()
    given = {"private": True, "token": "t", "revision": "draft", "commit_message": "New", "create_pr": True}
    model.export_task("token-classification", tmp_path / "ner", push_to_hub=True, **given)
    files = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    rest = {"revision": "draft", "commit_message": "New", "commit_description": None, "create_pr": True}
    assert calls == [
        ("token", "t"),
        ("repo", "ner", {"private": True, "exist_ok": True}),
        ("branch", "me/ner", "draft"),
        ("upload", "me/ner", tmp_path / "ner", files if there else ["README.md", *files], rest),
    ]
