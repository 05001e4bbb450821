"""Joint intent and slots on ATIS: one recipe, two tasks that share rows, several seeds.

The script measures intent accuracy and slot F1 (spans, seqeval) on the test split after training, by seed and on
average. Labels of the test split that are not in the training data count as wrong. The recipe is ``atis/recipe.yaml``;
``PATH/atis`` contains ``train.jsonl``, ``validation.jsonl`` and ``test.jsonl``, whose rows have ``tokens``,
``slot_tags`` and ``intent``::

    python benchmarks/atis.py --data PATH --seeds 1 2 3

Additional arguments are training arguments, such as ``--learning_rate 2e-4``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import yaml

from hf_multitask.cli import main as cli

RECIPE = Path(__file__).parent / "atis" / "recipe.yaml"
FIGURES = {"intent accuracy": "test_intent_accuracy", "slot F1": "test_slots_f1"}


def write_recipe(data: Path, backbone: str | None, folder: Path) -> Path:
    """The recipe with paths to the data, in a separate folder."""
    recipe = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    files = recipe["datasets"]["atis"]["data_files"]
    recipe["datasets"]["atis"]["data_files"] = {
        split: str((data / "atis" / name).resolve()) for split, name in files.items()
    }
    recipe["backbone"] = backbone or recipe["backbone"]
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


def main(words: Sequence[str] | None = None) -> None:
    """Train once per seed and print the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the folder atis")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--backbone", help="instead of that of the recipe")
    given, rest = parser.parse_known_args(words)
    figures: list[list[float]] = []
    with tempfile.TemporaryDirectory() as temporary:
        recipe = write_recipe(given.data, given.backbone, Path(temporary))
        for seed in given.seeds:
            out = Path(temporary) / f"seed-{seed}"
            code = cli(["train", str(recipe), "--seed", str(seed), "--output_dir", str(out), *rest])
            if code:
                sys.exit(code)
            results = json.loads((out / "test_results.json").read_text(encoding="utf-8"))
            figures.append([results[key] for key in FIGURES.values()])
            print(f"\nseed {seed}: " + ", ".join(f"{n} {v:.4f}" for n, v in zip(FIGURES, figures[-1], strict=True)))
    print("\nseed    " + "  ".join(name.rjust(15) for name in FIGURES))
    for seed, values in zip(given.seeds, figures, strict=True):
        print(f"{seed:<6}  " + "  ".join(f"{value:15.4f}" for value in values))
    print("mean    " + "  ".join(f"{statistics.mean(column):15.4f}" for column in zip(*figures, strict=True)))


if __name__ == "__main__":
    main()
