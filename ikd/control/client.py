"""Shell. The other end of the control socket, for ikctl, scripts and tests; blocking, without a library."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from ikd.control.protocol import LARGEST_LINE, PROTOCOL, ControlError, Json, decode, encode


class Client:
    """One connection. `call` for a request and its answer, `stream` for a request that keeps sending."""

    def __init__(self, path: Path, timeout: float | None = 60.0) -> None:
        """Connect and read the greeting; raises `ControlError` not-reachable or not-permitted."""
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sock.settimeout(timeout)
        self._number = 0
        try:
            self._sock.connect(str(path))
            self._file: BinaryIO = self._sock.makefile("rb")
            self.greeting = self._line()
            if "protocol" not in self.greeting:
                raise ControlError("not-reachable", "no greeting")
        except OSError as error:
            self._sock.close()
            raise _unreachable(path, error) from None
        except ControlError:
            self.close()
            raise ControlError(
                "not-reachable", f"{path}: who answers there is no ikd", "name its socket with --socket"
            ) from None
        if self.greeting.get("protocol") != PROTOCOL:
            self.close()
            raise ControlError(
                "not-reachable",
                f"the daemon speaks protocol {self.greeting.get('protocol')}, this ikctl {PROTOCOL}",
                "use the ikctl that came with the daemon",
            )

    def call(self, do: str, **parameters: Json) -> Json:
        """The result of a request; raises `ControlError` with the daemon's own code and remedy."""
        return list(self.stream(do, **parameters))[-1]

    def stream(self, do: str, **parameters: Json) -> Iterator[Json]:
        """Events in between, as they come, then the result. A watch gives its result first and never ends."""
        self._number += 1
        wanted = {name: value for name, value in parameters.items() if value is not None}
        try:
            self._sock.sendall(encode({"id": self._number, "do": do, "with": wanted}))
            while True:
                line = self._line()
                if "event" in line:
                    yield line
                elif line.get("ok"):
                    yield line["result"]
                    if do != "watch":
                        return
                else:
                    error = line.get("error") or {}
                    raise ControlError(
                        error.get("code", "internal"), error.get("message", ""), error.get("remedy", "")
                    )
        except TimeoutError:
            raise ControlError(
                "not-reachable", f"the daemon did not answer {do} in time", "look at its log"
            ) from None
        except OSError as error:
            raise ControlError(
                "not-reachable", f"the connection broke: {error}", "is ikd still running?"
            ) from None

    def interrupt(self) -> None:
        """From another thread: whoever waits for an answer waits no more."""
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Hang up; the connection lasts as long as either of the two is open."""
        self._file.close()
        self._sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.close()

    def _line(self) -> dict[str, Json]:
        line = self._file.readline(LARGEST_LINE + 1)
        if not line:
            raise ConnectionResetError("the daemon hung up")
        return decode(line)


def _unreachable(path: Path, error: OSError) -> ControlError:
    match error:
        case PermissionError():
            return ControlError(
                "not-permitted", f"{path}: no permission", "use sudo, or join the group that owns the socket"
            )
        case FileNotFoundError() | ConnectionRefusedError():
            return ControlError(
                "not-reachable",
                f"no daemon answers at {path}",
                "start it with: systemctl start ikd; or name its socket with --socket",
            )
    return ControlError("not-reachable", f"{path}: {error.strerror or error}", "look at the daemon's log")
