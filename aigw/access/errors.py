"""The errors for a caller that may not do something, or not now: 403 and 429.

References: https://platform.openai.com/docs/guides/error-codes and https://docs.anthropic.com/en/api/errors
"""

from __future__ import annotations

from aigw.errors import RequestError


class NotAllowed(RequestError):
    """The key is right, but not for this: 403."""

    status = 403
    code = "key_not_allowed"
