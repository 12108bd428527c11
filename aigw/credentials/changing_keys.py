"""The keys of a configuration that may change while the gateway runs. With none of them this costs nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from twisted.internet.defer import Deferred

from aigw.config.model import Config, Provider
from aigw.credentials import child
from aigw.credentials.child import Printed
from aigw.credentials.key_command import KeyCommand
from aigw.credentials.key_file import KeyFile
from aigw.credentials.source import KeySource, NoteKey
from aigw.net.interfaces import Reactor
from aigw.secret import Secret
from aigw.settings.quoting import quoted_file

Run = Callable[[Sequence[str], Mapping[str, str]], Deferred[Printed]]


class ChangingKeys:
    """The keys by the names of their providers. ``warnings`` begin with the path of a setting."""

    def __init__(
        self,
        reactor: Reactor,
        config: Config,
        note: NoteKey = lambda key: None,
        environ: Mapping[str, str] | None = None,
        run: Run | None = None,
    ) -> None:
        """Reads the files, and runs nothing; may be called in a thread.

        ``environ`` is that of the gateway, for the commands; ``run`` runs one of them.
        """
        self.warnings: list[str] = []
        self._run = run or partial(child.run, reactor)
        self._reactor = reactor
        self._note = note
        self._environ = child.environment(environ or {}, config.secrets)
        self._written: dict[str, object] = {}
        self.sources: dict[str, KeySource] = {}
        self._left: list[KeySource] = []  # of earlier configurations, with a run that has not ended
        for index, provider in enumerate(config.providers.values()):
            if provider.key_file or provider.key_command:
                self._written[provider.name] = provider.key_file, provider.key_command
                self.sources[provider.name] = self._source(provider, f"providers[{index}]")

    def _source(self, provider: Provider, path: str) -> KeySource:
        if provider.key_file:
            file = KeyFile(provider.name, provider.key_file, self._note)
            shown = f"{path}.key_file: {quoted_file(provider.key_file)}"
            if file.problem:
                text = "no request goes to the provider before the gateway has read a key from it"
                self.warnings.append(f"{shown}: {file.problem}; {text}")
            elif file.advice:
                self.warnings.append(f"{shown}: the key {file.advice}")
            return file
        command = provider.key_command or ()
        if shutil.which(command[0], path=self._environ.get("PATH")) is None:
            text = "there is no such program; no request goes to the provider before the command has printed a key"
            self.warnings.append(f"{path}.key_command: {quoted_file(command[0])}: {text}")
        return KeyCommand(provider.name, partial(self._run, command, self._environ), self._reactor, self._note)

    @property
    def secrets(self) -> list[Secret]:
        """The present keys, and those of before that answers may still repeat."""
        return [key for source in (*self.sources.values(), *self._left) for key in source.recent]

    def take_over(self, old: ChangingKeys) -> None:
        """Take the keys of ``old`` whose setting is unchanged; the others of ``old`` are kept fresh no longer."""
        for name, source in old.sources.items():
            if name in self.sources and self._written[name] == old._written[name]:
                self.sources[name] = source
            else:
                source.stop()
                self._left.append(source)
        self._left = [source for source in (*old._left, *self._left) if source.runs]

    def start(self) -> None:
        """Get the keys, and keep them fresh."""
        for source in self.sources.values():
            source.start()

    def close(self) -> None:
        """The gateway stops: end what runs."""
        for source in (*self.sources.values(), *self._left):
            source.close()
