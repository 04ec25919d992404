"""What the exchanges of one main-mode SA of AuthIP share: its channel, keys, transcripts, and what both sides
have proven (MS-AIPS section 3.1.1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ikd import keying
from ikd.auth import Authenticated
from ikd.authip.channel import OLD_VERSIONS, Channel
from ikd.authip.keys import MainKeys, Parties, Transcript, auth
from ikd.authip.profile import PROFILES, Profile
from ikd.isakmp.proposals import QuickChoice
from ikd.isakmp.session import IsakmpSession
from ikd.keying import Environment
from ikd.outputs import Output
from ikd.riders import vendor
from policy.peers import Verdict, admits
from policy.rules import Rule
from sadb.address import Path
from sadb.algorithms import MainSuite
from sadb.sa import Acquire, Mode, SaPair, State
from sadb.secret import Secret
from sadb.selector import Selector

Asked = Acquire | Selector  # what a quick mode is for: a packet, or what the peer has asked for


class Hooks:
    """What a session asks of those who hold it; set by the association."""

    __slots__ = (
        "authenticated",
        "delete",
        "emit",
        "first_contact",
        "kin",
        "named",
        "refused",
        "unfinished",
    )

    emit: Callable[[Output], None]
    first_contact: Callable[[], bool]  # whether we have no other main-mode SA with this peer
    kin: Callable[[], list[keying.MainMode]]  # other main-mode SAs with this peer
    authenticated: Callable[[], None]  # the peer is proven, its user too where the rule wants one
    refused: Callable[[Exception], None]  # the last method in common has failed; the peer may still go on
    named: Callable[[str], None]  # what the responder calls itself has led to proof
    delete: Callable[[SaPair, str], None]  # a quick-mode SA that is replaced: drop it here and at the peer
    unfinished: Callable[[SaPair], None]  # a quick-mode SA that came to nothing


@dataclass(frozen=True, slots=True)
class Agreed:
    """A quick mode that is agreed on: all that its keys and its pair are made of. `old` is the pair it
    replaces."""

    rule: Rule
    choice: QuickChoice
    message_id: int
    spi: int
    selector: Selector
    mode: Mode
    nonces: tuple[bytes, bytes]
    shared: bytes
    old: SaPair | None


@dataclass(frozen=True, slots=True)
class Proven:
    """What an exchange of tokens yields: the method, the peer, the secret for the keys, and what the
    initiator's flags said of its principal."""

    method: int
    peer: Authenticated
    secret: Secret
    user: bool = False
    explicit: bool = False
    one_way: bool = False  # only one side was proven, so that the roles cannot be swapped


