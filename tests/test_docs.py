"""The documents say what is so: links, settings, error codes, messages, metrics, examples, and commands that are run.

A page's commands run from top to bottom in one temporary folder, with the page's own configuration, before a provider of
the test. What cannot run here is listed in ``NOT_RUN`` with the test that runs it, or with the reason.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml
from pytest_twisted import ensureDeferred

from aigw import errors
from aigw.commands import demo, init
from aigw.config import loader
from aigw.config.model import SESSION_FROM, Config
from aigw.protocols.endpoints import ENDPOINTS
from aigw.server import unknown_paths
from aigw.settings.endpoint_names import NAMES
from aigw.settings.schema import OneOf, Shape, settings
from aigw.telemetry.record import AttemptRecord, Record, names_for
from tests import fork_server
from tests.providers import answer
from tests.switch import Switch

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.glob("*.md"), *(ROOT / "contrib").rglob("*.md")])
SOURCE = "".join(path.read_text() for path in sorted((ROOT / "aigw").rglob("*.py")))


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, *languages: str) -> list[tuple[str, str]]:
    """The fenced blocks of these languages in order, each with its language."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [(language, text) for language, text in found if language in languages]


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def table(page: Path, heading: str | None = None) -> list[list[str]]:
    """The cells of all rows below a heading, or of the whole page."""
    text = prose(page)
    if heading is not None:
        text = re.split(rf"^#+ {re.escape(heading)}$", text, maxsplit=1, flags=re.MULTILINE)[1]
        text = re.split(r"^#+ ", text, maxsplit=1, flags=re.MULTILINE)[0]
    rows = re.findall(r"^\| (.*) \|$", text, re.MULTILINE)
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)] for row in rows]


WRITTEN = {  # the configurations that the project writes for others to begin with
    "conf/config.yaml": (ROOT / "conf" / "config.yaml").read_text(),
    "contrib/systemd/config.yaml": (ROOT / "contrib" / "systemd" / "config.yaml").read_text(),
    "README.md": blocks(ROOT / "README.md", "yaml")[0][1],
    "docs/getting-started.md": blocks(DOCS / "getting-started.md", "yaml")[0][1],
    "aigw init": init.FILE,
    "demo": inspect.getsource(demo),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_f7_the_configurations_of_the_project_pass_refusals_on(name):
    assert re.search(r"""^[" ]*when_refused"?: "?pass_on\b""", WRITTEN[name], re.MULTILINE)


# Form


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_the_picture_is_small():
    assert (DOCS / "status-page.png").stat().st_size < 200_000


def test_the_readme_leads_to_every_page():
    readme = (ROOT / "README.md").read_text()
    assert [page.name for page in DOCS.glob("*.md") if f"](docs/{page.name})" not in readme] == []


def anchors(page: Path) -> set[str]:
    """As GitHub makes them: lower case, spaces to hyphens, all other punctuation gone; a number where one is there already."""
    made: dict[str, int] = {}
    for heading in re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE):
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        anchor = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        made[anchor] = made.get(anchor, -1) + 1
        if made[anchor]:
            made[f"{anchor}-{made[anchor]}"] = 0
    return set(made)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_link_leads_somewhere(page):
    lost = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith(("https://", "http://")):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            lost.append(target)
    assert lost == []


# The configuration

COMPUTED = {  # by the loader, or by the endpoint
    "port": "`$PORT`, then `8080`",
    "state": "`$STATE_DIRECTORY`, then none",
    "limits.bodies": "`512MiB`, or `body` if that is more",
    "session_from": ", ".join(f"`{name}`" for name in SESSION_FROM),
    "when_refused": "by endpoint: `pass_on` on `messages` and `responses`, else `report`",
    "on_context_overflow": "by endpoint: `return` on `messages` and `responses`, else `next`",
}


SETTINGS = dict(settings(loader.whole_file()))


