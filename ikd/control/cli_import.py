"""Shell. `ikctl import`: configurations of strongSwan as ours, and a list of what could not be translated."""

from __future__ import annotations

import json
import shlex
from ipaddress import ip_address
from pathlib import Path

import click

from ikd import network
from ikd.control.cli import Commands, Context, with_json
from ikd.control.placing import place
from ikd.control.protocol import ControlError
from ikd.events import count
from ikd.migrate import ipsec, rules, swanctl
from ikd.migrate.model import Source, Unreadable
from ikd.migrate.sources import Files

_HEAD = """\
# Translated from {name} by `ikctl import`, which listed what is not in here. docs/policy.md has every key.

"""
_FILE = click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
_OUT = click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="Directory to write to, keys included."
)
_LOCAL = click.option("--local", metavar="ADDRESS", default="", help="Address of the host it is for.")
_FORCE = click.option("--force", is_flag=True, help="Overwrite files that are there.")


@click.group(cls=Commands)
def group() -> None:
    """Translate a configuration of strongSwan to a policy.

    Without --out the policy is printed. What could not be translated is listed with file and line; a rule
    that would admit or cover more than was written is left out. Exit status 1: no rule has come of it."""


@group.command("swanctl")
@_FILE
@_OUT
@_LOCAL
@_FORCE
@with_json
def from_swanctl(shared: Context, file: Path, out: Path | None, local: str, force: bool) -> int:
    """Translate a swanctl.conf."""
    files = Files(file)
    try:
        source = swanctl.load(str(file), files.read(file), files.include)
    except Unreadable as error:
        raise _unreadable(error) from None
    return _translate(shared, files, source, out, _address(local), force)


@group.command("ipsec.conf")
@_FILE
@_OUT
@_LOCAL
@_FORCE
@with_json
def from_ipsec(shared: Context, file: Path, out: Path | None, local: str, force: bool) -> int:
    """Translate an ipsec.conf, and the ipsec.secrets beside it."""
    files = Files(file)
    here = {_address(local)} if local else {str(one) for one in network.addresses()}
    beside = file.with_name("ipsec.secrets")
    try:
        source = ipsec.load(str(file), files.read(file), files.include, here)
        if beside.exists():
            ipsec.load_secrets(str(beside), files.read(beside), files.include, source)
    except Unreadable as error:
        raise _unreadable(error) from None
    return _translate(shared, files, source, out, _address(local), force)


def _unreadable(error: Unreadable) -> ControlError:
    return ControlError("configuration", str(error), "name a file that can be read, or correct a copy of it")


def _address(text: str) -> str:
    try:
        return str(ip_address(text)) if text else ""
    except ValueError:
        raise ControlError("usage", f'--local: "{text}" is no address', "see: ikctl import --help") from None


def _translate(
    shared: Context, files: Files, source: Source, out: Path | None, local: str, force: bool
) -> int:
    result = rules.translate(source, local)
    findings = sorted({*source.findings, *files.findings})
    policy = _HEAD.format(name=files.first.name) + result.policy()
    placed: list[str] = []
    warnings: tuple[str, ...] = ()
    if result.rules and out is not None:
        texts = {"policy.toml": policy, "ikd.toml": result.settings()}
        if result.keys:
            texts["secrets.toml"] = result.secrets()
        written, warnings = place(out.absolute(), {name: one.encode() for name, one in texts.items()}, force)
        placed = [str(one) for one in written]
    if shared.as_json:
        answer = {
            "rules": [one["name"] for one in result.rules],
            "keys": len(result.keys),
            "left_out": [
                {"file": one.place.file, "line": one.place.line, "text": one.text} for one in findings
            ],
            "files": placed,
            "warnings": list(warnings),
            "policy": policy,
        }
        click.echo(json.dumps(answer, ensure_ascii=False))
        return 0 if result.rules else 1
    for finding in findings:
        click.echo(str(finding), err=True)
    for warning in warnings:
        click.echo(f"warning: {warning}", err=True)
    if not result.rules:
        raise ControlError("configuration", f"{files.first}: nothing of it could be translated", "")
    click.echo("\n".join(("written and checked:", *(f"    {one}" for one in placed))) if placed else policy)
    keys = count(len(result.keys), "key") + ("" if placed else " (written with --out only)")
    click.echo(f"{count(len(result.rules), 'rule')}, {keys}, {count(len(findings), 'remark')}", err=True)
    if placed and out is not None:
        where = shlex.quote(str(out.absolute()))
        click.echo(f"next: see to the remarks, then: ikctl check {where}; ikctl --config {where} policy show")
    return 0
