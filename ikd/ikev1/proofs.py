"""How either side of phase 1 proves itself: a class for each family of authentication methods.

RFC 2409 sections 5.1 and 5.4, RFC 4754. Kerberos is draft-ietf-ipsec-isakmp-gss-auth-07 as KAME's racoon has
it: what only racoon tells is in `covered`.
"""

from __future__ import annotations

import hmac
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar, Protocol

from ikd.auth import Authenticate, Authenticated, Authenticator, Declined, Identity, Step, Token, psk
from ikd.auth.hashed import hash_of
from ikd.exchange import Steps, ask, send
from ikd.ikev1.keys import hash_i, hash_r, skeyid_psk, skeyid_signature
from ikd.ikev1.message import Message
from ikd.ikev1.session import Session
from ikd.isakmp.numbers import SIGNATURES, CertificateEncoding, Exchange, Method
from ikd.isakmp.payloads import Certificate, CertificateRequest, GssToken, Hash, Identification, Signature
from ikd.isakmp.proposals import MainChoice
from ikd.wire.isakmp import Payload
from policy.rules import Rule
from sadb.algorithms import PRF, Prf
from sadb.secret import Secret

_X509 = CertificateEncoding.X509_SIGNATURE


class Proof(ABC):
    """What both sides have to do in one authentication method. Tokens travel beside the public values, in
    further messages if need be; only Kerberos has them."""

    __slots__ = ("session",)

    method: ClassVar[str]  # as rules name it

    def __init__(self, session: Session, choice: MainChoice, name: str) -> None:
        self.session = session

    # Tokens ----------------------------------------------------------------------------------------------

    def hear(self, message: Message) -> None:  # noqa: B027  only Kerberos has tokens
        """Take the token out of a message."""

    def begin(self, rule: Rule) -> Steps[list[Payload]]:
        """The initiator's first token."""
        yield from ()
        return []

    def finish(self) -> Steps[None]:
        """The initiator has heard the responder's first token: the rest."""
        yield from ()

    def answer(self, rule: Rule) -> Steps[list[Payload]]:
        """The responder's first token."""
        yield from ()
        return []

    def settle(self, message: Message) -> Steps[Message]:
        """Send the message with the responder's first token, then the rest; the message with the peer's
        proof."""
        reply: Message = yield from send(message)
        return reply

    # Keys and proofs -------------------------------------------------------------------------------------

    def skeyid(self, rule: Rule, shared: bytes) -> Secret:
        """SKEYID; raises `Declined` without a key."""
        session = self.session
        return skeyid_signature(session.row, session.nonce_i, session.nonce_r, shared)

    @abstractmethod
    def prove(self, rule: Rule, identity: Identification) -> Steps[list[Payload]]:
        """[CERT,] SIG or HASH of ours."""

    @abstractmethod
    def verify(self, rule: Rule, identity: bytes, message: Message) -> Steps[Authenticated]:
        """The peer, if its proof over its identity payload holds; raises `Declined`."""

    def names(self, claimed: Identity) -> tuple[str, ...]:
        """By what a rule is found for the peer before its proof has been checked."""
        return (str(claimed),)

    def requests(self) -> Iterator[Payload]:
        """Certificate requests with the authorities we trust."""
        yield from ()

    @property
    def row(self) -> Prf:
        """The PRF of HASH_I and HASH_R."""
        return self.session.row

    def _hash(self, identity: bytes, extra: bytes = b"", *, ours: bool) -> bytes:
        """HASH_I or HASH_R."""
        session = self.session
        assert session.keys is not None
        make = hash_i if session.initiator is ours else hash_r
        return make(self.row, session.keys.skeyid, session.transcript, identity, extra)

    def _claimed(self) -> Identity:
        assert self.session.claimed is not None
        return self.session.claimed


