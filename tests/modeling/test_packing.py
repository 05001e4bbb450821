"""The rows of a batch as one stream of tokens: the same logits, losses and gradients as of padded rows."""

import pytest
import torch
from parameters import few
from tiny import ALL, CAUSAL, COMMON, DECODER, NER_LABELS, SIZES, WRITERS
from transformers import AutoModel, MistralConfig, ModernBertConfig

from hf_multitask import (
    FillMask,
    MultiTaskModel,
    QuestionAnswering,
    SentenceSimilarity,
    SequenceClassification,
    TextGeneration,
    TokenClassification,
)
from hf_multitask.modeling.spans import END, NO_TOKEN, START

ROWS, LENGTH = 7, 23
REFUSED = {
    "xlm": "its attention is its own",
    "deberta-v2": "its attention is its own",
    "mpnet": "its attention is its own",
    "longformer": "its attention is its own",
    "gemma2": "`sdpa` attention does not support `softcap`",
    **dict.fromkeys(WRITERS, "it is an encoder-decoder"),
}
WINDOWED = {
    "windowed modernbert": lambda: ModernBertConfig(
        **COMMON, **SIZES, cls_token_id=2, sep_token_id=3, bos_token_id=2, eos_token_id=3, local_attention=8
    ),
    "mistral": lambda: MistralConfig(**DECODER, num_key_value_heads=2, sliding_window=5),
}
PACKED = sorted([*(set(ALL) - set(REFUSED)), *WINDOWED])
QUICK = ["bert", "roberta", "windowed modernbert", "llama"]
SINGLE = ("gemma", "gemma3")  # whose norms are computed in float32


def tasks_of(family):
    causal = family in (*CAUSAL, "mistral")
    found = {
        "topic": SequenceClassification(label_names=["a", "b", "c"]),
        "ner": TokenClassification(label_names=NER_LABELS),
        "alike": SentenceSimilarity(label_column="label"),
        "answers": QuestionAnswering(),
        "words": TextGeneration() if causal else FillMask(),
    }
    left_out = {"gemma3": ["ner", "answers"], "gemma": ["answers"]}.get(family, [])
    return {name: task for name, task in found.items() if name not in left_out}


def batch_of(model):
    """Rows of several lengths, each of one task or two, and labels."""
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(7, 500, (ROWS, LENGTH), generator=draw)
    lengths = torch.tensor([LENGTH, 3, 11, 1, 17, 8, LENGTH - 1])
    mask = (torch.arange(LENGTH) < lengths.unsqueeze(1)).long()
    pad = model.config.get_text_config().pad_token_id
    tokens = {"input_ids": ids.masked_fill(mask == 0, pad), "attention_mask": mask}
    if getattr(model.config.backbone_config, "type_vocab_size", 1) > 1:
        tokens["token_type_ids"] = (torch.arange(LENGTH) > 4).long() * mask
    rows = {
        "topic": torch.tensor([0, 3, 6]),
        "ner": torch.tensor([6, 1]),
        "alike": torch.tensor([[2, 4], [5, 1]]),
        "answers": torch.tensor([[4, -1], [2, 5]]),
        "words": torch.tensor([5, 0]),
    }
    marks = torch.zeros(2, 2, LENGTH, dtype=torch.long).masked_fill(mask[rows["answers"]] == 0, NO_TOKEN)
    marks[rows["answers"] < 0] = NO_TOKEN
    marks[0, 0, 3], marks[0, 0, 6], marks[1, 1, 2] = START, END, START | END
    hidden = (mask == 0) | (torch.rand(ids.shape, generator=draw) < 0.5)
    labels = {
        "topic": torch.tensor([0, 2, 1]),
        "ner": (ids % len(NER_LABELS)).masked_fill(mask == 0, -100)[rows["ner"]],
        "alike": torch.tensor([[0.2], [0.9]]),
        "answers": marks,
        "words": ids.masked_fill(hidden, -100)[rows["words"]],
    }
    names = model.config.task_names
    return {
        **tokens,
        "task_rows": {name: rows[name] for name in names},
        "labels": {name: labels[name] for name in names},
    }


@pytest.fixture
def build(backbone_path, tmp_path_factory):
    """A model whose backbone reads packed rows, without dropout, and a batch; the same weights at every call."""
    made = {}

    def path_of(family):
        if family not in WINDOWED:
            return backbone_path(family)
        if family not in made:
            made[family] = str(tmp_path_factory.mktemp("windowed"))
            torch.manual_seed(0)
            AutoModel.from_config(WINDOWED[family]()).save_pretrained(made[family])
        return made[family]

    def make(family="bert", tasks=None, **kwargs):
        kwargs = {"branches": None, "dropout": 0.0, "attn_implementation": "varlen", **kwargs}
        path = path_of(family)
        torch.manual_seed(1)
        model = MultiTaskModel.from_backbone(path, tasks=tasks or tasks_of(family), **kwargs)
        if model.config.get_text_config().pad_token_id is None:
            model.set_pad_token_id(4)
        assert model.packs
        return model

    return make


