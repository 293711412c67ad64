"""A proxy that keeps consented traffic as training rows. Never imports torch."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from luthier.errors import ServeError

if TYPE_CHECKING:
    from luthier.capture.redact import Redactor


def open_redactor(regions: Sequence[str]) -> "Redactor":
    """The rules that take personal data out.

    Raises:
        ServeError: the package that knows telephone numbers is missing, or a region is unknown.
    """
    try:
        from luthier.capture.redact import Redactor
    except ModuleNotFoundError as error:
        if error.name != "phonenumbers":
            raise
        raise ServeError(
            "telephone numbers are found by the package phonenumbers, which is not installed; "
            "pip install 'luthier[capture]'"
        ) from None
    return Redactor(regions)
