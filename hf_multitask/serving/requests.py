"""The body of a request to ``/predict``, and its inputs as the pipeline takes them."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from ..modeling.aliases import Open, Settings, Values
from .served import Item, ServedPipeline, characters
from .settings import CHARACTERS, TOKENS

_SAID = 500  # characters of a message, which may repeat the input

# Arguments of `generate` that a client may give, with the largest value where one costs memory or time.
GENERATION: dict[str, int | None] = {
    "max_new_tokens": 1024,
    "num_beams": 16,
    **dict.fromkeys(("min_new_tokens", "do_sample", "temperature", "top_k", "top_p", "early_stopping")),
    **dict.fromkeys(("repetition_penalty", "length_penalty", "no_repeat_ngram_size")),
}
PARAMETERS = ("tasks", "generate_kwargs", "chunk_length_s", "stride_length_s")


class Refused(Exception):
    """A request that is not answered.

    Args:
        status: of the response.
        reason: in a sentence.
        place: the field at fault, from the body on; empty where it is none.
        headers: of the response.
    """

    def __init__(
        self, status: int, reason: str, place: Sequence[str | int] = (), headers: Mapping[str, str] | None = None
    ) -> None:
        reason = reason if len(reason) <= _SAID else f"{reason[: _SAID - 4]} ..."
        super().__init__(reason)
        self.status, self.reason, self.place, self.headers = status, reason, list(place), dict(headers or {})

    @property
    def detail(self) -> Open:
        """The ``detail`` of the response, as FastAPI has it: a list by field, or a sentence."""
        return [{"loc": self.place, "msg": self.reason, "type": "value_error"}] if self.place else self.reason


class Question(BaseModel):
    """The body of a request."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"inputs": ["Ada Lovelace loved this place.", "Never again!"]}]},
    )

    inputs: Any = Field(
        description="A text, or a list of texts, or whatever the pipeline takes in place of a text: "
        '{"text": ..., "text_pair": ...}, {"tokens": [...]}, {"question": ..., "context": ...}, '
        '{"question": ..., "choices": [...]}; of recordings, a file in base64, or '
        '{"array": [...], "sampling_rate": ...}.'
    )
    tasks: Annotated[list[str] | None, BeforeValidator(lambda given: [given] if isinstance(given, str) else given)] = (
        Field(None, description="Names of the tasks that answer; all that accept the input if left out.")
    )
    parameters: dict[str, Any] | None = Field(
        None, description=f"Arguments of the pipeline: {', '.join(PARAMETERS)}; of generate: {', '.join(GENERATION)}."
    )


def parsed(body: bytes) -> Question:
    """A body as a question.

    Raises:
        Refused: it is not JSON in UTF-8, or a field is missing, unknown or of another type.
    """
    try:
        return Question.model_validate_json(body)
    except ValidationError as problem:
        first = problem.errors(include_url=False, include_context=False, include_input=False)[0]
        if first["type"] == "json_invalid":
            raise Refused(422, f"The body is not JSON in UTF-8: {first['msg']}.", ["body"]) from None
        raise Refused(422, f"{first['msg']}.", ["body", *first["loc"]]) from None


def arguments_of(pipeline: ServedPipeline, question: Question) -> Values:
    """The arguments of the pipeline that a question has.

    Raises:
        Refused: one is unknown or cannot be used.
    """
    given = dict(question.parameters or {})
    for name in given:
        if name not in PARAMETERS:
            raise Refused(
                422, f"There is no parameter '{name}'. They are {', '.join(PARAMETERS)}.", ["body", "parameters", name]
            )
    place = ["body", "tasks"] if question.tasks is not None else ["body", "parameters", "tasks"]
    if question.tasks is not None and given.get("tasks") is not None:
        raise Refused(422, "Name the tasks in `tasks` or in `parameters`, not in both.", place)
    asked = {"tasks": question.tasks if question.tasks is not None else given.pop("tasks", None)}
    given.pop("tasks", None)
    _check(pipeline, {name: value for name, value in asked.items() if value is not None}, place)
    if given.get("generate_kwargs") is not None:
        _check_generation(given["generate_kwargs"])
    _check(pipeline, given, ["body", "parameters"])
    return {name: value for name, value in (asked | given).items() if value is not None}


