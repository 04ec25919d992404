"""The reference is complete, and the file in docs/ is the one the code prints."""

from __future__ import annotations

import re
from pathlib import Path

from policy.checks import CHECKS
from policy.limits import LIMITS
from policy.load import parse
from policy.manual import manual
from policy.schema import TABLES
from sadb.algorithms import ENCRYPTION, GROUPS, INTEGRITY, REFUSED

ROOT = Path(__file__).resolve().parents[2]


def test_the_file_is_up_to_date() -> None:
    """Run `python -m ikd.control.manual` when this fails: people read the file, not the code."""
    assert (ROOT / "docs" / "policy.md").read_text(encoding="utf-8") == manual()


def test_everything_is_in_it() -> None:
    """A key, check, limit or algorithm that the reference does not tell of does not exist for its readers."""
    text = manual()
    rows = [row for table in (ENCRYPTION, INTEGRITY, GROUPS) for row in table]
    for name in (
        *(key.name for table in TABLES for key in table.keys),
        *(row.name for row in rows),
        *REFUSED,
    ):
        assert f"`{name}`" in text, name
    for sentence in (*(check.text for check in CHECKS), *(limit.text for limit in LIMITS)):
        assert sentence in text


def test_its_examples_load() -> None:
    """An example that is refused is the worst first experience."""
    blocks = re.findall(r"```toml\n(.*?)```", manual(), re.DOTALL)
    assert len(blocks) == 2
    assert {rule.name for rule in parse(blocks[0]).rules} == {"db", "sql", "branch"}
    for rule in blocks[0].split("[[rule]]")[1:]:
        assert len(rule.split("\n\n")[0].strip().splitlines()) < 9  # with its header under ten lines
    parse(blocks[1])  # the built-in sets as a file of one's own


def test_tables_are_well_formed() -> None:
    """A stray bar shifts every column after it."""
    width = 0
    for line in manual().splitlines():
        if not line.startswith("|"):
            width = 0
            continue
        bars = len(re.findall(r"(?<!\\)\|", line))
        assert width in (0, bars), line
        width = bars
