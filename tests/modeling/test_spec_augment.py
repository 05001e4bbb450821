"""Masks of a speech encoder in training: those of the family in number and length, and drawn for each row by itself."""

import numpy as np
import pytest
import torch
from sounds import FAMILIES, SPEAKERS, batch_of, recordings, save_encoder, save_whisper
from transformers import Wav2Vec2Config
from transformers.models.wav2vec2.modeling_wav2vec2 import _compute_mask_indices

from hf_multitask import AudioClassification, AutomaticSpeechRecognition, MultiTaskModel
from hf_multitask.modeling.spec_augment import draw_masks

MASKS = {"mask_time_prob": 0.4, "mask_time_length": 3, "mask_time_min_masks": 1, "mask_feature_prob": 0.2, "mask_feature_length": 4}  # fmt: skip


@pytest.fixture
def build(tmp_path):
    def make(family="wav2vec2", **options):
        path = save_encoder(tmp_path / "encoder", family, **options)
        torch.manual_seed(1)
        return MultiTaskModel.from_backbone(path, tasks={"speaker": AudioClassification(label_names=list(SPEAKERS))})

    return make


def stock_masks(config, frames):
    return _compute_mask_indices((1, frames), config.mask_time_prob, config.mask_time_length, None, config.mask_time_min_masks)[0]  # fmt: skip


@pytest.mark.parametrize(("prob", "span", "least", "frames"), [(0.3, 4, 0, 50), (0.05, 10, 2, 30), (0.9, 5, 0, 23), (0.01, 3, 0, 20)])  # fmt: skip
def test_masks_are_distributed_as_those_of_the_family(prob, span, least, frames):
    config = Wav2Vec2Config(mask_time_prob=prob, mask_time_length=span, mask_time_min_masks=least)
    np.random.seed(0)
    count = 4000
    ours = np.stack([draw_masks(config, seed, frames, 8)[0].numpy() for seed in range(count)])
    theirs = np.stack([stock_masks(config, frames) for _ in range(count)])
    for found, wanted in ((ours.mean(0), theirs.mean(0)), (np.bincount(ours.sum(1), minlength=frames + 1) / count, np.bincount(theirs.sum(1), minlength=frames + 1) / count)):  # fmt: skip
        assert np.abs(found - wanted).max() < 5 * (0.5 / count) ** 0.5
    assert 0 < ours.mean() < 1


def test_a_recording_shorter_than_a_mask_has_none():
    config = Wav2Vec2Config(mask_time_prob=0.9, mask_time_length=10, mask_time_min_masks=2)
    assert not any(draw_masks(config, seed, 9, 8)[0].any() for seed in range(20))


@pytest.mark.parametrize("family", FAMILIES)
def test_masks_do_not_depend_on_padding_or_order_and_evaluation_has_none(family, build):
    model, rows = build(family, **MASKS).double(), recordings(6)
    batch, seeds = batch_of(rows), torch.arange(6) + 10
    plain = model.eval()(**batch).logits["speaker"]
    assert torch.equal(model(**batch, mask_seeds=seeds).logits["speaker"], plain)
    model.train()
    together = model(**batch, mask_seeds=seeds).logits["speaker"]
    assert torch.equal(together, model(**batch, mask_seeds=seeds).logits["speaker"])
    assert (together - plain).abs().amin() > 1e-9  # every row is masked
    assert not torch.allclose(together, model(**batch, mask_seeds=seeds + 6).logits["speaker"])
    for number, row in enumerate(rows):
        alone = model(**batch_of([row]), mask_seeds=seeds[number : number + 1]).logits["speaker"]
        torch.testing.assert_close(alone[0], together[number], rtol=0, atol=1e-9)


def test_the_masks_are_those_that_are_drawn(build):
    model, batch = build(**MASKS).train(), batch_of([recordings(1)[0]])
    seen = []
    model.backbone.encoder.register_forward_pre_hook(lambda _, args: seen.append(args[0][0].detach()))
    model.backbone.masked_spec_embed.data.fill_(7.0)
    model(**batch, mask_seeds=torch.tensor([3]))
    time, feature = draw_masks(model.backbone.config, 3, *seen[0].shape)
    assert time.any() and feature.any() and not time.all() and not feature.all()
    assert torch.equal((seen[0] == 0).all(0), feature)
    assert torch.equal((seen[0][:, ~feature] == 7.0).all(1), time)


def test_the_vector_of_masks_is_learned_and_masking_can_be_switched_off(build):
    model, batch = build(**MASKS).train(), batch_of(recordings(3))
    model(**batch, labels={"speaker": torch.tensor([0, 1, 0])}, mask_seeds=torch.arange(3)).loss.backward()
    assert model.backbone.masked_spec_embed.grad.abs().sum() > 0
    with torch.no_grad():
        model.backbone.config.apply_spec_augment = False
        off = model(**batch, mask_seeds=torch.arange(3)).logits["speaker"]
        assert torch.equal(off, model.eval()(**batch).logits["speaker"])


def test_only_the_family_draws_from_numpy(build):
    model, batch = build(**MASKS).train(), batch_of(recordings(3))

    def drawn(**seeds):
        before = np.random.get_state()
        model(**batch, **seeds)
        after = np.random.get_state()
        return before[2] != after[2] or (before[1] != after[1]).any()

    assert drawn() and not drawn(mask_seeds=torch.arange(3)) and drawn()


def test_whisper_masks_spectrograms_in_training_only(tmp_path):
    model = MultiTaskModel.from_backbone(save_whisper(tmp_path / "backbone"), tasks={"text": AutomaticSpeechRecognition()})  # fmt: skip
    config = model.backbone.config
    config.apply_spec_augment, config.mask_time_prob, config.mask_time_length = True, 0.3, 5
    config.mask_feature_prob, config.mask_feature_length, config.mask_time_min_masks = 0.2, 2, 1
    model.config.backbone_config = config
    read = []
    model.backbone.get_encoder().register_forward_pre_hook(lambda _, __, given: read.append(given["input_features"]), with_kwargs=True)  # fmt: skip
    given = {"input_features": torch.ones(2, 16, 100), "labels": {"text": torch.ones(2, 3, dtype=torch.long)}}
    seeds = torch.tensor([5, 6])
    model.train()(**given, mask_seeds=seeds)
    model.train()(**given, mask_seeds=seeds.flip(0))
    model.eval()(**given, mask_seeds=seeds)
    assert torch.equal(read[0], read[1].flip(0)) and not torch.equal(read[0][0], read[0][1])
    assert 0.1 < (read[0] == 0).float().mean() < 0.7 and torch.equal(read[2], given["input_features"])
    assert torch.equal(read[0][0] == 0, (read[0][0] == 0).all(0)[None, :] | (read[0][0] == 0).all(1)[:, None])
