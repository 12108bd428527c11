"""``python -m aigw``: the same as the command ``aigw``."""

from __future__ import annotations

from aigw.command import main

if __name__ == "__main__":
    main()
