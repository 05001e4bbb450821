"""Writes `data/` beside this file: the rows of the six tasks, made from the sentences and words in `templates.json`.

A template or a word that is used in one split is used in no other. Names, streets and towns are invented, phone numbers
have the reserved form 555-01xx, and addresses of e-mail end in example.com, example.org or example.net.
"""

import json
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

PARTS = {"train": (0, 1, 2), "validation": (3,), "test": (4,)}  # of five templates or words that follow each other
ROWS = {
    "prompts": {"train": 600, "validation": 160, "test": 240},
    "jailbreak": {"train": 400, "validation": 160, "test": 240},
    "feedback": {"train": 360, "validation": 120, "test": 160},
    "modality": {"train": 360, "validation": 120, "test": 160},
    "pii": {"train": 400, "validation": 120, "test": 200},
}
ATTACKS = 0.15  # share of the rows of `jailbreak`
GIVEN = json.loads((Path(__file__).parent / "templates.json").read_text(encoding="utf-8"))

Row = dict[str, Any]


class Writer:
    """Fills the templates of a split with its words."""

    def __init__(self, split: str) -> None:
        """Take the words of the split."""
        self.split = split
        self.draw = random.Random(f"router {split}")
        self.words = {name: self.part(words) for name, words in GIVEN["words"].items()}

    def part(self, values: Sequence[str]) -> list[str]:
        """Those of a list that belong to the split."""
        return [value for number, value in enumerate(values) if number % 5 in PARTS[self.split]]

    def word(self, name: str) -> str:
        """What a slot is filled with: a word, or a format with words and random digits."""
        if name not in GIVEN["formats"]:
            return self.draw.choice(self.words[name])
        text = re.sub(r"\{(\w+)\}", lambda slot: self.word(slot[1]), self.draw.choice(GIVEN["formats"][name]))
        text = re.sub("#", lambda _: str(self.draw.randint(0, 9)), text)
        return text.lower() if name == "EMAIL" else text

    def fill(self, template: str) -> Row:
        """A text, with the spans of its personal data in characters."""
        opening, ending = (self.draw.choice(["", self.draw.choice(GIVEN[name])]) for name in ("openings", "endings"))
        if opening.endswith((", ", ": ", "but ")) and template[1].islower():
            template = template[0].lower() + template[1:]
        text, spans, used = opening, [], set()
        for piece in re.split(r"(\{\w+\})", template + ending):
            value, name = piece, piece[1:-1]
            if piece.startswith("{"):
                value = self.word(name)
                while value in used:
                    value = self.word(name)
                used.add(value)
                if name.isupper():
                    spans.append({"start": len(text), "end": len(text) + len(value), "label": name})
            text += value
        return {"text": text[0].upper() + text[1:], "spans": spans}

    def one(self, templates: Sequence[str]) -> Row:
        """A text of the split, made from one of several templates."""
        return self.fill(self.draw.choice(self.part(templates)))


def prompt(writer: Writer) -> Row:
    """A question with the field it belongs to, and whether its answer has facts to check."""
    intent = writer.draw.choice([*GIVEN["prompts"]])
    check = writer.draw.choice(["needed", "not_needed"])
    return {"text": writer.one(GIVEN["prompts"][intent][check])["text"], "intent": intent, "fact_check": check}


def attack(writer: Writer) -> Row:
    """An attack; or a harmless text, which half of the time has words that attacks have as well."""
    harmless = writer.draw.random() >= ATTACKS
    if harmless and writer.draw.random() < 0.5:
        return {"text": prompt(writer)["text"], "label": "benign"}
    label = "benign" if harmless else "jailbreak"
    return {"text": writer.one(GIVEN["jailbreak"][label])["text"], "label": label}


def labeled(name: str) -> Callable[[Writer], Row]:
    """Makes a row of one of several classes."""

    def row(writer: Writer) -> Row:
        label = writer.draw.choice([*GIVEN[name]])
        return {"text": writer.one(GIVEN[name][label])["text"], "label": label}

    return row


KINDS = {
    "prompts": prompt,
    "jailbreak": attack,
    "feedback": labeled("feedback"),
    "modality": labeled("modality"),
    "pii": lambda writer: writer.one(GIVEN["pii"]),
}


def main() -> None:
    """Write the rows of each split; no text is written twice for one dataset."""
    for name, make in KINDS.items():
        folder, made = Path(__file__).parent / "data" / name, set()
        folder.mkdir(parents=True, exist_ok=True)
        for split, count in ROWS[name].items():
            writer, rows = Writer(split), []
            while len(rows) < count:
                row = make(writer)
                if row["text"] not in made:
                    made.add(row["text"])
                    rows.append(row)
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
