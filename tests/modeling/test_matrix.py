"""Every pair of a type of task and a family of backbones: trained, evaluated, saved, loaded and asked, or refused.

``python tests/modeling/test_matrix.py`` writes the matrix of ``docs/tasks.md``.
"""

import re
import sys
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import pytest
import torch
from parameters import few
from reading import INPUTS, PRIMARY, TASKS, TEXT, assert_same, refusal, rows_of
from tiny import ALL
from transformers import AutoModel, AutoTokenizer, pipeline

from hf_multitask import MultiTaskModel, MultiTaskTrainer

PAGE = Path(__file__).parent.parent.parent / "docs" / "tasks.md"
START, END = "<!-- matrix -->", "<!-- end of matrix -->"
# One pair of each kind runs always: an encoder, one with several texts a row, a decoder, an encoder-decoder.
QUICK = {
    *(("bert", kind) for kind in TASKS),
    ("gpt2", "sequence-classification"),
    ("gpt2", "question-answering"),
    ("gpt2", "text-generation"),
    ("bart", "token-classification"),
    ("bart", "multiple-choice"),
    ("bart", "translation"),
    ("t5", "summarization"),
    ("t5", "question-answering"),
    ("xlm-roberta", "fill-mask"),
    ("llama", "text-generation"),
}


def matrix() -> str:
    lines = ["| | " + " | ".join(f"`{kind}`" for kind in TASKS) + " |", "|---" * (len(TASKS) + 1) + "|"]
    for family in ALL:
        marks = ["-" if refusal(family, kind) else "yes" for kind in TASKS]
        lines.append(f"| {family} | " + " | ".join(marks) + " |")
    return "\n".join(lines)


def test_the_documented_matrix_is_what_can_be_built():
    text = PAGE.read_text(encoding="utf-8")
    assert text.partition(START)[2].partition(END)[0].strip() == matrix()


@pytest.mark.parametrize(("family", "kind"), few(product(ALL, TASKS), QUICK))
def test_a_pair_works_or_is_refused(family, kind, backbone_path, arguments, tmp_path):
    path = backbone_path(family)
    reason = refusal(family, kind)
    if reason is not None:
        with pytest.raises(ValueError, match=re.escape(reason.partition("'t'")[0])) as raised:
            MultiTaskModel.from_backbone(path, tasks={"t": TASKS[kind]()})
        # The sentence names a way out.
        assert re.search(r"Take (an? |BART)|Choose another backbone", str(raised.value))
        return
    model = MultiTaskModel.from_backbone(path, tasks={"t": TASKS[kind]()})
    before = {name: value.clone() for name, value in model.named_parameters()}
    trainer = MultiTaskTrainer(
        model,
        arguments(),
        train_dataset={"t": rows_of(kind)},
        eval_dataset={"t": rows_of(kind, 7, "validation")},
        processing_class=AutoTokenizer.from_pretrained(path),
    )
    trainer.train()
    assert any(not torch.equal(value, before[name]) for name, value in model.named_parameters())
    metrics = trainer.evaluate()
    assert metrics["eval_average"] == metrics[f"eval_t_{PRIMARY[kind]}"]
    assert metrics["eval_t_loss"] > 0
    trainer.save_model(str(tmp_path / "saved"))
    loaded = AutoModel.from_pretrained(tmp_path / "saved")
    for name, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name
    pipe = pipeline("multitask", model=str(tmp_path / "saved"))
    asked = INPUTS.get(kind, TEXT)
    if kind == "fill-mask":
        asked = asked.replace("[MASK]", pipe.tokenizer.mask_token)
    one, *_ = pipe([asked, asked, asked], batch_size=2)
    assert_answers(kind, one["t"])
    assert_same(one, pipe(asked))


def assert_answers(kind: str, answer) -> None:
    """The answer has the form that docs/tasks.md names."""
    if kind in ("token-classification", "span-classification"):
        assert all(TEXT[span["start"] : span["end"]] == span["word"] for span in answer)
    elif kind == "dependency-parsing":
        assert [one["head"] for one in answer].count(0) == 1
        assert all(TEXT[one["start"] : one["end"]] == one["word"] for one in answer)
    elif kind == "question-answering":
        assert set(answer) == {"score", "start", "end", "answer"}
        assert (TEXT * 3)[answer["start"] : answer["end"]] == answer["answer"]
    elif kind == "multiple-choice":
        assert answer["choice"] == INPUTS[kind]["choices"][answer["index"]]
    elif kind == "sentence-similarity":
        assert torch.tensor(answer["embedding"]).norm().item() == pytest.approx(1, abs=1e-4)
    elif kind == "fill-mask":
        assert len(answer) == 5
        assert answer[0]["score"] >= answer[-1]["score"]
    elif kind == "text-generation":
        assert answer["generated_text"].startswith(TEXT)
    elif kind == "sequence-classification":
        assert answer["label"] in ("negative", "positive")
    else:
        assert set(answer) == {"generated_text"}


if __name__ == "__main__":
    page = PAGE.read_text(encoding="utf-8")
    head, _, rest = page.partition(START)
    PAGE.write_text(f"{head}{START}\n{matrix()}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
