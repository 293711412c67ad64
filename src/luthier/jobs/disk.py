"""The disk of the service, of which some stays free: a full one would stop the database, too."""

import shutil
from pathlib import Path

from luthier.serve.api_error import NO_RETRY, ApiError

FREE_BYTES = 2 * 2**30


class Disk:
    """The disk on which a folder lies.

    Args:
        folder: of the service.
        free_bytes: that stay free.
    """

    def __init__(self, folder: Path, free_bytes: int = FREE_BYTES) -> None:
        self._folder, self._free_bytes = folder, free_bytes

    def is_full(self, coming: int = 0) -> bool:
        """Whether it would be, with so many bytes more."""
        return shutil.disk_usage(self._folder).free - coming < self._free_bytes

    def require_room(self, coming: int = 0) -> None:
        """Refuse what would fill it.

        Raises:
            ApiError: 507.
        """
        if self.is_full(coming):
            raise disk_full()


def disk_full() -> ApiError:
    """507: whoever runs the service has to make room; to ask again does not help."""
    return ApiError(
        "The server's disk is nearly full and takes nothing more; files that are not needed can be deleted.",
        status=507,
        code="insufficient_storage",
        headers=NO_RETRY,
    )
