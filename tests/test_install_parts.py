"""The parts of contrib/systemd one at a time: what install.sh and its scripts do, with stand-ins for what they call."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tests.test_install import INSTALL, SYSTEMD

OTHER = os.getppid()
EMPTY = hashlib.sha256().hexdigest()


def releases(folder: Path, *names: str) -> None:
    """Those are unpacked, with the units of this checkout."""
    for name in names:
        units = folder / "home/releases" / name / "systemd"
        units.mkdir(parents=True)
        (units / "ai-gateway@.socket").touch()


def part(folder: Path, script: str, python: str = sys.executable, **environ: str):
    """Run ``script`` after the functions of install.sh; HOME_DIR and ETC are in ``folder``."""
    functions = INSTALL.read_text().partition("\ncommand=")[0]
    (folder / "functions.sh").write_text(functions)
    program(folder / "home/current/venv/bin/python", f'exec {shlex.quote(python)} "$@"')
    (folder / "etc/keys").mkdir(parents=True, exist_ok=True)
    where = f"source functions.sh; HOME_DIR=$PWD/home ETC=$PWD/etc UNITS=$PWD RUN=$PWD/run ENABLED=$PWD/wants; {script}"
    clean = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return subprocess.run(
        ["bash", "-c", where],
        cwd=folder,
        env={**clean, **environ},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def program(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/bash\n{script}\n")
    path.chmod(0o755)
    return path


def before_path(folder: Path) -> str:
    return f"{folder}:{os.environ['PATH']}"


# Readiness: who answers, where several share a socket


class Shared:
    """``/ready`` of several processes: its answers in turn, the last one again and again."""

    def __init__(self, *answers: tuple[int, int]) -> None:
        """``answers``: (status, pid) each."""
        self.asked = 0
        shared = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                status, pid = answers[min(shared.asked, len(answers) - 1)]
                shared.asked += 1
                said = {"status": "ready", "pid": pid} if status == 200 else {"error": {"code": "draining", "pid": pid}}
                self.send_response(status)
                self.end_headers()
                self.wfile.write(json.dumps(said).encode())

            def log_message(self, *_):
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/ready"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.mark.parametrize(
    ("answers", "code", "asked", "says"),
    [
        ([(200, OTHER), (503, OTHER), (200, os.getpid())], 0, 3, ""),
        ([(200, OTHER), (503, os.getpid()), (200, os.getpid())], 1, 2, "HTTP Error 503"),
        ([(200, OTHER)], 1, None, "good answers came from other processes"),
    ],
    ids=["once it has answered", "its refusal is the end of it", "the others' answers are not its own"],
)
def test_d3_a_unit_is_ready_when_its_own_process_says_so(tmp_path, answers, code, asked, says):
    with Shared(*answers) as shared:
        seconds = "READY_SECONDS=1; " if asked is None else ""
        done = part(tmp_path, f"{seconds}asked_ready {os.getpid()}", READY_URL=shared.url)
    assert done.returncode == code
    assert says in done.stderr
    assert asked in (None, shared.asked)


def test_d3_readiness_is_asked_of_this_machine_not_of_a_proxy(tmp_path):
    with Shared((200, os.getpid())) as shared:
        nobody = "http://127.0.0.1:1"
        done = part(tmp_path, f"asked_ready {os.getpid()}", READY_URL=shared.url, http_proxy=nobody, https_proxy=nobody)
    assert done.returncode == 0, done.stderr


def test_d3_where_the_certificate_is_not_seen_in_the_file_the_other_scheme_is_asked_too(tmp_path):
    with Shared((200, os.getpid())) as shared:
        seen = f"ready_url() {{ echo {shared.url.replace('http', 'https')}; }}; asked_ready {os.getpid()}"
        done = part(tmp_path, seen)
    assert done.returncode == 0, done.stderr


ROLL = (
    "current() { echo 1; }; check_config() { :; }; activate() { :; }; state() { :; }; point() { :; }; timeout() { :; };"
)
ROLL += " systemctl() { :; }; stays_up() { echo stays_up $1; }; restarted() { echo restarted $1; };"
TWO = "ai-gateway@1.service ai-gateway@2.service"


def running(units: str) -> str:
    """Those units run, each with its socket unit."""
    return f"""running() {{ printf '%s\\n' {units}; }};
        open_sockets() {{ printf '%s\\n' {units.replace(".service", ".socket")}; }};"""


@pytest.mark.parametrize(
    ("admin", "units"),
    [
        ("", "ai-gateway.service"),
        ("admin: 9464\n", "ai-gateway.service"),
        ("admin: ${AIGW_ADMIN} # of each unit\n", "ai-gateway.service"),
        ("admin: '${AIGW_ADMIN}'\n", TWO),
    ],
)
def test_d3_two_processes_do_not_open_one_listener_for_administrators(tmp_path, admin, units):
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/config.yaml").write_text("api_key: k\n" + admin)
    releases(tmp_path, "2")
    said = part(tmp_path, f"{ROLL} {running(units)} roll 2").stdout
    alone = "9464" in admin
    assert ("in addition to the running one" in said) != alone
    assert [line for line in said.splitlines() if line.startswith("restarted")] == [
        f"restarted {u}" for u in units.split()
    ]
    assert ("stays_up ai-gateway@upgrade.service" in said) != alone


def test_y4_the_helper_of_a_roll_accepts_on_the_sockets_of_all_units_and_leaves_nothing(tmp_path):
    """Or the clients that the kernel gives to the socket of an instance that drains would wait for it."""
    seen = 'stays_up() { cat "$RUN/$HELPER.d/"*; readlink "$RUN/ai-gateway@upgrade.socket"; };'
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/config.yaml").write_text("api_key: k\n")
    releases(tmp_path, "2")
    said = part(tmp_path, f"{ROLL} {running(TWO)} {seen} roll 2").stdout
    assert "Sockets=ai-gateway@1.socket ai-gateway@2.socket \n" in said
    assert "Environment=AIGW_ADMIN=unix:/run/aigw/upgrade.sock AIGW_INSTANCE=\n/dev/null\n" in said
    assert list((tmp_path / "run").iterdir()) == []


def test_y4_one_unit_that_does_not_become_ready_brings_all_back(tmp_path):
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/config.yaml").write_text("api_key: k\n")
    fails = 'restarted() { echo "$1 $AT"; [ "$1 $AT" != "ai-gateway@2.service new" ]; }; activate() { AT=$1; }; AT=old;'
    fails += " current() { echo old; }; journalctl() { :; };"
    releases(tmp_path, "new")
    done = part(tmp_path, f"{ROLL} {running(TWO)} {fails} roll new")
    steps = [line for line in done.stdout.splitlines() if line.startswith("ai-gateway@")]
    assert (done.returncode, steps) == (
        1,
        [f"ai-gateway@{each}" for each in "1.service new,2.service new,1.service old,2.service old".split(",")],
    )
    assert list((tmp_path / "run").iterdir()) == []


def test_y4_several_instances_do_not_go_back_to_a_release_that_had_one_socket_for_all(tmp_path):
    done = part(tmp_path, f"{ROLL} {running(TWO)} roll 2")
    assert (done.returncode, "restarted" in done.stdout) == (1, False)
    assert "release 2 has no sockets for several instances; run INSTANCES=1 " in done.stderr


def test_y1_the_script_of_an_installed_release_changes_the_number_without_an_artefact(tmp_path):
    (tmp_path / ".complete").touch()
    (tmp_path / "ID").write_text("1.0.0-x\n")
    said = part(tmp_path, 'HERE=$PWD; payload; echo "$ID $PAYLOAD"').stdout
    assert said.split() == ["1.0.0-x", str(tmp_path)]


@pytest.mark.parametrize(
    ("asked", "enabled", "units"),
    [
        ("", "", "ai-gateway.service"),
        ("", TWO, TWO),
        ("1", TWO, "ai-gateway.service"),
        ("auto", "", TWO),
        ("11", "", " ".join(f"ai-gateway@{number}.service" for number in range(1, 12))),
    ],
)
def test_y3_how_many_units_there_are_to_be(tmp_path, asked, enabled, units):
    for unit in enabled.split():
        (tmp_path / "wants").mkdir(exist_ok=True)
        (tmp_path / "wants" / unit).touch()
    said = part(tmp_path, "nproc() { echo 2; }; wanted_units", INSTANCES=asked)
    assert said.stdout.split() == units.split()


@pytest.mark.parametrize("count", ["0", "100", "two"])
def test_y3_a_wrong_number_is_refused_before_anything_is_done(tmp_path, count):
    nothing = (
        'for each in need_root need_systemd payload; do eval "$each() { :; }"; done; install_release() { echo done; };'
    )
    done = part(tmp_path, f"{nothing} cmd_install_service", INSTANCES=count)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"INSTANCES: {count} is not a number of processes; write a number from 1 to 99, or auto" in done.stderr


@pytest.mark.parametrize(
    ("admin", "environment", "instances"),
    [
        ("${AIGW_ADMIN}", "AIGW_ADMIN=tcp:1", False),
        ("9464", " AIGW_ADMIN=tcp:1", False),
        ("", "AIGW_ADMIN=tcp:1", True),
        ("${AIGW_ADMIN}", "#AIGW_ADMIN=tcp:1", True),
        ("${AIGW_ADMIN}", None, True),
    ],
)
def test_y6_a_listener_for_administrators_in_the_common_environment_is_refused(tmp_path, admin, environment, instances):
    """For systemd that file wins over the units, so the second instance could not open its listener."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/config.yaml").write_text(f"api_key: k\nadmin: {admin}\n")
    if environment is not None:
        (tmp_path / "etc/environment").write_text(f"A=1\n{environment}\n")
    done = part(tmp_path, f"check_instances ai-gateway.service; shares_admin && echo shared; check_instances '{TWO}'")
    assert (done.returncode == 0, "shared" in done.stdout) == (instances, instances)
    assert ("AIGW_ADMIN in " in done.stderr) == (admin.startswith("$") and not instances)


