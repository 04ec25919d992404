"""Single values: what each text means, and what is said about one that means nothing."""

from __future__ import annotations

import re
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.values import endpoint, keyword, main_suite, octets, ports, protocol, quick_suite, seconds, spans
from sadb.algorithms import ALIASES, ENCRYPTION, GROUPS, INTEGRITY, REFUSED, Kind, SecurityProtocol


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        ("10.0.0.9", "10.0.0.9", "10.0.0.9"),
        (" 10.0.0.9 ", "10.0.0.9", "10.0.0.9"),
        ("10.1.0.0/16", "10.1.0.0", "10.1.255.255"),
        ("10.0.0.3-10.0.0.7", "10.0.0.3", "10.0.0.7"),
        ("10.0.0.3 - 10.0.0.7", "10.0.0.3", "10.0.0.7"),
        ("2001:db8::1", "2001:db8::1", "2001:db8::1"),
        ("2001:db8::/64", "2001:db8::", "2001:db8::ffff:ffff:ffff:ffff"),
        ("fe80::1-fe80::9", "fe80::1", "fe80::9"),
        ("0.0.0.0/0", "0.0.0.0", "255.255.255.255"),
    ],
)
def test_spans_cover_what_they_say(text: str, low: str, high: str) -> None:
    """A wrong bound protects the wrong hosts."""
    assert spans(text) == ((ip_address(low), ip_address(high)),)


def test_any_is_both_families() -> None:
    """A rule for "any" that forgot IPv6 would let it pass."""
    assert [low.version for low, _ in spans("Any")] == [4, 6]
    assert all(int(low) == 0 and int(high) + 1 == 1 << high.max_prefixlen for low, high in spans("any"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("10.1.0.5/16", 'did you mean "10.1.0.0/16"?'),
        ("10.1.0.0/33", "the length after / is 0 to 32"),
        ("2001:db8::/129", "the length after / is 0 to 128"),
        ("10.1.0.0/x", 'not "x"'),
        ("banana/8", '"banana" is not an address'),
        ("10.0.0.9-10.0.0.1", 'did you mean "10.0.0.1-10.0.0.9"?'),
        ("10.0.0.1-::1", "different families"),
        ("10.0.0.1-10.0.0.2-10.0.0.3", "write two addresses"),
        ("10.0.0.256", "is not an address, a prefix (10.1.0.0/16)"),
        ("LocalSubnets", 'did you mean "LocalSubnet"?'),
        ("fe80::1%eth0", "leave the part from % on away"),
        ("", "is not an address"),
    ],
)
def test_bad_address_says_what_was_meant(text: str, said: str) -> None:
    """An administrator who is told only "invalid" guesses."""
    with pytest.raises(ValueError, match=re.escape(said)):
        spans(text)


@given(st.integers(0, 32), st.integers(0, 2**32 - 1))
def test_any_prefix_is_read_or_corrected(length: int, number: int) -> None:
    """Every prefix either means its network or is answered with the network that was probably meant."""
    text = f"{ip_address(number)}/{length}"
    network = ip_network(text, strict=False)
    if network[0] == ip_address(number):
        assert spans(text) == ((network[0], network[-1]),)
    else:
        with pytest.raises(ValueError, match=re.escape(f'did you mean "{network}"?')):
            spans(text)


def test_keywords_are_known_in_any_case() -> None:
    """docs/policy.md spells them so; nobody remembers how."""
    assert keyword("localsubnet") == "LocalSubnet"
    assert keyword(" dns ") == "DNS"
    assert keyword("dnss") is None


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("any", None),
        ("192.0.2.1", ip_address("192.0.2.1")),
        ("2001:db8::1", ip_address("2001:db8::1")),
        ("VPN.Branch.example.", "vpn.branch.example"),
        ("gateway-1", "gateway-1"),
    ],
)
def test_tunnel_ends(text: str, meaning: object) -> None:
    """A tunnel end is an address, a name, or nobody in particular."""
    assert endpoint(text) == meaning


@pytest.mark.parametrize("text", ["192.0.2.1/32", "10.0.0.300", "-x.example", "a..b", "a b", "", "x" * 300])
def test_bad_tunnel_ends(text: str) -> None:
    """A typo in an address must not become a host name to be looked up."""
    with pytest.raises(ValueError, match="is not an address, a host name"):
        endpoint(text)


@pytest.mark.parametrize(
    ("value", "number"), [("tcp", 6), ("UDP", 17), ("any", 0), ("icmpv6", 58), (47, 47), ("50", 50)]
)
def test_protocols(value: str | int, number: int) -> None:
    """Names and numbers of protocols above IP."""
    assert protocol(value) == number


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("tpc", 'did you mean "tcp"?'),
        ("quic", "known: any, icmp"),
        (0, 'write "any"'),
        (256, "not in 1 to 255"),
        (-1, "not in 1 to 255"),
    ],
)
def test_bad_protocols(value: str | int, said: str) -> None:
    """Protocol 0 is a protocol elsewhere and "any" here; it is asked which."""
    with pytest.raises(ValueError, match=re.escape(said)):
        protocol(value)


