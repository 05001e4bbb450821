"""Which branches tasks have: those that ``auto`` chooses, and those of tasks that come later."""

from functools import partial

import pytest
import torch
from tiny import ALL
from transformers import AutoModel

from hf_multitask import MultiTaskModel, QuestionAnswering, SequenceClassification, TokenClassification
from hf_multitask.modeling.branches import branch_of, decision, groups_of, kind_of_branch
from hf_multitask.modeling.lifecycle import task_dict


def texts(*names, **kwargs):
    return SequenceClassification(label_names=list(names or ("no", "yes")), **kwargs)


TAGS = TokenClassification(label_names=["O", "B-X"])


FEWER = {"b": TAGS, **{f"{x}{n}": texts(*(f"LABEL_{one}" for one in range(n))) for n in range(2, 7) for x in "ts"}}


MANY = {**{f"t{number}": texts("no", f"{number}") for number in range(9)}, "b": TAGS}


@pytest.fixture
def deep(tmp_path):
    """A backbone of six layers, which may have branches."""
    config = ALL["bert"]()
    config.update({"num_hidden_layers": 6})
    AutoModel.from_config(config).save_pretrained(tmp_path)
    return str(tmp_path)


def trained(model):
    return {branch_of(name) for name, one in model.backbone.named_parameters() if one.requires_grad}


@pytest.mark.parametrize(
    ("family", "given", "sizes", "more", "branches", "reason"),
    [
        (
            "bert",
            {"a": texts(), "b": TAGS},
            {},
            {},
            {"a": ["a"], "b": ["b"]},
            "a branch for each kind of task and labels",
        ),
        (
            "bert",
            {"a": texts(), "b": texts(text_column="other")},
            {},
            {},
            None,
            "all tasks are of one kind and have the",
        ),
        ("bert", FEWER, {}, {}, {"b": ["b"], **{f"t{n}": [f"t{n}", f"s{n}"] for n in range(2, 7)}}, "and labels"),
        ("bert", MANY, {}, {}, {"texts": [f"t{number}" for number in range(9)], "b": ["b"]}, "by the kind of task"),
        ("bert", {"a": texts(), "b": TAGS}, {"num_hidden_layers": 5}, {}, None, "a backbone of 5 layers"),
        ("bert", {"a": texts(), "b": TAGS}, {}, {"lora": {"r": 2}}, None, "the backbone is frozen"),
        ("bert", {"a": texts(), **{f"t{n}": TAGS for n in range(8)}}, {}, {}, None, "there would be 9"),
        ("gpt2", {"a": texts(), "b": TAGS}, {"n_layer": 6}, {}, None, "backbones like gpt2"),
        ("albert", {"a": texts(), "b": TAGS}, {}, {}, None, "which a backbone like albert cannot have"),
        ("xlm", {"a": texts(), "b": TAGS}, {"n_layers": 6}, {}, None, "which a backbone like xlm cannot have"),
        (
            "bert",
            {f"t{n}": texts("no", f"{n}") for n in range(9)},
            {},
            {},
            None,
            "of one kind, with labels for more than 8",
        ),
    ],
)
def test_branches_are_chosen_by_the_tasks_and_the_backbone(family, given, sizes, more, branches, reason, tmp_path):
    config = ALL[family]()
    config.update({"num_hidden_layers": 6} | sizes)
    AutoModel.from_config(config).save_pretrained(tmp_path)
    model = MultiTaskModel.from_backbone(str(tmp_path), tasks=given, **more)
    assert (model.config.branches, model.config.branch_layers) == (branches, 3 if branches else None)
    assert reason in model.branching_reason
    assert MultiTaskModel.from_backbone(str(tmp_path), tasks=given, branches="none", **more).config.branches is None


