"""The clients that the tests drive, each imported when a module that names it has its first test.

Together they take as long as all other modules. Whoever runs tests collects all modules, and runs a part of them.
"""

from __future__ import annotations

import importlib
from typing import Any


class Sdk:
    """Stands for a module."""

    def __init__(self, name: str, only_slow: bool = False) -> None:
        """``only_slow`` if only tests with the marker ``slow`` drive it."""
        self._name = name
        self.only_slow = only_slow

    def load(self) -> Any:
        return importlib.import_module(self._name)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # pytest asks each name of a module whether it is a test
            raise AttributeError(name)
        return getattr(self.load(), name)


anthropic = Sdk("anthropic")
httpx = Sdk("httpx")
httpx2 = Sdk("httpx2")
langchain_openai = Sdk("langchain_openai", only_slow=True)
openai = Sdk("openai")
