"""Rules that a machine checks, so that no reviewer has to.

Each rule has one dictionary of exceptions; an exception carries its reason, and one that is no longer needed fails the
test as surely as a violation without one.
"""

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

from luthier import recipe as recipes, registry

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "luthier"
MAX_FILE_LINES = 600
MAX_FUNCTION_LINES = 80

REGISTRIES = (
    "luthier.adapters",
    "luthier.cli.commands",
    "luthier.data.checks",
    "luthier.data.formats",
    "luthier.engine.optimizers",
    "luthier.engine.schedules",
    "luthier.evaluation.graders",
    "luthier.evaluation.metrics",
    "luthier.evaluation.systems",
    "luthier.export.formats",
    "luthier.merging",
    "luthier.objectives",
    "luthier.preflight",
    "luthier.trackers",
)

# "file::function": reason
LONG_FUNCTIONS: dict[str, str] = {}
LONG_FILES: dict[str, str] = {}
TOO_COMPLEX: dict[str, str] = {}
PROBING: dict[str, str] = {
    "src/luthier/models/forest.py::to": "reads six known fields of its own dataclass, listed by name beside it",
}
UNSAFE: dict[str, str] = {
    "src/luthier/evaluation/graders/_jail_runner.py::_checked": "compiles a grader's source, in its own locked process",
    "src/luthier/evaluation/graders/_jail_runner.py::_graded": "runs a grader's source, in its own locked process",
}
CATCH_ALL: dict[str, str] = {
    "src/luthier/evaluation/graders/_jail_runner.py::_graded": "whatever a grader's source raises is told",
}
PATCHING: dict[str, str] = {}
DIRECT_IMPORTS: dict[str, str] = {
    "src/luthier/preflight/base_loss.py imports luthier.objectives.sft": "the plain loss is the yardstick",
    "src/luthier/evaluation/systems/_race.py imports luthier.evaluation.metrics.perplexity": "its measure",
    "src/luthier/evaluation/forgetting.py imports luthier.evaluation.metrics.accuracy": "forgetting is defined by it",
    "src/luthier/evaluation/forgetting.py imports luthier.evaluation.metrics.perplexity": "forgetting is defined by it",
    "src/luthier/stages.py imports luthier.preflight.tensors_moved": "taken before the steps that are judged",
    "src/luthier/retrievers/train.py imports luthier.preflight.tensors_moved": "the one gate that an encoder can pass",
}
REPLACED_IN_TESTS: dict[str, str] = {
    "tests/contract/test_cli_surface.py::test_a_file_that_no_verb_foresaw_is_one_line": "no verb is known to do it",
    "tests/unit/test_run_registry.py::test_without_a_home_folder_a_run_goes_on_and_it_is_said": "a user without one",
    "tests/contract/test_cli_surface.py::test_an_os_error_without_a_file_is_no_mistake_of_the_user": "no verb does it",
    "tests/security/test_serve_security.py::test_a_connection_that_sends_no_whole_headers_is_closed": "a shorter wait",
    "tests/security/test_serve_security.py::test_an_answer_may_take_longer_than_the_headers": "a shorter wait",
    "tests/unit/test_checkpoint.py::test_an_interrupted_save_leaves_nothing_that_passes_for_whole": (
        "a disk that fills up at the n-th write cannot be had otherwise"
    ),
    "tests/unit/test_checks_base.py::test_blocks_are_joined_in_order_and_texts_left_out": "a smaller block",
    "tests/unit/test_kernels.py::test_a_wrong_kernel_switches_all_of_them_off": "no compiler here gets one wrong",
    "tests/unit/test_significance.py::test_chunks_do_not_change_the_resamples": "a smaller block, same result",
    "tests/unit/test_levels.py::test_a_model_scores_alike_by_levels_and_compiled": "as if there were a GPU",
    "tests/unit/test_levels.py::test_compiled_layers_serve_training_alone": "as if there were a GPU",
    "tests/unit/test_levels.py::test_levels_are_for_flash_kernels": "as if there were a GPU",
    "tests/unit/test_generate.py::test_equal_prompts_are_computed_once": "counts calls and passes every one of them on",
    "tests/unit/test_generate.py::test_shared_prefix_changes_nothing": "says from where on sharing pays",
    "tests/unit/test_stages.py::test_an_automatic_micro_batch_is_found_once": "a machine with less memory",
}


