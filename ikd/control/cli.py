"""Shell. `ikctl`: every command is a request on the control socket and a rendering of its answer.

`check`, `explain --config`, `policy check`, `cert`, `init` and `import` also work without a daemon. Modules
that take long to import are imported by the command that needs them, so that completion and `--help` answer
at once.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ikd import __version__
from ikd.control import hints
from ikd.control.lazy import LazyCommand, LazyGroup
from ikd.control.protocol import DEFAULT_SOCKET, EXIT_CODES, ControlError, Json, printable

if TYPE_CHECKING:
    from ikd.control.client import Client

DEFAULT_CONFIG = Path("/etc/ikd")
# whether it may be read is for the reader of its files to say: status 5
_DIRECTORY = click.Path(path_type=Path, file_okay=False, readable=False)
F = TypeVar("F", bound=Callable[..., Any])

EXITS = """\b
Exit codes:
  0  done
  1  configuration or usage
  2  daemon not reachable
  3  negotiation failed
  4  refused by policy
  5  not permitted"""


class Context:
    """What all commands share: where the daemon is, where its files are, whether JSON is wanted."""

    def __init__(self, socket: Path | None, config: Path | None, as_json: bool) -> None:
        self._socket = socket
        self._config = config
        self.as_json = as_json

    @property
    def config(self) -> Path:
        """The configuration directory."""
        return self._config or DEFAULT_CONFIG

    @property
    def config_given(self) -> bool:
        """Whether it was named on the command line."""
        return self._config is not None

    @property
    def socket(self) -> Path:
        """The socket named, else the one in ikd.toml, else the usual one."""
        if self._socket is not None:
            return self._socket
        if self._config is not None:
            return Path(load_settings(self._config).daemon.control)
        return Path(DEFAULT_SOCKET)

    def client(self, timeout: float | None = 60.0) -> Client:
        """A connection to the daemon."""
        from ikd.control.client import Client

        return Client(self.socket, timeout)

    def call(self, do: str, **parameters: Json) -> Json:
        """One request's result."""
        with self.client() as client:
            return client.call(do, **parameters)

    def show(self, answer: Json, how: str) -> None:
        """Print an answer: unchanged as JSON, or by the function of that name in `control.render`."""
        if self.as_json:
            click.echo(json.dumps(answer, ensure_ascii=False))
            return
        from ikd.control import render

        try:
            getattr(render, how)(render.console(), answer)
        except KeyError as error:
            remedy = "restart the daemon after an upgrade; --json prints what it answered"
            raise ControlError("internal", f"this daemon's answer has no {error}", remedy) from None


def load_settings(config: Path) -> Any:
    """Settings of a directory; raises `ControlError`."""
    from ikd import settings

    _may_read(config)
    try:
        return settings.load(config)
    except settings.SettingsError as error:
        raise ControlError("configuration", str(error)) from None


def _may_read(directory: Path) -> Path:
    """A directory of files that are to be read; raises `ControlError`."""
    if os.path.isdir(directory) and not os.access(directory, os.R_OK | os.X_OK, effective_ids=True):
        raise ControlError("not-permitted", f"{directory}: no permission to read it", "use sudo")
    return directory


