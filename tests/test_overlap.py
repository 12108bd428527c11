"""D4: two listeners that cannot both be open are a mistake of the configuration, not a failure of the start."""

from __future__ import annotations

import errno
import socket
from itertools import combinations_with_replacement
from pathlib import Path

import pytest
from twisted.internet import reactor
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Factory

from aigw.config import loader
from aigw.config.model import Config
from aigw.connections.overlap import overlap
from aigw.errors import ConfigError
from aigw.server.listeners import InheritedSocket, Listener, Listeners, _has_ipv6, configured_listeners

ADDRESSES = [
    "tcp:{port}",
    "tcp:{port}:interface=0.0.0.0",
    "tcp:{port}:interface=127.0.0.1",
    "tcp:{port}:127.0.0.1",
    "tcp:interface=127.0.0.2:port={port}",
    r"tcp:{port}:interface=\:\:1",
    "tcp6:{port}",
    r"tcp6:{port}:interface=\:\:",
    r"tcp6:{port}:interface=\:\:1",
    r"tcp6:{port}:interface=0\:0\:0\:0\:0\:0\:0\:1",
    r"tcp6:{port}:interface=\:\:ffff\:127.0.0.1",
]


def free_port() -> int:
    with socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::", 0))
        return probe.getsockname()[1]


def opened(endpoint: str) -> object:
    """A port, or None where the address is taken."""
    factory = Factory()
    factory.noisy = False
    results: list = []
    serverFromString(reactor, endpoint).listen(factory).addBoth(results.append)
    if hasattr(results[0], "check"):
        failure = results[0]
        failure.trap(CannotListenError)
        assert failure.value.socketError.errno == errno.EADDRINUSE
        return None
    return results[0]


@pytest.mark.skipif(not _has_ipv6(), reason="there is no IPv6")
@pytest.mark.parametrize(("one", "other"), list(combinations_with_replacement(ADDRESSES, 2)))
def test_the_kernel_is_of_the_same_mind(one, other):
    port = free_port()
    one, other = one.format(port=port), other.format(port=port)
    first = opened(one)
    second = opened(other)
    for each in (first, second):
        if each is not None:
            each.stopListening()
    assert overlap(one, other) == overlap(other, one) == (second is None)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("unix:/run/a", "unix:/run/a:mode=660", True),
        ("unix:/run/a", "unix:address=/run/b", False),
        ("unix:/run/a", "tcp:80", False),
        ("tcp:0", "tcp:0", False),
        ("tcp:80", "tcp:81", False),
        ("tcp:80:interface=host.example", "tcp:80:interface=host.example", True),
        ("tcp:80:interface=host.example", "tcp:80:interface=other.example", False),
        ("systemd:domain=INET:index=0", "systemd:domain=INET:index=1", False),
        ("", "", False),
        ("tcp", "tcp", False),
        ("tcp:x", "tcp:x", False),
    ],
)
def test_other_endpoints(one, other, same):
    assert overlap(one, other) == overlap(other, one) == same


def built(**settings) -> Config:
    tree = {
        "api_key": "a-key-of-the-gateway",
        "providers": [{"name": "a", "base_url": "http://127.0.0.1:1/v1"}],
        "routes": [{"name": "r", "steps": [{"provider": "a", "model": "m"}]}],
        **settings,
    }
    return loader.build(tree, {}, Path("/nonexistent"))


@pytest.mark.parametrize(
    ("settings", "inherited", "said"),
    [
        ({"port": 8080, "admin": 8080}, [], "admin: tcp:8080:interface=127.0.0.1 has the same address as tcp:8080:interface=127.0.0.1 (port); "),
        ({"listen": [r"tcp6:8080:interface=\:\:1"], "admin": r"tcp6:8080:interface=0\:\:1"}, [], "admin: "),
        ({"port": 8080, "tls": {"cert_file": "c", "key_file": "k"}, "admin": 8080}, [], r"admin: tcp:8080:interface=127.0.0.1 has the same address as tcp"),
        ({"listen": ["tcp:9000:interface=127.0.0.1", "tcp:port=9000:interface=127.0.0.1"]}, [], "listen: tcp:port=9000:interface=127.0.0.1 has"),
        ({"admin": 443}, [InheritedSocket("systemd:domain=INET6:index=0", True, r"tcp6:443:interface=\:\:")], r"admin: tcp:443:interface=127.0.0.1 has the same address as tcp6:443:interface=\:\: (systemd)"),
        ({"port": 8080, "admin": 8081}, [], ""),
        ({"admin": 8080}, [InheritedSocket("systemd:domain=INET:index=0", True, "tcp:443:interface=127.0.0.1")], ""),
        # Y4: those of all instances, which share the port; they are open already
        ({"admin": 8080}, [InheritedSocket(f"systemd:domain=INET:index={index}", True, "tcp:443:interface=127.0.0.1") for index in (0, 1)], ""),
        ({"admin": 443}, [InheritedSocket(f"systemd:domain=INET:index={index}", True, "tcp:443:interface=127.0.0.1") for index in (0, 1)], "admin: "),
    ],
)  # fmt: skip
def test_d4_two_listeners_on_one_address_are_a_mistake(settings, inherited, said):
    if not said:
        assert configured_listeners(built(**settings), inherited)
        return
    with pytest.raises(ConfigError) as caught:
        configured_listeners(built(**settings), inherited)
    assert caught.value.mistakes[0].startswith(said)


def test_y3_a_socket_of_systemd_that_is_lost_stops_neither_a_reload_nor_the_end():
    listeners = Listeners(reactor, None, None, None)
    listener = Listener("systemd:domain=INET:index=0", insecure=True)
    listeners.open = {listener: opened("tcp:0:interface=127.0.0.1")}
    listeners.open[listener].connectionLost(None)
    assert listeners.keep([], {}) == [listener]
