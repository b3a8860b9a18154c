"""Spoken digits: recordings of six people at 8 kHz as log-mel frames, read from COMPRESSOR_DATA.

Free spoken digit dataset, https://github.com/Jakobovski/free-spoken-digit-dataset. By its convention the takes 0 to 4
are the test set; the takes 5 to 9 decide here, the rest trains.
"""

import io
import math
import wave
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from compressor.workload import Workload
from workbench.data_files import data_file

RATE, SAMPLES = 8000, 8000  # one second holds 99 % of the recordings; longer ones are cut
WINDOW, HOP, BANDS = 256, 128, 40


def spoken_digits(model: nn.Module, name: str) -> Workload:
    """The workload of a model (batch, 61, 40) -> (batch, 10)."""
    features, digits, takes = read()
    training = takes >= 10
    mean, deviation = features[training].mean(dim=(0, 1)), features[training].std(dim=(0, 1))
    features = (features - mean) / deviation
    parts = {"train": training, "validation": (takes >= 5) & (takes < 10), "test": takes < 5}
    return Workload.from_datasets(
        model,
        **{part: (features[mask], digits[mask]) for part, mask in parts.items()},
        batch_size=64,
        name=name,
    )


@cache
def read() -> tuple[Tensor, Tensor, Tensor]:
    """(recordings, frames, bands) log-mel energies, the digit and the take of every recording."""
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(data_file("fsdd.parquet"))
    waves = torch.stack([waveform(raw) for raw in table["wav"].to_pylist()])
    digits, takes = (torch.tensor(table[name].to_pylist()).long() for name in ("digit", "take"))
    return log_mel(waves), digits, takes


def waveform(raw: bytes) -> Tensor:
    """The first second of a 16-bit mono WAV file in [-1, 1), silence behind it where it is shorter."""
    with wave.open(io.BytesIO(raw)) as file:
        if file.getframerate() != RATE or file.getsampwidth() != 2 or file.getnchannels() != 1:
            raise ValueError(f"16-bit mono at {RATE} Hz is wanted, got {file.getparams()}")
        samples = np.frombuffer(file.readframes(SAMPLES), dtype="<i2").astype(np.float32) / 2**15
    return torch.nn.functional.pad(torch.from_numpy(samples), (0, SAMPLES - len(samples)))


def log_mel(waves: Tensor) -> Tensor:
    """(batch, samples) -> (batch, frames, BANDS): the logarithm of the energy in mel bands of every window."""
    spectrum = torch.stft(waves, WINDOW, HOP, window=torch.hann_window(WINDOW), center=False, return_complex=True)
    energy = spectrum.abs().square().transpose(1, 2)
    # The floor is the energy of the quietest recordings: digital silence has none.
    return (energy @ mel_filters(WINDOW // 2 + 1, BANDS)).clamp(min=1e-5).log()


def mel_filters(bins: int, bands: int) -> Tensor:
    """(bins, bands): triangles, equally wide in mel = 2595 log10(1 + f / 700), that overlap by half."""
    highest = 2595 * math.log10(1 + RATE / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(0, highest, bands + 2) / 2595) - 1)
    frequencies = torch.linspace(0, RATE / 2, bins).unsqueeze(1)
    low, middle, high = edges[:-2], edges[1:-1], edges[2:]
    rising, falling = (frequencies - low) / (middle - low), (high - frequencies) / (high - middle)
    return torch.minimum(rising, falling).clamp(min=0)
