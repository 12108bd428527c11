"""Starts processes of the gateway in a twentieth of the time: forks of one process that has imported everything.

What such a process does from its first line on is what a fresh one does. A test about the start itself, its memory or its
interpreter starts a fresh one.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import io
import json
import os
import re
import resource
import runpy
import select
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).parent.parent
PROGRAMS = ("twistd", "aigw")  # and ``python -c CODE``
_INTERPRETER = re.compile("PYTHON|LC_|LANG|LD_|FAKETIME")


class Forked:
    """As much of ``subprocess.Popen`` as the tests use: the program ``words[0]``, which is one of PROGRAMS, or python."""

    def __init__(
        self,
        words: list[str],
        cwd: Any,
        env: dict[str, str],
        files: tuple[int, ...],
        server: socket.socket | None = None,
        open_files: tuple[int, int] | None = None,
    ) -> None:
        """``files`` are its standard output and error, in front of them the input if it has any.

        ``open_files`` are its limits of these, soft and hard.
        """
        self.args = words
        self.returncode: int | None = None
        server = server or _server()
        self._word, theirs = socket.socketpair()
        order = json.dumps({"words": words, "cwd": str(cwd), "env": env, "open_files": open_files}).encode()
        with theirs, open(os.devnull) as nothing:
            files = (nothing.fileno(), *files)[-3:]
            socket.send_fds(server, [len(order).to_bytes(4, "big")], [*files, theirs.fileno()])
        server.sendall(order)
        self.pid = int.from_bytes(_exactly(self._word, 4), "big")

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            self._word.settimeout(timeout)
            try:
                self.returncode = int.from_bytes(_exactly(self._word, 4), "big", signed=True)
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired(self.args, timeout or 0) from None
            self._word.close()
        return self.returncode

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def send_signal(self, sent: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, sent)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def shim(program: str) -> str:
    """A script that is the program, for a shell that a test runs."""
    _server()
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from tests import fork_server as f; f.stand_in({os.getpid()})"
    )
    return f'#!/bin/sh\nexec {sys.executable} -S -E -c {shlex.quote(code)} {program} "$@"\n'


def stand_in(tests: int) -> None:
    """Be the program that ``sys.argv`` names, for whoever waits for this process and sends it signals."""
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(_address(tests))
        process = Forked(sys.argv[1:], os.getcwd(), dict(os.environ), (0, 1, 2), server)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda sent, _: os.kill(process.pid, sent))
    status = process.wait()
    sys.exit(status if status >= 0 else 128 - status)


def may_fork(args: list[Any], env: dict[str, str]) -> bool:
    """Whether it is Python that is started, with nothing in its environment that it reads before it has a program."""
    mine, theirs = ({n: v for n, v in each.items() if _INTERPRETER.match(n)} for each in (os.environ, env))
    return args[0] == sys.executable and {**theirs, "PYTHONPATH": ""} == {**mine, "PYTHONPATH": ""}


def run(words: list[str], cwd: Any, env: dict[str, str], given: str = "", seconds: float = 60) -> Any:
    """As ``subprocess.run`` with text that is given and captured."""
    with contextlib.ExitStack() as stack:
        names = [f"aigw-{name}" for name in ("in", "out", "err")]
        streams = [stack.enter_context(open(os.memfd_create(name), "w+", encoding="utf-8")) for name in names]
        streams[0].write(given)
        streams[0].seek(0)
        process = Forked(words, cwd, env, tuple(stream.fileno() for stream in streams))
        try:
            status = process.wait(seconds)
        finally:
            process.kill()
        for stream in streams:
            stream.seek(0)
        return subprocess.CompletedProcess(words, status, streams[1].read(), streams[2].read())


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = connection.recv(size, socket.MSG_WAITALL)
    assert len(data) == size, "the fork server has ended"
    return data


def _address(tests: int) -> str:
    """Where the server of the process ``tests`` takes orders from other processes: a name without a file."""
    return f"\0aigw-tests-{tests}"


def begin() -> None:
    """Start it, where a test counts the open files of this process."""
    _server()


@cache
def _server() -> socket.socket:
    """The process that forks; it ends when this one does."""
    ours, theirs = socket.socketpair()
    with theirs, socket.socket(socket.AF_UNIX) as others:
        others.bind(_address(os.getpid()))
        others.listen()
        fds = [theirs.fileno(), others.fileno()]
        words = [sys.executable, "-m", "tests.fork_server", *map(str, fds)]
        process = subprocess.Popen(
            words,
            cwd=ROOT,
            pass_fds=fds,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
        )

    def end() -> None:
        ours.close()
        process.wait(10)

    atexit.register(end)
    return ours


# The process that forks


def serve(control: socket.socket, others: socket.socket) -> list[str]:
    """Fork for each order; in the child this gives the words of its program."""
    while True:
        ready = select.select([control, others], [], [])[0]
        source = control if control in ready else others.accept()[0]
        head, fds, _, _ = socket.recv_fds(source, 4, 4)
        if not head:
            raise SystemExit
        order = json.loads(_exactly(source, int.from_bytes(head, "big")))
        if source is not control:
            source.close()
        if os.fork() == 0:
            control.close()
            others.close()
            if os.fork() == 0:
                return child(order, fds)
            os._exit(0)
        for fd in fds:
            os.close(fd)
        os.wait()


def child(order: dict[str, Any], fds: list[int]) -> list[str]:
    """Between the server and the program stands one process that waits for the program's end."""
    word = socket.socket(fileno=fds[3])
    pid = os.fork()
    if pid:
        os.closerange(0, 3)
        for fd in fds[:3]:
            os.close(fd)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        word.sendall(pid.to_bytes(4, "big"))
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        with contextlib.suppress(OSError):
            word.sendall(status.to_bytes(4, "big", signed=True))
        os._exit(0)
    word.close()
    for number, fd in enumerate(fds[:3]):
        os.dup2(fd, number)
        os.close(fd)
    sys.stdout = sys.__stdout__ = reopened(sys.stdout)  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = reopened(sys.stderr)  # type: ignore[misc]
    if order["open_files"]:
        resource.setrlimit(resource.RLIMIT_NOFILE, order["open_files"])
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["env"])
    time.tzset()
    return order["words"]


