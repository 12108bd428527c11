"""Answers that are no JSON: audio, and transcripts in text, SRT or WebVTT."""

from __future__ import annotations

import codecs
import re

from aigw.protocols.answers import EMPTY, Mistake, check_string
from aigw.protocols.envelope import MOST_OF_AN_ERROR
from aigw.protocols.refusals import read_refusal

_TEXTUAL = re.compile(rb"text/|application/([^;]*\+)?(json|xml)|application/x-ndjson|application/xhtml")
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_NO_TRANSCRIPT = re.compile(rb"json|html|event-stream").search  # labels
_PAGE = re.compile(rb"<(?:!doctype|html)", re.IGNORECASE)
_BOM = b"\xef\xbb\xbf"
NO_AUDIO = "answered 2xx with text instead of audio"


def is_audio(label: bytes, first: bytes) -> bool | None:
    """Whether an answer that begins so, under this Content-Type, is audio; None where it may still be an error.

    Any bytes are audio, under any label, that are no text. Under the label of audio text too, unless it begins as JSON
    or as a page does: a provider may answer with an error under the label of what was asked for.
    """
    if _TEXTUAL.match(label) or first[:1] in b"{<":
        return True if _is_binary(first) else None
    return True


def _is_binary(data: bytes) -> bool:
    if _CONTROL.search(data):
        return True
    try:
        codecs.getincrementaldecoder("utf-8")().decode(data)
    except UnicodeDecodeError:
        return True
    return False


def check_audio(body: bytes, label: bytes = b"") -> Mistake | None:
    """Why a whole answer that did not begin as audio is none."""
    if not body.strip():
        return EMPTY, None
    return NO_AUDIO, read_refusal(body[:MOST_OF_AN_ERROR]).reason


def check_transcript(body: bytes, label: bytes = b"") -> Mistake | None:
    """Why a whole 2xx body is no transcript: JSON has a ``text``, and anything else is text as it is, unless empty."""
    begins = body.removeprefix(_BOM).lstrip()
    is_plain = begins[:1] != b"{" and not _PAGE.match(begins) and not _NO_TRANSCRIPT(label)
    return None if is_plain and body else check_string("text", body)
