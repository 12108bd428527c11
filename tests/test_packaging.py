"""The wheel: what is in it, and that it runs where nothing else of ours is."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import zipfile
from itertools import islice
from pathlib import Path

import pytest

from aigw import __version__
from tests.test_daemon import CONFIG, KEYS, NOBODY

ROOT = Path(__file__).parent.parent


def built(folder: Path, *options: str) -> Path:
    """A wheel of a copy of what git has, as a release would be."""
    tracked = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    source = folder / "source"
    for name in tracked.stdout.splitlines():
        if (ROOT / name).exists():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run(
        [sys.executable, "-m", "build", "-q", "--wheel", *options, "-o", folder, source], check=True, timeout=120
    )
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """By the setuptools of this environment: to make one for a build takes longer than the build."""
    return built(tmp_path_factory.mktemp("wheel"), "--no-isolation")


def test_the_wheel_holds_exactly_our_package_and_the_plugin(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    paths = (path for path in (ROOT / "aigw").rglob("*") if path.suffix in (".py", ".typed", ".html"))
    ours = {path.relative_to(ROOT).as_posix() for path in paths}
    assert names == ours | {"twisted/plugins/aigw_plugin.py"}


def test_the_page_of_the_package_leads_to_no_file_of_the_repository(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        page = archive.read(name).decode().partition("\n\n")[2]
    assert page.startswith("# AI Gateway")
    assert [target for target in re.findall(r"\]\(([^)]*)\)", page) if not target.startswith("https://")] == []


def test_the_wheel_has_the_command_and_the_version(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (folder,) = {name.partition("/")[0] for name in archive.namelist() if ".dist-info/" in name}
        points = archive.read(f"{folder}/entry_points.txt").decode()
        metadata = archive.read(f"{folder}/METADATA").decode()
    assert points.split() == ["[console_scripts]", "aigw", "=", "aigw.command:main"]
    assert f"\nVersion: {__version__}\n" in metadata


@pytest.fixture(scope="module")
def environment():
    """A folder, which others may read, with an environment in which the wheel is installed, and nothing has run yet."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True, timeout=180)
        subprocess.run([folder / "venv/bin/pip", "install", "-q", built(folder)], check=True, timeout=400)
        yield folder


@pytest.mark.slow
def test_v2_the_demo_of_the_readme_starts_where_no_cache_of_plugins_is_and_none_can_be_written(environment):
    (line,) = re.findall(r"(?s)<!-- demo -->\n```sh\n(.*?)\n```", (ROOT / "README.md").read_text())
    command = line.rpartition(" && ")[2].replace(".venv", str(environment / "venv")).split()
    assert not [*environment.rglob("dropin.cache")]
    if os.geteuid() == 0:
        command[:0] = NOBODY
    subprocess.run(["chmod", "-R", "a-w", environment / "venv/lib"], check=True, timeout=60)
    try:
        with subprocess.Popen(command, cwd="/", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as demo:
            assert demo.stdout
            printed = "".join(islice(demo.stdout, 4))
            demo.send_signal(signal.SIGINT)
            printed += demo.communicate(timeout=60)[0]
    finally:
        subprocess.run(["chmod", "-R", "u+w", environment / "venv/lib"], check=True, timeout=60)
    assert "The gateway has started" in printed
    assert "LeanReactor" in printed
    assert '"level":"ERROR"' not in printed
    assert not [*environment.rglob("dropin.cache")]


@pytest.mark.slow
def test_it_installs_into_a_fresh_environment_and_twistd_knows_it(environment):
    run = {"capture_output": True, "text": True, "cwd": environment, "timeout": 60, "check": True}
    done = subprocess.run([environment / "venv/bin/twistd", "aigw", "--help"], **run)
    assert "--check-config" in done.stdout
    assert "--demo" in done.stdout
    done = subprocess.run([environment / "venv/bin/twistd", "aigw", "--version"], **run)
    version = re.search(r'__version__ = "(.+)"', (ROOT / "aigw/__init__.py").read_text())[1]
    assert done.stdout == f"aigw {version}\n"
    assert subprocess.run([environment / "venv/bin/aigw", "--version"], **run).stdout == f"aigw {version}\n"
    (environment / "config.yaml").write_text(CONFIG)
    (environment / "config.yaml").chmod(0o600)
    done = subprocess.run([environment / "venv/bin/aigw", "check"], env=KEYS, **run)
    assert done.stdout.endswith("The configuration is good.\n")
    # As CONTRIBUTING.md has it: the plugin is found in the folder of the source.
    editable = [environment / "venv/bin/pip", "install", "-q", "--no-deps", "-e", environment / "source"]
    subprocess.run(editable, check=True, timeout=400)
    assert subprocess.run([environment / "venv/bin/aigw", "--version"], **run).stdout == f"aigw {version}\n"
