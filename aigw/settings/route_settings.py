"""Settings of a route that are mappings of their own."""

from __future__ import annotations

import msgspec

from aigw.settings.values import Duration, Flag, Share


class Hedge(msgspec.Struct, frozen=True):
    """A second attempt starts beside one that has no output ``after`` so many seconds, at ``share`` of the requests."""

    after: Duration = 3.0
    share: Share = 0.05


class KeepAlive(msgspec.Struct, frozen=True):
    """Comments in a stream that would be silent for longer than ``every`` seconds.

    ``before_output``: they begin the answer, with status 200, although no step has answered yet.
    """

    every: Duration = 15.0
    before_output: Flag = False
