"""Commands and groups of them whose module is imported when it is used, so that `ikctl` starts quickly."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click


class LazyGroup(click.Group):
    """Shows its help line at once and loads `group` out of `module` for everything else."""

    def __init__(self, name: str, module: str, text: str) -> None:
        super().__init__(name, short_help=text)
        self._module = module
        self._loaded: click.Group | None = None

    def _group(self) -> click.Group:
        if self._loaded is None:
            loaded: Any = import_module(self._module).group
            self._loaded = loaded
            self.help = loaded.help
        return self._loaded

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        return self._group().make_context(info_name, args, parent, **extra)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return self._group().list_commands(ctx)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return self._group().get_command(ctx, cmd_name)


class LazyCommand(click.Command):
    """Shows its help line at once and loads `command` out of `module` for everything else."""

    def __init__(self, name: str, module: str, text: str) -> None:
        super().__init__(name, short_help=text)
        self._module = module

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        loaded: click.Command = import_module(self._module).command
        return loaded.make_context(info_name, args, parent, **extra)