@pytest.mark.parametrize(
    ("value", "span"),
    [
        (443, (443, 443)),
        ("443", (443, 443)),
        ("https", (443, 443)),
        ("Telnet", (23, 23)),
        ("8000-8099", (8000, 8099)),
        ("any", (0, 65535)),
    ],
)
def test_ports(value: str | int, span: tuple[int, int]) -> None:
    """Numbers, service names and ranges."""
    assert ports(value) == span


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0, "port 0 is not in 1 to 65535"),
        (65536, "not in 1 to 65535"),
        ("9-8", 'did you mean "8-9"?'),
        ("htps", 'did you mean "https"?'),
        ("zzz", "service names not listed"),
        ("1-70000", "port 70000"),
    ],
)
def test_bad_ports(value: str | int, said: str) -> None:
    """A wrong port protects another service than was meant."""
    with pytest.raises(ValueError, match=re.escape(said)):
        ports(value)


@pytest.mark.parametrize(
    ("value", "amount"),
    [(90, 90), (1.5, 1.5), ("90 s", 90), ("8h", 28800), ("90 min", 5400), ("1.5 h", 5400), ("2 D", 172800)],
)
def test_times(value: float | str, amount: float) -> None:
    """Lifetimes are seconds inside and whatever is readable outside."""
    assert seconds(value) == amount


@pytest.mark.parametrize(
    ("value", "amount"), [(1000, 1000), ("100 GB", 100 * 10**9), ("64 MiB", 64 * 2**20), ("0.5kb", 500)]
)
def test_sizes(value: float | str, amount: int) -> None:
    """GB and GiB differ; a limit counted in the wrong one is off by seven per cent."""
    assert octets(value) == amount


@pytest.mark.parametrize(
    "value", ["8", "8 hours", "-8 h", "", "h", 0, -1, float("nan"), float("inf"), 10**400, "9" * 400 + " h"]
)
def test_bad_times(value: float | str) -> None:
    """Nothing, less than nothing and no number at all are refused, however they are written."""
    with pytest.raises(ValueError, match="is not an amount"):
        seconds(value)


@pytest.mark.parametrize("value", ["100 GBit", 0.2, 1e30, "9" * 30 + " TB"])
def test_bad_sizes(value: float | str) -> None:
    """A counter of 64 bits never gets there."""
    with pytest.raises(ValueError, match=r"amount|counted"):
        octets(value)


# Proposals --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("x25519 aes256gcm sha384", ("x25519", "aes256gcm", "sha384", None)),
        ("aes256gcm16-prfsha384-x25519", ("x25519", "aes256gcm", "sha384", None)),
        ("aes128-sha256-ecp256", ("p256", "aes128", "sha256", "sha256")),
        ("MODP2048, AES256 + SHA512", ("modp2048", "aes256", "sha512", "sha512")),
        ("aes128-sha256-prfsha384-x25519", ("x25519", "aes128", "sha384", "sha256")),
        ("group14 aes128 sha1", ("modp2048", "aes128", "sha1", "sha1")),
        ("chacha20 sha256 curve25519", ("x25519", "chacha20poly1305", "sha256", None)),
    ],
)
def test_main_mode_proposals(text: str, parts: tuple[str | None, ...]) -> None:
    """Ours and strongSwan's way of writing mean the same."""
    suite = main_suite(text)
    integrity = suite.integrity.name if suite.integrity else None
    assert (suite.group.name, suite.encryption.name, suite.prf.name, integrity) == parts


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("aes256gcm sha384", "names no Diffie-Hellman group; add x25519"),
        ("x25519 sha384", "names no encryption; add aes256gcm"),
        ("x25519 aes256gcm", "names no hash; add sha256"),
        ("x25519 aes256 prfsha256", "has no integrity; aes256 needs a hash"),
        ("x25519 aes256gcm sha256 prfsha256", "leave sha256 out"),
        ("x25519 null sha256", "main mode always encrypts"),
        ("x25519 aes128gmac sha256", "for quick mode only"),
        ("x25519 aes256 sha256 esn", "belongs into a quick-mode proposal"),
        ("x25519 p256 aes256 sha256", "names two of group"),
        ("x25519 aes128 aes256 sha256", "names two of encryption"),
        ("x25519 aes256 sha256 sha384", "names two of hash"),
        ("x25591 aes256 sha256", 'did you mean "x25519"?'),
        ("", "names no Diffie-Hellman group"),
    ],
)
def test_bad_main_mode_proposals(text: str, said: str) -> None:
    """Half a proposal is not completed by guessing."""
    with pytest.raises(ValueError, match=re.escape(said)):
        main_suite(text)


