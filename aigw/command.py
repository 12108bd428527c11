"""The command ``aigw``: short words for ``twistd -n --pidfile= aigw ...``, which runs the gateway in the foreground."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from twisted.scripts import twistd

from aigw.daemon.init import init

EX_USAGE = 64
IN_FOREGROUND = ["-n", "--pidfile=", "aigw"]
COMMANDS = {"demo": ["--demo"], "check": ["--check-config"], "check-providers": ["--check-providers"]}

HELP = """\
Usage: aigw [-c FILE] [--json-log]    run the gateway in the foreground
       aigw demo                      run it on loopback without configuration, key or network
       aigw init [FILE]               ask a few questions and write a configuration
       aigw check [-c FILE]           check the configuration, print its routes; exits with 0, or 78 if it is wrong
       aigw check-providers [-c FILE] [--try] [--json]
                                      ask each provider for its models, or with --try each step for one token;
                                      exits with 0 if each step works, else with 1
       aigw --version                 print the version
       aigw help                      print this text

  -c, --config=FILE   the configuration; else ./config.yaml, else /etc/ai-gateway/config.yaml
      --json-log      write the log as JSON on a terminal too; elsewhere it always is

As a daemon, with a pid file, a log file and another user: twistd aigw; see twistd --help and twistd aigw --help.
"""


def translate(words: Sequence[str]) -> list[str]:
    """The arguments of twistd for those of ``aigw``. Raises ValueError for a command that there is not."""
    if not words or words[0].startswith("-"):
        return [*IN_FOREGROUND, *words]
    try:
        return [*IN_FOREGROUND, *COMMANDS[words[0]], *words[1:]]
    except KeyError:
        raise ValueError(f"there is no command {words[0]!r}") from None


def main() -> None:
    """Run what the command line asks for; the process ends in it."""
    words = sys.argv[1:]
    if words[:1] == ["help"] or not {"-h", "--help"}.isdisjoint(words):
        print(HELP, end="")
        return
    if words[:1] == ["init"]:
        raise SystemExit(init(words[1:]))
    try:
        sys.argv = ["aigw", *translate(words)]
    except ValueError as error:
        print(f"aigw: {error}\n\naigw help shows the commands.", file=sys.stderr)
        raise SystemExit(EX_USAGE) from None
    twistd.run()
