"""A part from outside: one file in somebody else's package, an entry point, and it trains through the command line."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.children import Child

from luthier.config import write_toml

PROBE = '''
"""Supervised fine-tuning that counts its own calls: a probe of the plug-in interface."""

from pydantic import Field

from luthier.objectives.base import Loss, Mean, Models, Objective


class Probe(Objective):
    """The negative log-likelihood, scaled."""

    scale: float = Field(1.0, gt=0)
    """What the loss is multiplied by."""

    def rows(self, example, template):
        return template.rows(example)

    def weight(self, batch):
        return float(batch.loss_mask_K.sum())

    def loss(self, models: Models, batch):
        nats_K = -models.policy.token_logprobs(batch) * batch.loss_mask_K
        return Loss(self.scale * nats_K.sum(), {"probe_nats": Mean.of(nats_K)})
'''


def install(folder: Path, distribution: str, module: str, source: str, entry_points: str) -> None:
    """Lay a package out as an installer would: its module, and metadata with its entry points."""
    folder.mkdir(exist_ok=True)
    (folder / f"{module}.py").write_text(source, encoding="utf-8")
    info = folder / f"{distribution}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(entry_points, encoding="utf-8")


def python(site: Path, program: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
    """Run a program in a fresh process that finds the packages in `site`."""
    environment = {**os.environ, "PYTHONPATH": str(site)}
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=check)


def installed(site: Path, program: str) -> str:
    """What a program prints that finds the packages in `site`, in a process that need not import ours first."""
    code, output, error = Child(f"import sys; sys.path.insert(0, {str(site)!r})\n{program}").ended(300)
    assert code == 0, output + error
    return output


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder of packages in which `luthier-probe` is installed; its file is not called like its entry point."""
    folder = tmp_path / "site"
    install(folder, "luthier_probe", "probe_objective", PROBE, "[luthier.objectives]\nprobe = probe_objective\n")
    return folder


def test_it_is_listed_without_being_imported(site: Path) -> None:
    program = (
        "import sys; from luthier import registry\n"
        "names = registry.names('luthier.objectives')\n"
        "print('probe' in names, 'probe_objective' in sys.modules, 'torch' in sys.modules)"
    )
    assert python(site, program).stdout.split() == ["True", "False", "False"]
    assert (
        "probe"
        not in python(site.parent, "from luthier import registry; print(registry.names('luthier.objectives'))").stdout
    )


@pytest.mark.slow
@pytest.mark.parametrize("target", ["probe_objective", "probe_objective:Probe"])
def test_its_settings_are_read_checked_and_written_back(site: Path, target: str) -> None:
    (site / "luthier_probe-1.0.dist-info" / "entry_points.txt").write_text(f"[luthier.objectives]\nprobe = {target}\n")
    program = (
        "import json; from luthier.config import build; from luthier.errors import RecipeError\n"
        "from luthier.recipe import Recipe\n"
        "tree = {'data': {'train': 'x'}, 'objective': {'type': 'probe', 'scale': 2.0}}\n"
        "recipe = build(Recipe, tree)\n"
        "assert build(Recipe, recipe.dump()) == recipe\n"
        "def refuse(objective):\n"
        "    try: build(Recipe, {**tree, 'objective': objective})\n"
        "    except RecipeError as error: return str(error)\n"
        "wrong = ({'type': 'probe', 'scal': 1.0}, {'type': 'prob'})\n"
        "from luthier.cli.reference import reference, schema\n"
        "listed = '### `type = \"probe\"`' in reference() and 'objectives.probe' in schema()['$defs']\n"
        "print(json.dumps([recipe.dump()['objective'], listed, *map(refuse, wrong)]))"
    )
    dumped, listed, unknown_key, unknown_type = json.loads(installed(site, program))
    assert dumped == {"type": "probe", "scale": 2.0}
    assert listed, "the reference page and the JSON schema show it"
    assert unknown_key == "unknown key 'objective.scal'; did you mean 'scale'?"
    assert unknown_type == "unknown objective 'prob'; did you mean 'probe'?"


def load_probe(site: Path) -> str:
    """What is said when the probe is loaded."""
    program = (
        "from luthier import registry; from luthier.config import Settings; from luthier.errors import RecipeError\n"
        "try: registry.load_class('luthier.objectives', 'probe', Settings); print('loaded')\n"
        "except RecipeError as error: print(error)"
    )
    return python(site, program).stdout