@cache
def documented() -> dict[str, list[str]]:
    """The cells of each setting's row, by its path."""
    page = DOCS / "configuration.md"
    found: dict[str, list[str]] = {}
    for heading in re.findall(r"^## (.+)$", page.read_text(), re.MULTILINE):
        for path in [""] if heading == "The file" else re.findall(r"`([^`]+)`", heading):
            for row in table(page, heading)[1:]:
                if row[0].startswith("`"):
                    found[f"{path}.{row[0].strip('`')}".lstrip(".")] = row
    return found


def test_every_setting_is_documented_and_no_other():
    assert set(documented()) == set(SETTINGS)


@pytest.mark.parametrize("setting", SETTINGS)
def test_every_default_is_the_documented_one(setting):
    shown, defined = documented()[setting][2], SETTINGS[setting]
    if isinstance(defined, Shape):
        assert shown.startswith("see ")
    elif setting in COMPUTED:
        assert shown == COMPUTED[setting]
    elif defined.inherited and "[]" in setting:
        assert shown == "inherited"
    elif defined.required:
        assert shown == "required"
    elif shown.startswith("`"):
        default = defined.inherited.default if defined.inherited else defined.default
        written = yaml.safe_load(shown.strip("`"))
        assert (
            dict(defined.form.words)[written] if isinstance(defined.form, OneOf) else defined.form.decode(written)
        ) == default
    else:
        assert shown == "none"
        assert defined.otherwise or not defined.default


@pytest.mark.parametrize("setting", sorted(documented()))
def test_every_example_of_a_setting_is_good(setting, tmp_path):
    example = documented()[setting][3]
    if example.startswith("see "):
        return
    tree = yaml.safe_load(example.strip("`"))
    for part in reversed(setting.split(".")):
        tree = {part.removesuffix("[]"): [tree] if part.endswith("[]") else tree}
    load(complete(tree), tmp_path)


def complete(tree: dict) -> dict:
    """A part of a configuration with what it needs to be a whole one."""
    tree = {"api_key": "a-key-of-the-gateway", **tree}
    if isinstance(tree.get("tls"), dict):
        tree["tls"] = {"cert_file": "cert.pem", "key_file": "key.pem", **tree["tls"]}
        if "client_certificate" in tree["tls"]:
            tree["tls"].setdefault("client_ca", "ca.pem")
        for each in tree["tls"].get("certificates", ()):
            each |= {"cert_file": "a.pem", "key_file": "a.key", **each}
    if isinstance(tree.get("usage"), dict):
        tree["usage"].setdefault("file", "usage.jsonl")
    if "'usd'" in str(tree):
        tree.setdefault("unknown_price", 15)
    for listener in [tree.get("admin"), *(tree.get("listen") or ())]:
        if isinstance(listener, dict):
            listener.setdefault("endpoint", "tcp:9464:interface=127.0.0.1")
            if "10.0.0.5" in listener["endpoint"]:
                listener["insecure"] = True
    for part in ("keys", "groups"):
        for each in tree.get(part, ()):
            each.setdefault("name", "a-name")
    for each in tree.get("keys", ()):
        each |= {} if "key" in each or "key_sha256" in each else {"key": "a-key-of-a-caller-12345"}
        if "group" in each:
            tree.setdefault("groups", [{"name": each["group"]}])
    for limits in (*tree.get("keys", ()), *tree.get("groups", ()), tree.get("defaults") or {}):
        for budget in limits.get("budget", ()):
            budget |= {"per": "day", **({} if "usd" in budget else {"tokens": 1}), **budget}
    for number, route in enumerate(tree.setdefault("routes", [{}])):
        route.setdefault("name", "openai/*" if "models" in route else f"r{number}")
        for step in route.setdefault("steps", [{}]):
            for each in step.get("targets", [step]):
                each.setdefault("provider", tree["providers"][0].get("name", "p0") if "providers" in tree else "p0")
                each.setdefault("model", "m")
    named = [each for route in tree["routes"] for step in route["steps"] for each in step.get("targets", [step])]
    used = dict.fromkeys(each["provider"] for each in named)
    for number, provider in enumerate(tree.setdefault("providers", [{"name": name} for name in used])):
        for one, other in (("client_cert", "client_key"), ("client_key", "client_cert")):
            if one in provider:
                provider.setdefault(other, "beside.pem")
        provider.setdefault("name", f"p{number}")
        provider.setdefault("base_url", "https://api.example/v1")
    return tree


