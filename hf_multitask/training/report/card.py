"""The model card of what a trainer saves and pushes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, cast

from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.training_args import TrainingArguments
from transformers.utils import logging

from ...data import Mixture
from ...hub import Run, UnreadableCard, write_card
from ...hub.beside import Beside
from ...hub.history import SPLITS, results, splits_of_saved
from ...hub.records import Log
from ..distillation.teachers import Teachers
from ..evaluation.reports import Report, Reports
from ..evaluation.rows import EvaluationRows
from ..plan import Plan
from ..runtime import Runtime
from ..secrets import arguments_without_secrets
from ..state.progress import Progress
from .console import MANY

logger = logging.get_logger(__name__)

# The bases are OSError, and the error of whichever HTTP library the Hub's own is built on.
_NO_ANSWER = cast("tuple[type[Exception], ...]", (*HfHubHTTPError.__bases__, UnicodeDecodeError))


class Described(Protocol):
    """What a card reads of a trainer.

    Attributes:
        state: of the run.
        progress: beyond that.
        plan: of the data.
        train_dataset: what it trains on.
        eval_dataset: what it is measured on.
        hub_model_id: the repository that is pushed to, once it is known.
        hub_datasets: by dataset, its name on the Hub.
        single_results: by task, the flat results of a model of the task alone.
        teachers: what tasks learn from beside their labels.
        hp_search_backend: of a search that is running.
    """

    state: TrainerState
    plan: Plan
    train_dataset: Mixture | None
    eval_dataset: EvaluationRows | None
    hub_model_id: str | None
    hub_datasets: dict[str, str]
    single_results: dict[str, Log]
    teachers: Teachers

    @property
    def progress(self) -> Progress: ...  # noqa: D102
    @property
    def hp_search_backend(self) -> object: ...  # noqa: D102

    def create_model_card(self) -> None:
        """Write the card into ``output_dir``."""


class CardCallback(TrainerCallback):
    """Writes the card at the end of training.

    A push writes it too; a checkpoint that is not pushed has none, so that saving one takes no longer.

    Args:
        trainer: whose card it is.
    """

    def __init__(self, trainer: Described) -> None:
        self.trainer = trainer

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,  # noqa: ARG002
        control: TrainerControl,  # noqa: ARG002
        **kwargs: object,  # noqa: ARG002
    ) -> None:
        """Write it, unless the run saves nothing by itself, or is one of a search."""
        if args.save_strategy != "no" and self.trainer.hp_search_backend is None:
            self.trainer.create_model_card()


class CardWriter:
    """Writes the card of what a trainer saves.

    Args:
        runtime: where it runs.
        trainer: that the card describes.
        measured: by prefix of the metric names, such as ``eval``, the rows of each dataset that was measured.
        labeled: likewise, the rows with a label of each task.
        reports: of the last evaluation of every split.

    Attributes:
        given: metadata that the user gives, which stay in all cards that are written later.
    """

    def __init__(
        self,
        runtime: Runtime,
        trainer: Described,
        *,
        measured: Mapping[str, Mapping[str, int]],
        labeled: Mapping[str, Mapping[str, int]],
        reports: Reports,
    ) -> None:
        self._runtime, self._trainer, self._reports = runtime, trainer, reports
        self._measured, self._labeled = measured, labeled
        self.given: dict[str, str | list[str]] = {}

    def give(self, **metadata: str | list[str] | None) -> None:
        """Add metadata by their keys in the card; those that are None or empty are ignored."""
        for key, value in metadata.items():
            if value:
                self.given[key] = [value] if key == "tags" and isinstance(value, str) else value

    def write(self, folder: Path, name: str | None) -> None:
        """Write the card into a folder; where that fails the model counts more, and a warning says so.

        Args:
            folder: where the model is saved.
            name: the card's title, with its owner where it has one; that of the repository or the folder where None.
        """
        if not self._runtime.is_main:
            return
        args, pushed = self._runtime.args, self._trainer.hub_model_id
        repository = pushed or args.hub_model_id
        name = name or repository or folder.resolve().name
        repository = name if "/" in name else repository or name
        on_hub = None
        if pushed is not None and folder == Path(str(args.output_dir)):
            on_hub = card_on_hub(pushed, revision=args.hub_revision, token=args.hub_token)
        try:
            missed = write_card(
                folder,
                self._runtime.model.config,
                self.run(),
                name=name.rpartition("/")[2],
                repository=repository,
                given=self.given,
                on_hub=on_hub,
            )
            if missed:
                logger.warning(
                    f"The model card in {folder} and the one of {pushed} on the Hub were both edited. A "
                    "push sends the one that is here; the Hub keeps the other in its history."
                )
        except UnreadableCard as problem:
            logger.warning(
                f"The model card in {folder} is not changed: {problem}. Fix it, or remove it to have a new one written."
            )
        except OSError as problem:
            reason = problem.strerror or str(problem)
            logger.warning(
                f"The model card in {folder} could not be written ({reason.lower()}). The model is not touched."
            )

    def run(self) -> Run:
        """What the trainer knows of the model."""
        trainer, state, mixture = self._trainer, self._trainer.state, self._trainer.train_dataset
        trained = state.global_step > 0
        ended = any("train_runtime" in entry for entry in state.log_history)
        loaded = ended and self._runtime.args.load_best_model_at_end and state.best_model_checkpoint is not None
        rows: dict[str, Mapping[str, int]] = {"training": {} if mixture is None else mixture.sizes}
        rows["validation"] = {} if trainer.eval_dataset is None else trainer.eval_dataset.sizes
        rows["validation"] = {**rows["validation"], **self._measured.get("eval", {})}
        rows["test"] = self._measured.get("test", {})
        best = state.best_global_step if loaded else None
        return Run(
            arguments=arguments_without_secrets(self._runtime.args),
            history=state.log_history,
            step=state.global_step,
            epoch=state.epoch or 0.0,
            metrics=trainer.progress.metrics,
            best=best,
            plan=trainer.plan.describe(state.max_steps) if trained and mixture is not None else None,
            readers={} if mixture is None else mixture.tasks,
            rows=rows,
            labeled={split: self._labeled.get(prefix, {}) for prefix, split in SPLITS.items()},
            hub_datasets=trainer.hub_datasets,
            processes=self._runtime.processes,
            alone=trainer.single_results,
            taught=list(trainer.teachers.forms),
            reports=self._reports_of_saved(best),
        )

    def _reports_of_saved(self, best: int | None) -> dict[str, dict[str, Report]]:
        """The reports that a card shows, which takes time: not those of many tasks, which have a file."""
        if len(self._runtime.model.config.task_names) > MANY:
            return {}
        known = splits_of_saved(self._trainer.state.log_history, best)
        return {split: self._reports.of(split) for split in self._reports.splits if split in known}

    def beside_single(self) -> list[Beside]:
        """The last results of every task beside those of its single-task model, where it has one."""
        run, config = self.run(), self._runtime.model.config
        return run.beside(config, results(run.history, config.task_names, run.metrics, best=run.best))


def card_on_hub(name: str, *, revision: str | None, token: str | None) -> str | None:
    """The card of a repository, None if there is none or the Hub does not answer."""
    try:
        # If the Hub does not answer, this fails at once, while the download tries for half a minute.
        get_hf_file_metadata(hf_hub_url(name, "README.md", revision=revision), token=token, timeout=10)
        path = hf_hub_download(name, "README.md", revision=revision, token=token)
        return Path(path).read_bytes().decode()
    except _NO_ANSWER:  # no card, no network: the push reports the error
        return None
