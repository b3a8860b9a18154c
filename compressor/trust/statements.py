"""What a signature says: which manifest, by which key, as which release, since when and until when."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from compressor.errors import TrustError
from compressor.storage import sha256
from compressor.trust.canonical import LARGEST_INTEGER, canonical, parsed
from compressor.trust.keys import Kind, PrivateKey, PublicKey

# What is signed begins so, so that no signature over something else is one of these.
_DOMAIN = b"compressor-signature-v1\0"
_FORMAT, _VERSION = "compressor-signature", 1
_HEX = re.compile("(?:[0-9a-f]{2})+")
_DIGEST = re.compile("[0-9a-f]{64}")
LONGEST_NAME = 200
_TIME = "%Y-%m-%dT%H:%M:%SZ"


@dataclass(frozen=True, kw_only=True)
class Statement:
    """That the manifest of digest `manifest_sha256` is release number `release` (>= 1) of what is called `name`.

    `replaces` is the digest of the manifest of the release before it, None for the first; `expires` None for never.
    """

    manifest_sha256: str
    key_id: str
    kind: Kind
    name: str
    release: int
    signed: datetime
    expires: datetime | None = None
    replaces: str | None = None

    def __post_init__(self) -> None:
        if not is_good_name(self.name):
            raise TrustError(f"a name has 1 to {LONGEST_NAME} printable characters, got {self.name[:50]!r}")
        if type(self.release) is not int or not 1 <= self.release <= LARGEST_INTEGER:
            raise TrustError(f"a release is a whole number from 1, got {self.release!r}")
        if self.expires is not None and self.expires <= self.signed:
            raise TrustError(f"a signature of {time_text(self.signed)} cannot expire at {time_text(self.expires)}")
        for digest in (self.manifest_sha256, self.key_id, self.replaces or self.key_id):
            if not _DIGEST.fullmatch(digest):
                raise TrustError(f"a SHA-256 has 64 digits, got {digest[:80]!r}")

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {
            "format": _FORMAT,
            "version": _VERSION,
            "manifest_sha256": self.manifest_sha256,
            "key_id": self.key_id,
            "kind": self.kind.value,
            "name": self.name,
            "release": self.release,
            "signed": time_text(self.signed),
            "expires": None if self.expires is None else time_text(self.expires),
            "replaces": self.replaces,
        }

    @classmethod
    def from_json(cls, value: Any, *, what: str) -> "Statement":
        """The statement of `to_json`, to the letter. Raises TrustError for anything else."""
        if not isinstance(value, dict) or value.get("format") != _FORMAT:
            raise TrustError(f"{what} holds something that is no statement of compressor's")
        if type(value.get("version")) is not int or value["version"] != _VERSION:
            raise TrustError(
                f"{what} has a statement of version {str(value.get('version'))[:50]}, and this program reads version "
                f"{_VERSION}; verify it with the version of compressor that wrote it"
            )
        try:
            found = cls(
                manifest_sha256=value["manifest_sha256"],
                key_id=value["key_id"],
                kind=Kind(value["kind"]),
                name=value["name"],
                release=value["release"],
                signed=parsed_time(value["signed"]),
                expires=None if value["expires"] is None else parsed_time(value["expires"]),
                replaces=value["replaces"],
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise TrustError(f"{what} has a statement that cannot be read: {error}") from error
        if found.to_json() != value:
            raise TrustError(f"{what} has a statement with entries of another kind")
        return found

    @property
    def message(self) -> bytes:
        """The bytes that are signed."""
        return _DOMAIN + canonical(self.to_json())


def is_good_name(name: str) -> bool:
    """Whether a release can be of that name: it is told in one line."""
    return 0 < len(name.strip()) <= LONGEST_NAME and len(name) <= LONGEST_NAME and name.isprintable()


def sign(statement: Statement, key: PrivateKey) -> bytes:
    """The signature of `statement` by `key`, whose kind and id it names."""
    return raw_signature(key, statement.message)


def raw_signature(key: PrivateKey, message: bytes) -> bytes:
    """The signature over `message`: 64 bytes of Ed25519, or ECDSA with SHA-256 in DER."""
    if key.kind is Kind.ED25519:
        return bytes(key.loaded.sign(message))
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.hashes import SHA256

    return bytes(key.loaded.sign(message, ec.ECDSA(SHA256())))


def is_signed(key: PublicKey, message: bytes, signature: bytes) -> bool:
    """Whether `signature` over `message` is by `key`."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.hashes import SHA256

    try:
        if key.kind is Kind.ED25519:
            key.loaded.verify(signature, message)
        elif key.kind is Kind.P256:
            key.loaded.verify(signature, message, ec.ECDSA(SHA256()))
        else:
            return False
    except InvalidSignature:
        return False
    return True


def signature_file(signed: Mapping[str, tuple[Statement, bytes]]) -> bytes:
    """The file of signatures by key id, in its one form."""
    value = {
        "format": "compressor-signatures",
        "version": _VERSION,
        "signatures": [
            {"statement": statement.to_json(), "signature": signature.hex()}
            for _, (statement, signature) in sorted(signed.items())
        ],
    }
    return canonical({**value, "sha256": sha256(canonical(value))})


def parsed_signatures(raw: bytes, *, what: str, most_bytes: int) -> dict[str, tuple[Statement, bytes]]:
    """{key id: (statement, signature)} of `signature_file`. Raises TrustError for anything that it does not write."""
    value = parsed(raw, what=what, most_bytes=most_bytes)
    entries = value.get("signatures") if isinstance(value, dict) else None
    if not isinstance(entries, list) or value.get("format") != "compressor-signatures":
        raise TrustError(f"{what} is no file of signatures of compressor's")
    found = {}
    for entry in entries:
        if not isinstance(entry, dict) or entry.keys() != {"statement", "signature"}:
            raise TrustError(f"{what} has an entry that is no signature")
        signature = entry["signature"]
        if not isinstance(signature, str) or not _HEX.fullmatch(signature):
            raise TrustError(f"{what} has a signature that is no hexadecimal text")
        statement = Statement.from_json(entry["statement"], what=what)
        found[statement.key_id] = statement, bytes.fromhex(signature)
    if signature_file(found) != raw:
        raise TrustError(f"{what} is not as it was written; get the file again")
    return found


def time_text(moment: datetime) -> str:
    """`moment` as statements have it, in UTC to the second."""
    return moment.astimezone(UTC).strftime(_TIME)


def parsed_time(text: str) -> datetime:
    """The moment of `time_text`. Raises ValueError for other text."""
    return datetime.strptime(text, _TIME).replace(tzinfo=UTC)
