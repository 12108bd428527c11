"""C7, C8, C15: what a keys_file may be, at the start and when it changes."""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from twisted.internet.task import Clock

from aigw.config import keys_file, loader
from aigw.daemon.keys_watch import KeysWatch
from aigw.errors import ConfigError
from tests.test_daemon import KEYS, Daemon
from tests.test_keys import ALICE, BOB, build, named, sha, write

ENTRY = f'{{name: alice, key_sha256: "{sha(ALICE)}"}}'
GOOD = f"keys:\n- {ENTRY}\n"
LITERAL = f"keys: [{{name: alice, key: {ALICE}}}]\n"


def lines_of_a_bomb() -> str:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"{two}: &{two} [{', '.join([f'*{one}'] * 10)}]" for one, two in zip("abcdefgh", "bcdefghi", strict=True)]
    return "\n".join([*lines, "keys: *i", ""])


def as_file(path: Path, data: str | bytes, mode: int = 0o600) -> None:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    path.chmod(mode)


def nothing(path: Path) -> None:
    """No file at all."""


#   what is there                           how it comes to be                                        the mistake
REFUSED = {
    "nothing":                              (nothing,                                                "cannot be read: No such file or directory"),
    "a folder":                             (Path.mkdir,                                             "this is a folder; name a file in keys_file"),
    "a pipe":                               (os.mkfifo,                                              "this is not a regular file; name one in keys_file"),
    "a device":                             (lambda path: path.symlink_to("/dev/zero"),              "this is not a regular file; name one in keys_file"),
    "a link to nothing":                    (lambda path: path.symlink_to("nowhere"),                "cannot be read: No such file or directory"),
    "a link to itself":                     (lambda path: path.symlink_to(path.name),                "cannot be read: Too many levels of symbolic links"),
    "too large":                            (lambda path: as_file(path, "#" * 50),                   "the file is larger than 49 bytes; remove the keys that are not used"),
    "half a line":                          (lambda path: as_file(path, GOOD[:-20]),                 "line 2: not YAML: a quote opens on this line"),
    "half an entry":                        (lambda path: as_file(path, GOOD + "- {name: bob, k"),   "line 3: not YAML: a { opens on this line"),
    "another encoding":                     (lambda path: as_file(path, GOOD.encode("utf-16")),      "line 1: the file is not UTF-8; save it in that encoding"),
    "bytes of nothing":                     (lambda path: as_file(path, GOOD + "\0" * 9),            "the file has a control character"),
    "a list":                               (lambda path: as_file(path, f"- {ENTRY}\n"),             "expected a mapping with groups, defaults, keys, not a list"),
    "two documents":                        (lambda path: as_file(path, f"{GOOD}---\n{GOOD}"),       "not YAML: but found another document"),
    "the same hash twice":                  (lambda path: as_file(path, GOOD + f'- {{name: b, key_sha256: "{sha(ALICE).upper()}"}}\n'), "line 3: keys[1]: has the same key as keys[0]"),
    "the hash of the configuration":        (lambda path: as_file(path, json.dumps({"keys": [named("bob", BOB)]})), "keys[0]: has the same key as keys[0]"),
    "a literal key that all may read":      (lambda path: as_file(path, LITERAL, 0o644),             "holds a key and is readable by every user; run: chmod 600"),
    "aliases that grow":                    (lambda path: as_file(path, lines_of_a_bomb()),          "is too large with its aliases; make it smaller"),
    "an alias of itself":                   (lambda path: as_file(path, "keys: &a [*a]\n"),          "contains itself"),
}  # fmt: skip

TAKEN = {
    "line ends of Windows": GOOD.replace("\n", "\r\n"),
    "a byte order mark": b"\xef\xbb\xbf" + GOOD.encode(),
    "no line feed at its end": GOOD.rstrip(),
    "JSON": json.dumps({"keys": [named("alice", ALICE)]}),
    "an alias": f"defaults: &d {{requests: 5/m}}\ngroups: [{{name: team, <<: *d}}]\n{GOOD}",
}


@pytest.mark.parametrize("what", REFUSED)
def test_c7_c15_what_cannot_be_read_is_one_clear_mistake_and_changes_nothing(tmp_path, monkeypatch, what):
    path = tmp_path / "keys.yaml"
    write(path, named("alice", ALICE))
    config = build(named("bob", BOB), keys_file="keys.yaml", folder=tmp_path)
    path.unlink()
    make, mistake = REFUSED[what]
    if what == "too large":
        monkeypatch.setattr(keys_file, "MAX_KEYS_FILE", 49)
    make(path)
    for read in (
        lambda: build(named("bob", BOB), keys_file="keys.yaml", folder=tmp_path),
        lambda: loader.with_callers(config, {}),
    ):
        with pytest.raises(ConfigError) as caught:
            read()
        (found,) = caught.value.mistakes
        assert found.startswith(str(path))
        assert mistake in found
        assert "-c FILE" not in found


@pytest.mark.parametrize("what", TAKEN)
def test_c7_what_may_be_written_in_several_ways_is_read(tmp_path, what):
    as_file(tmp_path / "keys.yaml", TAKEN[what])
    assert [each.name for each in build(keys_file="keys.yaml", folder=tmp_path).callers] == ["alice"]


