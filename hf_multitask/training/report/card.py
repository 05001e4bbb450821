"""The part of the trainer that describes: the model card, at every save and push."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState
from transformers.training_args import TrainingArguments
from transformers.utils import logging

from ...data import Mixture
from ...hub import Run, UnreadableCard, write_card
from ...modeling import MultiTaskModel
from ..evaluation.rows import EvaluationRows
from ..secrets import arguments_without_secrets
from ..state.progress import Progress

logger = logging.get_logger(__name__)

_NO_ANSWER = HfHubHTTPError.__bases__  # OSError, and the error of whichever HTTP library the Hub's own is built on


class CardCallback(TrainerCallback):
    """Writes the card at the end of training.

    A push writes it too; a checkpoint that is not pushed has none, so that saving one takes no longer.

    Args:
        trainer: whose card it is.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,  # noqa: ARG002
        control: TrainerControl,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        """Write it, unless the run saves nothing by itself, or is one of a search."""
        if args.save_strategy != "no" and self.trainer.hp_search_backend is None:
            self.trainer.create_model_card()


class DescribingTrainer(Trainer):
    """The Trainer, which writes the card of what it saves."""

    model: MultiTaskModel
    train_dataset: Mixture | None
    eval_dataset: EvaluationRows | None
    hub_datasets: dict[str, str]
    _measured_rows: dict[str, dict[str, int]]
    progress: Progress

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.hub_datasets = {}  # by dataset, its name on the Hub
        self._measured_rows = {}
        self._card_metadata: dict[str, Any] = {}
        self.add_callback(CardCallback(self))

    @abstractmethod
    def describe_plan(self, steps: int) -> str:
        """What a run of so many optimizer steps does with the data."""

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model and its card, as in ``Trainer``."""
        super().save_model(output_dir, _internal_call)
        if not _internal_call:  # as are those for checkpoints, and for a push, which writes the card itself
            self._write_card(Path(output_dir or str(self.args.output_dir)), None)

    def create_model_card(
        self,
        language: str | list[str] | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        datasets: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
    ) -> None:
        """Write the model card into ``output_dir``; what a user has changed in it stays.

        Metadata that are given here stay in the card, and in those that this trainer writes later.

        Args:
            language: codes of the texts' languages, such as ``en``.
            license: of the model; none is made up where it is left out.
            tags: beside those that the card has.
            model_name: title; with the owner, as in ``me/model``, also the name in the card's code.
            finetuned_from: name of the backbone on the Hub, where it is not the one that the model was built from.
            datasets: names of the training data on the Hub.
            dataset_tags: the Trainer's word for the same.
        """
        given = {
            "language": language,
            "license": license,
            "tags": [tags] if isinstance(tags, str) else tags,
            "base_model": finetuned_from,
            "datasets": datasets or dataset_tags,
        }
        self._card_metadata |= {key: value for key, value in given.items() if value}
        self._write_card(Path(str(self.args.output_dir)), model_name)

    def _write_card(self, folder: Path, model_name: str | None) -> None:
        """Write the card into a folder; where that fails the model counts more, and a warning says so."""
        if not self.is_world_process_zero():
            return
        repository = self.hub_model_id or self.args.hub_model_id
        name = model_name or repository or folder.resolve().name
        repository = name if "/" in name else repository or name
        try:
            missed = write_card(
                folder,
                self.accelerator.unwrap_model(self.model).config,
                self._told_run(),
                name=name.rpartition("/")[2],
                repository=repository,
                given=self._card_metadata,
                on_hub=self._card_on_hub() if folder == Path(str(self.args.output_dir)) else None,
            )
            if missed:
                logger.warning(
                    f"The model card in {folder} and the one of {self.hub_model_id} on the Hub were both edited. A "
                    "push sends the one that is here; the Hub keeps the other in its history."
                )
        except UnreadableCard as problem:
            logger.warning(
                f"The model card in {folder} stays as it is: {problem}. Mend it, or remove it to have it written anew."
            )
        except OSError as problem:
            reason = problem.strerror or str(problem)
            logger.warning(
                f"The model card in {folder} could not be written ({reason.lower()}). The model is not touched."
            )

    def _card_on_hub(self) -> str | None:
        """The card of the repository that is pushed to, None where there is none or nobody knows."""
        if self.hub_model_id is None:
            return None
        revision, token = self.args.hub_revision, self.args.hub_token
        try:
            # Where the Hub does not answer, this says so at once, and the download tries for half a minute.
            get_hf_file_metadata(hf_hub_url(self.hub_model_id, "README.md", revision=revision), token=token, timeout=10)
            path = hf_hub_download(self.hub_model_id, "README.md", revision=revision, token=token)
            return Path(path).read_bytes().decode()
        except (*_NO_ANSWER, UnicodeDecodeError):  # no card, no network: the push will say what is wrong
            return None

    def _told_run(self) -> Run:
        state, mixture = self.state, self.train_dataset
        trained = state.global_step > 0
        ended = any("train_runtime" in entry for entry in state.log_history)
        loaded = ended and self.args.load_best_model_at_end and state.best_model_checkpoint is not None
        rows: dict[str, Mapping[str, int]] = {"training": {} if mixture is None else mixture.sizes}
        rows["validation"] = {} if self.eval_dataset is None else self.eval_dataset.sizes
        rows["validation"] = {**rows["validation"], **self._measured_rows.get("eval", {})}
        rows["test"] = self._measured_rows.get("test", {})
        return Run(
            arguments=arguments_without_secrets(self.args),
            history=state.log_history,
            step=state.global_step,
            epoch=state.epoch or 0.0,
            metrics=self.progress.metrics,
            best=state.best_global_step if loaded else None,
            plan=self.describe_plan(state.max_steps) if trained and mixture is not None else None,
            readers={} if mixture is None else mixture.tasks,
            rows=rows,
            hub_datasets=self.hub_datasets,
            processes=self.args.world_size,
        )
