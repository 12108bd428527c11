"""contrib/systemd without systemd: what the units promise, and what install.sh says. tests/booted/ has the rest."""

from __future__ import annotations

import ast
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from msgspec.structs import fields
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from aigw.config.model import Config
from aigw.tap import EX_CONFIG, EX_USAGE

ROOT = Path(__file__).parent.parent
SYSTEMD = ROOT / "contrib" / "systemd"
INSTALL = SYSTEMD / "install.sh"


def install(*arguments, **environ):
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SSH_")}
    environ = {**inherited, **environ}
    return subprocess.run([INSTALL, *arguments], capture_output=True, text=True, timeout=120, env=environ, check=False)


def hash_of(file):
    return hashlib.sha256(file.read_bytes()).hexdigest()


def settings(unit):
    """``Name=value`` lines of a unit, in order, without comments."""
    lines = (SYSTEMD / unit).read_text().splitlines()
    return [tuple(line.split("=", 1)) for line in lines if "=" in line and not line.startswith("#")]


def test_help_tells_every_command():
    said = install("help")
    assert said.returncode == 0
    commands = "build install install-service upgrade rollback reload restart deploy uninstall test test-coverage help"
    commands = commands.split()
    assert [name for name in commands if not re.search(rf"^  {name}\b", said.stdout, re.M)] == []
    assert install().stdout == said.stdout


