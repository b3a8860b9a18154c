"""The commands that encrypt a file and decrypt it: what they ask, and what they say."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from compressor.cli.exits import reported
from compressor.cli.options import AsJson, Quiet, Verbose
from compressor.cli.signing import PassphraseFile
from compressor.cli.telling import print_json
from compressor.errors import WrongUseError

if TYPE_CHECKING:
    from compressor.trust.encrypted_header import Secret
    from compressor.trust.encryption import Encrypted

AskPassphrase = Annotated[bool, typer.Option("--passphrase", help="Asks for a passphrase.")]


def encrypt(
    *,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file; it stays as it is.")],
    to: Annotated[
        list[Path] | None,
        typer.Option("--to", metavar="KEY.PUB", help="The public key (x25519) of one who may read it; repeatable."),
    ] = None,
    passphrase: AskPassphrase = False,
    passphrase_file: PassphraseFile = None,
    out: Annotated[
        Path | None, typer.Option(help="Where the encrypted file goes; by default beside it, with ending .enc.")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Encrypts a file for those who hold a key, or for those who know a passphrase.

    `compressor keygen ~/.keys/device --kind x25519`

    `compressor encrypt runs/digits/model.onnx --to device.pub --out model.onnx.enc`

    `compressor encrypt model.onnx --passphrase`

    It says who can read it, and nothing of who encrypted it: sign the folder that it lies in as well.
    """
    with reported(verbose=verbose, changes=out or file):
        from compressor.trust.encryption import encrypt as encrypt_file
        from compressor.trust.keys import read_public

        _require_apart(out, {"the public key": list(to or ()), "the file of the passphrase": [passphrase_file]})
        word = _passphrase(ask=passphrase, path=passphrase_file, twice=True)
        found = encrypt_file(file, out, to=[read_public(key) for key in to or ()], passphrase=word)
        _say(found, "encrypted to", found.path, as_json=as_json, quiet=quiet)


def decrypt(
    *,
    file: Annotated[Path, typer.Argument(metavar="FILE.ENC", help="What `compressor encrypt` wrote.")],
    key: Annotated[
        Path | None, typer.Option("--key", metavar="KEY", help="The private key (x25519) of one who may read it.")
    ] = None,
    passphrase: AskPassphrase = False,
    passphrase_file: PassphraseFile = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Where the file goes, with the rights 0600; without it all is checked, and nothing written."),
    ] = None,
    signed_by: Annotated[
        Path | None,
        typer.Option(
            "--signed-by",
            metavar="KEY.PUB",
            help="A public key or a trust store: the file must lie in a folder that is signed so.",
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="With --signed-by: what it must be a release of.")] = None,
    least_release: Annotated[
        int | None, typer.Option("--least-release", min=1, help="With --signed-by: the oldest release that is taken.")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Decrypts a file, or says whether it can be: all of it is authenticated before it has a name on the disk.

    `compressor decrypt model.onnx.enc --key ~/.keys/device`, whether it is whole and for that key

    `compressor decrypt model.onnx.enc --key ~/.keys/device --out model.onnx`

    `compressor decrypt shipped/model.onnx --key ~/.keys/device --out model.onnx --signed-by release.pub`, if signed

    A wrong key, a byte that was changed, a piece that is missing, swapped or added: exit code 4, and nothing is left.
    With --key, the passphrase is that of the key.
    """
    with reported(verbose=verbose, changes=out):
        from compressor.trust.encryption import check_encrypted
        from compressor.trust.encryption import decrypt as decrypt_file

        given = {
            "the private key": [key],
            "the file of the passphrase": [passphrase_file],
            "a trusted key": [signed_by],
        }
        _require_apart(out, given)
        secret = _secret(key, _passphrase(ask=passphrase, path=passphrase_file, twice=False))
        accept = None
        if signed_by is not None:
            from compressor.trust.loading import signed_file

            accept = signed_file(file, key=signed_by, name=name, least_release=least_release)
        elif name is not None or least_release is not None:
            raise WrongUseError("--name and --least-release are about a signature; give --signed-by")
        if out is None:
            _say(check_encrypted(file, secret, accept=accept), "whole:", file, as_json=as_json, quiet=quiet)
        else:
            _say(decrypt_file(file, out, secret, accept=accept), "decrypted to", out, as_json=as_json, quiet=quiet)


def _require_apart(out: Path | None, given: dict[str, list[Path | None]]) -> None:
    """Raises WrongUseError where `out` is one of the files that are `given`, by what they are: it would be gone."""
    for what, paths in given.items():
        for path in paths:
            if out is not None and path is not None and out.exists() and path.exists() and out.samefile(path):
                raise WrongUseError(f"{out} is {what}, which would be written over; give another name")


def _secret(key: Path | None, word: bytes | None) -> "Secret":
    from compressor.trust.keys import read_private

    if key is not None:
        return read_private(key, passphrase=word)
    if word is None:
        raise WrongUseError("what opens the file is missing: --key, --passphrase-file or --passphrase")
    return word


def _passphrase(*, ask: bool, path: Path | None, twice: bool) -> bytes | None:
    from compressor.trust.keys import checked_passphrase, passphrase_in

    if ask and path is not None:
        raise WrongUseError("--passphrase asks for what --passphrase-file holds; give one of them")
    if path is not None:
        return passphrase_in(path)
    if not ask:
        return None
    try:
        said = typer.prompt("passphrase", hide_input=True, confirmation_prompt=twice, err=True)
    except typer.Abort:
        if sys.stdin.isatty():
            raise
        raise WrongUseError("nobody is there to type a passphrase; give a file with it: --passphrase-file") from None
    return checked_passphrase(str(said).encode())


def _say(found: "Encrypted", what: str, path: Path, *, as_json: bool, quiet: bool) -> None:
    if as_json:
        facts = {"path": str(path), "encrypted_bytes": found.encrypted_bytes, "size_bytes": found.size_bytes}
        print_json({**facts, "recipients": list(found.recipients)})
    elif quiet:
        typer.echo(str(path))
    else:
        who = ["whoever knows the passphrase" if name == "scrypt" else name[:16] for name in found.recipients]
        typer.echo(f"{what} {path} ({found.size_bytes:,} bytes, for {', '.join(who)})")