@pytest.mark.parametrize(("admin", "environment", "starts"), [
    ("${AIGW_ADMIN}", "AIGW_ADMIN=tcp:1", False), ("${AIGW_ADMIN}", "A=1", True), ("9464", "AIGW_ADMIN=tcp:1", True),
    ("${AIGW_ADMIN}", None, True),
])  # fmt: skip
def test_y6_an_instance_does_not_start_with_the_listener_of_all(tmp_path, admin, environment, starts):
    template = (SYSTEMD / "ai-gateway@.service").read_text()
    (line,) = [line for line in template.splitlines() if line.startswith("ExecStartPre=") and "environment" in line]
    (tmp_path / "config.yaml").write_text(f"admin: {admin}\n")
    if environment is not None:
        (tmp_path / "environment").write_text(environment + "\n")
    command = shlex.split(line.partition("=+")[2].replace("/etc/ai-gateway", str(tmp_path)))
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    assert done.returncode == (0 if starts else 78)
    assert ("remove it there" in done.stderr) != starts


@pytest.mark.parametrize(
    ("admin", "units", "targets"),
    [
        ("${AIGW_ADMIN}", ["tcp:9464:interface=127.0.0.1", "tcp:9464:interface=127.0.0.2"], ["127.0.0.1:9464", "127.0.0.2:9464"]),
        ("${AIGW_ADMIN}", ["tcp:9501", "tcp:port=9502:interface=127.0.0.1"], ["127.0.0.1:9501", "127.0.0.1:9502"]),
        ("${AIGW_ADMIN}", [r"tcp6:9464:interface=\:\:1", "unix:/run/aigw/2.sock"], ["[::1]:9464"]),
        ("tcp:950${AIGW_ADMIN}:interface=0.0.0.0", ["1", "2"], ["127.0.0.1:9501", "127.0.0.1:9502"]),
        ("${AIGW_ADMIN}", ["unix:/run/aigw/1.sock", "unix:/run/aigw/2.sock"], None),
        ("9465", ["unix:/run/aigw/admin.sock"], ["127.0.0.1:9465"]),
        ("{endpoint: 'tcp:9466:interface=10.0.0.5', insecure: true}", ["x"], ["10.0.0.5:9466"]),
        ("", ["unix:/run/aigw/admin.sock"], None),
    ],
)  # fmt: skip
def test_y6_prometheus_gets_the_addresses_that_the_units_have(tmp_path, admin, units, targets):
    (tmp_path / "etc").mkdir()
    (tmp_path / "home").mkdir()
    (tmp_path / "home/prometheus.json").write_text("old")
    (tmp_path / "etc/config.yaml").write_text(f"api_key: k\nadmin: {admin}\n")
    for number, value in enumerate(units, 1):
        (tmp_path / str(number)).write_text(f"PYTHONFAULTHANDLER=1 AIGW_ADMIN={value} AIGW_INSTANCE={number}\n")
    names = " ".join(map(str, range(1, len(units) + 1)))
    done = part(tmp_path, f'state() {{ [ "$2" = Environment ] && cat "$1"; }}; write_targets "{names}"')
    assert (done.returncode, done.stderr) == (0, "")
    file = tmp_path / "home/prometheus.json"
    assert (json.loads(file.read_text()) if file.exists() else None) == (targets and [{"targets": targets}])
    assert not list((tmp_path / "home").glob("*.new"))


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ("listen: ['tcp:1']", "has listen, and one process alone can open these listeners; remove listen"),
        ("admin: 9464", "has one listener in admin, and each process needs its own; write admin: ${AIGW_ADMIN}"),
        ("admin: ${AIGW_ADMIN}", ""),
        ("api_key: k", ""),
    ],
)
def test_y3_what_only_one_process_can_open_is_a_mistake_for_several(tmp_path, config, says):
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/config.yaml").write_text(config)
    done = part(tmp_path, f"check_instances ai-gateway.service; check_instances '{TWO}'")
    assert (done.returncode != 0) == bool(says)
    assert says in done.stderr


