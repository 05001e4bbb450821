"""Training without padding: the updates of padded rows, with the gradients of tasks separated by tokens."""

import pytest
import torch
from conflicts import APART, matrix, train
from parameters import few

BRANCHES = {"texts": ["stars", "pairs"], "tags": ["ner"]}


def pack(model):
    model.set_attn_implementation("varlen")


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize(
    ("family", "branches"),
    few(
        [("bert", None), ("bert", BRANCHES), ("roberta", None), ("modernbert", None), ("gpt2", None), ("llama", None)],
        ["bert", "bert-branches", "llama"],
        ids=["bert", "bert-branches", "roberta", "modernbert", "gpt2", "llama"],
    ),
)
def test_update_of_pcgrad_is_that_of_padded_rows(family, branches, backbone_path, tmp_path, caplog, record_property):
    made = {}
    for change in (None, pack):
        trainer, steps = train(
            backbone_path(family), tmp_path, APART, aggregation="pcgrad", branches=branches, change=change
        )
        trainer.train()
        assert trainer.model.packs == (change is pack)
        made[change] = trainer, steps[0]
    (padded, wanted), (packed, found) = made[None], made[pack]
    assert found.keys() == wanted.keys()
    difference = relative(*(torch.cat([one[name].flatten() for name in wanted]) for one in (found, wanted)))
    record_property(f"{family}, packed against padded, relative norm", difference)
    assert difference < 1e-10
    shared = [name for name in found if name.startswith("backbone.") and ".tags." not in name]
    jacobian_KP, _ = matrix(packed, shared)
    torch.testing.assert_close(packed.engine.update.outcome.gramian, jacobian_KP @ jacobian_KP.T, rtol=1e-9, atol=1e-12)
    told = packed.engine.describe()
    assert "row split" in told and "does not fit" not in caplog.text and packed.engine.update.gradients.fallback is None
    assert {len(batch["forwards"]) for batch in packed.get_train_dataloader()} == {1}
    assert max(len(batch["forwards"]) for batch in padded.get_train_dataloader()) > 1


def test_plain_update_is_that_of_padded_rows(backbone_path, tmp_path):
    made = []
    for change in (None, pack):
        trainer, _ = train(
            backbone_path(),
            tmp_path,
            ("sentiment", "topics", "pairs", "ner", "masks"),  # rows of several tasks
            task_weights=None,
            max_steps=3,
            gradient_accumulation_steps=2,
            change=change,
        )
        trainer.train()
        made.append(torch.cat([weight.detach().flatten() for weight in trainer.model.parameters()]))
    assert relative(made[1], made[0]) < 1e-10
