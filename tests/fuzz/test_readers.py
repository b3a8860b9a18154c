"""Whatever a file holds, a reader ends soon and with an error of ours, or gives what was written: `make fuzz`.

Damage is drawn by hypothesis, which shrinks what it finds; an input that was found becomes a test beside its reader.
FUZZ_EXAMPLES is how many are tried for each reader.
"""

import io
import json
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from compressor import Recipe, load_checkpoint
from compressor.errors import CompressorError
from compressor.packing.files import unpack
from compressor.packing.writer import packed
from compressor.report.record import RunRecord
from compressor.storage import parsed_json
from compressor.structure.checkpoint import checkpoint_files
from compressor.tensor_files import read_tensor_file, tensor_file
from compressor.trust.encryption import decrypted, encrypt
from compressor.trust.keys import Kind, generate, read_private, read_public
from compressor.trust.manifest import MANIFEST, SIGNATURE, Manifest, write_manifest
from compressor.trust.openssf import read_bundle, signed_bundle
from compressor.trust.signing import sign_folder
from compressor.trust.statements import parsed_signatures
from compressor.trust.tree import Digest
from compressor.trust.trusted import TrustedKey, TrustStore
from compressor.workloads.arrays import read_arrays
from workbench.mutations import damaged, edited

pytestmark = pytest.mark.fuzz
pytest.importorskip("cryptography", reason="keys need it: pip install .[trust]")

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "500"))
RECIPE = """# For CPUs.
name: small
budget: {max_drop: 0.02}
stages:
  - drop_blocks: {remove: 0.5}
  - distill: {epochs: 8, temperature: 4}
  - quantize
"""


@dataclass(frozen=True)
class Reader:
    """What a good file holds, and how one is read; `exact` readers give nothing else of any other bytes."""

    sample: Callable[[Path], bytes]
    read: Callable[[bytes, Path], Any]
    exact: bool = True


def at(read: Callable[[Path], Any]) -> Callable[[bytes, Path], Any]:
    """The same reader for a file on disk."""

    def from_file(raw: bytes, place: Path) -> Any:
        (place / "it").write_bytes(raw)
        (place / "it").chmod(0o600)
        return read(place / "it")

    return from_file


def manifest(_: Path) -> bytes:
    return Manifest(files={"a": Digest(1, "0" * 64), "b/c": Digest(0, "f" * 64)}, made={"seed": 1}).to_bytes()


def signatures(place: Path) -> bytes:
    folder = place / "signed"
    if not folder.exists():
        folder.mkdir()
        write_manifest(folder, Manifest(files={}))
        sign_folder(folder, read_private(place / "p256"), name="n", days=3)
    return (folder / SIGNATURE).read_bytes()


def store(place: Path) -> bytes:
    public = read_public(place / "ed25519.pub")
    TrustStore(keys={public.key_id: TrustedKey(public=public)}).write(place / "store")
    return (place / "store").read_bytes()


def sealed(place: Path) -> bytes:
    (place / "plain").write_bytes(b"content" * 20_000)
    out = place / "plain.enc"
    if not out.exists():
        encrypt(place / "plain", out, to=[read_public(place / "x25519.pub")])
    return out.read_bytes()


def arrays(_: Path) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, inputs=np.zeros((4, 3), np.float32), targets=np.arange(4))
    return file.getvalue()


def onnx_file(_: Path) -> bytes:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    held = [numpy_helper.from_array(np.zeros((40, 40), np.float32), "w")]
    return helper.make_model(
        helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [x], [y], held)
    ).SerializeToString()


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def plan_of(raw: bytes, place: Path) -> Any:
    for name, content in checkpoint_files(linear(), []).items():
        (place / name).write_bytes(raw if name == "plan.json" else content)
    return load_checkpoint(place, linear, verify=False)


