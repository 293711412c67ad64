"""Who sends a request: the bearer key, looked up once, and what it may do."""

from fastapi.security import HTTPBearer
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.types import Scope

from luthier.jobs.tenants import Caller, Tenants
from luthier.serve.api_error import ApiError

KEY = "luthier.caller"
LONGEST_KEY = 512


class Keys(HTTPBearer):
    """A dependency of every route: 401 without a key that works. Only digests of keys are compared."""

    def __init__(self, tenants: Tenants) -> None:
        super().__init__(scheme_name="key", description="As `luthier service new-key` prints it.")
        self._tenants = tenants

    async def __call__(self, request: Request) -> None:  # type: ignore[override]
        """Note who calls, or raise the 401."""
        headers = request.headers.getlist("authorization")
        scheme, _, secret = (headers[0] if len(headers) == 1 else "").partition(" ")
        secret = secret.strip()
        found = None
        if scheme.lower() == "bearer" and 0 < len(secret) <= LONGEST_KEY:
            found = await run_in_threadpool(self._tenants.caller, secret)
        if found is None:
            raise ApiError(
                "A valid API key is required: `Authorization: Bearer KEY`.",
                status=401,
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )
        request.scope[KEY] = found


def caller_of(request: Request) -> Caller:
    """Who calls; every route has one."""
    found = request.scope[KEY]
    assert isinstance(found, Caller)
    return found


def fields_of(scope: Scope) -> dict[str, str]:
    """Who calls, as fields of the log: ids, which open nothing."""
    found = scope.get(KEY)
    return {"key_id": found.key_id, "project_id": found.project_id} if isinstance(found, Caller) else {}


def admin_of(request: Request) -> Caller:
    """Who calls, if he is an admin.

    Raises:
        ApiError: 403.
    """
    found = caller_of(request)
    if not found.is_admin:
        raise ApiError("This needs an admin key.", status=403, code="admin_key_required")
    return found


async def admins_project(request: Request) -> str:
    """A dependency: the project of an admin; asked before a body is read.

    Raises:
        ApiError: 403.
    """
    return admin_of(request).project_id
