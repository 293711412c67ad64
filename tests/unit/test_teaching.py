"""What a teacher is asked and tells: the same replies behind other prompts, of other tokenizers, part by part."""

import itertools
import json
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.small_tokenizers import CHATML, byte_level

from luthier import assemble
from luthier.config import build, canonical_hash
from luthier.data.alignment import Piece, aligned, shared_vocabulary
from luthier.data.source import Unit
from luthier.engine.kept_teacher import ROWS_OF_PART, KeptTeacher, Place, is_kept, keep, places_of
from luthier.errors import DataError, RecipeError
from luthier.examples import Conversation, Message, Row
from luthier.models.forest import build_batch
from luthier.models.load import LoadedModel
from luthier.models.scorer import Scorer
from luthier.objectives.base import Models, Told
from luthier.progress import Silent
from luthier.recipe import Recipe
from luthier.teaching.kept import kept
from luthier.teaching.live import live
from luthier.teaching.plan import Voice, planned

PROMPT = "You are a careful assistant. Read the address and return only its parts."
REPLIES = ("The capital of France is Paris.", '{"city": "Springfield", "zip": "62701"}', "No. Ünïcödé €, 12 345!", "a")


def chats() -> list[Conversation]:
    found = []
    for number, reply in enumerate(REPLIES):
        first = (Message("user", f"What is {number}?"), Message("assistant", reply))
        again = (Message("user", "And now?"), Message("assistant", REPLIES[number - 1])) if number % 2 else ()
        found.append(Conversation((*first, *again), id=f"chat{number}"))
    return found


def recipe_of(folder: Path, teacher: dict[str, Any], **objective: Any) -> Recipe:
    return build(
        Recipe,
        {
            "model": {"name": str(folder), "precision": "float32"},
            "data": {"train": "rows.jsonl"},
            "objective": {"type": "distill", "top_k": 600, **objective},
            "teacher": teacher,
        },
    )


def asked(
    recipe: Recipe, loaded: LoadedModel, folder: Path, limit: int | None = None
) -> tuple[KeptTeacher, list[Unit]]:
    """The teacher's words on the chats, as they are rendered for the student with at most `limit` tokens."""
    template, examples = assemble.template_for(recipe, loaded, limit), chats()
    objective, plan = assemble.objective_of(recipe), planned(recipe, loaded)
    units: list[Unit] = [objective.rows(example, template) for example in examples]
    lesson = objective.lesson()
    assert plan is not None and lesson is not None
    student = Voice(loaded, assemble.template_for(recipe, loaded), Scorer(loaded.model))
    rows: dict[str, Any] = {"train": (examples, units)}
    return kept(plan, lesson, recipe, student, rows, folder, Silent()), units


def loss_of(recipe: Recipe, loaded: LoadedModel, teacher: KeptTeacher, units: Sequence[Unit]) -> float:
    """The mean divergence of a student from the words."""
    batch, objective = build_batch([row for unit in units for row in unit]), assemble.objective_of(recipe)
    with torch.no_grad():
        found = objective.loss(Models(Scorer(loaded.model), teacher=teacher), batch)
    return found.metrics["divergence"].value()


def other_folder(folder: Path, source: Path, seed: int = 1) -> Path:
    """A model of the same tokenizer whose weights are moved."""
    shutil.copytree(source, folder)
    weights, generator = load_file(source / "model.safetensors"), torch.Generator().manual_seed(seed)
    moved = {name: w + 0.05 * torch.randn(w.shape, generator=generator) for name, w in weights.items()}
    save_file(moved, folder / "model.safetensors", {"format": "pt"})
    return folder


# the prompt


