"""The parts of a model card that follow from the model itself: tasks, usage, and metadata."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from .aliases import Settings, Values
from .config import MultiTaskConfig
from .examples import AUDIO, CHAT, PAIR, SPOKEN, TEXT, TRANSCRIBED, Example
from .kinds import KINDS, all_kinds, reader_of

MANY = 20  # longer lists are cut, and tables of more tasks are folded
TAGS = ("hf_multitask", "multi-task-learning")

_USE = """```python
from transformers import pipeline

multitask = pipeline("multitask", model="{repository}", trust_remote_code=True)
print(multitask({text})){more}
```

The answer is a dict by task. `trust_remote_code=True` runs the code that lies beside the weights; where
`hf_multitask` is imported it is not needed."""

_WITHOUT = """{what} without the pipeline:

```python
{code}
```"""

_LOGITS = """import torch
from transformers import AutoModel, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{repository}", trust_remote_code=True)
model = AutoModel.from_pretrained("{repository}", trust_remote_code=True)
tokens = tokenizer({text}, return_tensors="pt")
with torch.no_grad():
    logits = model(**tokens{arguments}).logits  # a dict by task
print({{task: tuple(tensor.shape) for task, tensor in logits.items()}})"""

_FRAMES = """import soundfile
import torch
from transformers import AutoFeatureExtractor, AutoModel

extractor = AutoFeatureExtractor.from_pretrained("{repository}")
model = AutoModel.from_pretrained("{repository}", trust_remote_code=True)
samples, rate = soundfile.read("recording.wav")  # mono, at extractor.sampling_rate
inputs = extractor(samples, sampling_rate=rate, return_tensors="pt")
with torch.no_grad():
    logits = model(**inputs).logits  # a dict by task
print({{task: tuple(tensor.shape) for task, tensor in logits.items()}})"""

_GENERATE = """from transformers import AutoModel, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{repository}", trust_remote_code=True)
model = AutoModel.from_pretrained("{repository}", trust_remote_code=True)
tokens = {tokens}
written = model.generate(tokens["input_ids"], tokens["attention_mask"], task="{task}", max_new_tokens=50)
print(tokenizer.batch_decode(written, skip_special_tokens=True))"""

_TRANSCRIBE = """import soundfile
from transformers import AutoModel, AutoProcessor

processor = AutoProcessor.from_pretrained("{repository}")
model = AutoModel.from_pretrained("{repository}", trust_remote_code=True)
samples, rate = soundfile.read("recording.wav")  # mono, at the rate of processor.feature_extractor
inputs = processor(audio=samples, sampling_rate=rate, return_tensors="pt")
written = model.generate(**inputs, task="{task}", max_new_tokens=30)
print(processor.batch_decode(written, skip_special_tokens=True))"""

# How Transformers' push_to_hub of a model begins the card that it makes up where the repository has none.
_BLANK = "This is the model card of a 🤗 transformers model that has been pushed on the Hub."


def is_hub_id(name: str | None) -> bool:
    """Whether a name can be that of a repository on the Hub: neither a folder here nor weights of a wheel."""
    return bool(name and re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name)) and not Path(str(name)).exists()


def hub_task(config: MultiTaskConfig) -> str | None:
    """What the Hub calls the type of the first task whose type it knows."""
    return next((name for task in config.tasks if (name := hub_name(task["type"])) is not None), None)


def hub_name(kind: str) -> str | None:
    """What the Hub calls a type; None where it does not know it."""
    return KINDS[kind].hub if kind in KINDS else None


def languages_of(config: MultiTaskConfig) -> list[str]:
    """Codes, as ``en``, of the languages that tasks name, in their order."""
    codes = [task.get(key) for task in config.tasks for key in ("language", "source_lang", "target_lang")]
    found = [re.match(r"[a-z]{2,3}(?=[_-]|$)", str(code).lower()) for code in codes if code]
    return list(dict.fromkeys(match[0] for match in found if match))


def metadata_of(config: MultiTaskConfig) -> Values:
    """The metadata of a card that follow from a model's configuration; what is not known is None."""
    backbone = config.backbone_config.name_or_path
    return {
        "library_name": "transformers",
        "pipeline_tag": hub_task(config),
        "base_model": backbone if is_hub_id(backbone) else None,
        "language": languages_of(config) or None,
        "tags": list(TAGS),
    }


def introduction(config: MultiTaskConfig, name: str) -> str:
    """Title and first sentence."""
    family, backbone, count = config.backbone_config.model_type, config.backbone_config.name_or_path, len(config.tasks)
    of = f", [{backbone}](https://huggingface.co/{backbone})," if is_hub_id(backbone) else ""
    tasks = "one task" if count == 1 else f"{count} tasks"
    text = f"A `{family}` backbone{of} with a head for {tasks}, fine-tuned with `hf_multitask`.{_branches(config)}"
    return f"# {name}\n\n{text}"


