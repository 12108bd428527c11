"""C7, C8, C15: what a keys_file may be, at the start and when it changes."""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from pathlib import Path
from unittest.mock import patch

import pytest
import yaml
from twisted.internet.task import Clock

from aigw.access.keys import Keys
from aigw.config import keys_file, loader
from aigw.config.known_entries import KnownEntries
from aigw.config.model import Config
from aigw.config.yaml_tree import parse
from aigw.daemon.keys_watch import EVERY_SECONDS, KeysWatch
from aigw.errors import ConfigError
from tests.test_cost import calls
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


def test_c8_a_file_that_is_written_in_place_is_read_later_than_one_that_was_renamed(tmp_path):
    path, clock, seen = tmp_path / "keys.yaml", Clock(), []
    as_file(path, GOOD)
    watch = KeysWatch(clock, lambda: str(path), lambda: seen.append(path.read_text()))
    watch.start()
    for part in ("", "keys:\n", f"- {ENTRY}\n", f'- {{name: bob, key_sha256: "{sha(BOB)}"}}\n'):
        wait_for_another_time(path)
        with path.open("a" if part else "w") as file:
            file.write(part)
        clock.pump([EVERY_SECONDS] * 2)
        assert seen == []
    clock.advance(EVERY_SECONDS)
    assert seen == [path.read_text()]
    as_file(tmp_path / "next", GOOD)
    (tmp_path / "next").rename(path)
    clock.pump([EVERY_SECONDS] * 2)
    assert seen[1:] == [GOOD]
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


# Many keys


def many(tmp_path: Path, last: str, number: int = 2000) -> None:
    keys = [f'- {{name: k{index}, key_sha256: "{sha(str(index))}"}}' for index in range(number)]
    as_file(tmp_path / "keys.yaml", "\n".join(["keys:", *keys, f"- {{name: last, {last}}}", ""]))


def test_c8_of_many_keys_only_those_that_changed_are_read_again_and_each_costs_few_calls(tmp_path, capsys):
    many(tmp_path, f"key: {ALICE}")
    config = build(keys_file="keys.yaml", folder=tmp_path)
    many(tmp_path, f"key: {BOB}, concurrency: 1")
    made: list[Config] = []
    counted = calls(lambda: made.append(loader.with_callers(config, {})))
    with capsys.disabled():
        print(f" [calls to read 2,000 keys of which one has changed: {counted}]", end="")
    assert keys_file.KNOWN.read == 1
    assert sum(counted) < 80 * 2000
    alone = loader.with_callers(config, {})
    with patch.object(keys_file, "KNOWN", KnownEntries()):
        assert made[0] == alone == loader.with_callers(config, {})
    assert Keys(made[0].callers).authenticate(None, b"Bearer " + BOB.encode()).accounts[0].concurrency == 1
    kept = repr(vars(keys_file.KNOWN))
    assert BOB not in kept
    assert sha(BOB) not in kept


@pytest.mark.parametrize("wrong", ["true", "1.0", '"1"', "one"])
def test_c8_an_entry_that_only_looks_like_the_old_one_is_read_again(tmp_path, wrong):
    many(tmp_path, f"key: {ALICE}, concurrency: 1", 2)
    config = build(keys_file="keys.yaml", folder=tmp_path)
    many(tmp_path, f"key: {ALICE}, concurrency: {wrong}", 2)
    for _ in range(2):
        with patch.object(keys_file, "KNOWN", KnownEntries()):
            expected = outcome_of(config)
        assert outcome_of(config) == expected


def outcome_of(config: Config) -> object:
    try:
        return loader.with_callers(config, {}).callers
    except ConfigError as error:
        return error.mistakes


def test_c8_a_key_that_has_not_changed_gets_the_new_limits_of_its_group_and_of_the_defaults(tmp_path):
    path = tmp_path / "keys.yaml"
    text = "groups: [{{name: team, concurrency: {0}}}]\ndefaults: {{concurrency: {0}}}\nkeys: [{1}]\n"
    entry = f"{{name: alice, key: {ALICE}, group: team}}"
    as_file(path, text.format(3, entry))
    config = build(keys_file="keys.yaml", folder=tmp_path)
    as_file(path, text.format(5, entry))
    (alice,) = (each for each in loader.with_callers(config, {}).callers if each.name == "alice")
    assert [account.concurrency for account in alice.accounts] == [5, 5]


def test_c8_a_warning_about_a_key_is_there_at_each_reading(tmp_path):
    many(tmp_path, "key: short-key-7", 2)
    config = build(keys_file="keys.yaml", folder=tmp_path)
    first = loader.with_callers(config, {}).warnings_of_keys_file
    assert loader.with_callers(config, {}).warnings_of_keys_file == first


@pytest.mark.parametrize(
    "text",
    [
        "a: &x {b: c}\nd: *x\ne: [*x, 1, 2.5, null, true, 2026-01-01, text, '1', \"2\", ~, 0x1f, 1_000]\n",
        "a: &x {b: c}\nd: {<<: *x, e: f}\n",
        "a: {1: b, true: c}\n",
        "a: !!str 1\nb: !!int '2'\nc: !!set {d, e}\nf: !!omap [g: h]\n",
        "a: {b: c, b: d}\n",
        "? [a, b]\n: c\n",
        "a: !!str [b]\n",
        "- !!str {a: b}\n",
        "? !!str [a]\n: b\n",
        "a: |\n  two\n  lines\nb: ''\nc:\n",
        "- [a, {b: [c]}]\n- d\n",
    ],
)
def test_b10_the_quick_way_to_a_tree_makes_what_pyyaml_makes(text):
    try:
        expected = yaml.safe_load(text)
    except yaml.YAMLError:
        assert parse(text).tree is None
        return
    assert parse(text).tree == expected
    assert repr(parse(text).tree) == repr(expected)
