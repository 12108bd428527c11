"""``aigw init``: asks for providers and for the variables that hold their keys, and writes a configuration.

It asks for no key and writes none: the file names environment variables. Answers may come from a pipe, one per line.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypedDict

import yaml

from aigw.commands.output import escape_unwritable
from aigw.config import loader
from aigw.errors import ConfigError
from aigw.settings.addresses import base_url

EX_OK, EX_USAGE, EX_CANTCREAT, EX_INTERRUPTED = 0, 64, 73, 130
PORT = 8080
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")

FILE = """\
# The configuration of an AI gateway. Check it with: aigw check -c {file}
# It holds no key: ${{NAME}} is the value of the environment variable NAME.

# The key that clients of the gateway send.
api_key: ${{{gateway_key}}}

# The port. Without TLS the gateway listens only on this machine (127.0.0.1 and ::1).
port: {port}
# With a certificate it listens on every address:
# tls:
#   cert_file: fullchain.pem
#   key_file: privkey.pem

providers:
{providers}
# Where all steps refused the request itself (too long, a wrong parameter), the client gets the refusal, not a 502.
when_refused: pass_on

routes:
  # A client writes this name in "model". The steps are tried in this order until one answers.
  - name: {route}
    steps:
{steps}"""

PROVIDER = """\
  - name: {name}
    base_url: {base_url}
"""

STEP = """\
      - provider: {name}
        model: {model}
        timeout: 60s # until the first output of a stream, or the end of any other answer
"""

NEXT = """\
{file} is written, and only your user can read it. Run the gateway:

{exports}
  aigw -c {file}

Call it from another terminal in which {gateway_key} is set too:

  curl {url} -H "Authorization: Bearer ${gateway_key}" {content_type} -d '{body}'
