"""Backbones that cannot do what the tasks need are refused when a model is built."""

import json

import pytest
import torch
from reading import rows_of
from safetensors.torch import save_file
from tiny import BART, COMMON, ROBERTA, SIZES, VOCAB
from transformers import (
    AutoConfig,
    AutoModel,
    CanineConfig,
    CanineTokenizer,
    FunnelConfig,
    FunnelModel,
    LukeConfig,
    NystromformerConfig,
    PLBartConfig,
    TapasConfig,
    XLNetConfig,
)

from hf_multitask import (
    MultipleChoice,
    MultiTaskConfig,
    MultiTaskModel,
    MultiTaskPipeline,
    MultiTaskTrainer,
    QuestionAnswering,
    SentenceSimilarity,
    SequenceClassification,
    TokenClassification,
)
from hf_multitask.modeling.heads import with_one_end

TASKS = {
    "classes": SequenceClassification(label_names=["x", "y"]),
    "tags": TokenClassification(label_names=["O", "B-X"]),
    "answers": QuestionAnswering(),
}
XLNET = {"vocab_size": VOCAB, "d_model": 32, "n_layer": 1, "n_head": 4, "d_inner": 37}
FUNNEL = {"vocab_size": VOCAB, "block_sizes": [1, 1], "block_repeats": [1, 1], "d_model": 32, "n_head": 4, "d_head": 8}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    ("config", "words"),
    [
        (lambda: XLNetConfig(**XLNET), "no attribute 'mems'"),
        (lambda: LukeConfig(**ROBERTA, **SIZES, entity_vocab_size=9, entity_emb_size=8), "'entity_hidden_states'"),
    ],
    ids=["xlnet", "luke"],
)
def test_families_whose_heads_read_more_than_states_are_refused(config, words, task, tmp_path):
    AutoModel.from_config(config()).save_pretrained(tmp_path)
    message = rf"is not supported for task '{task}': the stock class of .* reads more of .*{words}.*another backbone\."
    with pytest.raises(ValueError, match=message):
        MultiTaskModel.from_backbone(str(tmp_path), tasks={task: TASKS[task]})


def test_a_family_with_several_classes_is_refused(tmp_path):
    FunnelModel(FunnelConfig(**FUNNEL, d_inner=37, num_decoder_layers=1)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"family 'funnel' is not supported: it has 2 classes without a head"):
        MultiTaskModel.from_backbone(str(tmp_path), tasks={"classes": TASKS["classes"]})


def test_plbart_classifies(tmp_path):
    AutoModel.from_config(PLBartConfig(**BART, decoder_start_token_id=3)).save_pretrained(tmp_path)
    model = MultiTaskModel.from_backbone(str(tmp_path), tasks={"classes": TASKS["classes"]})
    assert model(torch.tensor([[2, 9, 3], [9, 8, 7]])).logits["classes"].shape == (2, 2)  # with an end and without


@pytest.fixture
def embedder(tmp_path):
    """A model of a family that has embeddings, and no head of a stock class."""
    AutoModel.from_config(XLNetConfig(**XLNET)).save_pretrained(tmp_path / "xlnet")
    return MultiTaskModel.from_backbone(str(tmp_path / "xlnet"), tasks={"near": SentenceSimilarity()})


@pytest.mark.parametrize("task", TASKS)
def test_a_task_that_the_family_is_not_for_is_not_added(task, embedder):
    before = torch.random.get_rng_state()
    with pytest.raises(ValueError, match=rf"family 'xlnet' is not supported for task '{task}': .* another backbone\.$"):
        embedder.add_task(task, TASKS[task])
    assert embedder.config.task_names == list(embedder.heads) == ["near"]
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_saved_model_whose_family_is_not_for_its_task_is_not_loaded(embedder, tmp_path):
    task = TASKS["tags"].to_dict() | {"name": "tags"}
    MultiTaskModel(MultiTaskConfig(backbone_config=embedder.config.backbone_config, tasks=[task])).save_pretrained(
        tmp_path / "saved"
    )
    with pytest.raises(ValueError, match=r"family 'xlnet' is not supported for task 'tags'"):
        MultiTaskModel.from_pretrained(tmp_path / "saved")


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (
            lambda: TapasConfig(**COMMON, **SIZES, type_vocab_sizes=[3, 9, 9, 2, 9, 9, 9]),
            "IndexError: too many indices",
        ),
        (
            lambda: NystromformerConfig(**COMMON, **SIZES, num_landmarks=4, segment_means_seq_len=64),
            r"RuntimeError: shape '\[-1, 4, 4, 16, 8\]' is invalid",
        ),
    ],
    ids=["tapas", "nystromformer"],
)
def test_families_that_read_no_text_of_any_length_are_refused(config, reason, tmp_path):
    AutoModel.from_config(config()).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=rf"set as the checkpoint has it, does not read a text of 16 tokens \({reason}"
    ):
        MultiTaskModel.from_backbone(str(tmp_path), tasks={"classes": TASKS["classes"]})


