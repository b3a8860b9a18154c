"""Networks of Hugging Face transformers, from tiny configurations with random weights: nothing is downloaded."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from workbench.zoo.architecture import Architecture, floats, named, padded, tokens

# Layers and heads of every text model; no dropout, for train mode is compared with eval mode's parameters alone.
TEXT = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 24,
    "type_vocab_size": 2,
    "num_labels": 3,
    "attn_implementation": "eager",
}
VISION = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 16,
    "patch_size": 4,
    "num_labels": 5,
}


def make(model: str, config: str, **settings: Any) -> Callable[[], nn.Module]:
    """A function that makes `model` of a configuration of class `config`."""

    def build() -> nn.Module:
        import transformers

        implementation = settings.get("attn_implementation")
        rest = {key: value for key, value in settings.items() if key != "attn_implementation"}
        configuration = getattr(transformers, config)(**rest)
        configuration.return_dict = True
        if implementation is not None:
            configuration._attn_implementation = implementation
        return getattr(transformers, model)(configuration)

    return build


class FixedSize(nn.Module):
    """A vision model that takes images of one size alone, where its own code would pad or resize any other one.

    Exporters take minutes over the sizes that such code allows, or freeze its branches.
    """

    def __init__(self, model: nn.Module, size: int):
        super().__init__()
        self.model, self.size = model, size

    def forward(self, pixel_values: Tensor) -> Any:
        if tuple(pixel_values.shape[-2:]) != (self.size, self.size):
            raise ValueError(f"images must be of {self.size} x {self.size} pixels, got {tuple(pixel_values.shape)}")
        return self.model(pixel_values=pixel_values)


def seen(
    name: str,
    model: str,
    config: str,
    *,
    size: int = 32,
    removes: float = 0.5,
    refuses: str | None = None,
    fixed: bool = False,
    **settings: Any,
) -> Architecture:
    """A vision model on images of `size` pixels; with `fixed` of no other size."""
    build = make(model, config, **settings)
    return Architecture(
        name=name,
        build=(lambda: FixedSize(build(), size)) if fixed else build,
        sample=named(pixel_values=floats(3, size, size)),
        removes=removes,
        refuses=refuses,
    )


def read(name: str, model: str, config: str, *, removes: float = 0.4, **settings: Any) -> Architecture:
    """A text model on padded token numbers."""
    return Architecture(name=name, build=make(model, config, **settings), sample=padded(40, 9), removes=removes)


ARCHITECTURES = (
    seen(
        "HF ResNet",
        "ResNetForImageClassification",
        "ResNetConfig",
        embedding_size=8,
        hidden_sizes=[16, 24],
        depths=[1, 2],
        num_labels=5,
    ),
    seen(
        "HF RegNet",
        "RegNetForImageClassification",
        "RegNetConfig",
        embedding_size=8,
        hidden_sizes=[16, 24],
        depths=[1, 2],
        groups_width=8,
        num_labels=5,
    ),
    seen(
        "HF BiT",
        "BitForImageClassification",
        "BitConfig",
        refuses="a norm takes statistics over it in WeightStandardizedConv2d",
        embedding_size=8,
        hidden_sizes=[16, 32],
        depths=[1, 2],
        num_groups=4,
        num_labels=5,
    ),
    seen(
        "HF ConvNeXt",
        "ConvNextForImageClassification",
        "ConvNextConfig",
        removes=0.25,
        hidden_sizes=[8, 16],
        depths=[1, 2],
        num_stages=2,
        num_labels=5,
    ),
    seen(
        "HF ConvNeXtV2",
        "ConvNextV2ForImageClassification",
        "ConvNextV2Config",
        refuses="mean runs over it in ConvNextV2GRN",
        hidden_sizes=[8, 16],
        depths=[1, 2],
        num_stages=2,
        num_labels=5,
    ),
    seen(
        "HF MobileNetV1",
        "MobileNetV1ForImageClassification",
        "MobileNetV1Config",
        fixed=True,
        depth_multiplier=0.25,
        min_depth=4,
        num_labels=5,
    ),
    seen(
        "HF MobileNetV2",
        "MobileNetV2ForImageClassification",
        "MobileNetV2Config",
        depth_multiplier=0.25,
        num_labels=5,
    ),
    seen(
        "HF EfficientNet",
        "EfficientNetForImageClassification",
        "EfficientNetConfig",
        image_size=32,
        width_coefficient=0.25,
        depth_coefficient=0.4,
        hidden_dim=320,  # what the last convolution makes at this width
        num_labels=5,
    ),
    seen(
        "HF MobileViT",
        "MobileViTForImageClassification",
        "MobileViTConfig",
        fixed=True,
        size=64,
        image_size=64,
        hidden_sizes=[16, 16, 24],
        neck_hidden_sizes=[8, 8, 16, 16, 24, 24, 32],
        num_attention_heads=4,
        num_labels=5,
    ),
    seen(
        "HF MobileViTV2",
        "MobileViTV2ForImageClassification",
        "MobileViTV2Config",
        size=64,
        image_size=64,
        width_multiplier=0.25,
        num_labels=5,
    ),
    seen(
        "HF LeViT",
        "LevitForImageClassification",
        "LevitConfig",
        size=64,
        image_size=64,
        hidden_sizes=[16, 24, 32],
        num_attention_heads=[2, 3, 4],
        depths=[1, 1, 1],
        key_dim=[4, 4, 4],
        num_labels=5,
    ),
    seen(
        "HF PoolFormer",
        "PoolFormerForImageClassification",
        "PoolFormerConfig",
        removes=0.2,
        hidden_sizes=[8, 16, 16, 24],
        depths=[1, 1, 1, 1],
        num_labels=5,
    ),
    seen(
        "HF Swin",
        "SwinForImageClassification",
        "SwinConfig",
        fixed=True,
        removes=0.4,
        image_size=32,
        patch_size=4,
        embed_dim=8,
        depths=[2, 2],
        num_heads=[2, 4],
        window_size=4,
        num_labels=5,
    ),
    seen(
        "HF SwinV2",
        "Swinv2ForImageClassification",
        "Swinv2Config",
        fixed=True,
        image_size=32,
        patch_size=4,
        embed_dim=8,
        depths=[2, 2],
        num_heads=[2, 4],
        window_size=4,
        num_labels=5,
    ),
    seen("HF ViT", "ViTForImageClassification", "ViTConfig", removes=0.4, size=16, **VISION),
    seen("HF DeiT", "DeiTForImageClassification", "DeiTConfig", removes=0.4, size=16, **VISION),
    seen(
        "HF BEiT",
        "BeitForImageClassification",
        "BeitConfig",
        removes=0.4,
        size=16,
        use_relative_position_bias=True,
        layer_scale_init_value=0.5,
        **VISION,
    ),
    seen(
        "HF DINOv2",
        "Dinov2ForImageClassification",
        "Dinov2Config",
        removes=0.4,
        size=16,
        **{**VISION, "mlp_ratio": 2},
    ),
    seen(
        "HF SegFormer",
        "SegformerForSemanticSegmentation",
        "SegformerConfig",
        removes=0.25,
        hidden_sizes=[8, 16],
        depths=[1, 1],
        num_encoder_blocks=2,
        num_attention_heads=[1, 4],
        sr_ratios=[4, 1],
        patch_sizes=[7, 3],
        strides=[4, 2],
        mlp_ratios=[2, 2],
        decoder_hidden_size=16,
        num_labels=5,
    ),
    seen(
        "HF PVT",
        "PvtForImageClassification",
        "PvtConfig",
        removes=0.25,
        image_size=32,
        hidden_sizes=[8, 16],
        depths=[1, 1],
        num_encoder_blocks=2,
        num_attention_heads=[2, 4],
        sequence_reduction_ratios=[2, 1],
        patch_sizes=[4, 2],
        strides=[4, 2],
        mlp_ratios=[2, 2],
        num_labels=5,
    ),
    seen(
        "HF CLIP vision",
        "CLIPVisionModelWithProjection",
        "CLIPVisionConfig",
        removes=0.4,
        size=16,
        projection_dim=12,
        **VISION,
    ),
    seen(
        "HF FocalNet",
        "FocalNetForImageClassification",
        "FocalNetConfig",
        fixed=True,
        removes=0.2,
        image_size=32,
        embed_dim=8,
        depths=[1, 2],
        hidden_sizes=[8, 16],
        focal_levels=[2, 2],
        focal_windows=[3, 3],
        num_labels=5,
    ),
    read("HF BERT", "BertForSequenceClassification", "BertConfig", **TEXT),
    read("HF BERT tagger", "BertForTokenClassification", "BertConfig", **{**TEXT, "attn_implementation": "sdpa"}),
    read(
        "HF DistilBERT",
        "DistilBertForSequenceClassification",
        "DistilBertConfig",
        vocab_size=40,
        dim=32,
        n_layers=2,
        n_heads=4,
        hidden_dim=48,
        max_position_embeddings=24,
        num_labels=3,
        attn_implementation="eager",
    ),
    read("HF RoBERTa", "RobertaForSequenceClassification", "RobertaConfig", **TEXT),
    read("HF ALBERT", "AlbertForSequenceClassification", "AlbertConfig", embedding_size=16, **TEXT),
    read("HF ELECTRA", "ElectraForSequenceClassification", "ElectraConfig", embedding_size=16, **TEXT),
    read(
        "HF MobileBERT",
        "MobileBertForSequenceClassification",
        "MobileBertConfig",
        embedding_size=16,
        intra_bottleneck_size=16,
        num_feedforward_networks=2,
        **TEXT,
    ),
    read(
        "HF SqueezeBERT",
        "SqueezeBertForSequenceClassification",
        "SqueezeBertConfig",
        removes=0.1,
        embedding_size=32,
        **TEXT,
    ),
    read("HF MPNet", "MPNetForSequenceClassification", "MPNetConfig", **TEXT),
    read("HF DeBERTaV2", "DebertaV2ForSequenceClassification", "DebertaV2Config", **TEXT),
    read("HF FNet", "FNetForSequenceClassification", "FNetConfig", removes=0.3, **TEXT),
    Architecture(
        name="HF GPT-2",
        removes=0.4,
        build=make(
            "GPT2LMHeadModel",
            "GPT2Config",
            vocab_size=40,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=24,
            use_cache=False,
            attn_implementation="eager",
        ),
        sample=named(input_ids=tokens(40, 9)),
    ),
    read(
        "HF GPT-2 classifier",
        "GPT2ForSequenceClassification",
        "GPT2Config",
        vocab_size=40,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=24,
        use_cache=False,
        pad_token_id=0,
        num_labels=3,
        attn_implementation="eager",
    ),
    Architecture(
        name="HF Llama",
        removes=0.4,
        build=make(
            "LlamaForCausalLM",
            "LlamaConfig",
            use_cache=False,
            num_key_value_heads=2,
            **{key: value for key, value in TEXT.items() if key not in {"type_vocab_size", "num_labels"}},
        ),
        sample=named(input_ids=tokens(40, 9)),
    ),
    Architecture(
        name="HF T5 encoder",
        removes=0.4,
        build=make("T5EncoderModel", "T5Config", vocab_size=40, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4),
        sample=padded(40, 9),
    ),
    Architecture(
        name="HF Wav2Vec2",
        removes=0.35,
        build=make(
            "Wav2Vec2ForSequenceClassification",
            "Wav2Vec2Config",
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=48,
            conv_dim=[16, 16],
            conv_kernel=[10, 3],
            conv_stride=[5, 2],
            num_conv_pos_embeddings=8,
            num_conv_pos_embedding_groups=4,
            classifier_proj_size=16,
            apply_spec_augment=False,
            layerdrop=0.0,
            num_labels=4,
            attn_implementation="eager",
        ),
        sample=named(input_values=floats(320)),
    ),
    Architecture(
        name="HF AST",
        removes=0.4,
        build=make(
            "ASTForAudioClassification",
            "ASTConfig",
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=48,
            max_length=24,
            num_mel_bins=16,
            patch_size=4,
            frequency_stride=4,
            time_stride=4,
            num_labels=4,
        ),
        sample=named(input_values=floats(24, 16)),
    ),
    Architecture(
        name="HF Whisper encoder",
        removes=0.4,
        build=make(
            "WhisperForAudioClassification",
            "WhisperConfig",
            d_model=32,
            encoder_layers=2,
            encoder_attention_heads=4,
            encoder_ffn_dim=48,
            num_mel_bins=8,
            max_source_positions=16,
            classifier_proj_size=16,
            num_labels=4,
            attn_implementation="eager",
        ),
        sample=named(input_features=floats(8, 32)),
    ),
)
