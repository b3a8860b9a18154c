"""Recordings become frames that hear what is in them."""

import io
import math
import wave

import numpy as np
import pytest
import torch

from benchmarks.data import speech


def test_log_mel_frames_hear_a_tone():
    """A tone of 1000 Hz is loudest in the band around 1000 mel; silence is the floor everywhere."""
    tone = torch.sin(2 * math.pi * 1000 * torch.arange(speech.SAMPLES) / speech.RATE)
    frames = speech.log_mel(torch.stack([tone, torch.zeros_like(tone)]))
    assert frames.shape == (2, 61, 40)
    assert torch.equal(frames[1], torch.full((61, 40), math.log(1e-5)))
    # The centres are 2146.1 / 41 mel apart, and 1000 Hz are 1000 mel.
    assert frames[0].mean(dim=0).argmax() == round(1000 * 41 / 2146.1) - 1


def test_recordings_become_one_second():
    """A short 16-bit file is scaled to [-1, 1) and followed by silence; another rate is refused."""

    def recording(rate):
        file = io.BytesIO()
        with wave.open(file, "wb") as out:
            out.setnchannels(1)
            out.setsampwidth(2)
            out.setframerate(rate)
            out.writeframes(np.array([16384, -32768], dtype="<i2").tobytes())
        return file.getvalue()

    samples = speech.waveform(recording(8000))
    assert samples[:3].tolist() == [0.5, -1.0, 0.0]
    assert samples.shape == (8000,)
    with pytest.raises(ValueError, match="8000 Hz is wanted"):
        speech.waveform(recording(16_000))
