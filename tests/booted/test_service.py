"""D3 on a systemd that booted: the service as `install.sh install-service` makes it."""

from __future__ import annotations

import json
import re
import subprocess
import time

from tests.booted.conftest import CONFIG, ETC, SERVICE, Watch, put, variant

BROKEN = CONFIG.replace("provider: p,", "provider: q,")


def failed(tallies):
    return [failure for kind in ("fresh", "kept", "streams") for failure in tallies[kind]["failed"]]


def test_install_service_makes_it_active_and_it_answers_over_tls(installed):
    machine = installed.machine
    assert machine.show(SERVICE, "ActiveState") == "active"
    assert machine.sh(f"curl -sS --cacert {ETC}/tls/fullchain.pem https://127.0.0.1/health") == '{"status": "healthy"}'
    ready = machine.sh(f"curl -sS --cacert {ETC}/tls/fullchain.pem https://127.0.0.1/ready")
    assert json.loads(ready) == {"status": "ready", "pid": installed.pid()}
    assert machine.run("systemctl", "is-enabled", SERVICE, "ai-gateway.socket").stdout.split() == ["enabled"] * 2
    assert machine.sh(f"ps -o user= -p {installed.pid()}") == "ai-gateway"
    modes = machine.sh(f"stat -c '%a %U:%G %n' {ETC} {ETC}/config.yaml {ETC}/tls/* {ETC}/keys {ETC}/keys/*").split("\n")
    assert modes == [
        f"750 root:ai-gateway {ETC}",
        f"600 ai-gateway:ai-gateway {ETC}/config.yaml",
        f"640 root:ai-gateway {ETC}/tls/fullchain.pem",
        f"640 root:ai-gateway {ETC}/tls/privkey.pem",
        f"700 root:root {ETC}/keys",
        f"600 root:root {ETC}/keys/GATEWAY_API_KEY",
    ]
    assert installed.key not in machine.sh(f"tr '\\0' '\\n' < /proc/{installed.pid()}/environ")
    assert "Serving" in machine.show(SERVICE, "StatusText")


def test_install_service_twice_is_harmless(served):
    before = served.machine.sh(f"sha256sum {ETC}/config.yaml {ETC}/*/*"), served.pid()
    with served.load(fresh=10) as tallies:
        said = served.machine.run(served.installer, "install-service").stdout
    assert "is running already; nothing was changed" in said
    assert (served.machine.sh(f"sha256sum {ETC}/config.yaml {ETC}/*/*"), served.pid()) == before
    assert not failed(tallies)


def test_systemd_analyze_security_is_at_most_2(served):
    for unit in (SERVICE, "ai-gateway@1.service"):
        said = served.machine.run("systemd-analyze", "security", "--no-pager", unit).stdout
        exposure = float(re.search(r"Overall exposure level for \S+: (\S+)", said)[1])
        print(unit, exposure)
        assert exposure <= 2.0


def test_systemd_finds_nothing_wrong_with_the_units(served):
    said = served.machine.run("systemd-analyze", "verify", SERVICE, "ai-gateway@1.service", "ai-gateway.socket")
    assert "ai-gateway" not in said.stdout + said.stderr


def test_the_journal_knows_the_levels(served):
    served.machine.run("systemctl", "restart", SERVICE)
    invocation = f"_SYSTEMD_INVOCATION_ID={served.machine.show(SERVICE, 'InvocationID')}"
    lines = served.machine.run("journalctl", "-q", "-o", "json", "--output-fields=PRIORITY,MESSAGE", invocation).stdout
    assert '"PRIORITY":"6"' in lines
    assert re.search(r'"MESSAGE":"\{', lines), "the prefix is the journal's, the line is JSON"
    served.curl("/v1/chat/completions", "-d", '{"model": "r", "messages": []}', "-H", f"X-Api-Key: {served.key}")
    served.configure(BROKEN)
    served.machine.run("systemctl", "reload", SERVICE, check=False)
    errors = served.machine.run("journalctl", "-q", "-o", "cat", "-p", "err", invocation).stdout
    assert "The gateway did not reload" in errors


