"""The keys of callers, from the configuration file and from ``keys_file``, which may be reloaded alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path

import msgspec

from aigw.config.advice import advice_on_named_keys
from aigw.config.file_mode import check_file_mode, holds_literal_key
from aigw.config.known_entries import KnownEntries
from aigw.config.model import Config
from aigw.config.reader import Reader
from aigw.config.yaml_tree import expand, parse, read
from aigw.errors import ConfigError
from aigw.secret import Secret
from aigw.settings.callers import ADMIN, Callers, Group, KeyDefaults, KeysFile, NamedKey, budgets_crossed
from aigw.settings.mistakes import Mistake, not_following, worded
from aigw.settings.schema import Shape, shape_of

MAX_KEYS_FILE = 16 * 1024 * 1024
MAX_NODES = 1_000_000
KNOWN = KnownEntries()  # a process has one keys_file


class KeysReader:
    """Reads all keys of a configuration. ``mistakes`` and ``warnings`` are about its own file and have paths in it;
    those ``_in_file`` are about the keys_file and are whole lines."""

    def __init__(self, config: Config | None, environ: Mapping[str, str]) -> None:
        """``config`` is None if it has mistakes itself."""
        self.mistakes: list[Mistake] = []
        self.warnings: list[Mistake] = []
        self.mistakes_in_file: list[str] = []
        self.warnings_in_file: list[str] = []
        self._literal: list[Secret] = []
        if config is None:
            return
        own = {caller.name: caller.key for caller in config.callers if caller.key is not None}
        if config.admin_key is not None:
            if config.admin_key in own.values():
                text = "is the same as api_key; a key that sees the pages must not be one that clients send"
                self.mistakes.append(Mistake(text, ("admin_key",)))
            own[ADMIN] = config.admin_key
        self._callers = Callers(own)
        self._literal += [each.key for each in config.keys if each.key and not each.key.is_made_here()]
        self.mistakes += _crossed(config.groups, config.defaults, config.keys)
        self.mistakes += self._callers.add(config.keys, config.defaults)
        if config.keys_file is not None:
            self._read(Path(config.keys_file), config, environ)

    def _read(self, path: Path, config: Config, environ: Mapping[str, str]) -> None:
        shown = str(path)
        try:
            text, mode = read(path, shown, MAX_KEYS_FILE, "in keys_file", "remove the keys that are not used")
        except ConfigError as error:
            self.mistakes_in_file += error.mistakes
            return
        document = parse(text)
        tree = document.tree if document.root is not None or document.mistakes else {}
        tree, unset = expand(tree, environ, MAX_NODES)
        refused, self.warnings_in_file = check_file_mode(path, mode, holds_literal_key(document.tree))
        found = [*document.mistakes, *map(Mistake, refused), *unset]
        if isinstance(tree, dict):
            if tree.get("keys") is None and not found:  # a file is empty while it is written, and where a disk is full
                found.append(Mistake("is empty; write keys: [] if there are no keys", ("keys",)))
            tree = {name: value for name, value in tree.items() if (name, value) != ("keys", [])}
        reader = Reader(_whole_keys_file(), path.parent, {"groups": dict(config.groups)}, KNOWN)
        is_unusable = document.mistakes or (tree is None and unset)
        made: KeysFile | None = None if is_unusable else reader.read(tree)
        later = [*reader.mistakes]
        if made is not None:
            later += _crossed(made.groups, made.defaults, made.keys)
            later += [
                Mistake("is a group of the configuration file too; write another name", ("groups", index, "name"))
                for index, name in enumerate(made.groups)
                if name in config.groups
            ]
            later += self._callers.add(made.keys, made.defaults or config.defaults, shown)
            advice = [*advice_on_named_keys(made.keys, config.routes), *reader.warnings]
            self.warnings_in_file += worded(advice, shown, document.root)
            self._literal += [each.key for each in made.keys if each.key and not each.key.is_made_here()]
        self.mistakes_in_file += worded([*found, *not_following(unset, later)], shown, document.root)

    def complete(self, config: Config) -> Config:
        """The configuration with all callers, and with the keys of the keys_file that are to be hidden."""
        with_api_key = tuple(caller for caller in config.callers if caller.key is not None)
        callers = (*with_api_key, *self._callers.callers())
        return msgspec.structs.replace(config, callers=callers, literal_keys=tuple(self._literal))


@lru_cache(1)
def _whole_keys_file() -> Shape:
    return shape_of(KeysFile)


def _crossed(groups: Mapping[str, Group], defaults: KeyDefaults | None, keys: Iterable[NamedKey]) -> Iterable[Mistake]:
    for index, group in enumerate(groups.values()):
        yield from budgets_crossed(group, ("groups", index))
    if defaults is not None:
        yield from budgets_crossed(defaults, ("defaults",))
    for index, key in enumerate(keys):
        if key.budget:
            yield from budgets_crossed(key, ("keys", index))
