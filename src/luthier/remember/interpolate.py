"""A share of a trained update: weights between the base and what was trained, without training (WiSE-FT).

    W = W_base + share * (W_trained - W_base)        Wortsman et al. 2021, arXiv:2109.01903, equation 1

Of a LoRA the update is B A, so B is scaled. A model that was trained whole lies between its own weights and those of
the base. Other adapters are no sum of base and update (DoRA, IA3, OFT, virtual tokens), and are refused.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from luthier.adapters._low_rank_files import read_low_rank
from luthier.adapters._tokens import INDICES
from luthier.assemble import RECORD, Artifact, is_artifact_of
from luthier.config import canonical_hash
from luthier.errors import ModelError
from luthier.files import sha256_of
from luthier.models import heads


def obstacle(artifact: Artifact) -> str | None:
    """Why no share of this training can be taken; None: it can."""
    if (artifact.folder / heads.FILE).is_file():
        return "a head was trained beside it, which is no update of anything"
    if artifact.is_whole:
        return None
    try:
        config = read_low_rank(artifact.folder)
    except ModelError as error:
        return f"only a LoRA or a model that was trained whole is the base and an update: {error}"
    return "its adapter trains rows of new tokens, which are no update of a weight" if config.get(INDICES) else None


def write_share(artifact: Artifact, share: float, folder: Path) -> None:
    """Write the artifact of a share of a training, whole or not at all; one that is there already stays.

    Raises:
        ModelError: the base of a model that was trained whole cannot be had.
    """
    fingerprint = canonical_hash([artifact.record["training"], "share", share])
    if is_artifact_of(folder, fingerprint):
        return
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(artifact.folder, temporary)
    (weights,) = artifact.folder.glob("*.safetensors")  # of either kind there is one file
    tensors = load_file(weights)
    shared = _between(artifact, tensors, share) if artifact.is_whole else _scaled(tensors, share)
    save_file(shared, temporary / weights.name, metadata={"format": "pt"})
    (temporary / RECORD).unlink()
    record: dict[str, Any] = {
        **artifact.record,
        "training": fingerprint,
        "share": share,
        "files": {path.name: sha256_of(path) for path in sorted(temporary.iterdir())},
    }
    (temporary / RECORD).write_text(json.dumps(record, indent=1, ensure_ascii=False), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


def _scaled(tensors: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    return {name: share * tensor if ".lora_B" in name else tensor for name, tensor in tensors.items()}


def _between(artifact: Artifact, tensors: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    base = dict(artifact.open_base("cpu").model.named_parameters())
    return {name: _lerp(base[name].detach(), tensor, share) for name, tensor in tensors.items()}


def _lerp(base: Tensor, trained: Tensor, share: float) -> Tensor:
    return (base.float() + share * (trained.float() - base.float())).to(trained.dtype).contiguous()
