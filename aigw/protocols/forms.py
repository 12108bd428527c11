"""A form to a Call, and a Call back to the form for a step."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from aigw.errors import BadRequest
from aigw.protocols.endpoint import FORM, Call, RawRequest
from aigw.protocols.multipart import Edit, FormPart, Upload, boundary_in, read_form
from aigw.protocols.requests import Rewritten, count, read_images, rewrite
from aigw.protocols.shaping import UNCHANGED, Difference, summed_up
from aigw.protocols.skip import Steps
from aigw.settings.bodies import BodyChanges

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


def rewrite_upload(call: Call, model: msgspec.Raw, changes: BodyChanges | None) -> Rewritten:
    """The call's body for a step: only the bytes of the model change, and those of the fields that the step changes.

    See ``requests.rewrite`` for one in JSON.
    """
    if call.form is None:
        return rewrite(call, model, changes)
    name: str = msgspec.json.decode(model)
    if changes is None:
        return call.form.with_model(name.encode()), UNCHANGED
    edits, added, difference = _shaped(call.form, changes)
    return call.form.with_model(name.encode(), edits, added), difference


def _shaped(form: Upload, changes: BodyChanges) -> tuple[list[Edit], dict[str, bytes], Difference]:
    """See ``shaping.shaped``: the edits, the new parts by their names, and the difference.

    Files and encoded fields stay as they are, and so does a field whose new value a form cannot have.
    """
    left = [(part.name, part) for part in form.parts]
    texts: dict[FormPart, bytes] = {}
    new: dict[str, bytes] = {}
    dropped: list[str] = []
    renamed: list[tuple[str, str]] = []
    replaced: list[str] = []

    def plain(name: str) -> list[FormPart]:
        return [part for each, part in left if each == name and part.plain]

    def is_there(name: str) -> bool:
        return name in new or any([each == name for each, _ in left])

    def less(parts: Sequence[FormPart]) -> list[tuple[str, FormPart]]:
        return [(each, part) for each, part in left if part not in parts]

    for name in changes.remove:
        if found := plain(name):
            left = less(found)
            dropped.append(name)
    for old, name in changes.rename:
        found = plain(old)
        if found and is_there(name):
            left = less(found)
            dropped.append(old)
        elif found:
            left = [(name if part in found else each, part) for each, part in left]
            renamed.append((old, name))
    for name, value in changes.default:
        if value.text is not None and not is_there(name):
            new[name] = value.text
    for name, value in changes.set:
        if value.text is None:
            continue
        if found := plain(name):
            texts[found[0]] = value.text
            left = less(found[1:])
            replaced.append(name)
        elif name in new or not is_there(name):
            new[name] = value.text
    kept = {part: name for name, part in left}
    edits = [part.without for part in form.parts if part not in kept]
    edits += [form.renamed(part, name) for part, name in kept.items() if name != part.name]
    edits += [part.with_value(text) for part, text in texts.items()]
    difference = summed_up(dropped, renamed, [*new], replaced)
    if difference.touches("n"):
        written = [texts.get(part) or form.value(part) for name, part in left if name == "n" and part.plain]
        difference = replace(difference, results=count([*written, new.get("n", b"")][0].strip()))
    return edits, new, difference


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
        size=len(raw.body),
        form=form,
        results=count(values.get("n", "").strip().encode()),
    )
