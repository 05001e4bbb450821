"""A Space that shows the answers of a multi-task model to a text: marked entities, labels as bars, texts.

Set MODEL, and push this folder to a Space with the Gradio SDK.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from transformers import Pipeline, pipeline

if TYPE_CHECKING:
    import gradio

MODEL = os.environ.get("MODEL", "me/out")  # the Hub id of your model, or a variable of the Space
EXAMPLES = ["Ada Lovelace loved this place.", "Never again!"]
LONGEST = 5000  # characters of a text


def load(model: str) -> Pipeline:
    """The pipeline of a model, by the code in its repository."""
    return pipeline("multitask", model=model, trust_remote_code=True)  # type: ignore[call-overload]


def shown(text: str, answer: Any) -> tuple[str, dict[str, Any]]:  # noqa: ANN401  # what a task answers
    """The Gradio component that shows an answer, and its arguments.

    Args:
        text: the input.
        answer: of one task.
    """
    values = answer if isinstance(answer, list) else [answer]
    if all(isinstance(value, dict) for value in values):
        if all({"start", "end"} <= value.keys() for value in values):
            return "HighlightedText", {"value": {"text": text, "entities": marks(values)}}
        if all("score" in value and (_name(value) is not None) for value in values):
            return "Label", {"value": {_name(value): value["score"] for value in values}}
        for value in values:
            for key, written in value.items():
                if key.endswith("text") and isinstance(written, str):
                    return "Textbox", {"value": written}
    return "JSON", {"value": answer}


def marks(spans: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Spans as Gradio marks them: in their order, without those that overlap one before them."""
    found: list[dict[str, Any]] = []
    for span in sorted(spans, key=lambda span: (span["start"], -span["end"])):
        if span["start"] < span["end"] and (not found or span["start"] >= found[-1]["end"]):
            found.append({"entity": _name(span) or "answer", "start": span["start"], "end": span["end"]})
    return found


def _name(value: dict[str, Any]) -> str | None:
    keys = ("entity_group", "entity", "deprel", "label", "choice", "token_str")
    return next((str(value[key]) for key in keys if key in value), None)


def build(multitask: Pipeline) -> gradio.Blocks:
    """The page."""
    import gradio as gr

    with gr.Blocks(title=MODEL) as page:
        gr.Markdown(f"# {MODEL}\nOne pass of the backbone answers for all tasks.")
        box = gr.Textbox(EXAMPLES[0], label="Text", lines=3, max_length=LONGEST)
        button = gr.Button("Answer", variant="primary")
        gr.Examples(EXAMPLES, box)

        @gr.render(inputs=box, triggers=[page.load, button.click, box.submit])
        def show(text: str) -> None:
            if not text.strip():
                gr.Markdown("Enter a text.")
                return
            for task, answer in multitask(text).items():
                component, values = shown(text, answer)
                getattr(gr, component)(label=task, **values)

    return page


if __name__ == "__main__":
    build(load(MODEL)).launch()
