"""Shell. `ikctl bench`: measurements of this machine; none needs a daemon."""

from __future__ import annotations

import signal
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import click

from ikd.bench import parties, render
from ikd.bench.esp_report import TESTS
from ikd.bench.offload_report import PROFILES, SERIES, SIZES
from ikd.bench.planes import PLANES
from ikd.control.cli import Commands, Context, with_json
from ikd.control.render import console


@click.group(cls=Commands)
def group() -> None:
    """Measure: establishments per second, data planes, an adapter that offloads, a flood, the SADB."""


def _names(known: Collection[str]) -> Any:
    """Reads an option: names out of a list with commas, in the order in which they are known."""

    def read(context: click.Context, parameter: click.Parameter, text: str) -> tuple[str, ...]:
        names = {name.strip() for name in text.split(",") if name.strip()}
        unknown = sorted(names - set(known))
        if unknown or not names:
            raise click.BadParameter(f"{', '.join(unknown) or 'nothing'}; there are {', '.join(known)}")
        return tuple(name for name in known if name in names)

    return read


@group.command(short_help="Establishments a second, and their processor time.")
@click.option(
    "--seconds", type=click.FloatRange(0.1, 3600), default=3.0, show_default=True, help="Of each run."
)
@click.option("--count", type=click.IntRange(1), help="Establishments in each run, instead of seconds.")
@click.option("--runs", type=click.IntRange(1, 1000), default=5, show_default=True)
@click.option(
    "--auth",
    "auths",
    default=",".join(parties.AUTHS),
    show_default=True,
    callback=_names(parties.AUTHS),
    metavar="NAME,…",
)
@click.option(
    "--parallel", type=click.IntRange(1, 512), default=16, show_default=True, help="Negotiations at a time."
)
@click.option(
    "--profile",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Sample where our responder's processor time goes, and write it to FILE.",
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
    _show(shared, _measured(measure, plan), render.ike)


@group.command(short_help="Data planes of IPsec beside each other.")
@click.option(
    "--planes",
    default=",".join(PLANES),
    show_default=True,
    callback=_names(PLANES),
    metavar="NAME,…",
)
@click.option("--tests", default=",".join(TESTS), show_default=True, callback=_names(TESTS), metavar="NAME,…")
@click.option(
    "--seconds", type=click.FloatRange(0.1, 3600), default=3.0, show_default=True, help="Of each test."
)
@click.option("--runs", type=click.IntRange(1, 1000), default=3, show_default=True)
@click.option(
    "--pairs",
    type=click.IntRange(1, 100_000),
    default=10_000,
    show_default=True,
    help="SA pairs that the test sas installs more.",
)
@click.option(
    "--plot", type=click.Path(path_type=Path, dir_okay=False), help="Draw the figures into FILE, a PNG."
)
@with_json
def esp(
    shared: Context,
    planes: tuple[str, ...],
    tests: tuple[str, ...],
    seconds: float,
    runs: int,
    pairs: int,
    plot: Path | None,
) -> None:
    """Data planes of IPsec beside each other: throughput, packets per second, latency, processor time.

    Two hosts in namespaces of their own; the same link, MTU and traffic for our engines, strongSwan's,
    wireguard-go, and no protection at all, one after the other. Ours also have to replace keys meanwhile.
    Needs root; everything it makes is removed again."""
    from ikd.bench import plot as drawing
    from ikd.bench.esp import Plan, measure

    if plot:
        drawing.check(plot)
    answer = _measured(measure, Plan(planes, tests, runs, seconds, pairs))
    if plot:
        drawing.draw(answer, plot)
    _show(shared, answer, render.esp)


def _sizes(context: click.Context, parameter: click.Parameter, text: str) -> tuple[int, ...]:
    """Reads sizes of buffers."""
    try:
        sizes = tuple(sorted({int(one) for one in text.split(",")}))
    except ValueError:
        sizes = ()
    if not sizes or not 1 <= sizes[0] <= sizes[-1] <= SIZES[-1]:
        raise click.BadParameter(f"octets, from 1 to {SIZES[-1]}, with commas between them")
    return sizes


@group.command(short_help="What receiving costs a host, and offload saves.")
@click.option(
    "--profile", type=click.Choice([*PROFILES, "both"]), default="both", show_default=True, help="Of the CPU."
)
@click.option(
    "--series", default=",".join(SERIES), show_default=True, callback=_names(SERIES), metavar="NAME,…"
)
@click.option(
    "--sizes",
    default=",".join(map(str, SIZES)),
    show_default=True,
    callback=_sizes,
    metavar="OCTETS,…",
    help="Of the application's buffers.",
)
@click.option("--runs", type=click.IntRange(1, 1000), default=5, show_default=True)
@click.option(
    "--seconds",
    type=click.FloatRange(0.05, 60),
    default=0.5,
    show_default=True,
    help="Of each point in a run.",
)
@click.option(
    "--link",
    type=click.FloatRange(1, 10_000),
    default=300.0,
    show_default=True,
    help="Rate of the simulated link, Mb/s.",
)
@click.option(
    "--plot", type=click.Path(path_type=Path, dir_okay=False), help="Draw the figures into FILE, a PNG."
)
@with_json
def offload(
    shared: Context,
    profile: str,
    series: tuple[str, ...],
    sizes: tuple[int, ...],
    runs: int,
    seconds: float,
    link: float,
    plot: Path | None,
) -> None:
    """What a host spends on receiving: IPsec disabled, in software, offloaded to a simulated adapter.

    The adapter is a process on another core and its own processor time a series of its own. The profile
    2008-like is this machine with the AES instructions masked."""
    from ikd.bench import offload_plot as drawing
    from ikd.bench import plot as checking
    from ikd.bench.offload import Plan, measure

    if plot:
        checking.check(plot)
    profiles = PROFILES if profile == "both" else (profile,)
    answer = _measured(measure, Plan(profiles, series, sizes, runs, seconds, link))
    if plot:
        drawing.draw(answer, plot)
    _show(shared, answer, render.offload)


@group.command(short_help="A peer that is up, while strangers flood.")
@click.option(
    "--initiations",
    type=click.IntRange(100, 10_000_000),
    default=100_000,
    show_default=True,
    help="First messages from forged addresses in each run.",
)
@click.option(
    "--rate",
    type=click.FloatRange(1, 1_000_000),
    default=10_000,
    show_default=True,
    help="Of them, a second.",
)
@click.option("--runs", type=click.IntRange(1, 1000), default=3, show_default=True)
@with_json
def flood(shared: Context, initiations: int, rate: float, runs: int) -> None:
    """An established peer, while strangers begin negotiations without end: rekeys and packets a second.

    Needs root; everything it makes is removed again."""
    from ikd.bench.flood import Plan, measure

    _show(shared, _measured(measure, Plan(initiations, rate, runs)), render.flood)


@group.command(short_help="SA pairs: memory, lookup, installation.")
@click.option("--pairs", type=click.IntRange(1, 4_000_000), default=100_000, show_default=True)
@with_json
def sadb(shared: Context, pairs: int) -> None:
    """SA pairs: memory of each, lookup by SPI and by packet, installation."""
    from ikd.bench.sadb import measure

    _show(shared, measure(pairs), render.sadb)


def _measured(measure: Callable[[Any, Callable[[str], None]], Any], plan: Any) -> Any:
    """What a measurement answers; interrupted, it takes everything apart first."""
    signal.signal(signal.SIGTERM, _interrupted)
    try:
        return measure(plan, lambda text: click.echo(text, err=True))
    except KeyboardInterrupt:
        click.echo("stopped; everything is cleaned up", err=True)
        raise click.exceptions.Exit(130) from None


def _interrupted(*_: Any) -> None:
    """SIGTERM takes everything apart as the interrupt key does."""
    raise KeyboardInterrupt


def _show(shared: Context, answer: Any, how: Any) -> None:
    if shared.as_json:
        import json

        click.echo(json.dumps(answer, ensure_ascii=False))
    else:
        how(console(), answer)