class Commands(click.Group):
    """Commands in the order written, and an answer for names of other products."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        top = self is cli
        if top and args and args[0] == "show":
            args = [*hints.SHOW.get(args[1], (args[1],)), *args[2:]] if len(args) > 1 else ["status"]
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            told = hints.remedy(args[0], self.commands, "" if top else str(ctx.info_name))
            raise ControlError("usage", f"there is no command {args[0]!r}", told)
        return super().resolve_command(ctx, args)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Others have commands that begin with hyphens: `swanctl --list-sas`."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            if error.option_name.lstrip("-") not in hints.HINTS:
                raise
            told = hints.remedy(error.option_name, self.commands)
            raise ControlError("usage", f"there is no option {error.option_name}", told) from None


def with_json(function: F) -> F:
    """Add `--json` to a command, wherever it is written on the line."""

    @click.option("--json", "json_here", is_flag=True, help="Print the answer as JSON.")
    @click.pass_context
    @wraps(function)
    def wrapped(context: click.Context, /, *args: Any, json_here: bool, **named: Any) -> Any:
        shared: Context = context.find_object(Context)  # type: ignore[assignment]
        shared.as_json = shared.as_json or json_here
        return function(shared, *args, **named)

    return wrapped  # type: ignore[return-value]


def complete_names(context: click.Context, parameter: click.Parameter, typed: str) -> list[str]:
    """Names of rules, for completion; silent when there is no daemon."""
    root = context.find_root().params
    try:
        answer = Context(root.get("socket"), root.get("config"), True).call("policy")
    except ControlError:
        return []
    return [one["name"] for one in answer["rules"] if one["name"].startswith(typed)]


@click.group(cls=Commands, epilog=EXITS, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--socket",
    type=click.Path(path_type=Path, readable=False),  # who may use it is for the socket to say: status 5
    envvar="IKD_SOCKET",
    help="The daemon's control socket.",
)
@click.option(
    "--config",
    type=_DIRECTORY,
    help="Configuration directory, for work without a daemon.",
)
@click.option("--json", "as_json", is_flag=True, help="Print answers as JSON.")
@click.version_option(__version__, prog_name="ikctl", message="%(prog)s %(version)s")
@click.pass_context
def cli(context: click.Context, socket: Path | None, config: Path | None, as_json: bool) -> None:
    """Ask and steer ikd, the IPsec key-management daemon."""
    context.obj = Context(socket, config, as_json)


@cli.command()
@with_json
def status(shared: Context) -> None:
    """One line per peer, then what is wrong, if anything."""
    shared.show(shared.call("status"), "status")


@cli.command(short_help="SAs: main mode (IKE), quick mode (Child), extended.")
@click.argument("words", nargs=-1, metavar="[main|quick|extended] [NAME|PEER|SPI]")
@with_json
def sa(shared: Context, words: tuple[str, ...]) -> None:
    """Security associations: main mode (IKE SA), quick mode (Child SA), or both; extended shows the second
    authentication of those that have one. A user's name limits like a peer's."""
    kinds = [word for word in words if word in ("main", "quick", "extended")]
    others = [word for word in words if word not in kinds]
    if len(kinds) > 1 or len(others) > 1:
        raise click.UsageError("at most one of main, quick and extended, and one name, peer or SPI")
    answer = shared.call("sa", kind=kinds[0] if kinds else "", match=others[0] if others else "")
    if others and not any(answer.values()) and not shared.as_json:
        click.echo(f"no SA of {printable(others[0])}; those there are: ikctl sa")
    else:
        shared.show(answer, "sa")


@cli.group(cls=Commands)
def policy() -> None:
    """The rules: show those in force, check files."""


@policy.command("show", short_help="Rules in the order of matching, with every default.")
@click.argument("rule", default="", shell_complete=complete_names)
@with_json
def policy_show(shared: Context, rule: str) -> None:
    """Rules in force in the order of matching, with every default; with --config those of the files."""
    if shared.config_given:
        from ikd.control.offline import Files

        answer = Files(_may_read(shared.config)).policy(rule)
    else:
        answer = shared.call("policy", rule=rule)
    shared.show(answer, "policy")


@policy.command("check", short_help="Check the policy files without a daemon.")
@click.argument("directory", type=_DIRECTORY, required=False)
@with_json
def policy_check(shared: Context, directory: Path | None) -> None:
    """Check the policy files of a directory without a daemon; exit 1 and every complaint."""
    _check(shared, directory or shared.config, only_policy=True)


@cli.command(short_help="Check all files of a directory; no daemon is needed.")
@click.argument("directory", type=_DIRECTORY, required=False)
@with_json
def check(shared: Context, directory: Path | None) -> None:
    """Check all files of a directory without a daemon: settings, policy, secrets, certificates."""
    _check(shared, directory or shared.config, only_policy=False)


def _check(shared: Context, directory: Path, *, only_policy: bool) -> None:
    from ikd.control.offline import Files
    from ikd.events import count

    answer = Files(_may_read(directory)).check(only_policy=only_policy)
    if shared.as_json:
        click.echo(json.dumps(answer, ensure_ascii=False))
    else:
        for complaint in answer["complaints"]:
            click.echo(complaint, err=True)
        for warning in answer["warnings"]:
            click.echo(f"! {warning}")
        if not answer["complaints"]:
            click.echo(f"{directory}: good, {count(answer['rules'], 'rule')}")
    if answer["complaints"]:
        raise click.exceptions.Exit(1)


@cli.command(short_help="Which rule applies to a packet, and why this one.")
@click.argument("source")
@click.argument("destination")
@click.argument("service", default="", metavar="[PROTO/PORT]")
@with_json
def explain(shared: Context, source: str, destination: str, service: str) -> None:
    """Which rule applies to a packet from SOURCE to DESTINATION, and why this one and not the next.

    With --config, or when no daemon runs, from the files."""
    from ikd.control.offline import Files

    try:
        if shared.config_given:
            answer = Files(_may_read(shared.config)).explain(source, destination, service)
        else:
            answer = shared.call("explain", source=source, destination=destination, service=service)
    except ControlError as error:
        if error.code != "not-reachable" or not os.path.exists(shared.config / "policy.toml"):
            raise
        answer = Files(_may_read(shared.config)).explain(source, destination, service)
    shared.show(answer, "explain")


@cli.command(short_help="The last failures, both sides compared, and a remedy.")
@click.argument("name", default="", metavar="NAME|PEER", shell_complete=complete_names)
@with_json
def why(shared: Context, name: str) -> None:
    """The last failure: both sides' proposals or identities aligned, and a remedy."""
    shared.show(shared.call("why", name=name), "why")