CHANGE = """check_config() { :; }; copy_dropins() { :; }; current() { :; }; open_socket() { echo open $*; }; start_units() { for each in $*; do echo up $each; done; };
systemctl() { echo $*; };"""


@pytest.mark.parametrize(
    ("before", "count", "steps"),
    [
        ("ai-gateway@1.service", "1", ["disable -q ai-gateway@1", "stop ai-gateway@1.socket", "--no-block stop ai-gateway@1.service",
                                       "open ai-gateway.service 10", "up ai-gateway.service"]),
        ("ai-gateway.service", "2", ["disable -q ai-gateway.service", "stop ai-gateway.socket", "--no-block stop ai-gateway.service",
                                     "open ai-gateway@1.service 10", "open ai-gateway@2.service 10", "up ai-gateway@1", "up ai-gateway@2"]),
        (TWO, "3", ["open ai-gateway@3.service 0", "up ai-gateway@3.service"]),
        (f"{TWO} ai-gateway@3.service", "2", ["disable -q ai-gateway@3", "stop ai-gateway@3.socket", "stop ai-gateway@3.service"]),
        (TWO, "2", []),
    ],
)  # fmt: skip
def test_y3_who_leaves_closes_its_socket_first_and_who_comes_opens_one_before_it_starts(tmp_path, before, count, steps):
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/config.yaml").write_text("api_key: k\n")
    done = part(tmp_path, f"{CHANGE} {running(before)} change_instances", INSTANCES=count)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if not line.startswith("→")]
    assert len(lines) >= len(steps)
    assert all(line.startswith(step) for line, step in zip(lines, steps, strict=False)), lines
    assert bool(steps) == bool(lines)


