"""Shell. `ikctl cert`: reads and writes the files of the small PKI in `ikd.pki`."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import click
from cryptography import x509

from ikd import pki
from ikd.control.cli import Context, with_json
from ikd.control.protocol import ControlError

_FILE = click.Path(path_type=Path, dir_okay=False)
_KINDS = click.Choice(list(pki.KEY_TYPES))
_EXAMPLE = "a name is like vpn.example.org or CN=vpn,O=Example; see ikctl cert --help"


@click.group()
def group() -> None:
    """A small PKI: an authority, certificates of hosts, and what is in a certificate."""


@group.command()
@click.argument("subject", metavar="CN")
@click.option(
    "--out",
    type=_FILE,
    default=Path("ca.pem"),
    show_default=True,
    help="Certificate; the key goes beside it.",
)
@click.option("--days", type=float, default=3650, show_default=True)
@click.option("--kind", type=_KINDS, default="ecdsa-p256", show_default=True, help="Kind of key.")
@with_json
def ca(shared: Context, subject: str, out: Path, days: float, kind: str) -> None:
    """Make an authority, CN its name. Its key signs everything: keep it off the hosts."""
    try:
        pair = pki.make_ca(subject, time.time(), days=days, kind=kind)
    except (ValueError, OverflowError) as error:
        raise ControlError("configuration", f"cannot make an authority: {error}", _EXAMPLE) from None
    _save(shared, out, pair)


@group.command()
@click.argument("subject", metavar="CN")
@click.option(
    "--ca",
    "authority",
    type=_FILE,
    default=Path("ca.pem"),
    show_default=True,
    help="The authority's certificate.",
)
@click.option(
    "--out",
    type=_FILE,
    default=Path("host.pem"),
    show_default=True,
    help="Certificate; the key goes beside it.",
)
@click.option("--san", multiple=True, help="A further DNS name, address or user@host; CN is one already.")
@click.option("--days", type=float, default=None, help="[default: 365; with --health 4 hours]")
@click.option("--kind", type=_KINDS, default="ecdsa-p256", show_default=True, help="Kind of key.")
@click.option("--eku", multiple=True, help="ike, server, client, health or an OID.  [default: ike]")
@click.option("--health", is_flag=True, help="A health certificate, for rules that demand one.")
@with_json
def issue(
    shared: Context,
    subject: str,
    authority: Path,
    out: Path,
    san: tuple[str, ...],
    days: float | None,
    kind: str,
    eku: tuple[str, ...],
    health: bool,
) -> None:
    """Issue a certificate for a host, CN its name, or for a user, CN user@host (with --eku client)."""
    try:
        signer = pki.read_pair(authority.read_bytes(), authority.with_suffix(".key").read_bytes())
        names = san if "=" in subject else (subject, *san)
        days = (pki.HEALTH_DAYS if health else 365) if days is None else days
        usages = dict.fromkeys([*(eku or ("ike",)), *(("health", "client") if health else ())])
        pair = pki.issue(signer, subject, names, now=time.time(), days=days, kind=kind, eku=tuple(usages))
    except OSError as error:
        raise ControlError(
            "configuration",
            f"cannot issue: {error.filename}: {error.strerror}",
            "make an authority with: ikctl cert ca NAME",
        ) from None
    except (ValueError, TypeError, OverflowError) as error:
        raise ControlError("configuration", f"cannot issue: {error}", _EXAMPLE) from None
    _save(shared, out, pair)


@group.command()
@click.argument("file", type=_FILE)
@with_json
def show(shared: Context, file: Path) -> None:
    """What is in the certificates of a PEM file."""
    try:
        found = x509.load_pem_x509_certificates(file.read_bytes())
    except (OSError, ValueError) as error:
        raise ControlError(
            "configuration", f"{file}: {error}", "a PEM file with certificates is expected"
        ) from None
    answers = [pki.describe(one, time.time()) for one in found]
    if shared.as_json:
        click.echo(json.dumps(answers, ensure_ascii=False))
        return
    for answer in answers:
        for key, value in answer.items():
            click.echo(f"{key.replace('_', ' '):<11} {_text(value)}")
        click.echo()


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "-"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _save(shared: Context, out: Path, pair: pki.Pair) -> None:
    """Write both files; an existing one is never overwritten, and the key is the owner's alone."""
    key = out.with_suffix(".key")
    made: list[Path] = []
    for path, data, mode in (
        (key, pki.key_pem(pair.key), 0o600),
        (out, pki.certificate_pem(pair.certificate), 0o644),
    ):
        try:
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
                made.append(path)
                file.write(data)
        except OSError as error:
            for one in made:  # a key without its certificate is of no use
                one.unlink(missing_ok=True)
            raise ControlError(
                "configuration", f"{path}: {error.strerror}", "name another file with --out"
            ) from None
    answer = {"certificate": str(out), "key": str(key), "about": pki.describe(pair.certificate, time.time())}
    text = f"{out} and {key}: {answer['about']['subject']}, until {answer['about']['not_after'][:10]}"  # type: ignore[index]
    click.echo(json.dumps(answer, ensure_ascii=False) if shared.as_json else text)
