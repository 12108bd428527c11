"""A form to a Call, and a Call back to the form for a step."""

from __future__ import annotations

import msgspec

from aigw.errors import BadRequest
from aigw.protocols.endpoint import FORM, Call, RawRequest
from aigw.protocols.multipart import boundary_in, read_form
from aigw.protocols.requests import Rewritten, count, read_images, rewrite
from aigw.protocols.skip import Steps

_FIELDS = frozenset(["model", "stream", "n"])
_TRUE = ("true", "1", "on", "yes", "t", "y")  # as servers in Python read a flag


def read_upload(raw: RawRequest) -> Steps[Call]:
    """A form with a ``model``. Raises BadRequest, naming the field that is wrong."""
    if not _is_form(raw):
        raise BadRequest("The body must be a form: send it as 'multipart/form-data', and name that in Content-Type.")
    return _read(raw)


def read_images_or_upload(raw: RawRequest) -> Call | Steps[Call]:
    """The same, or a JSON object."""
    return _read(raw) if _is_form(raw) else read_images(raw)


def rewrite_upload(call: Call, model: msgspec.Raw, conflict_resolution: str | None) -> Rewritten:
    """The call's body for a step: only the bytes of the model change. See ``requests.rewrite`` for one in JSON."""
    if call.form is None:
        return rewrite(call, model, conflict_resolution)
    name: str = msgspec.json.decode(model)
    return call.form.with_model(name.encode()), ()


def _is_form(raw: RawRequest) -> bool:
    return raw.content_type.partition(b";")[0].strip().lower() == FORM


def _read(raw: RawRequest) -> Steps[Call]:
    form, values = yield from read_form(raw.body, boundary_in(raw.content_type), _FIELDS)
    model = values.get("model")
    if model is None and not raw.endpoint.may_lack_model:
        raise BadRequest("'model' is missing; the form must have a field with that name.", param="model")
    if model == "":
        raise BadRequest("'model' must be a non-empty string.", param="model")
    return Call(
        raw.endpoint,
        model or "",
        values.get("stream", "").strip().lower() in _TRUE,
        {},
        raw.headers,
        raw.request_id,
        raw.caller,
        form=form,
        results=count(values.get("n", "").strip().encode()),
    )
