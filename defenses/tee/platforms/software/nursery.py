"""Where guests come from: a process that has loaded what is not measured, and forks a guest for whoever asks.

Importing PyTorch takes seconds, a fork milliseconds. The process runs this file as a script, so that none of the
suite's own modules is loaded when a guest begins to load the measured ones; the file itself is what a guest begins
with, as an interpreter is. A process has one nursery for all of its platforms, shared with those that it forks; it ends
with the last of them. Guests get the environment and the limits that their host had when its first platform started.
Whoever kills a nursery ends its guests and the platforms that it served; later platforms have another.
"""

import atexit
import ctypes
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import warnings
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector
from typing import NoReturn

PACKAGES = ("torch", "scipy.special", "msgpack", "yaml", "securesystemslib.dsse", "cryptography.x509")
"""What guests import that isn't the suite's own, as far as it takes time. One that is missing is left to them."""
LARGEST = 1 << 16
"""Bytes of a request: paths and a program's name."""
PATIENCE = 120.0
"""Seconds after which a nursery that doesn't answer has failed."""
NAME = "privbench-nurse"
"""Of the process, at most 15 bytes: what it takes is no run's (:mod:`privbench.benchmarks.federation.usage`)."""
PR_SET_PDEATHSIG = 1


@dataclass
class Nursery:
    """The process, as its host holds it.

    Args:
        process: of this file.
        control: takes the sockets of those who may ask.
    """

    process: "subprocess.Popen[bytes]"
    control: socket.socket

    @classmethod
    def start(cls) -> "Nursery":
        here, there = _pair()
        # -I: neither the environment nor the user's site can add code to what is measured.
        command = [sys.executable, "-I", "-B", __file__, str(there.fileno())]
        fds = (there.fileno(),)
        process = subprocess.Popen(command, pass_fds=fds, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        there.close()
        return cls(process, here)

    def admit(self) -> socket.socket:
        """A socket over which guests can be asked for, by :class:`Guests`.

        Raises:
            OSError: the process has ended.
        """
        here, there = _pair()
        with there:
            try:
                socket.send_fds(self.control, [b"admit"], [there.fileno()])
            except OSError:
                here.close()
                raise
        return here

    def close(self) -> None:
        """End it and its guests, unless a process that was forked from this one has it too."""
        self.control.close()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=10)


_lock = threading.Lock()
_nursery: Nursery | None = None


def admitted() -> socket.socket:
    """A socket to this process's nursery, which is started if there is none or if it has ended."""
    global _nursery
    with _lock:
        if _nursery is not None:
            with suppress(ConnectionError):
                return _nursery.admit()
            _nursery.close()
        _nursery = Nursery.start()
        owner, made = os.getpid(), _nursery
        # What is forked from here inherits this, and leaves the process to its owner.
        atexit.register(lambda: made.close() if os.getpid() == owner else None)
        return made.admit()


@dataclass
class Guests:
    """Ask a nursery for guests, and to end them.

    Args:
        asked: a socket of :func:`admitted`.
    """

    asked: socket.socket

    def launch(self, arguments: list[str], firmware: int, log: int) -> int:
        """Process id of a guest, whose ``guest.main`` has these arguments.

        Args:
            arguments: the folder of its code first.
            firmware: its socket to the manufacturer; it gets the number in place of the second argument.
            log: file for what it says on stderr.

        Raises:
            OSError: the nursery has ended.
        """
        return self._ask({"launch": arguments}, [firmware, log])

    def end(self, pid: int) -> None:
        """Kill a guest, and wait for its end. Safe to call twice, and without a nursery, which takes guests along."""
        with suppress(OSError):
            self._ask({"end": pid}, [])

    def _ask(self, request: dict[str, object], fds: list[int]) -> int:
        self.asked.settimeout(PATIENCE)
        try:
            socket.send_fds(self.asked, [json.dumps(request).encode()], fds)
            answer = self.asked.recv(LARGEST)
        except TimeoutError:
            self.asked.close()  # a late answer would be taken for the next one
            raise
        if not answer:
            raise ConnectionError("the process that guests are forked from has ended")
        if int(answer) < 0:
            raise OSError(-int(answer), os.strerror(-int(answer)))
        return int(answer)


