"""Kerberos principals as text (RFC 1964 section 2.1.1): NAME, SERVICE/HOST, each with @REALM or without.

Policy compares these texts, so what could be read in two ways is refused: escapes, spaces, control
characters.
"""

from __future__ import annotations

from dataclasses import dataclass

MOST_OCTETS = 1024


@dataclass(frozen=True, slots=True)
class Principal:
    """One principal; `realm` is empty when the text names none."""

    parts: tuple[str, ...]
    realm: str = ""

    @classmethod
    def parse(cls, text: str) -> Principal:
        """From text; raises `ValueError` that says what is wrong."""
        if not text or len(text.encode("utf-8", "replace")) > MOST_OCTETS:
            raise ValueError(f"a principal has 1 to {MOST_OCTETS} octets")
        if not text.isprintable() or "\\" in text or any(map(str.isspace, text)):
            raise ValueError(f"a principal with spaces, escapes or control characters: {text[:80]!r}")
        if text.casefold().startswith(("group:", "keyid:")) or "=" in text:  # a distinguished name
            raise ValueError(f"a principal that would pass for something else: {text[:80]!r}")
        name, at, realm = text.partition("@")
        parts = tuple(name.split("/"))
        if not all(parts) or (at and not realm) or "@" in realm or "/" in realm:
            raise ValueError(f'"{text[:80]}" is not a principal such as host/db.example@EXAMPLE')
        return cls(parts, realm)

    def __str__(self) -> str:
        return self.name + (f"@{self.realm}" if self.realm else "")

    @property
    def name(self) -> str:
        """Without the realm."""
        return "/".join(self.parts)

    @property
    def host(self) -> str:
        """The host of host/NAME, empty for others."""
        return self.parts[1] if len(self.parts) == 2 and self.parts[0].lower() == "host" else ""

    @property
    def account(self) -> bool:
        """Whether it is a computer's account of Active Directory: NAME$."""
        return len(self.parts) == 1 and self.name.endswith("$")

    @property
    def machine(self) -> bool:
        """Whether it stands for a machine and not for a user or another service."""
        return bool(self.host) or self.account

    def names(self, realm: str) -> tuple[str, ...]:
        """What policy may call it. Without its realm only in ours, `realm`: another one that ours trusts
        must not name our hosts."""
        full = str(self)
        return (full, self.name) if self.host and self.realm == realm else (full,)