def load(tree: dict, folder: Path) -> Config:
    text = yaml.safe_dump(tree)
    shutil.copy(ROOT / "conf" / "prices.yaml", folder)  # what `prices` names in each example
    (folder / "config.yaml").write_text(text)
    (folder / "config.yaml").chmod(0o600)
    if "keys_file" in tree:
        (folder / tree["keys_file"]).write_text("keys: []")
    environ = {name: f"a-value-of-{name}-here" for name in re.findall(r"\$\{(\w+)\}", text)}
    environ["AIGW_ADMIN"] = "unix:/run/aigw/1.sock"  # as the template unit has it
    return loader.load(folder / "config.yaml", environ)


EXAMPLES = [(page, number, text) for page in PAGES for number, (_, text) in enumerate(blocks(page, "yaml"), 1)]


@pytest.mark.parametrize(("page", "number", "text"), EXAMPLES, ids=[f"{named(page)}-{n}" for page, n, _ in EXAMPLES])
def test_every_example_of_a_configuration_loads(page, number, text, tmp_path):
    tree = yaml.safe_load(text)
    if {"providers", "routes"} <= set(tree) and "api_key" in tree:
        load(tree, tmp_path)  # whole, and good as it stands
    else:
        load(complete(tree), tmp_path)


# What the program says


def test_every_error_code_is_documented_with_its_status():
    def all_of(error):
        return [error, *(each for child in error.__subclasses__() for each in all_of(child))]

    classes = {each.__name__: each for each in all_of(errors.GatewayError)}
    made = {(str(each.status), each.code) for each in classes.values()}
    made |= {
        (str(classes[name].status), code) for name, code in re.findall(r'\b([A-Z]\w+)\([^()]*code="(\w+)"', SOURCE)
    }
    shown = {
        (row[0], None if row[1] == "none" else row[1].strip("`"))
        for row in table(DOCS / "api.md", "Errors")
        if row[0].isdecimal()
    }
    assert shown == made


def test_every_message_of_the_log_is_the_program_s():
    shown = [row[0] for row in table(DOCS / "operations.md", "Read the log")][1:]
    messages = [message for cell in shown for message in re.findall(r"`([^`]+)`", cell)]
    assert len(messages) > 6
    beginnings = [message.partition(": ")[0].strip(": ") for message in messages if message not in ("traceback",)]
    assert [message for message in beginnings if message not in SOURCE] == []


def test_every_metric_is_documented_and_no_other():
    """A counter has ``_total`` behind its name in the source."""
    made = set(re.findall(r'Family\(\s*"(aigw_[a-z_]+)"', SOURCE))
    shown = {
        name for row in table(DOCS / "observability.md", "Metrics") for name in re.findall(r"`(aigw_[a-z_]+)`", row[0])
    }
    assert {name.removesuffix("_total") for name in shown} == {name.removesuffix("_total") for name in made}


def test_every_field_of_a_line_of_the_log_exists():
    from aigw.telemetry import logs

    shown = {
        name
        for row in table(DOCS / "observability.md", "Logs")
        if len(row) == 2 and not row[0].startswith(("in ", "under", "`twistd"))
        for name in re.findall(r"`(\w+)`", row[0])
    }
    assert len(shown) > 10
    assert shown <= logs.FIELDS | {"rests_s"}


def test_b9_every_field_of_the_line_of_a_request_is_documented():
    shown = {name for row in table(DOCS / "observability.md", "Logs") for name in re.findall(r"`(\w+)`", row[0])}
    assert set(names_for(Record, "log")) - shown == set()


