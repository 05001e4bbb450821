"""Fixtures on tiny random backbones."""

import contextlib
import gc
import importlib
import os
import resource
import shutil
import signal
import socket
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:  # a core each, for the processes that a test starts as well
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from building import build
from datasets import Dataset
from fork_server import remember, shell
from hub_server import Hub
from killing import start_server
from pages import files_of
from stages import SHARED, SLOW_CASES, STAGES, Limits, check_slow_cases, stage_of
from tiny import NER_LABELS, read_rows, save_backbone
from transformers import AutoTokenizer

from hf_multitask import MultiTaskModel, MultiTaskTrainingArguments, SequenceClassification, TokenClassification
from hf_multitask.modeling.extensions import EXTENSIONS
from hf_multitask.modeling.kinds import KINDS
from hf_multitask.tasks import TASK_TYPES


class Imports:
    """What has been imported, which the collection of garbage that ends every training need not look at."""

    count = 0

    def set_aside(self):
        gc.collect()
        gc.freeze()
        self.count = len(sys.modules)


LIMITS, IMPORTS, COLLECTED = Limits(), Imports(), set()
STAGE = pytest.StashKey[str]()


class Failures:
    """Shows a failure when it happens: a run that is cut off has said what failed."""

    def __init__(self, terminal):
        self.terminal = terminal

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.terminal.ensure_newline()
            self.terminal.write_line(f"FAILED {report.nodeid} ({report.when})\n{report.longreprtext}", red=True)


@pytest.hookimpl(trylast=True)  # when the terminal is there
def pytest_configure(config):
    for stage, what in STAGES.items():
        config.addinivalue_line("markers", f"{stage}: {what}")
    if "slow" not in config.option.markexpr:  # which also holds where a stage is chosen
        config.option.markexpr = " and ".join(
            filter(None, [config.option.markexpr and f"({config.option.markexpr})", "not slow"])
        )
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    if terminal:
        config.pluginmanager.register(Failures(terminal))


def pytest_itemcollected(item):
    item.stash[STAGE] = stage = stage_of(item, Path(__file__).parent)
    item.add_marker(stage)
    COLLECTED.add(item.nodeid)
    if item.nodeid in SLOW_CASES:
        item.add_marker("slow")
    for name, group in SHARED.items():
        if name in item.fixturenames:
            item.add_marker(pytest.mark.xdist_group(group))


def pytest_collection_finish(session):
    if not any("[" in word for word in session.config.args):  # a case by its name brings no others
        check_slow_cases(COLLECTED)
    IMPORTS.set_aside()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    with LIMITS.during(item.stash[STAGE]):
        outcome = yield
    if len(sys.modules) > IMPORTS.count + 50:
        IMPORTS.set_aside()
    return outcome


def pytest_terminal_summary(terminalreporter):
    """Show what tests measured, such as the difference that a bound is held against."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            terminalreporter.write_line(f"{report.nodeid.split('::')[-1]}: {name} {value:.2e}")


@pytest.fixture(autouse=True)
def pictures(request, monkeypatch):
    """Cards have a picture in the tests of cards; drawing it takes longer than a short training.

    Elsewhere the extra ``report`` is not installed, as far as a card can see.
    """
    if request.path.parent.name not in ("hub", "benchmarks"):
        monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)


@pytest.fixture(scope="session")
def backbone_path(tmp_path_factory):
    """By family, a folder with a tiny random model and its tokenizer."""
    made: dict[str, str] = {}

    def make(family: str = "bert") -> str:
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            save_backbone(family, folder)
            made[family] = str(folder)
        return made[family]

    return make


@pytest.fixture
def tokenizer(backbone_path):
    return AutoTokenizer.from_pretrained(backbone_path("bert"))


@pytest.fixture
def tasks():
    return {
        "sentiment": SequenceClassification(label_names=["negative", "positive"]),
        "ner": TokenClassification(label_names=NER_LABELS),
    }


@pytest.fixture
def data():
    """By split, the first rows of both datasets, unequal in number."""

    def make(sentiment: int = 40, ner: int = 24, split: str = "train") -> dict[str, Dataset]:
        return {
            "sentiment": Dataset.from_list(read_rows("sentiment", split, sentiment)),
            "ner": Dataset.from_list(read_rows("ner", split, ner)),
        }

    return make


@pytest.fixture
def build_model(backbone_path, tasks):
    """A multi-task model on a tiny backbone, the same weights at every call."""

    def make(family: str = "bert", **kwargs) -> MultiTaskModel:
        kwargs.setdefault("tasks", tasks)
        return build(backbone_path(family), **kwargs)

    return make


@pytest.fixture
def arguments(tmp_path):
    """Training arguments for a short quiet run on the CPU."""

    def make(**kwargs) -> MultiTaskTrainingArguments:
        values = {
            "output_dir": str(tmp_path / "out"),
            "per_device_train_batch_size": 8,
            "max_steps": 3,
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
            "save_strategy": "no",
            "logging_steps": 1,
            "learning_rate": 1e-3,
        }
        return MultiTaskTrainingArguments(**{**values, **kwargs})

    return make


@pytest.fixture(scope="session")
def client(tmp_path_factory):
    """The port of all Hubs and the folder of their client's caches: scripts of all tests have one environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1], tmp_path_factory.mktemp("client")


@pytest.fixture
def hub(client, monkeypatch):
    """A Hub on loopback, which the processes that the test starts talk to, as ``me`` and with empty caches."""
    port, folder = client
    server = Hub(port)
    environment = server.environment(folder)
    remember(environment)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    yield server
    server.close()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def context(monkeypatch):
    """Makes processes that are forked from one that has imported everything."""
    return start_server(monkeypatch)


@pytest.fixture
def full():
    """A storage that takes no file of more than so many bytes."""
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    @contextlib.contextmanager
    def make(size):
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    yield make
    signal.signal(signal.SIGXFSZ, before)


@pytest.fixture
def call(tmp_path):
    """Runs a line of a shell in a folder, and gives what it says, or the last line of its error."""

    def run(line, code=0):
        result = shell(line, folder=tmp_path)
        assert result.returncode == code, result.stderr[-3000:]
        assert code == 0 or "Traceback" not in result.stderr
        return result.stdout if code == 0 else result.stderr.splitlines()[-1]

    return run


@pytest.fixture
def registry():
    """Leaves the registries of task types as they were."""
    tables = (TASK_TYPES, KINDS, EXTENSIONS)
    before = [dict(table) for table in tables]
    yield
    for table, entries in zip(tables, before):
        table.clear()
        table.update(entries)


@pytest.fixture
def import_file(tmp_path, monkeypatch, registry):
    """Writes a module of the user's and imports it; what it registers is forgotten after the test."""

    def make(name: str, text: str, folder: str = "code"):
        path = tmp_path / folder / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        monkeypatch.syspath_prepend(str(path.parent))
        monkeypatch.delitem(sys.modules, name, raising=False)
        module = importlib.import_module(name)
        monkeypatch.setitem(sys.modules, name, module)
        return module

    return make


@pytest.fixture
def count(import_file):
    """The task type of docs/your-own-task.md, registered: the module with its class."""
    files = files_of("your-own-task.md")
    import_file("count_head", files["count_head.py"])
    return import_file("count_task", files["count_task.py"])
