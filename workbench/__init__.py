"""What tests and benchmarks share, so that neither reaches into the other: networks, small data, samples of reports."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
