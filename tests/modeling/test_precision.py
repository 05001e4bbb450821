"""Other numbers, other places, other kernels: the logits stay near, and what is saved loads again."""

import pytest
import torch
from parameters import few
from reading import INPUTS, TASKS, TEXT
from tiny import ALL, make_tokenizer
from transformers import AutoConfig, AutoModel, AutoTokenizer, pipeline
from transformers.utils import is_flash_attn_2_available

from hf_multitask import MultiTaskModel

KINDS = ["sequence-classification", "token-classification", "question-answering", "sentence-similarity", "fill-mask"]
HALF = {torch.float16: 5e-3, torch.bfloat16: 3e-2}


@pytest.fixture
def saved(backbone_path, tmp_path):
    def make(family="bert"):
        path = backbone_path(family)
        torch.manual_seed(1)
        kinds = KINDS if family == "bert" else KINDS[:2]
        model = MultiTaskModel.from_backbone(path, tasks={kind: TASKS[kind]() for kind in kinds})
        tokenizer = AutoTokenizer.from_pretrained(path)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
            model.set_pad_token_id(tokenizer.pad_token_id)
        model.save_pretrained(tmp_path / "model")
        tokenizer.save_pretrained(tmp_path / "model")
        return tmp_path / "model"

    return make


def logits_of(model, folder):
    tokens = AutoTokenizer.from_pretrained(folder)([TEXT, "No."], padding=True, return_tensors="pt")
    with torch.no_grad():
        return model(**tokens).logits, tokens["attention_mask"] == 1


