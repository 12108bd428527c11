"""What RFC 9112 lets stand in a request where Twisted looks less closely."""

from __future__ import annotations

import re

_HOST = rb"[A-Za-z0-9._~%!$&'()*+,;=:\[\]-]"
_REST = rb"[!-\"$-~]*"

is_host = re.compile(_HOST + rb"*").fullmatch
"""Section 3.2: a Host, which may be empty, but holds no path, no credentials, no white space."""

is_target = re.compile(rb"/%s|\*|https?://%s+(?:[/?]%s)?" % (_REST, _HOST, _REST), re.IGNORECASE).fullmatch
"""Section 3.2: a path, an absolute URI without credentials, or the asterisk; no fragment, control or 8-bit byte."""

is_trailer = re.compile(rb"[A-Za-z0-9!#$%&'*+.^_`|~-]+:[^\0\r\n]*").fullmatch
"""Section 7.1.2: a line of a trailer, which is a header's."""
