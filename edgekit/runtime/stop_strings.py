"""Texts at which a generation stops, and which are not given out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


class StopStrings:
    """Holds text back while it may be the beginning of a stop string."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.hit = False

    def push(self, piece: str) -> Iterator[str]:
        """What can be given out now; nothing more after ``hit``."""
        self._held += piece
        places = [at for s in self._stops if (at := self._held.find(s)) >= 0]
        if places:
            self.hit = True
            ready, self._held = self._held[: min(places)], ""
        else:
            begun = (n for s in self._stops for n in range(1, len(s)) if self._held.endswith(s[:n]))
            cut = len(self._held) - max(begun, default=0)
            ready, self._held = self._held[:cut], self._held[cut:]
        if ready:
            yield ready

    def rest(self) -> Iterator[str]:
        """What was held back for a stop string that never came."""
        if self._held:
            yield self._held