def test_reload_with_a_new_certificate_under_load(served):
    """D1: no request fails, the new certificate is served, connections of before live on."""
    machine, pid = served.machine, served.pid()
    with served.load(fresh=30, kept=20, streams=5, events=20, every=0.3) as tallies:
        connections = len(machine.sh("ss -Htn state established sport = :443").splitlines())
        for _ in range(3):
            wanted = served.new_certificate()
            machine.run("systemctl", "reload", SERVICE)
            machine.wait_for(lambda: served.serial() == wanted, 5)  # noqa: B023
        assert connections >= 10
    assert not failed(tallies)
    assert (tallies["kept"]["told_to_close"], tallies["kept"]["found_closed"]) == (0, 0)
    assert tallies["streams"]["ok"] >= 5
    assert served.pid() == pid


def test_certbot_s_hook_renews_it(served):
    wanted = served.new_certificate("/etc/letsencrypt/live/example")
    hook = "/opt/ai-gateway/current/systemd/certbot-deploy-hook"
    with served.load(fresh=20, kept=10) as tallies:
        served.machine.run("env", "RENEWED_LINEAGE=/etc/letsencrypt/live/example", hook)
        served.machine.wait_for(lambda: served.serial() == wanted, 5)
    assert not failed(tallies)
    assert served.machine.sh(f"stat -c '%a %U:%G' {ETC}/tls/privkey.pem") == "640 root:ai-gateway"


def test_reload_with_a_broken_file_leaves_the_old_one_serving_and_says_why(served):
    machine, pid = served.machine, served.pid()
    with served.load(fresh=20, kept=10) as tallies:
        served.configure(BROKEN)
        done = machine.run("systemctl", "reload", SERVICE, check=False)
        assert done.returncode != 0
        machine.wait_for(lambda: "no provider is named 'q'" in machine.show(SERVICE, "StatusText"), 5)
        assert machine.show(SERVICE, "ActiveState") == "active"
        served.configure()
        machine.run("systemctl", "reload", SERVICE)
        machine.wait_for(lambda: "Serving" in machine.show(SERVICE, "StatusText"), 5)
    assert not failed(tallies)
    assert served.pid() == pid


def test_reload_fails_when_the_daemon_refused_for_what_only_it_can_see(served):
    """D1: a port that is taken, plain HTTP on systemd's socket: the file alone is good."""
    machine, pid = served.machine, served.pid()
    taken = f"{CONFIG}listen: ['tcp:9000:interface=127.0.0.1']\n"
    plain = re.sub(r"(?m)^tls: .*$", "", CONFIG)
    for config, says in ((taken, "9000"), (plain, "not on loopback")):
        served.configure(config)
        assert machine.run("ai-gateway", "check").returncode == 0
        for _ in range(2):
            done = machine.run("systemctl", "reload", SERVICE, check=False)
            assert done.returncode != 0
            status = machine.show(SERVICE, "StatusText")
            assert status.startswith("Not reloaded at ")
            assert says in status
        assert served.healthy()
        served.configure()
        for _ in range(2):
            machine.run("systemctl", "reload", SERVICE)
            assert "; reloaded at " in machine.show(SERVICE, "StatusText")
    assert machine.show(SERVICE, "ActiveState") == "active"
    assert served.pid() == pid


def test_a_release_that_starts_and_says_that_it_is_not_ready_is_refused_each_time(served, artefact, tmp_path):
    """The unit of before answers on the same socket, and must not answer for it. Clients notice nothing."""
    machine, pid, release = served.machine, served.pid(), served.machine.sh("readlink /opt/ai-gateway/current")
    edit = (r"if self\._drain is not None:\n +raise Draining", "if True:\n                raise Draining")
    unready = variant(artefact, tmp_path / "unready", "9.0.0-unready", "daemon/service", edit)
    put(machine, unready, "/root/unready.tar.gz")
    with Watch(served) as watch:
        for _ in range(4):
            done = machine.run(served.installer, "upgrade", "/root/unready.tar.gz", check=False, timeout=200)
            print(done.stdout, done.stderr)
            assert done.returncode != 0
            assert "HTTP Error 503" in done.stderr
            assert "does not run with release" not in done.stderr
            assert machine.show("ai-gateway@upgrade.service", "ActiveState") == "inactive"
    assert not watch.failures
    assert (served.pid(), machine.sh("readlink /opt/ai-gateway/current")) == (pid, release)


