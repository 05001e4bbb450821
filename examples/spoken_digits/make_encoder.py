"""Writes `encoder/` beside this file: a small random speech encoder of spectrograms, to train from scratch."""

from pathlib import Path

from transformers import SeamlessM4TFeatureExtractor, Wav2Vec2BertConfig, Wav2Vec2BertModel, set_seed


def write_encoder(folder: Path, seed: int = 0) -> None:
    """Write configuration, weights and feature extractor."""
    set_seed(seed)
    config = Wav2Vec2BertConfig(
        feature_projection_input_dim=80,
        hidden_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=192,
        conv_depthwise_kernel_size=7,
        classifier_proj_size=96,
        position_embeddings_type="relative_key",
        left_max_position_embeddings=32,
        right_max_position_embeddings=16,
        layerdrop=0.0,
        hidden_dropout=0.2,
        activation_dropout=0.2,
        attention_dropout=0.2,
        feat_proj_dropout=0.2,
        final_dropout=0.2,
        conformer_conv_dropout=0.2,
        mask_time_prob=0.2,
        mask_time_length=3,
        mask_time_min_masks=1,
        mask_feature_prob=0.1,
        mask_feature_length=8,
    )
    Wav2Vec2BertModel(config).save_pretrained(folder)
    SeamlessM4TFeatureExtractor(feature_size=40, num_mel_bins=40, sampling_rate=16000).save_pretrained(folder)


if __name__ == "__main__":
    write_encoder(Path(__file__).parent / "encoder")