def shapes_read(model, **batch):
    """The shapes of the ids that the backbone reads in a pass."""
    seen = []
    hook = model.get_input_embeddings().register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape)))
    model(**batch)
    hook.remove()
    return seen


def results(model, batch, packs):
    """Logits, losses and the gradients of all weights."""
    model.packs = packs
    model.zero_grad()
    output = model(**batch)
    output.loss.backward()
    gradients = {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}
    logits, losses = ({name: one.detach() for name, one in by.items()} for by in (output.logits, output.losses))
    return logits, losses, gradients


def assert_alike(model, batch, tolerance, note=None):
    """The packed and the padded forward and backward pass have the same results."""
    padded, packed = results(model, batch, False), results(model, batch, True)
    for wanted, found in zip(padded, packed, strict=True):
        assert wanted.keys() == found.keys()
        for name, one in wanted.items():
            if name.endswith("qa_outputs.bias"):
                continue  # a bias moves the scores of all positions alike, so that its gradient is rounding
            other, own = found[name], one
            if name in ("ner", "answers") and LENGTH in one.shape:  # logits, of which those of padding are of no use
                there = batch["labels"][name] >= 0
                own, other = one[there], other[there]
            size = max(float(own.norm()), 1e-3)
            difference = float((own - other).norm()) / size
            assert difference < tolerance, (name, difference)
            if note is not None:
                note[0] = max(note[0], difference)
    assert len(packed[2]) > 10


@pytest.mark.parametrize("family", few(PACKED, QUICK))
def test_packed_rows_have_the_logits_losses_and_gradients_of_padded_rows(family, build, record_property):
    model = build(family).train()
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-6 if family in SINGLE else 1e-12)):
        model.to(dtype)
        batch = batch_of(model)
        model.packs = True
        tokens = int(batch["attention_mask"].sum())
        assert set(shapes_read(model, **batch)) == {(1, tokens)}
        note = [0.0]
        assert_alike(model, batch, tolerance, note)
        record_property(f"{family}, {dtype}, relative norm", note[0])


def test_branches_read_their_own_tokens(build):
    branches = {"texts": ["topic", "answers"], "tags": ["ner"], "others": ["alike", "words"]}
    model = build("bert", branches=branches).double().train()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".branches." in name:
                weight += 0.3 * torch.randn_like(weight)
    batch = batch_of(model)
    assert_alike(model, batch, 1e-12)  # rows of several branches
    some = {key: {name: batch[key][name] for name in ("topic", "ner")} for key in ("task_rows", "labels")}
    assert_alike(model, {**batch, **some, "all_heads": True}, 1e-12)  # a branch that takes part with zeros
    tokens = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    there = tokens["attention_mask"].bool()
    for names in (["topic", "ner"], ["ner"]):  # every row through every branch
        found = []
        for packs in (False, True):
            model.packs = packs
            found.append(model(**tokens, tasks=names).logits)
        for name in names:
            one, other = (logits[name][there] if name == "ner" else logits[name] for logits in found)
            torch.testing.assert_close(other, one, rtol=0, atol=1e-12)


@pytest.mark.parametrize("branches", [None, {"one": ["topic", "alike"], "other": ["ner"]}], ids=["whole", "branches"])
def test_heads_read_layers_and_poolers_of_packed_rows(branches, build):
    tasks = {
        "topic": SequenceClassification(label_names=["a", "b", "c"], layer=1),
        "ner": TokenClassification(label_names=NER_LABELS, layer="mix"),
        "alike": SentenceSimilarity(label_column="label", layer=0),
    }
    model = build("bert", tasks, branches=branches).double().train()
    assert_alike(model, batch_of(model), 1e-12)


def test_activation_checkpointing_knows_the_boundaries_of_rows(build):
    model = build("bert").double().train()
    batch = batch_of(model)
    wanted = results(model, batch, True)[2]
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    found = results(model, batch, True)[2]
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-12)