@dataclass
class _Process:
    """The state of the process: who may ask, and whose guests run."""

    control: socket.socket
    pid: int = field(default_factory=os.getpid)
    selector: DefaultSelector = field(default_factory=DefaultSelector)
    guests: dict[socket.socket, set[int]] = field(default_factory=dict)

    def serve(self) -> list[str]:
        """Answer until the host is gone; in a guest, return its arguments."""
        self.selector.register(self.control, EVENT_READ)
        while True:
            for key, _ in self.selector.select():
                asked = key.fileobj
                assert isinstance(asked, socket.socket)
                message, fds = _received(asked)
                if not message and asked is self.control:
                    self._leave()
                elif asked is self.control:
                    admitted = socket.socket(fileno=fds[0])
                    self.guests[admitted] = set()
                    self.selector.register(admitted, EVENT_READ)
                elif not message:
                    self._dismiss(asked)
                elif (arguments := self._answer(asked, json.loads(message), fds)) is not None:
                    return arguments

    def _answer(self, asked: socket.socket, request: dict[str, object], fds: list[int]) -> list[str] | None:
        mine, answer = self.guests[asked], 0
        if "launch" in request:
            arguments = request["launch"]
            assert isinstance(arguments, list)
            try:
                answer = os.fork()
            except OSError as error:  # no more processes, or no memory: this launch fails, and no other guest
                answer = -(error.errno or 1)
            if not answer:
                return self._born(arguments, *fds)
            if answer > 0:
                mine.add(answer)
            for fd in fds:
                os.close(fd)
        else:
            assert isinstance(request["end"], int)
            _end(mine & {request["end"]})
            mine.discard(request["end"])
        with suppress(OSError):
            asked.send(str(answer).encode())
        return None

    def _dismiss(self, gone: socket.socket) -> None:
        """Whoever asked has ended, and its guests end with it."""
        _end(self.guests.pop(gone))
        self.selector.unregister(gone)
        gone.close()

    def _leave(self) -> NoReturn:
        for pids in self.guests.values():
            _end(pids)
        os._exit(0)

    def _born(self, arguments: list[str], firmware: int, log: int) -> list[str]:
        # However the parent ends, its guests end with it.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != self.pid:
            os._exit(1)
        Path("/proc/self/comm").write_text("guest")
        self.selector.close()
        for held in (self.control, *self.guests):
            held.close()
        os.dup2(log, 2)
        os.close(log)
        folder, *rest = arguments
        return [folder, str(firmware), *rest]


def _received(asked: socket.socket) -> tuple[bytes, list[int]]:
    """A message and what came with it; nothing from whoever has ended, even with an answer unread."""
    try:
        message, fds, _, _ = socket.recv_fds(asked, LARGEST, 2)
    except ConnectionError:
        return b"", []
    return message, fds


def _end(pids: set[int]) -> None:
    """Kill guests, which are this process's children until it has waited for them, and wait."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for pid in pids:
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)


def _pair() -> tuple[socket.socket, socket.socket]:
    """A socket pair that keeps messages apart."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def main(control: int) -> None:
    """Entry of the process, and of each guest."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the host
    os.umask(0o077)
    os.chdir("/")
    Path("/proc/self/comm").write_text(NAME)
    for name in PACKAGES:
        with suppress(ImportError):
            import_module(name)
    gc.freeze()
    # Threads of numerical libraries, which know of forks.
    warnings.filterwarnings("ignore", message=".*multi-threaded.*fork", category=DeprecationWarning)
    folder, *rest = _Process(socket.socket(fileno=control)).serve()
    import_module("numpy.random").seed()  # of its own, as a process's that wasn't forked
    sys.path.insert(0, folder)
    import_module("privbench.defenses.tee.platforms.software.guest").main(folder, *rest)


if __name__ == "__main__":
    main(int(sys.argv[1]))