def test_y4_a_reload_goes_from_one_to_the_next_and_stops_at_a_refusal(tmp_path):
    stubs = "need_root() { :; }; need_systemd() { :; }; state() { echo fine; };"
    for refuses, reached in (("nothing", TWO), ("ai-gateway@1.service", "ai-gateway@1.service")):
        script = f'{stubs} {running(TWO)} systemctl() {{ echo $2 >&2; [ "$2" != {refuses} ]; }}; cmd_reload'
        done = part(tmp_path, script)
        assert [line for line in done.stderr.splitlines() if line.startswith("ai-")] == reached.split()
        assert (done.returncode != 0) == (refuses != "nothing")
    assert "ai-gateway@1.service did not reload; it and the units after it keep the configuration" in done.stderr


def test_y5_the_check_of_an_installed_instance_warns_as_the_instance_does(tmp_path):
    script = (SYSTEMD / "ai-gateway").read_text()
    assert script.count("/etc/systemd/system/multi-user.target.wants/ai-gateway@1.service") == 1
    assert "${instance:+-p Environment=AIGW_INSTANCE=1}" in script


@pytest.mark.parametrize("port", ["0", "65536", "99999", "08", "http"])
def test_d3_a_port_is_one(tmp_path, port):
    done = part(tmp_path, "choose_port", PORT=port)
    assert done.returncode == 1
    assert f"PORT: {port} is not a port; write a number from 1 to 65535" in done.stderr


def test_d3_a_process_that_has_ended_is_not_waited_for(tmp_path):
    with subprocess.Popen(["true"]) as ended:
        pass
    with Shared((200, OTHER)) as shared:
        done = part(tmp_path, f"asked_ready {ended.pid}", READY_URL=shared.url)
    assert (done.returncode, shared.asked) == (1, 0)
    assert "has ended" in done.stderr


