"""Tensors and JSON facts in one safetensors file: equal content gives equal bytes, and reading checks every byte."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load, save
from torch import Tensor

from compressor.errors import StorageError
from compressor.storage import sha256

# One entry alone: the library writes several in an order that differs from process to process.
_ENTRY = "compressor"
# Some hundred bytes for each tensor, and the facts; the library takes a hundred times as much memory as it has bytes.
_MOST_HEADER_BYTES = 16 << 20


def tensor_file(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> bytes:
    """The file that holds `tensors` and the JSON values `facts`, with a digest of each.

    Raises StorageError for tensors of a kind that safetensors does not know.
    """
    flat = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    sealed = {"facts": facts, "tensors": {name: _digest(name, tensor) for name, tensor in flat.items()}}
    metadata = {_ENTRY: json.dumps({**sealed, "sha256": _seal(sealed)}, sort_keys=True, allow_nan=False)}
    try:
        content: bytes = save(flat, metadata=metadata)
    except Exception as error:
        kinds = sorted({str(tensor.dtype) for tensor in flat.values()})
        raise StorageError(
            f"tensors of the kinds {', '.join(kinds)} cannot all be stored as safetensors ({error}); "
            "keep what is of another kind in the model's constructor"
        ) from error
    return content


def read_tensor_file(
    path: Path, *, way_out: str, verify: bool = True, without_digests: str = "", content: bytes | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and facts of `tensor_file`.

    Raises StorageError, naming file and tensor and ending with `way_out`, where anything differs from what was written;
    where it has no digests at all the way out is `without_digests`, if there is one.
    Without `verify` digests are not compared, and a file without them gives its metadata as facts. With `content`, what
    the file holds is taken from there, and `path` only names it.
    """
    try:
        if content is None:
            _check_header(path)
            with safe_open(path, framework="pt") as file:
                metadata: dict[str, str] = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
        else:
            length = int.from_bytes(content[:8], "little")
            _check_length(length, len(content))
            tensors = load(content)
            metadata = json.loads(content[8 : 8 + length]).get("__metadata__") or {}
    except Exception as error:
        raise StorageError(f"{path} is not a readable safetensors file ({error}); {way_out}") from error
    if _ENTRY not in metadata:
        if verify:
            raise StorageError(
                f"{path} has no digests, so nothing shows that it is as it was written; {without_digests or way_out}"
            )
        return tensors, dict(metadata)
    facts, digests = _sealed(metadata[_ENTRY], path, way_out, verify=verify)
    if verify:
        if set(digests) != set(tensors):
            raise StorageError(
                f"{path} does not hold the tensors it was written with: {sorted(set(digests) ^ set(tensors))[:5]} are "
                f"missing or new; {way_out}"
            )
        for name, tensor in tensors.items():
            if digests[name] != _digest(name, tensor):
                raise StorageError(f"tensor {name!r} in {path} is not as it was written; {way_out}")
    return tensors, facts


def _check_header(path: Path) -> None:
    """Raises ValueError where the list of tensors is longer than that of any model, or than the file."""
    if not path.is_file():
        raise ValueError("it is no regular file, or not there")
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    _check_length(length, path.stat().st_size)


def _check_length(length: int, size: int) -> None:
    if length > min(_MOST_HEADER_BYTES, size - 8):
        raise ValueError(
            f"it says that its list of tensors has {length:,} bytes, and at most {_MOST_HEADER_BYTES:,} are read"
        )


def raw_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a dense tensor in the order of its elements, without a copy where they lie so already."""
    # numpy knows neither bfloat16 nor float8: every tensor is seen as its bytes.
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


def _digest(name: str, tensor: Tensor) -> str:
    digest = hashlib.sha256(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
    digest.update(raw_bytes(tensor))
    return digest.hexdigest()


def _seal(sealed: Mapping[str, Any]) -> str:
    return sha256(json.dumps([sealed["facts"], sealed["tensors"]], sort_keys=True).encode())


def _sealed(text: str, path: Path, way_out: str, *, verify: bool) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        sealed = json.loads(text)
        facts, digests = sealed["facts"], sealed["tensors"]
        good = isinstance(facts, dict) and isinstance(digests, dict)
        good = good and (not verify or sealed["sha256"] == _seal(sealed))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise StorageError(f"the header of {path} is not as it was written ({error}); {way_out}") from error
    if not good:
        raise StorageError(f"the header of {path} is not as it was written; {way_out}")
    return facts, digests
