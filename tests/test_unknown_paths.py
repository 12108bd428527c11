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
        ("/v1/moderations", "POST /v1/chat/completions, POST /v1/completions, POST /v1/embeddings"),
        ("/", "and GET /v1/models"),
        ("/\xff\r\nX-Evil: 1", "This gateway has the paths"),
    ],
)  # fmt: skip
def test_s4_the_hint(path, hint):
    assert hint in unknown_path(path.encode("latin-1")).message


def test_s4_the_path_is_bounded():
    assert len(unknown_path(b"/" * 16_000).message) < 500


def status_of(data: bytes) -> tuple[int, bytes]:
    client = MemoryGateway().open()
    client.say(data)
    answer = client.take()
    return int(answer[9:12]), answer


def test_b6_the_header_api_key_is_named_as_the_one_that_is_not_read():
    status, answer = status_of(request(HELLO, headers={"Api-Key": KEY}))
    assert status == 401
    assert "'api-key' is not read" in error_of(answer)["message"]
    status, answer = status_of(request(HELLO, headers={"Api-Key": KEY, "X-Api-Key": "wrong"}))
    assert "'api-key'" not in error_of(answer)["message"]


def test_s4_a_websocket_is_426_once_the_key_is_right():
    asks = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    status, answer = status_of(request(None, "/v1/responses", "GET", {**AUTH, **asks}))
    assert status == 426
    assert error_of(answer)["code"] == "websocket_not_supported"
    assert b"\r\nUpgrade: HTTP/1.1\r\n" in answer
    assert status_of(request(None, "/v1/responses", "GET", asks))[0] == 401
    assert status_of(request(None, "/v1/responses", "GET", AUTH))[0] == 405
