"""Ranks make the update of one process, stay alike, and do not wait for each other in vain."""

import json
import re
from functools import partial

import layouts
import pytest
import sending
import sharding
import torch
from killing import Run, start_server
from layouts import ADAPTERS, CHECKPOINTING, SAMPLINGS, describe, draw, relative_difference
from methods import METHODS
from mixtures import KINDS, NO_WEIGHTS, TEXTS
from pages import DOCS
from safetensors.torch import load_file
from transformers import BertConfig, BertModel

from hf_multitask.training.parameters import last_shared_matrix, shared_parameters
from hf_multitask.training.ranks import check_world_size

pytestmark = pytest.mark.process

BRANCHES = {"branches": "kind", "branch_layers": 1}
BOUNDS = {"float64": 1e-9, "float32": 1e-6}
# Few rows of some tasks: ranks and steps without a row of them, and micro-batches that hold nothing but filler.
RARE = {"reviews": 40, "stars": 1, "pairs": 2, "wiki": 3, "questions": 2, "choices": 2}
POISON = {"dtype": "float32", "balancing": "uncertainty", "optim": "sgd", "non_finite_patience": 9, "missing": 0.0}
ALL_ROWS = {"distillation": "fixed", "distillation_kwargs": {"rows": "all", "temperature": 2}}
RATES = {"rates": {"reviews": 3, "stars": 0.2, "pairs": 0.5, "wiki": 2}}


def job(description, batch, accumulation=1):
    return {"description": description, "batch": batch, "accumulation": accumulation}


