"""One file that llama.cpp runs: weights, tokenizer, template and the ends of a turn.

Llama, Qwen 2 and Qwen 3 with a byte-level tokenizer; other models are refused with what can be done instead.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from luthier.assemble import Trained
from luthier.errors import ExportError
from luthier.export.formats.base import LLAMA_CPP, Exporter, merge, require_package

FILE = "model.gguf"
MAX_STOPS = 3
"""GGUF names an end of text, of a turn and of a message."""
EXTRA = "pip install 'luthier[export]'"


class Gguf(Exporter):
    """f16 unless another type is asked for."""

    types: ClassVar[tuple[str, ...]] = ("f16", "bf16", "q8_0", "q4_k_m")
    reloads_with: ClassVar[str] = LLAMA_CPP

    @property
    def chosen(self) -> str:
        """The type of the file."""
        return self.type or "f16"

    @property
    def few_bits(self) -> str | None:
        """Those of the types with blocks."""
        return None if self.chosen in ("f16", "bf16") else self.chosen

    def require(self, trained: Trained) -> None:
        """The model has a counterpart in llama.cpp, and llama.cpp is here to prove it."""
        from luthier.export.formats._gguf_file import pre_tokenizer_of, shape_of
        from luthier.export.formats._quantize import K_QUANTS

        shape_of(trained.loaded.model, trained.loaded.files.name)
        pre_tokenizer_of(trained.loaded.tokenizer, trained.loaded.files.name)
        require_package("xllamacpp", EXTRA, "the gate opens a GGUF file in llama.cpp with it")
        if self.chosen in K_QUANTS:
            require_package("libgguf", EXTRA, f"it computes the blocks of {self.chosen}")
        if len(trained.template.stop_ids) > MAX_STOPS:
            raise ExportError(
                f"{trained.name}: {len(trained.template.stop_ids)} tokens end a turn "
                f"({sorted(trained.template.stop_ids)}), and a GGUF file names at most {MAX_STOPS}"
            )

    def write(self, trained: Trained, folder: Path) -> None:
        """Merge in float32, measure what survives in blocks, round each tensor once, and write.

        Raises:
            ExportError: too little of what was learned survives.
        """
        from gguf import GGUFWriter

        from luthier.export.formats import _gguf_file as file
        from luthier.export.formats._quantize import FILE_TYPES, kind_of, quantize

        merge(trained)
        self.require_update(trained)
        loaded, template = trained.loaded, trained.template
        shape = file.shape_of(loaded.model, loaded.files.name)
        pre = file.pre_tokenizer_of(loaded.tokenizer, loaded.files.name)
        writer = GGUFWriter(folder / FILE, file.architecture_name(shape))
        writer.add_type("model")
        writer.add_name(trained.name)
        writer.add_file_type(FILE_TYPES[self.chosen])
        writer.add_quantization_version(2)
        file.add_shape(writer, shape)
        embedding: Any = loaded.model.get_input_embeddings()  # type: ignore[operator]
        file.add_tokenizer(writer, loaded.tokenizer, embedding.weight.shape[0], pre)
        names = (writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id)
        for add, index in zip(names, _stops(trained), strict=False):
            add(index)
        if template.source:
            writer.add_chat_template(template.source)
        for name, weight in file.tensors_of(loaded.model, shape):
            kind = kind_of(self.chosen, name, tuple(weight.shape), shape.layers)
            writer.add_tensor(name, quantize(weight, kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    def rounded(self, trained: Trained, name: str, weight: Tensor) -> Tensor:
        """Rounded in blocks, as the file keeps it; the order of rows does not matter, since blocks lie within a row."""
        from luthier.export.formats._quantize import rounded

        return rounded(weight, self._kind(trained, name, weight))

    def stop_ids(self, trained: Trained) -> frozenset[int]:
        """All of the template's; `require` refuses more than a file can name."""
        return trained.template.stop_ids

    def like_arithmetic(self, trained: Trained, name: str, weight: Tensor) -> Tensor | None:
        """llama.cpp rounds what it multiplies with: to the type of the weights if that has 16 bits, else to 8-bit
        blocks."""
        from luthier.export.formats._quantize import like_other_side

        return like_other_side(weight, self._kind(trained, name, weight))

    def reload_settings(self, trained: Trained, folder: Path) -> Mapping[str, Any]:
        """The file."""
        return {"artifact": str(folder / FILE)}

    def _kind(self, trained: Trained, name: str, weight: Tensor) -> Any:
        """The number format of the tensor that the model calls `name`."""
        from luthier.export.formats import _gguf_file as file
        from luthier.export.formats._quantize import kind_of

        shape = file.shape_of(trained.loaded.model, trained.loaded.files.name)
        return kind_of(self.chosen, file.Names(shape).of(name), tuple(weight.shape), shape.layers)


def _stops(trained: Trained) -> list[int]:
    """The ends of a turn: the tokenizer's end of text if it is one of them, then the template's own, then others."""
    template, eos = trained.template, trained.loaded.tokenizer.eos_token_id
    first = [token for token in (eos, template.end_of_turn_id) if token in template.stop_ids]
    stops = list(dict.fromkeys([*first, *sorted(template.stop_ids)]))
    # programs look for the end of a turn under one name or the other
    return stops * 2 if len(stops) == 1 else stops
