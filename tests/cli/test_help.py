"""Help and versions: at once, without the package, and with every training argument."""

import re
import subprocess
import sys
from dataclasses import fields
from importlib.metadata import version

import pytest
import transformers

import hf_multitask_cli
from hf_multitask import MultiTaskTrainingArguments
from hf_multitask.cli import main
from hf_multitask.cli.helps import argument_groups

SCRIPT = """
import sys
import hf_multitask_cli
try:
    code = hf_multitask_cli.main()
except SystemExit as end:
    code = end.code
assert not {"torch", "transformers", "hf_multitask"} & sys.modules.keys()
sys.exit(code)
"""


def quick(*words):
    return subprocess.run([sys.executable, "-c", SCRIPT, *words], capture_output=True, text=True, timeout=60)


@pytest.mark.process
def test_help_and_versions_import_nothing_heavy():
    shown = quick("--help")
    assert shown.returncode == 0
    assert all(re.search(rf"^ +{name}\b", shown.stdout, re.MULTILINE) for name in hf_multitask_cli.COMMANDS if name)
    listed = quick("version")
    lines = dict(line.split(None, 1) for line in listed.stdout.splitlines())
    assert lines["transformers"] == version("transformers") and lines["hf_multitask"] and lines["python"]
    assert quick("--version").stdout.startswith("hf-multitask ")
    for words, message in (
        ((), "COMMAND"),
        (("trian",), "'trian'"),
        (("version", "now"), "argument 'now'. Remove it."),
    ):
        refused = quick(*words)
        assert refused.returncode == 2 and message in refused.stderr and "Traceback" not in refused.stderr


@pytest.mark.process
def test_the_package_answers_the_same(capsys):
    assert main(["version"]) == 0 and "torch" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "diagnose" in capsys.readouterr().out


def test_every_training_argument_is_in_one_group():
    groups = argument_groups()
    listed = [name for group in groups.values() for name in group]
    assert sorted(listed) == sorted(one.name for one in fields(MultiTaskTrainingArguments) if one.init)
    own = {one.name for one in fields(MultiTaskTrainingArguments)} - {
        one.name for one in fields(transformers.TrainingArguments)
    }
    assert own == set(groups["Mixtures of tasks"]) and all(groups["Mixtures of tasks"].values())
    assert "learning_rate" in groups["Learning Rate & Scheduler"] and list(groups)[-1] == "Others"
    assert sum(map(bool, [text for group in groups.values() for text in group.values()])) > 0.9 * len(listed)


def test_help_of_training_has_them(capsys):
    with pytest.raises(SystemExit) as end:
        main(["train", "--help"])
    out = capsys.readouterr().out
    assert end.value.code == 0 and out.index("\n  --sampling ") < out.index("\n  --learning_rate ")
    assert "`" not in out.partition("Mixtures of tasks")[2] and ":class:" not in out
