"""What a client is told when a request cannot be answered: OpenAI's error shape, with a status that fits.

The `openai` client turns the status into its exception class and the body into the exception's fields. A message names
the field and what was expected; it never repeats prompts, paths of this machine, or internals.
"""

from collections.abc import Mapping
from typing import Literal, TypeAlias

from typing_extensions import TypedDict

from luthier.errors import LuthierError

ErrorType: TypeAlias = Literal["invalid_request_error", "rate_limit_error", "server_error"]
INVALID: ErrorType = "invalid_request_error"
NO_RETRY: Mapping[str, str] = {"x-should-retry": "false"}
"""The `openai` client repeats every 5xx; a request that ran into its deadline would only run into it again."""


class ErrorObject(TypedDict):
    """What is wrong."""

    message: str
    type: ErrorType
    param: str | None
    code: str | None


class ErrorBody(TypedDict):
    """OpenAI's error shape."""

    error: ErrorObject


class ApiError(LuthierError):
    """A request that is answered with an error."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.status, self.param, self.code = message, status, param, code
        self.headers = dict(headers or {})

    @property
    def kind(self) -> ErrorType:
        """OpenAI's `type`: who has to change something."""
        return (
            INVALID
            if self.status < 500 and self.status != 429
            else "rate_limit_error"
            if self.status == 429
            else "server_error"
        )

    def body(self) -> ErrorBody:
        """The JSON that is sent."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def unsupported(param: str, why: str) -> ApiError:
    """A known field of OpenAI's API with a value that this server cannot honor."""
    return ApiError(f"{param!r} is not supported by this server: {why}", param=param, code="unsupported_parameter")


def model_not_found(name: str, known: list[str]) -> ApiError:
    """404: only the listed models are served, and no other answers in their place."""
    shown = name if len(name) <= 100 else name[:100] + "..."
    return ApiError(
        f"The model {shown!r} does not exist. This server has: {', '.join(known)}.",
        status=404,
        param="model",
        code="model_not_found",
    )


def too_many() -> ApiError:
    """429: the queue is full."""
    return ApiError(
        "The server's queue is full; try again shortly.",
        status=429,
        code="rate_limit_exceeded",
        headers={"retry-after": "1"},
    )


def gone() -> ApiError:
    """499: for the log only; the client hung up before there was an answer."""
    return ApiError("The client closed the connection.", status=499)


def deadline_passed(seconds: float, advice: str = "Ask for fewer tokens (`max_completion_tokens`).") -> ApiError:
    """504: the request ran longer than the server allows."""
    return ApiError(
        f"The request was given up after {seconds:g} seconds. {advice}",
        status=504,
        code="timeout",
        headers=NO_RETRY,
    )


def internal(request_id: str = "") -> ApiError:
    """500: something failed inside; details are in the server's log only."""
    where = f" Its log has more under {request_id}." if request_id else ""
    return ApiError(
        f"The server could not answer this request.{where}", status=500, code="internal_error", headers=NO_RETRY
    )