class PskProof(Proof):
    """A pre-shared key: it makes SKEYID, and who can make the hash has it."""

    __slots__ = ("_key",)

    method = "psk"

    def skeyid(self, rule: Rule, shared: bytes) -> Secret:
        """SKEYID = prf(pre-shared-key, Ni_b | Nr_b)."""
        session = self.session
        credentials, peer = session.env.credentials, session.path.peer.address
        self._key = credentials.shared_key(rule, session.claimed, peer)
        return skeyid_psk(session.row, self._key, session.nonce_i, session.nonce_r)

    def prove(self, rule: Rule, identity: Identification) -> Steps[list[Payload]]:
        """HASH of ours."""
        yield from ()
        return [Hash(data=self._hash(identity.encode(), ours=True))]

    def verify(self, rule: Rule, identity: bytes, message: Message) -> Steps[Authenticated]:
        """The peer, if it has the key."""
        yield from ()
        claimed = self._claimed()
        if not hmac.compare_digest(message.one(Hash).data, self._hash(identity, ours=False)):
            raise Declined(
                f"the pre-shared key for {claimed} is not the one the peer has",
                "compare the secret for this peer in both hosts' secrets",
                cause="wrong-key",
            )
        credentials, address = self.session.env.credentials, self.session.path.peer.address
        if not credentials.shared_key_names(rule, claimed, address, self._key):
            raise Declined(
                f"the peer calls itself {claimed}, and the pre-shared key it has is not for that name",
                f'add "{claimed}" to `peers` of the [[psk]] in secrets.toml if this is the right host',
            )
        return psk.proven(claimed, credentials.material.groups)


class SignatureProof(Proof):
    """A certificate, whose key signs the hash."""

    __slots__ = ()

    method = "certificate"

    @property
    def row(self) -> Prf:
        """The PRF of HASH_I and HASH_R: where the method has a hash of its own, with that one."""
        name = hash_of(self.session.method)
        return next((one for one in PRF if one.name == name), self.session.row)

    def prove(self, rule: Rule, identity: Identification) -> Steps[list[Payload]]:
        """[CERT,] SIG of ours."""
        session = self.session
        assert session.local_identity is not None
        digest = self._hash(identity.encode(), ours=True)
        signer = session.env.credentials.hash_signer(rule, session.method, session.local_identity, digest)
        token = (yield from ask(Authenticate(signer))).token
        assert token is not None
        certificates = (Certificate(encoding=_X509, data=one) for one in token.certificates)
        return [*certificates, Signature(data=token.data)]

    def verify(self, rule: Rule, identity: bytes, message: Message) -> Steps[Authenticated]:
        """The peer, if its certificate and signature are good."""
        session = self.session
        digest = self._hash(identity, ours=False)
        verifier = session.env.credentials.hash_verifier(rule, self._claimed(), digest, session.row)
        certificates = tuple(one.data for one in message.every(Certificate) if one.encoding == _X509)
        token = Token(message.one(Signature).data, session.method, certificates)
        step = yield from ask(Authenticate(verifier, token))
        assert step.peer is not None
        return step.peer

    def requests(self) -> Iterator[Payload]:
        """All authorities we trust."""
        for name in self.session.env.credentials.authority_names():
            yield CertificateRequest(encoding=_X509, authority=name)


# Kerberos --------------------------------------------------------------------------------------------------


class Wrapping(Authenticator, Protocol):
    """A side that protects messages once both are proven. That is local work, and nothing to wait for."""

    def wrap(self, data: bytes) -> bytes:
        """Protect; raises `Declined`."""

    def unwrap(self, data: bytes) -> bytes:
        """What the peer has protected; raises `Declined`."""


def covered(name: str, tokens: Sequence[bytes]) -> bytes:
    """What HASH_I and HASH_R cover behind the identity: the sender's name, when both sides have told theirs,
    and all its tokens. racoon's order, and its form of the name: Latin-1, however it was sent. The draft is
    the authority and could not be had."""
    return name.encode("latin-1", "replace") + b"".join(tokens)


def encode_name(name: str) -> bytes:
    """A name as Windows sends it."""
    return name.encode("utf-16-le")


def decode_name(data: bytes) -> str:
    """A name in UTF-16LE, or in Latin-1 as older peers send it; no name has a zero octet there."""
    return data.decode("utf-16-le" if b"\0" in data else "latin-1", "replace")


