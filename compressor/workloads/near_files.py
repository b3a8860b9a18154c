"""Workload names that mean files: whether they are there, which were probably meant, and what other formats need."""

import difflib
import os.path
from pathlib import Path

from compressor.errors import WorkloadError

# What people have instead of an ONNX file, and how it becomes one.
_OTHER_FORMATS = {
    **dict.fromkeys((".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".pkl"), "weights of torch without their class"),
    **dict.fromkeys((".tflite", ".pb", ".h5", ".keras"), "a model of TensorFlow"),
    **dict.fromkeys((".ort",), "a model that ONNX Runtime has already laid out for one machine"),
}
_WAYS_OUT = {
    "weights of torch without their class": "write a function that loads them and returns "
    "compressor.Workload.from_loaders(...), and give it as package.module:function",
    "a model of TensorFlow": "tf2onnx writes it as an ONNX file",
    "a model that ONNX Runtime has already laid out for one machine": "give the .onnx file that it was made of",
}
_SHOWN = 5
_LONGEST = 200
_NEAR = 0.6
# Where the rest of the name could be a function of a module: `my.online:build` is one, `m.onx:in` hardly.
_VERY_NEAR = 0.8


def check_file(path: Path, what: str) -> None:
    """Raises WorkloadError where nothing lies at `path`, with the nearest file of its folder or those of its kind."""
    # os.path answers where a name is none that a file can have; pathlib raises.
    if os.path.exists(path):  # noqa: PTH110
        return
    folder = path.parent
    if not os.path.isdir(folder):  # noqa: PTH112
        raise WorkloadError(f"no file {str(path)[:_LONGEST]}, {what}: there is no folder {str(folder)[:_LONGEST]}")
    near = _nearest(path, path.suffix)
    alike = [one.name for one in _of_kind(folder, path.suffix)][:_SHOWN]
    others = f"; {folder.absolute()} has {', '.join(alike)}" if alike else ""
    raise WorkloadError(f"no file {str(path)[:_LONGEST]}, {what}{f'; did you mean {near!r}?' if near else others}")


def refuse_near_files(name: str) -> None:
    """Raises WorkloadError where `name`, which is no model.onnx[:data.npz], means files nevertheless."""
    model, colon, data = (name, "", "") if os.path.exists(name) else name.partition(":")  # noqa: PTH110
    suffix = Path(model).suffix.lower()
    kind = _OTHER_FORMATS.get(suffix)
    arrays = bool(data) and _is_near(Path(data).suffix, ".npz")
    if kind is not None and (arrays or not colon or os.path.isfile(model)):  # noqa: PTH113
        raise WorkloadError(
            f"{model[:_LONGEST]} is {kind}, and a workload of files is model.onnx:data.npz; {_WAYS_OUT[kind]}"
        )
    if not (arrays or _is_near(suffix, ".onnx", ratio=_VERY_NEAR if colon else _NEAR)):
        return
    meant = Path(model).with_suffix(".onnx") if Path(model).name else Path("model.onnx")
    if os.path.isfile(model):  # noqa: PTH113
        way_out = f"{model[:_LONGEST]} is there: is it an ONNX file, rename it to {meant.name[:_LONGEST]}"
    else:
        near = _nearest(meant, ".onnx")
        lies = f"{near} lies in" if near else "no such file lies in"
        asked = str(meant.parent / (near or meant.name)) + colon + data
        way_out = f"did you mean {asked[:_LONGEST]!r}? {lies} {str(meant.parent.absolute())[:_LONGEST]}"
    raise WorkloadError(f"a workload of files is model.onnx:data.npz, got {name[:_LONGEST]!r}; {way_out}")


def _nearest(path: Path, suffix: str) -> str:
    """The file beside `path` that ends with `suffix` and is called most nearly like it; "" where none is."""
    names = {one.stem: one.name for one in _of_kind(path.parent, suffix)}
    return next((names[stem] for stem in difflib.get_close_matches(path.stem, names, n=1, cutoff=_NEAR)), "")


def _of_kind(folder: Path, suffix: str) -> list[Path]:
    """The files of `folder` that end with `suffix`."""
    if not (suffix and os.path.isdir(folder)):  # noqa: PTH112
        return []
    return sorted(one for one in folder.iterdir() if one.suffix.lower() == suffix.lower() and one.is_file())


def _is_near(suffix: str, wanted: str, *, ratio: float = _NEAR) -> bool:
    """Whether `suffix` is `wanted` with a letter more, less, other or in another place."""
    return len(suffix) > 2 and difflib.SequenceMatcher(None, suffix.lower(), wanted).ratio() > ratio
