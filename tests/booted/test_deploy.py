"""`install.sh deploy` to a booted machine over a real sshd: from nothing, as an upgrade, with a version that does not work.

The tests are the life of one machine, in the order in which they stand.
"""

from __future__ import annotations

import json
import re
import subprocess

import pytest

from tests.booted.conftest import (
    CONFIG,
    ETC,
    INSTALL,
    SERVICE,
    Served,
    Watch,
    checkout,
    environment,
    unpack,
    variant,
)
from tests.booted.machine import Forward, patient
from tests.booted.test_service import failed

BROKEN = "raise RuntimeError('deliberately broken')"


@pytest.fixture(scope="module")
def server(boot, tmp_path_factory):
    """A machine with nothing but sshd, which root and `deploy` (by sudo) can log in to, and a way to it."""
    machine = boot()
    folder = tmp_path_factory.mktemp("ssh")
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "key"], check=True)
    public = (folder / "key.pub").read_text()
    machine.sh("useradd -m -s /bin/bash deploy && echo 'deploy ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/deploy")
    machine.write("/root/.ssh/authorized_keys", public, "0600")
    machine.write("/home/deploy/.ssh/authorized_keys", public, "0600", "deploy:deploy")
    forward = Forward(machine, 22)
    options = f"-F none -o StrictHostKeyChecking=accept-new -o UserKnownHostsFile={folder}/known_hosts"
    served = Served(machine)
    served.ssh = {
        "SSH_HOST": "127.0.0.1",
        "SSH_PORT": str(forward.port),
        "SSH_KEY": str(folder / "key"),
        "SSH_OPTS": options,
    }
    yield served
    served.close()
    forward.close()


def deploy(served, *arguments, installer=INSTALL, **more):
    command = [installer, "deploy", *arguments]
    done = subprocess.run(
        command,
        env=environment(**served.ssh, **more),
        capture_output=True,
        text=True,
        timeout=patient(400),
        check=False,
    )
    print(done.stdout, done.stderr)
    return done


def running(served, unit=SERVICE):
    """The release that a unit runs."""
    return served.machine.sh(f"tr '\\0' '\\n' < /proc/{served.pid(unit)}/cmdline | head -1").split("/")[4]


def test_deploy_from_nothing_then_an_upgrade_then_a_broken_version(server, tmp_path):
    machine = server.machine
    (tmp_path / "config.yaml").write_text(CONFIG)
    source = checkout(tmp_path / "checkout")
    installer = source / "contrib" / "systemd" / "install.sh"
    done = deploy(server, installer=installer, CONFIG=str(tmp_path / "config.yaml"))
    assert done.returncode == 0
    assert machine.show(SERVICE, "ActiveState") == "active"
    (server.artefact,) = (source / "dist").glob("*.tar.gz")
    assert running(server) == server.artefact.name.removeprefix("ai-gateway-").removesuffix(".tar.gz")
    assert machine.sh(f"cat {ETC}/config.yaml") == CONFIG.strip()

    key = server.key
    with Watch(server) as watch, server.load(fresh=20, kept=10, streams=3, events=10, every=0.3) as tallies:
        good = variant(server.artefact, tmp_path / "two", "2.0.0-two")
        done = deploy(server, good, CONFIG=str(tmp_path / "config.yaml"))
        assert done.returncode == 0
        assert "CONFIG is ignored" in done.stderr
    assert running(server) == "2.0.0-two"
    assert server.key == key
    assert not watch.failures
    assert not failed(tallies)

    pid = server.pid()
    with Watch(server) as watch, server.load(fresh=20, kept=10, streams=3, events=10, every=0.3) as tallies:
        edit = (r'(?m)^        """Start the timers, and notify systemd."""$', f"        {BROKEN}")
        broken = variant(server.artefact, tmp_path / "three", "3.0.0-three", "daemon/service", edit)
        done = deploy(server, broken)
        assert done.returncode != 0
        assert "deliberately broken" in done.stderr
        assert "release 3.0.0-three was not installed; release 2.0.0-two is running" in done.stderr
    assert (running(server), server.pid()) == ("2.0.0-two", pid), "the one that serves was never touched"
    assert "2.0.0" in machine.sh("readlink /opt/ai-gateway/current")
    assert machine.show("ai-gateway@upgrade.service", "ActiveState") == "inactive"
    assert not watch.failures
    assert not failed(tallies)


