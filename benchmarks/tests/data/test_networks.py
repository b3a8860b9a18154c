"""The networks are those of their papers."""

import torch
from torch import nn

from benchmarks.data import networks


def test_the_networks_have_the_shapes_of_their_papers():
    """VGG-16 has 14.7 M parameters before its classifier, MobileNetV2 2.2 M without; all give what they say."""

    def size(model):
        return sum(parameter.numel() for parameter in model.parameters())

    assert size(networks.VGG16().features) == 14_714_688 - 4224 + 8448  # biases made way for scales and shifts
    assert size(networks.MobileNetV2().features) == 2_223_872
    images = torch.randn(2, 3, 32, 32)
    assert networks.VGG16(width=0.125)(images).shape == (2, 10)
    assert networks.MobileNetV2(blocks=1, head=64)(images).shape == (2, 10)
    assert networks.RecurrentClassifier(nn.GRU, hidden=8)(torch.randn(2, 61, 40)).shape == (2, 10)
    words = torch.tensor([[3, 4, 0, 0], [5, 6, 7, 8]])
    model = networks.TextTransformer(vocabulary=9, length=4, width=8, heads=2, feed_forward=16, layers=1).eval()
    assert model(words).shape == (2, 2)
    assert networks.Autoencoder(width=4)(torch.rand(2, 1, 28, 28)).shape == (2, 1, 28, 28)
