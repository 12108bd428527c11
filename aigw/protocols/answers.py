"""Whether a whole 2xx body is an answer, and the error in a body that is not. An answer must show that it is one."""

from __future__ import annotations

import json
import re

from aigw.protocols import envelope
from aigw.protocols.refusals import read_refusal, reason_in

Mistake = tuple[str, str | None]  # what is wrong, and the reason in the provider's words
ERROR = "answered 2xx with an error"
EMPTY = "answered 2xx with an empty body"
SIGNS_OF_AN_ERROR = b'"base_resp"', b'"detail"', b'"message"'  # one of them is in each error without ``error``

# The start of a list that holds something. A list of nothing but null, which NaN is read as, is none.
_FILLED = re.compile(rb"\[(?!\s*(?:null\s*(?:,\s*null\s*)*)?\])").match


def check_answer(member: str, body: bytes, label: bytes = b"", may_be_empty: bool = False) -> Mistake | None:
    """None for an answer; else why the 2xx body is not one, and the provider's own reason if it gave one.

    An answer has a list with the name ``member``. With ``may_be_empty`` the list may be empty if there is no error.
    """
    if not body.strip():
        return EMPTY, None
    body = body.removeprefix(b"\xef\xbb\xbf")
    try:
        found = envelope.outlined(body)
    except ValueError:
        return "answered 2xx with a body that is not a JSON object", read_refusal(
            body[: envelope.MOST_OF_AN_ERROR]
        ).reason
    items = getattr(found, member)
    if _FILLED(items) or (envelope.is_list(items) and envelope.carries(items) and b"NaN" in body):
        return None
    error = _value(bytes(found.error))
    if error is None:  # a value that is too large or too deep to be read is an error too
        error = envelope.carries(found.error)
    value = None if error else _value(body)
    if may_be_empty and not error and envelope.is_list(items) and not (isinstance(value, dict) and is_error(value)):
        return None
    if error:
        return ERROR, reason_in(error)
    if reason := reason_in(value):
        return ERROR, reason
    return f"answered 2xx without {'a list' if may_be_empty else 'anything in'} `{member}`", None


def check_choices(body: bytes, label: bytes = b"") -> Mistake | None:
    """See check_answer, for chat and completions, where a choice may be a failure."""
    mistake = check_answer("choices", body)
    if mistake is not None or (body.find(b'"error"') < 0 and body.find(b'"abort"') < 0):
        return mistake
    choices = _value(bytes(envelope.outlined(body.removeprefix(b"\xef\xbb\xbf")).choices))
    if not isinstance(choices, list) or not all(failed_choice(each) and not _has_content(each) for each in choices):
        return None
    reasons = [reason for each in choices if (reason := reason_in(each.get("error")))]
    return ERROR, reasons[0] if reasons else f"finish_reason: {choices[0].get('finish_reason')}"


def check_response(body: bytes, label: bytes = b"") -> Mistake | None:
    """See check_answer, for a response, whose ``status`` may be ``failed``."""
    mistake = check_answer("output", body, may_be_empty=True)
    if mistake is not None or body.find(b'"failed"') < 0:
        return mistake
    found = envelope.outlined(body.removeprefix(b"\xef\xbb\xbf"))
    return (ERROR, reason_in(_value(bytes(found.error)))) if bytes(found.status) == b'"failed"' else None


def check_message(body: bytes, label: bytes = b"") -> Mistake | None:
    """See check_answer, for a message, whose ``content`` may be empty."""
    return check_answer("content", body, may_be_empty=True)


def check_stored(body: bytes, label: bytes = b"") -> Mistake | None:
    """See check_answer, for what a provider stores, or a list of that. A response that failed is an answer too."""
    try:
        found = envelope.outlined(body.removeprefix(b"\xef\xbb\xbf"))
    except ValueError:
        return check_answer("data", body)
    return None if envelope.carries(found.id) or envelope.is_list(found.data) else check_answer("data", body)


def check_count(body: bytes, label: bytes = b"") -> Mistake | None:
    """See check_answer, for a count of tokens, whose ``input_tokens`` is a number."""
    try:
        count = _value(bytes(envelope.outlined(body.removeprefix(b"\xef\xbb\xbf")).input_tokens))
    except ValueError:
        count = None
    if type(count) in (int, float):
        return None
    return check_answer("input_tokens", body) or ("answered 2xx without a number `input_tokens`", None)


def check_string(member: str, body: bytes, label: bytes = b"") -> Mistake | None:
    """See check_answer, for an answer whose ``member`` is a string; it may be empty if there is no error."""
    try:
        found = envelope.outlined(body.removeprefix(b"\xef\xbb\xbf"))
    except ValueError:
        return check_answer(member, body)
    text = bytes(getattr(found, member))
    is_answer = text.startswith(b'"') and (text != b'""' or not envelope.carries(found.error))
    return None if is_answer else check_answer(member, body) or (f"answered 2xx without a text `{member}`", None)


def failed_choice(choice: object) -> bool:
    """Whether a choice, of a whole answer or of a stream, reports a failure."""
    return isinstance(choice, dict) and (bool(choice.get("error")) or choice.get("finish_reason") in ("error", "abort"))


def is_error(value: dict[str, object]) -> bool:
    """Whether an object without an answer is an error in one of the forms that have no member ``error``."""
    status = value.get("base_resp")
    return bool(
        (isinstance(status, dict) and _given(status.get("status_code")))
        or _given(value.get("error_code"))
        or value.get("detail")
        or (_given(value.get("code")) and value.get("message"))
    )


def _given(code: object) -> bool:
    return bool(code) and code != "0"


def _has_content(choice: dict[str, object]) -> bool:
    message = choice.get("message")
    inside = message.items() if isinstance(message, dict) else ()
    return bool(choice.get("text")) or any(given and name not in ("role", "name") for name, given in inside)


def _value(data: bytes) -> object:
    """The value of JSON; None if ``data`` is not JSON or is too long for an error."""
    try:
        return json.loads(data) if len(data) <= 2 * envelope.MOST_OF_AN_ERROR else None
    except (ValueError, RecursionError):
        return None