cli.add_command(
    LazyCommand("top", "ikd.control.cli_top", "Peers, SAs, rates, offload and the last failures, live.")
)


@cli.command(short_help="Negotiate for a rule now and show the progress.")
@click.argument("name", metavar="RULE", shell_complete=complete_names)
@click.option("--timeout", type=float, default=60.0, show_default=True, help="Seconds to wait.")
@click.option("--childless", is_flag=True, help="Make an IKE SA without a Child SA (RFC 6023).")
@with_json
def up(shared: Context, name: str, timeout: float, childless: bool) -> None:
    """Negotiate for a rule now and show the progress; exit 3 when it fails."""
    from ikd.control import render

    with shared.client(timeout + 5) as client:
        answer: Json = None
        for answer in client.stream("up", name=name, timeout=timeout, childless=childless):
            if "event" in answer and not shared.as_json:
                render.event(render.console(), answer)
    if shared.as_json:
        click.echo(json.dumps(answer, ensure_ascii=False))
    else:
        click.echo(answer["text"])


@cli.command()
@click.argument("name", metavar="NAME|PEER|SPI", shell_complete=complete_names)
@with_json
def down(shared: Context, name: str) -> None:
    """Delete SAs here and at the peer."""
    _steer(shared, "down", name)


@cli.command()
@click.argument("name", metavar="NAME|PEER|SPI", shell_complete=complete_names)
@with_json
def rekey(shared: Context, name: str) -> None:
    """Replace keys now."""
    _steer(shared, "rekey", name)


def _steer(shared: Context, do: str, name: str) -> None:
    answer = shared.call(do, name=name)
    click.echo(json.dumps(answer, ensure_ascii=False) if shared.as_json else answer["text"])


@cli.command(short_help="Apply changed files, whole or not at all.")
@click.option("--dry-run", is_flag=True, help="Only say what would change.")
@with_json
def reload(shared: Context, dry_run: bool) -> None:
    """Apply changed files, whole or not at all; SAs of unchanged rules stay."""
    shared.show(shared.call("reload", dry_run=dry_run), "reload")


@cli.command()
@click.argument("events", nargs=-1)
@with_json
def watch(shared: Context, events: tuple[str, ...]) -> None:
    """Events as they happen, all or those named."""
    from ikd.control import render

    out = render.console()
    with shared.client(None) as client:
        try:
            for line in client.stream("watch", events=list(events)):
                if "event" not in line:
                    continue
                if shared.as_json:
                    click.echo(json.dumps(line, ensure_ascii=False))
                else:
                    render.event(out, line)
                sys.stdout.flush()
        except KeyboardInterrupt:
            return


@cli.command(short_help="Show or change what is logged; keys for Wireshark.")
@click.argument("level", default="")
@click.argument("group", default="")
@click.option(
    "--keys", type=click.Path(path_type=Path, dir_okay=False), help="Append keys to FILE for Wireshark."
)
@click.option("--no-keys", is_flag=True, help="Stop appending keys.")
@with_json
def log(shared: Context, level: str, group: str, keys: Path | None, no_keys: bool) -> None:
    """Show or change the log's LEVEL, for all groups of events or one GROUP.

    --keys FILE makes the daemon append the keys of every SA made from now on to FILE, in the lines that
    Wireshark reads as ikev2_decryption_table and esp_sa. Whoever can read FILE can read the traffic. It is
    off until asked for, and off again after a restart."""
    if keys is not None or no_keys:
        answer = shared.call("log-keys", file="" if keys is None else str(keys.absolute()))
        if keys is not None:
            click.echo(f"warning: {answer['warning']}", err=True)
    else:
        answer = shared.call("log", level=level, group=group)
    click.echo(json.dumps(answer, ensure_ascii=False) if shared.as_json else answer["text"])


