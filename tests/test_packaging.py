"""The wheel: what is in it, and that it runs where nothing else of ours is."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from aigw import __version__
from tests.test_daemon import CONFIG, KEYS

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


@pytest.mark.slow
def test_it_installs_into_a_fresh_environment_and_twistd_knows_it(tmp_path):
    wheel = built(tmp_path)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True, timeout=60)
    subprocess.run([tmp_path / "venv/bin/pip", "install", "-q", wheel], check=True, timeout=120)
    run = {"capture_output": True, "text": True, "cwd": tmp_path, "timeout": 30, "check": True}
    done = subprocess.run([tmp_path / "venv/bin/twistd", "aigw", "--help"], **run)
    assert "--check-config" in done.stdout
    assert "--demo" in done.stdout
    done = subprocess.run([tmp_path / "venv/bin/twistd", "aigw", "--version"], **run)
    version = re.search(r'__version__ = "(.+)"', (ROOT / "aigw/__init__.py").read_text())[1]
    assert done.stdout == f"aigw {version}\n"
    assert subprocess.run([tmp_path / "venv/bin/aigw", "--version"], **run).stdout == f"aigw {version}\n"
    (tmp_path / "config.yaml").write_text(CONFIG)
    (tmp_path / "config.yaml").chmod(0o600)
    done = subprocess.run([tmp_path / "venv/bin/aigw", "check"], env=KEYS, **run)
    assert done.stdout.endswith("The configuration is good.\n")
