"""The driver of exchanges: what a generator yields comes out, what is put in goes on.

If one of these fails, an exchange loses its place, or hears of things that happened to another one.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from ikd.exchange import Conversation, Pause, Question, Send, Steps, Wait, ask, send


@dataclass(frozen=True, slots=True)
class Number(Question[int]):
    """Asks for a number."""


def exchange(log: list[str]) -> Steps[str]:
    """Sends, asks, pauses, recovers from one error, and ends."""
    log.append("begun")
    reply = yield from send("hello")
    number: int = yield from ask(Number())
    yield Pause(2.0)
    try:
        yield Wait(ValueError("nothing better came"))
    except ValueError as error:
        log.append(str(error))
    return f"{reply} {number}"


def test_a_whole_exchange() -> None:
    """Each yield in turn, the answers where they are asked for, the result at the end."""
    log: list[str] = []
    talk = Conversation("test", exchange(log))
    assert not log  # nothing runs before it is resumed
    assert talk.resume() == Send("hello")
    assert talk.waiting == Send("hello")
    assert talk.resume("reply") == Number()
    assert talk.resume(7) == Pause(2.0)
    step = talk.resume()
    assert isinstance(step, Wait)
    assert not talk.done
    assert talk.fail(step.error) is None
    assert log == ["begun", "nothing better came"]
    assert (talk.done, talk.result, talk.waiting) == (True, "reply 7", None)


def test_an_error_that_is_not_caught() -> None:
    """It comes out of the driver, and the exchange is over."""
    talk = Conversation("test", exchange([]))
    talk.resume()
    with pytest.raises(KeyError):
        talk.fail(KeyError("x"))
    assert talk.done
    assert talk.result is None


def test_an_error_of_the_exchange_itself() -> None:
    """The same for one that it raises while it runs."""

    def broken() -> Steps[None]:
        yield from send("hello")
        raise LookupError("no")

    talk = Conversation("test", broken())
    talk.resume()
    with pytest.raises(LookupError):
        talk.resume("reply")
    assert talk.done


def test_closing() -> None:
    """Whatever it holds is released, and it is over."""
    released = []

    def holds() -> Steps[None]:
        try:
            yield from send("hello")
        finally:
            released.append(True)

    talk = Conversation("test", holds())
    talk.resume()
    talk.close()
    assert talk.done
    assert released == [True]
    talk.close()  # once more does no harm


def test_an_exchange_that_does_nothing() -> None:
    """It ends with its first step."""

    def nothing() -> Steps[int]:
        yield from ()
        return 5

    talk = Conversation("test", nothing())
    assert talk.resume() is None
    assert talk.done
    assert talk.result == 5


def test_two_at_once() -> None:
    """Each has its own place."""
    one, two = Conversation("one", exchange([])), Conversation("two", exchange([]))
    one.resume()
    one.resume("a")
    two.resume()
    assert one.waiting == Number()
    assert two.waiting == Send("hello")