def test_restart_under_load_fails_no_request_and_a_running_stream_gets_its_last_byte(served):
    """D2, with the socket unit: who comes meanwhile waits until the stream is over and the new process is up."""
    pid = served.pid()
    with served.load(fresh=30, kept=20, streams=3, events=16, every=0.3) as tallies:
        started = time.monotonic()
        served.machine.run("systemctl", "restart", SERVICE)
        print(f"the restart took {time.monotonic() - started:.1f} s")
    assert served.pid() != pid
    assert not failed(tallies)
    assert tallies["streams"]["ok"] >= 3


def test_an_upgrade_with_a_listener_for_administrators_and_the_certificate_of_the_environment(
    served, artefact, tmp_path
):
    """Two processes cannot have that listener, so it is a restart behind the socket unit, which is asked over TLS."""
    machine = served.machine
    put(machine, variant(artefact, tmp_path / "next", "8.0.0-next"), "/root/next.tar.gz")
    served.configure(re.sub(r"(?m)^tls: .*$", "admin: 9464", CONFIG))
    files = f"TLS_CERT_FILE={ETC}/tls/fullchain.pem\nTLS_KEY_FILE={ETC}/tls/privkey.pem\n"
    machine.write(f"{ETC}/environment", files, "0600")
    with served.load(fresh=30, kept=20, streams=3, events=16, every=0.3) as tallies:
        done = machine.run(served.installer, "upgrade", "/root/next.tar.gz", timeout=200)
    print(done.stdout, done.stderr)
    assert "in addition to the running one" not in done.stdout
    assert "8.0.0-next" in machine.sh("readlink /opt/ai-gateway/current")
    assert json.loads(machine.sh("curl -sS http://127.0.0.1:9464/ready"))["pid"] == served.pid()
    assert not failed(tallies)
    served.configure()
    machine.run("rm", f"{ETC}/environment")
    machine.run("systemctl", "restart", SERVICE)
    assert served.healthy()


def test_kill_9_and_kill_stop_are_over_within_35_s(served):
    for signal in ("KILL", "STOP"):
        pid = served.pid()
        served.machine.run("kill", f"-{signal}", str(pid))
        took = served.machine.wait_for(lambda: served.pid() not in (0, pid) and served.healthy(), 35)  # noqa: B023
        print(f"back {took:.1f} s after SIG{signal}")
    assert "Fatal Python error: Aborted" in served.machine.journal(SERVICE, "--since=-1min"), "where it hung"


def test_a_bad_configuration_is_exit_78_and_no_restart_loop(served):
    """Nor do clients that knock start it again and again: they are refused until it is mended."""
    machine = served.machine
    served.configure(BROKEN)
    machine.sh("date +%s.%N > /tmp/since")
    knock = "for i in $(seq 60); do curl -ks -m 2 https://127.0.0.1/health; code=$?; sleep 0.1; done; exit $code"
    with subprocess.Popen(machine.client("sh", "-c", knock), stdout=subprocess.DEVNULL) as knocking:
        assert machine.run("systemctl", "restart", SERVICE, check=False).returncode != 0
        machine.wait_for(lambda: machine.show("ai-gateway.socket", "ActiveState") == "inactive", 10)
        assert knocking.wait(60) == 7  # "could not connect", for the last one
    assert machine.show(SERVICE, "ActiveState") == "failed"
    assert machine.show(SERVICE, "ExecMainStatus") == "78"
    assert machine.show(SERVICE, "NRestarts") == "0"
    log = machine.sh(f"journalctl -q -o cat -u {SERVICE} --since=@$(cat /tmp/since)")
    assert log.count("Starting ai-gateway.service") == 1
    assert "no provider is named 'q'" in log
    served.configure()
    machine.run("systemctl", "start", SERVICE)
    assert served.healthy()
