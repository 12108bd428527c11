"""Streams whose events have a ``type``, and whose last one is of a type of its own: images, transcripts and speech."""

from __future__ import annotations

import re
from typing import ClassVar

from aigw.protocols.answers import SIGNS_OF_AN_ERROR, is_error
from aigw.protocols.meaning import END, ERROR, OUTPUT, SILENCE, Meaning
from aigw.protocols.scanner import StreamScanner


class TypedScanner(StreamScanner):
    """Output is any event but one that has nothing in it. ``[DONE]`` ends a stream as well, for servers that send it.

    ``end`` is the type of the event that completes a stream, or one result of several.
    """

    sign = b'"type"'
    other = b'.done"', b'.completed"', *SIGNS_OF_AN_ERROR
    end: ClassVar[str]
    payloads: ClassVar[tuple[str, ...]]  # of the event that comes again and again
    delta: ClassVar[str]  # the type of that event

    def __init_subclass__(cls) -> None:
        """Make the patterns."""
        delta = cls.delta.encode()
        cls.usual = b'"type":"%s"' % delta, b'"type": "%s"' % delta
        cls.text = re.compile(rb'"%s"\s*:\s*"((?:[^"\\\r\n]|\\.)*)"' % cls.payloads[0].encode())
        cls.end_in_pieces = re.compile(rb'"type"\s*:\s*"%s"' % re.escape(cls.end.encode()))

    end_in_pieces: ClassVar[re.Pattern[bytes]]

    def __init__(self) -> None:
        super().__init__()
        self._count = 0
        self._end_seen = False  # in the event that is being passed on in pieces

    def meaning(self, value: dict[str, object]) -> Meaning:
        """See StreamScanner."""
        kind = value.get("type")
        if "type" not in value and "choices" not in value and is_error(value):
            self.error = value
            return ERROR
        if kind in (self.delta, self.end) and not any([value.get(name) for name in self.payloads]):
            return SILENCE if kind == self.delta else self.meaning_of_an_empty_end()
        return OUTPUT if value else SILENCE

    def meaning_of_an_empty_end(self) -> Meaning:
        """What a stream means that ends without any output."""
        return END

    def note(self, value: dict[str, object]) -> Meaning:
        """See StreamScanner."""
        if "type" not in value and "choices" not in value and is_error(value):
            return self.note_failure(value, False)
        return self._note_end() if value.get("type") == self.end else OUTPUT

    def note_in_pieces(self, data: bytes) -> Meaning:
        """See StreamScanner: pieces overlap."""
        found, seen = self.end_in_pieces.search(data) is not None, self._end_seen
        self._end_seen = self.in_pieces and (seen or found)
        return self._note_end() if found and not seen else OUTPUT

    def _note_end(self) -> Meaning:
        self._count += 1
        self.complete = self.finished = True
        return END if self._count >= self.results else OUTPUT

    def raises(self, name: str, value: dict[str, object]) -> bool:
        """See StreamScanner: they look at ``error`` at the top, and at nothing else."""
        return bool(value.get("error"))


class ImageScanner(TypedScanner):
    """Images: https://platform.openai.com/docs/api-reference/images-streaming."""

    delta, end = "image_generation.partial_image", "image_generation.completed"
    payloads = "b64_json", "url"


class ImageEditScanner(TypedScanner):
    """Edited images."""

    delta, end = "image_edit.partial_image", "image_edit.completed"
    payloads = "b64_json", "url"


class TranscriptScanner(TypedScanner):
    """Transcripts: https://platform.openai.com/docs/api-reference/audio/transcript-text-delta-event."""

    delta, end = "transcript.text.delta", "transcript.text.done"
    payloads = "delta", "text"

    def meaning_of_an_empty_end(self) -> Meaning:
        """Silence has an empty transcript."""
        return OUTPUT


class SpeechScanner(TypedScanner):
    """Audio as events: https://platform.openai.com/docs/api-reference/audio/speech-audio-delta-event."""

    delta, end = "speech.audio.delta", "speech.audio.done"
    payloads = ("audio", "delta")
