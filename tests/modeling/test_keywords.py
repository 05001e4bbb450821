"""Every keyword of the model, of generate and of the pipeline is read, or refused with what to give instead."""

import inspect

import pytest
import torch
import transformers
from reading import TASKS
from tiny import ALL, NER_LABELS
from transformers import AutoTokenizer, pipeline

from hf_multitask import SequenceClassification, TokenClassification
from hf_multitask.modeling import MultiTaskPipeline

SENTIMENT = SequenceClassification(label_names=["negative", "positive"])
NER = TokenClassification(label_names=NER_LABELS)


@pytest.fixture
def build(build_model, backbone_path):
    """A model of a family with its tokenizer and the tokens of two texts."""

    def make(family="bert", **kwargs):
        tokenizer = AutoTokenizer.from_pretrained(backbone_path(family))
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        model = build_model(family, **{"tasks": {"sentiment": SENTIMENT}, **kwargs}).eval()
        model.set_pad_token_id(tokenizer.pad_token_id)
        return model, tokenizer, dict(tokenizer(["A fine place.", "No."], padding=True, return_tensors="pt"))

    return make


@pytest.mark.parametrize("family", ALL)
def test_model_gives_the_states_of_its_backbone_and_refuses_what_it_does_not_take(family, build):
    model, _, inputs = build(family, attn_implementation="eager", pooling="mean" if family == "marian" else "native")
    config = model.config.backbone_config.get_text_config()
    layers = getattr(config, "encoder_layers", None) or config.num_hidden_layers
    output = model(**inputs, output_hidden_states=True, output_attentions=True)
    assert len(output.hidden_states) == layers + 1 and len(output.attentions) == layers
    assert {one.shape[:2] for one in output.hidden_states} == {inputs["input_ids"].shape}
    plain = model(**inputs)
    assert plain.hidden_states is None and plain.attentions is None
    torch.testing.assert_close(plain.logits["sentiment"], output.logits["sentiment"])
    logits, states = model(**inputs, output_hidden_states=True, return_dict=False)
    assert logits.keys() == plain.logits.keys() and torch.equal(states[-1], output.hidden_states[-1])
    for name in ("label", "task", "batchsize", "position_id", "decoder_input_ids", "use_cache"):
        with pytest.raises(TypeError, match=rf"model\(\.\.\.\) takes no argument '{name}'\. (Did you mean|It takes)"):
            model(**inputs, **{name: None})
    with pytest.raises(TypeError, match=r"takes no argument 'label'\. Did you mean 'labels'"):
        model(**inputs, label=torch.tensor([0, 1]))


def test_position_ids_are_read_and_types_of_tokens_left_out_where_there_are_none(build):
    model, _, inputs = build("distilbert")
    expected = model(**inputs).logits["sentiment"]
    other = torch.arange(inputs["input_ids"].shape[1]).flip(0).unsqueeze(0)
    assert not torch.allclose(model(**inputs, position_ids=other).logits["sentiment"], expected)
    # As in training and in the pipeline, which leave out what a tokenizer makes and the backbone does not take.
    types = torch.ones_like(inputs["input_ids"])
    torch.testing.assert_close(model(**inputs | {"token_type_ids": types}).logits["sentiment"], expected)


def test_states_that_are_not_there_are_refused(build):
    model, _, inputs = build("bert", attn_implementation="sdpa")
    with pytest.raises(ValueError, match=r"gives no attentions with attn_implementation='sdpa'\..*load .*='eager'"):
        model(**inputs, output_attentions=True)
    model.config.output_hidden_states = True  # as from_pretrained(..., output_hidden_states=True) sets it
    assert len(model(**inputs).hidden_states) == 3