@pytest.mark.parametrize(
    ("config", "listens", "url"),
    [
        ("tls: {cert_file: c, key_file: k}", "[::]:443", "https://127.0.0.1:443/ready"),
        ("tls: {cert_file: c, key_file: k}", "10.0.0.1:8443", "https://10.0.0.1:8443/ready"),
        ("api_key: k", "127.0.0.1:8080", "http://127.0.0.1:8080/ready"),
        ("listen: ['tcp:1']", "[::]:443", ""),
    ],
    ids=["tls", "one address", "plain HTTP", "listeners of its own"],
)
def test_d3_where_readiness_is_asked_for_follows_from_the_socket_and_the_configuration(tmp_path, config, listens, url):
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/config.yaml").write_text(config)
    said = part(tmp_path, f"open_sockets() {{ echo s; }}; state() {{ echo '{listens} (Stream)'; }}; ready_url || true")
    assert said.stdout.strip() == url


def test_d3_a_helper_that_is_not_ready_stops_before_anything_else_is_done(tmp_path):
    script = "systemctl() { echo $*; }; activate() { echo activate $1; }; restarted() { echo restarted $1; };"
    untouched = part(tmp_path, f"{script} go_back 1.0.0 helper ''").stdout
    assert untouched.splitlines()[:4] == ["stop helper", "reset-failed helper", "daemon-reload", "activate 1.0.0"]
    touched = part(tmp_path, f"{script} go_back 1.0.0 helper one").stdout
    assert touched.splitlines() == [
        "activate 1.0.0",
        "reset-failed one",
        "restarted one",
        "stop helper",
        "reset-failed helper",
        "daemon-reload",
    ]


# Reload


class Daemon:
    """A process that sets its unit's status on SIGHUP, to what a shell makes of ``says``; and the unit."""

    def __init__(self, folder: Path, says: str) -> None:
        self._folder = folder
        program(folder / "bin/systemctl", f"cat {folder}/status")
        (folder / "status").write_text("Serving 1 routes with 1 providers\n")
        handler = f"{says} > {folder}/new && mv {folder}/new {folder}/status"
        script = f"trap {shlex.quote(handler)} HUP; echo up; while :; do sleep 0.05; done"
        self.process = subprocess.Popen(["bash", "-c", script], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline() == "up\n"

    def reload(self):
        environ = {**os.environ, "PATH": before_path(self._folder / "bin"), "MAINPID": str(self.process.pid)}
        return subprocess.run(
            [SYSTEMD / "reload", "a.service"], env=environ, capture_output=True, text=True, timeout=30, check=False
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


def test_d1_systemctl_reload_succeeds_when_the_daemon_has_reloaded_each_time(tmp_path):
    """In the same second too, in which the status would say the same as before."""
    with Daemon(tmp_path, 'echo "Serving 1 routes; reloaded at $(date "+%F %T %Z")"') as daemon:
        for _ in range(3):
            done = daemon.reload()
            assert (done.returncode, done.stderr) == (0, "")


def test_d1_systemctl_reload_fails_with_the_daemon_s_reason_when_it_has_not(tmp_path):
    with Daemon(tmp_path, 'echo "Not reloaded at $(date "+%F %T %Z"), the old one goes on: port taken"') as daemon:
        done = daemon.reload()
    assert done.returncode == 1
    assert "port taken" in done.stderr


def test_d1_systemctl_reload_fails_when_the_daemon_is_gone(tmp_path):
    with Daemon(tmp_path, "true") as daemon:
        daemon.process.send_signal(signal.SIGKILL)
        daemon.process.wait()
        assert daemon.reload().returncode != 0


def test_d1_certbot_s_hook_reloads_every_unit_and_fails_if_one_did(tmp_path):
    for name in ("install", "mv", "systemctl"):
        program(tmp_path / f"bin/{name}", f"echo {name} $* >> {tmp_path}/log")
    program(
        tmp_path / "bin/systemctl",
        f"""case $1 in list-units) echo one.service; echo two.service ;;
        *) echo $* >> {tmp_path}/log; [ $2 != one.service ] ;; esac""",
    )
    environ = {**os.environ, "PATH": before_path(tmp_path / "bin"), "RENEWED_LINEAGE": "/nonexistent"}
    done = subprocess.run([SYSTEMD / "certbot-deploy-hook"], env=environ, timeout=30, check=False)
    assert done.returncode == 1
    assert (tmp_path / "log").read_text().splitlines()[-2:] == ["reload one.service", "reload two.service"]


# Installation


def test_v2_in_the_foreground_the_gateway_has_its_own_reactor(tmp_path):
    program(tmp_path / "release/venv/bin/twistd", 'printf "%s|" "$@"')
    environ = {**os.environ, "AI_GATEWAY_RELEASE": str(tmp_path / "release")}
    for words in (["--demo"], ["-c", "a file.yaml"]):
        command = [SYSTEMD / "ai-gateway", *words]
        said = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=30, check=True).stdout
        assert said.split("|") == ["-n", "--pidfile=", "--reactor=aigw", "aigw", *words, ""]


def test_check_finds_a_file_of_the_folder_that_one_is_in(tmp_path):
    program(tmp_path / "release/venv/bin/twistd", 'echo "$@"')
    environ = {**os.environ, "AI_GATEWAY_RELEASE": str(tmp_path / "release"), "PATH": before_path(tmp_path / "bin")}
    program(tmp_path / "bin/systemd-run", 'echo "$@"')
    check = [SYSTEMD / "ai-gateway", "check", "./file.yaml"]
    said = subprocess.run(check, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=30, check=True)
    assert f"-c {tmp_path.resolve()}/file.yaml " in said.stdout


@pytest.mark.parametrize(
    ("words", "run"),
    [
        ([], "-c /etc/ai-gateway/config.yaml --check-providers"),
        (["--try", "./file.yaml", "--json"], "-c {here}/file.yaml --check-providers --try --json"),
    ],
)
def test_d4_an_installed_service_can_check_its_providers(tmp_path, words, run):
    program(tmp_path / "release/venv/bin/twistd", 'echo "$@"')
    environ = {**os.environ, "AI_GATEWAY_RELEASE": str(tmp_path / "release"), "PATH": before_path(tmp_path / "bin")}
    program(tmp_path / "bin/systemd-run", 'echo "$@"')
    command = [SYSTEMD / "ai-gateway", "check-providers", *words]
    said = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=30, check=True)
    assert said.stdout.strip().endswith(f"aigw {run.format(here=tmp_path.resolve())}")


