"""A bridge to the `peft` library: any of its methods that change layers, by its own name and settings.

For methods that have no file here (OFT, LoHa, LoKr, ...), and to compare. peft computes them, in float32 where the
trained tensors are; `lora`, `dora` and the others that have a file here are faster by theirs. Methods of virtual tokens
are `prompt`, `prefix` and `p_tuning` here, since they have to reach the rows. Needs the package `peft`.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from luthier.adapters._layers import WEIGHTS
from luthier.adapters.base import Adapter, Injected, by_name, require_same_tensors
from luthier.errors import ModelError, RecipeError, did_you_mean

NAME = "default"  # what peft calls the one adapter


class InjectedPeft(Injected):
    """An adapter of peft's inside one model; `wrapped` is peft's own view of it."""

    def __init__(self, model: nn.Module, wrapped: Any) -> None:
        self.model, self.wrapped = model, wrapped

    @property
    def trainable(self) -> Mapping[str, nn.Parameter]:
        """What peft trains."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def disabled(self) -> AbstractContextManager[None]:
        """The base alone while open."""
        context: AbstractContextManager[None] = self.wrapped.disable_adapter()
        return context

    def merge(self) -> None:
        """Merged by peft, in the type of the base.

        Raises:
            NotImplementedError: the method cannot be merged.
        """
        self.wrapped.merge_and_unload()

    def save(self, folder: Path, base_name: str) -> None:
        """Write what peft writes, but for its model card."""
        folder.mkdir(parents=True, exist_ok=True)
        config = self.wrapped.peft_config[NAME]
        config.base_model_name_or_path, before = base_name, config.inference_mode
        config.inference_mode = True
        config.save_pretrained(str(folder))
        config.inference_mode = before
        save_file(by_name(self._tensors()), folder / WEIGHTS, metadata={"format": "pt"})

    def load(self, folder: Path) -> None:
        """Read the tensors of a folder that `save` or peft wrote."""
        from peft import set_peft_model_state_dict

        tensors = load_file(folder / WEIGHTS)
        require_same_tensors(folder / WEIGHTS, tensors, self._tensors())
        set_peft_model_state_dict(self.wrapped, tensors, adapter_name=NAME)

    def _tensors(self) -> dict[str, torch.Tensor]:
        from peft import get_peft_model_state_dict

        found: dict[str, torch.Tensor] = get_peft_model_state_dict(self.wrapped, adapter_name=NAME)
        return found


class Peft(Adapter):
    """Any method of the `peft` library that changes layers."""

    method: str = "lora"
    """peft's name of the method: `oft`, `boft`, `loha`, `lokr`, `hra`, ..."""
    settings: dict[str, Any] = {}
    """Settings of the method by peft's own names. Where `target_modules` is left out, all linear layers are meant."""

    def inject(self, model: nn.Module, seed: int) -> InjectedPeft:
        """Let peft change the model; trained tensors are float32.

        Raises:
            RecipeError: peft is not installed, has no such method, or refuses the settings.
        """
        config = self._config()
        if "target_modules" in vars(config) and "target_modules" not in self.settings:
            config.target_modules = "all-linear"
        return _inject(model, config, seed)

    def restore(self, model: nn.Module, folder: Path) -> InjectedPeft:
        """Inject by the settings in the folder, then load its tensors."""
        from peft import PeftConfig

        config = PeftConfig.from_pretrained(str(folder))
        config.inference_mode = False
        injected = _inject(model, config, seed=0)
        injected.load(folder)
        return injected

    def _config(self) -> Any:
        try:
            from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING
        except ImportError:
            raise RecipeError("adapter.type = peft needs the package: pip install peft") from None
        known = {str(kind.value).lower(): kind for kind in PEFT_TYPE_TO_CONFIG_MAPPING}
        kind = known.get(self.method.lower())
        if kind is None:
            raise RecipeError(
                f"adapter.method = {self.method!r}: peft has no such method"
                f"{did_you_mean(self.method, sorted(known))}; there are {', '.join(sorted(known))}"
            )
        if kind not in PEFT_TYPE_TO_PREFIX_MAPPING:
            raise RecipeError(
                f"adapter.method = {self.method!r} puts virtual tokens before rows; use adapter.type = prompt, prefix "
                "or p_tuning"
            )
        try:
            return PEFT_TYPE_TO_CONFIG_MAPPING[kind](task_type="CAUSAL_LM", **self.settings)
        except (TypeError, ValueError) as error:
            raise RecipeError(f"adapter.settings: peft refuses them for {self.method}: {error}") from None


def _inject(model: nn.Module, config: Any, seed: int) -> InjectedPeft:
    from peft import get_peft_model

    model.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            wrapped = get_peft_model(model, config)  # type: ignore[arg-type]
        except (ValueError, TypeError) as error:
            raise ModelError(f"peft cannot put {config.peft_type} into {type(model).__name__}: {error}") from None
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return InjectedPeft(model, wrapped)