def test_states_that_differ_by_task_are_given_for_one_task(build):
    pytest.importorskip("peft", reason="the extra 'peft' is not installed")
    tasks = {"sentiment": SENTIMENT, "ner": NER}
    model, _, inputs = build(tasks=tasks, task_lora={"r": 2})
    for layer in model.modules():  # fresh adapters change nothing
        if hasattr(layer, "lora_B"):
            for name, part in layer.lora_B.items():
                torch.nn.init.normal_(part.weight, generator=torch.Generator().manual_seed(len(name)))
    with pytest.raises(ValueError, match=r"differ by task.* one task in `tasks`"):
        model(**inputs, output_hidden_states=True)
    with pytest.raises(ValueError, match=r"no `task_rows`"):
        model(**inputs, output_hidden_states=True, task_rows={"ner": torch.tensor([1])})
    first, second = (model(**inputs, tasks=[name], output_hidden_states=True).hidden_states for name in tasks)
    assert not torch.allclose(first[-1], second[-1])
    shared, _, _ = build(tasks=tasks, lora={"r": 2})
    assert len(shared(**inputs, output_hidden_states=True).hidden_states) == 3


@pytest.mark.slow
def test_compiled_model_reads_and_refuses_the_same(build):
    model, _, inputs = build()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        expected = model(**inputs, output_hidden_states=True)  # Transformers installs what collects states first
        states = compiled(**inputs, output_hidden_states=True).hidden_states
        torch.testing.assert_close(states, expected.hidden_states)
        with pytest.raises(torch._dynamo.exc.Unsupported):
            compiled(**inputs, label=None)


def test_generate_knows_its_arguments(build):
    model, _, inputs = build("bart", tasks={"t": TASKS["translation"]()})
    assert model.generate(inputs["input_ids"], task="t", max_new_tokens=3, do_sample=False).shape[1] <= 4
    for name, match in [
        ("max_new_token", "Did you mean 'max_new_tokens'"),
        ("tasks", "in `task`"),
        ("zzz", "It takes"),
    ]:
        with pytest.raises(TypeError, match=rf"generate\(\.\.\.\) takes no argument '{name}'\. .*{match}"):
            model.generate(inputs["input_ids"], task="t", **{name: 5})


@pytest.fixture
def multitask(build):
    def make(family="bert", heads=None, **kwargs):
        model, tokenizer, _ = build(family, tasks=heads or {"sentiment": SENTIMENT, "ner": NER})
        return pipeline("multitask", model=model, tokenizer=tokenizer, **kwargs)

    return make


REFUSED = {
    "task": "Did you mean 'tasks'",
    "batchsize": "Did you mean 'batch_size'",
    "top_k": "logits",
    "threshold": "scores of the answer",
    "stride": "option of the task",
    "aggregation_strategy": "span tags",
    "max_new_tokens": r"generate_kwargs=\{\.\.\.\}",
    "num_beams": r"generate_kwargs=\{\.\.\.\}",
    "do_sample": r"generate_kwargs=\{\.\.\.\}",
    "cache_dir": "model_kwargs",
    "zzz": "It takes tasks, generate_kwargs, chunk_length_s, stride_length_s, truncate_dim, batch_size, num_workers",
}


@pytest.mark.parametrize(("name", "match"), REFUSED.items())
def test_pipeline_refuses_what_it_does_not_read(name, match, multitask):
    pipe = multitask()
    message = rf"The multitask pipeline takes no argument '{name}'\. .*{match}"
    for inputs in ("A fine place.", ["A fine place."], [], iter(["A fine place."])):
        with pytest.raises(TypeError, match=message):
            pipe(inputs, **{name: 1})
    if name != "task":  # of which there are two with pipeline("multitask", ...) itself
        with pytest.raises(TypeError, match=message):
            multitask(**{name: 1})


