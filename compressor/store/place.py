"""Where the store of stages is and how much it may hold, as the environment says."""

import math
import os
from pathlib import Path

from compressor.errors import WrongUseError
from compressor.storage import cache_folder
from compressor.store.kept import Store

PLACE, SIZE, DAYS = "COMPRESSOR_STORE", "COMPRESSOR_STORE_GIB", "COMPRESSOR_STORE_DAYS"
_OFF = {"off", "no", "none", "0"}
_GIB, _LONG_DAYS = 20.0, 90.0


def users_store(folder: Path | None = None) -> Store | None:
    """The store of this user: `folder`, else $COMPRESSOR_STORE, else `stages` in the cache folder.

    It holds at most $COMPRESSOR_STORE_GIB (20), and nothing that was not used for $COMPRESSOR_STORE_DAYS (90). None
    where $COMPRESSOR_STORE is `off`. Raises WrongUseError for numbers that are none, and StorageError where the folder
    holds other things.
    """
    named = os.environ.get(PLACE, "").strip()
    if folder is None and named.lower() in _OFF:
        return None
    most_bytes = int(_number(SIZE, _GIB) * (1 << 30))
    return Store(
        folder or Path(named or cache_folder() / "stages"), most_bytes=most_bytes, most_days=_number(DAYS, _LONG_DAYS)
    )


def _number(name: str, otherwise: float) -> float:
    text = os.environ.get(name, "").strip()
    try:
        value = float(text) if text else otherwise
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise WrongUseError(f"{name} must be a number above 0, got {text[:100]!r}; unset it for {otherwise:g}")
    return value
