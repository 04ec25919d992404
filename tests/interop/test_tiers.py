"""Where there are no containers the same tests run in something less: each of these places must work, and
what is used must be said."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.matrix import CASES, check
from support.require import require
from support.tiers import TIERS, Containers, Namespaces, Tier, UserNamespaces, choose

pytestmark = [pytest.mark.container, pytest.mark.timeout(120)]

LOWER = [one for one in TIERS if one is not Containers]
SOME = [
    one for one in CASES if one.name in ("ikev2-psk", "ikev1-certificate-ecdsa-p256", "authip-then-user-ntlm")
]


@pytest.fixture
def base() -> Iterator[Path]:
    """A directory that others may pass through."""
    directory = Path(tempfile.mkdtemp(prefix="ikd-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


@pytest.mark.parametrize("kind", LOWER, ids=lambda kind: kind.key)
def test_some_of_it_in_a_lesser_place(
    base: Path, kind: type[Tier], record_property: Callable[[str, object], None]
) -> None:
    """One case of each keying module, so that no place rots unseen."""
    (base / "probe").mkdir(mode=0o755)
    reason = kind.why_not(base / "probe")
    if reason and kind is UserNamespaces:  # distributions forbid them
        record_property("tier", f"not tried, {kind.name}: {reason}")
        return
    require(not reason, f"{kind.name}: {reason}")
    place = kind(base)
    try:
        for case in SOME:
            with place.pair(case) as pair:
                check(pair, case)
    finally:
        place.close()
    record_property("tier", f"some of it in: {kind.name}")


def test_best_that_works(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without podman it goes on with namespaces and says why; where podman was asked for it does not."""
    require(not Namespaces.why_not(base), "network namespaces")
    places = base / "bin"
    places.mkdir()
    for tool in ("ip", "ping", "nft", "sysctl", "sh", "nsenter", "unshare"):
        (places / tool).symlink_to(str(shutil.which(tool)))
    monkeypatch.setenv("PATH", str(places))
    choice = choose(base)
    assert choice.tier is Namespaces
    assert choice.line == "tier: network namespaces (no podman containers: podman is not installed)"
    with pytest.raises(RuntimeError, match="podman is not installed"):
        choose(base, "podman")
    with pytest.raises(RuntimeError, match="there are podman, namespaces, userns, loopback"):
        choose(base, "docker")
