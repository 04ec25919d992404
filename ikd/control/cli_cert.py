"""Shell. `ikctl cert`: reads and writes the files of the small PKI in `ikd.pki`."""

from __future__ import annotations

import json
import os
import shlex
import time
from pathlib import Path
from typing import Any

import click
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from ikd import pki
from ikd.auth.identity import name_text
from ikd.auth.signature import PrivateKey, PublicKey
from ikd.control import render
from ikd.control.cli import Commands, Context, with_json
from ikd.control.placing import exchange
from ikd.control.protocol import ControlError, file_error
from policy.values import seconds

_FILE = click.Path(path_type=Path, dir_okay=False)
_USAGES = {oid.dotted_string: f"{name} ({oid.dotted_string})" for name, oid in pki.EKUS.items()}
_DAYS = click.FloatRange(min=0, min_open=True)
_KINDS = click.Choice(list(pki.KEY_TYPES))
_EXAMPLE = "a name is like vpn.example.org or CN=vpn,O=Example; see: ikctl cert issue --help"


@click.group(cls=Commands)
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
@click.option("--days", type=_DAYS, metavar="DAYS", default=3650, show_default=True)
@click.option("--kind", type=_KINDS, default="ecdsa-p256", show_default=True, help="Kind of key.")
@with_json
def ca(shared: Context, subject: str, out: Path, days: float, kind: str) -> None:
    """Make an authority, CN its name. Its key signs everything: keep it off the hosts."""
    try:
        pair = pki.make_ca(subject, time.time(), days=days, kind=kind)
    except (ValueError, OverflowError) as error:
        raise ControlError("configuration", f"cannot make an authority: {error}", _EXAMPLE) from None
    key = _save(shared, out, pair)
    next_step = f"ikctl cert issue NAME --ca {shlex.quote(str(out))}; and keep {key} off the hosts"
    _next(shared, next_step)


@group.command(short_help="Issue a certificate for a host or a user.")
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
@click.option("--days", type=_DAYS, metavar="DAYS", help="[default: 365; with --health 4 hours]")
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
        raise file_error(error, "make an authority with: ikctl cert ca NAME", "cannot issue: ") from None
    except (ValueError, TypeError, OverflowError) as error:
        raise ControlError("configuration", f"cannot issue: {error}", _EXAMPLE) from None
    key = _save(shared, out, pair)
    files = f"{out}, {key} and {authority}"
    _next(shared, f"{files} go to pki/ of the host, whose ikd.toml names them below [identity]")