"""

Check = Callable[[str], "str | None"]


class _NoAnswer(Exception):
    """The input ended, or has a wrong answer and comes from a pipe."""


def init(words: Sequence[str]) -> int:
    """Ask, write the file and print the next steps; gives the exit status. ``words`` may name the file."""
    if len(words) > 1 or any(word.startswith("-") for word in words):
        print("aigw: init takes one argument, the name of the file to write: aigw init FILE", file=sys.stderr)
        return EX_USAGE
    for stream in (sys.stdout, sys.stderr):
        escape_unwritable(stream)
    path = Path(words[0] if words else "config.yaml")
    if not str(path).isprintable():
        print(
            "aigw: the file name has a character that is not printable; name another file: aigw init FILE",
            file=sys.stderr,
        )
        return EX_USAGE
    if os.path.lexists(path):
        print(f"aigw: {path} exists already and is kept; name another file: aigw init FILE", file=sys.stderr)
        return EX_CANTCREAT
    try:
        answers = _ask_all()
        text = _file(path, answers)
        _check(text, answers, path)
    except KeyboardInterrupt:
        return EX_INTERRUPTED
    except _NoAnswer as error:
        print(f"aigw: {error}; {path} was not written", file=sys.stderr)
        return EX_USAGE
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        print(f"aigw: the file {path} cannot be written: {error.strerror}", file=sys.stderr)
        return EX_CANTCREAT
    print(_next(path, answers), end="")
    return EX_OK


class Answers(TypedDict):
    """What was asked."""

    providers: list[dict[str, str]]
    route: str
    gateway_key: str


def _ask_all() -> Answers:
    if sys.stdin.isatty():
        print("The gateway tries providers in the order of your answers. An empty answer means the value in [].")
    providers: list[dict[str, str]] = []
    while True:
        number = len(providers) + 1
        name = _ask(f"Name of provider {number}{', or nothing if there are no more' if providers else ''}", _name, "")
        if not name and providers:
            break
        if not name or name in [each["name"] for each in providers]:
            _refuse(
                "another provider has this name; give a unique name" if name else "at least one provider is required"
            )
            continue
        variable = re.sub(r"[^A-Z0-9]+", "_", name.upper()).strip("_")
        providers.append(
            {
                "name": name,
                "base_url": _ask("  Base URL, for example https://api.openai.com/v1", _url),
                "model": _ask("  Model", _name),
                "key": _ask(
                    "  Environment variable with its key, or - if it needs no key", _key, f"{variable}_API_KEY"
                ),
            }
        )
    return {
        "providers": providers,
        "route": _ask("Name of the route, which clients write in model", _name, "default"),
        "gateway_key": _ask("Environment variable with the key that clients send", _variable, "GATEWAY_API_KEY"),
    }


def _ask(question: str, check: Check, default: str | None = None) -> str:
    while True:
        try:
            answer = input(f"{question}{f' [{default}]' if default else ''}: " if sys.stdin.isatty() else "").strip()
        except UnicodeDecodeError:
            raise _NoAnswer("the input is not UTF-8") from None
        except EOFError:
            if default is None:
                raise _NoAnswer(f"the input has no answer to the question {question.strip()!r}") from None
            answer = ""
        if not answer and default is not None:
            return default
        problem = check(answer)
        if problem is None:
            return answer
        _refuse(problem)


def _refuse(problem: str) -> None:
    """Print why an answer is wrong, without the answer, which may be a key. Raises _NoAnswer for a pipe."""
    if not sys.stdin.isatty():
        raise _NoAnswer(problem)
    print(f"  {problem}")


def _name(answer: str) -> str | None:
    return (
        None
        if answer and answer.isprintable() and "${" not in answer
        else "write a name of printable characters, without ${"
    )


def _url(answer: str) -> str | None:
    if not re.fullmatch(r"https?://[^\s/]+\S*", answer) or not answer.isprintable() or "${" in answer:
        return "write a URL that begins with https:// or http://"
    try:
        base_url(answer)
    except ValueError as error:
        return f"the URL {error}"
    return None


def _variable(answer: str) -> str | None:
    """Keys have lower-case letters, so a pasted key is refused."""
    fine = _VARIABLE.fullmatch(answer)
    return None if fine else "write the name of the variable (A to Z, 0 to 9 and _) instead of the key itself"


def _key(answer: str) -> str | None:
    return None if answer == "-" else _variable(answer)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)  # a JSON string is a YAML string too


def _file(path: Path, answers: Answers) -> str:
    providers, steps = "", ""
    for each in answers["providers"]:
        providers += PROVIDER.format(name=_quoted(each["name"]), base_url=_quoted(each["base_url"]))
        providers += "" if each["key"] == "-" else f"    api_key: ${{{each['key']}}}\n"
        steps += STEP.format(name=_quoted(each["name"]), model=_quoted(each["model"]))
    return FILE.format(
        file=shlex.quote(str(path)),
        gateway_key=answers["gateway_key"],
        port=PORT,
        providers=providers,
        route=_quoted(answers["route"]),
        steps=steps,
    )


def _check(text: str, answers: Answers, path: Path) -> None:
    """Raises _NoAnswer if the gateway would refuse the file."""
    variables = _variables(answers)
    try:
        loader.build(yaml.safe_load(text), dict.fromkeys(variables, "a-key-for-this-check"), path.absolute().parent)
    except ConfigError as error:
        raise _NoAnswer(str(error)) from None


def _variables(answers: Answers) -> list[str]:
    named = [answers["gateway_key"], *(each["key"] for each in answers["providers"] if each["key"] != "-")]
    return list(dict.fromkeys(named))


def _next(path: Path, answers: Answers) -> str:
    body = json.dumps({"model": answers["route"], "messages": [{"role": "user", "content": "Hi"}]})
    return NEXT.format(
        file=shlex.quote(str(path)),
        exports="\n".join(f"  export {name}=..." for name in _variables(answers)),
        gateway_key=answers["gateway_key"],
        url=f"http://127.0.0.1:{PORT}/v1/chat/completions",
        content_type="-H 'Content-Type: application/json'",
        body=body.replace("'", r"\u0027"),
    )
