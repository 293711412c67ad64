"""A job service over a tiny model, one for each file of tests that does not start its own."""

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from tests.jobs_service import Running, running


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("service"), tiny_model_folder) as found:
        yield found


@pytest.fixture(scope="module")
def client(service: Running) -> openai.OpenAI:
    return service.client()
