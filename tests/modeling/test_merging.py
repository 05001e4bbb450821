"""TIES-Merging, against the formula written out over whole models."""

import pytest
import torch
from stocks import auto_class, stocks_of
from transformers import AutoModel, AutoModelForTokenClassification

from hf_multitask import MultiTaskModel
from hf_multitask.modeling.merging import Ties, least_of_largest

KINDS = ["token-classification", "question-answering", "sequence-classification"]


def brute_force(base, models, density, scale=1.0):
    """Algorithm 1 of the paper, over vectors of all weights of a model."""
    trimmed = []
    for weights in models:
        changes = {name: weights[name] - base[name] for name in base if name in weights}
        vector = torch.cat([change.flatten() for change in changes.values()])
        least = vector.abs().sort(descending=True).values[max(1, round(density * len(vector))) - 1]
        trimmed.append({name: torch.where(one.abs() >= least, one, 0.0) for name, one in changes.items()})
    merged = {}
    for name, value in base.items():
        own = [changes[name] for changes in trimmed if name in changes]
        total = sum(own, torch.zeros_like(value))
        agreeing = [torch.where(one * total > 0, one, 0.0) for one in own]
        count = sum((one != 0).float() for one in agreeing)
        merged[name] = value + scale * (sum(agreeing, torch.zeros_like(value)) / count.clamp(min=1))
    return merged


@pytest.mark.parametrize(("density", "scale"), [(0.2, 1.0), (0.5, 0.7), (1.0, 1.0), (1e-9, 1.0)])
def test_merged_weights_are_those_of_the_formula_bit_for_bit(density, scale):
    generator = torch.Generator().manual_seed(1)
    shapes = {"matrix": (5, 7), "bias": (3,), "pooler": (4, 2), "scalar": ()}
    base = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    models = []
    for number in range(3):
        steps = {name: torch.randn(shape, generator=generator).mul(4).round() / 64 for name, shape in shapes.items()}
        models.append({name: base[name] + steps[name] for name in shapes if name != "pooler" or number})
    models[2]["bias"] = 2 * base["bias"] - models[1]["bias"]  # changes that cancel each other
    ties = Ties(base, dict(zip("abc", models)), density, scale)
    for name, expected in brute_force(base, models, density, scale).items():
        assert torch.equal(ties.merged(name), expected), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("share", [1e-9, 0.013, 0.2, 0.5, 0.999, 1.0])
def test_the_least_of_the_largest_is_that_of_a_sorted_list(dtype, share):
    generator = torch.Generator().manual_seed(2)
    numbers = [
        torch.randn(count, generator=generator, dtype=dtype) * 10.0**power
        for count, power in [(700, -3), (1, 9), (300, -30)]
    ]
    numbers.append(torch.zeros(50, dtype=dtype))
    numbers.append(numbers[0][:200].neg())  # as large as others
    ranked = torch.cat(numbers).abs().sort(descending=True).values
    kept = max(1, round(share * len(ranked)))
    found = least_of_largest(lambda: iter(numbers), share)
    assert found.dtype == dtype
    assert found == (0 if kept == len(ranked) else ranked[kept - 1])


def test_a_shared_model_is_merged_from_stock_models(backbone_path, tmp_path):
    folders = stocks_of(backbone_path, tmp_path, "bert", KINDS)
    path, stocks = backbone_path("bert"), {kind: auto_class(kind).from_pretrained(folders[kind]) for kind in KINDS}
    start = AutoModel.from_pretrained(path)
    models = [stock.base_model.state_dict() for stock in stocks.values()]
    expected = brute_force(start.state_dict(), models, 0.2)
    for base in (path, start):
        model = MultiTaskModel.from_task_models(folders, backbone="ties", base=base, density=0.2)
        found = model.backbone.state_dict()
        assert all(torch.equal(found[name], expected[name]) for name in found)
    for kind, stock in stocks.items():
        head, prefix = model.task_model(kind).state_dict(), f"{stock.base_model_prefix}."
        own = {name: value for name, value in stock.state_dict().items() if not name.startswith(prefix)}
        assert own and all(torch.equal(head[name], value) for name, value in own.items())
    model.save_pretrained(tmp_path / "saved")
    again = MultiTaskModel.from_pretrained(tmp_path / "saved").state_dict()
    assert all(torch.equal(again[name], value) for name, value in model.state_dict().items())


