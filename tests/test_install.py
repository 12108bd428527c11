"""contrib/systemd without systemd: what the units promise, and what install.sh says. tests/booted/ has the rest."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from msgspec.structs import fields

from aigw.schema import FileEntry

ROOT = Path(__file__).parent.parent
SYSTEMD = ROOT / "contrib" / "systemd"
INSTALL = SYSTEMD / "install.sh"


def install(*arguments, **environ):
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SSH_")}
    environ = {**inherited, **environ}
    return subprocess.run([INSTALL, *arguments], capture_output=True, text=True, timeout=120, env=environ, check=False)


def settings(unit):
    """``Name=value`` lines of a unit, in order, without comments."""
    lines = (SYSTEMD / unit).read_text().splitlines()
    return [tuple(line.split("=", 1)) for line in lines if "=" in line and not line.startswith("#")]


def test_help_tells_every_command():
    said = install("help")
    assert said.returncode == 0
    commands = "build install install-service upgrade rollback deploy uninstall test test-coverage help".split()
    assert [name for name in commands if not re.search(rf"^  {name}\b", said.stdout, re.M)] == []
    assert install().stdout == said.stdout


@pytest.mark.parametrize(
    ("arguments", "environ", "code", "says"),
    [
        (["depoy"], {}, 2, "there is no command depoy"),
        (["deploy"], {}, 1, "SSH_HOST is not set"),
        (["deploy"], {"SSH_HOST": "h", "SSH_KEY": "/nonexistent"}, 1, "SSH_KEY: /nonexistent: no such file"),
        (["deploy"], {"SSH_HOST": "h", "CONFIG": "/nonexistent"}, 1, "CONFIG: /nonexistent: no such file"),
        (["deploy", "/nonexistent"], {"SSH_HOST": "h"}, 1, "/nonexistent: no such file"),
        (["deploy"], {"SSH_HOST": "127.0.0.1", "SSH_PORT": "1"}, 1, "cannot log in to root@127.0.0.1"),
        (["uninstall", "--everything"], {}, 1, "uninstall takes --purge or nothing"),
        (["build", "a", "b"], {}, 1, "too many arguments"),
        (["build"], {"PYTHON": "python0"}, 1, "there is no python0"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(arguments, environ, code, says):
    if environ.get("SSH_PORT") and not shutil.which("ssh"):
        says = "there is no ssh"
    done = install(*arguments, **environ)
    assert done.returncode == code
    assert f"install.sh: {says}" in done.stderr


def test_a_release_for_another_python_is_refused_before_anything_is_touched(tmp_path):
    release = tmp_path / "ai-gateway-1.0.0-test"
    (release / "wheels").mkdir(parents=True)
    (release / "ID").write_text("1.0.0-test\n")
    (release / "PLATFORM").write_text("2.7 vax\n")
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        tar.add(release, release.name)
    done = install("install", str(tmp_path / "a.tar.gz"))
    assert done.returncode == 1
    says = "release 1.0.0-test is for Python 2.7 vax" if os.geteuid() == 0 else "install needs root"
    assert f"install.sh: {says}" in done.stderr
    assert not Path("/opt/ai-gateway/releases/1.0.0-test").exists()


def test_the_template_is_the_service_but_for_its_name_and_the_door():
    service, template = settings("ai-gateway.service"), settings("ai-gateway@.service")
    assert {name for name, _ in set(service) ^ set(template)} == {"Description", "ExecStopPost"}
    assert [each for each in service if each in template] == [each for each in template if each in service]


def test_d3_the_units_give_what_the_daemon_needs():
    unit = dict(settings("ai-gateway.service"))
    assert "MemoryDenyWriteExecute" not in unit, "it kills pyOpenSSL"
    assert (unit["Type"], unit["NotifyAccess"]) == ("notify", "main")
    assert unit["NonBlocking"] == "yes", "or a starting instance makes the shared socket block the others"
    assert unit["RestartPreventExitStatus"] == "78"
    drain = next(field.default for field in fields(FileEntry) if field.name == "drain")
    assert float(unit["TimeoutStopSec"].rstrip("s")) > drain + 5
    seconds = [float(unit[name].rstrip("s")) for name in ("WatchdogSec", "TimeoutAbortSec", "RestartSec")]
    assert sum(seconds) < 30, "a hung gateway is back within 35 s"
    assert unit["User"] == "ai-gateway"


def test_the_first_configuration_is_good_but_for_its_certificate(tmp_path):
    shutil.copy(SYSTEMD / "config.yaml", tmp_path)
    (tmp_path / "config.yaml").chmod(0o600)
    command = [sys.executable, "-c", "from twisted.scripts.twistd import run; run()", "-n", "--pidfile=", "aigw"]
    environ = {**os.environ, "GATEWAY_API_KEY": "some-long-key-0987", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "-c", tmp_path / "config.yaml", "--check-config"],
        capture_output=True,
        text=True,
        env=environ,
        timeout=30,
        check=False,
    )
    mistakes = done.stderr.splitlines()[1:]
    assert [line.split()[0] for line in mistakes] == ["tls.cert_file:", "tls.key_file:"]


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
def test_shellcheck_finds_nothing():
    scripts = [INSTALL, *(SYSTEMD / name for name in ("ai-gateway", "certbot-deploy-hook", "reload"))]
    done = subprocess.run(["shellcheck", *scripts], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == ""
    assert all(os.access(script, os.X_OK) for script in scripts)


@pytest.mark.slow
def test_build_makes_one_file_that_holds_all_it_needs(tmp_path):
    for name in "aigw twisted conf contrib docs setup.py pyproject.toml README.md LICENSE CHANGELOG.md".split():
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    build = [tmp_path / "contrib" / "systemd" / "install.sh", "build"]
    subprocess.run(build, check=True, capture_output=True, timeout=200, env={**os.environ, "PYTHON": sys.executable})
    (artefact,) = (tmp_path / "dist").iterdir()
    with tarfile.open(artefact) as tar:
        tar.extractall(tmp_path / "unpacked")
    (folder,) = (tmp_path / "unpacked").iterdir()
    assert artefact.name == f"{folder.name}.tar.gz" == f"ai-gateway-{(folder / 'ID').read_text().strip()}.tar.gz"
    units = {path.name for path in SYSTEMD.iterdir()} - {"install.sh"}
    assert {path.name for path in (folder / "systemd").iterdir()} == units
    offline = ["--isolated", "install", "-q", "--dry-run", "--ignore-installed", "--no-index"]
    pip = [sys.executable, "-m", "pip", *offline, "--find-links", folder / "wheels", "aigw"]
    subprocess.run(pip, check=True, timeout=100)
    assert not (tmp_path / "build").exists(), "it leaves no traces in the checkout"