def _check(pipeline: ServedPipeline, asked: Values, place: list[str]) -> None:
    try:
        pipeline.check(asked)
    except (ValueError, TypeError) as problem:
        named = [name for name in asked if place == ["body", "parameters"] and f"`{name}`" in str(problem)]
        raise Refused(422, str(problem), [*place, *named[:1]]) from None


def _check_generation(given: object) -> None:
    place = ["body", "parameters", "generate_kwargs"]
    if not isinstance(given, dict):
        raise Refused(422, "`generate_kwargs` should be an object with arguments of generate.", place)
    for name, value in given.items():
        if name not in GENERATION:
            raise Refused(422, f"There is no argument '{name}'. They are {', '.join(GENERATION)}.", [*place, name])
        if not isinstance(value, int | float):
            raise Refused(422, f"`{name}` should be a number or a boolean. Found {value!r}.", [*place, name])
        most = GENERATION[name]
        if most is not None and (isinstance(value, float) or not 1 <= value <= most):
            raise Refused(422, f"`{name}` should be between 1 and {most}. Found {value!r}.", [*place, name])


def inputs_of(pipeline: ServedPipeline, question: Question, most: int) -> list[object]:
    """The inputs of a question, each within the limits.

    Raises:
        Refused: an input is too long, there are too many, or a recording is not in base64.
    """
    several = isinstance(question.inputs, list)
    inputs = question.inputs if several else [question.inputs]
    if len(inputs) > most:
        raise Refused(413, f"A request has at most {most} inputs. Found {len(inputs)}. Divide it.")
    hears, only = pipeline.hears, pipeline.only_hears
    found: list[object] = []
    for number, value in enumerate(inputs):
        place = place_of(question, number)
        value = heard(value, hears, only, place) if hears else value
        if (count := characters(value)) > CHARACTERS:
            raise Refused(413, f"An input has at most {CHARACTERS} characters. Found {count}. Divide it.", place)
        found.append(value)
    return found


def place_of(question: Question, number: int) -> list[str | int]:
    """The field of an input."""
    return ["body", "inputs", number] if isinstance(question.inputs, list) else ["body", "inputs"]


def heard(value: object, keys: Sequence[str], only: bool, place: Sequence[str | int]) -> object:
    """An input with recordings as bytes: a client names no file of the server.

    Raises:
        Refused: a recording is a path, or not in base64.
    """
    if isinstance(value, Mapping):
        if value.get("path") is not None:
            raise Refused(422, "A recording has no path here. Send the file in base64.", [*place, "path"])
        inner = [*keys, "bytes"]
        return {key: heard(one, [], key in inner, [*place, key]) if key in inner else one for key, one in value.items()}
    if not isinstance(value, str) or not only:
        return value
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise Refused(422, "A recording should be a file in base64, or its samples and rate.", place) from None


def read(pipeline: ServedPipeline, question: Question, inputs: Sequence[object], asked: Settings) -> list[Item]:
    """The inputs of a question, tokenized.

    Raises:
        Refused: one cannot be used, or has too many tokens.
    """
    items = []
    for number, value in enumerate(inputs):
        place = place_of(question, number)
        try:
            item = pipeline.item(value, dict(asked))
        except (ValueError, TypeError) as problem:
            raise Refused(422, str(problem), place) from None
        if (cost := len(item.lengths) * max(item.lengths)) > TOKENS:
            raise Refused(413, f"An input has at most {TOKENS} tokens with padding. Found {cost}. Divide it.", place)
        items.append(item)
    return items
