"""Writes `data/` beside this file: English sentences with their German translations, to train on.

The sentences are made of a number, a noun, a verb and what surrounds them. If `HF_MULTITASK_DATA` names a folder with
the dataset `multi30k_en_de`, its captions are taken instead.
"""

import json
import os
import random
from pathlib import Path

ROWS = {"train": 2000, "validation": 200, "test": 200}
NUMBERS = {
    "zero": "null", "one": "ein", "two": "zwei", "three": "drei", "four": "vier",
    "five": "fünf", "six": "sechs", "seven": "sieben", "eight": "acht", "nine": "neun",
}  # fmt: skip
NOUNS = (  # one and several in English, one and several in German, ending of an adjective before one of them
    ("dog", "dogs", "Hund", "Hunde", "er"),
    ("cat", "cats", "Katze", "Katzen", "e"),
    ("horse", "horses", "Pferd", "Pferde", "es"),
    ("bird", "birds", "Vogel", "Vögel", "er"),
    ("child", "children", "Kind", "Kinder", "es"),
    ("woman", "women", "Frau", "Frauen", "e"),
    ("man", "men", "Mann", "Männer", "er"),
    ("boy", "boys", "Junge", "Jungen", "er"),
    ("girl", "girls", "Mädchen", "Mädchen", "es"),
    ("teacher", "teachers", "Lehrer", "Lehrer", "er"),
)
ADJECTIVES = {
    "small": "klein", "big": "groß", "old": "alt", "young": "jung",
    "tired": "müd", "quiet": "ruhig", "hungry": "hungrig", "friendly": "freundlich",
}  # fmt: skip
VERBS = (  # as nouns
    ("sits", "sit", "sitzt", "sitzen"),
    ("stands", "stand", "steht", "stehen"),
    ("sleeps", "sleep", "schläft", "schlafen"),
    ("waits", "wait", "wartet", "warten"),
    ("plays", "play", "spielt", "spielen"),
    ("runs", "run", "läuft", "laufen"),
    ("eats", "eat", "isst", "essen"),
    ("lies", "lie", "liegt", "liegen"),
)
PLACES = {
    "in the garden": "im Garten", "on the street": "auf der Straße", "in front of the house": "vor dem Haus",
    "under the tree": "unter dem Baum", "at the station": "am Bahnhof", "on the beach": "am Strand",
    "behind the school": "hinter der Schule", "in the park": "im Park",
}  # fmt: skip
TIMES = {"": "", "today": "heute", "every morning": "jeden Morgen", "in the evening": "am Abend"}


def pair(draw: random.Random) -> dict[str, str]:
    """A sentence and its translation, in which the verb comes second: behind a time, before the subject."""
    number, noun, adjective = draw.choice([*NUMBERS]), draw.choice(NOUNS), draw.choice([*ADJECTIVES])
    verb, place, time = draw.choice(VERBS), draw.choice([*PLACES]), draw.choice([*TIMES])
    several = number != "one"
    subject = f"{number} {adjective} {noun[several]}"
    amount = NUMBERS[number] + ("e" if number == "one" and noun[4] == "e" else "")
    subjekt = f"{amount} {ADJECTIVES[adjective]}{'e' if several else noun[4]} {noun[2 + several]}"
    source = [time, subject, verb[several], place]
    target = [subjekt, verb[2 + several]] if not time else [TIMES[time], verb[2 + several], subjekt]
    return {"source": " ".join(source).strip(), "target": " ".join([*target, PLACES[place]])}


def captions(folder: Path, split: str, count: int) -> list[dict[str, str]]:
    """The first pairs of a split of `multi30k_en_de`."""
    lines = (folder / "multi30k_en_de" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()[:count]
    return [{name: json.loads(line)[name] for name in ("source", "target")} for line in lines]


def main() -> None:
    """Write the sentences of each split; none is in two of them."""
    draw, made, folder = random.Random(0), set(), Path(__file__).parent / "data"
    given = os.environ.get("HF_MULTITASK_DATA")
    folder.mkdir(exist_ok=True)
    for split, count in ROWS.items():
        rows = captions(Path(given), split, count) if given else []
        while len(rows) < count and not given:
            row = pair(draw)
            if row["source"] not in made:
                made.add(row["source"])
                rows.append(row)
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
