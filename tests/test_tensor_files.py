"""Files of tensors: lists of tensors without measure are not read."""

import json
import os
import resource
from pathlib import Path

import pytest
import torch

from compressor.errors import StorageError
from compressor.tensor_files import read_tensor_file, tensor_file


def test_what_was_written_is_read(tmp_path: Path) -> None:
    """Many tensors with long names stay far below the limit."""
    tensors = {f"{'layer.' * 20}{number}": torch.tensor([float(number)]) for number in range(3000)}
    (tmp_path / "a.safetensors").write_bytes(tensor_file(tensors, {"a": 1}))
    found, facts = read_tensor_file(tmp_path / "a.safetensors", way_out="delete it")
    assert facts == {"a": 1}
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize(
    ("length", "header"),
    [
        (1 << 63, b"{}"),
        (1 << 40, b"{}"),
        (1000, b"{}"),
        (17 << 20, b"{" + b" " * ((17 << 20) - 2) + b"}"),
        (0, b""),
        (2, b"[]"),
        (9000, json.dumps({"a": {}}).encode() + b"[" * 8000),
    ],
)
def test_a_header_beyond_measure_is_refused(length: int, header: bytes, tmp_path: Path) -> None:
    """A list of tensors that is longer than the file, or than any model's, costs no memory and is a typed error."""
    path = tmp_path / "a.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + header)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(StorageError, match=r"a\.safetensors is not a readable safetensors file .*; delete it"):
        read_tensor_file(path, way_out="delete it")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60 << 10


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    """A pipe, a folder and nothing at all are not waited for."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, tmp_path / "nothing", Path("/dev/zero")):
        with pytest.raises(StorageError, match="no regular file, or not there"):
            read_tensor_file(path, way_out="delete it")
