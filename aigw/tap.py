"""``twistd aigw``: its options, and from them the service."""

from __future__ import annotations

import gc
import math
import os
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, ClassVar, NoReturn, TextIO

from twisted.application.service import IService
from twisted.logger import LogLevel
from twisted.python import usage

from aigw import __version__
from aigw.config import loader
from aigw.config.model import Config
from aigw.daemon import dumpable, memory
from aigw.daemon.output import escape_unwritable
from aigw.daemon.service import GatewayService
from aigw.daemon.signals import ignore, obey, obey_stops
from aigw.daemon.systemd import Environment, Notify, watchdog_seconds
from aigw.errors import ConfigError
from aigw.server.listeners import wanted
from aigw.telemetry import logs, terminal
from aigw.telemetry.log_file import LogFile
from aigw.telemetry.log_writer import to_syslog
from aigw.upstream.connector import Host, Resolver
from aigw.upstream.providers import Upstream

EX_USAGE = 64
EX_CONFIG = 78


class Options(usage.Options):
    """The command line behind ``twistd aigw``."""

    synopsis = "[options]"
    longdesc = (
        "An OpenAI-compatible gateway: one route in, several providers behind it, the first answer that works out."
    )
    optParameters: ClassVar = [
        ["config", "c", None, "the configuration file; else ./config.yaml, else /etc/ai-gateway/config.yaml"]
    ]
    optFlags: ClassVar = [
        ["check-config", None, "check the configuration, print its routes, and exit with 0, or 78 if it is wrong"],
        [
            "check-providers",
            None,
            "ask each provider for its models, print which steps can work; exits with 0, or 1",
        ],
        ["try", None, "with --check-providers: also send each step a real request of one token"],
        ["json", None, "with --check-providers: print JSON"],
        ["demo", None, "run on loopback without configuration, key or network, with demo providers"],
        ["json-log", None, "write the log as JSON on a terminal too; elsewhere it always is"],
    ]

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """See usage.Options. twistd would exit with 1 where the words make no sense, as systemd sees it a crash."""
        try:
            super().parseOptions(options)  # type: ignore[no-untyped-call]
        except usage.UsageError as error:
            print(f"aigw: {error}\n\naigw --help shows the options.", file=sys.stderr)
            raise SystemExit(EX_USAGE) from None

    def parseArgs(self, *arguments: str) -> None:
        """There are only options."""
        if arguments:
            raise usage.UsageError(f"unexpected argument: {arguments[0]}")

    def postOptions(self) -> None:
        """Raises UsageError for options of which one would be ignored."""
        kinds = [name for name in ("check-config", "check-providers", "demo") if self[name]]
        if len(kinds) > 1:
            raise usage.UsageError(f"--{kinds[0]} and --{kinds[1]} exclude each other")
        for name in ("json", "try"):
            if self[name] and not self["check-providers"]:
                raise usage.UsageError(f"--{name} belongs to --check-providers")
        if self["demo"] and self["config"] is not None:
            raise usage.UsageError("--demo has a configuration of its own: leave --config out")
        if self["demo"] and self.parent and not (self.parent["nodaemon"] or self.parent["debug"]):
            raise usage.UsageError("--demo runs in the foreground only: write twistd -n aigw --demo")

    def opt_version(self) -> None:
        """Print the version and exit."""
        print(f"aigw {__version__}")
        raise SystemExit(0)


def makeService(options: Options) -> IService:
    """The service that twistd runs. A configuration that is wrong is one line and exit status 78."""
    from twisted.internet import reactor as installed

    reactor: Any = installed
    path, only_check = options["config"], options["check-config"]
    reactor.seconds = time.monotonic  # Twisted's is the wall clock, which may be set
    ignore(signal.SIGUSR1, signal.SIGUSR2)  # unless it is obeyed below: logrotate may send it where no log file is
    try:
        if options["demo"]:
            from aigw.daemon import demo  # here: the start of every other service is quicker without it

            show = demo.DemoService(reactor, _observer(options.parent, options["json-log"]))
            obey_stops(reactor, show.stop_now)
            return show
        path = loader.find(path)
        if not only_check and not options["check-providers"]:
            dumpable.forbid()
        if options["check-providers"]:
            _check_providers(loader.load(path.absolute(), Environment(os.environ), str(path)), reactor, options)
        service = GatewayService(
            partial(
                loader.load, path.absolute(), Environment(os.environ), str(path)
            ),  # twistd may change the directory
            reactor,
            None if only_check else _observer(options.parent, options["json-log"]),
            notify=Notify(os.environ),
            feed_every=(watchdog_seconds(os.environ, os.getpid()) or math.inf) / 3,
            environ=os.environ,
        )
    except ConfigError as error:
        in_words = only_check or options["check-providers"] or _for_people(options.parent, options["json-log"])
        _report(error, str(path or "The configuration"), in_words=bool(in_words))
        raise SystemExit(EX_CONFIG) from None
    if only_check:
        escape_unwritable(sys.stdout)
        print(_described(service.config, service.warnings()))
        raise SystemExit(0)
    obey_stops(reactor, service.stop_now)
    obey(reactor, signal.SIGHUP, service.reload)
    obey(reactor, signal.SIGUSR2, service.say_state)
    reactor.callWhenRunning(_settle)
    return service


