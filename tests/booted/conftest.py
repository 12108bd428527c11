"""Machines with the gateway on them, and what the tests do to them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.booted import machine as machines
from tests.booted.machine import Machine, patient

ROOT = Path(__file__).parent.parent.parent
INSTALL = ROOT / "contrib" / "systemd" / "install.sh"
ETC = "/etc/ai-gateway"
CONFIG = f"""
api_key: ${{GATEWAY_API_KEY}}
tls: {{cert_file: {ETC}/tls/fullchain.pem, key_file: {ETC}/tls/privkey.pem}}
providers:
  - {{name: p, base_url: "http://127.0.0.1:9000/v1"}}
routes:
  - {{name: r, steps: [{{provider: p, model: m}}]}}
"""
SERVICE = "ai-gateway.service"


def pytest_collection_modifyitems(items):
    """All of this folder is for ``pytest -m systemd``."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.systemd)


def checkout(folder: Path) -> Path:
    """A copy of what git has."""
    names = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for name in names:
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
            (folder / name).chmod((ROOT / name).stat().st_mode)
    return folder


def variant(
    artefact: Path, folder: Path, ident: str, module: str = "__init__", edit: tuple[str, str] = ("$", "")
) -> Path:
    """The artefact as another release, with one module of aigw edited: what `build` would make of that source."""
    folder.mkdir()
    with tarfile.open(artefact) as tar:
        tar.extractall(folder)
    (unpacked,) = folder.iterdir()
    release = unpacked.rename(folder / f"ai-gateway-{ident}")
    (release / "ID").write_text(f"{ident}\n")
    (wheel,) = (release / "wheels").glob("aigw-*.whl")
    with zipfile.ZipFile(wheel) as before:
        files = {name: before.read(name) for name in before.namelist()}
    name = f"aigw/{module}.py"
    text, count = re.subn(*edit, files[name].decode(), count=1)
    assert count, (module, edit)
    files[name] = text.encode()
    with zipfile.ZipFile(wheel, "w") as after:
        for name, data in files.items():
            after.writestr(name, data)
    made = folder / f"{release.name}.tar.gz"
    with tarfile.open(made, "w:gz", compresslevel=1) as tar:
        tar.add(release, release.name)
    Path(f"{made}.sha256").write_text(f"{hashlib.sha256(made.read_bytes()).hexdigest()}  {made.name}\n")
    return made


def build(folder: Path) -> Path:
    """The artefact of a checkout."""
    command = [folder / "contrib" / "systemd" / "install.sh", "build"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=patient(300), check=False)
    assert done.returncode == 0, done.stderr
    return Path(re.search(r"→ made (\S+)", done.stdout)[1])


@pytest.fixture(scope="session")
def artefact(tmp_path_factory):
    return build(checkout(tmp_path_factory.mktemp("checkout")))


@pytest.fixture(scope="session")
def boot(tmp_path_factory):
    """Boots a machine; all of them are halted at the end."""
    lacks = machines.missing()
    if lacks:
        pytest.skip(lacks)
    running = []

    def boot() -> Machine:
        running.append(Machine(tmp_path_factory.mktemp("machine")))
        return running[-1]

    yield boot
    for machine in running:
        machine.stop()


