"""What docs/serving.md says is run, block by block."""

import json
import re
import signal
import time

import pytest
from killing import Script
from pages import DOCS
from reading import assert_same

from hf_multitask import MultiTaskPipeline
from hf_multitask.cli import main

PAGE = (DOCS / "serving.md").read_text(encoding="utf-8")


@pytest.fixture
def kitchen(build_model, tokenizer, tmp_path, monkeypatch):
    """A folder with a model and texts, to stand in."""
    build_model().save_pretrained(tmp_path / "out")
    tokenizer.save_pretrained(tmp_path / "out")
    (tmp_path / "texts.jsonl").write_text('{"text": "A fine place."}\n{"text": "No."}\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_commands_run(kitchen):
    pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")
    for command in re.findall(r"```bash\nhf-multitask (.*)\n```", PAGE):
        assert command.startswith("serve") or main(command.split()) == 0
    assert (kitchen / "graph" / "model.onnx").exists() and (kitchen / "graph" / "tokenizer.json").exists()
    answers = [json.loads(line) for line in (kitchen / "answers.jsonl").read_text().splitlines()]
    assert [list(answer) for answer in answers] == [["sentiment", "ner"]] * 2


@pytest.mark.slow
# torch says that its own quantisation, and the tensors that it makes, will move to torchao, which is no dependency.
@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor, torch.quantize_per_channel:UserWarning")
def test_python_blocks_run_one_after_the_other(kitchen, capsys):
    pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")
    names = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL):
        if "urlopen" in block:
            continue  # see below
        exec(compile(block, "docs/serving.md", "exec"), names)
    assert [list(answer) for answer in names["answers"]] == [["sentiment", "ner"]] * 2
    assert re.search(r"\['(negative|positive)', '(negative|positive)'\]", capsys.readouterr().out)
    assert names["logits"].shape[0] == 2


@pytest.mark.process
def test_the_server_answers_the_request_of_the_page(kitchen, context, build_model, tokenizer):
    pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")
    (words,) = re.findall(r"```bash\nhf-multitask serve (.*)\n```", PAGE)
    (block,) = re.findall(r"```python\n([^`]*urlopen[^`]*)```", PAGE)
    code = "import sys; from hf_multitask.cli import main; sys.exit(main(['serve', *sys.argv[1:]]))"
    process = Script(context, kitchen, code, *words.replace("8000", "0").split())
    until = time.monotonic() + 60
    while not (said := process.files[0].read_text() if process.files[0].exists() else "").endswith("\n"):
        assert process.process.is_alive() and time.monotonic() < until, process.files[1].read_text()
        time.sleep(0.01)
    names = {}
    exec(block.replace(":8000", re.search(r"http://127\.0\.0\.1(:\d+)\n", said)[1]), names)
    pipeline = MultiTaskPipeline(model=build_model().eval(), tokenizer=tokenizer)
    assert_same(names["served"], pipeline(names["body"]["inputs"], tasks=names["body"]["tasks"]))
    process.send(signal.SIGTERM)
    assert process.wait(60) == 0
