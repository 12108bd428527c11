"""What both sides of the wire share.

In reading order: headers, addresses, write (bytes to a socket), lateness (a clock that was held up), slices (long work
in short steps), codings (compressed bodies), tls and validity (the listeners' certificates).
"""
