"""For each file of tests that wants one: a job service over a tiny model, or one that learned replies by heart."""

from collections.abc import Callable, Iterator
from pathlib import Path

import openai
import pytest
from tests.jobs_service import Running, running
from tests.serving import Tiny, learn

from luthier.models.load import LoadedModel


@pytest.fixture(scope="module")
def tiny(make_tiny: Callable[..., LoadedModel]) -> Tiny:
    return learn(make_tiny)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("service"), tiny_model_folder) as found:
        yield found


@pytest.fixture(scope="module")
def client(service: Running) -> openai.OpenAI:
    return service.client()
