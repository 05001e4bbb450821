"""Heads on speech encoders: those of the stock classes, whatever the padding."""

import json
import re

import numpy as np
import pytest
import torch
from parameters import few
from sounds import COMMON, FAMILIES, LETTERS, RATE, SPEAKERS, batch_of, extractor, recordings, save_encoder, wav
from transformers import AutoModelForAudioClassification, AutoModelForCTC, pipeline

from hf_multitask import (
    AudioClassification,
    AutomaticSpeechRecognition,
    MultiTaskModel,
    MultiTaskPipeline,
    SequenceClassification,
)
from hf_multitask.modeling.description import metadata_of, usage
from hf_multitask.modeling.kinds import kind_of
from hf_multitask.modeling.speech import PAD, written

VOCABULARY = [PAD, *LETTERS]
GROUP = {"feat_extract_norm": "group", "do_stable_layer_norm": False}


def tasks():
    return {
        "speaker": AudioClassification(label_names=list(SPEAKERS)),
        "text": AutomaticSpeechRecognition(vocabulary=VOCABULARY),
    }


@pytest.fixture
def build(tmp_path):
    def make(family="wav2vec2", own=None, pooling="native", branches="none", **options):
        path = save_encoder(tmp_path / "encoder", family, **options)
        torch.manual_seed(1)
        return MultiTaskModel.from_backbone(path, tasks=own or tasks(), pooling=pooling, branches=branches).eval()

    return make


@pytest.mark.parametrize("family", few(FAMILIES, ["wav2vec2"]))
def test_speakers_and_transcripts_have_branches_of_their_own(family, build):
    model, batch = build(family, branches={"who": ["speaker"], "what": ["text"]}), batch_of(recordings(5))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".branches." in name:
                weight += 0.1 * torch.randn_like(weight)
        both = model(**batch, task_rows={"speaker": torch.tensor([0, 2]), "text": torch.tensor([4, 2, 1])}).logits
        for name, rows in (("speaker", [0, 2]), ("text", [4, 2, 1])):
            alone = model(**batch, tasks=[name]).logits[name][rows]
            torch.testing.assert_close(both[name], alone, rtol=0, atol=1e-5)
    stock = model.task_model("speaker").state_dict()
    assert not any("branches" in name for name in stock)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_exported_task_is_the_stock_class_with_equal_logits(family, build, tmp_path):
    reads_padding = family == "data2vec-audio"  # the stock class, unlike ours
    model, batch = build(family), batch_of(recordings(5, equal=1200 if reads_padding else None))
    with torch.no_grad():
        logits = model(**batch).logits
    for name, auto_class in (("speaker", AutoModelForAudioClassification), ("text", AutoModelForCTC)):
        model.export_task(name, tmp_path / name, extractor())
        stock = auto_class.from_pretrained(tmp_path / name).eval()
        assert type(stock).__module__.startswith("transformers.")
        with torch.no_grad():
            theirs = stock(**batch).logits
        if name == "text":
            there = stock._get_feature_vector_attention_mask(theirs.shape[1], batch["attention_mask"])
            assert torch.equal(theirs[there], logits[name][there]) and bool(there.all()) == reads_padding
            assert (logits[name].softmax(-1)[~there] == torch.eye(4)[0]).all()  # of padding
        else:
            assert torch.equal(theirs, logits[name])
    assert stock.config.pad_token_id == 0 and stock.config.vocab_size == 4


def test_the_stock_pipelines_answer_as_the_pipeline_does(build, tmp_path):
    model, rows = build(), recordings(6)
    pipe = MultiTaskPipeline(model=model, feature_extractor=extractor())
    for name, kind in (("speaker", "audio-classification"), ("text", "automatic-speech-recognition")):
        model.export_task(name, tmp_path / name, extractor())
        stock = pipeline(kind, str(tmp_path / name))
        card = (tmp_path / name / "README.md").read_text()
        assert f"pipeline_tag: {kind}" in card and 'answer("recording.wav")' in card
        for row in rows:
            ours, theirs = pipe(row["audio"])[name], stock(np.asarray(row["audio"]["array"], np.float32))
            if name == "text":
                assert ours == theirs
            else:
                best = max(theirs, key=lambda one: one["score"])
                assert ours["label"] == best["label"] and ours["score"] == pytest.approx(best["score"], abs=1e-6)