class _Duration(click.ParamType[float]):
    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds, out of a text such as "30 d"."""
        try:
            return seconds(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


@group.command(short_help="Renew a certificate by the authority that issued it.")
@click.argument("file", type=_FILE)
@click.option(
    "--ca",
    "authority",
    type=_FILE,
    default=Path("ca.pem"),
    show_default=True,
    help="The authority's certificate; its key is beside it.",
)
@click.option("--key", type=_FILE, help="The certificate's own key.  [default: beside FILE]")
@click.option("--keep-key", is_flag=True, help="Certify the same key again instead of a new one.")
@click.option(
    "--days",
    type=_DAYS,
    metavar="DAYS",
    help="[default: as long as it was made for]",
)
@click.option(
    "--before",
    type=_Duration(),
    metavar="TIME",
    help='Only if it ends within TIME, such as "30 d".',
)
@with_json
def renew(
    shared: Context,
    file: Path,
    authority: Path,
    key: Path | None,
    keep_key: bool,
    days: float | None,
    before: float | None,
) -> None:
    """Renew the certificate in FILE, by the authority that issued it: the same names and usages, valid anew,
    for a new key of the same kind. The former files stay beside them, with .old at the end of their names.

    FILE may hold the chain as well, leaf first; the rest of it stays as it is."""
    now = time.time()
    key = key or file.with_suffix(".key")
    try:
        old, *chain = x509.load_pem_x509_certificates(file.read_bytes())
        left = old.not_valid_after_utc.timestamp() - now
        if before is not None and left > before:
            _say(shared, f"{file}: ends in {render.span(left)}, not renewed", file, old, renewed=False)
            return
        signer = pki.read_pair(authority.read_bytes(), authority.with_suffix(".key").read_bytes())
        public = old.public_key()
        if not isinstance(public, PublicKey):
            raise ValueError(f"{file}: a key of this type is not used here")
        fresh = None if keep_key else _successor(public, key)
        new = pki.renew(signer, old, fresh.public_key() if fresh else public, now=now, days=days)
    except OSError as error:
        remedy = "name the authority with --ca, and the certificate's key with --key, or use --keep-key"
        raise file_error(error, remedy, "cannot renew: ") from None
    except (ValueError, TypeError, OverflowError) as error:
        remedy = "--ca names the authority that issued it; a new one is made by ikctl cert issue"
        raise ControlError("configuration", f"cannot renew: {error}", remedy) from None
    made = {file: (pki.certificate_pem(new, *chain), 0o644)}
    if fresh:
        made = {key: (pki.key_pem(fresh), 0o600)} | made
    exchange(made)
    told = [f"{file}: {name_text(new.subject)}, valid until {_end(new)}"]
    told += [f"{key}: a new key"] if fresh else ["the key is the same"]
    told += [f"it had ended {render.span(-left)} ago"] if left < 0 else []
    if new.not_valid_after_utc == signer.certificate.not_valid_after_utc:
        told.append("no longer than that, because the authority itself ends then")
    told.append("next, on the host that uses it: ikctl reload")
    _say(shared, "\n".join(told), file, new, renewed=True, key=None if keep_key else str(key))


def _successor(public: PublicKey, path: Path) -> PrivateKey:
    """A new key to take the place of the one in a file; raises `ValueError` when that is another one's."""
    there = load_pem_private_key(path.read_bytes(), None)
    if there.public_key() != public:
        raise ValueError(
            f"{path} is not the key of the certificate; after a renewal that was interrupted {path}.old is"
        )
    return pki.another_key(public)


def _say(shared: Context, text: str, file: Path, certificate: x509.Certificate, **more: Any) -> None:
    answer = {"certificate": str(file), **more, "about": pki.describe(certificate, time.time())}
    click.echo(json.dumps(answer, ensure_ascii=False) if shared.as_json else text)


@group.command()
@click.argument("file", type=_FILE)
@with_json
def show(shared: Context, file: Path) -> None:
    """What is in the certificates of a PEM file."""
    try:
        found = x509.load_pem_x509_certificates(file.read_bytes())
    except OSError as error:
        raise file_error(error, "a PEM file with certificates is expected") from None
    except ValueError:
        raise ControlError(
            "configuration", f"{file}: no certificate is in it", "a PEM file with certificates is expected"
        ) from None
    now = time.time()
    answers = [pki.describe(one, now) for one in found]
    if shared.as_json:
        click.echo(json.dumps(answers, ensure_ascii=False))
        return
    for one, answer in zip(found, answers, strict=True):
        left = one.not_valid_after_utc.timestamp() - now
        for key, value in answer.items():
            title, text = key.replace("_", " "), _text(value)
            if key == "days_left":
                title, text = (
                    ("ends in", render.span(left)) if left > 0 else ("ended", f"{render.span(-left)} ago")
                )
            click.echo(f"{title:<11} {text}")
        click.echo()


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_USAGES.get(one, str(one)) for one in value) or "-"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _save(shared: Context, out: Path, pair: pki.Pair) -> Path:
    """Write both files and say so; an existing one is never overwritten, and the key, whose file is the
    answer, is the owner's alone."""
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
            raise file_error(error, "name another file with --out") from None
    answer = {"certificate": str(out), "key": str(key), "about": pki.describe(pair.certificate, time.time())}
    text = f"{out} and {key}: {name_text(pair.certificate.subject)}, valid until {_end(pair.certificate)}"
    click.echo(json.dumps(answer, ensure_ascii=False) if shared.as_json else text)
    return key


def _next(shared: Context, text: str) -> None:
    if not shared.as_json:
        click.echo(f"next: {text}")


def _end(certificate: x509.Certificate) -> str:
    return f"{certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