def tracked(*suffixes: str) -> list[Path]:
    """Files under version control, or about to be, whose name ends with one of `suffixes`; all if none is given."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip("not a git checkout: there is no list of the project's own files")
    paths = [ROOT / line for line in done.stdout.splitlines()]
    return [path for path in paths if path.is_file() and (not suffixes or path.suffix in suffixes)]


def name(path: Path) -> str:
    """The path from the root of the checkout, as exceptions spell it."""
    return path.relative_to(ROOT).as_posix()


@cache
def parsed(folder: Path = SOURCE) -> tuple[tuple[Path, ast.Module], ...]:
    """The syntax trees of all modules under `folder`; read once for all tests, which change none."""
    paths = [path for path in tracked(".py") if path.is_relative_to(folder)]
    return tuple((path, ast.parse(path.read_text(encoding="utf-8"), str(path))) for path in paths)


@cache
def nodes(tree: ast.Module) -> tuple[ast.AST, ...]:
    """All nodes of a tree; walking is slow, and every rule looks at all of them."""
    return tuple(ast.walk(tree))


@cache
def functions(tree: ast.Module) -> tuple[ast.FunctionDef | ast.AsyncFunctionDef, ...]:
    """All functions and methods, however deep."""
    return tuple(node for node in nodes(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def where(path: Path, tree: ast.Module, node: ast.AST) -> str:
    """`file::function` of the innermost function around `node`, or `file::` at module level."""
    line = int(node.lineno)  # type: ignore[attr-defined]
    around = [f for f in functions(tree) if f.lineno <= line <= (f.end_lineno or f.lineno)]
    inner = max(around, key=lambda f: f.lineno, default=None)
    return f"{name(path)}::{inner.name if inner else ''}"


def found_in_source(matches: Callable[[ast.AST], bool]) -> set[str]:
    """Where in the package a node matches."""
    return {where(path, tree, node) for path, tree in parsed() for node in nodes(tree) if matches(node)}


def require_only(found: Iterable[str], exceptions: dict[str, str], rule: str) -> None:
    """Fail on what is found and not excused, and on what is excused and not found."""
    found = set(found)
    assert not found - exceptions.keys(), f"{rule}: {sorted(found - exceptions.keys())}"
    assert not exceptions.keys() - found, f"no longer needed, remove the exception: {sorted(exceptions.keys() - found)}"
    assert all(len(reason) > 10 for reason in exceptions.values()), "every exception needs a reason"


def test_files_are_short() -> None:
    sizes = {name(path): len(path.read_text(encoding="utf-8").splitlines()) for path in tracked(".py")}
    require_only(
        (path for path, size in sizes.items() if size > MAX_FILE_LINES), LONG_FILES, f"over {MAX_FILE_LINES} lines"
    )


def test_functions_are_short() -> None:
    found = {
        f"{name(path)}::{function.name}"
        for path, tree in parsed(ROOT)
        for function in functions(tree)
        if (function.end_lineno or 0) - function.lineno + 1 > MAX_FUNCTION_LINES
    }
    require_only(found, LONG_FUNCTIONS, f"over {MAX_FUNCTION_LINES} lines")


@pytest.mark.slow  # `make check` runs them beside the tests
@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "check", "."],
        ["ruff", "check", ".", "--ignore-noqa", "--select", "F821"],  # an unknown name is never excused
        ["ruff", "format", "--check", "."],
        ["mypy"],
    ],
    ids=" ".join,
)
def test_style_and_types(command: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_functions_are_simple_and_documented() -> None:
    """Complexity <= 10, <= 7 parameters, a docstring on every public name; `noqa` excuses nothing here."""
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--ignore-noqa", "--output-format", "json"]
    command += ["--config", "lint.mccabe.max-complexity=10", "--config", "lint.pylint.max-args=7"]
    command += ["--select", "C901,PLR0913,D1", "--ignore", "D105,D107", str(SOURCE)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    findings = json.loads(done.stdout)
    texts = {f"{name(Path(f['filename']))}:{f['location']['row']} {f['code']}": f["message"] for f in findings}
    require_only(texts, TOO_COMPLEX, f"{texts}")


def _calls(node: ast.AST, *names: str) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names


def test_no_probing() -> None:
    """Ask for what the interface promises; an attribute that may be missing is a design not finished."""
    found = found_in_source(lambda node: _calls(node, "hasattr", "getattr", "delattr"))
    require_only(found, PROBING, "hasattr, getattr or delattr")


PICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}


def _is_unsafe(node: ast.AST) -> bool:
    if isinstance(node, ast.Import):
        return any(alias.name.split(".")[0] in PICKLERS for alias in node.names)
    if isinstance(node, ast.ImportFrom):
        return (node.module or "").split(".")[0] in PICKLERS
    if not isinstance(node, ast.Call):
        return False
    keywords = {k.arg: k.value for k in node.keywords}
    truthy = [k for k in ("shell", "allow_pickle", "trust_remote_code") if _is_not_false(keywords.get(k))]
    if truthy or _calls(node, "exec", "eval", "compile", "__import__"):
        return True
    dotted = ast.unparse(node.func)
    return dotted in ("torch.load", "torch.save", "os.system", "os.popen", "yaml.load", "tempfile.mktemp")


def _is_not_false(value: ast.expr | None) -> bool:
    return value is not None and not (isinstance(value, ast.Constant) and value.value is False)


def test_nothing_executes_data() -> None:
    """No exec, eval, pickle, torch.load, shell: a data file, a model or a checkpoint never becomes code."""
    require_only(found_in_source(_is_unsafe), UNSAFE, "executes or unpickles data")


def _catches_all(node: ast.AST) -> bool:
    if not isinstance(node, ast.ExceptHandler):
        return False
    caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
    wide = any(c is None or (isinstance(c, ast.Name) and c.id in ("Exception", "BaseException")) for c in caught)
    return wide and not any(isinstance(last, ast.Raise) for last in node.body[-1:])


def test_no_error_is_swallowed() -> None:
    """A handler for everything must raise again."""
    require_only(found_in_source(_catches_all), CATCH_ALL, "catches every error")


def _imported(tree: ast.Module) -> set[str]:
    names = set()
    for node in nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    return names


def _root(node: ast.expr) -> str | None:
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def _assigned(node: ast.AST) -> list[ast.expr]:
    if isinstance(node, ast.Assign):
        return [t for t in node.targets if isinstance(t, ast.Attribute)]
    if isinstance(node, ast.AugAssign | ast.AnnAssign) and isinstance(node.target, ast.Attribute):
        return [node.target]
    if _calls(node, "setattr") and isinstance(node, ast.Call):
        return [node.args[0]]
    return []


@pytest.mark.parametrize(
    ("matches", "bad", "good"),
    [
        (_is_unsafe, "exec(text)", "model.eval()"),
        (_is_unsafe, "import pickle", "import json"),
        (_is_unsafe, "from joblib import load", "from safetensors.torch import load_file"),
        (_is_unsafe, "torch.load(path, weights_only=True)", "load_file(path)"),
        (_is_unsafe, "subprocess.run(line, shell=True)", "subprocess.run(words, shell=False)"),
        (_is_unsafe, "AutoModel.from_pretrained(x, trust_remote_code=flag)", "AutoModel.from_pretrained(x)"),
        (_catches_all, "try: f()\nexcept Exception: pass", "try: f()\nexcept ValueError: pass"),
        (_catches_all, "try: f()\nexcept: g()", "try: f()\nexcept BaseException:\n    g()\n    raise"),
        (_catches_all, "try: f()\nexcept (OSError, Exception): pass", "try: f()\nexcept (OSError, KeyError): pass"),
        (_assigned, "torch.add = mine", "add = mine"),
        (_assigned, "setattr(torch, 'add', mine)", "values['add'] = mine"),
    ],
)
def test_the_rules_see_what_they_forbid(matches: Callable[[ast.AST], object], bad: str, good: str) -> None:
    assert any(matches(node) for node in ast.walk(ast.parse(bad)))
    assert not any(matches(node) for node in ast.walk(ast.parse(good)))


def test_nobody_elses_code_is_patched() -> None:
    """No attribute of an imported module or class is assigned: what a library does is what its authors wrote."""
    found = set()
    for path, tree in parsed():
        imported = _imported(tree)
        found |= {where(path, tree, n) for n in nodes(tree) for t in _assigned(n) if _root(t) in imported}
    require_only(found, PATCHING, "assigns an attribute of something imported")


def test_tests_replace_no_code() -> None:
    """A test that replaces parts of the program tests another program; environment and folder may be set."""
    found = []
    for path, tree in parsed(ROOT / "tests"):
        for node in nodes(tree):
            patches = (
                isinstance(node, ast.Attribute)
                and node.attr in ("setattr", "setitem")
                and ast.unparse(node.value) == "monkeypatch"
            )
            mocks = isinstance(node, ast.ImportFrom | ast.Import) and "mock" in ast.unparse(node)
            found += [where(path, tree, node)] if patches or mocks else []
    require_only(found, REPLACED_IN_TESTS, "replaces code")


def test_parts_are_reached_through_the_registry() -> None:
    """Outside its own directory, nobody imports a part by name: a new file would not be enough then."""
    found = set()
    for path, tree in parsed():
        here = "luthier." + name(path.parent).removeprefix("src/luthier").strip("/").replace("/", ".")
        for node in nodes(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                package, _, part = node.module.rpartition(".")
                inside = here.rstrip(".") == package
                if package in REGISTRIES and not inside and part in registry.names(package):
                    found.add(f"{name(path)} imports {node.module}")
    require_only(found, DIRECT_IMPORTS, "imports a part by name")


@pytest.mark.parametrize("package", REGISTRIES)
def test_every_part_says_what_it_is(package: str) -> None:
    """The first line of a part's docstring is what listings show: one sentence that fits a line."""
    for part in registry.names(package):
        summary = registry.summary(package, part)
        assert summary, f"{package}.{part} has no docstring"
        assert len(summary) <= 120, f"{package}.{part}: the first line is too long for a listing"


