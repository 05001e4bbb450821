"""A training whose storage is full for some of its steps, in a process of its own."""

import logging
import os
import resource
import signal
import sys
import warnings
from pathlib import Path


class Rising:
    """A metric that gets better with every evaluation, and more of them than the last block of a file has room for."""

    def __init__(self):
        self.calls = 0

    def __call__(self, prediction):
        self.calls += 1
        return {"score": self.calls / 100, **{f"other_{number}": 0.0 for number in range(50)}}


def child(backbone, folder, size, kwargs, results) -> None:
    """Train with room for so many more bytes, in all on a mounted disk or else in each file, at the steps 5 to 9."""
    warnings.simplefilter("error")
    for stream in (sys.stdout, sys.stderr):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    from datasets import Dataset
    from tiny import NER_LABELS, read_rows
    from transformers import AutoTokenizer, TrainerCallback

    from hf_multitask import (
        MultiTaskModel,
        MultiTaskTrainer,
        MultiTaskTrainingArguments,
        SequenceClassification,
        TokenClassification,
    )

    told = []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())
    logging.getLogger("hf_multitask").addHandler(handler)
    disk = Path(folder) if os.path.ismount(folder) else None
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # which makes it an error, EFBIG, as a full disk is one

    class Fill(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            full = size is not None and 5 <= state.global_step <= 9
            if disk is None:
                hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
                resource.setrlimit(resource.RLIMIT_FSIZE, (size if full else hard, hard))
            elif full:
                room = os.statvfs(disk)
                with (disk / "filler").open("ab") as filler:
                    filler.write(b"0" * max(0, room.f_bavail * room.f_frsize - size))
            else:
                (disk / "filler").unlink(missing_ok=True)

    import torch

    torch.manual_seed(1)
    tasks = {
        "sentiment": SequenceClassification(label_names=["negative", "positive"]),
        "ner": TokenClassification(label_names=NER_LABELS),
    }
    data = {
        split: {name: Dataset.from_list(read_rows(name, split, count)) for name, count in counts.items()}
        for split, counts in (("train", {"sentiment": 56, "ner": 11}), ("validation", {"sentiment": 9, "ner": 7}))
    }
    args = MultiTaskTrainingArguments(
        str(Path(folder) / ("alone" if size is None else "out")),
        **{
            "max_steps": 10,
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
            "learning_rate": 1e-3,
            "save_strategy": "steps",
            "save_steps": 2,
            "eval_strategy": "steps",
            "eval_steps": 2,
            **kwargs,
        },
    )
    trainer = MultiTaskTrainer(
        MultiTaskModel.from_backbone(backbone, tasks=tasks),
        args,
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        processing_class=AutoTokenizer.from_pretrained(backbone),
        callbacks=[Fill()],
        compute_metrics={name: Rising() for name in tasks},
    )
    trainer.train()
    results.send((told, trainer.state.global_step, trainer.state.best_global_step))