@pytest.mark.parametrize(
    ("text", "protocol", "parts"),
    [
        ("aes128gcm", SecurityProtocol.ESP, ("aes128gcm", None, None)),
        ("aes256-sha256-x25519", SecurityProtocol.ESP, ("aes256", "sha256", "x25519")),
        ("null sha256", SecurityProtocol.ESP, ("null", "sha256", None)),
        ("aes128gmac", SecurityProtocol.ESP, ("aes128gmac", None, None)),
        ("ah sha384 p256", SecurityProtocol.AH, (None, "sha384", "p256")),
    ],
)
def test_quick_mode_proposals(text: str, protocol: SecurityProtocol, parts: tuple[str | None, ...]) -> None:
    """Cipher, hash and group of PFS, each only where it belongs."""
    suite = quick_suite(text)
    names = tuple(row.name if row else None for row in (suite.encryption, suite.integrity, suite.group))
    assert (suite.protocol, names) == (protocol, parts)


def test_sequence_numbers_are_chosen_per_proposal() -> None:
    """`esn` and `noesn` in a proposal go before what the set says."""
    assert quick_suite("aes128gcm").esn
    assert not quick_suite("aes128gcm noesn").esn
    assert not quick_suite("aes128gcm", esn=False).esn
    assert quick_suite("aes128gcm esn", esn=False).esn


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("aes256", 'aes256 has no integrity; write "aes256 sha256"'),
        ("null", 'nothing would be protected; write "null sha256"'),
        ("aes128gcm sha256", "leave sha256 out"),
        ("sha256", "names no encryption; add aes128gcm, or null"),
        ("ah", 'write "ah sha256"'),
        ("ah aes128 sha256", "AH does not encrypt"),
        ("esp ah sha256", "choose one"),
        ("aes128gcm prfsha256", "quick mode has no PRF"),
    ],
)
def test_bad_quick_mode_proposals(text: str, said: str) -> None:
    """Encryption without integrity can be forged; it is never offered."""
    with pytest.raises(ValueError, match=re.escape(said)):
        quick_suite(text)


@pytest.mark.parametrize("word", sorted(REFUSED))
def test_broken_algorithms_are_refused_with_the_reason(word: str) -> None:
    """DES, MD5 and the groups 1, 2 and 5 must not come back through a policy file."""
    for read, text in ((main_suite, f"{word} aes128 sha256 x25519"), (quick_suite, f"aes128 sha256 {word}")):
        with pytest.raises(ValueError, match=f'"{word}" is refused: .*use ') as caught:
            read(text)
        assert REFUSED[word] in str(caught.value)


def test_every_algorithm_can_be_written() -> None:
    """A row of the table that no proposal can name is dead."""
    for group in GROUPS:
        assert main_suite(f"{group.name} aes128 sha256").group is group
    for hashed in INTEGRITY:
        assert quick_suite(f"aes128 {hashed.name}").integrity is hashed
    for cipher in ENCRYPTION:
        needs = "" if cipher.aead else " sha256"
        assert quick_suite(cipher.name + needs).encryption is cipher
        assert cipher.esp_only or main_suite(f"x25519 {cipher.name} sha256").encryption is cipher
    for alias, name in ALIASES.items():
        rest = ("sha256", "aes128", "x25519")
        kinds = ({h.name for h in INTEGRITY}, {c.name for c in ENCRYPTION}, {g.name for g in GROUPS})
        others = " ".join(word for word, kind in zip(rest, kinds, strict=True) if name not in kind)
        assert main_suite(f"{alias} {others}") == main_suite(f"{name} {others}")


@given(
    st.text(max_size=40) | st.sampled_from(["x25519", "aes128", "sha256", "ah", "null"]).map(lambda w: w * 2)
)
def test_any_text_is_a_value_or_a_complaint(text: str) -> None:
    """Another exception than ValueError would end the load with a traceback."""
    for read in (spans, endpoint, protocol, ports, seconds, octets, main_suite, quick_suite):
        try:
            read(text)
        except ValueError:
            continue


@given(
    st.lists(
        st.sampled_from(
            [*(r.name for r in ENCRYPTION), *(r.name for r in INTEGRITY), "x25519", "ah", "noesn"]
        ),
        max_size=5,
    )
)
def test_quick_mode_always_has_integrity(words: list[str]) -> None:
    """Whatever combination is accepted, packets cannot be changed on the way, and AH encrypts nothing."""
    try:
        suite = quick_suite(" ".join(words))
    except ValueError:
        return
    assert suite.integrity or (suite.encryption and suite.encryption.aead)
    assert (suite.encryption is None) == (suite.protocol is SecurityProtocol.AH)
    assert not (suite.integrity and suite.encryption and suite.encryption.kind in (Kind.AEAD, Kind.GMAC))
