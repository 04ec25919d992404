"""One publisher, many listeners: hands each event to those who want its kind and to nobody else.

Handshakes publish a dozen events, most of them below the log's level, so who wants which kind is worked out
once and kept; `rewire` forgets it after a change. A listener that fails is our bug and silences no other one.
"""

from __future__ import annotations

from collections.abc import Callable

from ikd.events import Event

Listener = Callable[[Event], None]
Source = Callable[[type[Event]], Listener | None]


class Publisher:
    """Sources say for a kind of event who listens to it, if anybody; `broken` hears of listeners that
    fail."""

    def __init__(self, broken: Callable[[str, Exception], None]) -> None:
        self._broken = broken
        self._sources: list[Source] = []
        self._wired: dict[type[Event], tuple[Listener, ...]] = {}
        self._listeners: dict[Listener, frozenset[type[Event]] | None] = {}

    def add_source(self, source: Source) -> None:
        """Ask this one, for every kind of event, whether it listens."""
        self._sources.append(source)
        self.rewire()

    def listen(self, listener: Listener, kinds: frozenset[type[Event]] | None = None) -> Callable[[], None]:
        """Hear of these kinds, or all; returns what ends it."""
        self._listeners[listener] = kinds
        self.rewire()

        def end() -> None:
            self._listeners.pop(listener, None)
            self.rewire()

        return end

    def rewire(self) -> None:
        """Work out anew who listens to what."""
        self._wired = {}

    def publish(self, event: Event) -> None:
        """Tell everybody who wants to know."""
        kind = type(event)
        listeners = self._wired.get(kind)
        if listeners is None:
            listeners = self._wired[kind] = self._wire(kind)
        for listener in listeners:
            try:
                listener(event)
            except Exception as error:
                self._broken(f"a listener to {kind.__name__}", error)

    def _wire(self, kind: type[Event]) -> tuple[Listener, ...]:
        found = [listener for source in self._sources if (listener := source(kind))]
        found += [one for one, kinds in self._listeners.items() if kinds is None or kind in kinds]
        return tuple(found)