def assert_near(model, folder, tolerance):
    """Compared at the tokens that are there, on the scale of the task's logits."""
    expected, there = logits_of(MultiTaskModel.from_pretrained(folder), folder)
    found, _ = logits_of(model, folder)
    assert found.keys() == expected.keys()
    for kind, value in expected.items():
        one, other = value.float(), found[kind].float()
        if value.shape[:2] == there.shape:
            one, other = one[there], other[there]
        torch.testing.assert_close(other, one, rtol=0, atol=tolerance * max(1.0, float(one.abs().max())))


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_half_precision(dtype, family, saved, tmp_path):
    folder = saved(family)
    model = MultiTaskModel.from_pretrained(folder, dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert_near(model, folder, HALF[dtype])
    model.save_pretrained(tmp_path / "half")
    loaded = MultiTaskModel.from_pretrained(tmp_path / "half", dtype="auto")
    assert loaded.dtype == dtype
    before, after = logits_of(model, folder)[0], logits_of(loaded, folder)[0]
    assert all(torch.equal(before[kind], after[kind]) for kind in before)
    one = pipeline("multitask", model=loaded, tokenizer=AutoTokenizer.from_pretrained(folder))(TEXT)
    other = pipeline("multitask", model=str(folder))(TEXT)
    assert one.keys() == other.keys()
    score = "sequence-classification"
    assert one[score]["score"] == pytest.approx(other[score]["score"], abs=HALF[dtype])


FROZEN = {"lora": {"r": 2}, "task_lora": {"r": 2}}


@pytest.fixture
def half_path(tmp_path):
    """A backbone that is stored in a dtype, without a language model's last layers."""

    def make(family="bert", dtype=torch.bfloat16):
        path = tmp_path / f"{family}-{dtype}"
        torch.manual_seed(0)
        AutoModel.from_config(ALL[family]()).to(dtype).save_pretrained(path)
        make_tokenizer(family).save_pretrained(path)
        return str(path)

    return make


def dtypes(model):
    """Of backbone, adapters and heads."""
    found = {"backbone": set(), "adapters": set(), "heads": set()}
    for name, value in model.named_parameters():
        part = "adapters" if ".lora_" in name else name.split(".")[0]
        found[part].add(value.dtype)
    return {part: kinds for part, kinds in found.items() if kinds}


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_what_trains_is_float32_unless_dtype_is_given(dtype, half_path):
    path, tasks = half_path(dtype=dtype), {kind: TASKS[kind]() for kind in KINDS[:2]}
    model = MultiTaskModel.from_backbone(path, tasks=tasks)
    assert dtypes(model) == {"backbone": {torch.float32}, "heads": {torch.float32}}
    stored = AutoModel.from_pretrained(path, dtype=dtype).state_dict()
    assert all(torch.equal(value.to(dtype), stored[name]) for name, value in model.backbone.state_dict().items())
    adapted = MultiTaskModel.from_backbone(path, tasks=tasks, lora={"r": 2})
    assert dtypes(adapted) == {"backbone": {dtype}, "adapters": {torch.float32}, "heads": {torch.float32}}
    kept = MultiTaskModel.from_backbone(path, tasks=tasks, dtype="auto")
    assert dtypes(kept) == {"backbone": {dtype}, "heads": {torch.float32}}
    for more in ({}, FROZEN):
        given = MultiTaskModel.from_backbone(path, tasks=tasks, dtype=str(dtype).removeprefix("torch."), **more)
        assert {one.dtype for one in given.parameters()} == {dtype}
    kept.add_adapters({"r": 2})
    kept.merge_adapters()  # of bfloat16 little of an adapter would be left
    assert dtypes(kept) == {"backbone": {torch.float32}, "heads": {torch.float32}}
    double = half_path(dtype=torch.float64)
    assert dtypes(MultiTaskModel.from_backbone(double, tasks=tasks)).keys() == {"backbone", "heads"}
    assert MultiTaskModel.from_backbone(double, tasks=tasks).dtype == torch.float64


@pytest.mark.parametrize("more", [{"dtype": "auto"}, FROZEN], ids=["auto", "adapters"])
@pytest.mark.parametrize("family", few(["bert", "gpt2", "t5"], ["bert"]))
def test_float32_heads_on_half_a_backbone(family, more, half_path, tmp_path):
    """They run, generate, export and load again as they are, or in the dtype that is asked for."""
    kinds = {"bert": KINDS, "gpt2": [*KINDS[:2], "text-generation"], "t5": [*KINDS[:1], "summarization"]}[family]
    path = half_path(family)
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = MultiTaskModel.from_backbone(path, tasks={kind: TASKS[kind]() for kind in kinds}, **more)
    model.set_pad_token_id(tokenizer.pad_token_id)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if ".lora_B." in name:
                value.normal_(std=0.02)
    assert model.dtype == torch.bfloat16 and torch.float32 in dtypes(model)["heads"] | dtypes(model).get(
        "adapters", set()
    )
    model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    before, _ = logits_of(model, tmp_path / "saved")
    for load in (MultiTaskModel.from_pretrained, AutoModel.from_pretrained):
        loaded = load(tmp_path / "saved")
        assert dtypes(loaded) == dtypes(model)
        after, _ = logits_of(loaded, tmp_path / "saved")
        assert all(torch.equal(before[kind], after[kind]) for kind in before)
        for dtype in (torch.float32, torch.bfloat16):
            one = load(tmp_path / "saved", dtype=dtype)
            assert {value.dtype for value in one.parameters()} == {dtype}
            if family != "t5":  # whose states grow from layer to layer, so that bfloat16 rounds them by tenths
                assert_near(one, tmp_path / "saved", HALF[torch.bfloat16])
    loaded.add_task("new", TASKS["sequence-classification"]())
    assert {one.dtype for one in loaded.heads["new"].parameters()} == {torch.float32}
    kind = kinds[0]
    stock = model.task_model(kind)
    assert {value.dtype for value in stock.parameters()} == {torch.float32}  # nothing of head or adapters is lost
    tokens = tokenizer([TEXT, "No."], padding=True, return_tensors="pt")
    scale = max(1.0, float(before[kind].abs().max()))
    if family != "t5":
        torch.testing.assert_close(stock(**tokens).logits, before[kind], rtol=0, atol=5e-2 * scale)
    writes = kinds[-1] if family != "bert" else None
    if writes:
        ids = tokenizer(TEXT, return_tensors="pt")["input_ids"]
        texts = [one.generate(ids, task=writes, max_new_tokens=5, do_sample=False) for one in (model, loaded)]
        assert torch.equal(*texts)


def test_a_checkpoint_with_nan_is_no_backbone(half_path):
    path = half_path()
    model = AutoModel.from_pretrained(path)
    with torch.no_grad():
        model.encoder.layer[1].output.dense.bias[3] = torch.nan
    model.save_pretrained(path)
    said = r"^Weight 'encoder.layer.1.output.dense.bias' is NaN or infinite in 1 of its 32 numbers, so .* no backbone"
    with pytest.raises(ValueError, match=said):
        MultiTaskModel.from_backbone(path, tasks={KINDS[0]: TASKS[KINDS[0]]()})


MAPS = {
    "auto": "auto",
    "cpu": "cpu",
    "parts": {"backbone": "cpu", "heads": "cpu"},
    "disk": {
        "backbone.bert.embeddings": "cpu",
        "backbone.bert.encoder": "disk",
        "backbone.bert.pooler": "cpu",
        "backbone.cls": "cpu",
        "heads": "disk",
    },
}


@pytest.mark.parametrize("name", MAPS)
def test_device_map(name, saved, tmp_path):
    folder = saved()
    more = {"offload_folder": tmp_path / "offload"} if name == "disk" else {}
    model = MultiTaskModel.from_pretrained(folder, device_map=MAPS[name], **more)
    if name == "disk":
        assert next(model.backbone.bert.encoder.parameters()).device.type == "meta"
    assert_near(model, folder, 1e-6)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention(attention, saved):
    folder = saved()
    model = MultiTaskModel.from_pretrained(folder, attn_implementation=attention)
    assert model.backbone.config._attn_implementation == attention
    assert_near(model, folder, 1e-5)
    model.set_attn_implementation({"sdpa": "eager", "eager": "sdpa"}[attention])
    assert model.backbone.config._attn_implementation != attention
    assert_near(model, folder, 1e-5)


@pytest.mark.skipif(is_flash_attn_2_available(), reason="FlashAttention2 is there")
def test_flash_attention_is_refused_where_it_is_not(saved):
    with pytest.raises(ImportError, match="FlashAttention2 has been toggled on, but it cannot be used"):
        MultiTaskModel.from_pretrained(saved(), attn_implementation="flash_attention_2")


@pytest.mark.skipif(not (is_flash_attn_2_available() and torch.cuda.is_available()), reason="no FlashAttention2")
def test_flash_attention_where_it_is(saved):
    folder = saved()
    options = {"dtype": torch.bfloat16, "device_map": "cuda"}
    tokens = AutoTokenizer.from_pretrained(folder)([TEXT, "No."], padding=True, return_tensors="pt").to("cuda")
    flash, sdpa = (
        MultiTaskModel.from_pretrained(folder, attn_implementation=name, **options)(**tokens).logits
        for name in ("flash_attention_2", "sdpa")
    )
    for kind in KINDS[:1]:
        torch.testing.assert_close(flash[kind], sdpa[kind], rtol=0, atol=3e-2)


# torch says that its own quantisation, and the tensors that it makes, will move to torchao, which is no dependency.
@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor, torch.quantize_per_channel:UserWarning")
def test_dynamic_quantisation_by_torch(saved):
    folder = saved()
    model = MultiTaskModel.from_pretrained(folder)
    quantised = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    linear = [module for module in quantised.modules() if module._get_name() == "DynamicQuantizedLinear"]
    assert len(linear) > 10
    assert_near(quantised, folder, 5e-2)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    asked = [TEXT, INPUTS["question-answering"], INPUTS["fill-mask"]]
    exact, near = (pipeline("multitask", model=one, tokenizer=tokenizer)(asked) for one in (model, quantised))
    assert [list(answer) for answer in near] == [list(answer) for answer in exact]


def test_float32_heads_are_a_matter_of_half_backbones_only(build_model, tmp_path):
    build_model().save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    config.float32_heads = True
    config.save_pretrained(tmp_path)
    model = MultiTaskModel.from_pretrained(tmp_path)
    assert not model.config.float32_heads
    assert {one.dtype for one in model.parameters()} == {torch.float32}