def test_deploy_with_instances_rolls_them_and_goes_back(server, tmp_path):
    machine = server.machine
    one, two = "ai-gateway@1.service", "ai-gateway@2.service"
    machine.run("env", "INSTANCES=2", "/opt/ai-gateway/current/install.sh", "install-service", timeout=200)
    assert machine.show(SERVICE, "ActiveState") == "inactive"
    with Watch(server) as watch:
        hangs = variant(server.artefact, tmp_path / "four", "4.0.0-four", "daemon/systemd", (r'"READY=1", ', ""))
        done = deploy(server, hangs)
        assert done.returncode != 0
        assert "release 4.0.0-four was not installed; release 2.0.0-two is running" in done.stderr
        assert [machine.show(unit, "ActiveState") for unit in (one, two)] == ["active"] * 2
        done = deploy(server, variant(server.artefact, tmp_path / "five", "5.0.0-five"), SSH_USER="deploy")
        assert done.returncode == 0
    assert not watch.failures
    assert [running(server, unit) for unit in (one, two)] == ["5.0.0-five"] * 2
    assert machine.show(SERVICE, "ActiveState") == "inactive"


def test_rollback_goes_back_and_only_three_releases_are_kept(server, tmp_path):
    machine = server.machine
    assert len(machine.sh("ls /opt/ai-gateway/releases").split()) <= 4
    with Watch(server) as watch:
        said = machine.run("/opt/ai-gateway/current/install.sh", "rollback", timeout=200).stdout
    assert "is running" in said
    assert not watch.failures
    assert "2.0.0" in machine.sh("readlink /opt/ai-gateway/current")


def test_uninstall_keeps_the_configuration_unless_asked(server):
    machine = server.machine
    machine.run("cp", "/opt/ai-gateway/current/install.sh", "/root/install.sh")
    for _ in range(2):
        machine.run("/root/install.sh", "uninstall")
    assert machine.sh("systemctl list-units --all --no-legend 'ai-gateway*'") == ""
    assert machine.sh("ls /opt /usr/local/bin /usr/local/lib/systemd/system").count("ai-gateway") == 0
    assert machine.sh(f"ls {ETC}").split() == ["config.yaml", "keys", "tls"]
    for _ in range(2):
        machine.run("/root/install.sh", "uninstall", "--purge")
    assert machine.run("ls", ETC, check=False).returncode != 0
    assert machine.run("id", "ai-gateway", check=False).returncode != 0


def test_without_a_configuration_it_starts_with_one_of_its_own_on_the_port_that_was_asked_for(server, artefact):
    machine = server.machine
    installer = unpack(machine, artefact)
    proxies = ["http_proxy=http://127.0.0.1:1", "https_proxy=http://127.0.0.1:1"]  # what root may have set for apt
    machine.run("env", *proxies, "PORT=8443", installer, "install-service", timeout=200)
    ready = machine.sh(f"curl -sS --cacert {ETC}/tls/fullchain.pem https://127.0.0.1:8443/ready")
    assert json.loads(ready) == {"status": "ready", "pid": server.pid()}
    assert "The configuration is good" in machine.run("ai-gateway", "check").stdout


def test_plain_http_on_loopback_is_asked_for_readiness_as_such(server, artefact):
    machine = server.machine
    machine.run("systemctl", "stop", "ai-gateway.socket", SERVICE)
    dropin = "[Socket]\nListenStream=\nListenStream=127.0.0.1:8080\n"
    machine.write("/etc/systemd/system/ai-gateway.socket.d/port.conf", dropin)
    server.configure(re.sub(r"(?m)^tls: .*$", "", CONFIG))
    machine.run(unpack(machine, artefact), "install-service", timeout=200)
    assert json.loads(machine.sh("curl -sS http://127.0.0.1:8080/ready")) == {"status": "ready", "pid": server.pid()}
