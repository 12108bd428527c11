"""R3a, R8, A6, A7, R10: each of the further endpoints through the official clients of OpenAI, over TLS with verification on.

Whole, with the first provider down, with one that is overloaded inside a 200, and with one that breaks off: no client takes
half an answer for a whole one.
"""

from __future__ import annotations

import json
import os
import shutil
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.internet.utils import getProcessOutputAndValue

from tests.harness import KEY, bounded
from tests.providers import answer, begin_stream, fin, head, raw, stream, then
from tests.sdks import httpx, openai
from tests.test_media_faults import AUDIO, ERROR, IMAGES, SPEECH, TRANSCRIPTS, typed

IMAGE = b'{"created": 1, "data": [{"b64_json": "aGVsbG8="}]}'
MODERATION = b'{"id": "m", "model": "m", "results": [{"flagged": true, "categories": {}, "category_scores": {}}]}'
RANKED = b'{"results": [{"index": 3, "relevance_score": 0.9}]}'
TEXT = b'{"text": "hello"}'
EDITED = [
    typed("image_edit.partial_image", b64_json="aGU=", partial_image_index=0),
    typed("image_edit.completed", b64_json="aGVs"),
]
GENERATED = [IMAGES.events[0], IMAGES.events[2]]
FILE = ("a.wav", b"RIFF")
PNG = ("a.png", b"PNG", "image/png")


class Use(NamedTuple):
    """One call: what the client does, what a provider answers, and what the client makes of it."""

    python: Callable[[openai.OpenAI], Any]
    good: Any  # a body with its type, or events
    value: Any
    flows: bool = False


def types(events) -> list[str]:
    return [each.type for each in events]


USES = {
    "moderations": Use(lambda c: c.moderations.create(model="route", input="x").results[0].flagged, (MODERATION, "application/json"), True),
    "moderations without a model": Use(lambda c: c.moderations.create(input="x").results[0].flagged, (MODERATION, "application/json"), True),
    "rerank": Use(lambda c: c.post("/rerank", cast_to=object, body={"model": "route", "query": "q", "documents": ["a"]})["results"][0]["index"], (RANKED, "application/json"), 3),
    "images": Use(lambda c: c.images.generate(model="route", prompt="x").data[0].b64_json, (IMAGE, "application/json"), "aGVsbG8="),
    "images streamed": Use(lambda c: types(c.images.generate(model="route", prompt="x", stream=True, partial_images=1)), GENERATED, ["image_generation.partial_image", "image_generation.completed"]),
    "edits": Use(lambda c: c.images.edit(model="route", prompt="x", image=PNG).data[0].b64_json, (IMAGE, "application/json"), "aGVsbG8="),
    "edits streamed": Use(lambda c: types(c.images.edit(model="route", prompt="x", image=PNG, stream=True)), EDITED, ["image_edit.partial_image", "image_edit.completed"]),
    "variations": Use(lambda c: c.images.create_variation(model="route", image=PNG).data[0].b64_json, (IMAGE, "application/json"), "aGVsbG8="),
    "transcriptions": Use(lambda c: c.audio.transcriptions.create(model="route", file=FILE).text, (TEXT, "application/json"), "hello"),
    "transcriptions in text": Use(lambda c: c.audio.transcriptions.create(model="route", file=FILE, response_format="text"), (b"hello\n", "text/plain; charset=utf-8"), "hello\n"),
    "transcriptions streamed": Use(lambda c: types(c.audio.transcriptions.create(model="route", file=FILE, stream=True)), TRANSCRIPTS.events, ["transcript.text.delta", "transcript.text.delta", "transcript.text.done"]),
    "translations": Use(lambda c: c.audio.translations.create(model="route", file=FILE).text, (TEXT, "application/json"), "hello"),
    "speech": Use(lambda c: c.audio.speech.create(model="route", input="x", voice="alloy").read().decode("latin-1"), (AUDIO, "audio/mpeg"), AUDIO.decode("latin-1"), flows=True),
    "speech as events": Use(lambda c: c.audio.speech.create(model="route", input="x", voice="alloy", stream_format="sse").read().decode(), SPEECH.events, b"".join(SPEECH.events).decode()),
}  # fmt: skip


def good(use: Use):
    return stream(*use.good) if isinstance(use.good, list) else answer(200, *use.good)


def broken(use: Use):
    """It breaks off behind its first output."""
    if isinstance(use.good, list):
        return then(begin_stream(use.good[0]), fin)
    body, kind = use.good
    return then(raw(head(kind=kind, Content_Length=str(len(body))), body[:-3]), fin)


#   what happens            first step                          second step
SCENES = {
    "good":                (good,                               None),
    "first provider down": (None,                               good),
    "overloaded in a 200": (lambda use: answer(200, ERROR),     good),
    "breaks off":          (broken,                             good),
    "breaks off, no other": (broken,                            None),
    "every provider down": (None,                               None),
}  # fmt: skip
RAISES = ("breaks off, no other", "every provider down")


async def check(world, client, name: str, scene: str) -> None:
    use = USES[name]
    first, second = (world.provider(make(use)) if make else None for make in SCENES[scene])
    gateway = world.gateway(first, second, tls=True, default_for=["moderations"])
    value, error = await bounded(client(gateway, name), 20)
    commits = isinstance(use.good, list) or use.flows
    if scene in RAISES or (scene == "breaks off" and commits):
        assert error is not None, f"half an answer as whole: {value!r}"
        assert scene != "breaks off" or not second.requests
    else:
        assert (value, error) == (use.value, None)
    assert len(world.records) == 1


def python(gateway, name: str):
    def run() -> tuple[Any, str | None]:
        context = ssl.create_default_context(cafile=str(gateway.world.ca_file))
        http = openai.DefaultHttpxClient(verify=context)
        with openai.OpenAI(base_url=gateway.url, api_key=KEY, http_client=http, max_retries=0) as client:
            try:
                return USES[name].python(client), None
            except (openai.APIError, httpx.HTTPError) as error:
                return None, repr(error)
            except Exception as error:
                if type(error).__module__.partition(".")[0] not in ("httpx", "httpx2", "httpcore", "httpcore2"):
                    raise
                return None, repr(error)

    return deferToThread(run)


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # the client's own word on variations
@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("name", USES)
@ensureDeferred
async def test_r3a_the_python_client(world, name, scene):
    await check(world, python, name, scene)


@pytest.fixture(scope="session")
def node_endpoints(tmp_path_factory) -> Path:
    """The script for Node, beside an ``openai`` of its own."""
    folder = tmp_path_factory.mktemp("node")
    npm = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(folder), "openai@^6"]
    subprocess.run(npm, check=True, capture_output=True, timeout=120)
    return Path(shutil.copy(Path(__file__).with_name("node_endpoints.mjs"), folder))


@pytest.mark.node
@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("name", USES)
@ensureDeferred
async def test_r3a_the_node_client(world, node_endpoints, name, scene):
    async def run(gateway, name):
        job = {"base_url": gateway.url, "api_key": KEY, "use": name}
        environ = {**os.environ, "NODE_EXTRA_CA_CERTS": str(gateway.world.ca_file)}
        arguments = [str(node_endpoints), json.dumps(job)]
        out, err, code = await getProcessOutputAndValue(shutil.which("node"), arguments, environ)
        assert code == 0, err
        got = json.loads(out)
        return got["value"], got["error"]

    await check(world, lambda *job: Deferred.fromCoroutine(run(*job)), name, scene)
