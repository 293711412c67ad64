"""Several trained LoRAs, or one at another strength, become one LoRA on the same base.

Updates are combined as what they add to a weight, never factor by factor: A and B of two adapters have nothing to do
with one another. The result is factored again, exactly where a sum of updates has the rank for it, else by the best
approximation of the rank asked for; the share of it that is kept is told for each layer.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from luthier import __version__, run_registry
from luthier.adapters._layers import PREFIX, WEIGHTS, write_artifact
from luthier.adapters._low_rank_files import read_low_rank, scale_of
from luthier.adapters._tokens import INDICES
from luthier.assemble import RECORD, TEMPLATE_FILE, artifact_record
from luthier.errors import ModelError
from luthier.files import sha256_of
from luthier.merging.base import Merge
from luthier.models import heads
from luthier.run_folder import RunFolder, now

Factors = tuple[Tensor, Tensor]
"""A (rank, in) and B (out, rank), scaled, so that the update is B A."""


OF_THE_RUN = ("recipe.toml", "recipe.json", "manifest.json", "findings.json", "data", "records", "forgetting_base.json")
"""Files of a run that say what it is measured on, and what its baselines answered."""


@dataclass(frozen=True)
class Source:
    """One adapter that is merged."""

    folder: Path
    record: dict[str, Any]
    """What the run wrote about it."""
    layers: Mapping[str, Factors]
    weight: float


def read_source(run: Path, weight: float) -> Source:
    """The adapter of a run.

    Raises:
        ModelError: the run has none, it is no LoRA, or a file was changed.
    """
    folder = run / "adapter"
    record = artifact_record(folder)
    if (folder / heads.FILE).is_file():
        raise ModelError(f"{run}: a head was trained beside its adapter, which cannot be merged with others")
    config = read_low_rank(folder)
    if config.get(INDICES):
        raise ModelError(
            f"{run}: its adapter trains rows of new tokens, which cannot be merged with others: they are no update "
            "of a weight; export this run alone"
        )
    tensors = load_file(folder / WEIGHTS)
    layers: dict[str, Factors] = {}
    for name in sorted({key.removeprefix(PREFIX).rpartition(".lora_")[0] for key in tensors}):
        a, b = (tensors[f"{PREFIX}{name}.lora_{part}.weight"].float() for part in "AB")
        layers[name] = a, b * scale_of(config, name, len(a))
    return Source(folder, record, layers, weight)


def require_same_base(sources: Sequence[Source]) -> None:
    """Check that all were trained on the same base with the same template.

    Raises:
        ModelError: they were not; adding such updates would make nonsense.
    """
    first = sources[0]
    for other in sources[1:]:
        if other.record["model"]["fingerprint"] != first.record["model"]["fingerprint"]:
            raise ModelError(
                f"{other.folder} was trained on {other.record['model']['name']}, {first.folder} on "
                f"{first.record['model']['name']} or other files of it; only adapters of one base can be merged"
            )
        if other.record["template"]["sha256"] != first.record["template"]["sha256"]:
            raise ModelError(
                f"{other.folder} was trained with another template ({other.record['template']['name']}) than "
                f"{first.folder} ({first.record['template']['name']}); one model answers by one template"
            )


def merged_layers(
    sources: Sequence[Source], method: Merge, rank: int | None, seed: int
) -> dict[str, tuple[Factors, float]]:
    """For each layer the factors of the merged update, and the share of its squared size that they keep."""
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, tuple[Factors, float]] = {}
    for name in sorted({name for source in sources for name in source.layers}):
        parts = [(s.layers[name], s.weight) for s in sources if name in s.layers]
        most = rank or method.default_rank([len(a) for (a, _), _ in parts])
        if method.is_sum:  # a sum of updates of low rank is of low rank
            a, b = torch.cat([a for (a, _), _ in parts]), torch.cat([weight * b for (_, b), weight in parts], 1)
            found[name] = shorten(a, b, most)
        else:
            shape = parts[0][0][1].shape[0], parts[0][0][0].shape[1]
            missing = [torch.zeros(shape)] * (len(sources) - len(parts))
            update = method.combine([weight * (b @ a) for (a, b), weight in parts] + missing, generator)
            found[name] = factored(update, most)
    return found


def shorten(a: Tensor, b: Tensor, rank: int) -> tuple[Factors, float]:
    """The best approximation of B A of this rank, without making B A; B A itself where it has no larger one.

    QR of both leaves a small product, whose singular values are those of B A.
    """
    if rank >= len(a):
        return (a, b), 1.0
    qa, ra = torch.linalg.qr(a.t())
    qb, rb = torch.linalg.qr(b)
    u, s, v = torch.linalg.svd(rb @ ra.t())
    root = s[:rank].sqrt()
    kept = float(s[:rank].square().sum() / s.square().sum().clamp_min(1e-30))
    return (root[:, None] * (v[:rank] @ qa.t()), (qb @ u[:, :rank]) * root), kept


def factored(update: Tensor, rank: int) -> tuple[Factors, float]:
    """The best approximation of an update of this rank, and the share of its squared size that it keeps."""
    u, s, v = torch.linalg.svd(update, full_matrices=False)
    root = s[:rank].sqrt()
    kept = float(s[:rank].square().sum() / s.square().sum().clamp_min(1e-30))
    return (root[:, None] * v[:rank], u[:, :rank] * root), kept


def write_merged(out: Path, sources: Sequence[Source], layers: Mapping[str, tuple[Factors, float]], how: str) -> None:
    """Write `out/adapter`, and beside it what the first run knew of its rows, so that it can be evaluated and exported
    as a run.

    Raises:
        ModelError: there is something at `out` already.
    """
    folder, first = out / "adapter", sources[0]
    if folder.exists():
        raise ModelError(f"{folder} exists; merge into another folder, or remove it")
    for name in OF_THE_RUN:
        given = first.folder.parent / name
        if given.is_dir():
            shutil.copytree(given, out / name, dirs_exist_ok=True)
        elif given.is_file():
            out.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(given, out / name)
    ranks = {name: len(a) for name, ((a, _), _) in layers.items()}
    config = {
        "peft_type": "LORA",
        "target_modules": sorted(layers),
        "r": max(ranks.values()),
        "lora_alpha": max(ranks.values()),
        "lora_dropout": 0.0,
        "rank_pattern": {name: rank for name, rank in ranks.items() if rank != max(ranks.values())},
        "alpha_pattern": {name: rank for name, rank in ranks.items() if rank != max(ranks.values())},
        "bias": "none",
        "init_lora_weights": True,
    }
    tensors = {
        f"{PREFIX}{n}.lora_{p}.weight": t for n, (pair, _) in layers.items() for p, t in zip("AB", pair, strict=True)
    }
    write_artifact(folder, first.record["model"]["name"], config, tensors)
    shutil.copyfile(first.folder / TEMPLATE_FILE, folder / TEMPLATE_FILE)
    merged = [{"run": str(s.folder.parent), "weight": s.weight, "training": s.record["training"]} for s in sources]
    record = {
        **first.record,
        "luthier": __version__,
        "training": None,
        "merged": {"method": how, "of": merged, "kept": {name: round(kept, 6) for name, (_, kept) in layers.items()}},
        "files": {path.name: sha256_of(path) for path in sorted(folder.iterdir())},
    }
    (folder / RECORD).write_text(json.dumps(record, indent=1, ensure_ascii=False), encoding="utf-8")
    _record_descent(RunFolder(out), [source.folder.parent for source in sources])


def _record_descent(merged: RunFolder, runs: Sequence[Path]) -> None:
    """Make the manifest that was copied from the first run that of a new one, which comes from all of them."""
    manifest = merged.read("manifest.json")
    if manifest is None:  # the run is older than manifests, or lost its own
        return
    entries = [run_registry.read_entry(run) for run in runs]
    parents = [run_registry.Parent(id=e.id, folder=e.folder, relation="merge of") for e in entries if e is not None]
    manifest = {key: value for key, value in manifest.items() if key not in ("failure", "trial")}
    fresh = {"id": run_registry.new_id(), "created": now(), "stages": {}, "openings": 1}
    merged.write("manifest.json", {**manifest, **fresh, "parents": [parent.model_dump() for parent in parents]})
    merged.enter()
