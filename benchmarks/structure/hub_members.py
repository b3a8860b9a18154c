"""One small member of every family of torchvision and timm: how it is built, and what it takes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from torch import nn

SMALL_MVIT = "mvit, four blocks"


@dataclass(frozen=True, kw_only=True)
class Member:
    """A network of a `family`: the `name` that `library` ("timm" or "torchvision") builds it by, and its input."""

    family: str
    library: str
    name: str
    shape: tuple[int, ...] = (3, 64, 64)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def build(self) -> nn.Module:
        """The network with random weights and ten classes; nothing is downloaded."""
        if self.name == SMALL_MVIT:
            return _small_mvit(self.shape)
        if self.library == "torchvision":
            import torchvision

            return torchvision.models.get_model(self.name, weights=None, num_classes=10, **self.settings)
        import timm

        return timm.create_model(self.name, pretrained=False, num_classes=10, **self.settings)


def _small_mvit(shape: tuple[int, ...]) -> nn.Module:
    """MViT with the settings of torchvision's mvit_v1_b, but for clips of `shape` and with its first four blocks."""
    from torchvision.models.video.mvit import MSBlockConfig, MViT

    widths, heads, strides = (96, 192, 192, 384, 384), (1, 2, 2, 4), (8, 4, 4, 2)
    blocks = [
        MSBlockConfig(
            num_heads=heads[number],
            input_channels=widths[number],
            output_channels=widths[number + 1],
            kernel_q=[3, 3, 3] if number % 2 else [],
            kernel_kv=[3, 3, 3],
            stride_q=[1, 2, 2] if number % 2 else [],
            stride_kv=[1, strides[number], strides[number]],
        )
        for number in range(4)
    ]
    return MViT(
        spatial_size=(shape[2], shape[3]),
        temporal_size=shape[1],
        block_setting=blocks,
        residual_pool=False,
        residual_with_cls_embed=True,
        rel_pos_embed=False,
        proj_after_attn=False,
        num_classes=10,
    )


def _vision(*entries: str) -> tuple[Member, ...]:
    members = []
    for entry in entries:
        family, name, *size = entry.split()
        side = int(size[0]) if size else 64
        members.append(Member(family=f"torchvision {family}", library="torchvision", name=name, shape=(3, side, side)))
    return tuple(members)


def _timm(*entries: str) -> tuple[Member, ...]:
    """Members from "family name [side] [img_size]": the last says that the network is built for its size."""
    members = []
    for entry in entries:
        family, name, *rest = entry.split()
        side = int(rest[0]) if rest else 64
        settings = {"img_size": side} if rest[1:] else {}
        members.append(
            Member(family=f"timm {family}", library="timm", name=name, shape=(3, side, side), settings=settings)
        )
    return tuple(members)