def test_pipeline_refuses_what_other_pipelines_of_transformers_take_in_their_calls(multitask):
    """No name of theirs is read in silence: what they sanitise is refused here, or is one of ours."""
    pipe = multitask()
    names = set()
    for name in ("TextClassificationPipeline", "TokenClassificationPipeline", "FillMaskPipeline"):
        names |= set(inspect.signature(getattr(transformers, name)._sanitize_parameters).parameters)
    names -= {"self", "kwargs", "tokenizer_kwargs"}
    assert {"top_k", "function_to_apply"} <= names
    for name in names:
        with pytest.raises(TypeError, match=f"takes no argument '{name}'"):
            pipe("A fine place.", **{name: 1})


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"tasks": "nope"}, ValueError, "The model has no task 'nope'; it has sentiment, ner"),
        ({"tasks": ["ner", "sentimnet"]}, ValueError, "no task 'sentimnet'.* Did you mean 'sentiment'"),
        ({"tasks": []}, ValueError, r"`tasks` should be a list of one task name or more\. Found `tasks = \[\]`"),
        ({"tasks": [1]}, ValueError, r"`tasks` should be a list of one task name"),
        ({"tasks": 1}, ValueError, r"`tasks` should be a list of one task name"),
        ({"batch_size": 0}, ValueError, "`batch_size` should be a whole number of 1 or more. Found `batch_size = 0`"),
        ({"batch_size": "8"}, ValueError, "`batch_size` should be a whole number"),
        ({"batch_size": True}, ValueError, "`batch_size` should be a whole number"),
        ({"num_workers": -1}, ValueError, "`num_workers` should be a whole number of 0 or more"),
        ({"generate_kwargs": {"num_beams": 2}}, ValueError, "for tasks that write, and the model has none"),
        ({"generate_kwargs": 5}, TypeError, "`generate_kwargs` should be a dict"),
    ],
)
def test_values_that_cannot_be_are_refused_when_built_and_when_called(given, error, message, multitask):
    with pytest.raises(error, match=message):
        multitask(**given)
    pipe = multitask()
    for inputs in ("A fine place.", ["A fine place."], []):
        with pytest.raises(error, match=message):
            pipe(inputs, **given)


def test_arguments_of_generation_reach_it(multitask):
    pipe = multitask("bart", heads={"t": TASKS["translation"]()})
    assert pipe("A fine place.", generate_kwargs={"max_new_tokens": 1}) == {"t": {"generated_text": ""}}
    assert pipe("A fine place.", generate_kwargs={"max_new_tokens": 9, "min_new_tokens": 8})["t"]["generated_text"]
    with pytest.raises(
        TypeError, match=r"`generate_kwargs` takes no argument 'max_new_token'\. Did you mean 'max_new_tok"
    ):
        pipe("A fine place.", generate_kwargs={"max_new_token": 1})


def test_kind_of_the_pipeline_is_no_task_of_the_model(build):
    model, tokenizer, _ = build()
    with pytest.raises(ValueError, match=r"`task` is the kind of the pipeline.* give tasks=\['sentiment'\]"):
        MultiTaskPipeline(model=model, tokenizer=tokenizer, task="sentiment")


def test_no_input_has_no_answer(multitask):
    pipe = multitask()
    assert pipe([]) == [] and pipe(()) == [] and list(pipe(iter([]))) == []
    assert list(pipe(text for text in ())) == []
    assert list(pipe(text for text in ("A.", "B C."))) == pipe(["A.", "B C."])
    assert list(pipe(map(str, [1, 22]), batch_size=2)) == pipe(["1", "22"], batch_size=2)


@pytest.mark.parametrize("wrong", [7, None, ["a", 7], {"text": 7}, {"txt": "a"}, b"a", {"text": None}])
def test_wrong_input_is_named_by_its_place(wrong, multitask):
    pipe = multitask()
    inputs = ["A fine place.", "A much longer text stands before it, and is read first.", wrong, "No."]
    for batch_size in (1, 3):
        with pytest.raises(ValueError, match=r"^inputs\[2\]: (a text should be|An input should be)") as caught:
            pipe(inputs, batch_size=batch_size)
        assert caught.value.place == 2 and "inputs" not in caught.value.reason
        with pytest.raises(ValueError, match=r"^inputs\[2\]: (a text should be|An input should be)"):
            list(pipe(iter(inputs), batch_size=batch_size))
    with pytest.raises((ValueError, TypeError), match=r"^(a text should be|An input should be)"):
        pipe(wrong) if not isinstance(wrong, list) else pipe({"text": wrong})


def test_what_pipeline_itself_reads_is_no_unknown_argument(multitask, tmp_path):
    multitask().save_pretrained(tmp_path)
    pipe = pipeline("multitask", model=str(tmp_path), local_files_only=True, dtype=torch.float32, device="cpu")
    assert pipe("A fine place.", tasks="sentiment").keys() == {"sentiment"}