class Served:
    """A machine with the gateway installed, and a provider behind it."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        command = machine.client(sys.executable, "-m", "tests.booted.provider", "9000")
        self.provider = subprocess.Popen(command, cwd=ROOT)

    @property
    def key(self) -> str:
        return self.machine.sh(f"cat {ETC}/keys/GATEWAY_API_KEY")

    @contextmanager
    def load(self, **plan):
        """Clients at work meanwhile; gives a dict that has their tallies when all is over.

        The rates are those of an idle machine: with less of a core there are fewer requests, not more that wait.
        """
        plan.update({kind: plan[kind] / patient(1) for kind in ("fresh", "kept") if kind in plan})
        command = self.machine.client(sys.executable, "-m", "tests.booted.load", json.dumps({"key": self.key, **plan}))
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        tallies = {}
        try:
            assert process.stdout.readline() == "going\n", process.stderr.read()
            yield tallies
            out, err = process.communicate(timeout=patient(180))
            assert process.returncode == 0, err
            tallies.update(json.loads(out))
            print(json.dumps(tallies))  # shown by pytest -s, and where a test fails
        finally:
            if process.poll() is None:
                process.kill()
                process.communicate()

    def curl(self, path: str, *options: str) -> str:
        return self.machine.run("curl", "-ksS", "-m", "30", *options, f"https://127.0.0.1{path}").stdout

    def healthy(self) -> bool:
        done = self.machine.run("curl", "-ksSf", "-m", f"{patient(1):.1f}", "https://127.0.0.1/health", check=False)
        return done.stdout == '{"status": "healthy"}'

    def serial(self) -> str:
        """Of the certificate that is served."""
        served = "openssl s_client -connect 127.0.0.1:443 </dev/null 2>/dev/null | openssl x509 -noout -serial"
        return self.machine.sh(served)

    def new_certificate(self, folder: str = f"{ETC}/tls") -> str:
        """Written there; its serial."""
        self.machine.sh(
            f"mkdir -p {folder} && cd {folder} && umask 077 && openssl req -x509 -newkey ec -pkeyopt "
            "ec_paramgen_curve:prime256v1 -nodes -days 30 -subj /CN=new -keyout k -out c 2>/dev/null && "
            "if [ -e fullchain.pem ]; then cat c > fullchain.pem; cat k > privkey.pem; rm c k; "
            "else mv c fullchain.pem; mv k privkey.pem; fi"
        )
        return self.machine.sh(f"openssl x509 -noout -serial -in {folder}/fullchain.pem")

    def configure(self, text: str = CONFIG) -> None:
        self.machine.write(f"{ETC}/config.yaml", text, "0600", "ai-gateway:ai-gateway")

    def pid(self, unit: str = SERVICE) -> int:
        return int(self.machine.show(unit, "MainPID"))

    def close(self) -> None:
        self.provider.kill()
        self.provider.wait()


class Watch:
    """Asks for /health all the time; what was not answered by 200 within 2 seconds of an idle machine is in ``failures``."""

    def __init__(self, served):
        self._served = served
        self._over = threading.Event()
        self.failures, self.asked, self.slowest = [], 0, 0.0
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()
        print(f"/health: asked {self.asked} times, slowest {self.slowest:.2f} s, failures: {self.failures}")

    def _ask(self):
        while not self._over.wait(0.05):
            limit = f"{patient(2):.1f}"
            command = self._served.machine.client("curl", "-ksSf", "-m", limit, "https://127.0.0.1/health")
            started = time.monotonic()
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            self.asked += 1
            self.slowest = max(self.slowest, time.monotonic() - started)
            if done.stdout != '{"status": "healthy"}':
                self.failures.append(done.stdout + done.stderr)


def put(machine: Machine, artefact: Path, path: str) -> None:
    """With its hash, without which it is not installed."""
    machine.put(artefact, path)
    machine.put(Path(f"{artefact}.sha256"), f"{path}.sha256")


def unpack(machine: Machine, artefact: Path) -> str:
    """Where its install.sh is then."""
    machine.put(artefact, "/root/artefact.tar.gz")
    return machine.sh(
        "cd /root && tar -xzf artefact.tar.gz && echo /root/$(tar -tzf artefact.tar.gz | head -1)install.sh"
    )


@pytest.fixture(scope="session")
def installed(boot, artefact):
    """The one machine of most tests, with what install-service said."""
    machine = boot()
    installer = unpack(machine, artefact)
    machine.write("/root/config.yaml", CONFIG)
    said = machine.run("env", "CONFIG=/root/config.yaml", installer, "install-service", timeout=200).stdout
    served = Served(machine)
    served.installer, served.said = installer, said
    yield served
    served.close()


@pytest.fixture
def served(installed):
    """The same, put in order where a test before left it otherwise."""
    installed.configure()
    installed.machine.run("systemctl", "start", "ai-gateway.socket", SERVICE)
    assert installed.healthy()
    return installed


def environment(**more: str) -> dict[str, str]:
    """That of this process, and ``more``."""
    return {**os.environ, **more}
