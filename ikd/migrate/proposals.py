"""Proposals of strongSwan, such as `aes128-aes256-sha256-modp2048`, as those of a crypto set.

There, one proposal may name several algorithms of a kind, which stand for all combinations; here, each
combination is an entry. An algorithm that is unknown or refused here is left out and listed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import islice, product

from ikd.migrate.model import Setting, Source, listed
from policy.sets import MOST_PROPOSALS
from policy.values import main_suite, quick_suite
from sadb.algorithms import (
    ALIASES,
    ENCRYPTION_BY_NAME,
    GROUP_BY_NAME,
    INTEGRITY_BY_NAME,
    PRF_BY_NAME,
    REFUSED,
)

_SPELLINGS = {"aes": "aes128", "sha": "sha1", "prfsha": "prfsha1"}
_SPELLINGS |= {f"aes{bits}gcm128": f"aes{bits}gcm" for bits in (128, 192, 256)}  # length of the tag in bits
_ESN = ("esn", "noesn")
_NO_GROUP = ("modpnone", "none")
_MOST_WORDS = 64


class _Words:
    """The words of one proposal by kind; "" among the groups stands for none."""

    def __init__(self, text: str, setting: Setting, source: Source) -> None:
        self.ciphers: list[str] = []
        self.hashes: list[str] = []
        self.prfs: list[str] = []
        self.groups: list[str] = []
        self.esn = False
        words = text.lower().split("-")
        self.hybrid = any(re.match(r"ke\d_", word) for word in words)  # RFC 9370
        if len(words) > _MOST_WORDS:
            source.note(
                setting.place, f"a proposal has more than {_MOST_WORDS} algorithms: the rest is left out"
            )
        for word in words[:_MOST_WORDS]:
            plain = ALIASES.get(_SPELLINGS.get(word, word), _SPELLINGS.get(word, word))
            if plain in ENCRYPTION_BY_NAME:
                self.ciphers.append(plain)
            elif plain in INTEGRITY_BY_NAME:
                self.hashes.append(plain)
            elif plain.startswith("prf") and plain.removeprefix("prf") in PRF_BY_NAME:
                self.prfs.append(plain)
            elif plain in GROUP_BY_NAME:
                self.groups.append(plain)
            elif plain in _NO_GROUP:
                self.groups.append("")
            elif plain in _ESN:
                self.esn = self.esn or plain == "esn"
            else:
                why = f"is refused: {REFUSED[plain]}" if plain in REFUSED else "is not known"
                source.note(setting.place, f'algorithm "{word}" {why}')

    def main(self) -> Iterator[str]:
        """Main-mode proposals in the words of a crypto set."""
        for cipher, group in product(self.ciphers, self.groups):
            if ENCRYPTION_BY_NAME[cipher].aead:
                for prf in self.prfs or self.hashes:
                    yield f"{group} {cipher} {prf}"
            else:
                for found, prf in product(self.hashes, self.prfs or [""]):
                    yield f"{group} {cipher} {found} {prf}".rstrip()

    def quick(self) -> Iterator[str]:
        """Quick-mode proposals of ESP."""
        for cipher, group in product(self.ciphers, self.groups or [""]):
            for found in [""] if ENCRYPTION_BY_NAME[cipher].aead else self.hashes:
                yield " ".join(filter(None, (cipher, found, group)))

    def ah(self) -> Iterator[str]:
        """Quick-mode proposals of AH."""
        for found, group in product(self.hashes, self.groups or [""]):
            yield f"ah {found} {group}".rstrip()


def main(setting: Setting, source: Source) -> list[str]:
    """Main-mode proposals; none: those of the default set."""
    return _all(setting, source, _Words.main, main_suite)[0]


def quick(setting: Setting, source: Source) -> tuple[list[str], bool]:
    """Quick-mode proposals of ESP, none: those of the default set; and whether to prefer 64-bit sequence
    numbers."""
    return _all(setting, source, _Words.quick, quick_suite)


def ah(setting: Setting, source: Source) -> tuple[list[str], bool]:
    """The same of AH."""
    return _all(setting, source, _Words.ah, quick_suite)


def _all(
    setting: Setting,
    source: Source,
    combine: Callable[[_Words], Iterator[str]],
    check: Callable[[str], object],
) -> tuple[list[str], bool]:
    found: dict[str, None] = {}
    esn = False
    texts = [one for one in listed(setting.text.removesuffix("!")) if one != "default"]
    for text in texts[:MOST_PROPOSALS]:
        words = _Words(text, setting, source)
        # without its further key exchanges a proposal would be weaker than it was meant
        some = [] if words.hybrid else list(islice(_good(combine(words), check), MOST_PROPOSALS))
        if not some:
            source.note(setting.place, f'proposal "{text[:80]}": nothing of it can be translated')
        found |= dict.fromkeys(some)
        esn = esn or (bool(some) and words.esn)
    if len(found) > MOST_PROPOSALS or len(texts) > MOST_PROPOSALS:
        source.note(setting.place, f"more than {MOST_PROPOSALS} proposals: the rest is left out")
    if texts and not found:
        source.note(setting.place, "no proposal is left: the rule has those of the default set")
    return list(found)[:MOST_PROPOSALS], esn


def _good(texts: Iterator[str], check: Callable[[str], object]) -> Iterator[str]:
    """Those that a crypto set takes; the others are combinations that do not exist."""
    for text in texts:
        try:
            check(text)
        except ValueError:
            continue
        yield text
