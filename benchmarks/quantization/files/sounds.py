"""Sound as a music transcriber is given it: two seconds at 22 kHz of generated tones and chords, and of speech."""

import numpy as np
from numpy.typing import NDArray

from benchmarks.data import speech
from workbench.data_files import data_file

RATE = 22050
# What basic_pitch's program cuts: two seconds less one hop.
SAMPLES = 2 * RATE - 256


def music(count: int) -> NDArray[np.float32]:
    """(count, SAMPLES, 1): plucked and held notes of several voices, loud and soft, every tenth one spoken digits."""
    random = np.random.default_rng(3)
    spoken = _spoken(count)
    rows = [spoken[index] if index % 10 == 9 else _notes(random) for index in range(count)]
    return np.stack(rows).astype(np.float32)[:, :, None]


def _notes(random: np.random.Generator) -> NDArray[np.float64]:
    time = np.arange(SAMPLES) / RATE
    sound = np.zeros(SAMPLES)
    for _ in range(int(random.integers(1, 12))):
        pitch = 440 * 2 ** ((int(random.integers(33, 88)) - 69) / 12)
        start, length = random.uniform(0, 1.6), random.uniform(0.15, 1.5)
        since = time - start
        held = (since >= 0) & (since < length)
        envelope = np.where(held, np.minimum(1, since / 0.01) * np.exp(-since * random.uniform(0.2, 6)), 0)
        for overtone in range(1, int(random.integers(2, 10))):
            if overtone * pitch < RATE / 2:
                phase = 2 * np.pi * (overtone * pitch * since + random.random())
                sound += envelope * np.sin(phase) / overtone ** random.uniform(0.8, 2)
    loudness = 10 ** random.uniform(-2, -0.2)
    return loudness * sound / max(1e-9, np.abs(sound).max()) + random.normal(0, 10 ** random.uniform(-5, -3), SAMPLES)


def _spoken(count: int) -> NDArray[np.float64]:
    """(count, SAMPLES): one second of speech twice, brought to the rate by linear interpolation."""
    import pyarrow.parquet

    raw = pyarrow.parquet.read_table(data_file("fsdd.parquet"), columns=["wav"])["wav"].to_pylist()
    times = np.arange(SAMPLES) / RATE * speech.RATE
    rows = []
    for index in range(count):
        twice = np.concatenate([speech.waveform(raw[(7 * index + part) % len(raw)]).numpy() for part in range(2)])
        rows.append(np.interp(times, np.arange(len(twice)), twice))
    return np.stack(rows)
