"""Shell. nftables, through the library behind the `nft` program (libnftables(3)).

In this process, because a table with the flag `owner` lives exactly as long as the netlink socket that made
it: that is how the packet filter goes with the daemon when it shall not stay closed. A text of commands is
one transaction; the kernel takes all of it or nothing.
"""

from __future__ import annotations

import ctypes
import re
from typing import Final

from sadb.backend import Unavailable

_LIBRARY: Final = "libnftables.so.1"
_COUNTER: Final = re.compile(r"counter (\w+) \{\s*packets (\d+)")
_POINTERS: Final = ("nft_ctx_buffer_output", "nft_ctx_buffer_error", "nft_ctx_free")
_TEXTS: Final = ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer")


class Nft:
    """A connection to nftables in the network namespace it was made in."""

    def __init__(self) -> None:
        try:
            library = ctypes.CDLL(_LIBRARY)
        except OSError:
            raise Unavailable(f"{_LIBRARY} is missing: apt-get install nftables") from None
        library.nft_ctx_new.restype = ctypes.c_void_p
        library.nft_ctx_new.argtypes = [ctypes.c_uint32]
        for name in _POINTERS:
            getattr(library, name).argtypes = [ctypes.c_void_p]
        for name in _TEXTS:
            getattr(library, name).argtypes = [ctypes.c_void_p]
            getattr(library, name).restype = ctypes.c_char_p
        library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
        self._library = library
        self._context: int | None = library.nft_ctx_new(0)
        if not self._context:
            raise Unavailable("nftables does not answer: the kernel lacks CONFIG_NF_TABLES or memory")
        library.nft_ctx_buffer_output(self._context)
        library.nft_ctx_buffer_error(self._context)

    def run(self, commands: str) -> str:
        """What the commands print; raises `Unavailable` with the library's complaint, and then nothing was
        done."""
        if self._context is None:
            raise Unavailable("the connection to nftables is closed")
        status = self._library.nft_run_cmd_from_buffer(self._context, commands.encode())
        output: bytes = self._library.nft_ctx_get_output_buffer(self._context)
        error: bytes = self._library.nft_ctx_get_error_buffer(self._context)
        if status:
            lines = error.decode(errors="replace").strip().splitlines() or ["no reason given"]
            reason = lines[0].removeprefix("Error: ").removeprefix("Could not process rule: ")
            remedy = ""
            if "not permitted" in reason:
                remedy = " (CAP_NET_ADMIN is missing, or the table belongs to another running ikd)"
            elif "No such file" in reason or "not supported" in reason:
                remedy = " (the kernel lacks nft_fib_inet, or another feature of nf_tables)"
            raise Unavailable(f"nftables refuses the packet filter: {reason}{remedy}")
        return output.decode()

    def tables(self) -> list[str]:
        """The names of all inet tables."""
        prefix = "table inet "
        lines = self.run("list tables inet").splitlines()
        return [line.removeprefix(prefix) for line in lines if line.startswith(prefix)]

    def counters(self, table: str) -> dict[str, int]:
        """Packets on each named counter of an inet table."""
        text = self.run(f"list counters table inet {table}")
        return {name: int(packets) for name, packets in _COUNTER.findall(text)}

    def close(self) -> None:
        """Let go; a table that it owns disappears."""
        if self._context is not None:
            self._library.nft_ctx_free(self._context)
            self._context = None
