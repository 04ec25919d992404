"""Certificates of this host's configuration that must not end unnoticed: our own, and those we trust."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Final

SOON: Final = 14 * 86400.0  # seconds before its end from which on a certificate is warned of


@dataclass(frozen=True, slots=True)
class Watched:
    """One certificate. `use` is host, health, user or trust; `what` and `title` are for people; times are
    POSIX seconds. One that is good for hours only is `brief`: that it ends soon is nothing to warn about."""

    use: str
    what: str
    title: str
    begins: float
    ends: float
    brief: bool = False

    def warning(self, now: float) -> str:
        """What is wrong with its time, or soon will be; empty when nothing is."""
        name = f"{self.what} {self.title}"
        if self.ends < now:
            return f"{name} expired {_day(self.ends)}"
        if self.begins > now:
            return (
                f"{name} is not valid before {_day(self.begins, '%Y-%m-%d %H:%M')} UTC; is the clock right?"
            )
        if self.ends < now + SOON and not self.brief:
            return f"{name} expires {_day(self.ends)}"
        return ""


def _day(posix: float, form: str = "%Y-%m-%d") -> str:
    return dt.datetime.fromtimestamp(posix, dt.UTC).strftime(form)