def test_what_the_checkpoint_lacks_is_the_mean_and_ties_hold(backbone_path, tmp_path):
    folders = stocks_of(backbone_path, tmp_path, "bert", ["fill-mask", "sequence-classification"])
    start = AutoModel.from_pretrained(backbone_path("bert"))  # without the last layers of a language model
    model = MultiTaskModel.from_task_models(folders, backbone="ties", base=start)
    masked = auto_class("fill-mask").from_pretrained(folders["fill-mask"])
    assert torch.equal(
        model.backbone.cls.predictions.transform.dense.weight, masked.cls.predictions.transform.dense.weight
    )
    embeddings = model.backbone.get_input_embeddings().weight
    assert model.backbone.get_output_embeddings().weight is embeddings
    assert not torch.equal(embeddings, masked.get_input_embeddings().weight)


def test_equal_models_stay_what_they_are_where_all_is_kept(backbone_path, tmp_path):
    folders = stocks_of(backbone_path, tmp_path, "distilbert", ["token-classification"])
    stock = auto_class("token-classification").from_pretrained(folders["token-classification"])
    models = {"one": stock, "other": stock}
    model = MultiTaskModel.from_task_models(models, backbone="ties", base=backbone_path("distilbert"), density=1)
    for name, value in stock.base_model.state_dict().items():
        torch.testing.assert_close(model.backbone.state_dict()[name], value, rtol=0, atol=1e-8)


def test_arguments_that_do_not_fit_are_refused(backbone_path):
    path = backbone_path("bert")
    ner = AutoModelForTokenClassification.from_pretrained(path)
    wide = AutoModel.from_pretrained(path)
    wide.resize_token_embeddings(len(wide.get_input_embeddings().weight) + 1)
    for arguments, message in [
        ({"backbone": "ties"}, "Give it in `base`: a model, a folder or a Hub id"),
        ({"backbone": "average", "base": path}, "`base` is for `backbone = 'ties'`. Found `backbone = 'average'`"),
        ({"backbone": "ner", "density": 0.5}, "`density` is for `backbone = 'ties'`"),
        (
            {"backbone": "ties", "base": path, "density": 0},
            "`density` should be a number above 0 and up to 1.*Found `density = 0`. Set 0.2",
        ),
        ({"backbone": "ties", "base": path, "density": 1.5}, "Found `density = 1.5`"),
        ({"backbone": "ties", "base": path, "density": True}, "Found `density = True`"),
        ({"backbone": "ties", "base": path, "density": "0.2"}, "Found `density = '0.2'`"),
        ({"backbone": "ties", "base": path, "scale": float("nan")}, "`scale` should be a number above 0"),
        (
            {"backbone": "ties", "base": backbone_path("distilbert")},
            "Task 'ner' and `base` cannot share a backbone: the family is bert of the first and distilbert of the other",
        ),
        (
            {"backbone": "ties", "base": wide},
            "Task 'ner' and `base` cannot share a backbone: vocab_size is 600 of the first and 601",
        ),
        ({"backbone": "tie"}, "should be one of ner, average, ties.*Did you mean 'ties'"),
    ]:
        with pytest.raises(ValueError, match=message):
            MultiTaskModel.from_task_models({"ner": ner}, **arguments)
    with pytest.raises(ValueError, match="Rename the task in `models`"):
        MultiTaskModel.from_task_models({"ties": ner}, backbone="ties", base=path)


def test_a_checkpoint_without_the_weights_is_refused(backbone_path, tmp_path):
    ner = AutoModelForTokenClassification.from_pretrained(backbone_path("bert"))
    start = AutoModel.from_pretrained(backbone_path("bert"))
    weights = {name: value for name, value in start.state_dict().items() if "encoder.layer.1" not in name}
    start.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(ValueError, match=r"has no weights for 'encoder.layer.1.*\(16 tensors\)"):
        MultiTaskModel.from_task_models({"ner": ner}, backbone="ties", base=tmp_path)