class Session(IsakmpSession):
    """One main-mode SA."""

    __slots__ = (
        "auth_i",
        "auth_r",
        "channel",
        "em",
        "extends",
        "first_done",
        "hooks",
        "keys",
        "methods",
        "nonce_quick",
        "parties",
        "pending",
        "principal",
        "profile",
        "proven",
        "quick_ids",
        "shared",
        "transcript",
        "transcript_em",
    )

    channel: Channel
    keying = "authip"

    def __init__(self, initiator: bool, env: Environment, channel: Channel, path: Path, now: float) -> None:
        IsakmpSession.__init__(self, initiator, env, path, now)
        self.profile: Profile = PROFILES[env.settings.authip_profile]
        self.channel = channel
        self.hooks = Hooks()
        self.methods: tuple[int, ...] = ()  # both sides have, in the initiator's order
        self.shared = b""  # g^xy of main mode, empty without DH
        self.nonce_quick = b""  # Nr(qm), the responder's nonce for the first quick mode
        self.parties: Parties | None = None
        self.keys: MainKeys | None = None
        self.proven: Proven | None = None  # by main mode's exchange of tokens
        self.em: Secret | None = None  # SKEYID_em
        self.auth_i = self.auth_r = b""  # Auth1 and Auth2
        self.transcript, self.transcript_em = Transcript(), Transcript()
        self.principal = ""  # what the responder calls itself
        self.first_done = False  # Auth1 and Auth2 have been checked with the first quick mode
        self.extends = False  # as the initiator, we begin extended mode behind the first quick mode
        self.pending: Agreed | None = None  # a quick mode whose keys wait for extended mode
        self.quick_ids: dict[int, int] = {}  # inbound SPI -> message ID of its quick mode

    def emit(self, output: Output) -> None:
        """Hand an output or event to the world."""
        self.hooks.emit(output)

    # Keys ------------------------------------------------------------------------------------------------

    def agree_on(self, suite: MainSuite, nonce_r: bytes, shared: bytes) -> None:
        """Suite, nonces and g^xy are known; the keys wait for the exchange of tokens."""
        self.suite, self.nonce_r, self.shared = suite, nonce_r, shared
        channel = self.channel
        self.parties = Parties(suite, channel.cookie_i, channel.cookie_r, self.nonce_i, nonce_r, self.profile)

    def arm(self, proven: Proven) -> None:
        """Keys out of an exchange of tokens; Auth1 or Auth2 will tell whether the peer has the same."""
        assert self.parties is not None
        assert self.suite is not None
        self.proven = proven
        self.keys = self.parties.main(self.shared, proven.secret)
        self.channel.arm(self.suite, self.keys, old=self._short_icv())

    def _short_icv(self) -> bool:
        """Whether check values have 12 octets: Windows Vista to 7 has no others."""
        theirs = vendor.microsoft(self.vendors) in OLD_VERSIONS
        ours = self.profile.vendor_version in OLD_VERSIONS
        return theirs or (ours and self.profile.short_icv == "either")

    def disarm(self) -> None:
        """The authentication that these keys came from did not succeed, and another one begins."""
        self.proven = self.keys = None
        self.channel.disarm()

    def seal_transcript(self) -> None:
        """The messages that both sides have to have seen are complete: Auth1 and Auth2."""
        assert self.suite is not None
        assert self.keys is not None
        name = self.suite.prf.hash
        t = self.transcript.value(name)
        printed = t if self.profile.auth1_hashed else self.transcript.value(name, hashed=False)
        self.auth_i = auth(self.suite, self.keys.skeyid, printed, 1)
        self.auth_r = auth(self.suite, self.keys.skeyid, t, 2)

    # Policy ----------------------------------------------------------------------------------------------

    def admits(self, rule: Rule) -> Verdict:
        """Whether the peer may use a rule, by what is proven so far. Users are not asked of the responder,
        and of the initiator not before extended mode."""
        names = self.peer.claims if self.peer else ()
        if may_have_user(rule) and (self.initiator or not self.first_done):
            rule = replace(
                rule,
                allow=rule.allow and replace(rule.allow, users=()),
                deny=rule.deny and replace(rule.deny, users=()),
            )
        return admits(rule, names, self.user_names)

    def serves(self, rule: Rule) -> bool:
        """Whether the proof this peer gave, or is still to give, is one the rule asks for. What extended mode
        there is to be the first quick mode decides."""
        if keying.methods(rule) != keying.methods(self.rule):
            return False
        return not self.first_done or keying.second(rule) == keying.second(self.rule)

    def pairs_of_peer(self) -> list[SaPair]:
        """Quick-mode SAs of this and other main-mode SAs with the same peer, oldest first."""
        family: Sequence[keying.MainMode] = (*self.hooks.kin(), self)
        return [pair for one in family for pair in one.children.pairs.values()]

    def has_twin(self, pair: SaPair) -> bool:
        """Whether another quick-mode SA, as new or newer, is for the same traffic."""
        return any(
            (one.rule, one.selector, one.inbound.state) == (pair.rule, pair.selector, State.MATURE)
            and one is not pair
            and one.created >= pair.created
            for one in self.pairs_of_peer()
        )


def wants_user(rule: Rule) -> bool:
    """Whether a rule asks for extended mode, and will not do without."""
    second = keying.second(rule)
    lists = any(one and one.users for one in (rule.allow, rule.deny))
    return bool(second) and (second[-1].method != "anonymous" or lists)


def may_have_user(rule: Rule) -> bool:
    """Whether a rule has a second authentication at all."""
    return bool(keying.second(rule))
