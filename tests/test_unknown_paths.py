"""S4: a client that calls a path that is not served is told which one it needs."""

from __future__ import annotations

import pytest

from aigw.server.unknown_paths import unknown_path
from tests.harness import AUTH, HELLO, KEY, request
from tests.memory import MemoryGateway, error_of


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("/v1/v1/chat/completions", "It has /v1 twice: remove one from the base URL, so that the path is /v1/chat/completions."),
        ("/v1/v1/v1/chat/completions", "It has /v1 twice: remove one from the base URL, so that the path is /v1/chat/completions."),
        ("/v1/v1/models/a/b", "It has /v1 twice: remove one from the base URL, so that the path is /v1/models/a/b."),
        ("/v1/v1/nothing", "so that the path is /v1/nothing. This gateway has the paths POST /v1/chat/completions"),
        ("/v1/v1", "so that the path is /v1."),
        ("/chat/completions", "use /v1/chat/completions, with a base URL that ends in /v1."),
        ("/openai/chat/completions", "use /v1/chat/completions"),
        ("/models", "use /v1/models"),
        ("/v1/chat/completions/chat/completions", "without the endpoint: use /v1/chat/completions."),
        ("/v1/responses/responses/compact", "without the endpoint: use /v1/responses/compact."),
        ("/v1/chat/completions/models", "without the endpoint: use /v1/models."),
        ("/responses/input_tokens", "use /v1/responses/input_tokens"),
        ("/v1/responses//compact", "Did you mean /v1/responses/compact?"),
        ("/v1/responses/resp_1/more", "POST /v1/responses, POST /v1/responses/compact, POST /v1/responses/input_tokens"),
        ("/v1/Chat/Completions", "Did you mean /v1/chat/completions?"),
        ("/v1/embeddings/", "Did you mean /v1/embeddings?"),
        ("/v1/nothing", "POST /v1/chat/completions, POST /v1/completions, POST /v1/embeddings"),
        ("/v1/audio", "POST /v1/audio/speech"),
        ("/audio/speech", "use /v1/audio/speech"),
        ("/v1//images/edits", "Did you mean /v1/images/edits?"),
        ("/", "and GET /v1/models"),
        ("/\xff\r\nX-Evil: 1", "This gateway has the paths"),
    ],
)  # fmt: skip
def test_s4_the_hint(path, hint):
    assert hint in unknown_path(path.encode("latin-1")).message


def test_s4_the_path_is_bounded():
    assert len(unknown_path(b"/" * 16_000).message) < 700


@pytest.mark.parametrize("name", ["files", "batches", "realtime", "assistants"])
@pytest.mark.parametrize("path", ["/v1/{}", "/v1/{}/x_1/content", "/{}", "//v1//{}/"])
def test_s4b_what_is_not_served_yet_is_named(name, path):
    error = unknown_path(path.format(name).encode())
    assert error.message.startswith(f"This gateway does not serve {name} yet")
    assert "unknown" not in error.message
    assert (error.status, error.code) == (404, "not_served")


def status_of(data: bytes) -> tuple[int, bytes]:
    client = MemoryGateway().open()
    client.say(data)
    answer = client.take()
    return int(answer[9:12]), answer


@pytest.mark.parametrize("beside", [{}, {"X-Api-Key": KEY}, AUTH], ids=["alone", "X-Api-Key", "Authorization"])
def test_b6_the_header_of_azures_clients_has_a_key_too(beside):
    """It goes to no provider, and a wrong key in it is refused whatever stands beside it."""
    world = MemoryGateway()
    client = world.open()
    client.say(request(HELLO, headers={"Api-Key": KEY, **beside}))
    assert KEY.encode() not in (sent := world.doors["p1"].wire.take())
    assert b"api-key" not in sent.lower().partition(b"\r\n\r\n")[0]
    assert status_of(request(HELLO, headers={"Api-Key": "wrong-key-1234-1234-1234", **beside}))[0] == 401


def test_s4_a_websocket_is_426_once_the_key_is_right():
    asks = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    status, answer = status_of(request(None, "/v1/responses", "GET", {**AUTH, **asks}))
    assert status == 426
    assert error_of(answer)["code"] == "websocket_not_supported"
    assert b"\r\nUpgrade: HTTP/1.1\r\n" in answer
    assert status_of(request(None, "/v1/responses", "GET", asks))[0] == 401
    assert status_of(request(None, "/v1/responses", "GET", AUTH))[0] == 405