@pytest.mark.parametrize("empty", ["", "\n", "# keys\n", "keys:\n", "defaults: {requests: 5/m}\n"])
def test_c15_a_file_that_has_become_empty_changes_nothing(tmp_path, empty):
    """It is so while it is being written, and where the disk was full."""
    path = tmp_path / "keys.yaml"
    write(path, named("alice", ALICE))
    config = build(named("bob", BOB), keys_file="keys.yaml", folder=tmp_path)
    as_file(path, empty)
    with pytest.raises(ConfigError, match=r"keys: is empty; write keys: \[\] if there are no keys"):
        loader.with_callers(config, {})
    with pytest.raises(ConfigError, match="keys: is empty"):  # a reload of all files would drop all keys too
        build(named("bob", BOB), keys_file="keys.yaml", folder=tmp_path)
    as_file(path, "keys: []\n")
    assert [each.name for each in loader.with_callers(config, {}).callers] == ["bob"]


def test_c8_c15_each_change_is_seen(tmp_path):
    """Of content, mode, place and link: a mistake is mended in each of these ways."""
    path, clock, seen = tmp_path / "keys.yaml", Clock(), []
    old, new = tmp_path / "old", tmp_path / "new"
    for folder in (old, new):
        folder.mkdir()
        as_file(folder / "keys.yaml", GOOD)
    data = tmp_path / "data"
    data.symlink_to(old)
    path.symlink_to("data/keys.yaml")
    watch = KeysWatch(clock, lambda: str(path), lambda: seen.append(1))
    watch.start()

    def swap() -> None:
        """As Kubernetes does with a ConfigMap."""
        (tmp_path / "next").symlink_to(new)
        (tmp_path / "next").rename(data)

    def again_at_the_same_time() -> None:
        """As ``cp --preserve`` and rsync do."""
        file = new / "keys.yaml"
        before = file.stat()
        as_file(file, GOOD.replace("alice", "carol"))
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))

    changes = [swap, again_at_the_same_time, lambda: (new / "keys.yaml").chmod(0o640), path.unlink]
    changes += [lambda: as_file(path, GOOD)]
    for number, change in enumerate(changes, 1):
        wait_for_another_time(new / "keys.yaml")
        change()
        clock.pump([0.25] * 4)
        assert len(seen) == number
    watch.stop()


def wait_for_another_time(path: Path) -> None:
    """Until the clock of the file system, which ticks every few milliseconds, is past the last change."""
    other, end = path.with_suffix(".other"), time.monotonic() + 5
    while True:
        other.write_text("")
        if other.stat().st_ctime_ns > path.stat().st_ctime_ns:
            return
        assert time.monotonic() < end


def test_c8_c15_a_daemon_keeps_the_old_keys_and_takes_the_next_right_file_in_a_second(tmp_path):
    path = tmp_path / "keys.yaml"
    write(path, named("alice", ALICE))
    config = """
keys_file: keys.yaml
listen: ["tcp:0:interface=127.0.0.1"]
providers: [{name: a, base_url: "http://127.0.0.1:1/v1", api_key: "${A_KEY}"}]
routes: [{name: r, steps: [{provider: a, model: m}]}]
"""
    with Daemon(tmp_path, config=config, environ=KEYS) as daemon:
        daemon.wait_for("The gateway has started")
        host, port = daemon.address()

        def knows(key: str) -> bool:
            asked = urllib.request.Request(
                f"http://{host}:{port}/v1/models", headers={"Authorization": f"Bearer {key}"}
            )
            try:
                with urllib.request.urlopen(asked, timeout=10) as answer:
                    return answer.status == 200
            except urllib.error.HTTPError as error:
                if error.code == 401:
                    return False
                raise

        def replace(data: str, mode: int = 0o600) -> None:
            as_file(tmp_path / "next", data, mode)
            (tmp_path / "next").rename(path)

        steps = [
            (path.unlink, "cannot be read: No such file or directory"),
            (path.mkdir, "this is a folder"),
            (lambda: (path.rmdir(), as_file(path, "")), "keys: is empty"),
            (lambda: replace(GOOD[:-20]), "not YAML"),
            (lambda: replace(LITERAL, 0o644), "chmod 600"),
        ]
        for number, (change, mistake) in enumerate(steps, 1):
            change()
            fields = daemon.wait_for("The gateway did not reload", number)
            assert mistake in str(fields["mistakes"])
            assert knows(ALICE)
        began = time.monotonic()
        path.chmod(0o600)  # as the last mistake says
        daemon.wait_for("The gateway has reloaded", 1)
        replace(GOOD.replace(sha(ALICE), sha(BOB)))
        daemon.wait_for("The gateway has reloaded", 2)
        assert time.monotonic() - began < 4, "each within a second, on a machine that has other work"
        assert (knows(ALICE), knows(BOB)) == (False, True)
        messages = [line["message"] for line in daemon.lines()]
    assert sum(message.startswith("No TLS certificate") for message in messages) == 1, (
        "what was not read is not reported"
    )
    assert (
        messages.count("The gateway did not reload: the new configuration has mistakes, and the old one is in use") == 5
    )