REPORT = {
    "schema_version": 1,
    "workload": {"name": "w"},
    "environment": {},
    "steps": [{"stage": "reference", "kept": True, "seconds": 1.0, "details": {"a": [1]}}],
    "final": 0,
}
READERS = {
    "manifest": Reader(manifest, lambda raw, _: Manifest.from_bytes(raw)),
    "signatures": Reader(signatures, lambda raw, _: parsed_signatures(raw, what="it", most_bytes=1 << 20)),
    "model.sig": Reader(
        lambda place: signed_bundle({"a": "0" * 64}, read_private(place / "p256"), name="n"),
        lambda raw, _: read_bundle(raw, what="it"),
        exact=False,
    ),
    "trust store": Reader(store, at(TrustStore.read), exact=False),
    "public key": Reader(lambda place: (place / "ed25519.pub").read_bytes(), at(read_public), exact=False),
    "private key": Reader(lambda place: (place / "ed25519").read_bytes(), at(read_private), exact=False),
    "encrypted": Reader(sealed, lambda raw, place: decrypted(Path("it"), read_private(place / "x25519"), content=raw)),
    "recipe": Reader(lambda _: RECIPE.encode(), lambda raw, _: Recipe.loads(raw.decode(errors="replace")), exact=False),
    "packed": Reader(
        lambda place: b"".join(packed(onnx_file(place))), at(lambda path: unpack(path, path.with_name("out")))
    ),
    "arrays": Reader(arrays, at(read_arrays), exact=False),
    "tensors": Reader(
        lambda _: tensor_file({"a": torch.arange(6.0), "b": torch.zeros(2, 2)}, {"n": 1}),
        at(lambda path: read_tensor_file(path, way_out="get it again")),
    ),
    "tensors in memory": Reader(
        lambda _: tensor_file({"a": torch.arange(6.0), "b": torch.zeros(2, 2)}, {"n": 1}),
        lambda raw, _: read_tensor_file(Path("it"), way_out="get it again", content=raw),
    ),
    "plan": Reader(lambda _: b"[]", plan_of, exact=False),
    "report": Reader(
        lambda _: json.dumps(REPORT).encode(),
        lambda raw, _: RunRecord.from_json(parsed_json(raw, Path("it"), way_out="get it again")),
        exact=False,
    ),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    for kind in Kind:
        generate(folder / kind.value, kind)
    return folder


@pytest.mark.parametrize("name", READERS)
@pytest.mark.filterwarnings("ignore::UserWarning")
@given(seed=st.integers(0, 2**32), bare=st.binary(max_size=200), how=st.sampled_from(["damaged", "edited", "bare"]))
@settings(
    max_examples=EXAMPLES,
    deadline=5000,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_damage_ends_in_an_error_of_ours(place, name, seed, bare, how) -> None:
    """Within five seconds; exact readers give nothing but what was written, whatever the damage."""
    reader, chance = READERS[name], random.Random(seed)  # noqa: S311 - no secret
    sample = reader.sample(place)
    raw = sample
    for _ in range(chance.randint(1, 3)):
        raw = damaged(raw, chance) if raw else raw
    if how == "edited":
        try:
            raw = json.dumps(edited(json.loads(sample), chance)).encode()
        except ValueError:  # no JSON
            raw = sample + bare
    if how == "bare":
        raw = chance.choice([bare, sample[: chance.randrange(30)] + bare])
    try:
        found = reader.read(raw, place)
    except CompressorError as error:
        # Colours of a terminal and pages of somebody's dump are none of what a reader says.
        if not 0 < len(str(error)) <= 9000 or "\x1b" in str(error):
            pytest.fail(f"an error without a sentence: {str(error)[:300]!r}")
        return
    assert not reader.exact or raw == sample, f"{found!r} was read of other bytes"


def test_the_samples_are_good(place) -> None:
    """Each reader reads its own, so that what is refused above is refused for its damage."""
    for reader in READERS.values():
        reader.read(reader.sample(place), place)
    assert onnx.load_from_string(onnx_file(place)).graph.initializer[0].name == "w"
    assert MANIFEST == "manifest.json"
