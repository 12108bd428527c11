"""``twistd aigw``: its options, and from them the service."""

from __future__ import annotations

import gc
import math
import os
import signal
import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, NoReturn, TextIO

from twisted.application.service import IService
from twisted.logger import LogLevel
from twisted.python import usage

from aigw import __version__
from aigw.access.keys import line_of, new_key
from aigw.accounting.line import COLUMNS
from aigw.commands.output import escape_unwritable, put
from aigw.config import loader
from aigw.config.model import Config
from aigw.credentials.changing_keys import ChangingKeys
from aigw.daemon import dumpable, memory
from aigw.daemon.service import GatewayService
from aigw.daemon.signals import handle_signal, handle_stops, ignore
from aigw.daemon.systemd import Environment, Notify, watchdog_seconds
from aigw.errors import ConfigError
from aigw.log_output import terminal
from aigw.log_output.log_file import LogFile
from aigw.log_output.log_writer import to_syslog
from aigw.net.interfaces import Reactor
from aigw.telemetry import logs
from aigw.upstream.connector import Host, Resolver
from aigw.upstream.providers import Upstream

EX_USAGE = 64
EX_CONFIG = 78
# A plain request leaves no cycle, so a collection after every 700 objects cost a tenth; a closed TLS connection leaves
# a cycle of about 50 KiB, so older objects must be visited often too.
GARBAGE_THRESHOLDS = (5_000, 2, 2)


class Options(usage.Options):
    """The command line behind ``twistd aigw``."""

    synopsis = "[options]"
    longdesc = (
        "An OpenAI-compatible gateway: a client names a route, and the gateway tries its providers until one answers."
    )
    optParameters: ClassVar = [
        ["config", "c", None, "the configuration file (default: ./config.yaml, then /etc/ai-gateway/config.yaml)"],
        ["by", None, None, f"with --usage: one or more of {','.join(COLUMNS)} (default: key)"],
        ["since", None, None, "with --usage: 7d, 12h, or a date such as 2026-11-01, in UTC (default: all)"],
        ["new-key", None, None, "print a new key for the caller of this name, and its line for the file; then exit"],
        [
            "explain",
            None,
            None,
            "print what the gateway would do with the request in this file (- for stdin), and send nothing; exit with "
            "0, or with 1 if the client would get an error at once",
        ],
    ]
    optFlags: ClassVar = [
        [
            "check-config",
            None,
            "check the configuration, print its providers and routes, and exit with 0, or with 78 if it has a mistake",
        ],
        [
            "check-providers",
            None,
            "ask each provider for its models and print which steps work; exit with 0 if all do, else with 1",
        ],
        ["try", None, "with --check-providers: also send a real request of one token to each step"],
        ["json", None, "with --check-providers or --explain: print JSON"],
        ["usage", None, "print what was used, from the file of `usage` in the configuration"],
        ["csv", None, "with --usage: print CSV"],
        ["demo", None, "run a demo on 127.0.0.1 that needs no configuration, key or network"],
        ["json-log", None, "write the log as JSON on a terminal too (in a file or pipe it always is JSON)"],
    ]

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """See usage.Options. For a wrong command line twistd would exit with 1, which systemd takes for a crash."""
        try:
            super().parseOptions(options)  # type: ignore[no-untyped-call]
        except usage.UsageError as error:
            print(f"aigw: {error}\n\nFor all options run: aigw --help", file=sys.stderr)
            raise SystemExit(EX_USAGE) from None

    def parseArgs(self, *arguments: str) -> None:
        """The command takes options and no arguments."""
        if arguments:
            raise usage.UsageError(f"unexpected argument: {arguments[0]}")

    def postOptions(self) -> None:
        """Raises UsageError if one of the options would be ignored."""
        if self["config"] == "":
            raise usage.UsageError("--config needs the name of a file")
        if self["explain"] == "":
            raise usage.UsageError("--explain needs the file of a request, or - for stdin")
        kinds = ["check-config", "check-providers", "usage", "demo", "explain", "new-key"]
        kinds = [name for name in kinds if self[name] not in (None, 0)]
        if len(kinds) > 1:
            raise usage.UsageError(f"--{kinds[0]} and --{kinds[1]} cannot be used together; give one of them")
        if self["json"] and not (self["check-providers"] or self["explain"]):
            raise usage.UsageError("--json can be used only with --check-providers or --explain")
        if self["try"] and not self["check-providers"]:
            raise usage.UsageError("--try can be used only with --check-providers")
        for name in ("by", "since", "csv"):
            if self[name] and not self["usage"]:
                raise usage.UsageError(f"--{name} can be used only with --usage")
        if self["demo"] and self["config"] is not None:
            raise usage.UsageError("--demo has its own configuration; leave out --config")
        if self["new-key"] is not None and self["config"] is not None:
            raise usage.UsageError("--new-key reads no configuration; leave out --config")
        if self["new-key"] is not None and not (self["new-key"].strip() and self["new-key"].isprintable()):
            raise usage.UsageError("--new-key needs a name of printable characters, such as --new-key alice")
        if self["demo"] and self.parent and not (self.parent["nodaemon"] or self.parent["debug"]):
            raise usage.UsageError("--demo runs only in the foreground; run: twistd -n aigw --demo")

    def opt_version(self) -> None:
        """Print the version and exit."""
        print(f"aigw {__version__}")
        raise SystemExit(0)


