"""Reading the files of a directory: which, in which order, and what is said when one is not there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.policies import table

from policy.load import PolicyError, load, read


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A configuration directory with one rule and an empty policy.d."""
    (tmp_path / "policy.toml").write_text(table('name = "main"\nremote = "10.0.0.9"'))
    (tmp_path / "policy.d").mkdir()
    return tmp_path


def wrong(directory: Path) -> tuple[str, ...]:
    """The complaints of a load."""
    with pytest.raises(PolicyError) as caught:
        load(directory)
    return caught.value.complaints


def test_policy_d_is_read_after_policy_toml_in_order(directory: Path) -> None:
    """Sets of one file serve rules of another, and complaints name the file."""
    (directory / "policy.d" / "20-b.toml").write_text(table('name = "b"\ncrypto = "own"'))
    (directory / "policy.d" / "10-a.toml").write_text('[crypto.own]\nquick = ["aes128gcm"]\n')
    assert [name for name, _ in read(directory)] == [
        "policy.toml",
        "policy.d/10-a.toml",
        "policy.d/20-b.toml",
    ]
    rule = load(directory).rule("b")
    assert rule is not None
    assert rule.source == "policy.d/20-b.toml:2"
    assert rule.crypto is not None
    assert rule.crypto.name == "own"


def test_other_files_are_not_read(directory: Path) -> None:
    """What editors and package managers leave behind is no policy."""
    for name in ("x.toml~", ".#x.toml", ".x.toml", "README", "x.toml.dpkg-old"):
        (directory / "policy.d" / name).write_text("this is no TOML")
    assert len(load(directory).rules) == 1


def test_policy_d_may_be_missing(directory: Path) -> None:
    """Most hosts have one file."""
    (directory / "policy.d").rmdir()
    assert len(load(directory).rules) == 1


def test_missing_file_is_named_with_a_remedy(tmp_path: Path) -> None:
    """An empty policy protects nothing: no file is not the same as no rules."""
    (said,) = wrong(tmp_path)
    assert said == f"{tmp_path}/policy.toml: there is no such file; start from an example in conf/examples"


def test_directory_that_cannot_be_listed_is_no_empty_one(directory: Path) -> None:
    """Its rules would be missing without a word."""
    (directory / "policy.d").rmdir()
    (directory / "policy.d").write_text("a file")
    assert wrong(directory) == (f"{directory}/policy.d: cannot be read: {os.strerror(20)}",)


def test_unreadable_files_are_all_named(directory: Path) -> None:
    """All of them at once, with what is wrong in words."""
    (directory / "policy.toml").unlink()
    (directory / "policy.d" / "a.toml").write_bytes(b"x = '\xff'")
    (directory / "policy.d" / "b.toml").mkdir()
    found = wrong(directory)
    assert len(found) == 3
    assert "policy.toml: there is no such file" in found[0]
    assert "a.toml: is not UTF-8 text, from octet 5 on; save it as UTF-8" in found[1]
    assert found[2].endswith("b.toml: cannot be read: Is a directory")


def test_complaints_of_all_files_come_at_once(directory: Path) -> None:
    """One round for each mistake makes an evening of a change."""
    (directory / "policy.toml").write_text("[[rule]]\nname = 1\n")
    (directory / "policy.d" / "a.toml").write_text("[[rule]\n")
    (directory / "policy.d" / "b.toml").write_text(table('remot = "10.0.0.9"'))
    found = wrong(directory)
    assert [said.split(": ")[0] for said in found] == [
        "policy.d/a.toml:1",
        "policy.toml:2",
        "policy.d/b.toml:4",
    ]


def test_windows_line_ends_are_fine(directory: Path) -> None:
    """Policies are written everywhere."""
    (directory / "policy.toml").write_bytes(table('remote = "10.0.0.9"').replace("\n", "\r\n").encode())
    assert load(directory).rules[0].source == "policy.toml:2"