def _check_providers(loaded: Config, reactor: Any, options: Options) -> NoReturn:
    from aigw.daemon.check_providers import check

    escape_unwritable(sys.stdout)
    upstream = Upstream(reactor, loaded.providers.values(), partial(Host, reactor, Resolver(reactor)))
    raise SystemExit(0 if check(loaded, upstream, reactor, print, options["json"], options["try"]) else 1)


def _settle() -> None:
    """What is there after the start stays: no collection of garbage needs to look at it again."""
    dumpable.forbid()  # once more, for twistd may have changed the user
    memory.keep()
    gc.collect()
    gc.freeze()
    # A plain request leaves no cycle, so looking after every 700 objects cost a tenth; a closed TLS connection does
    # leave one, of some 50 KiB, so that what is older must be looked at as well, and often.
    gc.set_threshold(5_000, 2, 2)


def _for_people(server: Any, json_log: int) -> bool:
    """Whether the log goes to a terminal, and nobody asked for JSON there."""
    on_stderr = server is not None and server.get("nodaemon") and not (server.get("logfile") or server.get("syslog"))
    return bool(on_stderr and not json_log and terminal.is_terminal(sys.__stderr__))


def _observer(server: Any, json_log: int = 0) -> logs.QueuedLines | None:
    """JSON lines to where twistd's options say that the log goes; None where it is not ours to say."""
    if server is None or server.get("logger"):
        return None
    path, in_foreground = server.get("logfile"), server.get("nodaemon")
    if server.get("syslog"):
        return logs.QueuedLines(to_syslog(server.get("prefix") or "aigw"))
    if path == "-":
        return logs.to_stream(sys.__stdout__) if in_foreground else None  # twistd says why not
    if _for_people(server, json_log):
        colour = terminal.wants_colour(os.environ)
        return logs.to_stream(sys.__stderr__, form=lambda file: terminal.TerminalFile(file, colour))
    if in_foreground and not path:
        return logs.json_lines()
    try:
        file = LogFile(path or "twistd.log")
    except OSError as error:
        raise SystemExit(f"aigw: cannot write the log to {path or 'twistd.log'}: {error.strerror}") from None
    observer = logs.QueuedLines(file.write)
    signal.signal(signal.SIGUSR1, lambda *_: observer.writer.call(file.rotate))
    return observer


def _report(error: ConfigError, path: str, in_words: bool) -> None:
    stderr: TextIO = sys.__stderr__ or sys.stderr
    if in_words:
        escape_unwritable(stderr)
        print("\n".join([f"{path}: not usable", *(f"  {mistake}" for mistake in error.mistakes)]), file=stderr)
        return
    event = {
        "log_level": LogLevel.error,
        "log_time": time.time(),
        "aigw_message": f"The configuration cannot be used: {len(error.mistakes)} mistake(s); exiting with {EX_CONFIG}",
        "aigw_fields": {"config": path, "mistakes": error.mistakes},
    }
    logs.JsonLines(stderr)(event)


def _described(loaded: Config, warnings: Iterable[str]) -> str:
    """What runs, for ``--check-config``: listeners, routes with their steps and limits, and no secret."""
    lines = [f"warning: {warning}" for warning in warnings]
    for listener in wanted(loaded):
        kind = "for administrators" if listener.admin else "plain http" if listener.insecure else "https"
        lines.append(f"listen {listener.endpoint} ({kind})")
    for route in loaded.routes.values():
        lines.append(f"route {route.name}" + (f" (deadline {route.deadline:g}s)" if route.deadline else ""))
        for step in route.steps:
            limits = f"timeout {step.timeout:g}s, connect {step.connect_timeout:g}s, idle {step.idle_timeout:g}s"
            conflict = f", on conflict keep {step.conflict_resolution}" if step.conflict_resolution else ""
            lines.append(f"  {step.number}. {step.provider.name}: {step.model} ({limits}{conflict})")
    return "\n".join([*lines, "The configuration is good."])