def test_b9_the_lines_of_the_demo_have_the_fields_that_it_writes():
    lines = [json.loads(line) for _, text in blocks(DOCS / "getting-started.md", "json") for line in text.splitlines()]
    failed, request = [list(line["fields"]) for line in lines]
    assert request == [name for name in names_for(Record, "log") if name not in names_for(Record, "if set")]
    assert set(failed) == {"route", *names_for(AttemptRecord, "log")} - {"message"}


def test_every_endpoint_and_every_header_of_an_answer_is_documented():
    page = (DOCS / "api.md").read_text()
    assert [path for path in ENDPOINTS if f"POST /v1/{path}`" not in page] == []
    assert [name for name in set(re.findall(r"\bx-aigw-[a-z]+", SOURCE)) if f"`{name}`" not in page] == []


def test_every_part_of_the_api_that_is_not_served_is_documented():
    """S4b"""
    shown = prose(DOCS / "api.md").partition("Not served yet: ")[2].partition(". Their")[0]
    assert set(re.findall(r"`(\w+)`", shown)) == unknown_paths._NOT_SERVED


def test_every_name_of_an_endpoint_is_documented():
    row = next(row for row in table(DOCS / "configuration.md", "Rules of the file") if row[0] == "name of an endpoint")
    assert re.findall(r"`([^`]+)`", row[2]) == list(NAMES)