@pytest.mark.parametrize("limit", [None, 30])
def test_behind_a_prompt_it_tells_what_the_model_says_there(
    limit: int | None, make_tiny: Callable[..., LoadedModel], tiny_model_folder: Path, tmp_path: Path
) -> None:
    """Each number is that of a plain call of the model over the long row, at the token itself."""
    (tmp_path / "prompt.txt").write_text(PROMPT)
    examples = tmp_path / "examples.jsonl"
    examples.write_text(json.dumps({"prompt": "Is it?", "completion": "It is."}) + "\n")
    teacher = {"prompt": str(tmp_path / "prompt.txt"), "examples": str(examples)}
    loaded, recipe = make_tiny(), recipe_of(tiny_model_folder, teacher, temperature=2.0)
    told, units = asked(recipe, loaded, tmp_path, limit)
    for unit, chat in zip(units, chats(), strict=True):
        long = Conversation(
            (
                Message("system", PROMPT),
                Message("user", "Is it?"),
                Message("assistant", "It is.", weight=0.0),
                *chat.messages,
            )
        )
        (row,) = assemble.template_for(recipe, loaded).rows(long)
        trained = [i for i, weight in enumerate(row.loss_mask) if weight and i]
        with torch.no_grad():
            logits = loaded.model(input_ids=torch.tensor([row.ids])).logits[0]
        expected = (logits / 2.0).log_softmax(-1)[torch.tensor(trained) - 1]
        (mine,) = unit
        said = told.told(build_batch([mine]))
        count = mine.trained_tokens
        assert said.ids_KB.shape == (count, loaded.model.config.vocab_size)  # type: ignore[union-attr, arg-type]
        named = expected[:count].gather(1, said.ids_KB)
        assert (named - said.logprobs_KB[:, :-1]).abs().max() < 1e-4 and (said.logprobs_KB[:, -1] == -torch.inf).all()
        assert limit is None or len(mine.ids) <= limit


def test_on_policy_each_row_has_its_prompt_and_room_for_a_reply_behind_it(
    make_tiny: Callable[..., LoadedModel], tiny_model_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "prompt.txt").write_text(PROMPT)
    own = recipe_of(tiny_model_folder, {"prompt": str(tmp_path / "prompt.txt")})
    values = own.dump() | {"objective": {"type": "gkd"}, "rollout": {"group_size": 1, "max_new_tokens": 8}}
    loaded, recipe = make_tiny(), build(Recipe, values)
    plan, lesson = planned(recipe, loaded), assemble.objective_of(recipe).lesson()
    assert plan is not None and lesson is not None
    template, rows = assemble.template_for(recipe, loaded), chats()
    longest = max(len(template.prompt_ids(plan.before(row.messages[:-1]), row.tools)) for row in rows) + 8

    def opened(rows: list[Conversation], limit: int) -> None:
        student = Voice(replace(loaded, max_tokens=limit), template, Scorer(loaded.model))
        live(plan, lesson, recipe, student, {"train": rows}, Silent())

    opened(rows, longest)
    with pytest.raises(DataError, match=f"tokens for the teacher, .* than its context, {longest - 1}"):
        opened(rows, longest - 1)
    with pytest.raises(DataError, match="another row has the id 'chat0'"):
        opened([rows[0], replace(rows[1], id="chat0")], longest)
    opened([rows[0], rows[0]], longest)


def test_what_a_model_tells_itself_follows_from_how_it_is_held_and_where_it_begins(
    make_tiny: Callable[..., LoadedModel], tiny_model_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "prompt.txt").write_text(PROMPT)
    recipe, loaded = recipe_of(tiny_model_folder, {"prompt": str(tmp_path / "prompt.txt")}), make_tiny()
    values = recipe.dump()
    packed = build(Recipe, values | {"model": values["model"] | {"quantize": "nf4"}})
    plans = [planned(recipe, loaded), planned(packed, loaded), planned(recipe, loaded, {"adapter.safetensors": "0"})]
    assert len({canonical_hash(plan.decides) for plan in plans if plan is not None}) == 3


# other tokenizers


