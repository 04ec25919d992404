"""Shell. `ikctl bench`: measurements of this machine; none needs a daemon."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import click

from ikd.bench import parties, render
from ikd.control.cli import Context, with_json
from ikd.control.render import console


@click.group()
def group() -> None:
    """Measure: establishments per second, the SADB."""


def _auths(context: click.Context, parameter: click.Parameter, text: str) -> tuple[str, ...]:
    """Names out of a list with commas."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    unknown = [name for name in names if name not in parties.AUTHS]
    if unknown or not names:
        raise click.BadParameter(f"{', '.join(unknown) or 'nothing'}; there are {', '.join(parties.AUTHS)}")
    return names


@group.command()
@click.option(
    "--seconds", type=click.FloatRange(0.1, 3600), default=3.0, show_default=True, help="Of each run."
)
@click.option("--count", type=click.IntRange(1), help="Establishments in each run, instead of seconds.")
@click.option("--runs", type=click.IntRange(1, 1000), default=5, show_default=True)
@click.option(
    "--auth", "auths", default=",".join(parties.AUTHS), show_default=True, callback=_auths, metavar="NAME,…"
)
@click.option(
    "--parallel", type=click.IntRange(1, 512), default=16, show_default=True, help="Negotiations at a time."
)
@click.option(
    "--profile",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Run our responder under cProfile, which slows it, and write its figures to FILE.",
)
@with_json
def ike(
    shared: Context,
    seconds: float,
    count: int | None,
    runs: int,
    auths: tuple[str, ...],
    parallel: int,
    profile: Path | None,
) -> None:
    """IKE SAs with a Child SA each: how many a second, their processor time, and how long one takes.

    One initiator, ours, in a namespace of its own negotiates with our responder and strongSwan's by turns;
    AuthIP, which strongSwan does not speak, stands beside our own IKEv2.
    Needs root; everything it makes is removed again."""
    from ikd.bench.ike import Plan, measure

    plan = Plan(auths, runs, seconds, count or 0, parallel, profile and profile.absolute())
    signal.signal(signal.SIGTERM, _interrupted)
    try:
        answer = measure(plan, lambda text: click.echo(text, err=True))
    except KeyboardInterrupt:
        click.echo("stopped; everything is cleaned up", err=True)
        raise click.exceptions.Exit(130) from None
    _show(shared, answer, render.ike)


@group.command()
@click.option("--pairs", type=click.IntRange(1, 4_000_000), default=100_000, show_default=True)
@with_json
def sadb(shared: Context, pairs: int) -> None:
    """SA pairs: memory of each, lookup by SPI and by packet, installation."""
    from ikd.bench.sadb import measure

    _show(shared, measure(pairs), render.sadb)


def _interrupted(*_: Any) -> None:
    """SIGTERM takes everything apart as the interrupt key does."""
    raise KeyboardInterrupt


def _show(shared: Context, answer: Any, how: Any) -> None:
    if shared.as_json:
        import json

        click.echo(json.dumps(answer, ensure_ascii=False))
    else:
        how(console(), answer)