def test_the_exported_tokenizer_writes_what_the_decoder_writes(build, tmp_path):
    own = {"text": AutomaticSpeechRecognition(vocabulary=[" ", "a", PAD, "!", "é"])}
    model = build(own=own)
    model.export_task("text", tmp_path / "text", extractor())
    from transformers import AutoProcessor

    tokenizer = AutoProcessor.from_pretrained(tmp_path / "text").tokenizer
    symbols = [2, 1, 1, 2, 1, 0, 2, 4, 3, 3, 2, 0]
    assert tokenizer.decode(symbols) == written(symbols, own["text"].vocabulary) == "aa é!"
    assert len(tokenizer) == 5 and model.heads["text"].blank == 2
    model.set_pad_token_id(0)  # of a tokenizer of texts
    assert model.task_model("text").config.pad_token_id == 2
    own = {"text": AutomaticSpeechRecognition(vocabulary=["a", "|"])}
    with pytest.raises(ValueError, match=r"^Task 'text' is not exported: its vocabulary has the symbol '\|'"):
        build(own=own).export_task("text", tmp_path / "text", extractor())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("norm", [{}, GROUP], ids=["layer", "group"])
def test_padding_changes_no_answer_and_no_loss(family, norm, build):
    model, rows = build(family, **norm).double(), recordings(7)
    labels = {"speaker": torch.tensor([0, 1, 0, 1, 0, 1, 0])}
    ids = [[VOCABULARY.index(letter) for letter in row["text"]] for row in rows]
    padded = torch.tensor([row + [-100] * (3 - len(row)) for row in ids])
    labels["text"] = padded
    batch = batch_of(rows)
    assert not bool(batch["attention_mask"].all())
    together = model(**batch, labels=labels)
    each = [
        model(
            **batch_of([row]),
            labels={"speaker": labels["speaker"][number : number + 1], "text": torch.tensor([ids[number]])},
        )
        for number, row in enumerate(rows)
    ]
    for name in labels:
        alone = torch.stack([one.losses[name] for one in each]).mean()
        torch.testing.assert_close(together.losses[name], alone, rtol=0, atol=1e-9)
    for number, one in enumerate(each):
        torch.testing.assert_close(together.logits["speaker"][number], one.logits["speaker"][0], rtol=0, atol=1e-9)
        frames = one.logits["text"].shape[1]
        torch.testing.assert_close(together.logits["text"][number, :frames], one.logits["text"][0], rtol=0, atol=1e-9)


def test_the_stock_group_norm_sees_padding_so_that_the_test_above_can_fail(build):
    model, rows = build(**GROUP), recordings(7)
    short = min(rows, key=lambda row: len(row["audio"]["array"]))
    both = batch_of([short, max(rows, key=lambda row: len(row["audio"]["array"]))])
    alone = batch_of([short])
    with torch.no_grad():
        stock = [model.backbone(**given).last_hidden_state[0] for given in (both, alone)]
    assert (stock[0][: len(stock[1])] - stock[1]).abs().max() > 1e-3


def test_checkpointed_activations_give_the_same_gradients(build):
    rows, grads = recordings(4), []
    for on in (False, True):
        model = build(**GROUP).train()
        if on:
            getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
        model(**batch_of(rows), labels={"speaker": torch.tensor([0, 1, 0, 1])}).loss.backward()
        grads.append({name: one.grad for name, one in model.named_parameters() if one.grad is not None})
    assert grads[0].keys() == grads[1].keys() and len(grads[0]) > 20
    for name, one in grads[0].items():
        torch.testing.assert_close(grads[1][name], one, rtol=0, atol=1e-6, msg=name)


def test_the_loss_of_a_transcript_is_that_of_the_stock_class(build):
    model, rows = build(), recordings(5)
    ids = [[VOCABULARY.index(letter) for letter in row["text"]] for row in rows]
    labels = torch.tensor([row + [-100] * (3 - len(row)) for row in ids])
    stock, batch = model.task_model("text"), batch_of(rows)
    ours = model(**batch, tasks=["text"], labels={"text": labels}).loss
    torch.testing.assert_close(ours, stock(**batch, labels=labels).loss, rtol=0, atol=1e-6)


def test_half_precision_takes_samples_in_float32(build):
    model = build().to(torch.bfloat16)
    logits = model(**batch_of(recordings(2))).logits
    assert logits["speaker"].dtype == torch.bfloat16 and torch.isfinite(logits["speaker"]).all()


def test_repetitions_blanks_and_spaces():
    vocabulary = [PAD, " ", "a", "b"]
    assert written([0, 1, 2, 2, 0, 2, 1, 1, 0, 1, 3, -100, -100], vocabulary) == "aa b"
    assert written([], vocabulary) == written([0, 0], vocabulary) == ""