def makeService(options: Options) -> IService:
    """The service that twistd runs. A mistake in the configuration ends the process with exit status 78."""
    if options["new-key"] is not None:
        _print_new_key(options["new-key"])
    from twisted.internet import reactor as installed

    reactor: Any = installed
    path, only_check = options["config"], options["check-config"]
    reactor.seconds = time.monotonic  # Twisted's is the wall clock, which may be set
    ignore(
        signal.SIGUSR1, signal.SIGUSR2
    )  # unless a handler is set below: logrotate may send it where there is no log file
    try:
        if options["demo"]:
            from aigw.commands import demo  # here, because every other start is faster without this import

            show = demo.DemoService(reactor, _observer(options.parent, options["json-log"]))
            handle_stops(reactor, show.stop_now)
            return show
        path = loader.find(path)
        if options["usage"]:
            _print_usage(loader.usage_file(path, os.environ), options)
        if not only_check and not options["check-providers"]:
            dumpable.forbid()
        if options["explain"]:
            _explain(loader.load(path.absolute(), Environment(os.environ), str(path)), options)
        if options["check-providers"]:
            _check_providers(loader.load(path.absolute(), Environment(os.environ), str(path)), reactor, options)
        service = GatewayService(
            partial(
                loader.load, path.absolute(), Environment(os.environ), str(path)
            ),  # twistd may change the directory
            reactor,
            None if only_check else _observer(options.parent, options["json-log"]),
            notify=Notify(os.environ),
            notify_every=(watchdog_seconds(os.environ, os.getpid()) or math.inf) / 3,
            environ=os.environ,
            load_callers=partial(loader.with_callers, environ=Environment(os.environ)),
        )
    except ConfigError as error:
        in_words = (
            only_check
            or options["check-providers"]
            or options["usage"]
            or options["explain"]
            or _for_people(options.parent, options["json-log"])
        )
        _report(error, str(path) if path else None, in_words=bool(in_words))
        raise SystemExit(EX_CONFIG) from None
    if only_check:
        from aigw.commands.describe import described

        escape_unwritable(sys.stdout)
        put(described(service.config, service.warnings()))
        raise SystemExit(0)
    handle_stops(reactor, service.stop_now)
    handle_signal(reactor, signal.SIGHUP, service.reload)
    handle_signal(reactor, signal.SIGUSR2, service.log_state)
    reactor.callWhenRunning(_freeze)
    return service


