"""What an environment is: it is told what the model says, answers, and says what that was worth and whether it ends.

Write one file beside this one: settings whose `make` gives a fresh `Environment` for each conversation.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Protocol

from luthier.config import Settings
from luthier.examples import Message


class Environment(Protocol):
    """One conversation. What it does must follow from the row and the replies alone, or no run can be repeated."""

    def reset(self, item: Mapping[str, Any]) -> None:
        """Begin with a row: its own fields, `messages`, and `target` and `reference_answer` where it has them."""
        ...

    def step(self, reply: Message) -> tuple[tuple[Message, ...], float, bool]:
        """What is said to a reply, what the reply earned, and whether the conversation is over.

        A reply that calls tools is answered with one result for each call, in their order.
        """
        ...


class EnvironmentSettings(Settings, ABC):
    """The settings of an environment."""

    @abstractmethod
    def make(self) -> Environment:
        """A fresh one."""
