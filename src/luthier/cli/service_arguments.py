"""What `luthier up` and `luthier service` share: which service, and the settings by which it is opened."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from luthier.jobs.settings import ServiceSettings


def add_service_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare them."""
    parser.add_argument(
        "--data",
        type=Path,
        default=Path("service"),
        metavar="DIR",
        help="what the service keeps (default: service)",
    )
    parser.add_argument(
        "--settings", type=Path, metavar="FILE", help="TOML (default: DIR/service.toml, if it is there)"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change one key; repeatable")


def service_settings(args: argparse.Namespace) -> "tuple[ServiceSettings, Path]":
    """The settings that were asked for, and the folder from which their paths are read.

    Raises:
        RecipeError: a key is unknown or its value is wrong.
        ServeError: a file was named that is not there.
    """
    from luthier.jobs.settings import read_settings

    return read_settings(args.data, args.settings, args.set)