@pytest.mark.parametrize("count", [6, 7, 10**9])
def test_a_number_of_layers_that_is_given_is_never_set_aside(count, deep):
    message = f"`branch_layers` should be from 1 to 5, .* Found `branch_layers = {count}`"
    with pytest.raises(ValueError, match=message):
        MultiTaskModel.from_backbone(deep, tasks={"a": texts(), "b": TAGS}, branch_layers=count)
    same = {"a": texts(), "b": texts()}
    with pytest.raises(
        ValueError, match=r"`branches = 'auto'`, which chooses no branches, as all tasks are of one kind"
    ):
        MultiTaskModel.from_backbone(deep, tasks=same, branch_layers=2)
    model = MultiTaskModel.from_backbone(deep, tasks={"a": texts(), "b": SequenceClassification()}, branch_layers=2)
    model.set_task("b", task_dict("b", texts()))
    for _ in range(2):  # also where the model is given to another trainer
        with pytest.raises(ValueError, match=r"`branches = 'auto'`, which chooses no branches"):
            model.settle_branches()
    assert model.config.branches == {"a": ["a"], "b": ["b"]}


def test_a_backbone_of_one_layer_has_no_branches(tmp_path):
    config = ALL["bert"]()
    config.update({"num_hidden_layers": 1})
    AutoModel.from_config(config).save_pretrained(tmp_path)
    given = {"a": texts(), "b": TAGS}
    with pytest.raises(ValueError, match=r"for a backbone of two layers or more.* Found one layer"):
        MultiTaskModel.from_backbone(str(tmp_path), tasks=given, branches="kind")
    assert MultiTaskModel.from_backbone(str(tmp_path), tasks=given).config.branches is None


def test_a_task_joins_the_branch_of_the_same_labels_after_training_and_loading(deep, tmp_path):
    own = {"problem_type": "single_label_classification"}  # which a trainer fills in
    for given in ({}, own):
        model = MultiTaskModel.from_backbone(deep, tasks={"a": texts(**given), "b": TAGS, "c": texts(**own)})
        assert model.config.branches == {"a": ["a", "c"], "b": ["b"]}
        model.save_pretrained(tmp_path / "saved")
        again = MultiTaskModel.from_pretrained(tmp_path / "saved")
        again.add_task("d", texts())
        assert again.config.branches == {"a": ["a", "c", "d"], "b": ["b"]}


def test_tasks_that_decide_the_same_have_one_branch():
    scores, pairs = {"problem_type": "regression"}, {"text_pair_column": "other"}
    given = {
        "a": texts("favor", "against"),
        "b": texts("against", "favor", text_column="other"),
        "pairs": texts("favor", "against", **pairs),
        "c": texts("favor", "none"),
        "marks": texts("favor", "against", problem_type="multi_label_classification"),
        **{name: texts("LABEL_0", "LABEL_1") for name in ("d", "e")},  # numbers, which may stand for different things
        **{name: SequenceClassification(**scores) for name in ("f", "g")},
        **{name: QuestionAnswering() for name in ("h", "i")},
        **{name: SequenceClassification() for name in ("j", "k")},  # read from the data later
    }
    dicts = [task_dict(name, task) for name, task in given.items()]
    assert groups_of(dicts, decision) == [
        ["a", "b"], ["pairs"], ["c"], ["marks"], ["d"], ["e"], ["f"], ["g"], ["h", "i"], ["j"], ["k"]
    ]  # fmt: skip
    assert groups_of(dicts, partial(decision, strict=False)) == [
        ["a", "b"], ["pairs"], ["c"], ["marks"], ["d", "e"], ["f", "g"], ["h", "i"], ["j"], ["k"]
    ]  # fmt: skip


