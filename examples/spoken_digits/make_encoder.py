"""Writes `encoder/` beside this file: a small random speech encoder for 8 kHz, to train from scratch."""

from pathlib import Path

from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model, set_seed


def main() -> None:
    """Write configuration, weights and feature extractor."""
    folder = Path(__file__).parent / "encoder"
    set_seed(0)
    config = Wav2Vec2Config(
        conv_dim=(32, 48, 64),
        conv_kernel=(20, 8, 4),
        conv_stride=(10, 4, 4),
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=4,
        classifier_proj_size=64,
        hidden_dropout=0.1,
        attention_dropout=0.1,
        activation_dropout=0.0,
        feat_proj_dropout=0.0,
        final_dropout=0.1,
        layerdrop=0.0,
        mask_time_prob=0.0,
    )
    Wav2Vec2Model(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(sampling_rate=8000, do_normalize=True, return_attention_mask=True).save_pretrained(folder)


if __name__ == "__main__":
    main()
