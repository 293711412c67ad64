"""What an export format is: it writes a folder, says how weights are rounded in it, and how it is opened elsewhere.

`write` is given a model of its own whose weights are float32, so that merging is exact and rounding happens once.
`rounded` is the same rounding said a second time, by the number: the gate rounds the trained model with it and compares
the artifact with that, so that what the format costs and what went wrong are told apart.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from luthier.assemble import Trained, precision_of
from luthier.errors import ExportError
from luthier.examples import Conversation
from luthier.export.survival import LEAST_KEPT, Survival, measure
from luthier.models.load import load
from luthier.models.packed import make_dense

TRANSFORMERS = "luthier.export.reload_transformers"
LLAMA_CPP = "luthier.export.reload_llama_cpp"
PACKED = "luthier.export.reload_packed"
HEADS = "luthier.export.reload_classifier"


class Exporter(ABC):
    """One format; `type` is the number format of the weights, one of `types`, or None for the format's own choice."""

    types: ClassVar[tuple[str, ...]] = ()
    """What `--type` may say; empty: nothing can be chosen."""
    reloads_with: ClassVar[str]
    """The module that opens the artifact in a fresh process; one with a head is opened by `HEADS`."""
    heads: ClassVar[frozenset[str]] = frozenset()
    """Kinds of heads that the format holds."""

    least_kept: float = LEAST_KEPT
    """Share of the update that must survive in each layer, where the format rounds to few bits."""
    survival: Survival | None = None
    """What `require_update` measured."""

    def __init__(self, type: str | None = None) -> None:
        name = self.__class__.__module__.rpartition(".")[2]
        if type is not None and type not in self.types:
            offered = f"expected one of {', '.join(self.types)}" if self.types else "it has no types to choose from"
            raise ExportError(f"--type {type}: the format {name} does not write it; {offered}")
        self.type = type

    @property
    def few_bits(self) -> str | None:
        """The name of the few bits that matrices are rounded to, which may erase what was learned; None: there are
        enough."""
        return None

    def keeping(self, least: float) -> "Exporter":
        """The exporter, once it is told the share of the update that must survive in each layer.

        Raises:
            ExportError: the format does not measure it, or it is no share.
        """
        if self.few_bits is None:
            name = self.__class__.__module__.rpartition(".")[2]
            raise ExportError(f"--least-kept {least}: {self.type or name} has bits enough and measures nothing")
        if not 0 <= least <= 1:
            raise ExportError(f"--least-kept {least}: expected a share between 0 and 1")
        self.least_kept = least
        return self

    @abstractmethod
    def require(self, trained: Trained) -> None:
        """Check that this run can be written and opened again here, before anything is written.

        Raises:
            ExportError: it cannot; the message says what can, or what to install.
        """

    @abstractmethod
    def write(self, trained: Trained, folder: Path) -> None:
        """Write the artifact into the empty `folder`; `trained` is in float32 and may be changed.

        Raises:
            ExportError: something of the run cannot be said in this format.
        """

    @abstractmethod
    def rounded(self, trained: Trained, name: str, weight: Tensor) -> Tensor:
        """What this format keeps of the merged float32 `weight` of that name, as float32."""

    @abstractmethod
    def stop_ids(self, trained: Trained) -> frozenset[int]:
        """The ends of a turn that the artifact must declare."""

    def like_arithmetic(self, trained: Trained, name: str, weight: Tensor) -> Tensor | None:
        """`weight` rounded as the program that opens the artifact rounds what flows between the weights; None: it
        computes in float32. What that does to the answers is the measure of what its arithmetic explains."""
        return None

    def merges(self) -> bool:
        """Whether the artifact holds merged weights."""
        return True

    def reload_settings(self, trained: Trained, folder: Path) -> Mapping[str, Any]:
        """What the fresh process must know beside the folder."""
        return {"artifact": str(folder)}

    def require_update(self, trained: Trained) -> None:
        """Measure how much of the update survives the rounding, before anything is written; `trained` is merged.

        Raises:
            ExportError: in a layer it is less than `least_kept`.
        """
        if self.few_bits is None:
            return
        held, files = trained.recipe.model.quantize, trained.loaded.files
        base = load(files, precision_of(trained.loaded), "cpu", verify=False, quantize=held)
        self.survival = measure(
            base.model,
            trained.loaded.model,
            self.few_bits,
            lambda layer, w: self.rounded(trained, f"{layer}.weight", w),
        )
        self.survival.require(self.least_kept)

    def measured(self) -> Mapping[str, Any]:
        """The share of the update that survives layer by layer, where it was measured, for `parity.json`."""
        return {} if self.survival is None else {"update": self.survival.dump()}

    def told(self) -> list[str]:
        """The mean and the worst layers, for a terminal, a line each."""
        return [] if self.survival is None else self.survival.told()

    def check(self, trained: Trained, folder: Path, rows: Sequence[Conversation]) -> list[str]:
        """What is wrong with parts of the artifact that the fresh process does not use; `rows` are the probes."""
        return []


def merge(trained: Trained) -> None:
    """Fold the adapter into the float32 weights; those of a quantized base are then what its codes stand for.

    Raises:
        ExportError: the adapter is of a kind that no weight can hold.
    """
    try:
        trained.injected.merge()
    except NotImplementedError as error:
        raise ExportError(f"{trained.name}: its adapter cannot be merged ({error}); use --format peft") from None
    make_dense(trained.loaded.model)  # layers of a quantized base that the adapter left alone


def save_tokenizer(trained: Trained, folder: Path) -> None:
    """Tokenizer and template, and the ends of a turn; sampling settings of the base are left behind.

    A base may come with a repetition penalty of its own, under which no evaluation here was done.
    """
    from transformers import GenerationConfig

    tokenizer = copy.deepcopy(trained.loaded.tokenizer)
    tokenizer.chat_template = trained.template.source or None
    tokenizer.save_pretrained(folder)
    GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=sorted(trained.template.stop_ids),
        pad_token_id=tokenizer.pad_token_id,
    ).save_pretrained(folder)


def require_package(package: str, install: str, why: str) -> None:
    """Check that a package is installed.

    Raises:
        ExportError: it is not.
    """
    if find_spec(package) is None:
        raise ExportError(f"the package `{package}` is not installed, and {why}: `{install}`")


def without_bos(trained: Trained, text: str) -> str:
    """A rendered prompt without the beginning-of-sequence token, where the tokenizer puts one itself: some programs
    then leave it out of the text."""
    return text.removeprefix(trained.loaded.tokenizer.bos_token) if trained.template.text_ids("") else text