def test_d4b_an_installed_service_can_explain_a_request(tmp_path):
    program(tmp_path / "release/venv/bin/twistd", 'echo "$@" && cat')
    environ = {**os.environ, "AI_GATEWAY_RELEASE": str(tmp_path / "release"), "PATH": before_path(tmp_path / "bin")}
    program(tmp_path / "bin/systemd-run", 'echo "$@" && cat')
    (tmp_path / "r.json").write_text("{the request}")
    for words, options in [(["r.json"], ""), (["--json", "r.json"], " --json")]:
        command = [SYSTEMD / "ai-gateway", "explain", *words]
        said = subprocess.run(
            command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=30, check=True
        )
        assert said.stdout.endswith(f"aigw -c /etc/ai-gateway/config.yaml --explain -{options}{{the request}}")
    without = subprocess.run(
        command[:2], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=30, check=False
    )
    assert (without.returncode, "needs the file of a request" in without.stderr) == (64, True)


def test_d4_the_installed_command_refuses_what_the_check_does_not_know(tmp_path):
    command = [SYSTEMD / "ai-gateway", "check-providers", "--tray"]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False)
    assert (said.returncode, "not --tray" in said.stderr) == (64, True)


@pytest.mark.parametrize(
    ("beside", "environ", "says"),
    [
        (f"{EMPTY}  a.tar.gz\n", {}, ""),
        (f"{EMPTY.upper()}", {}, ""),
        (None, {"SHA256": EMPTY}, ""),
        (f"{'0' * 64}  a.tar.gz\n", {"SHA256": EMPTY}, ""),
        (None, {}, "a.tar.gz is not installed: its hash is unknown; copy a.tar.gz.sha256"),
        (f"{'0' * 64}  a.tar.gz\n", {}, f"a.tar.gz is not installed: its SHA-256 is {EMPTY} instead of {'0' * 64}"),
        (None, {"SHA256": "1" * 64}, f"instead of {'1' * 64}"),
        ("", {}, "a.tar.gz is not installed: the hash (empty) is wrong; write 64 hexadecimal digits"),
        (
            f"{EMPTY}",
            {"SHA256": "soon"},
            "a.tar.gz is not installed: the hash soon is wrong; write 64 hexadecimal digits",
        ),
    ],
)
@pytest.mark.parametrize("what", ["payload a.tar.gz", "cmd_deploy a.tar.gz"])
def test_an_artefact_is_taken_only_with_its_hash(tmp_path, what, beside, environ, says):
    (tmp_path / "a.tar.gz").touch()
    if beside is not None:
        (tmp_path / "a.tar.gz.sha256").write_text(beside)
    stubs = "tar() { echo unpacked; exit 3; }; ssh() { printf 'ok root\\n3.11 x86_64\\n'; };"
    stubs += " scp() { echo copied; exit 3; };"
    done = part(tmp_path, f"{stubs} {what}", SSH_HOST="h", **environ)
    assert ("unpacked" in done.stdout or "copied" in done.stdout) == (says == ""), done.stderr
    assert says in done.stderr
    assert done.returncode == (1 if says else 3)


