"""A recipe: what it accepts, what it says when it does not, and that nothing is lost between file, memory and file."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest

from luthier import recipe as recipes, registry
from luthier.cli.main import main
from luthier.cli.reference import part_class, reference, schema, service_reference
from luthier.config import Settings, build, group_of, override, read_toml, write_toml
from luthier.errors import RecipeError
from luthier.recipe import DEFAULT_SYSTEMS, PARTS, SYSTEMS, Recipe

MINIMAL: dict[str, Any] = {"data": {"train": "/rows/train.jsonl"}}

RICH: dict[str, Any] = {
    "seed": 7,
    "model": {"name": "org/model", "precision": "float32"},
    "data": {
        "train": "/rows/train.jsonl",
        "test": "/rows/test.jsonl",
        "instruction": 'Say "yes"\nor no.',
        "loss_on": "all",
    },
    "adapter": {"type": "lora", "rank": 4, "targets": ["q_proj", "v_proj"]},
    "objective": {"type": "dpo", "beta": 0.3},
    "schedule": {"type": "wsd", "decay_share": 0.5},
    "training": {"steps": 10, "patience": False},
    "evaluation": {"systems": {"zero_shot": {}, "mine": {"type": "fine_tuned"}}, "forgetting": {"text": "none"}},
    "cost": {"machine_usd_per_hour": 1},
}


def every_settings_class() -> Iterator[type[Settings]]:
    """Recipe, its groups, and the settings of every part that can be chosen."""
    stack: list[type[Settings]] = [Recipe]
    packages = {package for package, _ in PARTS.values()} | {SYSTEMS}
    stack += [part_class(package, name) for package in sorted(packages) for name in registry.names(package)]
    while stack:
        cls = stack.pop()
        yield cls
        for field in cls.model_fields.values():
            inner = group_of(field.annotation)
            if inner is not None and inner is not Settings:
                stack.append(inner)


def refusal(changes: Mapping[str, Any], *assignments: str) -> str:
    """What is said about the minimal recipe with `changes`."""
    with pytest.raises(RecipeError) as caught:
        build(Recipe, override({**MINIMAL, **changes}, assignments))
    return str(caught.value)


def test_only_the_training_rows_have_no_default() -> None:
    recipe = build(Recipe, MINIMAL)
    assert registry.name_of(recipe.adapter) == "lora" and registry.name_of(recipe.objective) == "sft"
    assert tuple(recipe.evaluation.systems) == DEFAULT_SYSTEMS
    assert refusal({"data": {}}) == "'data.train' is missing: it has no default"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"data": {"train": "x", "trian": "y"}}, "unknown key 'data.trian'; did you mean 'train'?"),
        ({"zzz": 5}, "known here: adapter, constitution, cost, data"),
        ({"steps": 5}, "unknown key 'steps'; did you mean 'training.steps'?"),
        ({"training": {"stepz": 5}}, "unknown key 'training.stepz'; did you mean 'steps'"),
        (
            {"evaluation": {"forgetting": {"max_row": 5}}},
            "unknown key 'evaluation.forgetting.max_row'; did you mean 'max_rows'?",
        ),
        ({"training": {"steps": "many"}}, "training.steps = 'many': input should be a valid integer"),
        ({"training": {"steps": 0}}, "training.steps = 0: input should be greater than or equal to 1"),
        ({"training": {"patience": 0}}, "training.patience = 0: input should be greater than 0"),
        (
            {"training": {"gradient_checkpointing": 1}},
            "training.gradient_checkpointing = 1: input should be a valid boolean",
        ),
        ({"data": {"train": "x", "test_share": 0.5}}, "data.test_share = 0.5: input should be less than 0.5"),
        (
            {"data": {"train": "x", "loss_on": "user"}},
            "data.loss_on = 'user': input should be 'assistant', 'last_assistant' or 'all'",
        ),
        ({"adapter": {"type": "lroa"}}, "unknown adapter 'lroa'; did you mean 'lora'?"),
        ({"adapter": {"type": "lora", "rnk": 4}}, "unknown key 'adapter.rnk'; did you mean 'rank' or 'ranks'?"),
        ({"adapter": {"rank": 0}}, "adapter.rank = 0: input should be greater than or equal to 1"),
        ({"adapter": {"type": 3}}, "adapter.type = 3: expected a name, one of"),
        ({"adapter": "lora"}, "adapter = 'lora': expected a table such as { type = 'lora' }"),
        ({"objective": {"type": "rlhf"}}, "unknown objective 'rlhf'; known here:"),
        ({"optimizer": {"type": "adamw", "learning_rate": -1.0}}, "optimizer.learning_rate = -1.0: "),
        ({"schedule": {"type": "cosine", "decay_share": 0.1}}, "unknown key 'schedule.decay_share'"),
        ({"evaluation": {"systems": {"mine": {}}}}, "unknown system 'mine'; known here: "),
        (
            {"evaluation": {"systems": {"mine": {"type": "few_shoot"}}}},
            "unknown system 'few_shoot'; did you mean 'few_shot'",
        ),
        ({"evaluation": {"metrics": ["rouge"]}}, "unknown metric 'rouge'; did you mean 'rouge_l'?"),
        ({"evaluation": {"primary_metric": "f1"}}, "unknown metric 'f1'"),
        ({"learning_rate": 1e-3}, "unknown key 'learning_rate'; did you mean 'optimizer.learning_rate'?"),
        ({"training": {"learning_rate": 1e-3}}, "unknown key 'training.learning_rate'; did you mean 'optimizer.learn"),
        ({"rank": 4}, "unknown key 'rank'; did you mean 'adapter.rank'?"),
        ({"optimizer": {"rank": 4}}, "unknown key 'optimizer.rank'; did you mean 'adapter.rank'?"),
        ({"beta": 0.1, "objective": {"type": "dpo"}}, "unknown key 'beta'; did you mean 'objective.beta'?"),
        ({"adapter": {"type": "full", "rank": 4}}, "unknown key 'adapter.rank'"),
        ({"model": {"name": ""}}, "model.name = '': string should have at least 1 character"),
        ({"data": {"train": ""}}, "data.train = '': string should have at least 1 character"),
        ({"evaluation": {"systems": ["few_shot"]}}, "expected tables such as [evaluation.systems.zero_shot]"),
    ],
)
def test_says_what_is_wrong(changes: dict[str, Any], expected: str) -> None:
    assert expected in refusal(changes)


def test_everything_that_is_wrong_is_told_at_once_parts_and_systems_too() -> None:
    text = refusal(
        {
            "traning": {},
            "adapter": {"rnk": 4, "alpah": 8},
            "schedule": {"type": "cosin"},
            "optimizer": {"learning_rate": -1.0},
            "training": {"steps": 0},
            "evaluation": {"systems": {"mine": {"type": "few_shoot"}}, "metrics": ["rouge"], "confidence": 2.0},
        }
    )
    told = ["'traning'", "'adapter.rnk'", "'adapter.alpah'", "'cosin'", "optimizer.learning_rate", "training.steps"]
    told += ["'few_shoot'", "'rouge'", "evaluation.confidence"]
    assert len(text.splitlines()) == len(told) and all(word in text for word in told), text


def test_an_empty_path_never_becomes_the_folder_of_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text('[data]\ntrain = "x.jsonl"\n')
    for assignment in ("data.train=", "model.name="):
        with pytest.raises(RecipeError, match="at least 1 character"):
            recipes.load(tmp_path / "r.toml", [assignment])


def test_set_reaches_groups_parts_and_the_top() -> None:
    assignments = [
        "seed=3",
        "training.steps=5",
        "adapter.rank=2",
        "objective.type=dpo",
        "objective.beta=0.5",
        "model.name=a b",
    ]
    recipe = build(Recipe, override(MINIMAL, assignments))
    assert (recipe.seed, recipe.training.steps, recipe.model.name) == (3, 5, "a b")
    assert recipe.dump()["adapter"]["rank"] == 2
    assert recipe.dump()["objective"]["type"] == "dpo" and recipe.dump()["objective"]["beta"] == 0.5
    assert "adapter.rank = 'x'" in refusal({}, "adapter.rank=x")


def test_patience_can_be_switched_off() -> None:
    assert build(Recipe, override(MINIMAL, ["training.patience=false"])).training.patience is None
    assert build(Recipe, MINIMAL).training.patience == 3
    assert "training.patience = True" in refusal({}, "training.patience=true")


@pytest.mark.parametrize("tree", [MINIMAL, RICH], ids=["minimal", "rich"])
def test_dump_and_load_give_an_equal_recipe(tree: dict[str, Any], tmp_path: Path) -> None:
    recipe = build(Recipe, tree)
    for copy in (recipe.dump(), json.loads(json.dumps(recipe.dump()))):
        again = build(Recipe, copy)
        assert again == recipe and again.hash() == recipe.hash()
    path = tmp_path / "recipe.toml"
    path.write_text(write_toml(recipe.dump()), encoding="utf-8")
    assert recipes.load(path) == recipe


def test_hash_sees_values_and_not_their_order_or_spelling() -> None:
    def backwards(tree: Any) -> Any:
        return {k: backwards(tree[k]) for k in reversed(tree)} if isinstance(tree, dict) else tree

    recipe = build(Recipe, RICH)
    assert build(Recipe, backwards(RICH)).hash() == recipe.hash()
    assert build(Recipe, override(RICH, ["cost.machine_usd_per_hour=1.0"])).hash() == recipe.hash()
    assert build(Recipe, override(MINIMAL, ["adapter.type=lora"])).hash() == build(Recipe, MINIMAL).hash()
    for change in ("seed=8", "adapter.rank=5", "training.steps=11", "objective.type=sft", "data.instruction=no"):
        changed = override(RICH, [change] if "type" not in change else ['objective={type="sft"}'])
        assert build(Recipe, changed).hash() != recipe.hash(), change


def test_a_recipe_cannot_be_changed() -> None:
    recipe = build(Recipe, MINIMAL)
    with pytest.raises(ValueError, match="frozen"):
        recipe.training.steps = 3  # type: ignore[misc]


def test_paths_are_read_from_the_folder_of_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    path = tmp_path / "recipe.toml"
    path.write_text(
        'model = { name = "base", template = "own.jinja" }\n'
        'data = { train = "a.jsonl", validation = "/b.jsonl", test = "sub/c.jsonl" }\n'
        'evaluation = { json_schema = "s.json", forgetting = { text = "t.txt", multiple_choice = "none" } }\n'
    )
    recipe = recipes.load(path)
    assert (recipe.model.name, recipe.model.template) == (str(tmp_path / "base"), str(tmp_path / "own.jinja"))
    assert recipe.data.train == str(tmp_path / "a.jsonl") and recipe.data.validation == "/b.jsonl"
    assert recipe.data.test == str(tmp_path / "sub" / "c.jsonl")
    assert recipe.evaluation.json_schema == str(tmp_path / "s.json")
    assert recipe.evaluation.forgetting.text == str(tmp_path / "t.txt")
    assert recipe.evaluation.forgetting.multiple_choice == "none"
    untouched = recipes.load(
        path, ["model.name=org/model", "model.template=model", "evaluation.forgetting.text=builtin"]
    )
    assert (untouched.model.name, untouched.model.template) == ("org/model", "model")
    assert untouched.evaluation.forgetting.text == "builtin"


@pytest.mark.parametrize("cls", sorted(set(every_settings_class()), key=str))
def test_every_setting_is_documented_and_can_be_written_in_a_file(cls: type[Settings]) -> None:
    for name, field in cls.model_fields.items():
        assert field.description, f"{cls.__name__}.{name} has no docstring"
        assert name != "type", f"{cls.__name__}.type would hide the name of the part"
        kinds = str(field.annotation)
        assert "list[" not in kinds and "set[" not in kinds, f"{cls.__name__}.{name}: use a tuple, settings are frozen"
        if field.default is not None and type(None) in get_args(field.annotation):
            off = build(cls, {**_required(cls), name: False}).model_dump(mode="json")[name]
            assert off is False, f"{cls.__name__}.{name}: TOML has no null; use OrOff and dump None as false"


def _required(cls: type[Settings]) -> dict[str, Any]:
    return {name: "x" for name, field in cls.model_fields.items() if field.is_required()}


def test_reference_names_every_key_with_its_default_and_meaning() -> None:
    page = reference()
    for cls in every_settings_class():
        for name, field in cls.model_fields.items():
            if (
                name in PARTS
                or name in ("systems", "forgetting", "grounding", "style", "machine", "vllm", "supervised")
                or name in Recipe.model_fields
            ):
                continue
            meaning = " ".join((field.description or "").split()).replace("|", "\\|")
            assert any(f"| `{name}` |" in line and meaning in line for line in page.splitlines()), (
                f"{cls.__name__}.{name}"
            )
    for package, _ in PARTS.values():
        assert all(f'### `type = "{name}"`' in page for name in registry.names(package))
    assert "| `rank` | integer ≥ 1 | `16` |" in page
    assert '| `duplicates` | `"keep"` or `"drop"` | `"keep"` |' in page
    assert "| `train` | text at least 1 long | **required** |" in page


def test_reference_page_is_current(repository: Path) -> None:
    written = (repository / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert written == reference(), "docs/recipes.md is out of date: run `make reference` and commit the result"
    written = (repository / "docs" / "service.md").read_text(encoding="utf-8")
    assert written == service_reference(), "docs/service.md is out of date: run `make reference` and commit the result"


@pytest.fixture(scope="module")
def validator() -> Any:
    jsonschema.Draft202012Validator.check_schema(schema())
    return jsonschema.Draft202012Validator(schema())


@pytest.mark.parametrize("tree", [MINIMAL, RICH], ids=["minimal", "rich"])
def test_schema_accepts_what_is_accepted(validator: Any, tree: dict[str, Any]) -> None:
    validator.validate(tree)
    validator.validate(build(Recipe, tree).dump())


@pytest.mark.parametrize(
    "assignment",
    [
        "data.trian=x",
        "zzz=1",
        "training.steps=0",
        'training.steps="5"',
        "training.patience=0",
        "data.loss_on=user",
        "adapter.type=lroa",
        "adapter.rank=0",
        "adapter.rnk=4",
        "adapter=lora",
        "schedule.decay_share=0.1",
        "objective.type=full",
        "evaluation.systems.mine.limit=3",
        "optimizer.learning_rate=-1.0",
    ],
)
def test_schema_refuses_what_is_refused(validator: Any, assignment: str) -> None:
    wrong = override(MINIMAL, [assignment])
    assert not validator.is_valid(wrong)
    with pytest.raises(RecipeError):
        build(Recipe, wrong)


def test_command_prints_the_effective_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(write_toml(RICH), encoding="utf-8")
    assert main(["recipe", str(path), "--set", "adapter.rank=3"]) == 0
    printed = tmp_path / "printed.toml"
    printed.write_text(capsys.readouterr().out, encoding="utf-8")
    assert recipes.load(printed) == recipes.load(path, ["adapter.rank=3"])
    assert read_toml(printed)["training"]["max_tokens"] == Recipe.model_fields["training"].default.max_tokens


def test_command_prints_reference_and_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe", "--reference"]) == 0
    assert capsys.readouterr().out == reference()
    assert main(["recipe", "--schema"]) == 0
    assert json.loads(capsys.readouterr().out) == schema()


def test_command_says_what_is_wrong_and_exits_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text("[data]\ntrain = 'x'\n[training]\nstepz = 4\n", encoding="utf-8")
    assert main(["recipe", str(path)]) == 2
    assert "unknown key 'training.stepz'; did you mean 'steps'" in capsys.readouterr().err
    assert main(["recipe", "--schema", "--set", "a=1"]) == 2
    assert "name the recipe file too" in capsys.readouterr().err
    with pytest.raises(SystemExit) as leaving:
        main(["recipe"])
    assert leaving.value.code == 2


def test_a_recipe_with_passages_compares_a_system_that_retrieves(tmp_path: Path) -> None:
    def systems(tree: dict[str, Any]) -> list[str]:
        return list(build(Recipe, {"data": {"train": "t"}, **tree}).evaluation.systems)

    passages = {"retrieval": {"corpus": "c"}}
    assert systems({}) == ["zero_shot", "few_shot", "fine_tuned"]
    assert systems(passages) == ["zero_shot", "few_shot", "rag", "fine_tuned"]
    assert systems({**passages, "evaluation": {"task": "text"}}) == ["zero_shot", "few_shot", "rag", "fine_tuned"]
    assert systems({**passages, "evaluation": {"systems": {"zero_shot": {}}}}) == ["zero_shot"]


def test_paths_of_retrieval_are_read_from_the_folder_of_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "encoder").mkdir()
    tree = {
        "retrieval": {"corpus": "docs", "embedder": "encoder", "reranker": "owner/name", "store": "http://localhost:1"}
    }
    made = recipes.absolute_paths(tree, tmp_path)["retrieval"]
    assert made["corpus"] == str(tmp_path / "docs") and made["embedder"] == str(tmp_path / "encoder")
    assert made["reranker"] == "owner/name" and made["store"] == "http://localhost:1"


def test_runs_of_graders_are_read_from_the_folder_of_the_recipe_wherever_they_stand(tmp_path: Path) -> None:
    judge = {"type": "reward_model", "runs": ["reward", "/runs/other"]}
    rewards = {
        "one": {"grader": judge},
        "some": {"grader": {"type": "multi", "graders": {"a": judge, "b": {"type": "number"}}}},
        "single": {"grader": {"type": "multi", "graders": {**judge, "name": "a"}}},
    }
    made = recipes.absolute_paths({"rollout": {"rewards": rewards}}, tmp_path)["rollout"]["rewards"]
    found = [made["one"]["grader"], made["some"]["grader"]["graders"]["a"], made["single"]["grader"]["graders"]]
    assert [grader["runs"] for grader in found] == [[str(tmp_path / "reward"), "/runs/other"]] * 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "'retrieval.corpus' is missing"),
        ({"corpus": "c", "chunk_word": 3}, "unknown key 'retrieval.chunk_word'; did you mean 'chunk_words'"),
        ({"corpus": "c", "store": "localhost:6333"}, "retrieval.store = 'localhost:6333'"),
        ({"corpus": "c", "retriever": "tfidf"}, "retrieval.retriever = 'tfidf'"),
    ],
)
def test_retrieval_says_what_is_wrong(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        build(Recipe, {"data": {"train": "t"}, "retrieval": values})
    assert message in str(caught.value)


def test_uncut_passages_survive_a_dump() -> None:
    recipe = build(Recipe, {"data": {"train": "t"}, "retrieval": {"corpus": "c", "chunk_words": False}})
    again = build(Recipe, recipe.dump())
    assert again == recipe and again.retrieval is not None and again.retrieval.chunk_words is None
    assert recipe.dump()["retrieval"]["chunk_words"] is False


@pytest.mark.parametrize("setting", ['criterion = "brief"', 'against = "zero_shot"'])
def test_a_style_without_a_judge_is_refused_where_only_a_judge_reads_it(setting: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    text = '[data]\ntrain = "a.jsonl"\n[evaluation.style]\n'
    path.write_text(text + setting, encoding="utf-8")
    with pytest.raises(RecipeError, match="changes nothing without evaluation"):
        recipes.load(path)
    judged = text + setting + '\njudge = { type = "local_model", model = "m" }\n'
    path.write_text(judged, encoding="utf-8")
    recipe = recipes.load(path)
    assert build(Recipe, recipe.dump()) == recipe, "what is written down is read again"
