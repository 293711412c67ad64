"""The service's OpenAPI document, made from the routes themselves: what they read and answer is what they declare.

FastAPI's generator gives paths, parameters in them, descriptions and the key; pydantic gives the schemas of what
`declared.py` reads and answers, all in one pass, so that a name means one thing.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Annotated, Any, Literal, TypeAlias, get_args, get_origin, get_type_hints

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import TypeAdapter
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from luthier import __version__
from luthier.jobs.http.declared import Answer, Content, Created, Json, Multipart, Passed, Queried
from luthier.serve.api_error import ErrorBody

PATH = "/openapi.json"
REF = "#/components/schemas/{model}"
_REFERENCE = re.compile(REF.replace("{model}", r"([\w.-]+)"))
JSON = "application/json"
REFUSED = {
    400: "Something is wrong with the request",
    401: "No key that works",
    403: "Not with this key, Host or Origin",
}
IN_PATH = {404: "There is none, or it is another project's"}
STORED = {503: "The database cannot be used right now", 507: "The disk is full"}
WITH_BODY = {408: "The body came too slowly", 413: "The body is too large", 415: "The body is of another type"}
ABOUT = (
    "OpenAI's fine-tuning and evals API on your own machine. Errors have OpenAI's shape, unknown fields are refused, "
    "and a whole number is written without a fraction: 1, not 1.0."
)

Tree: TypeAlias = dict[str, Any]
Mode: TypeAlias = Literal["validation", "serialization"]


@dataclass
class _Told:
    """What a handler declares."""

    status: int = 200
    answers: Mapping[str, Any] = field(default_factory=dict)
    """Types by media type."""
    also: Mapping[int, Any] = field(default_factory=dict)
    """What comes with further statuses, as JSON."""
    body: Any = None
    form: Multipart[Any] | None = None
    query: Any = None


class DocumentRoutes:
    """The handler."""

    def __init__(self) -> None:
        self._text = ""

    def add_to(self, app: FastAPI) -> None:
        """Add the route."""
        app.add_api_route(PATH, self.get, methods=["GET"], response_model=None)

    def get(self, request: Request) -> Annotated[Response, Content({JSON: Tree})]:
        """GET /openapi.json: this document"""
        self._text = self._text or document_text(request.app)
        return Response(self._text, media_type=JSON)


def document_text(app: FastAPI) -> str:
    """The document as the text of `docs/openapi.json`."""
    return json.dumps(document(app), indent=1, ensure_ascii=False) + "\n"


def document(app: FastAPI) -> Tree:
    """The OpenAPI document of all routes.

    Raises:
        TypeError: a handler does not declare what it answers.
    """
    routes = [route for route in app.routes if isinstance(route, Route)]
    made: Tree = get_openapi(title="Luthier", version=__version__, description=ABOUT, routes=app.routes)
    schemas = _Schemas()
    by_route = [(route, _told_by(route)) for route in routes]
    for _, one in by_route:
        schemas.add(one)
    schemas.make()
    for route, one in by_route:
        operations = made["paths"].setdefault(route.path_format, {})
        for method in sorted((route.methods or set()) - {"HEAD"}):
            operation = operations.setdefault(method.lower(), _free(route))
            _fill(operation, route, one, schemas)
    texts = REFUSED | IN_PATH | WITH_BODY | STORED
    refused = {str(status): _refusal(text, schemas) for status, text in texts.items()}
    made["components"] |= {"schemas": schemas.named_by(made["paths"] | refused), "responses": refused}
    return made


def _told_by(route: Route) -> _Told:
    hints = get_type_hints(route.endpoint, include_extras=True)
    answer = hints.get("return")
    kind, arguments = get_origin(answer), get_args(answer)
    if kind in (Answer, Created):
        told = _Told(201 if kind is Created else 200, {JSON: arguments[0]})
    elif kind is Annotated and isinstance(arguments[1], Content):
        told = _Told(200, arguments[1].types, arguments[1].also)
    else:
        raise TypeError(
            f"{route.path}: {route.endpoint.__qualname__} returns {answer}; expected Answer[...], Created[...] or "
            "Annotated[Response, Content({media type: type})], so that the document can tell"
        )
    for reader in _readers(hints):
        if isinstance(reader, Json | Passed):
            told.body = reader.kind
        elif isinstance(reader, Multipart):
            told.form = reader
        elif isinstance(reader, Queried):
            told.query = reader.kind
    return told


def _readers(hints: Mapping[str, Any]) -> Iterator[Any]:
    """The dependencies of a handler."""
    for name, hint in hints.items():
        if name != "return" and get_origin(hint) is Annotated:
            yield hint.__metadata__[0].dependency


class _Schemas:
    """All types of the document as schemas that may name one another."""

    def __init__(self) -> None:
        self.definitions: Tree = {}
        self._wanted: dict[tuple[Any, Mode], TypeAdapter[Any]] = {}
        self._found: Mapping[tuple[Any, Mode], Tree] = {}

    def add(self, told: _Told) -> None:
        """Take note of the types of a handler."""
        for kind in (ErrorBody, *told.answers.values(), *told.also.values()):
            self._wanted[kind, "serialization"] = TypeAdapter(kind)
        for kind in (told.body, told.query, told.form and told.form.kind):
            if kind is not None:
                self._wanted[kind, "validation"] = TypeAdapter(kind)

    def make(self) -> None:
        """Make them all."""
        inputs = [(kind, mode, adapter) for (kind, mode), adapter in self._wanted.items()]
        self._found, rest = TypeAdapter.json_schemas(inputs, ref_template=REF)
        self.definitions = rest["$defs"]
        _close(self.definitions)

    def of(self, kind: Any, mode: Mode) -> Tree:
        """The schema of a type."""
        return self._found[kind, mode]

    def whole(self, kind: Any, mode: Mode) -> Tree:
        """The same in full, not by its name."""
        found: Tree = self.definitions[_named(self.of(kind, mode))]
        return found

    def named_by(self, part: Tree) -> Tree:
        """Those that a part of the document names, and those that these name; queries are told part by part."""
        found: Tree = {}
        names = _names(part)
        while names:
            name = names.pop()
            found[name] = self.definitions[name]
            names |= _names(found[name]) - found.keys()
        return {name: found[name] for name in sorted(found)}


def _names(part: Tree) -> set[str]:
    return set(_REFERENCE.findall(json.dumps(part)))


def _named(schema: Tree) -> str:
    """The name that a reference gives."""
    return str(schema["$ref"]).rpartition("/")[2]


def _close(node: Any) -> None:
    """Say of objects whose keys have a pattern that no others are taken; pydantic leaves that out."""
    for inner in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        _close(inner)
    if isinstance(node, dict) and isinstance(node.get("patternProperties"), dict):
        node["additionalProperties"] = False


def _free(route: Route) -> Tree:
    """The operation of a route that is not the application's own, and asks for no key."""
    return {"summary": route.name.title(), "description": route.endpoint.__doc__, "operationId": route.name}