# a word of the left column of the glossary exists for each of these
NOT_IN_THE_GLOSSARY = """
    logps num_items denom gas ref_model pi_logratios lora_r n_procs reward_fn judge_fn dialogue utterance tuner knn
    dev_set eval_set trainer_args
"""


def _names_defined(tree: ast.Module) -> Iterator[tuple[ast.AST, str]]:
    for node in nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node, node.name
        elif isinstance(node, ast.arg):
            yield node, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node, node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node, node.attr


def test_one_word_per_concept() -> None:
    found = []
    for path, tree in parsed():
        for node, identifier in _names_defined(tree):
            wrapped = f"_{identifier.lower()}_"
            found += [
                f"{where(path, tree, node)} {identifier}"
                for word in NOT_IN_THE_GLOSSARY.split()
                if f"_{word}_" in wrapped
            ]
    require_only(found, {}, "the glossary has another word")


BRITISH = re.compile(
    r"\b(?:colour|behaviour|favour|honour|neighbour|centre|licence|labelled|labelling|modelled|"
    r"(?:optimi|normali|initiali|tokeni|seriali|reali|summari|memori|generali|organi|recogni|quanti|penali|minimi|maximi)"
    r"s(?:e|ed|es|ing|ation|er)|analysed?|grey)\b",
    re.IGNORECASE,
)
# names that others gave to files, keys and commands are spelled as they are
SPELLED_AS_GIVEN = re.compile(r"`[^`]*`|https?://\S+|LICENCE|\bgrey\d+\b")