def reopened(stream: Any) -> io.TextIOWrapper:
    """A stream to the file that now has this one's number: whether one can seek in it is found out when it is opened."""
    unbuffered = stream.write_through
    file: Any = os.fdopen(stream.fileno(), "wb", 0 if unbuffered else -1, closefd=False)
    line_by_line = file.isatty() or stream is sys.stderr
    return io.TextIOWrapper(file, stream.encoding, stream.errors, line_buffering=line_by_line, write_through=unbuffered)


def main() -> None:
    import_all()
    sys.argv = serve(*(socket.socket(fileno=int(fd)) for fd in sys.argv[1:]))
    try:
        if sys.argv[0] == "python":
            exec(compile(sys.argv[2], "<string>", "exec"), {"__name__": "__main__"})
        elif sys.argv[0] == "aigw":
            runpy.run_module("aigw", run_name="__main__", alter_sys=True)
        else:
            from twisted.scripts.twistd import run as run_twistd

            run_twistd()
    except SystemExit as end:
        leave(end.code)
    leave(None)


def import_all() -> None:
    """What a program imports, and what it finds out about the code, but not the reactor: that has open files."""
    from twisted.application.app import ReactorSelectionMixin  # noqa: F401
    from twisted.application.reactors import IReactorInstaller
    from twisted.application.service import IServiceMaker
    from twisted.internet.interfaces import IStreamServerEndpointStringParser
    from twisted.plugin import getPlugins

    import aigw.command
    import aigw.commands.check_providers
    import aigw.daemon.service
    import aigw.tap  # noqa: F401
    from aigw.config import loader

    for each in (IServiceMaker, IReactorInstaller, IStreamServerEndpointStringParser):
        [*getPlugins(each)]
    loader.whole_file()
    gc.collect()
    gc.freeze()  # so that a fork shares these objects


def leave(code: Any) -> NoReturn:
    """End as the interpreter does, but without taking its modules apart: that takes as long as a short program."""
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
    except OSError as error:
        print(f"Exception ignored in: {sys.stdout!r}: {error}", file=sys.stderr)
        code = 120
    sys.stderr.flush()
    os._exit(code or 0)


if __name__ == "__main__":
    main()