@pytest.mark.parametrize(
    ("arguments", "environ", "code", "says"),
    [
        (["depoy"], {}, 2, "unknown command: depoy"),
        (["deploy"], {}, 1, "SSH_HOST is not set"),
        (["deploy"], {"SSH_HOST": "h", "SSH_KEY": "/nonexistent"}, 1, "SSH_KEY: /nonexistent: no such file"),
        (["deploy"], {"SSH_HOST": "h", "CONFIG": "/nonexistent"}, 1, "CONFIG: /nonexistent: no such file"),
        (["deploy", "/nonexistent"], {"SSH_HOST": "h"}, 1, "/nonexistent: no such file"),
        (["deploy"], {"SSH_HOST": "127.0.0.1", "SSH_PORT": "1"}, 1, "ssh cannot log in to root@127.0.0.1"),
        (["uninstall", "--everything"], {}, 1, "uninstall takes only the option --purge"),
        (["build", "a", "b"], {}, 1, "there are too many arguments"),
        (["build"], {"PYTHON": "python0"}, 1, "python0 is not installed"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(arguments, environ, code, says):
    if environ.get("SSH_PORT") and not shutil.which("ssh"):
        says = "ssh is not installed"
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
    done = install("install", str(tmp_path / "a.tar.gz"), SHA256=hash_of(tmp_path / "a.tar.gz"))
    assert done.returncode == 1
    says = "release 1.0.0-test is for Python 2.7 vax" if os.geteuid() == 0 else "install needs root"
    assert f"install.sh: {says}" in done.stderr
    assert not Path("/opt/ai-gateway/releases/1.0.0-test").exists()


def test_the_template_is_the_service_but_for_its_name_and_its_sockets():
    service, template = settings("ai-gateway.service"), settings("ai-gateway@.service")
    differ = {"Description", "Sockets", "ExecStartPre", "ExecStopPost", "Environment"}
    assert {name for name, _ in set(service) ^ set(template)} == differ
    (stop,) = (value for name, value in service if name == "ExecStopPost")
    assert ("ExecStopPost", stop.replace("ai-gateway.socket", "ai-gateway@%i.socket")) in template
    assert ("Environment", "AIGW_INSTANCE=%i") in template
    assert ("Environment", "AIGW_ADMIN=unix:/run/aigw/admin.sock") in service
    assert ("Environment", "AIGW_ADMIN=unix:/run/aigw/%i.sock") in template
    assert {("RuntimeDirectory", "aigw"), ("RuntimeDirectoryPreserve", "yes")} < set(service)
    assert [each for each in service if each in template] == [each for each in template if each in service]


def test_y1_the_socket_of_an_instance_is_that_of_one_process_but_for_the_port_that_it_shares():
    one, several = settings("ai-gateway.socket"), settings("ai-gateway@.socket")
    assert set(several) - set(one) == {
        ("Description", "AI Gateway: the HTTPS socket of instance %i"),
        ("ReusePort", "yes"),
    }
    assert set(one) - set(several) == {("Description", "AI Gateway: the HTTPS socket")}
    assert ("Sockets", "ai-gateway@%i.socket") in settings("ai-gateway@.service")
    assert ("Sockets", "ai-gateway.socket") in settings("ai-gateway.service"), "one process is as it was"


def test_d3_the_units_give_what_the_daemon_needs():
    unit = dict(settings("ai-gateway.service"))
    assert "MemoryDenyWriteExecute" not in unit, "it kills pyOpenSSL"
    assert (unit["Type"], unit["NotifyAccess"]) == ("notify", "main")
    assert unit["NonBlocking"] == "yes", "or a starting instance makes the shared socket block the others"
    assert unit["RestartPreventExitStatus"] == f"{EX_USAGE} {EX_CONFIG}"
    for status in (EX_USAGE, EX_CONFIG):
        assert f'"$EXIT_STATUS" = {status} ' in unit["ExecStopPost"]
    drain = next(field.default for field in fields(Config) if field.name == "drain")
    assert float(unit["TimeoutStopSec"].rstrip("s")) > drain + 5
    seconds = [float(unit[name].rstrip("s")) for name in ("WatchdogSec", "TimeoutAbortSec", "RestartSec")]
    assert sum(seconds) < 30, "a hung gateway is back within 35 s"
    assert unit["User"] == "ai-gateway"
    assert unit["LimitCORE"] == "0", "a core file would hold the keys"


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
    assert [line.split(": ")[1] for line in mistakes] == ["tls.cert_file", "tls.key_file"]
    assert all(re.match(r"  .*config.yaml, line \d+: ", line) for line in mistakes)


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
def test_shellcheck_finds_nothing():
    scripts = [INSTALL, *(SYSTEMD / name for name in ("ai-gateway", "certbot-deploy-hook", "reload"))]
    done = subprocess.run(["shellcheck", *scripts], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == ""
    assert all(os.access(script, os.X_OK) for script in scripts)


def pinned(file):
    """What a file of requirements pins for this Python, by name."""
    found = {}
    for each in re.split(r"\n(?=\S)", re.sub(r"(?m)^#.*\n", "", file.read_text()).strip()):
        requirement = Requirement(each.partition(" \\\n")[0])
        (pin,) = requirement.specifier
        assert pin.operator == "=="
        assert len(re.findall(r"--hash=sha256:[0-9a-f]{64}\b", each)) > 0
        if requirement.marker is None or requirement.marker.evaluate():
            found[canonicalize_name(requirement.name)] = Version(pin.version)
    return found


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-build.txt"])
def test_the_artefact_is_made_of_what_is_pinned_by_hash_wherever_that_comes_from(name):
    assert pinned(SYSTEMD / name)
    assert not re.search(r"://|--(?:extra-)?index-url|--find-links|--trusted-host", (SYSTEMD / name).read_text())


def test_what_is_pinned_is_all_that_setup_py_wants():
    """A new requirement, or a new bound, is seen here; requirements.txt says how to make it anew."""
    (call,) = [node for node in ast.walk(ast.parse((ROOT / "setup.py").read_text())) if isinstance(node, ast.Call)
               and getattr(node.func, "id", "") == "setup"]  # fmt: skip
    (wanted,) = [ast.literal_eval(each.value) for each in call.keywords if each.arg == "install_requires"]
    pins = pinned(SYSTEMD / "requirements.txt")
    for each in map(Requirement, wanted):
        assert pins[canonicalize_name(each.name)] in each.specifier, each


def test_what_is_pinned_is_complete():
    """Each package that one of them needs, extras included, as far as it is installed here in that version."""
    pins = pinned(SYSTEMD / "requirements.txt")
    seen = 0
    for name, version in pins.items():
        try:
            here = distribution(name)
        except PackageNotFoundError:
            continue
        if Version(here.version) == version:
            needed = map(Requirement, here.requires or ())
            extra = {"extra": "tls" if name == "twisted" else ""}
            assert {
                canonicalize_name(each.name) for each in needed if not each.marker or each.marker.evaluate(extra)
            } <= set(pins)
            seen += 1
    assert seen or not pins


@pytest.mark.slow
def test_build_makes_one_file_that_holds_all_it_needs(tmp_path):
    for name in "aigw twisted conf contrib docs setup.py pyproject.toml README.md LICENSE CHANGELOG.md".split():
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    build = [tmp_path / "contrib" / "systemd" / "install.sh", "build"]
    subprocess.run(build, check=True, capture_output=True, timeout=200, env={**os.environ, "PYTHON": sys.executable})
    (artefact,) = (tmp_path / "dist").glob("*.tar.gz")
    assert Path(f"{artefact}.sha256").read_text() == f"{hash_of(artefact)}  {artefact.name}\n"
    with tarfile.open(artefact) as tar:
        tar.extractall(tmp_path / "unpacked")
    (folder,) = (tmp_path / "unpacked").iterdir()
    assert artefact.name == f"{folder.name}.tar.gz" == f"ai-gateway-{(folder / 'ID').read_text().strip()}.tar.gz"
    units = {path.name for path in SYSTEMD.iterdir()} - {"install.sh", "requirements.txt", "requirements-build.txt"}
    assert {path.name for path in (folder / "systemd").iterdir()} == units
    offline = ["--isolated", "install", "-q", "--dry-run", "--ignore-installed", "--no-index"]
    wheels = {path.name.split("-")[0].lower().replace("_", "-") for path in (folder / "wheels").iterdir()}
    assert wheels == {"aigw", *pinned(SYSTEMD / "requirements.txt")}
    pip = [sys.executable, "-m", "pip", *offline, "--find-links", folder / "wheels", "aigw"]
    subprocess.run(pip, check=True, timeout=100)
    assert not (tmp_path / "build").exists(), "it leaves no traces in the checkout"