def test_spelling_is_american() -> None:
    found = []
    for path in tracked(".py", ".md", ".toml", ".jinja", ".css"):
        if path == Path(__file__):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            found += [f"{name(path)}:{number} {word}" for word in BRITISH.findall(SPELLED_AS_GIVEN.sub("", line))]
    require_only(found, {}, "US spelling")


# written in pieces, so that this file does not find itself
MACHINE_PATHS = re.compile(
    "|".join(["/" + "work/", "/" + "root/", "/" + "home/[a-z]", "/" + "tmp/", r"\b[A-Z]:\\" + "Users"])
)
OWN_TRACES = re.compile(
    "|".join(["this " + "session", "coding " + "agent", "agent " + "session", "Co-Authored-" + "By"]),
    re.I,
)
URL_HOST = re.compile(r"\bhttps?://(?:[^\s/@]*@)?(\w[\w.-]*|\[[0-9a-f:]+\])", re.IGNORECASE)
PUBLIC_HOSTS = {
    "arxiv.org",
    "github.com",
    "huggingface.co",
    "json-schema.org",
    "localhost",
    "127.0.0.1",
    "0.0.0.0",
    "[::1]",
    "pypi.org",
    "www.apache.org",
    "www.w3.org",
    "docs.python.org",
    "download.pytorch.org",
    "docs.host",  # made up, in a test of what is no secret
    "platform.openai.com",
    "keepachangelog.com",
    "semver.org",
    # where prices of the shipped book stand
    "developers.openai.com",
    "docs.mistral.ai",
    "lambda.ai",
    "openai.com",
    "tinker-docs.thinkingmachines.ai",
    "www.aipricing.guru",
    "www.energypricestoday.com",
    "www.runpod.io",
    "www.together.ai",
}
# RFC 2606: names that lead nowhere, for examples and tests
RESERVED = (".example", ".test", ".invalid", ".localhost", "example.com", "example.org", "example.net")


