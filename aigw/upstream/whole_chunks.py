"""A network read that is one whole chunk of a body, as each event of most streams is: it need not be parsed again.

llhttp reads what came before. Behind a whole chunk it waits for the next one, so that it need not see this one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

MOST = 2048  # bytes of data in a chunk that is not parsed

TakeChunk = Callable[[bytes, bytes], None]  # the data of a chunk, and all of it

_BY_SIZE = {size + len(b"%x" % size) + 4: b"%x\r\n" % size for size in range(1, MOST + 1)}
LARGEST: Final = max(_BY_SIZE)
# The line before the data of a chunk, by the size of the whole chunk; () where no chunk has it: no data begins with it.
# Extensions and other forms of sizes are parsed.
LINES: Final = tuple([_BY_SIZE.get(size, ()) for size in range(LARGEST + 1)])