def test_two_packages_cannot_give_the_same_name(site: Path) -> None:
    assert load_probe(site) == "loaded\n"
    install(
        site,
        "other_probe",
        "other_objective",
        PROBE,
        "[luthier.objectives]\nprobe = other_objective\nsft = other_objective\n",
    )
    said = load_probe(site)
    assert "objective 'probe' is given by" in said and "luthier_probe" in said and "other_probe" in said
    program = "from luthier import registry; registry.load('luthier.objectives', 'sft')"
    assert "objective 'sft' is given by luthier and other_probe" in python(site, program, check=False).stderr


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import a_module_that_is_not_there", "objective 'probe' of luthier_probe (probe_objective) cannot be loaded"),
        ("'''Nothing in here.'''", "must define one public Settings; it defines none"),
        (PROBE + "\nclass Second(Probe):\n    pass\n", "must define one public Settings; it defines Probe, Second"),
    ],
)
def test_a_broken_package_is_named(site: Path, source: str, expected: str) -> None:
    (site / "probe_objective.py").write_text(source, encoding="utf-8")
    assert expected in load_probe(site)


def test_an_entry_point_to_a_missing_class_is_named(site: Path) -> None:
    entry_points = "[luthier.objectives]\nprobe = probe_objective:Missing\n"
    (site / "luthier_probe-1.0.dist-info" / "entry_points.txt").write_text(entry_points)
    assert "objective 'probe' of luthier_probe (probe_objective:Missing) cannot be loaded" in load_probe(site)


@pytest.fixture
def recipe(tiny_model_folder: Path, tmp_path: Path, write_jsonl: Callable[..., Path]) -> Path:
    """A recipe for the tiny model and forty short rows."""
    colors = ("red", "blue", "green", "gold", "gray", "pink", "black", "white")

    def chat(index: int) -> dict[str, Any]:
        question, answer = f"Thing {index}: which color has number {index * 7 % 8}?", colors[index * 7 % 8]
        return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}

    write_jsonl("rows.jsonl", [chat(index) for index in range(40)])
    path = tmp_path / "recipe.toml"
    tree = {
        "model": {"name": str(tiny_model_folder), "precision": "float32", "device": "cpu"},
        "data": {"train": "rows.jsonl"},
        "objective": {"type": "probe", "scale": 2.0},
        "optimizer": {"learning_rate": 0.01},
        "training": {"steps": 4, "rows_per_step": 4, "max_tokens": 128},
    }
    path.write_text(write_toml(tree), encoding="utf-8")
    return path


@pytest.mark.slow
def test_it_trains_through_the_command_line(site: Path, recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = ["train", str(recipe), "--out", str(out)]
    installed(site, f"from luthier.cli.main import main; sys.exit(main({arguments!r}))")
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    # the engine divides the scaled sum by the weight; the probe's own metric is not scaled
    for line in lines:
        assert line["loss"] == pytest.approx(2.0 * line["probe_nats"], rel=1e-4)
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert (out / "adapter" / "adapter_model.safetensors").exists()


@pytest.mark.slow
def test_the_objective_of_the_page_keeps_the_contract_and_trains(site: Path, recipe: Path, tmp_path: Path) -> None:
    """Who follows docs/extending.md, and nothing else, gets an objective."""
    root = Path(__file__).parents[2]
    (source,) = re.findall(r"```python\n(.*?)```", (root / "docs/extending.md").read_text(encoding="utf-8"), re.DOTALL)
    install(site, "luthier_dft", "dft", source, "[luthier.objectives]\ndft = dft\n")
    contract = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/contract/test_objectives.py", "-k", "dft"]
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run([sys.executable, *contract], cwd=root, capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and re.search(r"[1-9]\d* passed", done.stdout), done.stdout
    arguments = ["train", str(recipe), "--out", str(tmp_path / "run"), "--set", 'objective={ type = "dft" }']
    installed(site, f"from luthier.cli.main import main; sys.exit(main({arguments!r}))")
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert lines[0]["loss"] < lines[0]["cross_entropy"] and lines[-1]["cross_entropy"] < lines[0]["cross_entropy"]
