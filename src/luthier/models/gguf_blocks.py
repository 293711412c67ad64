"""The blocks of a GGUF file go into a model as they lie there.

Names, and the order of rows where the file's differs from the model's, are those by which `transformers` reads the
file. That is not taken on trust: three rows of every matrix are compared with the plain folder that the file was
converted to, where `models/gguf.py` has also found out which of two copies of a tied matrix is the better one.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from luthier.errors import ModelError
from luthier.files import sha256_of
from luthier.models.catalog import ModelFiles
from luthier.models.packed import Stored, replace
from luthier.models.quantize.gguf import SIZES, GGUFEmbedding, GGUFLinear, expand_blocks, parts_of

_DENSE = ("F32", "F16", "BF16", "F64")


class Blocks:
    """The tensors of a GGUF file, and where they belong in a model."""

    def __init__(self, files: ModelFiles, model: Any, stored: Stored) -> None:
        """Open the file that the folder was converted from.

        Raises:
            ModelError: there is no such file, or it is another one than it was.
        """
        from gguf import GGUFReader
        from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

        path = _require_file(files)
        self.path, self.stored = path, stored
        reader = GGUFReader(path, mode="c")  # private pages: torch takes no memory that cannot be written
        self._tensors = {str(tensor.name): tensor for tensor in reader.tensors}
        architecture = reader.get_field("general.architecture").contents()
        self._processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=model.config.to_dict())
        names = get_gguf_hf_weights_map(model, self._processor)
        self._names = {ours: theirs for theirs, ours in names.items() if theirs in self._tensors}

    def fill(self, model: Any, dtype: torch.dtype) -> None:
        """Put quantized layers in the place of all linear layers, and of the embedding, whose matrix is in blocks.

        Raises:
            ModelError: the file holds none, or a matrix in a format that is not known here.
        """
        count = 0
        head = model.get_output_embeddings()
        tied = head.weight is model.get_input_embeddings().weight
        for name, module in list(model.named_modules()):
            if not takes_blocks(module) or (tied and module is head):
                continue
            parts = self._parts(f"{name}.weight", module.weight.shape)
            if parts is None:
                continue
            count += 1
            shape = module.weight.shape[0], module.weight.shape[1]
            if isinstance(module, nn.Embedding):
                replace(model, name, embedding := GGUFEmbedding(shape, parts, dtype))
                if tied:
                    (place,) = (other for other, m in model.named_modules() if m is head)
                    self.stored.left.pop(f"{place}.weight", None)
                    replace(model, place, embedding.linear)
                continue
            bias = None if module.bias is None else self.stored.take(f"{name}.bias", module.bias.shape).clone()
            replace(model, name, GGUFLinear(shape, parts, bias, dtype))
        if not count:
            raise ModelError(f"{self.path}: no matrix is held in blocks; set model.quantize to none, nf4 or int8")

    def _parts(self, name: str, shape: torch.Size) -> dict[str, Tensor] | None:
        """The blocks of a matrix; None where the file holds it as plain numbers."""
        if name not in self.stored.left:
            raise ModelError(f"{self.stored.what}: {name} is missing from {self.path.name}'s converted folder")
        theirs = self._names.get(name)
        kinds = []
        for candidate in dict.fromkeys((theirs, *(("output.weight",) if theirs == "token_embd.weight" else ()))):
            if candidate is None or candidate not in self._tensors:
                continue
            tensor = self._tensors[candidate]
            kinds.append(tensor.tensor_type.name)
            if int(tensor.tensor_type) in SIZES and (blocks := self._rows(tensor, candidate, name, shape)) is not None:
                self.stored.left.pop(name)
                return parts_of(blocks, int(tensor.tensor_type))
        if all(kind in _DENSE for kind in kinds):
            return None
        known = "Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K and Q6_K"
        raise ModelError(
            f"{self.path}: {name} is held as {' and '.join(kinds)}, which cannot be trained over as it lies: known are "
            f"{known}, in the order of rows that transformers reads. Set model.quantize to none, nf4 or int8"
        )

    def _rows(self, tensor: Any, theirs: str, name: str, shape: torch.Size) -> Tensor | None:
        """(out, bytes) in the model's order of rows; None where the numbers are not those of the converted folder."""
        blocks = torch.from_numpy(tensor.data)
        order = np.arange(shape[0])
        wanted = self._processor.process(weights=order, name=theirs).weights
        if len(blocks) != shape[0] or wanted.shape != order.shape:
            return None
        if not np.array_equal(order, wanted):
            blocks = blocks[torch.from_numpy(wanted)]
        for row in sorted({0, shape[0] // 2, shape[0] - 1}):
            made = torch.empty(1, shape[1])
            expand_blocks(blocks[row : row + 1], int(tensor.tensor_type), made)
            stored = self.stored.row(name, row)
            if not torch.equal(made[0].to(stored.dtype), stored):
                return None
        return blocks


def takes_blocks(module: nn.Module) -> bool:
    """Whether a layer does nothing but multiply or look up; Gemma's embeddings also scale, and stay as they are."""
    return type(module) in (nn.Linear, nn.Embedding)


def _require_file(files: ModelFiles) -> Any:
    if files.source is None:
        raise ModelError(
            f"model.quantize = 'gguf': {files.name} is no .gguf file but {files.origin}; its matrices are not in "
            "blocks. Set model.quantize to nf4 or int8, or name a .gguf file"
        )
    if not files.source.is_file() or sha256_of(files.source) != files.source_sha256:
        raise ModelError(
            f"model.quantize = 'gguf': {files.source}, from which {files.name} was made, is gone or was changed. Put "
            f"it back, or delete the folder {files.folder} and run `luthier models {files.name}`"
        )
    return files.source
