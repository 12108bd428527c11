"""What the server and the upstream side share.

In reading order: headers, addresses, interfaces (types of Twisted's objects), reactor, write (bytes to a socket), read
(of large bodies), tcp (lost peers), lateness (timers after a pause of the process), slices (long work in short steps),
codings (compressed bodies), tls, validity (the listeners' certificates) and tls_transport.
"""
