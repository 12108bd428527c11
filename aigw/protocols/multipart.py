"""A body of multipart/form-data (RFC 7578): its parts, and where its ``model`` is. Only the heads of parts are read.

A parser that calls back for each byte that looks like a boundary would need seconds for 25 MB of line ends. Here the
boundary is searched, in short steps, and every byte but those of the model reaches the provider as it came.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping
from typing import NamedTuple

from aigw.errors import BadRequest
from aigw.protocols.envelope import OTHER_CASES, Parts
from aigw.protocols.skip import Steps

MOST_PARTS = 1000
MOST_OF_A_HEAD = 8 * 1024
MOST_OF_A_VALUE = 16 * 1024
_STEP = 1024 * 1024  # bytes that are searched at once, in less than a millisecond
_SEARCHED = 128 * 1024  # bytes that are searched at once for text in letters of any case
_MATCH_COST = 512  # of one match, in bytes

_BOUNDARY = re.compile(rb';[ \t]*boundary[ \t]*=[ \t]*(?:"([^"\\]*)"|([^\s;",<>]*))[ \t]*(?=;|\Z)', re.IGNORECASE)
_GOOD_BOUNDARY = re.compile(rb"[0-9A-Za-z'()+_,./:=? -]{0,199}[0-9A-Za-z'()+_,./:=?-]")  # RFC 2046 has 70 of them
_BEHIND = re.compile(rb"(--)?[ \t]{0,100}(?:(\r\n)|\Z)")  # a boundary; what else begins with one is content
# What some reader uses instead of the parameter that is meant: a part of one (RFC 2231), or one of another name.
_BOUNDARIES = re.compile(rb"boundary[ \t*0-9]*=", re.IGNORECASE)
_NAMES = re.compile(rb";[ \t]*name[ \t*0-9]*=", re.IGNORECASE)
_CHARSETS = re.compile(
    rb"charset[ \t*0-9]*=[ \t\"]*([^\s\";]*)", re.IGNORECASE
)  # in which some readers decode the names
_DISPOSITION = re.compile(rb"content-disposition", re.IGNORECASE)
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+)[ \t]*:([^\r\n\0]*)")
_ESCAPED = re.compile(rb';[ \t]*([^\s=;"]+)[ \t]*=[ \t]*("(?:[^"\\]|\\.)*"|[^\s;"]*)[ \t]*')
_LITERAL = re.compile(rb';[ \t]*([^\s=;"]+)[ \t]*=[ \t]*("[^"]*"|[^\s;"]*)[ \t]*')  # as browsers write a backslash
_SIGNS = re.compile(r"\W")  # of a name; some readers remove quotes, or read ``model[]`` as a list ``model``
_NO_CODINGS = (b"", b"7bit", b"8bit", b"binary")
_NEW_PART = b'--%s\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n'
_NAME_OF_PART = re.compile(
    rb'content-disposition[ \t]*:[^\r\n]*?;[ \t]*name[ \t]*=[ \t]*("(?:[^"\\]|\\.)*"|[^\s;"]*)', re.IGNORECASE
)

_NONE: Mapping[str, bytes] = {}

Edit = tuple[int, int, bytes]  # what is between two offsets of a body, and the bytes in place of it


class FormPart(NamedTuple):
    """A part of a form, by the offsets of its boundary, its head, its value and the end of that.

    ``plain``: it is neither a file nor encoded.
    """

    name: str
    start: int
    head: int
    value: int
    end: int
    plain: bool

    @property
    def without(self) -> Edit:
        """The edit that removes it."""
        return self.start, self.end + 2, b""

    def with_value(self, text: bytes) -> Edit:
        """The edit that replaces its value."""
        if self.end < self.value:  # the line end of its empty line is that in front of the next boundary
            return self.value, self.value, text + b"\r\n"
        return self.value, self.end, text


class Upload:
    """A form whose ``model`` can be replaced, and its other fields changed. New parts are put in front of the end."""

    def __init__(self, body: bytes | bytearray, boundary: bytes, parts: list[FormPart], last: int) -> None:
        """``last`` is the offset of the last boundary."""
        self._body: bytes | bytearray | None = body
        self._boundary = boundary
        self._last = last
        self.parts = parts

    def with_model(self, model: bytes, edits: Iterable[Edit] = (), added: Mapping[str, bytes] = _NONE) -> Parts:
        """The body for a step; ``added`` are names and values of new parts."""
        view = memoryview(self._body or b"")
        own = next((part for part in self.parts if part.name == "model"), None)
        new = {**({} if own else {"model": model}), **added}
        pieces: list[bytes | memoryview] = []
        at = 0
        for start, end, text in sorted([*edits, *([own.with_value(model)] if own else [])]):
            pieces += view[at:start], text
            at = end
        pieces.append(view[at : self._last])
        pieces += [_NEW_PART % (self._boundary, name.encode(), text) for name, text in new.items()]
        return Parts([*pieces, view[self._last :]])

    def value(self, part: FormPart) -> bytes:
        """The value of a part."""
        return bytes(memoryview(self._body or b"")[part.value : part.end])

    def renamed(self, part: FormPart, name: str) -> Edit:
        """The edit that gives a part another name, which needs no escapes."""
        found = _NAME_OF_PART.search(bytes(memoryview(self._body or b"")[part.head : part.value]))
        start, end = found.span(1) if found else (0, 0)
        return part.head + start, part.head + end, b'"%s"' % name.encode()

    def release(self) -> None:
        """Forget the body."""
        self._body = None


def boundary_in(content_type: bytes) -> bytes:
    """The boundary that a Content-Type names. Raises BadRequest unless every reader finds that one."""
    found = _BOUNDARY.findall(content_type)
    boundary = found[0][0] or found[0][1] if len(found) == 1 else b""
    if len(_BOUNDARIES.findall(content_type)) != 1 or not _GOOD_BOUNDARY.fullmatch(boundary):
        right = "it must name one boundary, as in 'multipart/form-data; boundary=xyz'"
        raise BadRequest(f"The header Content-Type has no usable boundary; {right}.")
    if any([each.lower() not in (b"utf-8", b"utf8") for each in _CHARSETS.findall(content_type)]):
        raise BadRequest("The header Content-Type of a form may name no charset but utf-8.")
    return boundary


def read_form(
    body: bytes | bytearray, boundary: bytes, fields: Container[str]
) -> Steps[tuple[Upload, Mapping[str, str]]]:
    """The form, and the values of these fields, ``model`` among them. Raises BadRequest."""
    delimiter = b"--" + boundary
    values: dict[str, str] = {}
    parts: list[FormPart] = []
    number = 0
    end, behind, is_last = yield from _next_boundary(body, delimiter, 0)
    while not is_last:
        number += 1
        if number > MOST_PARTS:
            raise BadRequest(f"The form has over {MOST_PARTS} parts.")
        start = body.find(b"\r\n\r\n", behind - 2, behind + MOST_OF_A_HEAD) + 4
        if start < 4:
            raise BadRequest(f"The head of part {number} of the form has no end, or has over {MOST_OF_A_HEAD} bytes.")
        name, plain = _field(bytes(body[behind : start - 4]), number, fields)
        before, head = end + 2, behind
        # The line end in front of the next boundary is that of the empty line where there is no value at all.
        end, behind, is_last = yield from _next_boundary(body, delimiter, start - 2)
        parts.append(FormPart(name, before, head, start, end, plain))
        if name not in fields:
            continue
        if name in values:
            raise BadRequest(f"The form has two fields {name!r}; send one.", param=name)
        values[name] = _text(bytes(body[start : min(end, start + MOST_OF_A_VALUE + 1)]), name)
    if not number:
        raise BadRequest("The form has no parts.")
    yield from _check_epilogue(body, delimiter, behind)
    return Upload(body, boundary, parts, end + 2), values


def _next_boundary(body: bytes | bytearray, delimiter: bytes, at: int) -> Steps[tuple[int, int, bool]]:
    """The offset of the end of the part before the next boundary, that of the end of its line, and if it is last."""
    left = 0
    suspect = -1  # the offset of the first delimiter that is no boundary here
    while True:
        found_at = body.find(delimiter, at, at + _STEP + len(delimiter))
        left -= (found_at if found_at >= 0 else at + _STEP) - at + _MATCH_COST
        if left <= 0:
            yield
            left = _STEP
        if found_at >= 0:
            found = _BEHIND.match(body, found_at + len(delimiter))
            begins_line = found_at == 0 or body[max(0, found_at - 2) : found_at] == b"\r\n"
            if begins_line and found and (found[1] or found[2]):
                if suspect >= 0:
                    yield from _check_hidden(body, suspect, found_at)
                return found_at - 2, found.end(), found[1] is not None
            suspect = found_at if suspect < 0 else suspect
            at = found_at + len(delimiter)
        elif at + _STEP >= len(body):
            raise BadRequest("The form ends without its last boundary.")
        else:
            at += _STEP


def _check_epilogue(body: bytes | bytearray, delimiter: bytes, at: int) -> Steps[None]:
    """Raises BadRequest if a reader that does not stop at the last boundary could find a part behind it."""
    for start in range(at, len(body), _STEP):
        found_at = body.find(delimiter, start, start + _STEP + len(delimiter))
        if found_at >= 0:
            yield from _check_hidden(body, found_at, len(body))
            return
        yield


def _check_hidden(body: bytes | bytearray, start: int, end: int) -> Steps[None]:
    """Raises BadRequest for the head of a part in content that has the delimiter before it.

    Some readers take the delimiter for a boundary behind another line end, or with other text behind it.
    """
    for at in range(start, end, _SEARCHED):
        if _DISPOSITION.search(body, at, min(end, at + _SEARCHED + 32)):
            raise BadRequest(
                "The content of the form has its boundary and a Content-Disposition behind that, which another reader "
                "may take for a part; choose another boundary."
            )
        yield


def _field(head: bytes, number: int, fields: Container[str]) -> tuple[str, bool]:
    """The name of a part, and whether it is plain. Raises BadRequest where another reader may find another name, and if
    one of ``fields`` is not plain."""
    wrong = BadRequest(f"The head of part {number} of the form is wrong; it needs one Content-Disposition with a name.")
    headers: dict[bytes, bytes] = {}
    for line in head.split(b"\r\n"):
        header = _HEADER.fullmatch(line)
        if header is None or header[1].lower() in headers:
            raise wrong
        headers[header[1].lower()] = header[2].strip(b" \t")
    kind, semicolon, rest = headers.get(b"content-disposition", b"").partition(b";")
    parameters = _parameters(semicolon + rest)
    is_named_once = len(_NAMES.findall(semicolon + rest)) == 1 and parameters is not None and b"name" in parameters
    if parameters is None or not is_named_once or kind.strip().lower() != b"form-data":
        raise wrong
    name = parameters[b"name"].decode("latin-1")
    plain = _SIGNS.sub("", name)
    if plain in OTHER_CASES or (plain != name and plain in fields):
        raise BadRequest(f"The field {name!r} must be written {plain.casefold()!r}.", param=plain.casefold())
    coding = headers.get(b"content-transfer-encoding", b"").lower()
    is_plain = coding in _NO_CODINGS and not any([each.startswith(b"filename") for each in parameters])
    if name in fields and not is_plain:
        raise BadRequest(f"The field {name!r} must be a plain value, and no file and not encoded.", param=name)
    return name, is_plain


def _parameters(written: bytes) -> dict[bytes, bytes] | None:
    """The parameters of a Content-Disposition; None where they cannot be read, or in two ways with two names."""
    read = [found for pattern in (_ESCAPED, _LITERAL) if (found := _read_parameters(written, pattern)) is not None]
    names = {found.get(b"name") for found in read}
    return read[0] if len(names) == 1 else None


def _read_parameters(written: bytes, pattern: re.Pattern[bytes]) -> dict[bytes, bytes] | None:
    found: dict[bytes, bytes] = {}
    at = 0
    while at < len(written) and (parameter := pattern.match(written, at)):
        name = parameter[1].lower()
        if name in found or name == b"name*":
            return None
        found[name] = parameter[2].strip(b'"')
        at = parameter.end()
    return found if at == len(written) else None


def _text(value: bytes, name: str) -> str:
    if len(value) > MOST_OF_A_VALUE:
        raise BadRequest(f"The field {name!r} takes over {MOST_OF_A_VALUE} bytes.", param=name)
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise BadRequest(f"The field {name!r} is not UTF-8.", param=name) from None
