"""Small pictures as PNG files (ISO/IEC 15948), for pages that need no other file."""

import struct
import zlib

import torch
from torch import Tensor
from torch.nn import functional as F

_LARGEST = 96


def png(image: Tensor) -> bytes:
    """A PNG file of (1 or 3, height, width) in [0, 1]; larger sides than 96 pixels are averaged down to that."""
    scale = _LARGEST / max(image.shape[1:])
    if scale < 1:
        size = [max(1, round(scale * side)) for side in image.shape[1:]]
        image = F.interpolate(image[None].float(), size=size, mode="area")[0]
    channels, height, width = image.shape
    pixels = (image.float().nan_to_num().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous()
    # Every line begins with its filter: none.
    lines = b"".join(b"\0" + bytes(line.flatten().tolist()) for line in pixels)
    head = struct.pack(">IIBBBBB", width, height, 8, 2 if channels == 3 else 0, 0, 0, 0)
    parts = (b"IHDR", head), (b"IDAT", zlib.compress(lines, 9)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, data) for name, data in parts)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