def test_what_is_unpacked_is_the_copy_that_was_verified(tmp_path):
    """FILE may be in a folder that others write to, and be another a moment later."""
    (tmp_path / "a.tar.gz").touch()
    script = 'tar() { echo "$4" "$TMP"; exit 3; }; payload a.tar.gz'
    unpacked, ours = part(tmp_path, script, SHA256=EMPTY).stdout.split()
    assert unpacked == f"{ours}/artefact.tar.gz"


FIRST_FILES = "systemd-sysusers() { :; }; systemd-tmpfiles() { :; }; first_files"


def test_a_key_that_could_not_be_made_up_is_made_up_the_next_time(tmp_path):
    key = tmp_path / "etc/keys/GATEWAY_API_KEY"
    key.parent.mkdir(parents=True)
    (tmp_path / "etc/config.yaml").write_text("api_key: ${GATEWAY_API_KEY}\n")
    assert part(tmp_path, FIRST_FILES, python="/bin/false").returncode != 0
    assert not key.exists()
    key.touch()
    assert part(tmp_path, FIRST_FILES).returncode == 0
    made = key.read_text()
    assert len(made) > 40
    assert key.stat().st_mode & 0o777 == 0o600
    assert part(tmp_path, FIRST_FILES).returncode == 0
    assert key.read_text() == made


@pytest.mark.parametrize(("port", "warned"), [("8443", True), ("443", False)])
def test_a_port_for_a_service_that_runs_on_another_is_told_to_be_ignored(tmp_path, port, warned):
    (tmp_path / "ai-gateway.service").touch()
    nothing = "need_root need_systemd payload install_release first_files replace"
    script = f'for each in {nothing}; do eval "$each() {{ :; }}"; done; running() {{ echo ai-gateway.service; }};'
    done = part(
        tmp_path, f"{script} state() {{ echo '[::]:443 (Stream)'; }}; cmd_install_service", PORT=port, CONFIG=""
    )
    assert done.returncode == 0, done.stderr
    assert ("PORT is ignored" in done.stderr) == warned


@pytest.mark.parametrize("host", ["::1", "[::1]", "example.com"])
def test_deploy_writes_the_host_as_ssh_and_scp_each_want_it(tmp_path, host):
    log = tmp_path / "log"
    program(
        tmp_path / "bin/ssh",
        f"""echo "ssh $*" >> {log}
        case "$*" in *mktemp*) echo /folder ;; *ensurepip*) printf 'ok root\\n3.11 x86_64\\n' ;; esac""",
    )
    program(tmp_path / "bin/scp", f'echo "scp $*" >> {log}')
    (tmp_path / "artefact").touch()
    (tmp_path / "artefact.sha256").write_text(f"{EMPTY}  artefact\n")
    environ = {**os.environ, "PATH": before_path(tmp_path / "bin"), "SSH_HOST": host, "READY_URL": "http://h:1/r?a&b"}
    done = subprocess.run(
        [INSTALL, "deploy", tmp_path / "artefact"], env=environ, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    bare = host.strip("[]")
    said = log.read_text()
    assert f"root@{bare} umask" in said
    assert f" root@{f'[{bare}]' if ':' in bare else bare}:/folder/artefact.tar.gz" in said
    assert r"READY_URL=http://h:1/r\?a\&b ./install.sh install-service" in said
    assert f"echo '{EMPTY}  artefact.tar.gz' | sha256sum --quiet -c - &&\n    tar " in said, (
        "there it is verified again"
    )
