"""TCP over the loopback interface, between this process and another."""

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from privbench.benchmarks.conform import require
from privbench.benchmarks.overhead.workloads.file_io import BOUNCED
from privbench.benchmarks.overhead.workloads.workload import Bench, Case, Steps

PEER = """
import socket, sys
size = int(sys.argv[1])
with socket.create_connection(("127.0.0.1", int(sys.argv[2]))) as s:
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    block = memoryview(bytearray(size))
    while True:
        taken = 0
        while taken < size:
            more = s.recv_into(block[taken:])
            if not more:
                sys.exit()
            taken += more
        s.sendall(block)
"""
"""The other side: sends back each message of the stated size."""


@dataclass(frozen=True)
class Loopback:
    """Messages to a process that sends each back: small ones, whose time is that of the way, and large ones.

    Both processes share two processors, where there are two: waking the other one is part of the way.

    Args:
        round_trips: of 64 bytes, in a repeat.
        kilobytes: KiB of a large message.
        transfers: of these, there and back, in a repeat.
        ablations: large ones again, copied through a bounce buffer on each side of this process.
    """

    round_trips: int = 2000
    kilobytes: int = 1024
    transfers: int = 32
    ablations: bool = True

    def __post_init__(self) -> None:
        require(self.round_trips >= 1, "round_trips", self.round_trips, "1 or more")
        require(1 <= self.kilobytes <= 2**20, "kilobytes", self.kilobytes, "1 to 1048576")
        require(self.transfers >= 1, "transfers", self.transfers, "1 or more")

    def cases(self, bench: Bench) -> Iterator[Case]:
        both = min(2, len(bench.cpus))
        yield Case("round_trip", lambda: _open(64, self.round_trips, False), calls=self.round_trips, threads=both)
        size = self.kilobytes * 1024
        for bounced in (False, True) if self.ablations else (False,):
            yield Case(
                name="transfer",
                open=lambda bounced=bounced: _open(size, self.transfers, bounced),
                amount=2 * size,
                unit="bytes",
                calls=self.transfers,
                threads=both,
                ablation=BOUNCED if bounced else None,
            )


@contextmanager
def _open(size: int, messages: int, bounced: bool) -> Iterator[Steps]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(30)
        command = [sys.executable, "-I", "-c", PEER, str(size), str(server.getsockname()[1])]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL) as peer:
            try:
                connection, _ = server.accept()
                with connection:
                    connection.settimeout(30)
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    yield Steps(_exchange(connection, size, messages, bounced))
            finally:
                peer.terminate()


def _exchange(connection: socket.socket, size: int, messages: int, bounced: bool) -> Callable[[], bytes]:
    """A repeat: ``messages`` there and back; the last answer."""
    message, answer = bytes(i % 251 for i in range(size)), memoryview(bytearray(size))
    bounce = memoryview(bytearray(size))

    def run() -> bytes:
        for _ in range(messages):
            if bounced:
                bounce[:] = message
            connection.sendall(bounce if bounced else message)
            taken = 0
            while taken < size:
                more = connection.recv_into(bounce[taken:] if bounced else answer[taken:])
                if not more:
                    raise ConnectionError("the other side has ended")
                taken += more
            if bounced:
                answer[:] = bounce
        return bytes(answer)

    return run
