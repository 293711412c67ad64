"""A database or a disk that refuses is the operator's matter: 503 or 507, and no 500."""

import logging
import sqlite3

from fastapi import FastAPI
from sqlalchemy.exc import DBAPIError, OperationalError, TimeoutError as NoConnection
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from luthier.jobs.disk import disk_full
from luthier.serve.api_error import ApiError
from luthier.serve.failures import place_of

_logger = logging.getLogger("luthier.jobs")
POSTGRES_FULL = "DiskFull"
"""What psycopg calls it; it is not imported where the database is SQLite."""


def tell_storage_errors(app: FastAPI) -> None:
    """Let an application answer with them."""
    app.add_exception_handler(OperationalError, _refused)
    app.add_exception_handler(NoConnection, _refused)


async def _refused(_: Request, error: Exception) -> Response:
    cause = error.orig if isinstance(error, DBAPIError) else error
    _logger.error("the database refuses: %s in %s", type(cause).__name__, place_of(error))
    told = disk_full() if _is_full(cause) else _unavailable()
    return JSONResponse(told.body(), told.status, headers=told.headers)


def _is_full(error: BaseException | None) -> bool:
    if isinstance(error, sqlite3.Error):
        return error.sqlite_errorcode == sqlite3.SQLITE_FULL
    return type(error).__name__ == POSTGRES_FULL


def _unavailable() -> ApiError:
    return ApiError("The database cannot be used right now; try again shortly.", status=503, code="unavailable")
