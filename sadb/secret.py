"""Octets that must not be seen: a container whose text form hides them."""

from __future__ import annotations

import hmac


class Secret:
    """Key material. `bytes(secret)` gives it out; `repr`, `str` and formatting never do."""

    __slots__ = ("_data",)

    def __init__(self, data: bytes) -> None:
        self._data = bytes(data)

    def __bytes__(self) -> bytes:
        return self._data

    def __len__(self) -> int:
        return len(self._data)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self._data, other._data)

    def __hash__(self) -> int:
        return hash((Secret, len(self._data)))

    def __repr__(self) -> str:
        return f"<secret, {len(self._data)} octets>"

    __str__ = __repr__