def test_branches_are_chosen_again_once_labels_are_known(deep):
    open_tasks = {name: SequenceClassification() for name in ("a", "b", "c")}
    model = MultiTaskModel.from_backbone(deep, tasks=open_tasks)
    assert model.config.branches == {"a": ["a"], "b": ["b"], "c": ["c"]} and model.config.branch_layers == 3
    for name, labels in (("a", ["x", "y"]), ("b", ["y", "x"]), ("c", ["z", "y"])):
        model.set_task(name, texts(*labels).to_dict())
    model.settle_branches()
    assert model.config.branches == {"a": ["a", "b"], "c": ["c"]}
    assert {branch_of(name) for name, _ in model.backbone.named_parameters()} == {None, "a", "c"}
    assert set(model(input_ids=torch.tensor([[7, 8, 9]])).logits) == {"a", "b", "c"}
    model.add_task("d", texts("x", "y"))
    assert model.config.branches == {"a": ["a", "b", "d"], "c": ["c"]}

    alike = MultiTaskModel.from_backbone(deep, tasks={name: SequenceClassification() for name in ("a", "b")})
    for name in ("a", "b"):
        alike.set_task(name, texts().to_dict())
    alike.settle_branches()
    assert alike.config.branches is None and "all tasks are of one kind" in alike.branching_reason
    plain = MultiTaskModel.from_backbone(deep, tasks={name: texts() for name in ("a", "b")}, branches="none")
    assert alike.state_dict().keys() == plain.state_dict().keys()

    many = MultiTaskModel.from_backbone(deep, tasks={f"t{n}": SequenceClassification() for n in range(9)} | {"n": TAGS}, branch_layers=1)  # fmt: skip
    assert many.config.branches.keys() == {"texts", "n"}
    for number in range(9):
        many.set_task(f"t{number}", texts().to_dict())
    many.settle_branches()
    assert many.config.branches.keys() == {"t0", "n"} and many.config.branch_layers == 1

    named = MultiTaskModel.from_backbone(deep, tasks=open_tasks)
    named.add_task("d", texts(), branch="mine")
    for name in open_tasks:
        named.set_task(name, texts().to_dict())
    named.settle_branches()
    assert named.config.branches == {"a": ["a"], "b": ["b"], "c": ["c"], "mine": ["d"]}


def test_tags_share_no_branch_with_another_type_by_their_name():
    tags = TokenClassification(label_names=["O", "B-X"])
    for kind in ("question-answering", "texts", "pairs"):
        own = kind_of_branch(task_dict(kind, tags))
        assert own == f"{kind}_tags"
    assert kind_of_branch(task_dict("ner", tags)) == "ner"
    assert kind_of_branch(task_dict("squad", QuestionAnswering())) == "question-answering"


def test_a_task_that_reads_a_lower_layer_has_no_branch_of_its_own(deep):
    low = SequenceClassification(label_names=["x", "y"], layer=2)
    tags = TokenClassification(label_names=["O", "B-X"])
    model = MultiTaskModel.from_backbone(deep, tasks={"low": low, "ner": tags}, pooling="mean")
    assert model.config.branches is None
    assert model.branching_reason == (
        "no branches, as all tasks that read the top 3 layers are of one kind and have the same labels"
    )
    model = MultiTaskModel.from_backbone(
        deep, tasks={"low": low, "ner": tags, "topic": SequenceClassification(label_names=["u", "v"])}, pooling="mean"
    )
    assert model.config.branches == {"ner": ["low", "ner"], "topic": ["topic"]}


def test_a_branch_that_a_new_task_opens_trains(deep):
    tasks = {
        name: SequenceClassification(label_names=[name, "other"], layer=layer) for name, layer in (("a", 2), ("b", 3))
    }
    model = MultiTaskModel.from_backbone(
        deep, tasks=tasks, branches={"A": ["a"], "B": ["b"]}, branch_layers=2, pooling="mean"
    )
    assert trained(model) == {None}  # nobody reads a branch
    model.add_task("c", SequenceClassification(label_names=["p", "q"]), branch="C")
    assert "C" in trained(model)


def test_a_new_task_joins_no_branch_of_another_kind_that_is_called_like_its_own(deep):
    tags, texts = TokenClassification(label_names=["O", "B-X"]), SequenceClassification(label_names=["x", "y"])
    model = MultiTaskModel.from_backbone(deep, tasks={"ner": tags, "a": texts}, branches="kind")
    model.rename_task("ner", "old_ner")
    model.add_task("ner", TokenClassification(label_names=["O", "B-Z", "I-Z"]))
    assert model.config.branches == {"ner": ["old_ner"], "texts": ["a"], "ner_2": ["ner"]}
    model = MultiTaskModel.from_backbone(deep, tasks={"texts": tags, "a": texts})
    model.add_task("topic", SequenceClassification(label_names=["p", "q", "r"]))
    model.add_task("stance", SequenceClassification(label_names=["pro", "con"]))
    assert model.config.branches == {"texts": ["texts"], "a": ["a"], "texts_2": ["topic", "stance"]}
