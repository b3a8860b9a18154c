"""What is ranked against what when a fraction of a network is to go."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Global:
    """Everything together: those that matter least go, wherever they are."""


@dataclass(frozen=True, kw_only=True)
class PerLayer:
    """Each layer by itself: the same fraction of every layer's channels goes."""


@dataclass(frozen=True, kw_only=True)
class PerGroup:
    """Each group of alike blocks by itself: the same fraction of every group goes."""
