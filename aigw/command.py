"""The command ``aigw``: short forms of ``twistd -n --pidfile= --reactor=aigw aigw ...``, which runs the gateway in the
foreground, with its own reactor where the system has epoll."""

from __future__ import annotations

import select
import sys
from collections.abc import Sequence

from twisted.scripts import twistd

from aigw.commands.init import init

EX_USAGE = 64
IN_FOREGROUND = ["-n", "--pidfile=", *(["--reactor=aigw"] if hasattr(select, "epoll") else []), "aigw"]
COMMANDS = {
    "demo": ["--demo"],
    "check": ["--check-config"],
    "check-providers": ["--check-providers"],
    "usage": ["--usage"],
    "new-key": ["--new-key"],
    "explain": ["--explain"],
}

HELP = """\
Usage: aigw [-c FILE] [--json-log]    run the gateway in the foreground
       aigw demo                      run a demo on 127.0.0.1 that needs no configuration, key or network
       aigw init [FILE]               ask a few questions and write a configuration
       aigw check [-c FILE]           check the configuration, print its providers and routes; exit with 0,
                                      or with 78 if it has a mistake
       aigw check-providers [-c FILE] [--try] [--json]
                                      ask each provider for its models; with --try, also send a request of
                                      one token to each step; exit with 0 if all steps work, else with 1
       aigw usage [-c FILE] [--by=key,route,model] [--since=7d] [--csv]
                                      print what was used, from the file of usage
       aigw new-key NAME              print a new key for a caller, and its line for the configuration
       aigw explain FILE [-c FILE] [--json]
                                      print what the gateway would do with the request in FILE (- for stdin), and
                                      send nothing; exit with 0, or with 1 if the client would get an error at once
       aigw --version                 print the version
       aigw help                      print this text

  -c, --config=FILE   the configuration file (default: ./config.yaml, then /etc/ai-gateway/config.yaml)
      --json-log      write the log as JSON on a terminal too (in a file or pipe it always is JSON)

To run a daemon with a pid file, a log file or another user, use: twistd aigw (see twistd --help and twistd aigw --help)
"""


def translate(words: Sequence[str]) -> list[str]:
    """The arguments of twistd for those of ``aigw``. Raises ValueError for a wrong command."""
    if not words or words[0].startswith("-"):
        return [*IN_FOREGROUND, *words]
    if words[0] == "explain" and (words[1:2] in ([], [""]) or (words[1] != "-" and words[1].startswith("-"))):
        raise ValueError("explain needs the file of a request before its options: aigw explain FILE [-c FILE] [--json]")
    try:
        return [*IN_FOREGROUND, *COMMANDS[words[0]], *words[1:]]
    except KeyError:
        raise ValueError(f"unknown command: {words[0]!r}") from None


def main() -> None:
    """Run the command of the command line, which ends the process."""
    words = sys.argv[1:]
    if words[:1] == ["help"] or not {"-h", "--help"}.isdisjoint(words):
        print(HELP, end="")
        return
    if words[:1] == ["init"]:
        raise SystemExit(init(words[1:]))
    try:
        sys.argv = ["aigw", *translate(words)]
    except ValueError as error:
        print(f"aigw: {error}\n\nFor all commands run: aigw help", file=sys.stderr)
        raise SystemExit(EX_USAGE) from None
    twistd.run()
