"""The models of the catalogue, as converted: right size, right tokens, and they know a capital city.

The default model is fetched if need be; the others are tested where `luthier models NAME` has been run before.
"""

import pytest
import torch

from luthier.data.templates import build_template
from luthier.errors import ModelError
from luthier.examples import Conversation, Message
from luthier.models.catalog import known, resolve
from luthier.models.load import LoadedModel, load
from luthier.recipe import ModelSettings

pytestmark = [pytest.mark.slow, pytest.mark.numerics]


@pytest.fixture(scope="module", params=sorted(known()))
def loaded(request: pytest.FixtureRequest) -> LoadedModel:
    name: str = request.param
    try:
        files = resolve(name, offline=name != ModelSettings().name)
    except ModelError as error:
        pytest.skip(f"{name} is not here: {error}")
    return load(files, precision="bfloat16" if known()[name].parameters > 1e9 else "float32", device="cpu")


def test_it_has_the_parameters_that_the_catalogue_says(loaded: LoadedModel) -> None:
    assert sum(p.numel() for p in loaded.model.parameters()) == known()[loaded.files.name].parameters
    assert all(bool(p.isfinite().all()) for p in loaded.model.parameters())


def test_input_and_output_share_one_matrix(loaded: LoadedModel) -> None:
    model = loaded.model
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight  # type: ignore[operator]


def test_it_knows_a_capital(loaded: LoadedModel) -> None:
    template = build_template(loaded, "model")
    ids = torch.tensor([template.text_ids("The capital of France is")])
    with torch.no_grad():
        top = loaded.model(ids).logits[0, -1].topk(5).indices.tolist()
    assert " Paris" in [loaded.tokenizer.decode([i]) for i in top]


def test_digits_and_white_space_come_apart_as_in_pre_training(loaded: LoadedModel) -> None:
    ids = loaded.tokenizer('{\n  "zip": 62701\n}', add_special_tokens=False)["input_ids"]
    pieces = [loaded.tokenizer.decode([i]) for i in ids]
    assert [p for p in pieces if p.strip().isdigit()] == ["6", "2", "7", "0", "1"], pieces


def test_a_reply_ends_with_a_stop_token(loaded: LoadedModel) -> None:
    template = build_template(loaded, "model")
    (row,) = template.rows(Conversation((Message("user", "hi"), Message("assistant", "yes"))))
    trained = [i for i, m in zip(row.ids, row.loss_mask, strict=True) if m]
    assert loaded.tokenizer.decode(trained[:-1]) == "yes" and trained[-1] in loaded.stop_ids
    expected = {"<|im_end|>"} | ({"<eos>", "<end_of_turn>"} if "gemma" in loaded.files.name else set())
    assert {loaded.tokenizer.decode([i]) for i in loaded.stop_ids} <= expected
