"""Pictures as text readers and photo turners are given them: lines and pages of text, photographs of all directions.

Sentences are those of SST-2, photographs those of ImageNet, both from COMPRESSOR_DATA; the fonts are those that
matplotlib and the system bring.
"""

import io
import math
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from workbench.data_files import data_file

Floats = NDArray[np.float32]
_SYSTEM_FONTS = Path("/usr/share/fonts/truetype")


def text_lines(count: int, *, height: int, width: int, turned: bool = False) -> Floats:
    """(count, 3, height, width): a line of text in each, fitted and padded as rapidocr's readers do, in [-1, 1].

    With `turned` every second one stands on its head.
    """
    random = np.random.default_rng(0)
    rows = []
    for index, text in enumerate(_texts(count, random)):
        line = _line(text, random)
        if turned and index % 2:
            line = line.rotate(180)
        fitted = min(width, math.ceil(height * line.width / line.height))
        pixels = np.asarray(line.resize((fitted, height), Image.Resampling.BILINEAR), dtype=np.float32)
        row = np.zeros((3, height, width), dtype=np.float32)
        row[:, :, :fitted] = (pixels.transpose(2, 0, 1)[::-1] / 255 - 0.5) / 0.5
        rows.append(row)
    return np.stack(rows)


def pages(count: int, *, size: int) -> Floats:
    """(count, 3, size, size): lines of text on paper and on photographs, scaled as rapidocr's detector does."""
    random = np.random.default_rng(1)
    texts = iter(_texts(count * 20, random))
    rows = []
    for index in range(count):
        shade = int(random.integers(200, 256))
        page = Image.new("RGB", (size, size), (shade, shade, shade))
        if index % 2:
            page = photographs()[index].resize((size, size), Image.Resampling.BILINEAR)
        top = int(random.integers(10, 60))
        for _ in range(int(random.integers(3, 12))):
            line = _line(next(texts), random)
            if line.width > size - 20:
                line = line.resize((size - 20, max(12, line.height * (size - 20) // line.width)))
            if top + line.height > size:
                break
            page.paste(line, (int(random.integers(0, size - line.width + 1)), top))
            top += line.height + int(random.integers(4, 50))
        pixels = np.asarray(page, dtype=np.float32).transpose(2, 0, 1)[::-1]
        rows.append((pixels / 255 - 0.5) / 0.5)
    return np.stack(rows)


def turned_photographs(count: int, *, size: int) -> Floats:
    """(count, 3, size, size): photographs and pages of text, turned by 0, 90, 180 or 270 degrees, normalised."""
    random = np.random.default_rng(2)
    mean, deviation = (np.array(each, dtype=np.float32) for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    paper = (pages(count // 2, size=2 * size)[:, ::-1] * 0.5 + 0.5) * 255
    rows = []
    for index in range(count):
        picture = photographs()[index] if index % 2 else Image.fromarray(_bytes(paper[index // 2]))
        picture = picture.rotate(90 * int(random.integers(4))).resize((size, size), Image.Resampling.LANCZOS)
        pixels = np.asarray(picture, dtype=np.float32)[:, :, ::-1]
        rows.append(((pixels / 255 - mean) / deviation).transpose(2, 0, 1))
    return np.stack(rows).astype(np.float32)


@cache
def photographs() -> list[Image.Image]:
    """The photographs, 224 x 224."""
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(data_file("imagenet-500.parquet"), columns=["image"])
    return [Image.open(io.BytesIO(raw)).convert("RGB") for raw in table["image"].to_pylist()]


def _texts(count: int, random: np.random.Generator) -> list[str]:
    """Pieces of sentences, some with numbers, some in capitals."""
    import pyarrow.parquet

    sentences = pyarrow.parquet.read_table(data_file("sst2-train.parquet"))["sentence"].to_pylist()
    found = []
    for index in random.choice(len(sentences), size=count, replace=count > len(sentences)).tolist():
        words = sentences[index].split()
        first = int(random.integers(max(1, len(words) - 5)))
        text = " ".join(words[first : first + int(random.integers(1, 6))])
        if random.random() < 0.2:
            text = text.upper()
        if random.random() < 0.2:
            text += f" {int(random.integers(10000))}"
        found.append(text)
    return found


def _line(text: str, random: np.random.Generator) -> Image.Image:
    """One line as a camera or a scanner gives it: dark on light or light on dark, a little blurred and noisy."""
    font = _fonts(int(random.integers(18, 56)))[int(random.integers(len(_fonts(32))))]
    left, top, right, bottom = font.getbbox(text)
    margin = int(random.integers(2, 8))
    dark, light = (tuple(random.integers(low, low + 90, size=3).tolist()) for low in (0, 160))
    ink, paper = (light, dark) if random.random() < 0.25 else (dark, light)
    picture = Image.new("RGB", (int(right - left) + 2 * margin, int(bottom - top) + 2 * margin), paper)
    ImageDraw.Draw(picture).text((margin - left, margin - top), text, font=font, fill=ink)
    picture = picture.filter(ImageFilter.GaussianBlur(float(random.uniform(0, 1.2))))
    noisy = np.asarray(picture, dtype=np.float32) + random.normal(0, random.uniform(0, 12), (*picture.size[::-1], 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


@cache
def _fonts(size: int) -> list[ImageFont.FreeTypeFont]:
    """The DejaVu and Liberation fonts that are there, in a fixed order."""
    from matplotlib import get_data_path

    folders = (Path(get_data_path()) / "fonts" / "ttf", _SYSTEM_FONTS)
    names = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSansMono", "LiberationSans-Regular")
    names += ("LiberationSerif-Regular", "LiberationSerif-Italic", "LiberationMono-Regular")
    paths = [next(iter(sorted(path for one in folders for path in one.rglob(f"{name}.ttf"))), None) for name in names]
    return [ImageFont.truetype(path, size) for path in paths if path is not None]


def _bytes(pixels: Floats) -> NDArray[np.uint8]:
    return pixels.transpose(1, 2, 0).round().clip(0, 255).astype(np.uint8)
