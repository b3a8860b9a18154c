"""Signatures as the OpenSSF's model-signing writes and reads them: a Sigstore bundle around an in-toto statement.

Format: https://github.com/sigstore/model-transparency, predicate `https://model_signing/signature/v1.0`; envelope DSSE
(https://github.com/secure-systems-lab/dsse); with a key on P-256 and no network. `model_signing verify key` takes what
`signed_bundle` gives, and `read_bundle` what `model_signing sign key` wrote.
"""

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compressor.errors import TrustError, WrongUseError
from compressor.trust.canonical import require_few_values, without_twins
from compressor.trust.keys import Kind, PrivateKey, PublicKey
from compressor.trust.statements import is_signed, raw_signature
from compressor.trust.tree import is_plain_name, shown

MOST_BUNDLE_BYTES = 64_000_000
_MEDIA = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD = "application/vnd.in-toto+json"
_STATEMENT = "https://in-toto.io/Statement/v1"
_PREDICATE = "https://model_signing/signature/v1.0"
# Files that the two tools' own signatures are, and those of git, which model-signing passes over by default.
_PASSED_OVER = ("model.sig", "signature.json", ".git", ".gitignore", ".gitattributes", ".github")


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """What was signed: {name: SHA-256} of the `files`, and the names that were passed over, by the key of id `hint`."""

    name: str
    files: dict[str, str]
    passed_over: tuple[str, ...]
    hint: str
    message: bytes
    signature: bytes

    def is_by(self, key: PublicKey) -> bool:
        """Whether `key`, on P-256, made the signature."""
        return key.kind is Kind.P256 and _hint(key) == self.hint and is_signed(key, self.message, self.signature)

    def covers(self, name: str) -> bool:
        """Whether a file of that name would have been signed had it been there."""
        return not any(name == passed or name.startswith(f"{passed}/") for passed in self.passed_over)


def signed_bundle(files: Mapping[str, str], key: PrivateKey, *, name: str) -> bytes:
    """The file model.sig over `files`, {name: SHA-256 in hexadecimal}. Raises WrongUseError for a key not on P-256."""
    if key.kind is not Kind.P256:
        raise WrongUseError(f"model-signing knows keys on P-256, and this one is {key.kind}; make one: --kind p256")
    left = {name: digest for name, digest in sorted(files.items()) if name not in _PASSED_OVER}
    root = hashlib.sha256(b"".join(map(bytes.fromhex, left.values()))).hexdigest()
    statement = {
        "_type": _STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": root}}],
        "predicateType": _PREDICATE,
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": list(_PASSED_OVER),
            },
            "resources": [{"name": name, "digest": digest, "algorithm": "sha256"} for name, digest in left.items()],
        },
    }
    payload = json.dumps(statement, sort_keys=True, ensure_ascii=False).encode()
    signature = raw_signature(key, _pae(payload))
    bundle = {
        "mediaType": _MEDIA,
        "verificationMaterial": {"publicKey": {"hint": _hint(key.public)}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": _PAYLOAD,
            "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": ""}],
        },
    }
    return json.dumps(bundle, sort_keys=True).encode()


def read_bundle(raw: bytes, *, what: str) -> Bundle:
    """What the file `raw` says and how it is signed; the signature is not looked at yet.

    Raises TrustError for what is no such file, is made without a key (Sigstore's keyless way), or lists its files by
    anything but whole SHA-256.
    """
    require_few_values(raw, what)
    try:
        return _bundle(raw)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        why = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise TrustError(f"{what} is no signature of model-signing that can be checked here: {why}") from error


def _bundle(raw: bytes) -> Bundle:
    value = _json(raw)
    material, envelope = value["verificationMaterial"], value["dsseEnvelope"]
    if value["mediaType"] != _MEDIA or envelope["payloadType"] != _PAYLOAD:
        raise ValueError(f"it is of the kind {value['mediaType']!r}, and {_MEDIA!r} is read")
    if "publicKey" not in material:
        raise ValueError("it is signed by an identity or a certificate; `model_signing verify` checks that online")
    payload = _base64(envelope["payload"])
    require_few_values(payload, "what is signed")
    (signature,) = envelope["signatures"]
    statement = _json(payload)
    predicate = statement["predicate"]
    if statement["_type"] != _STATEMENT or statement["predicateType"] != _PREDICATE:
        raise ValueError(f"it states {statement['predicateType']!r}, and {_PREDICATE!r} is read")
    how = predicate["serialization"]
    if how["method"] != "files" or how["hash_type"] != "sha256":
        raise ValueError(f"it lists {how['method']} by {how['hash_type']}, and files by sha256 are read")
    files = _files(predicate["resources"])
    (subject,) = statement["subject"]
    root = hashlib.sha256(b"".join(map(bytes.fromhex, files.values()))).hexdigest()
    if subject["digest"] != {"sha256": root}:
        raise ValueError("the digest of all its files is not that of its list")
    return Bundle(
        name=str(subject["name"]),
        files=files,
        passed_over=tuple(map(str, how.get("ignore_paths", ()))),
        hint=str(material["publicKey"]["hint"]),
        message=_pae(payload),
        signature=_base64(signature["sig"]),
    )


def _files(resources: Any) -> dict[str, str]:
    found: dict[str, str] = {}
    for resource in resources:
        name, digest = resource["name"], resource["digest"]
        if resource["algorithm"] != "sha256" or len(bytes.fromhex(digest)) != 32 or digest != digest.lower():
            raise ValueError(f"{shown(str(name))} has no SHA-256")
        if not is_plain_name(name) or name in found:
            raise ValueError(f"it lists {shown(str(name))!r}, which is no file of its own below the folder")
        found[name] = digest
    return found


def _json(raw: bytes) -> Any:
    return json.loads(raw.decode(), object_pairs_hook=without_twins)


def _base64(text: str) -> bytes:
    try:
        raw = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"it holds text that is no base64 ({error})") from error
    if base64.b64encode(raw).decode() != text:
        raise ValueError("it holds base64 in a second spelling")
    return raw


def _pae(payload: bytes) -> bytes:
    """DSSE's encoding of what is signed (protocol.md, v1.0.0)."""
    return b"DSSEv1 %d %s %d %s" % (len(_PAYLOAD), _PAYLOAD.encode(), len(payload), payload)


def _hint(key: PublicKey) -> str:
    return hashlib.sha256(key.pem).hexdigest()