def jobs(world):
    """What a launch with so many ranks runs: rows of a step dealt in one micro-batch a rank, or in four."""
    rows = 24 if world == 3 else 32
    one, four = rows // world, rows // world // 4
    rare = partial(describe, sizes=RARE, rows=rows, weight_decay=0.1)
    stops = {"eval_strategy": "steps", "eval_steps": 2, "max_steps": 7}
    stops["task_early_stopping_patience"] = dict.fromkeys(KINDS[::2], 1)  # the others train to the end
    stops["logging_steps"] = 3  # so that the last step is in no log but the end's
    many, search = {"reviews": 100, "wiki": 50}, {"ddp_find_unused_parameters": False}
    return [
        job(describe("stopped", rows=rows, **stops), one),
        job(rare("rare"), one),
        job(describe("tokens", tasks=("sentiment", "ner"), sizes=many, rows=rows, max_steps=7), one),
        job(describe("texts", tasks=("sentiment", *TEXTS), rows=rows), one),
        job(describe("texts-all", tasks=("sentiment", *TEXTS), rows=rows, ddp_find_unused_parameters=False), four, 4),
        job(draw(0, rows), one),
        job(draw(1, rows), four, 4),
        job(describe("float32", dtype="float32", sampling="annealed", rows=rows), four, 4),
        job(rare("frozen-tasks", freeze=["backbone", "sentiment", "topics"]), 1, rows // world),
        job(rare("all-heads", ddp_find_unused_parameters=False, sampling="fixed", sampling_kwargs=RATES), four, 4),
        job(describe("checkpointing", **CHECKPOINTING, sampling="temperature", rows=rows), one),
        job(
            {**describe("streams", rows=rows, sampling="uniform", max_steps=7), "streams": ["reviews", "wiki"]}, four, 4
        ),
        job(describe("gradnorm", balancing="gradnorm", rows=rows), four, 4),
        job(rare("famo-exact", balancing="famo", balancing_kwargs={"exact": True}), one),
        job({**describe("poisoned", **POISON, rows=rows), "poisoned": [2, 7]}, four, 4),
        job({**describe("rooted", **POISON, rows=rows), "poisoned": [2, 7], "rooted": True}, four, 4),
        job(describe("bf16", dtype="float32", bf16=True, sampling="uniform", rows=rows), one),
        job(rare("adapters", tasks=(*KINDS, *TEXTS), adapters=ADAPTERS), four, 4),
        job(rare("adapters-all", adapters=ADAPTERS, ddp_find_unused_parameters=False), one),
        job(describe("adapters-checkpointing", adapters=ADAPTERS, **CHECKPOINTING, rows=rows), one),
        job(rare("branches", tasks=(*KINDS, *TEXTS), adapters=BRANCHES), four, 4),
        job(rare("branches-all", adapters={**BRANCHES, **ADAPTERS}, ddp_find_unused_parameters=False), one),
        job(describe("upgrad", rows=rows, aggregation="upgrad"), one),
        job(rare("branches-upgrad", adapters=BRANCHES, aggregation="upgrad"), one),
        job(rare("gradvac", aggregation="gradvac", ddp_find_unused_parameters=False), four, 4),
        job(describe("graddrop", tasks=("stars", "pairs", "ner"), rows=rows, aggregation="graddrop"), four, 4),
        job(describe("measured", rows=rows, gradient_logging_steps=1), four, 4),
        job(rare("measured-rare", gradient_logging_steps=1), one),
        job({**describe("heard", tasks=("turned", "heard"), rows=rows, **search), "family": "bart"}, four, 4),
        job({**describe("taught", rows=rows, max_steps=3), "taught": ["sentiment", "stars", "ner"]}, four, 4),
        job({**rare("taught-all", max_steps=3, **ALL_ROWS), "taught": ["topics", "stars", "ner"]}, one),
        job({**describe("losses", tasks=(*KINDS, *TEXTS), rows=rows), "losses": True}, four, 4),
        job(
            {**rare("losses-taught", max_steps=3, **ALL_ROWS), "losses": True, "taught": ["topics", "stars", "ner"]},
            one,
        ),
        job(rare("chained", tasks=("stars", "chained", "sentiment"), **search), four, 4),
        job(describe("counted", include_num_input_tokens_seen="non_padding", rows=rows), one),
    ]


def long_jobs(world):
    """Every sampling in both layouts, what is frozen with and without the search for unused heads, mixtures drawn."""
    rows = 24 if world == 3 else 32
    layouts_of_rank = [(rows // world, 1), (rows // world // 4, 4)]
    every = [
        *(
            describe(f"{sampling}-{dtype}", dtype=dtype, rows=rows, sampling=sampling, sampling_kwargs=kwargs)
            for sampling, kwargs in [*SAMPLINGS[:-1], ("fixed", RATES)]
            for dtype in BOUNDS
        ),
        *(
            describe(f"frozen-{search}", sizes=RARE, rows=rows, freeze=["backbone"], ddp_find_unused_parameters=search)
            for search in (True, False)
        ),
        *(draw(seed, rows) for seed in range(100 * world, 100 * world + 20)),
    ]
    return [job(description, *layout) for description in every for layout in layouts_of_rank]


def chosen(jobs, names):
    return [next(job for job in jobs if job["description"]["name"] == name) for name in names]


DIFFERENCES = {
    "rows": r"The rows of the datasets \(wiki\) differ between ranks: 11 on rank 0, 20 on rank 1\. Give all ranks the same",
    "contents": r"The contents of the datasets \(reviews\) differ between ranks: \w+ on rank 0, \w+ on rank 1\.",
    "tasks": r"The tasks \(sentiment \(max_length\)\) differ between ranks: None on rank 0, 30 on rank 1\.",
    "arguments": r"The arguments \(learning_rate\) differ between ranks: 0\.001 on rank 0, 0\.002 on rank 1\.",
    "evaluation": r"The numbers of rows and contents of the evaluation data \(\w+\) differ between ranks: .* on rank 1\.",
}
DIFFERING = [
    {**job(describe("differs", eval_strategy="steps", eval_steps=9), 16), "differ": what} for what in DIFFERENCES
]
# The same with and without a measurement of the gradients; dropout draws otherwise in one process.
MEASURED = [
    job({**describe(f"twice-{steps}", sizes=RARE, **more, gradient_logging_steps=steps), "dropout": 0.3}, 4, 4)
    for more in ({"balancing": "uncertainty"}, {"ddp_find_unused_parameters": False})
    for steps in (0, 1)
]
# The same in one go and stopped after a step, saved by every rank and resumed by all.
KEPT = {"balancing": "uncertainty", "save_strategy": "steps", "save_steps": 1, "save_total_limit": 2}
RESUMED = [
    job({**describe(name, sizes=RARE, **KEPT), "dropout": 0.3, "stop": stop}, 4, 4)
    for name, stop in (("in-one-go", None), ("resumed", 2))
]
# What is sent, by the kinds of methods.
ARGUMENTS = {"plain": {}, "famo": {"balancing": "famo", "balancing_kwargs": {"exact": True}}}
ARGUMENTS |= {"gradnorm": {"balancing": "gradnorm"}, "pcgrad": {"aggregation": "pcgrad"}}
PLAIN_ROWS = {"sizes": {"stars": 30, "reviews": 30, "wiki": 30}, "missing": 0.0, "rows": 16, "max_steps": 3}
PLAIN_ROWS |= {"logging_strategy": "no"}  # a log adds two numbers
COUNTED = [
    job(
        {
            **describe(name, tasks=sharding.TASKS, dtype="float32", **PLAIN_ROWS, gradient_logging_steps=0, **args),
            "counts": True,
        },
        8,
    )
    for name, args in ARGUMENTS.items()
]
# Jobs that differ in mechanism; three ranks do not divide what two do.
ALWAYS = [
    "stopped",
    "rare",
    "tokens",
    "texts-all",
    "frozen-tasks",
    "streams",
    "gradnorm",
    "famo-exact",
    "rooted",
    "bf16",
]
ALWAYS += ["heard", "adapters", "branches-all", "upgrad", "graddrop", "measured-rare", "taught-all", "chained"]
QUICK = {
    2: [*chosen(jobs(2), ALWAYS), *DIFFERING, *MEASURED, *RESUMED, *COUNTED],
    3: chosen(jobs(3), ["stopped", "rare", "tokens"]),
}
# Every balancer and aggregator on two ranks, in one micro-batch a rank and in four.
BY_METHOD = {
    2: [
        job(describe(word, max_steps=5, **args), *layout)  # DWA looks back on four
        for layout in [(16, 1), (4, 4)]
        for word, args in METHODS.items()
    ]
}
PLAIN = {"balancing-uniform", "aggregation-sum"}  # the plain sum by another name
LONG = {world: [*jobs(world), *long_jobs(world)] for world in (2, 3, 4)}


class Launches:
    """The runs of launches, each of which runs many jobs, made when they are first asked for."""

    def __init__(self, backbone, factory):
        self.backbone, self.factory, self.alone, self.folders = backbone, factory, {}, {}

    def folder(self, world, plan):
        """Where the ranks of a launch left what they found."""
        key = json.dumps([world, plan])
        if key not in self.folders:
            folder = self.factory.mktemp(f"ranks-{world}")
            (folder / "jobs.json").write_text(json.dumps(plan))
            words = (str(folder / "jobs.json"), self.backbone, str(folder))
            with pytest.MonkeyPatch.context() as patch:
                run = Run(start_server(patch), words, folder / "log", world, work=layouts.work)
                self.folders[key] = folder, run.wait(1000)
        folder, codes = self.folders[key]
        assert codes == [0] * world, [(folder / f"log.{rank}").read_text()[-2500:] for rank in range(world)]
        return folder

    def together(self, world, plan, number):
        """Weights and each rank's record of a job."""
        folder = self.folder(world, plan)
        records = [json.loads((folder / f"{number}-{rank}.json").read_text()) for rank in range(world)]
        return load_file(folder / f"{number}.safetensors"), records

    def by_one(self, description):
        """Weights and record of the same job in this process, each step as one batch."""
        key = json.dumps(description)
        if key not in self.alone:
            self.alone[key] = layouts.run(
                description, self.backbone, self.factory.mktemp("alone"), description["rows"], 1
            )
        return self.alone[key]


@pytest.fixture(scope="session")
def launches(backbone_path, tmp_path_factory):
    backbone_path("bart")  # of the jobs of that family
    return Launches(backbone_path(), tmp_path_factory)


def check(launches, world, plan, number, record_property):
    """The run of several ranks is that of one process."""
    description = plan[number]["description"]
    weights, ranks = launches.together(world, plan, number)
    whole, alone = launches.by_one(description)
    assert [rank["world"] for rank in ranks] == [world] * world
    assert len({rank["digest"] for rank in ranks}) == 1
    if not description["name"].startswith("drawn"):  # of which some come out even
        assert any(len(rows) < len(max(alone["rows"], key=len)) for rows in alone["rows"])  # a step that is not full
    for step, rows in enumerate(alone["rows"]):
        assert sorted(row for rank in ranks for row in rank["rows"][step]) == rows
    for rank in ranks:
        assert rank["denominators"] == alone["denominators"]
        assert rank["trained"] == alone["trained"]
        assert rank["adapted"] == alone["adapted"]
        assert rank["branched"] == alone["branched"]
        assert rank["finished"] == alone["finished"]
        assert rank["non_finite"] == alone["non_finite"]
        assert rank["balancing"] == ranks[0]["balancing"]
    assert bool(alone["non_finite"]) == ("poisoned" in description)
    frozen = description["args"].get("freeze") or []
    for items, trained in zip(alone["denominators"], alone["trained"], strict=True):
        if "poisoned" in description and "stars" not in trained:
            items.pop("stars", None)  # left out
        labelled = [task for task, count in items.items() if count and task not in NO_WEIGHTS.union(frozen)]
        everywhere = description.get("taught", ()) if "distillation_kwargs" in description["args"] else ()
        assert [task for task in trained if task not in everywhere or task in labelled] == labelled
    for items, branched in zip(alone["denominators"], alone["branched"], strict=True):
        branches = (alone["branches"] or {}).items()
        assert branched == sorted(name for name, own in branches if any(items.get(task) for task in own))
    if "task_lora" in description["adapters"]:
        assert alone["adapted"] == [[task for task, count in items.items() if count] for items in alone["denominators"]]
    difference = relative_difference(whole, weights)
    record_property(
        f"{world} ranks x {plan[number]['batch']} x {plan[number]['accumulation']}, relative norm", difference
    )
    bf16 = description["args"].get("bf16", False)
    assert difference < (1e-3 if bf16 else BOUNDS[description["dtype"]])
    for one, other in zip(alone["log"], ranks[0]["log"], strict=True):
        # Evaluation counts every row once, though 7, 9, 11 and 13 rows divide by no number of ranks and batches of 4.
        rel = 1e-2 if bf16 else 1e-9 if "eval_average" in one and description["dtype"] == "float64" else 1e-5
        assert one == pytest.approx(other, rel=rel, abs=1e-7)


def cases(plans):
    """World and place of every job that runs to its end."""
    return [
        pytest.param(world, number, id=f"{world}-{plan[number]['description']['name']}")
        for world, plan in plans.items()
        for number in range(len(plan))
        if "differ" not in plan[number] and not {"dropout", "counts"}.intersection(plan[number]["description"])
    ]


@pytest.mark.parametrize(("world", "number"), cases(QUICK))
def test_ranks_make_the_update_of_one(world, number, launches, record_property):
    check(launches, world, QUICK[world], number, record_property)


@pytest.mark.parametrize("pair", range(2), ids=["searched", "all heads"])
def test_gradients_are_measured_without_a_trace(pair, launches):
    first = QUICK[2].index(MEASURED[2 * pair])
    (plain, (one, _)), (measured, (other, _)) = (launches.together(2, QUICK[2], first + place) for place in (0, 1))
    assert all(torch.equal(value, measured[name]) for name, value in plain.items())
    assert not [key for entry in one["log"] for key in entry if key.startswith("cosine/")]
    assert [entry.keys() >= {"sentiment_grad_norm", "cosine/sentiment/topics"} for entry in other["log"][:-1]] == [
        True
    ] * 4


def test_ranks_that_resume_end_as_if_they_had_never_stopped(launches):
    first = QUICK[2].index(RESUMED[0])
    (whole, alone), (weights, resumed) = (launches.together(2, QUICK[2], first + place) for place in (0, 1))
    assert all(torch.equal(value, weights[name]) for name, value in whole.items())
    for one, other in zip(alone, resumed, strict=True):
        assert (one["digest"], one["balancing"]) == (other["digest"], other["balancing"])
        assert one["rows"][2:] == other["rows"] != []
    assert alone[0]["log"] == resumed[0]["log"]


@pytest.mark.parametrize("world", QUICK)
def test_some_ranks_and_steps_have_no_row_of_a_task(world, launches):
    names = [entry["description"]["name"] for entry in QUICK[world]]
    _, ranks = launches.together(world, QUICK[world], names.index("rare"))
    everywhere = {row.split()[0] for rank in ranks for rows in rank["rows"] for row in rows}
    seen = [[{row.split()[0] for row in rows} for rows in rank["rows"]] for rank in ranks]
    assert any(own != set.union(*step) for step in zip(*seen) for own in step)  # a rank lacks what its step has
    assert any(set.union(*step) != everywhere for step in zip(*seen))
    _, (first, *_) = launches.together(world, QUICK[world], names.index("stopped"))
    assert first["finished"] and len(first["trained"][-1]) < len(first["trained"][0])


@pytest.mark.parametrize("world", QUICK)
def test_ranks_get_equal_tokens(world, launches, record_property):
    number = [entry["description"]["name"] for entry in QUICK[world]].index("tokens")
    _, ranks = launches.together(world, QUICK[world], number)
    tokens_RS = torch.tensor([rank["tokens"] for rank in ranks], dtype=torch.float64)
    worst = tokens_RS.max(0).values / tokens_RS.mean(0)
    whole = max(map(len, ranks[0]["rows"])) == torch.tensor([len(rows) for rows in ranks[0]["rows"]])
    record_property(f"{world} ranks, tokens of a full step, worst rank to mean", float(worst[whole].max()))
    record_property(
        f"{world} ranks, tokens of the run, worst rank to mean", float(tokens_RS.sum(1).max() / tokens_RS.sum(1).mean())
    )
    assert worst[whole].max() <= 1.1 and tokens_RS.sum(1).max() / tokens_RS.sum(1).mean() <= 1.1


@pytest.mark.parametrize("what", DIFFERENCES)
def test_what_differs_between_ranks_is_named_on_every_rank(what, launches):
    folder, number = launches.folder(2, QUICK[2]), [entry.get("differ") for entry in QUICK[2]].index(what)
    told = [json.loads((folder / f"{number}-{rank}.json").read_text()) for rank in range(2)]
    assert told[0] == told[1]
    assert re.match(DIFFERENCES[what], told[0]), told[0]


def test_processes_that_do_not_know_of_each_other_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        ValueError, match=r"started 2 processes \(WORLD_SIZE\), and training would use 1, so each would"
    ):
        check_world_size(1)
    check_world_size(2)
    monkeypatch.setenv("WORLD_SIZE", "")
    check_world_size(1)


@pytest.mark.parametrize("balancing", sharding.BALANCINGS)
def test_sharded_training_is_that_of_one_process(balancing, launches, tmp_path, record_property):
    """Plain and balanced, with steps in which only one rank has rows of a task."""
    whole, _ = sharding.train(launches.backbone, tmp_path, balancing)
    folder, steps = launches.folder(2, QUICK[2]), []
    for rank in range(2):
        weights = load_file(folder / f"sharded-{balancing}-{rank}.safetensors")
        difference = relative_difference(whole, weights)
        record_property("fully_shard over two ranks, weights, relative norm", difference)
        assert difference < BOUNDS["float64"]
        steps.append(json.loads((folder / f"sharded-{balancing}-{rank}.json").read_text()))
    assert any("ner" in one and "ner" not in other for ones in zip(*steps) for one, other in (ones, ones[::-1]))


def tables_of(model):
    return [part.weight.shape for part in model.modules() if isinstance(part, torch.nn.Embedding)]


@pytest.mark.parametrize("entry", COUNTED, ids=lambda entry: entry["description"]["name"])
def test_ranks_send_what_the_sizes_of_the_model_say(entry, launches):
    _, ranks = launches.together(2, QUICK[2], QUICK[2].index(entry))
    description = entry["description"]
    model = layouts.build(description, launches.backbone, launches.factory.mktemp("counted"), 8, 1)[0].model
    heads = {task: [one.shape for one in head.parameters()] for task, head in model.heads.items()}
    shared = [one.shape for one in shared_parameters(model)]
    more = dict(sending.METHODS[description["name"]])
    if "matrix" in more:
        more["matrix"] = last_shared_matrix(model).numel()
    buffers = sum(buffer.nbytes for buffer in model.buffers())
    expected = sending.in_step(shared, heads, buffers, len(description["sizes"]), tables=tables_of(model), **more)
    assert [sum(rank["sent"]) for rank in ranks] == [expected, expected]


def test_docs_state_what_is_sent():
    page = (DOCS / "distributed.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| (.*) \| ([\d,.]+) \| ([\d,.]+) \|$", page, flags=re.MULTILINE)
    with torch.device("meta"):
        model = BertModel(BertConfig())
    heads = {f"task {number}": [(2, model.config.hidden_size), (2,)] for number in range(8)}
    shapes, buffers = [one.shape for one in model.parameters()], sum(buffer.nbytes for buffer in model.buffers())
    for (_, put_in, sends), (name, more) in zip(table, sending.METHODS.items(), strict=True):
        matrix = {"matrix": model.encoder.layer[-1].output.dense.weight.numel()} if name == "gradnorm" else {}
        total = sending.in_step(shapes, heads, buffers, len(heads), tables=tables_of(model), **more | matrix)
        assert (put_in, sends) == (f"{total / 1e6:,.1f}", f"{sending.sent(total, 64) / 1e6:,.1f}")


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("world", "number"), cases(LONG))
def test_ranks_make_the_update_of_one_for_many_mixtures(world, number, launches, record_property):
    check(launches, world, LONG[world], number, record_property)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("world", "number"), cases(BY_METHOD))
def test_ranks_make_the_update_of_one_for_every_method(world, number, launches, record_property):
    check(launches, world, BY_METHOD[world], number, record_property)
    description = BY_METHOD[world][number]["description"]
    (whole, _), (plain, _) = launches.by_one(description), launches.by_one(describe("plain", max_steps=5))
    assert (relative_difference(plain, whole) > 1e-6) == (description["name"] not in PLAIN)
