"""The bandwidth cap of one migration: a token bucket over all its page, disk and mirror channels."""

import threading
import time
from collections.abc import Callable
from typing import Final

# How much may go out at once after a pause: long enough to hide the scheduler, short against an iteration.
_BURST_S: Final = 0.05


class BandwidthCap:
    """Hands out the right to send bytes at `bytes_per_s`; 0 means no cap. For any number of threads."""

    def __init__(self, bytes_per_s: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._bytes_per_s = bytes_per_s
        self._clock = clock
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._free_at = clock()

    def reserve(self, byte_count: int) -> float:
        """Book `byte_count` bytes; returns how many seconds to wait before sending them."""
        if not self._bytes_per_s:
            return 0.0
        with self._lock:
            now = self._clock()
            # The bucket's level as a time: when everything booked so far will have gone out at the cap.
            self._free_at = max(self._free_at, now - _BURST_S)
            wait_s = max(0.0, self._free_at - now)
            self._free_at += byte_count / self._bytes_per_s
            return wait_s

    def take(self, byte_count: int) -> None:
        """Wait until `byte_count` bytes may be sent, or until `stop`."""
        wait_s = self.reserve(byte_count)
        if wait_s > 0:
            self._stopped.wait(wait_s)

    def take_first(self, byte_count: int) -> None:
        """As `take`, but before those who wait there, on credit: what a guest waits for goes on the next turn of the
        bucket. It waits where it alone asks for more than the cap."""
        wait_s = self.reserve(byte_count) - _BURST_S
        if wait_s > 0:
            self._stopped.wait(wait_s)

    def stop(self) -> None:
        """Let everybody who waits go on at once, now and from now on."""
        self._stopped.set()
