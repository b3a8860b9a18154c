"""The command that opens the studio: a local page to look at a model and to choose what goes."""

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from compressor.cli.exits import reported
from compressor.cli.options import BatchSize, Threads, Verbose, WorkloadName, workload_of

if TYPE_CHECKING:
    from compressor.studio.access import Session


def logged(out: Path, session: "Session", what: str) -> None:
    """Writes to the audit log above `out`, where there is one, that the page of `session` asked for `what`.

    Raises StorageError where it cannot be written.
    """
    from compressor.trust.audit import log_above

    log = log_above(out)
    if log is not None:
        by = {"role": session.role.value, "session": session.name}
        if session.person:
            by["person"] = session.person
        log.append(f"studio {what}", what=out, by=by)


def studio(
    *,
    workload: WorkloadName,
    out: Annotated[Path, typer.Option(help="Folder of what is done on the page: drafts and runs.")] = Path("runs"),
    host: Annotated[
        str, typer.Option(help="Where to listen; anything but this machine itself needs TLS or --plain-http.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 takes a free one.")] = 8765,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:PORT]", help="A further name that browsers may use: that of a proxy in front. Repeatable."
        ),
    ] = None,
    public_origin: Annotated[
        str,
        typer.Option(
            metavar="ORIGIN", help="What browsers call a proxy in front: `https://lab.example.org`, without a path."
        ),
    ] = "",
    prefix: Annotated[
        str, typer.Option(metavar="PATH", help="The path at which a proxy in front has the studio: `/studio`.")
    ] = "",
    person: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Somebody with a link and drafts of their own: letters, digits, - and _. Repeatable."
        ),
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="A certificate (PEM), with which the page is https.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key (PEM).")] = None,
    plain_http: Annotated[
        bool,
        typer.Option(
            "--plain-http",
            help="Allows another --host without TLS: everybody on the network between can read along and take over a "
            "session.",
        ),
    ] = False,
    threads: Threads = None,
    batch_size: BatchSize = None,
    verbose: Verbose = False,
) -> None:
    """Opens a page on which you see where the time of a model goes, and what of it can go.

    `compressor studio --workload digits`

    Needs the extra `studio`: `pip install "torch-compressor[studio]"`. The page is for this machine alone; each of the
    links that are printed lets one browser in, and another one takes its place then. Ctrl-C ends it.
    """
    with reported(verbose=verbose, changes=out):
        from compressor.studio.drafting.shelf import distinct_people
        from compressor.studio.serving import Address, listening_socket, serve, server_module, tell_links

        server_module()
        address = Address(
            host=host,
            port=port,
            names=tuple(allow_host or ()),
            tls_cert=tls_cert,
            tls_key=tls_key,
            plain_http=plain_http,
            origin=public_origin,
            prefix=prefix,
        )
        people = distinct_people(person or ())
        opened = listening_socket(address)
        with opened:
            from compressor.studio.access import Access
            from compressor.studio.app import studio_app
            from compressor.studio.desk import Desk
            from compressor.target import Target

            target = Target(batch_size=batch_size or 1, threads=threads or 1)
            desk = Desk(workload_of(workload), workload, target, out, people=people)
            access, got = Access(people), opened.getsockname()[1]

            # Exporting a model hushes stderr for a while: the links go where it was before.
            terminal = sys.stderr

            def tell(text: str) -> None:
                typer.echo(text, file=terminal)

            def entered(role: str) -> None:
                tell(f"somebody came in to {'edit' if role == 'editor' else 'watch'}; the next links:")
                tell_links(access, address, got, tell)

            app = studio_app(
                desk,
                access,
                hosts=address.hosts(got),
                scheme=address.scheme,
                origin=address.origin,
                prefix=address.prefix,
                cookie=address.cookie(got),
                entered=entered,
                changed=partial(logged, out),
            )
            if not address.is_local and address.tls_cert is None:
                typer.secho("warning: without TLS everybody on the network can read along", err=True, fg="yellow")
            desk.look()
            tell_links(access, address, got, tell)
            try:
                serve(app, address, opened)
            finally:
                desk.planning.end()
                desk.runs.end()
