"""Errors of handlers and of the router, and those that nobody foresaw, as answers in OpenAI's shape."""

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from luthier.serve.access_log import request_id
from luthier.serve.api_error import ApiError, internal


def tell_errors(app: FastAPI) -> None:
    """Let an application answer with what its handlers raise."""
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _unforeseen)


async def _api_error(_: Request, error: Exception) -> Response:
    if not isinstance(error, ApiError):
        raise error
    return JSONResponse(error.body(), error.status, headers=error.headers)


async def _unforeseen(request: Request, _: Exception) -> Response:
    """What is sent; starlette then raises the error again, and the log takes note of its kind."""
    error = internal(request_id(request.scope))
    return JSONResponse(error.body(), error.status, headers=error.headers)


async def _http_error(_: Request, error: Exception) -> Response:
    """What the router itself refuses: an unknown path or method."""
    if not isinstance(error, HTTPException):
        raise error
    message = {404: "There is no such path.", 405: "This path does not take this method."}.get(
        error.status_code, "Refused."
    )
    return JSONResponse(ApiError(message, status=error.status_code).body(), error.status_code, headers=error.headers)
