"""Exchanges as generators: what they yield, and the driver that resumes them.

An exchange is a `Steps`: it yields `Send` (resumed with the peer's next message), `Wait` (with another
message instead of the last one), `Pause` (after a while) or a `Question` (with its answer) and returns what
it made. It has no clock, no sockets and no keys of others; `Conversation` holds where it stands.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Question(Generic[T]):
    """Something only the world outside the core can answer with a `T`."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Send:
    """Protect and transmit a message; resumed with the peer's next message of this exchange."""

    message: Any


@dataclass(frozen=True, slots=True)
class Wait:
    """The message proved nothing and may be forged: resumed with another one, or `error` is thrown in when
    the request would have to be repeated and none has come."""

    error: Exception


@dataclass(frozen=True, slots=True)
class Pause:
    """Resumed after some seconds."""

    seconds: float


Step = Send | Wait | Pause | Question[Any]
Steps = Generator[Step, Any, R]


def send(message: Any) -> Steps[Any]:
    """Send a message; the peer's answer."""
    answer = yield Send(message)
    return answer


def ask(question: Question[T]) -> Steps[T]:
    """Yield a question and give its answer the right type."""
    answer: T = yield question
    return answer


class Conversation(Generic[R]):
    """One exchange under way. `waiting` is the last thing sent or asked, `result` the return value."""

    __slots__ = ("done", "name", "result", "steps", "waiting")

    def __init__(self, name: str, steps: Steps[R]) -> None:
        self.name = name
        self.steps = steps
        self.waiting: Step | None = None
        self.result: R | None = None
        self.done = False

    def resume(self, value: Any = None) -> Step | None:
        """Run to the next yield and return it; None when the exchange has ended."""
        try:
            self.waiting = self.steps.send(value)
        except StopIteration as stop:
            self._end(stop.value)
        except BaseException:
            self.done = True
            raise
        return self.waiting

    def fail(self, error: Exception) -> Step | None:
        """Throw into the exchange; it may recover and go on."""
        try:
            self.waiting = self.steps.throw(error)
        except StopIteration as stop:
            self._end(stop.value)
        except BaseException:
            self.done = True
            raise
        return self.waiting

    def close(self) -> None:
        """Abandon the exchange."""
        self.done = True
        self.steps.close()

    def _end(self, value: R) -> None:
        self.waiting, self.result, self.done = None, value, True
