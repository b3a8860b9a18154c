"""The networks that are not stored with the data: trained once, in minutes, and kept."""

from pathlib import Path

from torch import nn

from benchmarks.data import blood_cells, cifar, dense_networks, digit_images, networks, sentences, speech, street_scenes
from compressor.training.optimizers.choices import SGD, AdamW
from compressor.training.optimizers.schedules import OneCycle
from compressor.workload import Workload

REFERENCES = Path("runs/bench/references")
# Said, for networks that take minutes: they need not be trained again when the default changes.
_RISING = OneCycle(warm_up=0.3)


def vgg16() -> Workload:
    """VGG-16 at its full width, trained for as long as a core needs for more than a guess: about half an hour."""
    workload = cifar.around(networks.seeded(networks.VGG16), "vgg16", train_images=10_000)
    return networks.trained(workload, epochs=8, optimizer=SGD(rate=0.03), folder=REFERENCES)


def mobilenetv2() -> Workload:
    workload = cifar.around(networks.seeded(networks.MobileNetV2), "mobilenetv2", train_images=5000)
    return networks.trained(workload, epochs=3, optimizer=SGD(rate=0.05), folder=REFERENCES)


def lstm() -> Workload:
    return recurrent(nn.LSTM)


def gru() -> Workload:
    return recurrent(nn.GRU)


def recurrent(kind: type[nn.LSTM | nn.GRU]) -> Workload:
    """The spoken digits with a trained network of two recurrent layers."""
    model = networks.seeded(lambda: networks.RecurrentClassifier(kind, hidden=256))
    workload = speech.spoken_digits(model, f"spoken-digits-{kind.__name__.lower()}")
    return networks.trained(workload, epochs=20, optimizer=AdamW(rate=3e-3), folder=REFERENCES, schedule=_RISING)


def transformer() -> Workload:
    words = len(sentences.vocabulary()) + 2
    model = networks.seeded(lambda: networks.TextTransformer(vocabulary=words, length=sentences.LENGTH))
    workload = sentences.sentiment(model, "sentences-transformer")
    return networks.trained(workload, epochs=6, optimizer=AdamW(rate=5e-4), folder=REFERENCES)


def autoencoder() -> Workload:
    workload = digit_images.reconstruction(networks.seeded(networks.Autoencoder), "mnist-autoencoder")
    return networks.trained(workload, epochs=6, optimizer=SGD(rate=0.1), folder=REFERENCES)


def segmenter() -> Workload:
    """CamVid with a small U-Net."""
    model = networks.seeded(lambda: dense_networks.UNet(street_scenes.CLASSES))
    workload = street_scenes.street_scenes(model, "camvid-unet")
    return networks.trained(workload, epochs=30, optimizer=AdamW(rate=3e-3), folder=REFERENCES, schedule=_RISING)


def detector() -> Workload:
    """BCCD with a small anchor-free detector."""
    sides = {"height": blood_cells.HEIGHT, "width": blood_cells.WIDTH}
    model = networks.seeded(lambda: dense_networks.Detector(blood_cells.CLASSES, **sides))
    workload = blood_cells.blood_cells(model, "bccd-detector")
    return networks.trained(workload, epochs=40, optimizer=AdamW(rate=2e-3), folder=REFERENCES, schedule=_RISING)
