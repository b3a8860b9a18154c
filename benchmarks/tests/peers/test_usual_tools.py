"""Torch-Pruning goes as far as it is asked, by a count that a person can check."""

import pytest
import torch
import torch_pruning
from torch import nn

from benchmarks.peers import usual_tools


@pytest.mark.filterwarnings("ignore::UserWarning")  # Torch-Pruning warns of the parameters that it cannot name
def test_the_peer_reaches_its_macs(tiny_cnn):
    """Torch-Pruning's pruner stops at twice fewer MACs by its own count, with the output's width kept."""
    model, images = tiny_cnn().eval(), torch.randn(2, 3, 8, 8)
    pruned = usual_tools.prune_to_macs(model, images, ratio=2.0)
    before, after = (torch_pruning.utils.count_ops_and_params(each, images[:1])[0] for each in (model, pruned))
    assert before / after >= 1.9  # its count of one image and of two differ in what is added once
    assert pruned(images).shape == (2, 4)
    assert model.conv1.out_channels == 16


def test_the_peer_counts_layers_by_hand(tiny_cnn):
    """The count of convolutions and linear layers: output elements times the weights behind each."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Flatten(), nn.Linear(8 * 4 * 4, 5))
    assert usual_tools.layer_macs(model, torch.zeros(2, 3, 4, 4)) == 8 * 16 * 27 + 5 * 128
