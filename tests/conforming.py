"""Holds every answer of a service against its own OpenAPI document: all tests that ask one check the document."""

import json
from copy import deepcopy
from functools import cache
from typing import Any

import requests
from schemathesis.core.failures import Failure, FailureGroup
from schemathesis.core.transport import Response
from schemathesis.openapi import from_dict
from schemathesis.schemas import BaseSchema
from schemathesis.specs.openapi.schemas import OpenApiSchema
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from luthier.jobs.service import openapi_text


@cache
def generated() -> dict[str, Any]:
    """The document as the code makes it now."""
    found = json.loads(openapi_text())
    assert isinstance(found, dict)
    return found


@cache
def _document(closed: bool) -> BaseSchema:
    """The document; where it is closed, no answer has a field that it does not name."""
    document = deepcopy(generated())
    asked = {
        name for path in document["paths"].values() for one in path.values() for name in _names(one.get("requestBody"))
    }
    for name, schema in document["components"]["schemas"].items():
        if closed and name not in asked and "properties" in schema:
            schema.setdefault("additionalProperties", False)
    found = from_dict(document)
    # named, so that it is imported above: in the service's thread Python 3.11 at times fails to parse it
    assert isinstance(found, OpenApiSchema)
    return found


def _names(part: Any) -> set[str]:
    text = json.dumps(part)
    return {piece.partition('"')[0] for piece in text.split("#/components/schemas/")[1:]}


class Conforming:
    """ASGI middleware outside of all others: notes every answer that does not conform; where the document is not
    closed, answers of another program may have fields of their own."""

    def __init__(self, app: ASGIApp, closed: bool = True) -> None:
        self._app, self._closed = app, closed
        self.seen = 0
        self.wrong: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        status, body = [0], bytearray()
        headers: dict[str, list[str]] = {}

        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                status[0] = message["status"]
                for name, value in message["headers"]:
                    headers.setdefault(name.decode().lower(), []).append(value.decode("latin-1"))
            elif message["type"] == "http.response.body":
                body.extend(message.get("body", b""))
            await send(message)

        await self._app(scope, receive, noted)
        route = scope.get("route")
        if scope["type"] == "http" and isinstance(route, Route) and status[0] not in (405, 499):
            self._check(scope["method"], route.path_format, status[0], headers, bytes(body))

    def _check(self, method: str, path: str, status: int, headers: dict[str, list[str]], body: bytes) -> None:
        if method not in ("GET", "POST", "DELETE"):
            return
        self.seen += 1
        if str(status) not in generated()["paths"][path][method.lower()]["responses"]:  # the validator takes any
            self.wrong.append(f"{method} {path} {status}: the document does not tell of this status")
            return
        request = requests.Request(method, f"http://localhost{path}").prepare()
        response = Response(status, headers, body, request, 0.0, True)
        try:
            _document(self._closed)[path][method].validate_response(response)
        except (Failure, FailureGroup) as found:
            all_of = found.exceptions if isinstance(found, FailureGroup) else (found,)  # one comes alone
            self.wrong.append(f"{method} {path} {status}: {'; '.join(map(str, all_of))}")