def permuted(folder: Path, source: Path, seed: int = 0) -> Path:
    """The same model with another number for every ordinary token."""
    shutil.copytree(source, folder)
    spec = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    fixed = {token["id"] for token in spec["added_tokens"]}
    vocabulary: dict[str, int] = spec["model"]["vocab"]
    free = [token for token in vocabulary.values() if token not in fixed]
    moved = dict(zip(free, random.Random(seed).sample(free, len(free)), strict=True))
    spec["model"]["vocab"] = {piece: moved.get(token, token) for piece, token in vocabulary.items()}
    (folder / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
    weights = load_file(source / "model.safetensors")
    table = weights["model.embed_tokens.weight"]
    weights["model.embed_tokens.weight"] = table.clone()
    for old, new in moved.items():
        weights["model.embed_tokens.weight"][new] = table[old]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_a_teacher_that_only_numbers_its_tokens_otherwise_tells_the_same(
    make_tiny: Callable[..., LoadedModel], tiny_model_folder: Path, tmp_path: Path
) -> None:
    teacher = other_folder(tmp_path / "other", tiny_model_folder)
    loaded, found = make_tiny(), []
    for place, name in ((tmp_path / "a", teacher), (tmp_path / "b", permuted(tmp_path / "numbers", teacher))):
        recipe = recipe_of(tiny_model_folder, {"model": str(name), "precision": "float32"})
        place.mkdir()
        told, units = asked(recipe, loaded, place)
        found.append(loss_of(recipe, loaded, told, units))
    assert found[0] == pytest.approx(found[1], abs=1e-5) and found[0] > 0.01
    same = permuted(tmp_path / "self", tiny_model_folder)
    itself = recipe_of(tiny_model_folder, {"model": str(same), "precision": "float32"})
    told, units = asked(itself, loaded, tmp_path)
    assert loss_of(itself, loaded, told, units) == pytest.approx(0, abs=1e-6)


def other_tokenizer(folder: Path, source: Path) -> Path:
    """A random model whose tokenizer was learned elsewhere."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = byte_level(330)
    tokenizer.chat_template = CHATML
    config = LlamaConfig.from_pretrained(source)
    config.vocab_size = len(tokenizer)
    config.eos_token_id = config.pad_token_id = tokenizer.eos_token_id
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_another_tokenizer_tells_where_both_cut_alike_and_the_rows_teach_the_rest(
    make_tiny: Callable[..., LoadedModel], tiny_model_folder: Path, tmp_path: Path
) -> None:
    loaded, teacher = make_tiny(), {"model": str(other_tokenizer(tmp_path / "other", tiny_model_folder))}
    with pytest.raises(RecipeError, match=r"tells of [0-9.]+% of the trained tokens. Set objective.cross_entropy"):
        asked(recipe_of(tiny_model_folder, teacher), loaded, tmp_path)
    recipe = recipe_of(tiny_model_folder, teacher, cross_entropy=0.5)
    told, units = asked(recipe, loaded, tmp_path)
    rows = [row for unit in units for row in unit]
    said = told.told(build_batch(rows))
    is_told = (said.ids_KB >= 0).any(1)
    assert 0.1 < is_told.double().mean() < 0.95
    silent = said.logprobs_KB[~is_told]
    assert (silent[:, :-1] == -torch.inf).all() and (silent[:, -1] == 0).all()
    assert (said.logprobs_KB[is_told].exp().sum(1) - 1).abs().max() < 1e-5
    # every token that is named can be said by the student, once
    for ids in said.ids_KB[is_told]:
        named = ids[ids >= 0].tolist()
        assert len(set(named)) == len(named) and max(named) < len(loaded.tokenizer)
    # the real token is among them wherever both cut alike and the teacher may name all
    targets = torch.tensor([t for row in rows for t, w in zip(row.ids, row.loss_mask, strict=True) if w])
    assert (said.ids_KB[is_told] == targets[is_told, None]).any(1).all()


def test_tokens_stand_at_the_same_place_only_where_begin_and_end_agree() -> None:
    mine: list[Piece] = [b"Ha", b"llo", b" you", b"!", None, b"ok", None]
    theirs: list[Piece] = [b"Hallo", b" you", b"!", None, b"o", b"k", None]
    assert aligned(mine, theirs) == [None, None, 1, 2, 3, None, 6]
    assert aligned(theirs, mine) == [None, 2, 3, 4, None, None, 6]
    assert aligned(mine[:3], theirs) == [None, None, 1]
    # of a text that is another one nothing can be told, however it is cut
    assert aligned([b"a", b"b", None, b"c"], [b"a", b"x", None, b"c"]) == [None, None, None, 3]


def test_what_is_aligned_says_the_same_behind_the_same() -> None:
    rng = random.Random(3)

    def cut(text: bytes) -> list[Piece]:
        places = [0, *sorted(rng.sample(range(1, len(text)), rng.randrange(1, 9))), len(text)]
        return [text[a:b] for a, b in itertools.pairwise(places)]

    for _ in range(200):
        texts = [bytes(rng.choices(b"abc", k=12)) for _ in range(2)]
        a, b = ([piece for text in texts for piece in (*cut(text), None)] for _ in range(2))
        found = aligned(a, b)
        for place, other in enumerate(found):
            if other is not None:
                assert a[place] == b[other]
                assert b"".join(p or b"|" for p in a[:place]) == b"".join(p or b"|" for p in b[:other])
        assert found[-1] == len(b) - 1  # the end is the end


def test_a_shared_word_is_named_once() -> None:
    assert shared_vocabulary({1: b"a", 2: b"b", 3: b"a"}, {7: b"b", 8: b"a", 9: b"a", 10: b"c"}) == {7: 2, 8: 1}


# parts


def test_a_process_that_was_stopped_asks_for_the_next_part_alone(tmp_path: Path) -> None:
    rows = [Row((5, 6, 7), (0.0, 1.0, 1.0), f"r{n}") for n in range(2 * ROWS_OF_PART + 1)]
    places = places_of(rows)
    parts: list[int] = []
    done: list[int] = []

    def say(part: int, until: int = 3) -> Told:
        if part == until:
            raise KeyboardInterrupt
        parts.append(part)
        count = 2 * (ROWS_OF_PART if part < 2 else 1)
        return Told(torch.full((count, 1), part), torch.full((count, 2), -0.5))

    with pytest.raises(KeyboardInterrupt):
        keep(tmp_path, "a", places, lambda part: say(part, until=1), done.append)
    assert parts == [0] and done == [1] and not is_kept(tmp_path, "a", places)
    teacher = keep(tmp_path, "a", places, say, done.append)
    assert parts == [0, 1, 2] and done == [1, 1, 2, 3] and is_kept(tmp_path, "a", places)
    said = teacher.told(build_batch([rows[-1], rows[0], rows[ROWS_OF_PART]])).ids_KB
    assert said.flatten().tolist() == [2, 2, 0, 0, 1, 1]
    damaged = sorted((tmp_path / "teacher").iterdir())[1]
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert not is_kept(tmp_path, "a", places)
    keep(tmp_path, "a", places, say, done.append)
    assert parts == [0, 1, 2, 1]
    keep(tmp_path, "b", places, say, done.append)  # of another training
    assert parts == [0, 1, 2, 1, 0, 1, 2]


def test_rows_stand_in_parts_in_their_order_and_a_beginning_is_told_alone() -> None:
    rows = [Row((5, 6, 7), (0.0, 1.0, 1.0), f"r{n}") for n in range(ROWS_OF_PART + 2)]
    places = places_of(rows)
    assert places["r0"] == Place(0, 0, 2) and places[f"r{ROWS_OF_PART}"] == Place(1, 0, 2)
    assert places[f"r{ROWS_OF_PART + 1}"] == Place(1, 2, 2)
    parts = [Told(torch.arange(2 * n)[:, None], torch.zeros(2 * n, 2)) for n in (ROWS_OF_PART, 2)]
    teacher = KeptTeacher(parts, places)
    said = teacher.told(build_batch([rows[-1], rows[3].first(2)]))
    assert said.ids_KB.flatten().tolist() == [2, 3, 6]
    with pytest.raises(DataError, match="two rows have the id 'r0'"):
        places_of([rows[0], rows[0]])
    with pytest.raises(ValueError, match="temperature"):
        teacher.at(2.0)
