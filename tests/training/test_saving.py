"""Saves that fail, checkpoints that are torn, and runs that go on with another number of ranks."""

import json
import shutil
import subprocess

import filling
import pytest
import torch
from parameters import few
from safetensors.torch import load_file

from hf_multitask import MultiTaskTrainer
from hf_multitask.training.state.checkpoint import last_whole_checkpoint, torn


def steps_kept(folder):
    return sorted(int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*"))


@pytest.fixture
def train(backbone_path, context):
    def run(folder, size, **kwargs):
        ours, theirs = context.Pipe(duplex=False)
        kwargs = {"save_total_limit": 2, "load_best_model_at_end": True, **kwargs}
        process = context.Process(target=filling.child, args=(backbone_path(), str(folder), size, kwargs, theirs))
        process.start()
        theirs.close()
        process.join(120)
        assert process.exitcode == 0
        return ours.recv()

    return run


@pytest.fixture
def disk(tmp_path):
    """A disk of 4 MB."""
    if (
        not shutil.which("mount")
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(tmp_path)], capture_output=True
        ).returncode
    ):
        pytest.skip("mounting a small disk needs root")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


def check_full_disk(folder, told, step, best):
    assert step == 10
    told = [sentence for sentence in told if "could not be saved" in sentence]
    assert len(told) == 2 and "checkpoint-4 is still there. Training continues" in told[0], told
    assert "The checkpoint of step 6 could not be saved (" in told[0] and "of step 8 " in told[1]
    assert 10 in steps_kept(folder / "out") and not {6, 8} & set(steps_kept(folder / "out"))
    assert best not in (6, 8)  # the best is the best that is kept
    assert all(torn(path) is None for path in (folder / "out").glob("checkpoint-*"))
    weights = [load_file(folder / name / "checkpoint-10" / "model.safetensors") for name in ("alone", "out")]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


# Bytes a file: not even the configuration, all but the weights and the optimizer, all but the optimizer.
@pytest.mark.process
@pytest.mark.parametrize("size", few([0, 16_000, 200_000], [16_000]))
def test_full_disk_keeps_the_run_and_the_checkpoint_before(size, train, tmp_path):
    train(tmp_path, None)
    check_full_disk(tmp_path, *train(tmp_path, size))


# Bytes: it is full in the weights, in the optimizer, in the states that are written after it.
@pytest.mark.process
@pytest.mark.parametrize("size", few([50_000, 600_000, 840_000], [600_000]))
def test_disk_that_is_really_full(size, train, disk):
    train(disk, None, save_total_limit=1, load_best_model_at_end=False)
    for path in (disk / "alone").rglob("optimizer.pt"):
        path.unlink()
    check_full_disk(disk, *train(disk, size, save_total_limit=1, load_best_model_at_end=False))


@pytest.mark.process
def test_curves_that_find_no_place_end_no_run(train, disk):
    pytest.importorskip("tensorboard", reason="the extra 'report' is not installed")
    told, step, _ = train(disk, 0, save_total_limit=1, load_best_model_at_end=False, report_to="tensorboard")
    assert step == 10 and steps_kept(disk / "out") == [10]
    assert sum("TensorBoard ends here" in sentence for sentence in told) == 1


@pytest.mark.process
def test_best_models_are_kept_when_a_better_one_finds_no_place(train, tmp_path):
    told, step, _ = train(tmp_path, 16_000, save_best_by_task=True)
    told = [sentence for sentence in told if "better than those before" in sentence]
    best = json.loads((tmp_path / "out" / "best_checkpoints.json").read_text())
    assert step == 10 and told and all(entry["step"] not in (6, 8) for entry in best.values())
    kept = {entry["checkpoint"] for entry in best.values()}
    assert {f"best/{path.name}" for path in (tmp_path / "out" / "best").iterdir()} == kept


def spoil(folder, how):
    path = folder / how.split(" ")[-1]
    if how.startswith("no "):
        path.unlink()
    elif how.startswith("torn "):
        path.write_bytes(path.read_bytes()[:-10])
    elif how.startswith("half-zero "):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))
    else:  # another step, another letter, another number: the file stays what it is in form
        content = path.read_bytes()
        digits = [place for place, byte in enumerate(content) if chr(byte) in "12345abcde"]
        place = digits[len(digits) // 2]
        path.write_bytes(content[:place] + bytes([content[place] + 1]) + content[place + 1 :])


@pytest.mark.parametrize(
    "how",
    few(
        [
            "no trainer_state.json",
            "torn trainer_state.json",
            "torn multitask_state.json",
            "torn model.safetensors",
            "no optimizer.pt",
            "torn optimizer.pt",
            "no rng_state.pth",
            "no scheduler.pt",
        ],
        ["torn model.safetensors", "no rng_state.pth"],
    ),
)
def test_torn_checkpoint_is_passed_over(how, build_model, data, arguments, tokenizer, caplog, tmp_path):
    def trainer(**kwargs):
        kwargs = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6, **kwargs}
        return MultiTaskTrainer(build_model(), arguments(**kwargs), train_dataset=data(), processing_class=tokenizer)

    out = tmp_path / "out"
    trainer().train()
    weights = {name: value.clone() for name, value in load_file(out / "checkpoint-6" / "model.safetensors").items()}
    spoil(out / "checkpoint-6", how)
    with pytest.raises(ValueError, match=r"checkpoint-6' (is not whole: it has no whole|has torn weights)"):
        trainer().train(resume_from_checkpoint=str(out / "checkpoint-6"))
    again = trainer(save_total_limit=1)
    again.train(resume_from_checkpoint=True)
    assert f"{out}/checkpoint-6 is not whole and is skipped: it has no whole {how.split(' ')[-1]}." in caplog.text
    assert steps_kept(out) == [6] and torn(out / "checkpoint-6") is None
    assert all(torch.equal(value, weights[name]) for name, value in again.model.state_dict().items())


