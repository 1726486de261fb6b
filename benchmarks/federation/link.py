"""Two ranks' connection: messages in order, both ways, and signs of life while there are none."""

import io
import pickle
import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any

import torch
import torch.distributed as dist

FIRST = 4096
"""Bytes of a message that travel with its length: most jobs fit."""
PIECE = 2**24
"""Bytes that are sent at once, each of which is a sign of life."""
PULSES = 4
"""Signs of life in the time after which a silent peer counts as gone."""
ALIVE, GOODBYE = 0, -1
"""In place of a length."""


class Link:
    """A connection to one other rank over the default process group.

    Gloo hands a message over only when the other side asks for it, and a wait that times out breaks the group. So one
    thread always receives, and another sends, something at least every ``pulse`` seconds: whoever is busy, in training
    or in an evaluation, is still known to be there, and whoever isn't heard of in the group's timeout is gone.

    Args:
        peer: the other's rank.
        pulse: seconds between signs of life.
        deliver: called, in the receiving thread, with each message.
        ended: called once, there too: with ``None`` after a goodbye, else with what broke.

    Attributes:
        heard: when something last came from the peer, on ``time.monotonic``'s clock.
    """

    def __init__(
        self, peer: int, pulse: float, deliver: Callable[[Any], None], ended: Callable[[Exception | None], None]
    ):
        self.peer, self.heard = peer, time.monotonic()
        self._pulse, self._deliver, self._ended = pulse, deliver, ended
        self._outbox: SimpleQueue[memoryview | None] = SimpleQueue()  # None: goodbye
        self._threads = [threading.Thread(target=t, daemon=True) for t in (self._sending, self._receiving)]
        for thread in self._threads:
            thread.start()

    def post(self, packed: memoryview) -> None:
        """Send a message from :func:`pack`, without waiting for it to arrive."""
        self._outbox.put(packed)

    def close(self, patience: float) -> bool:
        """Say goodbye after what was posted, and wait for the other's.

        Returns:
            Whether it came in ``patience`` seconds.
        """
        self._outbox.put(None)
        until = time.monotonic() + patience
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _sending(self) -> None:
        frame = torch.zeros(8 + FIRST, dtype=torch.uint8)
        try:
            while True:
                try:
                    data = self._outbox.get(timeout=self._pulse)
                except Empty:
                    self._send(frame, ALIVE)
                    continue
                if data is None:
                    self._send(frame, GOODBYE)
                    return
                self._send(frame, len(data), torch.frombuffer(data, dtype=torch.uint8))
        except RuntimeError:
            return  # the receiving thread finds the connection broken, too, and says so

    def _send(self, frame: torch.Tensor, length: int, whole: torch.Tensor | None = None) -> None:
        frame[:8].view(torch.int64)[0] = length
        if whole is not None:
            frame[8 : 8 + min(length, FIRST)] = whole[:FIRST]
        dist.send(frame, self.peer)
        for start in range(FIRST, length, PIECE):
            assert whole is not None
            dist.send(whole[start : start + PIECE], self.peer)

    def _receiving(self) -> None:
        frame = torch.zeros(8 + FIRST, dtype=torch.uint8)
        try:
            while (length := self._next(frame)) != GOODBYE:
                if length != ALIVE:
                    self._deliver(self._message(frame, length))
        except Exception as error:  # whatever it is, nothing more comes
            self._ended(error)
            return
        self._outbox.put(None)
        self._threads[0].join()
        self._ended(None)

    def _next(self, frame: torch.Tensor) -> int:
        self._receive(frame)
        return int(frame[:8].view(torch.int64)[0])

    def _message(self, frame: torch.Tensor, length: int) -> Any:
        whole = torch.empty(length, dtype=torch.uint8)
        whole[:FIRST] = frame[8 : 8 + min(length, FIRST)]
        for start in range(FIRST, length, PIECE):
            self._receive(whole[start : start + PIECE])
        return pickle.loads(whole.numpy())

    def _receive(self, part: torch.Tensor) -> None:
        dist.recv(part, self.peer)
        self.heard = time.monotonic()


def pack(message: Any) -> memoryview:
    """A message as bytes that can go to any number of peers."""
    buffer = io.BytesIO()
    pickle.dump(message, buffer, protocol=5)
    return buffer.getbuffer()
