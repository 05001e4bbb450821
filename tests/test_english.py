"""The text that is shipped has American spelling and standard terms."""

import ast
import io
import re
import tokenize
from functools import cache
from pathlib import Path

import pytest
from pages import NOTEBOOKS, cells_of

ROOT = Path(__file__).parent.parent
NOT_YET_REVISED: tuple[str, ...] = ()

# Names that keep their spelling: of a dataset, of modules and classes, and a column of the plan.
NAMES = re.compile(r"Sentiment Labelled Sentences|\b(?:labelled|language_modelling)\.py|:(?:class|meth|func):`[^`]*`")
STEMS = """analy|authori|binari|capitali|categori|characteri|customi|discreti|equali|factori|finali|generali|initiali
|lineari|locali|materiali|maximi|memori|minimi|normali|optimi|organi|paralleli|prioriti|quanti|randomi|reali|recogni
|regulari|seriali|speciali|standardi|summari|synchroni|tokeni|utili|vectori|visuali""".replace("\n", "")
# What is not to be written, what to write in its place, and an example that has it.
RULES = [
    (rf"\w*(?:{STEMS})s(?:e[ds]?|ers?|ing|ations?)", "the spelling with z, or analyze", "It is tokenised."),
    (r"\w*(?:label|model|cancel|travel|signal)l(?:ed|ing)", "one l: labeled, modeling", "Rows are labelled."),
    (r"\w*(?:colo|behavio|neighbo|favo|hono)ur\w*", "or: color, behavior", "The behaviour is the same."),
    (r"grey|centres?|licences?|catalogues?|learnt", "gray, center, license, catalog, learned", "It is grey."),
    (r"per cent", "percent", "It costs a few per cent."),
    (r"afresh|anew", "again, newly, from the beginning", "Training starts afresh."),
    (r"aloud", "with a warning, with an error", "It fails aloud."),
    (r"mend(?:s|ed|ing)?", "fix", "Mend the row."),
    (r"t(?:ell|ells|elling|old)(?: \w+){0,5} apart", "separate, distinguish, compute per-task", "They are told apart."),
    (r"refused? by name", "raises an error that names", "Others are refused by name."),
    (r"costs? its task", "is left out of the step", "A NaN costs its task a step."),
    (r"dealt|deals? (?:rows|each)", "distribute, divide", "The sampler deals rows."),
    (r"to the bit", "bit-identical", "Weights are the same to the bit."),
    (r"(?:go|goes|going|gone|went) on (?:from|with|after|exactly)", "resume, continue", "It goes on from there."),
    (r"(?:take|takes|took|taken|taking) in (?:the|all|what)", "receive, accept", "It takes in the losses."),
    (r"ask(?:s|ed|ing)? for(?! confirmation)", "need, request, set", "The recipe asks for 300 steps."),
    (r"(?:stand|stands|stood|standing) (?:in|for|beside|behind)", "mean, replace, be in", "It stands in a file."),
    (r"(?:know|knows) no|nobody knows", "does not support, is unknown", "A layer that knows no rows."),
    (r"(?:give|gives|gave|giving) up", "fail, stop", "A solver gives up."),
    (r"lack(?:s|ed|ing)?", "have no, be missing", "A checkpoint lacks the pooler."),
    (r"drown(?:s|ed|ing)?", "dominate", "A large gradient drowns the others."),
    (
        r"(?<!there )is no (?:JSON|YAML|number|list|mapping|dataclass|task|span|text|model)",
        "is not a",
        "It is no mapping.",
    ),
]
ANY = re.compile("|".join(rf"\b(?:{pattern})\b" for pattern, _, _ in RULES), flags=re.IGNORECASE)


@cache
def shipped():
    """The lines of every file with their numbers: prose of pages, strings and comments of code."""
    pages = {*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")}
    pages |= {*ROOT.glob("examples/**/*.md"), *ROOT.glob("model_cards/**/*.md")}
    modules = [path for folder in ("hf_multitask", "examples", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    found = {}
    for path in sorted([*pages, *modules]):
        name = path.relative_to(ROOT).as_posix()
        if not name.startswith(NOT_YET_REVISED):
            text = path.read_text(encoding="utf-8")
            found[name] = prose(text) if path.suffix == ".md" else strings(text)
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):  # with the number of the line in the texts of all cells
        texts = prose("\n\n".join(cells_of(path, "markdown")))
        found[path.relative_to(ROOT).as_posix()] = texts + strings("\n\n".join(cells_of(path, "code")))
    return found


def prose(page):
    """The lines of a page without inline code, addresses, and the output of programs."""
    lines, language = [], None
    for number, line in enumerate(page.splitlines(), 1):
        if line.startswith("```"):
            language = line[3:] if language is None else None
        elif language != "":
            lines.append((number, re.sub(r"`[^`]*`|\]\([^)]*\)", "", line)))
    return lines


def strings(module):
    """The lines of literals with more than one word, and comments; a name is not text."""
    literals = [node for node in ast.walk(ast.parse(module)) if isinstance(node, ast.Constant)]
    texts = [(node.lineno, node.value) for node in literals if isinstance(node.value, str) and " " in node.value]
    lines = [(first + number, line) for first, text in texts for number, line in enumerate(text.split("\n"))]
    tokens = tokenize.generate_tokens(io.StringIO(module).readline)
    return lines + [(token.start[0], token.string) for token in tokens if token.type == tokenize.COMMENT]


def faults(line):
    if not ANY.search(line):
        return
    for pattern, better, _ in RULES:
        for found in re.finditer(rf"\b(?:{pattern})\b", NAMES.sub("", line), flags=re.IGNORECASE):
            yield f"'{found[0]}': write {better}"


def test_shipped_text_is_american_english_with_standard_terms():
    found = [
        f"{name}:{number}: {fault}"
        for name, lines in shipped().items()
        for number, line in lines
        for fault in faults(line)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(("pattern", "better", "example"), RULES)
def test_every_rule_finds_its_example_and_accepts_its_advice(pattern, better, example):
    assert list(faults(example)) and not list(faults(better)), pattern
    assert list(faults(example.upper())) and re.search(rf"\b(?:{pattern})\b", example, flags=re.IGNORECASE)


def test_text_is_found_in_pages_and_modules_and_names_are_not():
    page = "The colour `labelled`.\n```\nlabelled output\n```\n```python\n# grey\n```\n[a](licence.md)"
    assert [line for _, line in prose(page)] == ["The colour .", "# grey", "[a"]
    module = '"""A colour of it."""\nlabelled = "grey"  # learnt\nraise ValueError(f"row {labelled} is grey")\n'
    assert {line for _, line in strings(module)} == {"A colour of it.", "# learnt", "row ", " is grey"}
    names = {"README.md", "docs/training.md", "hf_multitask/cli/predict.py", "benchmarks/README.md"}
    assert {*names, "examples/notebooks/quickstart.ipynb"} <= shipped().keys()
