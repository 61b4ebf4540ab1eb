"""Networks of segmentation-models-pytorch, for any number of bands: an encoder that is a classifier, and a decoder.

It interpolates with align_corners=True, which puts a feature at a place that depends on the size of the tile, so that no
tile could equal the whole. Here that is False everywhere; weights are the same. Nothing is downloaded.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from pipeline.errors import Refused

UNET_ENCODERS = ("resnet18", "resnet34", "resnet50", "vgg16_bn", "densenet121")
DEEPLABV3PLUS_ENCODERS = ("mobilenet_v2", "resnet18", "resnet50", "resnet101")
FPN_ENCODERS = ("resnet18", "resnet34", "resnet50")
SEGFORMER_WIDTHS = {"b0": 256, "b1": 256, "b2": 768}  # of the decoder: table 6 of arXiv 2105.15203


class EncoderDecoder(nn.Module):
    """Encoder, decoder and head of a network of the library; `coarse` are the logits as the head gives them."""

    def __init__(self, model: Any):
        super().__init__()
        self.encoder, self.decoder, self.head = model.encoder, model.decoder, model.segmentation_head[0]
        if hasattr(self.encoder, "avgpool"):
            del self.encoder.avgpool  # of the classifier that it was: it never runs
        for module in self.decoder.modules():
            if isinstance(module, nn.Upsample):
                module.align_corners = False

    def coarse(self, batch_BCHW: torch.Tensor) -> torch.Tensor:
        """The logits before they are upsampled to the input's size."""
        return self.head(self.decoder(self.encoder(batch_BCHW)))

    def forward(self, batch_BCHW: torch.Tensor) -> torch.Tensor:
        return functional.interpolate(self.coarse(batch_BCHW), size=batch_BCHW.shape[-2:], mode="bilinear", align_corners=False)


def unet_on(encoder: str, bands: int, classes: int) -> EncoderDecoder:
    """U-Net (Ronneberger et al. 2015) with a classification network as its encoder."""
    return EncoderDecoder(library().Unet(encoder, encoder_weights=None, in_channels=bands, classes=classes))


def deeplabv3plus_on(encoder: str, bands: int, classes: int, dropout: float = 0.5) -> EncoderDecoder:
    """DeepLabV3+ (Chen et al. 2018, arXiv 1802.02611): dilated pyramid pooling and a decoder at a quarter of the size."""
    return EncoderDecoder(
        library().DeepLabV3Plus(encoder, encoder_weights=None, in_channels=bands, classes=classes, decoder_aspp_dropout=dropout)
    )


def fpn_on(encoder: str, bands: int, classes: int, dropout: float = 0.2, norm: str = "group") -> EncoderDecoder:
    """Feature pyramid network for segmentation (Kirillov et al. 2019, arXiv 1901.02446); exact with norm="batch"."""
    if norm not in ("group", "batch"):
        raise ValueError(f'norm is "group", as in the paper, or "batch", got {norm!r}')
    model = library().FPN(encoder, encoder_weights=None, in_channels=bands, classes=classes, decoder_dropout=dropout)
    for block in model.decoder.seg_blocks.modules():
        if getattr(block, "upsample", False):  # its own upsampling is fixed to align_corners=True
            block.upsample = False
            block.block.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
        if norm == "batch" and hasattr(block, "upsample"):
            block.block[1] = nn.BatchNorm2d(block.block[1].num_channels)
    return EncoderDecoder(model)


def segformer_on(size: str, bands: int, classes: int) -> EncoderDecoder:
    """SegFormer (Xie et al. 2021, arXiv 2105.15203): a transformer of mixed scales.

    The library's file of its encoder is under NVIDIA's Source Code License, not the library's MIT: read it before commercial use.
    """
    smp = library()
    from segmentation_models_pytorch.encoders.mix_transformer import Attention

    model = smp.Segformer(
        f"mit_{size}", encoder_weights=None, in_channels=bands, classes=classes, decoder_segmentation_channels=SEGFORMER_WIDTHS[size]
    )
    for module in model.encoder.modules():
        if isinstance(module, Attention):
            module.sees_everything = "attention"  # for `receptive`
    return EncoderDecoder(model)


def library() -> Any:
    """segmentation_models_pytorch, which takes seconds to import. Raises Refused where it is not installed."""
    try:
        import segmentation_models_pytorch
    except ImportError as error:
        raise Refused(f"this architecture is segmentation-models-pytorch's: pip install segmentation-models-pytorch ({error})") from None
    return segmentation_models_pytorch