def own_texts() -> Iterator[tuple[str, int, str]]:
    """(file, line number, line) of every tracked text file."""
    for path in tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), start=1):
            yield name(path), number, line


def test_no_trace_of_the_machine_it_was_written_on() -> None:
    found = [
        f"{path}:{number} {line.strip()[:80]}"
        for path, number, line in own_texts()
        if MACHINE_PATHS.search(line) or OWN_TRACES.search(line)
    ]
    require_only(found, {}, "a path or word of the author's machine")


def test_links_lead_to_public_places() -> None:
    """A host nobody else can reach in a link, an index or a mirror setting breaks the project for everyone else."""
    found = [
        f"{path}:{number} {host}"
        for path, number, line in own_texts()
        for host in URL_HOST.findall(line)
        if host.lower() not in PUBLIC_HOSTS and not host.lower().endswith(RESERVED)
    ]
    require_only(found, {}, "unknown host; add it to PUBLIC_HOSTS if a stranger can open it")


def test_links_between_pages_lead_somewhere() -> None:
    found = []
    for path in tracked(".md"):
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
            if "://" not in target and not target.startswith("mailto:") and not (path.parent / target).exists():
                found.append(f"{name(path)} -> {target}")
    require_only(found, {}, "dead link")


def test_every_recipe_is_valid() -> None:
    paths = [path for path in tracked(".toml") if name(path).startswith("recipes/")]
    assert paths, "no recipes: the folder recipes/ should hold at least the demo's"
    for path in paths:
        assert recipes.load(path).dump(), name(path)
        first = path.read_text(encoding="utf-8").splitlines()[0]
        assert first.startswith("# "), f"{name(path)}: the first line says what the recipe is for"


def modules_after(*calls: list[str]) -> set[str]:
    """Top-level modules in memory after `luthier ARGUMENTS` for each call, in one fresh process."""
    program = (
        "import sys\nfrom luthier.cli.main import main\n"
        f"for arguments in {list(calls)!r}:\n"
        "    try:\n        main(arguments)\n"
        "    except SystemExit:\n        pass\n"
        "print('MODULES', *sorted({m.partition('.')[0] for m in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.rsplit("MODULES", 1)[1].split())


HEAVY = {
    "pydantic",
    "rich",
    "torch",
    "transformers",
    "numpy",
    "scipy",
    "pandas",
    "pyarrow",
    "datasets",
    "fastapi",
    "peft",
}


def test_the_command_line_answers_at_once() -> None:
    assert not modules_after(["--help"], ["--version"], [], ["no-such-verb"]) & HEAVY


def test_help_of_every_verb_waits_for_no_model_library() -> None:
    verbs = registry.names("luthier.cli.commands")
    if modules_after(*([verb, "--help"] for verb in verbs)) & {"torch", "transformers"}:
        slow = [verb for verb in verbs if modules_after([verb, "--help"]) & {"torch", "transformers"}]
        pytest.fail(f"import these inside run(), so that --help answers at once: {slow}")


@pytest.mark.slow  # as those of style
def test_imports_go_downwards() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache", "--no-logo"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_dependency_has_a_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    groups += [path.read_text(encoding="utf-8").split() for path in (ROOT / "benchmarks" / "peers").glob("*.txt")]
    groups.append((ROOT / "tests" / "postgres.txt").read_text(encoding="utf-8").split())
    listed = {re.split(r"[\[=<>~! ]", requirement)[0] for group in groups for requirement in group}
    page = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    explained = set(re.findall(r"^\| `([^`]+)`", page, re.MULTILINE))
    assert not listed - explained, f"no reason in docs/dependencies.md: {sorted(listed - explained)}"
    assert not explained - listed, f"explained but not a dependency: {sorted(explained - listed)}"


def test_the_ci_runs_what_a_person_runs() -> None:
    script = ROOT / ".ci" / "run"
    lines = [line for line in script.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    assert lines[0] == "set -euo pipefail" and lines[-1] == "exec make test"
    assert script.stat().st_mode & 0o111, ".ci/run is not executable"
    assert "make test" in (ROOT / "README.md").read_text(encoding="utf-8")
