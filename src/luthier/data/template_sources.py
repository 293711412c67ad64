"""Where the Jinja text of a chat template comes from: the model, Luthier, or a file."""

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.config import did_you_mean
from luthier.errors import TemplateError

if TYPE_CHECKING:  # torch takes seconds to import, and this module needs none of it
    from luthier.models.load import LoadedModel

BUILTIN = resources.files("luthier.data") / "templates_builtin"


def added_bos(tokenizer: Any) -> list[int]:
    """The ids that the tokenizer itself puts before plain text: one BOS, or nothing."""
    bos = tokenizer.bos_token_id
    ids = tokenizer.backend_tokenizer.encode("a", add_special_tokens=True).ids
    return [bos] if bos is not None and ids[:1] == [bos] else []


def builtin_names() -> list[str]:
    """Names of the templates that come with Luthier."""
    return sorted(entry.name.removesuffix(".jinja") for entry in BUILTIN.iterdir() if entry.name.endswith(".jinja"))


def find_source(loaded: "LoadedModel", name: str) -> str:
    """The text of a template that a recipe names.

    Raises:
        TemplateError: as `build_template`.
    """
    if name == "model":
        return _own_source(loaded)
    if name in builtin_names():
        return _builtin_source(loaded, name)
    path = Path(name)
    if path.suffix not in (".jinja", ".j2", ".txt"):
        raise TemplateError(
            f"unknown template {name!r}{did_you_mean(name, ['model', *builtin_names()])} (or give a .jinja file)"
        )
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TemplateError(f"template file {path}: cannot be read: {error}") from None


def _own_source(loaded: "LoadedModel") -> str:
    source = loaded.tokenizer.chat_template
    if isinstance(source, Mapping):
        if "default" not in source:
            raise TemplateError(f"{loaded.files.name}: several chat templates {sorted(source)} and none is 'default'")
        source = source["default"]
    return source or ""


def _builtin_source(loaded: "LoadedModel", name: str) -> str:
    tokenizer = loaded.tokenizer
    vocabulary = {t.content for t in tokenizer.backend_tokenizer.get_added_tokens_decoder().values()}
    missing = [t for t in ("<|im_start|>", "<|im_end|>") if t not in vocabulary]
    if missing:
        raise TemplateError(
            f"template {name!r} needs the control tokens {', '.join(missing)}, which {loaded.files.name} lacks; "
            'use model.template = "model" or a .jinja file made for this model'
        )
    source = (BUILTIN / f"{name}.jinja").read_text(encoding="utf-8")
    # a model that was trained with a BOS before every text keeps it; ChatML itself has none
    opens = bool(added_bos(tokenizer)) and tokenizer.bos_token != "<|im_start|>"
    return "{{- bos_token -}}\n" + source if opens else source
