"""Shell. `ikctl init`: a first configuration from a few answers, checked before it is put in place."""

from __future__ import annotations

import base64
import json
import secrets
import shlex
import socket
import sys
import time
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import click

from ikd import pki
from ikd.control import first
from ikd.control.cli import Context, with_json
from ikd.control.first import CERTIFICATE, PSK, Plan
from ikd.control.placing import place
from ikd.control.protocol import ControlError, file_error

_FILE = click.Path(path_type=Path, dir_okay=False)
_AUTHORITY = "CN=ikd {name}"
_PEER = "peer"  # directory with what the other host needs
_SHORTEST_KEY = 20  # characters; anybody who has seen a handshake may guess at leisure


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the secrets and certificates come from; nothing set: they are made."""

    psk: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    ca: Path | None = None
    make_ca: bool = False


@click.command()
@click.option("--config", type=click.Path(path_type=Path, file_okay=False), help="Directory to write to.")
@click.option("--peer", metavar="ADDRESS", help="The other host; a name is possible with networks.")
@click.option("--auth", type=click.Choice([PSK, CERTIFICATE]), help="How both ends prove who they are.")
@click.option("--local", metavar="ADDRESS", help="This host.  [default: the address towards the peer]")
@click.option("--name", default="", help="Name this host proves.  [default: its address]")
@click.option("--peer-name", default="", help="Name the peer must prove.  [default: its address]")
@click.option("--local-net", multiple=True, metavar="NET", help="A network here, for a tunnel.")
@click.option("--remote-net", multiple=True, metavar="NET", help="A network behind the peer.")
@click.option(
    "--psk-file",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    help="Key on its first line, or the peer's secrets.toml; - is standard input.  [default: a new key]",
)
@click.option("--make-ca", is_flag=True, help="Make an authority and certificates for both hosts.")
@click.option("--certificate", type=_FILE, help="Certificate of this host, then its issuers.")
@click.option("--key", type=_FILE, help="Its private key.  [default: beside the certificate]")
@click.option("--ca", type=_FILE, help="Certificate of the authority to trust.")
@click.option("--force", is_flag=True, help="Overwrite files that are there.")
@with_json
def command(
    shared: Context,
    config: Path | None,
    peer: str | None,
    auth: str | None,
    local: str | None,
    name: str,
    peer_name: str,
    local_net: tuple[str, ...],
    remote_net: tuple[str, ...],
    psk_file: Path | None,
    make_ca: bool,
    certificate: Path | None,
    key: Path | None,
    ca: Path | None,
    force: bool,
) -> None:
    """Write a first configuration: one connection with one peer.

    On a terminal it asks for what the options leave open; otherwise --peer and --auth must be there. Nothing
    is overwritten without --force, and nothing is put in place that the daemon would refuse."""
    plan = Plan("", peer or "", auth or "", name, peer_name, local_net, remote_net)
    sources = Sources(psk_file, certificate, key, ca, make_ca)
    if not (peer and auth) and sys.stdin.isatty():
        plan, sources = _ask(plan, sources)
    _complete(plan, sources)
    plan = replace(plan, local=local or _towards(plan.peer))
    _distinct(plan)
    directory = (config or shared.config).absolute()
    written, warnings = place(directory, _contents(plan, sources), force)
    _tell(shared, directory, plan, sources, written, warnings)


# What is wanted ---------------------------------------------------------------------------------------------


def _ask(plan: Plan, sources: Sources) -> tuple[Plan, Sources]:
    """What the options have left open, from the terminal."""
    plan = replace(plan, peer=plan.peer or click.prompt("Address of the peer", err=True))
    kinds = click.Choice([PSK, CERTIFICATE])
    plan = replace(plan, auth=plan.auth or click.prompt("Authentication", type=kinds, default=PSK, err=True))
    if not (plan.local_nets or plan.remote_nets):
        here = _networks("Networks behind this host (none: only the hosts themselves)")
        there = _networks("Networks behind the peer") if here else ()
        plan = replace(plan, local_nets=here, remote_nets=there)
    if plan.auth == PSK and sources.psk is None:
        given = _optional("File with the key (none: make a new key)")
        return plan, replace(sources, psk=Path(given) if given else None)
    if plan.auth == CERTIFICATE and not (sources.make_ca or sources.certificate):
        given = _optional("Certificate of this host (none: make an authority and certificates)")
        if not given:
            return plan, replace(sources, make_ca=True)
        authority = sources.ca or Path(click.prompt("Certificate of the authority", err=True))
        return plan, replace(sources, certificate=Path(given), ca=authority)
    return plan, sources


def _optional(question: str) -> str:
    answer: str = click.prompt(question, default="", show_default=False, err=True)
    return answer.strip()


def _networks(question: str) -> tuple[str, ...]:
    return tuple(_optional(question).replace(",", " ").split())


def _complete(plan: Plan, sources: Sources) -> None:
    """Refuse what is missing or does not go together, by the name of the flag."""
    networks = plan.local_nets or plan.remote_nets
    wrong = {
        "--peer ADDRESS is missing": not plan.peer,
        "--auth psk or --auth certificate is missing": not plan.auth,
        "--local-net is missing: --remote-net needs it": networks and not plan.local_nets,
        "--remote-net is missing: --local-net needs it": networks and not plan.remote_nets,
        f'--peer: "{plan.peer}" is no address; a name is possible only with --local-net and --remote-net': (
            plan.peer and not networks and not first.is_address(plan.peer)
        ),
        "--psk-file is for --auth psk": sources.psk and plan.auth == CERTIFICATE,
        "--certificate, --key, --ca and --make-ca are for --auth certificate": (
            plan.auth == PSK and (sources.certificate or sources.key or sources.ca or sources.make_ca)
        ),
        "--make-ca or --certificate is missing: --auth certificate needs one": (
            plan.auth == CERTIFICATE and not (sources.make_ca or sources.certificate)
        ),
        "--make-ca makes certificate, key and authority; leave --certificate, --key and --ca out": (
            sources.make_ca and (sources.certificate or sources.key or sources.ca)
        ),
        "--ca is missing: --certificate needs the authority to trust": sources.certificate and not sources.ca,
    }
    for message in (text for text, is_wrong in wrong.items() if is_wrong):
        raise ControlError("usage", message, "see: ikctl init --help")


def _distinct(plan: Plan) -> None:
    """Refuse ends between which nothing can pass."""
    if not first.is_address(plan.local):
        raise ControlError("usage", f'--local: "{plan.local}" is no address', "name one of this host's own")
    if plan.local == plan.peer:
        raise ControlError("usage", f"--peer: {plan.peer} is this host", "name the address of the other one")
    if first.is_address(plan.peer) and (":" in plan.local) != (":" in plan.peer):
        raise ControlError(
            "usage",
            f"--local {plan.local} and --peer {plan.peer} are of different families",
            "name two addresses of IPv4, or two of IPv6",
        )


def _towards(peer: str) -> str:
    """The address this host sends from to the peer; no packet is sent to find out."""
    try:
        family, kind, number, _, address = socket.getaddrinfo(peer, 500, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, number) as probe:
            probe.connect(address)
            found: str = probe.getsockname()[0]
            return found
    except OSError as error:
        reason = error.strerror or str(error)
        raise ControlError(
            "usage", f"--local is missing, and no way to {peer} is known: {reason}", "name it with --local"
        ) from None


# Files ------------------------------------------------------------------------------------------------------


def _contents(plan: Plan, sources: Sources) -> Mapping[str, bytes]:
    """Every file by its name."""
    try:
        secret = _secret(sources.psk) if plan.auth == PSK else ""
        texts = first.documents(plan, secret)
        found = {name: text.encode() for name, text in texts.items()}
        if plan.auth == CERTIFICATE:
            found.update(_made(plan) if sources.make_ca else _given(sources))
        return found
    except OSError as error:
        raise file_error(error, "correct the name of the file") from None
    except (ValueError, TypeError) as error:
        raise ControlError("configuration", str(error), "see: ikctl init --help") from None


def _secret(source: Path | None) -> str:
    """The pre-shared key; raises `ValueError` for one that is none. No message shows it."""
    if source is None:
        return base64.b64encode(secrets.token_bytes(32)).decode()
    text = sys.stdin.read() if str(source) == "-" else source.read_text(encoding="utf-8")
    if source.suffix == ".toml":
        entries = tomllib.loads(text).get("psk", [])
        found = [one.get("secret") for one in entries if isinstance(one, dict)]
        if len(found) != 1 or not isinstance(found[0], str):
            raise ValueError(f"--psk-file: {source} must have one [[psk]] with a secret")
        text = found[0]
    key = text.splitlines()[0].strip() if text else ""
    if len(key) < _SHORTEST_KEY:
        raise ValueError(f"--psk-file: the key has fewer than {_SHORTEST_KEY} characters and can be guessed")
    return key


def _made(plan: Plan) -> Mapping[str, bytes]:
    """An authority, and a certificate for each host; what the other one needs is below `peer`."""
    now = time.time()
    authority = pki.make_ca(
        _AUTHORITY.format(name=plan.identity[:48].replace("=", " ").replace(",", " ")), now
    )
    trusted = pki.certificate_pem(authority.certificate)
    found = {first.CA: trusted, "pki/ca.key": pki.key_pem(authority.key), f"{_PEER}/ca.pem": trusted}
    for folder, name, address in (
        ("pki", plan.identity, plan.local),
        (_PEER, plan.peer_identity, plan.peer),
    ):
        names = dict.fromkeys(one for one in (name, address) if "=" not in one)
        pair = pki.issue(authority, name, names, now=now)
        found[f"{folder}/host.pem"] = pki.certificate_pem(pair.certificate)
        found[f"{folder}/host.key"] = pki.key_pem(pair.key)
    return found


def _given(sources: Sources) -> Mapping[str, bytes]:
    """Copies of the files that were named."""
    assert sources.certificate
    assert sources.ca
    key = sources.key or sources.certificate.with_suffix(".key")
    return {
        first.HOST: sources.certificate.read_bytes(),
        first.KEY: key.read_bytes(),
        first.CA: sources.ca.read_bytes(),
    }


# What comes next --------------------------------------------------------------------------------------------


def _tell(
    shared: Context,
    directory: Path,
    plan: Plan,
    sources: Sources,
    written: Iterable[Path],
    warnings: Iterable[str],
) -> None:
    files = [str(one) for one in written]
    there = plan.mirrored()
    made = str(directory / _PEER / "host.pem") in files
    if plan.auth == PSK:
        copy, more = str(directory / "secrets.toml"), ["--psk-file", "secrets.toml"]
    elif made:
        copy = str(directory / _PEER)
        more = ["--certificate", f"{_PEER}/host.pem", "--ca", f"{_PEER}/ca.pem"]
    else:
        copy, more = "", ["--certificate", "FILE", "--ca", "FILE"]
    here = [
        f"ikctl --config {shlex.quote(str(directory))} policy show",
        "systemctl restart ikd"
        if directory == Path("/etc/ikd")
        else f"ikd --config {shlex.quote(str(directory))}",
        f"ikctl up {shlex.quote(plan.peer_identity)}",
    ]
    answer = {
        "files": files,
        "warnings": list(warnings),
        "here": here,
        "copy": copy,
        "there": there.command(*more),
    }
    if shared.as_json:
        click.echo(json.dumps(answer, ensure_ascii=False))
        return
    for warning in answer["warnings"]:
        click.echo(f"warning: {warning}", err=True)
    lines = ["written and checked:", *(f"    {one}" for one in files)]
    maybe = "unless it has been done, " if sources.psk or sources.certificate else ""
    lines += [f"on the other host, {maybe}the same with the sides exchanged:"]
    if copy:
        lines += [f"    (copy {copy} there over a channel nobody reads, such as scp)"]
    lines += [f"    {answer['there']}", "then here:", *(f"    {one}" for one in here)]
    if made:
        lines += [f"keep {directory / 'pki/ca.key'} off the hosts: whoever has it can make any certificate"]
    click.echo("\n".join(lines))