def test_every_marker_is_documented():
    markers = set(re.findall(r'^    "(\w+): ', (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
    rows = {row[0].strip("`"): row[3] for row in table(ROOT / "CONTRIBUTING.md", "Tests") if row[0].startswith("`")}
    assert set(rows) == markers
    assert [marker for marker, command in rows.items() if not command.endswith(f"-m {marker}`")] == []


# Commands

NOT_RUN = {
    # In README and on the first pages
    r"python3 -m venv \.venv && .*/aigw demo": "an index of packages; tests/test_daemon.py::test_the_demo_shows_fallback_by_the_lines_that_it_prints",
    r"python3 -m venv \.venv && .* pytest ": "it is this run; .ci/run takes the line from README",
    r"python3 -m venv \.venv$": "tests/test_packaging.py::test_it_installs_into_a_fresh_environment_and_twistd_knows_it",
    r"(\.venv/bin/)?pip install ": "an index of packages; tests/test_packaging.py::test_it_installs_into_a_fresh_environment_and_twistd_knows_it",
    r"aigw demo$": "tests/test_daemon.py::test_the_demo_shows_fallback_by_the_lines_that_it_prints",
    r"curl \S+/v1/audio/transcriptions ": "a recording; tests/test_sdk_endpoints.py::test_r3a_the_python_client",
    r"aigw usage ": "it needs requests; tests/test_usage_file.py::test_e8_the_command_needs_no_key",
    # Root and systemd
    r"(sudo )?contrib/systemd/install\.sh install-service": "tests/booted/test_service.py::test_install_service_makes_it_active_and_it_answers_over_tls",
    r"SSH_HOST=\S+ contrib/systemd/install\.sh deploy": "tests/booted/test_deploy.py::test_deploy_from_nothing_then_an_upgrade_then_a_broken_version",
    r"(sudo )?ai-gateway check": "tests/booted/test_service.py::test_a_bad_configuration_is_exit_78_and_no_restart_loop",
    r"sudo systemctl reload ai-gateway": "tests/booted/test_service.py::test_reload_with_a_new_certificate_under_load",
    r"systemctl restart ai-gateway": "tests/booted/test_service.py::test_restart_under_load_fails_no_request_and_a_running_stream_gets_its_last_byte",
    r"systemctl stop ai-gateway\.socket ai-gateway": "tests/booted/test_service.py::test_a_bad_configuration_is_exit_78_and_no_restart_loop",
    r"INSTANCES=auto (contrib/systemd|/opt/ai-gateway/current)/install\.sh install-service": "tests/booted/test_instances.py::test_y1_install_service_makes_as_many_as_it_is_asked_for",
    r"systemctl mask --now ai-gateway\.socket": "tests/booted/test_deploy.py::test_plain_http_on_loopback_is_asked_for_readiness_as_such",
    r"curl --cacert /etc/ai-gateway/": "tests/booted/test_service.py::test_install_service_makes_it_active_and_it_answers_over_tls",
    r"curl --unix-socket /run/aigw/": "tests/test_admin.py::test_d3_each_instance_of_one_configuration_is_asked_on_a_socket_of_its_own",
    r"certbot certonly ": "a public name and Let's Encrypt; the hook: tests/booted/test_service.py::test_certbot_s_hook_renews_it",
    # Developers
    r"\.venv/bin/python -m contrib\.bench": "minutes; tests/test_bench.py (pytest -m bench)",
    r"\.venv/bin/python -m pytest -q -n 3": "it is this run",
    r"AIGW_WRITE_DOCS=1 \.venv/bin/python -m pytest -q tests/test_moves\.py": "it writes into the page",
    r"\.venv/bin/(ruff|mypy) ": "what .ci/run ends with",
}


def reason_not_to_run(command: str) -> str | None:
    return next((reason for pattern, reason in NOT_RUN.items() if re.match(pattern, command)), None)


def commands(text: str) -> list[str]:
    """The commands of a block, those that go on behind a backslash joined, without comments."""
    lines = text.replace("\\\n", " ").splitlines()
    return [re.sub(r"\s+# .*$", "", line).strip() for line in lines if line.strip() and not line.startswith("#")]


def test_what_is_not_run_has_a_test_that_exists_or_a_reason():
    everything = [command for page in PAGES for _, text in blocks(page, "sh") for command in commands(text)]
    for pattern, reason in NOT_RUN.items():
        assert any(re.match(pattern, command) for command in everything), f"{pattern} stands in no page any more"
        for file, test in re.findall(r"(tests/\S+\.py)::(\w+)", reason):
            assert f"def {test}(" in (ROOT / file).read_text(), reason


def test_no_page_hides_its_commands():
    """Blocks of a shell have one name."""
    for page in PAGES:
        assert not blocks(page, "bash", "shell", "console"), named(page)


class Story:
    """A page's commands in one folder: what a user would type, one after the other."""

    def __init__(self, folder: Path, switch: Switch) -> None:
        self.folder, self.switch = folder, switch
        self.ports = {port: free_port() for port in ("8080", "8443", "9464")}
        self.daemons: list[subprocess.Popen] = []
        self.out = ""
        (folder / "bin").mkdir()
        for program in fork_server.PROGRAMS:
            self.tool(program, fork_server.shim(program))
        self.tool("python", f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        (folder / ".venv" / "bin").mkdir(parents=True)
        (folder / ".venv" / "bin" / "activate").touch()  # ours is active
        (folder / ".curlrc").write_text("fail-with-body\nsilent\nshow-error\nmax-time = 10\n")
        self.environ = {
            "HOME": str(folder),
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "PORT": self.ports["8080"],
            "PYTHONPATH": str(ROOT),
        }

    def tool(self, name: str, script: str) -> None:
        (self.folder / "bin" / name).write_text(script)
        (self.folder / "bin" / name).chmod(0o755)

    def here(self, text: str) -> str:
        """The ports of this run for those of the page."""
        for port, free in self.ports.items():
            text = re.sub(rf"(?<=[:\s]){port}\b", free, text)
        return text

    def configure(self, text: str) -> None:
        tree = yaml.safe_load(self.here(text))
        if not {"api_key", "providers", "routes"} <= set(tree):
            return  # a part of one
        for provider in tree["providers"]:
            provider["base_url"] = self.switch.url
        self.switch.models = [step["model"] for route in tree["routes"] for step in route["steps"]]
        (self.folder / "config.yaml").write_text(yaml.safe_dump(tree))
        (self.folder / "config.yaml").chmod(0o600)

    def run(self, command: str) -> None:
        command = self.here(command)
        if command.startswith("journalctl"):
            command = f"cat gateway.log | {command.partition(' | ')[2]}"  # what is behind it is what can be wrong
        if re.match(r"aigw -c \S+$", command):
            self.start(command)
            return
        script = f"set -euo pipefail\n{command}\nenv -0 > .environ"
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=self.folder,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        self.out = done.stdout
        pairs = (self.folder / ".environ").read_text().split("\0")
        self.environ = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
        if "--logfile" in command:
            self.wait_for("The gateway has started", self.folder / "gateway.log")

    def python(self, text: str) -> None:
        (self.folder / "page.py").write_text(self.here(text))
        self.run("python page.py")

    def start(self, command: str) -> None:
        """In the foreground of another terminal."""
        log = self.folder / f"foreground-{len(self.daemons)}.log"
        with log.open("w") as file:
            self.daemons.append(
                subprocess.Popen(["bash", "-c", f"exec {command}"], cwd=self.folder, env=self.environ, stderr=file)
            )
        self.wait_for("The gateway has started", log)

    def wait_for(self, message: str, log: Path) -> None:
        from tests.test_prometheus import wait

        wait(lambda: log.exists() and f'"message":"{message}"' in log.read_text())

    def stop(self) -> None:
        for daemon in self.daemons:
            daemon.terminate()
            daemon.wait(15)
        self.daemons.clear()

    def close(self) -> None:
        self.stop()
        if (self.folder / "gateway.pid").exists():
            os.kill(int((self.folder / "gateway.pid").read_text()), signal.SIGTERM)


def free_port() -> str:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return str(one.getsockname()[1])


@pytest.fixture
def story(tmp_path):
    for tool in ("bash", "curl", "jq", "openssl"):
        if not shutil.which(tool):
            pytest.skip(f"no {tool}")
    with Switch() as switch:
        story = Story(tmp_path, switch)
        yield story
        story.close()


# A page of commands for a gateway that runs already is told on another page's gateway.
ADMIN = """
api_key: ${GATEWAY_API_KEY}
admin: 9464
providers: [{name: cerebras, base_url: "http://x/v1", api_key: "${CEREBRAS_API_KEY}"}]
routes: [{name: assistant, steps: [{provider: cerebras, model: gpt-oss-120b}]}]
"""
WITH_COMMANDS = [page for page in PAGES if blocks(page, "sh", "python")]


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=named)
def test_every_command_of_the_page_runs(page, story):
    told = [(language, text) for language, text in blocks(page, "sh", "python", "yaml")]
    to_run = [each for kind, text in told if kind == "sh" for each in commands(text) if not reason_not_to_run(each)]
    if not to_run:
        return
    story.environ |= {"GATEWAY_API_KEY": "key-of-the-gateway-1", "CEREBRAS_API_KEY": "key-of-a-provider-1"}
    if not any("export GATEWAY_API_KEY" in each for each in to_run):
        story.configure(ADMIN)
        story.run("twistd --pidfile=gateway.pid --logfile=gateway.log aigw -c config.yaml")
    for language, text in told:
        if language == "yaml":
            story.configure(text)
        elif language == "python":
            story.python(text)
            assert story.out.strip()
        else:
            for command in commands(text):
                if "--logfile" in command:
                    story.stop()  # Ctrl-C in the first terminal
                if not reason_not_to_run(command):
                    story.run(command)
                if command.startswith("curl") and "/chat/completions" in command and '"stream"' not in command:
                    assert json.loads(story.out)["choices"]


@ensureDeferred
async def test_the_command_for_providers_that_fail_finds_refused_keys_too(world):
    """A refused key is an ERROR, any other failure a WARN; the request itself is no failure of a provider."""
    if not shutil.which("jq"):
        pytest.skip("no jq")
    page = (DOCS / "getting-started.md").read_text()
    (line,) = [line for line in page.splitlines() if line.startswith("jq") and "uniq" in line]
    gateway = world.gateway(world.provider(answer(401)), world.provider(answer(500)), None)
    await gateway.ask()
    jq = ["jq", "-r", shlex.split(line)[2]]
    done = subprocess.run(jq, input="\n".join(world.log), capture_output=True, text=True, check=True)
    assert [found.split("\t")[0] for found in done.stdout.splitlines()] == ["p1", "p2", "p3"]
