"""The scripts that complete commands, in the shells that read them."""

import shutil
import subprocess
import sys

import pytest

import hf_multitask_cli
from hf_multitask.cli import main
from hf_multitask.cli.arguments import training_options

# A function for each line on standard input: what the shell offers for its last word.
BASH = """
source "$1"
found=$(complete -p hf-multitask); found=${found#*-F }; found=${found%% *}
while IFS= read -r line; do
  read -ra COMP_WORDS <<<"$line"
  [ "${line: -1}" != " " ] || COMP_WORDS+=("")
  COMP_CWORD=$((${#COMP_WORDS[@]} - 1)) COMPREPLY=()
  "$found" hf-multitask "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
  echo "${COMPREPLY[*]}"
done
"""
FISH = """
source $argv[1]
while read -l line
  echo (complete -C $line | string split -f1 \\t)
end
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    pytest.importorskip("shtab", reason="the extra 'completion' is not installed")
    made = {}

    def make(shell, capsys):
        if shell not in made:
            capsys.readouterr()
            assert main(["completion", shell]) == 0
            made[shell] = tmp_path_factory.mktemp(shell) / "hf-multitask"
            made[shell].write_text(capsys.readouterr().out, encoding="utf-8")
        return made[shell]

    return make


@pytest.fixture
def complete(script, tmp_path, capsys):
    """What a shell offers at the end of each line."""
    (tmp_path / "recipe.yaml").touch()
    (tmp_path / "out").mkdir()

    def run(shell, *lines):
        words = {
            "bash": ["bash", "--norc", "-c", BASH, "bash"],
            "fish": ["fish", "--no-config", "-c", FISH],
        }[shell]
        result = subprocess.run(
            [*words, str(script(shell, capsys))],
            cwd=tmp_path,
            input="".join(f"{line}\n" for line in lines),
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0 and not result.stderr, result.stderr
        return [set(line.split()) for line in result.stdout.splitlines()]

    return run


@pytest.mark.process
@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_a_shell_completes_commands_options_values_and_paths(shell, complete):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    lines = {
        "hf-multitask ": set(hf_multitask_cli.COMMANDS),
        "hf-multitask tr": {"train"},
        "hf-multitask train rec": {"recipe.yaml"},
        "hf-multitask serve ou": {"out"},
        "hf-multitask train recipe.yaml --sampling_k": {"--sampling_kwargs"},
        "hf-multitask train recipe.yaml --sampling temp": {"temperature"},
        "hf-multitask tune recipe.yaml --aggregation up": {"upgrad"},
        "hf-multitask evaluate out recipe.yaml --bf16 t": {"true"},
        "hf-multitask serve out --tok": {"--token_file"},
        "hf-multitask completion ": {"bash", "zsh", "fish"},
        "hf-multitask nothing": set(),
    }
    found = complete(shell, *lines)
    for (line, expected), words in zip(lines.items(), found, strict=True):
        assert {word.rstrip("/") for word in words} == expected, line
    (options,) = complete(shell, "hf-multitask diagnose recipe.yaml --")
    assert {f"--{name}" for name in training_options()} | {"--parts", "--help"} <= options


@pytest.mark.process
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_can_be_read_by_its_shell(shell, script, capsys):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    read = subprocess.run([shell, "-n", str(script(shell, capsys))], capture_output=True, text=True)
    assert read.returncode == 0 and not read.stderr


def test_a_shell_that_is_none_and_a_missing_package(capsys, monkeypatch):
    with pytest.raises(SystemExit) as end:
        main(["completion", "cmd"])
    assert end.value.code == 2 and "'cmd'" in capsys.readouterr().err
    assert main(["completion", "bash", "now"]) == 2 and "argument 'now'. Remove it." in capsys.readouterr().err
    monkeypatch.delitem(sys.modules, "shtab", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # as where nothing more is installed
    assert main(["completion", "bash"]) == 2
    assert "pip install 'hf_multitask[completion]'" in capsys.readouterr().err
