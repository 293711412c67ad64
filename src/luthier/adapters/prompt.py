"""Prompt tuning (Lester et al. 2021, arXiv:2104.08691): embeddings of virtual tokens before every row train."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from luthier.adapters._virtual import (
    InjectedVirtual,
    Virtual,
    VirtualEmbedding,
    read_virtual,
    shape_settings,
)


class PromptEmbedding(VirtualEmbedding):
    """Virtual tokens that are numbers of their own."""

    def __init__(self, base: nn.Embedding, start: Tensor) -> None:
        super().__init__(base, len(start))
        self.prompt = nn.Parameter(start.float())

    def contents(self) -> Tensor:
        """(count, width)"""
        return self.prompt


class InjectedPrompt(InjectedVirtual):
    """Trained embeddings of virtual tokens."""

    embedding: PromptEmbedding

    @property
    def trainable(self) -> Mapping[str, nn.Parameter]:
        """The embeddings."""
        return {"prompt_embeddings": self.embedding.prompt}

    def contents(self) -> Tensor:
        """(count, width)"""
        return self.embedding.prompt

    def take(self, contents: Tensor) -> None:
        """Set the embeddings."""
        self.embedding.prompt.copy_(contents)


class Prompt(Virtual):
    """Train the embeddings of virtual tokens that stand before every row."""

    learning_rate: ClassVar[float] = 2e-2

    text: str = ""
    """A text whose embeddings the virtual tokens start at, repeated as often as need be; empty: random words."""

    def reading(self, encode: Callable[[str], Sequence[int]]) -> "Prompt":
        """Knows the text's tokens."""
        found = self.starting_with(self.text, encode) if self.text else self
        assert isinstance(found, Prompt)
        return found

    def inject(self, model: nn.Module, seed: int) -> InjectedPrompt:
        """Give the model virtual tokens; everything else is frozen.

        Raises:
            ModelError: the model's embedding is not a plain one.
        """
        embedding = PromptEmbedding(*self.begin(model, seed))
        model.set_input_embeddings(embedding)  # type: ignore[operator]
        config: dict[str, Any] = {"peft_type": "PROMPT_TUNING", "prompt_tuning_init": "RANDOM"}
        return InjectedPrompt(model, embedding, {**config, **shape_settings(model, self.tokens)})

    def restore(self, model: nn.Module, folder: Path) -> InjectedPrompt:
        """Inject as many virtual tokens as the folder's settings say, then load them."""
        free = ("prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs")
        config = read_virtual(folder, "PROMPT_TUNING", free)
        injected = Prompt(tokens=config["num_virtual_tokens"]).inject(model, seed=0)
        injected.load(folder)
        return injected