def _check_providers(loaded: Config, reactor: Reactor, options: Options) -> NoReturn:
    from aigw.commands.check_providers import check

    escape_unwritable(sys.stdout)
    upstream = Upstream(reactor, loaded.providers.values(), partial(Host, reactor, Resolver(reactor)))
    keys = ChangingKeys(reactor, loaded, environ=os.environ)
    raise SystemExit(0 if check(loaded, upstream, keys, reactor, put, options["json"], options["try"]) else 1)


def _print_usage(path: str, options: Options) -> NoReturn:
    from aigw.accounting import report

    escape_unwritable(sys.stdout)
    by, since, is_csv = options["by"] or "key", options["since"], bool(options["csv"])
    try:
        report.print_report(path, by, since, time.time(), is_csv, sys.stdout, sys.stderr)
    except report.ReportError as error:
        print(f"aigw: {error}", file=sys.stderr)
        raise SystemExit(EX_USAGE if str(error).startswith("--") else 1) from None
    raise SystemExit(0)


def _print_new_key(name: str) -> NoReturn:
    escape_unwritable(sys.stdout)
    key = new_key()
    print(f"The key, which is shown only now; give it to {name}:\n  {key}")
    print(f"The line for keys, in the configuration or in keys_file:\n  {line_of(name, key)}")
    raise SystemExit(0)


def _explain(loaded: Config, options: Options) -> NoReturn:
    from aigw.commands.explain import explain

    escape_unwritable(sys.stdout)
    raise SystemExit(explain(loaded, options["explain"], put, options["json"]))


def _freeze() -> None:
    """The objects of the start stay: the garbage collector need not visit them again."""
    dumpable.forbid()  # once more, for twistd may have changed the user
    memory.keep()
    gc.collect()
    memory.trim()
    gc.freeze()
    gc.set_threshold(*GARBAGE_THRESHOLDS)


def _for_people(server: usage.Options | None, json_log: int) -> bool:
    """Whether the log goes to a terminal, and not as JSON."""
    on_stderr = server is not None and server.get("nodaemon") and not (server.get("logfile") or server.get("syslog"))
    return bool(on_stderr and not json_log and terminal.is_terminal(sys.__stderr__))


def _observer(server: usage.Options | None, json_log: int = 0) -> logs.QueuedLines | None:
    """JSON lines to where twistd's options send the log; None where twistd's own logger is in use."""
    if server is None or server.get("logger"):
        return None
    path, in_foreground = server.get("logfile"), server.get("nodaemon")
    if server.get("syslog"):
        return logs.QueuedLines(to_syslog(server.get("prefix") or "aigw"))
    if path == "-":
        return logs.to_stream(sys.__stdout__) if in_foreground else None  # twistd reports the error
    if _for_people(server, json_log):
        colour = terminal.allows_colour(os.environ)
        return logs.to_stream(sys.__stderr__, form=lambda file: terminal.TerminalFile(file, colour))
    if in_foreground and not path:
        return logs.json_lines()
    try:
        file = LogFile(path or "twistd.log")
    except OSError as error:
        raise SystemExit(f"aigw: the log file {path or 'twistd.log'} cannot be written: {error.strerror}") from None
    observer = logs.QueuedLines(file.write, is_file=file.is_on_disk)
    signal.signal(signal.SIGUSR1, lambda *_: observer.writer.call(file.rotate))
    return observer


def _report(error: ConfigError, path: str | None, in_words: bool) -> None:
    """``path`` is None where no file was named and none was found."""
    stderr: TextIO = sys.__stderr__ or sys.stderr
    if in_words:
        escape_unwritable(stderr)
        if path is None:
            print(*(f"aigw: {mistake}" for mistake in error.mistakes), sep="\n", file=stderr)
        else:
            print(f"{path}: the configuration has mistakes", *error.mistakes, sep="\n  ", file=stderr)
        return
    event = {
        "log_level": LogLevel.error,
        "log_time": time.time(),
        "aigw_message": f"The configuration has {len(error.mistakes)} mistake(s); the gateway exits with {EX_CONFIG}",
        "aigw_fields": {"config": path, "mistakes": error.mistakes},
    }
    logs.JsonLines(stderr)(event)
