"""The hosts' side of attested clients: launch their guests, and hand one client's turn to one of them.

In a simulation few guests serve all clients, each request whole in itself: a guest keeps nothing of a client. Clients
of a poisoner who tampers with the training code have a guest with that code, measured like any other.
"""

import fcntl
import os
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.connection import Client
from typing import Any

from privbench.defenses.tee.platforms.host import Guest, Host, Launch, alive, end, hurry, last_words, wait
from privbench.defenses.tee.protocol.manifest import Refused
from privbench.defenses.tee.protocol.trainer import PROGRAM
from privbench.defenses.tee.wire import pack, unpack

_claimed: dict[str, int] = {}
"""Lock files that this process holds, by socket."""


def launches(manifest: bytes, number: int, tampered: Mapping[str, bytes]) -> list[Launch]:
    """What to launch for the clients of one run, the guest with tampered code last.

    Args:
        manifest: digest of the run manifest, for HOST_DATA.
        number: of guests with the agreed code, one a worker process.
        tampered: files of the suite that a poisoner replaces in its guest, by path below ``privbench/``; empty for no
            such guest.
    """
    agreed = Launch(PROGRAM, manifest, "client")
    return [agreed] * number + ([Launch(PROGRAM, manifest, "client", tampered)] if tampered else [])


class Guests:
    """All guests for the clients of one run, on one platform.

    Args:
        platform: launches those anew that have died.
        launches: from :func:`launches`.
        guests: that were launched by them, in the same order.
    """

    def __init__(self, platform: Host, launches: list[Launch], guests: list[Guest]):
        self._platform, self._launches = platform, launches
        self._guests = [_apart(guest) for guest in guests]

    def sockets(self) -> dict[str, dict[str, int]]:
        """Where they listen, and their processes: ``agreed``, and ``tampered`` if there is one. Dead ones are launched
        anew.

        Raises:
            Unavailable: a guest doesn't start.
        """
        found: dict[str, dict[str, int]] = {}
        for n, (launch, guest) in enumerate(zip(self._launches, self._guests, strict=True)):
            if not alive(guest.pid):
                self._guests[n] = _apart(self._platform.launch_several([launch])[0])
            made = self._guests[n]
            found.setdefault("tampered" if launch.patches else "agreed", {})[made.socket] = made.pid
        return found


def _apart(guest: Guest) -> Guest:
    guest.connection.close()  # every request has a connection of its own
    return guest


def ask(sockets: Mapping[str, int], request: dict[str, Any], patience: float) -> dict[str, Any]:
    """A guest's answer to one client's turn.

    Args:
        sockets: of guests that may be asked, with their processes.
        patience: seconds without an answer after which the guest counts as lost, and is ended: so it is launched anew.

    Raises:
        Refused: what the guest refuses, or ``guest_lost`` if it is gone.
    """
    socket = _claim(list(sockets))
    try:
        with Client(socket, "AF_UNIX") as connection:
            hurry(connection, patience)
            connection.send_bytes(pack(request))
            if not connection.poll(patience):
                raise BlockingIOError
            answer = unpack(connection.recv_bytes())
    except BlockingIOError:
        end(sockets[socket])
        raise Refused("guest_lost", f"the client's guest has not answered for {patience:g} s") from None
    except (OSError, EOFError):
        wait(sockets[socket])
        raise Refused("guest_lost", f"the client's guest is gone. {last_words(socket)}".strip()) from None
    if "refused" in answer:
        raise Refused(answer["refused"], answer["reason"])
    return answer


def _claim(sockets: list[str]) -> str:
    """A guest for this process alone, so that workers don't wait for each other; any, if all are taken."""
    if held := [s for s in sockets if s in _claimed]:
        return held[0]
    for socket in sockets:
        lock = os.open(f"{socket}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        with suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _claimed[socket] = lock
            return socket
        os.close(lock)
    return sockets[os.getpid() % len(sockets)]