def test_every_changed_byte_of_a_checkpoint_is_found(build_model, data, arguments, tokenizer, caplog, tmp_path):
    def trainer(**kwargs):
        kwargs = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2, **kwargs}
        return MultiTaskTrainer(build_model(), arguments(**kwargs), train_dataset=data(), processing_class=tokenizer)

    trainer().train()
    first, last = (tmp_path / "out" / f"checkpoint-{step}" for step in (1, 2))
    shutil.copytree(last, tmp_path / "kept")
    names = sorted(path.name for path in last.iterdir())
    assert {"model.safetensors", "optimizer.pt", "config.json", "trainer_state.json", "multitask_state.json"} < {*names}
    for name in names:
        for how in ("half-zero", "changed"):
            spoil(last, f"{how} {name}")
            problem = torn(last)
            assert problem in (f"a damaged {name}", f"no whole {name}"), (how, name, problem)
            assert problem == f"a damaged {name}" or how == "half-zero"  # JSON that is none any more
            assert last_whole_checkpoint(tmp_path / "out") == str(first)
            shutil.copy(tmp_path / "kept" / name, last / name)
    assert torn(last) is None
    spoil(last, "changed model.safetensors")
    with pytest.raises(ValueError, match=r"checkpoint-2' is not whole: it has a damaged model.safetensors"):
        trainer().train(resume_from_checkpoint=str(last))
    trainer(max_steps=1).train(resume_from_checkpoint=True)
    assert f"{last} is not whole and is skipped: it has a damaged model.safetensors." in caplog.text


def test_a_checkpoint_of_the_first_format_is_gone_on_from(build_model, data, arguments, tokenizer, tmp_path):
    """It knows sizes in the place of hashes, and no arguments."""

    def trainer(**kwargs):
        kwargs = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, **kwargs}
        return MultiTaskTrainer(build_model(), arguments(**kwargs), train_dataset=data(), processing_class=tokenizer)

    trainer().train()
    weights = load_file(tmp_path / "out" / "checkpoint-4" / "model.safetensors")
    weights = {name: value.clone() for name, value in weights.items()}
    state = tmp_path / "out" / "checkpoint-2" / "multitask_state.json"
    values = json.loads(state.read_text())
    for name in ("hash", "arguments", "optimizer"):
        del values[name]
    values |= {"format": 1, "files": {name: size for name, (size, _) in values["files"].items()}}
    state.write_text(json.dumps(values))
    again = trainer()
    again.train(resume_from_checkpoint=str(state.parent))
    assert all(torch.equal(value, weights[name]) for name, value in again.model.state_dict().items())
    (state.parent / "optimizer.pt").write_bytes(b"")
    assert torn(state.parent) == "no whole optimizer.pt"


def test_torn_checkpoints_count_not_among_those_that_are_kept(build_model, data, arguments, tokenizer, tmp_path):
    def trainer(**kwargs):
        kwargs = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 2, **kwargs}
        return MultiTaskTrainer(build_model(), arguments(**kwargs), train_dataset=data(), processing_class=tokenizer)

    out = tmp_path / "out"
    trainer(max_steps=8, save_total_limit=None).train()
    spoil(out / "checkpoint-8", "torn trainer_state.json")
    (out / "checkpoint-90").mkdir()  # of a run that was further and broke off, and was then begun anew
    shutil.rmtree(out / "checkpoint-6")
    trainer(max_steps=6).train(resume_from_checkpoint=True)
    assert steps_kept(out) == [4, 6]
    for name in ("checkpoint-4", "checkpoint-6"):
        spoil(out / name, "no optimizer.pt")
    assert last_whole_checkpoint(out) is None
    with pytest.raises(ValueError, match="No valid checkpoint found in output directory"):
        trainer(max_steps=6).train(resume_from_checkpoint=True)


def test_early_stopped_run_that_goes_on_stays_stopped(build_model, data, arguments, tokenizer):
    def trainer():
        return MultiTaskTrainer(
            build_model(),
            arguments(
                max_steps=30,
                learning_rate=0.0,
                early_stopping_patience=2,
                eval_strategy="steps",
                eval_steps=2,
                save_strategy="steps",
                save_steps=2,
            ),
            train_dataset=data(),
            eval_dataset=data(9, 7, "validation"),
            processing_class=tokenizer,
        )

    stopped = trainer()
    stopped.train()
    assert stopped.state.global_step == 6
    again = trainer()
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 6 and again.state.best_global_step == 2


def test_results_that_a_killed_run_has_torn_are_begun_anew(build_model, arguments, tokenizer, data, tmp_path):
    trainer = MultiTaskTrainer(build_model(), arguments(), train_dataset=data(8, 8), processing_class=tokenizer)
    results = tmp_path / "out" / "all_results.json"
    results.parent.mkdir(exist_ok=True)
    for torn_content in ("", '{"train_loss": 1'):
        results.write_text(torn_content)
        trainer.save_metrics("eval", {"eval_average": 0.5})
        assert json.loads(results.read_text()) == {"eval_average": 0.5}
    trainer.save_metrics("test", {"test_average": 0.25})
    assert json.loads(results.read_text()) == {"eval_average": 0.5, "test_average": 0.25}
