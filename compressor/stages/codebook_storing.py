"""Codebooks in the file that ships: weights that share few values are stored as numbers of them, at no cost in time.

Han et al. 2016, "Deep Compression", arXiv:1510.00149, sec. 3. The arithmetic is in `clustering/codebook_files.py`.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from compressor.clustering.codebook_files import with_codebooks
from compressor.errors import StageError
from compressor.files.export import export_onnx
from compressor.notes.training import CodebooksStored, StoredCodebook
from compressor.runtime import OnnxModule
from compressor.stage import Context, Effect
from compressor.workload import Workload


@dataclass(frozen=True, kw_only=True)
class StoreCodebooks:
    """The model as a float32 ONNX file in which weights of few values (at most 256 in a row) are codebooks and numbers.

    It computes the same bits with the same kernels, and is up to eight times smaller. `ClusterWeights` makes such
    weights; `Quantize`, which stores integers, takes this stage's place where 8 bits are accurate enough and faster.
    """

    effect: ClassVar[Effect] = Effect.ENCODING

    def apply(self, model: nn.Module, workload: Workload, context: Context) -> nn.Module:
        """An OnnxModule of the file. Raises StageError where no weights would be smaller as a codebook."""
        data, books = with_codebooks(export_onnx(model, workload, memory=context.exports).onnx_bytes)
        if not books:
            raise StageError(
                f"no weights of {type(model).__name__} are smaller as a codebook: they have too many different values; "
                "put cluster_weights before it"
            )
        stored = tuple(
            StoredCodebook(tensor=book.name, values=int(book.values.size), of=int(book.numbers.size)) for book in books
        )
        context.tell(CodebooksStored(codebooks_stored=stored))
        return OnnxModule(data)