class KerberosProof(Proof):
    """GSS-API tokens prove both sides; the hash, wrapped by their context, binds them to this exchange. The
    peer is the principal that Kerberos has proven; what its identity payload says is only recorded."""

    __slots__ = ("_heard", "_name", "_peer", "_sent", "_side", "_spoken")

    method = "kerberos"

    def __init__(self, session: Session, choice: MainChoice, name: str) -> None:
        Proof.__init__(self, session, choice, name)
        self._name = name
        self._spoken = decode_name(choice.gss_name)  # what the peer calls itself
        self._side: Wrapping | None = None
        self._peer: Authenticated | None = None
        self._sent: list[bytes] = []
        self._heard: list[bytes] = []

    def hear(self, message: Message) -> None:
        """Take the token out of a message."""
        self._heard.append(message.one(GssToken).token)

    def begin(self, rule: Rule) -> Steps[list[Payload]]:
        """The initiator's first token."""
        self._side = self.session.env.credentials.kerberos_initiator(rule, self._spoken or None)
        step = yield from ask(Authenticate(self._side))
        return [self._token(step)]

    def finish(self) -> Steps[None]:
        """[HDR, GSSi  -->   <--  HDR, GSSr] until both sides are proven."""
        step = yield from self._step()
        while step.token is not None:
            yield from self._pair(Message(Exchange.MAIN, (self._token(step),)))
            if step.peer is not None:
                break
            step = yield from self._step()

    def answer(self, rule: Rule) -> Steps[list[Payload]]:
        """The responder's first token."""
        self._side = self.session.env.credentials.kerberos_acceptor(rule)
        return [self._token((yield from self._step()))]

    def settle(self, message: Message) -> Steps[Message]:
        """[HDR, GSSi  -->   <--  HDR, GSSr] until both sides are proven; the side limits the rounds."""
        while self._peer is None:
            yield from self._pair(message)
            step = yield from self._step()
            message = Message(Exchange.MAIN, (self._token(step),))
        reply: Message = yield from send(message)
        return reply

    def prove(self, rule: Rule, identity: Identification) -> Steps[list[Payload]]:
        """HASH of ours, wrapped."""
        yield from ()
        digest = self._hash(identity.encode(), self._extra(self._name, self._sent), ours=True)
        return [Hash(data=self._proven()[0].wrap(digest))]

    def verify(self, rule: Rule, identity: bytes, message: Message) -> Steps[Authenticated]:
        """The peer, if it is the one of the tokens and has seen the same exchange."""
        yield from ()
        side, peer = self._proven()
        digest = self._hash(identity, self._extra(self._spoken, self._heard), ours=False)
        if not hmac.compare_digest(side.unwrap(message.one(Hash).data), digest):
            raise Declined(
                f"{peer.identity} has not seen the same exchange as we",
                "somebody has changed messages on the way, or the peer's hash covers something else",
            )
        return peer

    def names(self, claimed: Identity) -> tuple[str, ...]:
        """The principal's."""
        return self._proven()[1].names

    def _extra(self, name: str, tokens: Sequence[bytes]) -> bytes:
        return covered(name if self._name and self._spoken else "", tokens)

    def _proven(self) -> tuple[Wrapping, Authenticated]:
        if self._side is None or self._peer is None:
            raise Declined("the Kerberos exchange is not complete")
        return self._side, self._peer

    def _step(self) -> Steps[Step]:
        """Give our side the peer's last token."""
        assert self._side is not None
        step = yield from ask(Authenticate(self._side, Token(self._heard[-1])))
        self._peer = step.peer
        return step

    def _pair(self, message: Message) -> Steps[None]:
        """Send a token and hear one more: messages that an exchange of two tokens does not have."""
        session = self.session
        session.pair_due = True
        self.hear((yield from send(message)))
        session.pair_due = False
        session.pair_messages += 2

    def _token(self, step: Step) -> GssToken:
        """A step's token; nothing is sent as a token of no octets."""
        data = step.token.data if step.token else b""
        self._sent.append(data)
        return GssToken(token=data)


_FAMILIES: dict[int, type[Proof]] = {
    Method.PSK: PskProof,
    Method.GSS: KerberosProof,
    **dict.fromkeys(SIGNATURES, SignatureProof),
}


def proof_of(session: Session, choice: MainChoice, name: str) -> Proof:
    """What has to be done for the method that was agreed on; `name` is what we call ourselves with
    Kerberos."""
    return _FAMILIES[choice.method](session, choice, name)
