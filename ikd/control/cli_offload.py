"""Shell. `ikctl offload`: the adapter, its ports, and what is in its table."""

from __future__ import annotations

import click

from ikd.control.cli import Commands, Context, with_json

_ANSWER = click.Choice(["yes", "no"])


@click.group(cls=Commands, invoke_without_command=True)
@with_json
def group(shared: Context) -> None:
    """The adapter: capacity and use, ports with their limits, the busiest SAs, and why some are in software.

    Without a command, shows all of it."""
    if click.get_current_context().invoked_subcommand is None:
        answer = shared.call("offload")
        if shared.as_json:
            shared.show(answer, "status")
            return
        from ikd.control import render, render_offload

        render_offload.offload(render.console(), answer)


@group.command("set-port")
@click.argument("name")
@click.option("--max-sa", type=click.IntRange(0), help="Most SAs offloaded; 0: none, IPsec goes on.")
@click.option("--reserve", type=click.IntRange(0), help="Slots that nobody else may fill.")
@click.option("--weight", type=click.IntRange(0, 100), help="How much its traffic counts against others'.")
@click.option("--trusted", type=_ANSWER, help="Whether outbound SAs may be offloaded, too.")
@click.option("--exclusive", type=_ANSWER, help="Whether it takes slots of ports that are not exclusive.")
@with_json
def set_port(
    shared: Context,
    name: str,
    max_sa: int | None,
    reserve: int | None,
    weight: int | None,
    trusted: str | None,
    exclusive: str | None,
) -> None:
    """Change a port, or make one, at once and for good. The host's own is called host."""
    wanted = {"limit": max_sa, "reserve": reserve, "weight": weight}
    given: dict[str, object] = {key: value for key, value in wanted.items() if value is not None}
    given |= {key: [word] for key, word in (("trusted", trusted), ("exclusive", exclusive)) if word}
    answer = shared.call("offload-set-port", name=name, **given)
    if shared.as_json:
        shared.show(answer, "status")
        return
    from ikd.control import render, render_offload

    render_offload.ports(render.console(), [answer])


@group.command("remove-port", short_help="Take a port off the switch.")
@click.argument("name")
@with_json
def remove_port(shared: Context, name: str) -> None:
    """Take a port off the switch; SAs of who is behind it go on in software."""
    _told(shared, "offload-remove-port", name=name)


@group.command()
@with_json
def enable(shared: Context) -> None:
    """Let the adapter carry SAs, as its slots allow."""
    _told(shared, "offload-enable", enabled=True)


@group.command()
@with_json
def disable(shared: Context) -> None:
    """All SAs in software; IPsec goes on."""
    _told(shared, "offload-enable", enabled=False)


@group.command(short_help="Have the simulated adapter fail, for trials.")
@click.argument("name")
@click.argument("value")
@with_json
def fault(shared: Context, name: str, value: str) -> None:
    """Have the simulated adapter fail, for trials: NAME is one of docs/offload.md, or link or reset."""
    _told(shared, "offload-fault", name=name, value=value)


def _told(shared: Context, do: str, **given: object) -> None:
    answer = shared.call(do, **given)
    if shared.as_json:
        shared.show(answer, "status")
    else:
        click.echo(answer["text"])
