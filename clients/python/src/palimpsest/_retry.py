"""When a refused call is made again: one policy, which both clients follow."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

import grpc

from palimpsest import errors


@dataclass(frozen=True)
class RetryPolicy:
    """How often, and for how long, a client makes a call again that the server refused for the moment.

    A refusal is ABORTED (another call holds the session), RESOURCE_EXHAUSTED (a queue or a limit is full) or
    UNAVAILABLE (the server is draining) that says when to come back (google.rpc.RetryInfo): the server has then done
    nothing yet, so that any call may be repeated. The client waits as long as the server asks, twice as long at each
    further refusal, and up to a quarter more at random, so that many clients do not come back as one. It gives up,
    and raises the last refusal, at the bounds below or where the wait would pass the call's own `timeout`. A call of
    whose answer anything has come is never made again.
    """

    max_attempts: int = 6
    """The most times that a call is made. 1: refusals are raised at once."""
    max_seconds: float = 5.0
    """No attempt begins later than this after the first."""


DEFAULT_POLICY = RetryPolicy()

_REFUSALS = (grpc.StatusCode.ABORTED, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE)
_SHORTEST_WAIT = 0.01


class Attempts:
    """The attempts of one call, from the first on."""

    def __init__(self, policy: RetryPolicy, timeout: float | None) -> None:
        self._policy = policy
        self._begin = time.monotonic()
        self._timeout = timeout
        self._made = 1

    def timeout(self) -> float | None:
        """What is left of the call's time: all attempts share it."""
        return None if self._timeout is None else self._timeout - (time.monotonic() - self._begin)

    def wait_after(self, refusal: errors.PalimpsestError) -> float | None:
        """Seconds until the next attempt, which the caller then makes; None: there is none."""
        if refusal.retry_delay is None or refusal.code not in _REFUSALS or self._made >= self._policy.max_attempts:
            return None
        wait = max(refusal.retry_delay, _SHORTEST_WAIT) * 2.0 ** (self._made - 1) * random.uniform(1, 1.25)
        next_attempt = time.monotonic() - self._begin + wait
        if next_attempt > self._policy.max_seconds or (self._timeout is not None and next_attempt >= self._timeout):
            return None
        self._made += 1
        return wait
