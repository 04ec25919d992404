"""Which main-mode SAs with a peer are looked through for each message: not those that are over."""

from __future__ import annotations

from support.authip import connected, hosts, main_mode
from support.link import Link


def test_a_deleted_main_mode_is_nobodys_kin() -> None:
    """A peer that connects and leaves again and again would make every negotiation slower for seconds."""
    link = connected()
    left, right = link.left, link.right
    gone = main_mode(right)
    link.close(left)
    link.run(0.5)
    link.up("net")
    link.run(0.5)
    fresh = main_mode(right)
    assert fresh is not gone
    assert gone.number in right.endpoint.associations  # it still answers repetitions
    assert right.endpoint.kin(fresh) == []


def test_rivals_are_what_we_have_begun() -> None:
    """An established SA, or the peer's, would be given up in favour of the peer's next one."""
    link = Link(*hosts())
    link.up("net")
    link.step()
    begun = main_mode(link.left)
    assert link.left.endpoint.rivals(begun) == [begun]
    link.run(1)
    assert link.left.endpoint.rivals(begun) == []
    assert link.right.endpoint.rivals(main_mode(link.right)) == []
