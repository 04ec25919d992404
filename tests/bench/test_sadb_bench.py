"""ikd.bench.sadb: that what is measured is really there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from ikd.bench import render, sadb


@pytest.mark.long
def test_rows_have_the_agreed_keys(tmp_path: Path) -> None:
    """Whoever reads `--json` relies on these names; figures of nothing would be zero."""
    answer = json.loads(json.dumps(sadb.measure(2000)))
    assert set(answer) == {"machine", "rows", "ratios", "runs"}
    assert [(row["backend"], row["by"]) for row in answer["rows"]] == [
        ("memory", "spi"),
        ("memory", "flow"),
        ("software", "spi"),
        ("software", "flow"),
    ]
    for row in answer["rows"]:
        assert row["pairs"] == 2000
        assert 500 < row["octets_per_pair"] < 10_000
        assert row["lookup_ns"] > 0
        assert row["install_us"] > 0
    with (tmp_path / "shown").open("w") as file:
        render.sadb(Console(width=140, file=file), answer)
    assert "2,000" in (tmp_path / "shown").read_text()