MEMBERS = (
    *_vision(
        "AlexNet alexnet",
        "ConvNeXt convnext_tiny",
        "DenseNet densenet121",
        "EfficientNet efficientnet_b0",
        "EfficientNetV2 efficientnet_v2_s",
        "MNASNet mnasnet0_5",
        "MobileNetV2 mobilenet_v2",
        "MobileNetV3 mobilenet_v3_small",
        "RegNet regnet_y_400mf",
        "ResNet resnet18",
        "ResNeXt resnext50_32x4d",
        "ShuffleNetV2 shufflenet_v2_x1_0",
        "SqueezeNet squeezenet1_1",
        "Swin swin_t",
        "SwinV2 swin_v2_t",
        "VGG vgg11_bn",
        "MaxVit maxvit_t 224",
    ),
    *(
        Member(
            family=f"torchvision {family}",
            library="torchvision",
            name=name,
            shape=(3, side, side),
            settings={"weights_backbone": None},
        )
        for family, name, side in (
            ("FCN", "fcn_resnet50", 64),
            ("DeepLabV3", "deeplabv3_mobilenet_v3_large", 64),
            ("LR-ASPP", "lraspp_mobilenet_v3_large", 64),
            ("SSDLite", "ssdlite320_mobilenet_v3_large", 320),
        )
    ),
    Member(family="torchvision ViT", library="torchvision", name="vit_b_16", settings={"image_size": 64}),
    Member(
        family="torchvision GoogLeNet",
        library="torchvision",
        name="googlenet",
        settings={"aux_logits": False, "init_weights": False},
    ),
    Member(
        family="torchvision Inception",
        library="torchvision",
        name="inception_v3",
        shape=(3, 96, 96),
        settings={"aux_logits": False, "init_weights": False},
    ),
    Member(family="torchvision video ResNet", library="torchvision", name="r3d_18", shape=(3, 4, 32, 32)),
    # The clips that mvit_v1_b is made for take minutes of computing each, dozens of times: the class itself, small.
    Member(family="torchvision MViT", library="torchvision", name=SMALL_MVIT, shape=(3, 4, 64, 64)),
    *_timm(
        "ResNet resnet10t",
        "ECA-ResNet ecaresnet26t",
        "ResNetV2 resnetv2_18",
        "BiT resnetv2_50x1_bit",
        "SENet legacy_seresnet18",
        "SKNet skresnet18",
        "ResNeSt resnest14d",
        "Res2Net res2net50_14w_8s",
        "RegNet regnetx_002",
        "RegNetZ regnetz_005",
        "EfficientNet efficientnet_lite0",
        "MixNet mixnet_s",
        "MobileNetV3 mobilenetv3_small_050",
        "MobileNetV4 mobilenetv4_conv_small_050",
        "LCNet lcnet_050",
        "LCNetV2 lcnetv2_small",
        "TinyNet tinynet_e",
        "HardCoRe-NAS hardcorenas_a",
        "FBNetV3 fbnetv3_b",
        "GhostNet ghostnet_050",
        "GhostNetV2 ghostnetv2_100",
        "RepGhost repghostnet_050",
        "ReXNet rexnet_100",
        "CSPDarkNet cspdarknet53",
        "CSPResNet cspresnet50",
        "CS3DarkNet cs3darknet_s",
        "CSPNeXt cspnext_tiny",
        "DarkNet darknet17",
        "DLA dla46_c",
        "DPN dpn48b",
        "DenseNet densenet121",
        "HRNet hrnet_w18_small",
        "HGNet hgnetv2_b0",
        "VoVNet ese_vovnet19b_slim_dw",
        "SelecSLS selecsls42",
        "RepVGG repvgg_a0",
        "MobileOne mobileone_s0",
        "GENet gernet_s",
        "NFNet nf_resnet26",
        "NormFreeECA eca_nfnet_l0",
        "TResNet tresnet_m",
        "VGG vgg11",
        "Xception legacy_xception",
        "AlignedXception xception41",
        "InceptionV4 inception_v4 96",
        "InceptionResNetV2 inception_resnet_v2 96",
        "InceptionNeXt inception_next_atto",
        "FasterNet fasternet_t0",
        "StarNet starnet_s050",
        "ConvMixer convmixer_768_32",
        "ConvNeXt convnext_atto",
        "ConvNeXtV2 convnextv2_atto",
        "MambaOut test_mambaout",
        "RDNet rdnet_tiny",
        "BoTNet botnet26t_256 64 img_size",
        "HaloNet halonet26t 256",
        "LambdaNet lambda_resnet26t",
        "EdgeNeXt edgenext_xx_small",
        "EfficientFormer efficientformer_l1 224",
        "EfficientFormerV2 efficientformerv2_s0 64 img_size",
        "EfficientViT-MIT efficientvit_b0",
        "EfficientViT-MSRA efficientvit_m0 64 img_size",
        "EfficientViM efficientvim_m1",
        "FastViT fastvit_t8",
        "MobileViT mobilevit_xxs",
        "MobileViTV2 mobilevitv2_050",
        "RepViT repvit_m0_9",
        "SHViT shvit_s1",
        "SwiftFormer swiftformer_xs",
        "NextViT nextvit_small",
        "PoolFormer poolformer_s12",
        "PoolFormerV2 poolformerv2_s12",
        "ConvFormer convformer_s18",
        "CAFormer caformer_s18",
        "Mixer mixer_s32_224 64 img_size",
        "gMLP gmlp_ti16_224 64 img_size",
        "ResMLP resmlp_12_224 64 img_size",
        "ViT vit_tiny_patch16_224 64 img_size",
        "DeiT deit_tiny_patch16_224 64 img_size",
        "DeiT3 deit3_small_patch16_224 64 img_size",
        "BEiT beit_base_patch16_224 64 img_size",
        "EVA02 eva02_tiny_patch14_224 56 img_size",
        "CaiT cait_xxs24_224 64 img_size",
        "ConViT convit_tiny 64 img_size",
        "CrossViT crossvit_9_240 240",
        "CoaT coat_lite_tiny 64 img_size",
        "PiT pit_ti_224 64 img_size",
        "LeViT levit_128s 64 img_size",
        "LeViT-conv levit_conv_128s 64 img_size",
        "Visformer visformer_tiny 64 img_size",
        "TNT tnt_s_patch16_224 64 img_size",
        "Twins twins_svt_small 64 img_size",
        "Twins-PCPVT twins_pcpvt_small 64 img_size",
        "PVTv2 pvt_v2_b0",
        "MViTv2 mvitv2_tiny 64 img_size",
        "NesT nest_tiny_jx 64 img_size",
        "VOLO volo_d1_224 64 img_size",
        "XCiT xcit_nano_12_p16_224 64 img_size",
        "Swin swin_tiny_patch4_window7_224 64 img_size",
        "SwinV2 swinv2_tiny_window8_256 64 img_size",
        "SwinV2-CR swinv2_cr_tiny_224 64 img_size",
        "TinyViT tiny_vit_5m_224",
        "Hiera hiera_tiny_224 64 img_size",
        "GCViT gcvit_xxtiny 64 img_size",
        "FocalNet focalnet_tiny_srf",
        "DaViT davit_tiny",
        "MaxViT maxvit_rmlp_pico_rw_256 64 img_size",
        "CoAtNet coatnet_nano_rw_224 64 img_size",
        "Sequencer sequencer2d_s 64 img_size",
        "ViTRelPos vit_relpos_small_patch16_224 64 img_size",
        "HybridViT vit_tiny_r_s16_p8_224 64 img_size",
        "ViTamin vitamin_small_224 64 img_size",
        "IFormer iformer_t",
        "LowFormer lowformer_b0",
        "CPUBone cpubone_nano",
    ),
)


def absent() -> str | None:
    """Which of the libraries is not installed here, None where both are."""
    return next((name for name in ("torchvision", "timm") if find_spec(name) is None), None)
