"""Is the store out? Deletions stop while it is, cost no attempts, and probe until it is back."""

from __future__ import annotations

from collections.abc import Callable

from leases.errors import StoreUnavailable

# An outage is probed at doubling intervals up to this, so that work resumes within it.
_PAUSE_SECONDS_MAX = 8.0


def is_outage(error: BaseException) -> bool:
    """Whether this failure says that the store is out, rather than something about one blob."""
    return isinstance(error, StoreUnavailable | TimeoutError | ConnectionError)


class Circuit:
    """Closed: delete freely. Open: not before `pause` has passed, then one probe at a time."""

    def __init__(self, *, pause_seconds: float, monotonic: Callable[[], float]) -> None:
        self._first_pause = pause_seconds
        self._pause = pause_seconds
        self._monotonic = monotonic
        self._open_until: float | None = None

    @property
    def is_open(self) -> bool:
        """Whether the last word of the store was an outage."""
        return self._open_until is not None

    def wait_seconds(self) -> float:
        """How long nothing may be sent; 0 when closed or when a probe is due."""
        if self._open_until is None:
            return 0.0
        return max(0.0, self._open_until - self._monotonic())

    def opened(self) -> None:
        """The store was out."""
        if self.wait_seconds() > 0:
            return  # Other workers' calls of the same moment; only a failed probe is news.
        if self._open_until is None:
            self._pause = self._first_pause
        else:
            self._pause = min(self._pause * 2, _PAUSE_SECONDS_MAX)
        self._open_until = self._monotonic() + self._pause

    def closed(self) -> None:
        """The store answered."""
        self._open_until = None