def _fill(operation: Tree, route: Route, told: _Told, schemas: _Schemas) -> None:
    """Write what is read and answered into an operation."""
    has_body = told.body is not None or told.form is not None
    usual = [*REFUSED, *STORED] if isinstance(route, APIRoute) else [403]
    usual += [*IN_PATH] if "{" in route.path or told.query is not None else []
    usual += [*WITH_BODY] if has_body else []
    answers = {media: _content(media, schemas.of(kind, "serialization")) for media, kind in told.answers.items()}
    contents = {told.status: answers}
    contents |= {
        status: {JSON: _content(JSON, schemas.of(kind, "serialization"))} for status, kind in told.also.items()
    }
    responses: dict[int, Tree] = {status: {"$ref": f"#/components/responses/{status}"} for status in usual}
    responses |= {
        status: {"description": HTTPStatus(status).phrase, "content": content} for status, content in contents.items()
    }
    if isinstance(route, APIRoute):
        responses |= {int(status): _refusal(one["description"], schemas) for status, one in route.responses.items()}
    operation["responses"] = {str(status): responses[status] for status in sorted(responses)}
    if told.body is not None:
        schema = schemas.of(told.body, "validation")
        operation["requestBody"] = {"required": True, "content": {JSON: {"schema": schema}}}
    if told.form is not None:
        schema = _form_schema(told.form, schemas)
        operation["requestBody"] = {"required": True, "content": {"multipart/form-data": {"schema": schema}}}
    if told.query is not None:
        operation.setdefault("parameters", []).extend(_parameters(told.query, schemas))


def _refusal(text: str, schemas: _Schemas) -> Tree:
    return {"description": text, "content": {JSON: {"schema": schemas.of(ErrorBody, "serialization")}}}


def _content(media: str, schema: Tree) -> Tree:
    if media == "application/octet-stream":
        return {}  # OpenAPI 3.1: bytes as they are need no schema
    return {"schema": schema}


def _parameters(kind: Any, schemas: _Schemas) -> Iterator[Tree]:
    """The parameters of a query: an object's parts stand in brackets, and null is what is not given."""
    for name, schema in schemas.whole(kind, "validation")["properties"].items():
        schema = _given(schema)
        about = {"description": schema.pop("description")} if "description" in schema else {}
        style = {"style": "deepObject", "explode": True} if schema.get("type") == "object" else {}
        yield {"name": name, "in": "query", "required": False, **about, **style, "schema": schema}


def _given(schema: Tree) -> Tree:
    """A schema without null."""
    kinds: list[Tree] = [one for one in schema.get("anyOf", ()) if one.get("type") != "null"]
    if len(kinds) != 1:
        return dict(schema)
    given: Tree = {key: value for key, value in schema.items() if key not in ("anyOf", "default")}
    return {**given, **kinds[0]}


def _form_schema(form: Multipart[Any], schemas: _Schemas) -> Tree:
    """A form: its file, and its fields; those of an object stand in brackets and come together."""
    whole = schemas.whole(form.kind, "validation")
    made: Tree = {"type": "object", "properties": {form.file: {"type": "string", "format": "binary"}}}
    for name, schema in whole.get("properties", {}).items():
        given = _given(schema)
        if "$ref" not in given:
            made["properties"][name] = given
            continue
        parts: Tree = schemas.definitions[_named(given)]["properties"]
        made["properties"] |= {f"{name}[{part}]": inner for part, inner in parts.items()}
        names = {f"{name}[{part}]" for part in parts}
        made["dependentRequired"] = {one: sorted(names - {one}) for one in sorted(names)}
    return made | {"required": [form.file, *whole.get("required", ())], "additionalProperties": False}