def test_the_pipeline_takes_files_bytes_and_arrays(build, tmp_path):
    model, row = build(), recordings(1)[0]
    path, samples = tmp_path / "one.wav", np.asarray(row["audio"]["array"], np.float32)
    path.write_bytes(wav(samples, subtype="FLOAT"))
    pipe = MultiTaskPipeline(model=model, feature_extractor=extractor())
    forms = [str(path), path.read_bytes(), samples, row["audio"], {"audio": str(path)}, {"raw": samples, "sampling_rate": RATE}, {"path": str(path)}]  # fmt: skip
    answers = [pipe(form) for form in forms]
    assert set(answers[0]) == {"speaker", "text"} and all(answer == answers[0] for answer in answers)
    assert pipe(forms) == answers and pipe(iter(forms)) is not None
    together = pipe([one["audio"] for one in recordings(6)], batch_size=6)
    for answer, one in zip(together, recordings(6), strict=True):
        alone = pipe(one["audio"])
        assert answer["text"] == alone["text"] and answer["speaker"]["score"] == pytest.approx(alone["speaker"]["score"], abs=1e-5)  # fmt: skip
    assert pipe(str(path), tasks=["speaker"]) == {"speaker": answers[0]["speaker"]}


def test_an_input_that_cannot_be_used_is_named(build):
    pipe = MultiTaskPipeline(model=build(), feature_extractor=extractor())
    with pytest.raises(ValueError, match=r"^inputs\[1\]: there is no file 'gone.wav'. Fix the path.$"):
        pipe([np.sin(np.arange(900.0)), "gone.wav"])
    with pytest.raises(
        ValueError, match=r"^the recording has 20 samples at 8000 per second, and a frame .* needs 85. Remove"
    ):
        pipe(np.sin(np.arange(20.0)))


def test_a_pipeline_without_a_feature_extractor_is_refused(build, tokenizer):
    for given in ({}, {"tokenizer": tokenizer}):
        with pytest.raises(ValueError, match="A task that reads audio needs a feature extractor"):
            MultiTaskPipeline(model=build(), **given)


def test_saved_and_loaded(build, tmp_path):
    model, batch = build(), batch_of(recordings(3))
    model.save_pretrained(tmp_path / "saved")
    extractor().save_pretrained(tmp_path / "saved")
    loaded = MultiTaskModel.from_pretrained(tmp_path / "saved").eval()
    with torch.no_grad():
        for name, value in model(**batch).logits.items():
            assert torch.equal(loaded(**batch).logits[name], value)
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["tasks"][1]["vocabulary"] == VOCABULARY
    pipe = pipeline("multitask", str(tmp_path / "saved"))
    assert set(pipe(recordings(1)[0]["audio"])) == {"speaker", "text"}


@pytest.mark.parametrize(
    ("own", "options", "said"),
    [
        ({"x": SequenceClassification(label_names=["a", "b"])}, {}, r"^Task 'x': sequence-classification reads texts \(input_ids\), and the backbone wav2vec2 takes input_values. Choose another backbone for it.$"),
        ({"x": SequenceClassification()}, {}, r"^Task 'x': sequence-classification reads texts"),
        (None, {"pooling": "mean"}, r"^Task 'speaker': audio-classification has the head of the backbone's family only. Found `pooling = 'mean'`"),
        (None, {"use_weighted_layer_sum": True}, r"^Task 'speaker': .* has use_weighted_layer_sum. Set use_weighted_layer_sum=False"),
        (None, {"add_adapter": True}, r"^Task 'speaker': .* has add_adapter. Set add_adapter=False"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_when_built(own, options, said, build):
    with pytest.raises(ValueError, match=said):
        build(own=own, **options)


@pytest.mark.parametrize("task", [AudioClassification(label_names=["a", "b"]), AudioClassification(), AutomaticSpeechRecognition()])  # fmt: skip
def test_an_audio_task_on_a_text_backbone_is_refused(task, build_model):
    with pytest.raises(ValueError, match=rf"^Task 'x': {task.type} reads audio \(input_values\), and the backbone bert takes input_ids"):  # fmt: skip
        build_model(tasks={"x": task})
    with pytest.raises(ValueError, match=r"^Task 'x': .* reads audio"):
        build_model().add_task("x", task)


def test_the_card_shows_code_that_runs(build, tmp_path, monkeypatch, capsys):
    model = build()
    model.save_pretrained(tmp_path / "saved")
    extractor().save_pretrained(tmp_path / "saved")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recording.wav").write_bytes(wav(recordings(1)[0]["audio"]["array"]))
    text = usage(model.config, "saved")
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(code.replace(", trust_remote_code=True", ""), {})
    shown = capsys.readouterr().out
    assert "'label'" in shown and "'text': (1, " in shown and metadata_of(model.config)["pipeline_tag"] == "audio-classification"  # fmt: skip


def test_the_hub_names_of_the_types():
    assert kind_of({"type": "audio-classification"}).hub == "audio-classification"
    assert kind_of({"type": "automatic-speech-recognition"}).hub == "automatic-speech-recognition"
    assert COMMON["vocab_size"] != len(VOCABULARY)  # so that a head with the backbone's size would be found