def test_rows_that_are_padded_in_front_have_the_states_of_the_padded_pass(build):
    for family in ("bert", "roberta", "llama"):
        model = build(family, pooling="last").double().eval()
        batch = batch_of(model)
        tokens = {name: batch[name].flip(1) for name in ("input_ids", "attention_mask")}
        found = []
        for packs in (False, True):
            model.packs = packs
            found.append(model(**tokens, tasks=["topic"], output_hidden_states=True))
        there = tokens["attention_mask"].bool()
        for one, other in zip(*(output.hidden_states for output in found), strict=True):
            torch.testing.assert_close(other[there], one[there], rtol=0, atol=1e-12)
        torch.testing.assert_close(found[1].logits["topic"], found[0].logits["topic"], rtol=0, atol=1e-12)


def test_what_is_no_row_of_tokens_is_read_with_padding(build):
    model = build("bert").double().eval()
    tokens = {name: batch_of(model)[name] for name in ("input_ids", "attention_mask")}
    whole = tokens["attention_mask"].bool().view(ROWS, 1, 1, LENGTH).expand(-1, 1, LENGTH, -1)
    assert shapes_read(model, **{**tokens, "attention_mask": whole}, tasks=["topic"]) == [(ROWS, LENGTH)]
    wanted = model(**tokens, tasks=["topic"]).logits["topic"]
    masked = model(**{**tokens, "attention_mask": whole}, tasks=["topic"]).logits["topic"]
    torch.testing.assert_close(masked, wanted, rtol=0, atol=1e-12)
    embeds = model.get_input_embeddings()(tokens["input_ids"])
    found = model(inputs_embeds=embeds, attention_mask=tokens["attention_mask"], tasks=["topic"]).logits["topic"]
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


@pytest.mark.slow
def test_compiled_code_reads_padding(build):
    model = build("bert").double().eval()
    tokens = {name: batch_of(model)[name] for name in ("input_ids", "attention_mask")}
    wanted = model(**tokens, tasks=["topic"]).logits["topic"]
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(**tokens, tasks=["topic"]).logits["topic"], wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("family", few(sorted(REFUSED), ["xlm", "t5", "gemma2"]))
def test_a_family_that_cannot_read_packed_rows_is_refused_by_name(family, backbone_path):
    tasks = {"topic": SequenceClassification(label_names=["a", "b"])}
    said = f"family '{family}' cannot read rows without padding: .*{REFUSED[family]}.*'varlen'`. Leave it out"
    with pytest.raises(ValueError, match=said):
        MultiTaskModel.from_backbone(
            backbone_path(family), tasks=tasks, attn_implementation="varlen", branches=None, pooling="mean"
        )


def test_adapters_of_tasks_are_refused(backbone_path):
    tasks = {"topic": SequenceClassification(label_names=["a", "b"])}
    with pytest.raises(ValueError, match=r"tasks have adapters of their own \(task_lora\)"):
        MultiTaskModel.from_backbone(backbone_path(), tasks=tasks, attn_implementation="varlen", task_lora={"r": 2})


def test_a_saved_model_reads_padding_unless_it_is_asked(build, tmp_path):
    model = build("bert").eval()
    tokens = {name: batch_of(model)[name] for name in ("input_ids", "attention_mask")}
    wanted = model(**tokens, tasks=["topic"]).logits["topic"]
    model.save_pretrained(tmp_path)
    assert '"varlen"' not in (tmp_path / "config.json").read_text()
    plain = MultiTaskModel.from_pretrained(tmp_path)
    assert not plain.packs and plain.backbone.config._attn_implementation == "sdpa"
    asked = MultiTaskModel.from_pretrained(tmp_path, attn_implementation="varlen")
    assert asked.packs
    for other in (plain, asked):
        torch.testing.assert_close(other(**tokens, tasks=["topic"]).logits["topic"], wanted, rtol=0, atol=1e-6)
    asked.set_attn_implementation("sdpa")
    assert not asked.packs
    asked.set_attn_implementation("varlen")
    assert asked.packs


def test_an_attention_that_the_backbone_cannot_have_is_taken_back(backbone_path):
    tasks = {"topic": SequenceClassification(label_names=["a", "b"])}
    model = MultiTaskModel.from_backbone(backbone_path("t5"), tasks=tasks, pooling="mean")
    before = model.backbone.config._attn_implementation
    with pytest.raises(ValueError, match="it is an encoder-decoder"):
        model.set_attn_implementation("varlen")
    assert model.backbone.config._attn_implementation == before and not model.packs
    assert model.config._attn_implementation == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("family", ["bert", "windowed modernbert", "mistral", "gpt2"])
def test_the_kernel_of_a_gpu_has_the_results_of_padded_rows(family, build):
    model = build(family).cuda().train()

    def moved(value):
        return {key: moved(one) for key, one in value.items()} if isinstance(value, dict) else value.cuda()

    batch = moved(batch_of(model))
    with torch.autocast("cuda", torch.bfloat16):
        assert_alike(model, batch, 2e-2)