@cli.command()
@with_json
def metrics(shared: Context) -> None:
    """Counters and gauges, as Prometheus reads them."""
    answer = shared.call("metrics")
    click.echo(json.dumps(answer) if shared.as_json else answer["text"], nl=shared.as_json)


@cli.command(short_help="Collect what a bug report needs, without secrets.")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@with_json
def bundle(shared: Context, file: Path) -> None:
    """Collect what a bug report needs into FILE, a tar.gz: configuration without secrets, status, SAs,
    policy, metrics, recent events and versions.

    Pre-shared keys, passwords, private keys and keytabs are never in it. Only you can read FILE."""
    from ikd.control import bundle

    answer = bundle.write(file, shared.config, shared.call)
    if shared.as_json:
        click.echo(json.dumps(answer))
    else:
        for reason in dict.fromkeys(answer["missing"].values()):
            names = ", ".join(name for name, why in answer["missing"].items() if why == reason)
            click.echo(f"warning: without {names}: {printable(reason)}", err=True)
        click.echo(f"{answer['file']}: {len(answer['members'])} files; {answer['warning']}")


@cli.command(short_help="IKE and ESP of one peer as a pcap, with its keys.")
@click.argument("name", metavar="NAME|PEER|SPI", shell_complete=complete_names)
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--seconds", type=click.FloatRange(min=0), help="End after so long; else with Ctrl-C.")
@with_json
def capture(shared: Context, name: str, file: Path, seconds: float | None) -> None:
    """Capture IKE and ESP of one peer into FILE, a pcap, and its keys into FILE.keys. Only for root.

    Whoever can read both files can read the traffic. The keys are lines of Wireshark's tables, as those of
    ikctl log --keys: of the SAs that are there and of those made meanwhile."""
    from ikd.control import capture

    with shared.client() as client:
        count = capture.run(client, name, file, capture.warn, seconds)
    if count == 0:
        click.echo("warning: none passed in the network namespace that ikctl runs in", err=True)
    click.echo(json.dumps({"file": str(file), "packets": count}) if shared.as_json else f"{count} packets")


@cli.command()
@with_json
def version(shared: Context) -> None:
    """Version of the daemon and of its control socket."""
    answer = shared.call("version")
    text = f"ikd {answer['ikd']}, control protocol {answer['protocol']}, ikctl {__version__}"
    click.echo(json.dumps(answer) if shared.as_json else text)


@cli.command(short_help="Completion script of a shell.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a shell: eval "$(ikctl completion bash)"."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"no completion for {shell}")
    click.echo(kind(cli, {}, "ikctl", "_IKCTL_COMPLETE").source())


def _register_lazily() -> None:
    """Groups whose modules are loaded only when used."""
    cli.add_command(LazyCommand("init", "ikd.control.cli_init", "Write a first configuration."))
    cli.add_command(
        LazyGroup("import", "ikd.control.cli_import", "Translate strongSwan's swanctl.conf or ipsec.conf.")
    )
    cli.add_command(
        LazyGroup(
            "bench",
            "ikd.control.cli_bench",
            "Measure: establishments, data planes, offload, a flood.",
        )
    )
    cli.add_command(
        LazyGroup("offload", "ikd.control.cli_offload", "The adapter: table, ports, SAs; set-port, enable.")
    )
    cli.add_command(
        LazyGroup("cert", "ikd.control.cli_cert", "A small PKI: authority, certificates, what is in one.")
    )


_register_lazily()


def main(arguments: list[str] | None = None) -> None:
    """Entry point. Every end goes through here, so that exit codes are those of `--help`."""
    sys.exit(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """Run one command; the exit code."""
    try:
        result = cli.main(arguments, prog_name="ikctl", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except ControlError as error:
        return _tell(error)
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.Abort:
        return 130
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return 1
    except click.ClickException as error:
        return _tell(_misused(error))
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _misused(error: click.ClickException) -> ControlError:
    """What click says of the command line, with the command as it is meant for a remedy."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    known = context.command.collect_usage_pieces(context) if context else []
    path = context.command_path if context else "ikctl"
    return ControlError("usage", error.format_message(), f"{' '.join((path, *known))}; see: {path} --help")


def _tell(error: ControlError) -> int:
    if "--json" in sys.argv:
        click.echo(json.dumps({"error": error.plain()}, ensure_ascii=False))
    click.echo(f"ikctl: {printable(error.message)}", err=True)
    if error.remedy:
        click.echo(f"remedy: {printable(error.remedy)}", err=True)
    return EXIT_CODES.get(error.code, 1)