@pytest.mark.slow
def test_canine_chooses_among_texts(arguments, tmp_path):
    torch.manual_seed(0)
    hashes = {"num_hash_functions": 2, "num_hash_buckets": 400, "max_position_embeddings": 400}
    AutoModel.from_config(CanineConfig(**SIZES, **hashes, pad_token_id=0)).save_pretrained(tmp_path / "canine")
    model = MultiTaskModel.from_backbone(str(tmp_path / "canine"), tasks={"choice": MultipleChoice()})
    rows, tokenizer = {"choice": rows_of("multiple-choice", 6)}, CanineTokenizer(model_max_length=400)
    trainer = MultiTaskTrainer(
        model, arguments(max_steps=1), train_dataset=rows, eval_dataset=rows, processing_class=tokenizer
    )
    trainer.train()
    metrics = trainer.evaluate()
    pipe, kept = (
        MultiTaskPipeline(model=model, tokenizer=tokenizer),
        [r for r in rows["choice"] if r["label"] is not None],
    )
    hits = [pipe({key: row[key] for key in ("question", "choices")})["choice"]["index"] == row["label"] for row in kept]
    assert metrics["eval_choice_accuracy"] == pytest.approx(sum(hits) / len(hits))
    ids = torch.tensor([[5, 9, 7, 8, 6], [5, 7, 9, 3, 6]])
    with torch.no_grad():
        ours = model(ids, torch.ones_like(ids), task_rows={"choice": torch.tensor([[0, 1]])}).logits["choice"]
        stock = model.task_model("choice")(ids[None], torch.ones_like(ids)[None]).logits
    torch.testing.assert_close(ours, stock)


CODE = {
    "configuration_x.py": """
from transformers import PreTrainedConfig


class XConfig(PreTrainedConfig):
    model_type = "xmini"
    vocab_size: int = 300
    hidden_size: int = 16
""",
    "modeling_x.py": """
import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from .configuration_x import XConfig


class XModel(PreTrainedModel):
    config_class = XConfig

    def __init__(self, config):
        super().__init__(config)
        self.words = torch.nn.Embedding(config.vocab_size, config.hidden_size)
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None, **kwargs):
        return BaseModelOutput(last_hidden_state=self.words(input_ids))
""",
}


def test_a_backbone_with_code_of_its_own_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    for name, text in CODE.items():
        (tmp_path / name).write_text(text)
    mapped = {"AutoConfig": "configuration_x.XConfig", "AutoModel": "modeling_x.XModel"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "xmini", "auto_map": mapped}))
    config = AutoConfig.from_pretrained(tmp_path, trust_remote_code=True)
    weights = AutoModel.from_config(config, trust_remote_code=True).state_dict()
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    tasks = {"classes": TASKS["classes"]}
    with pytest.raises(ValueError, match=r"runs code of its own \(XConfig\), which a saved multi-task model does not"):
        MultiTaskModel.from_backbone(str(tmp_path), tasks=tasks, trust_remote_code=True, pooling="mean")


@pytest.mark.parametrize(
    ("ids", "mask", "place"),
    [
        ([5, 3, 6, 3, 0], [1, 1, 1, 1, 0], 3),  # in the text as well
        ([5, 7, 6, 8, 0], [1, 1, 1, 1, 0], 3),  # cut off
        ([0, 0, 5, 3, 3], [0, 0, 1, 1, 1], 4),
        ([5, 3, 3, 3, 3], [1, 1, 0, 0, 0], 1),  # padded with it
    ],
)
def test_one_end_is_left_in_every_row(ids, mask, place):
    found = with_one_end(torch.tensor([ids]), torch.tensor([mask]), 3)
    assert found.eq(3).nonzero().tolist() == [[0, place]]
    assert all(after in (before, -1, 3) for before, after in zip(ids, found[0].tolist(), strict=True))
    if 0 in mask:
        return
    assert torch.equal(found, with_one_end(torch.tensor([ids]), None, 3))


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_an_end_of_sequence_inside_a_text_is_read(family, backbone_path):
    model = MultiTaskModel.from_backbone(backbone_path(family), tasks={"classes": TASKS["classes"]})
    rows = torch.tensor([[5, 3, 6, 3], [5, 7, 6, 3]])
    with torch.no_grad():
        both = model(rows, torch.ones_like(rows)).logits["classes"]
        alone = [model(row[None], torch.ones_like(row)[None]).logits["classes"][0] for row in rows]
    assert torch.allclose(both, torch.stack(alone), atol=1e-6)