def _branches(config: MultiTaskConfig) -> str:
    """A sentence about the branches of a model; nothing where all tasks share all layers."""
    if not config.branches or len(config.branches) == 1:
        return ""
    layers = "top layer" if config.branch_layers == 1 else f"{config.branch_layers} top layers"
    named = [f"{name} ({', '.join(own)})" if own != [name] else name for name, own in config.branches.items()]
    return f" Groups of tasks have copies of the {layers} of their own: {', '.join(named)}."


def markdown_table(rows: Sequence[Sequence[str]], fold: str | None = None) -> str:
    """Rows as a Markdown table, the first as its head; folded away under a line of text where one is given."""
    lines = ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows]
    lines.insert(1, "|" + "---|" * len(rows[0]))
    table = "\n".join(lines)
    return f"<details>\n<summary>{fold}</summary>\n\n{table}\n\n</details>" if fold else table


def as_code(text: object) -> str:
    """A text as a code span of one line."""
    line = " ".join(str(text).split())
    ticks = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    return f"{ticks} {line} {ticks}" if "`" in line or not line else f"{ticks}{line}{ticks}"


def task_table(config: MultiTaskConfig, measured: Mapping[str, Mapping[str, str]]) -> str:
    """Tasks, types and label names.

    Args:
        config: of the model.
        measured: further columns, each by task.
    """
    rows = [["task", "type", "labels", *measured]]
    for task in config.tasks:
        names = task.get("label_names") or []
        labels = ", ".join(map(as_code, names[:MANY])) + (f", ... ({len(names):,} in all)" if names[MANY:] else "")
        rows.append(
            [task["name"], task["type"], labels or "-", *(of.get(task["name"], "-") for of in measured.values())]
        )
    return markdown_table(rows, f"{len(config.tasks):,} tasks" if len(config.tasks) > MANY else None)


def usage(config: MultiTaskConfig, repository: str) -> str:
    """Code that asks the model, through the pipeline and without."""
    by_example: dict[Example, list[Settings]] = {}
    for task in config.tasks:
        by_example.setdefault(reader_of(task).example_of(task), []).append(task)
    known = dict.fromkeys(example for kind in all_kinds() for example in kind.reader.examples)
    order = sorted(by_example, key=[*(one for one in known if one is not SPOKEN), SPOKEN].index)
    first, readers = order[0], by_example[order[0]]
    apart = [example for example in (SPOKEN, CHAT) if example in order[1:]]
    written = next((example for example in order if example.writes and example not in apart), first)
    more = "".join(f"\nprint(multitask({example.asked}))" for example in apart)
    parts = [_USE.format(repository=repository, text=(first if first is PAIR else written).asked, more=more)]
    names = [task["name"] for task in readers]
    if first is AUDIO:
        parts.append(_WITHOUT.format(what="Logits", code=_FRAMES.format(repository=repository)))
    elif first is TRANSCRIBED:
        code = _TRANSCRIBE.format(repository=repository, task=names[0])
        parts.append(_WITHOUT.format(what="A transcript", code=code))
    elif not first.writes:
        arguments = "" if len(order) == 1 else f", tasks={json.dumps(names)}"
        if first.rows > 1:
            rows = ", ".join(f'"{name}": torch.tensor([{list(range(first.rows))}])' for name in names)
            arguments += f", task_rows={{{rows}}}"
        code = _LOGITS.format(repository=repository, text=first.tokens, arguments=arguments)
        parts.append(_WITHOUT.format(what="Logits", code=code))
    elif first is not SPOKEN and not readers[0].get("target_lang"):  # whose code the pipeline sets
        text = json.dumps((readers[0].get("prefix") or "") + TEXT, ensure_ascii=False)
        tokens = f'tokenizer({text}, return_tensors="pt")'
        if first is CHAT:
            tokens = f'tokenizer.apply_chat_template({first.tokens}, add_generation_prompt=True, return_tensors="pt")'
        code = _GENERATE.format(repository=repository, tokens=tokens, task=names[0])
        parts.append(_WITHOUT.format(what="A text", code=code))
    return "\n\n".join(parts)


def describe_pushed(folder: str | Path, repository: str, config: MultiTaskConfig) -> None:
    """Write a card in place of the blank one that ``push_to_hub`` of a model makes up; any other card stays."""
    path = Path(folder) / "README.md"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if _BLANK not in text:
        return
    given = [line for line in text.removeprefix("---\n").partition("\n---\n")[0].splitlines() if line[:1] != "#"]
    there = {line.partition(":")[0] for line in given}
    front = [_yaml(key, value) for key, value in metadata_of(config).items() if value and key not in there]
    parts = [
        "\n".join(["---", *front, *given, "---"]),
        introduction(config, repository.rpartition("/")[2]),
        "## Tasks",
        task_table(config, {}),
        "## Use",
        usage(config, repository),
    ]
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _yaml(key: str, value: str | list[str]) -> str:
    return f"{key}: {value}" if isinstance(value, str) else "\n- ".join([f"{key}:", *value])
