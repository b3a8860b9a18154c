"""Every reader of files from elsewhere, with a good file for each, and files that are damaged or made up."""

import io
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from compressor import Recipe, load_checkpoint
from compressor.packing.files import unpack
from compressor.packing.writer import packed
from compressor.report.record import RunRecord
from compressor.storage import parsed_json
from compressor.structure.checkpoint import PLAN_FILE, WEIGHTS_FILE, checkpoint_files
from compressor.tensor_files import read_tensor_file, tensor_file
from compressor.trust.audit import LOG, AuditLog
from compressor.trust.canonical import canonical
from compressor.trust.encryption import decrypted, encrypt
from compressor.trust.keys import Kind, generate, read_private, read_public
from compressor.trust.manifest import SIGNATURE, Manifest, write_manifest
from compressor.trust.openssf import read_bundle, signed_bundle
from compressor.trust.signing import sign_folder
from compressor.trust.statements import parsed_signatures
from compressor.trust.tree import Digest
from compressor.trust.trusted import TrustedKey, TrustStore
from compressor.workloads.arrays import read_arrays
from workbench.mutations import damaged, edited

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


def arrays_of(path: Path) -> Any:
    """The arrays; one that is read under the name that it was written with has the bits that were written."""
    found = read_arrays(path)
    for name, wanted in {"inputs": np.zeros((4, 3), np.float32), "targets": np.arange(4)}.items():
        if name in found:
            assert found[name].dtype == wanted.dtype
            assert np.array_equal(found[name], wanted)
    return found


def onnx_file(_: Path) -> bytes:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    held = [numpy_helper.from_array(np.zeros((40, 40), np.float32), "w")]
    return helper.make_model(
        helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [x], [y], held)
    ).SerializeToString()


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def checkpoint(raw: bytes, place: Path, *, other: str, verify: bool) -> Any:
    """The model of a checkpoint one of whose files, `other`, is `raw`."""
    for name, content in checkpoint_files(linear(), []).items():
        (place / name).write_bytes(raw if name == other else content)
    return load_checkpoint(place, linear, verify=verify)


def tensors(_: Path) -> bytes:
    return tensor_file({"a": torch.arange(6.0), "b": torch.zeros(2, 2)}, {"n": 1})


def as_written(found: tuple[dict[str, torch.Tensor], dict[str, Any]]) -> Any:
    """What was read, where it is what `tensors` wrote: a header that is spelled with other spaces holds the same."""
    wanted = {"a": torch.arange(6.0), "b": torch.zeros(2, 2)}
    assert found[0].keys() == wanted.keys()
    assert all(torch.equal(found[0][name], tensor) for name, tensor in wanted.items())
    assert found[1] == {"n": 1}
    return found


def model_as_written(model: nn.Module) -> nn.Module:
    """The same for the weights of a checkpoint."""
    wanted = linear().state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in model.state_dict().items())
    return model


def logged(place: Path) -> bytes:
    folder = place / "log"
    if not folder.exists():
        log = AuditLog.begin(folder)
        for did in ("run", "sign"):
            log.append(did, what=folder)
        (place / "log as it was").write_bytes((folder / LOG).read_bytes())
    return (place / "log as it was").read_bytes()


def log_of(raw: bytes, place: Path) -> Any:
    """The entries; a newest line that is cut off is read from the head, so that equal entries are no other result."""
    (place / "log" / LOG).write_bytes(raw)
    found = list(AuditLog(place / "log").entries())
    assert b"".join(canonical(entry) + b"\n" for entry in found) == logged(place)
    return found


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
    "arrays": Reader(arrays, at(arrays_of), exact=False),
    "tensors": Reader(
        tensors, at(lambda path: as_written(read_tensor_file(path, way_out="get it again"))), exact=False
    ),
    "tensors in memory": Reader(
        tensors,
        lambda raw, _: as_written(read_tensor_file(Path("it"), way_out="get it again", content=raw)),
        exact=False,
    ),
    "plan": Reader(
        lambda _: b"[]", lambda raw, place: checkpoint(raw, place, other=PLAN_FILE, verify=False), exact=False
    ),
    "plan of a checkpoint": Reader(
        lambda _: checkpoint_files(linear(), [])[PLAN_FILE],
        lambda raw, place: checkpoint(raw, place, other=PLAN_FILE, verify=True),
    ),
    "weights of a checkpoint": Reader(
        lambda _: checkpoint_files(linear(), [])[WEIGHTS_FILE],
        lambda raw, place: model_as_written(checkpoint(raw, place, other=WEIGHTS_FILE, verify=True)),
        exact=False,
    ),
    "audit log": Reader(logged, log_of, exact=False),
    "report": Reader(
        lambda _: json.dumps(REPORT).encode(),
        lambda raw, _: RunRecord.from_json(parsed_json(raw, Path("it"), way_out="get it again")),
        exact=False,
    ),
}


def prepared(place: Path) -> Path:
    """`place` with the keys in it that the samples are made with."""
    for kind in Kind:
        generate(place / kind.value, kind)
    return place


def mutant(sample: bytes, chance: random.Random, *, how: str, bare: bytes) -> bytes:
    """Bytes made of `sample`: "damaged" up to three times, "edited" as JSON, or hardly more than `bare`."""
    if how == "bare":
        return chance.choice([bare, sample[: chance.randrange(30)] + bare])
    if how == "edited":
        try:
            return json.dumps(edited(json.loads(sample), chance)).encode()
        except (ValueError, RecursionError):  # no JSON, or too deep
            return sample + bare
    for _ in range(chance.randint(1, 3)):
        sample = damaged(sample, chance) if sample else sample
    return sample
