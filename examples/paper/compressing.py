"""The ways to make a table small that are compared; tensors in, tensors or a new module out."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from cases import Material
from embcompress.checkpoint.dtypes import DTYPES
from embcompress.methods.known import measure
from embcompress.swapping import swap
from numpy.typing import NDArray
from torch import Tensor, nn

from embcompress.classifiers.base import TABLE
from embcompress.methods.base import Settings
from embcompress.methods.planning import bytes_for_ratio
from embcompress.methods.svd import SVD
from embcompress.rows import Rows

_F32 = DTYPES["F32"]
_SVD = SVD()


@dataclass(frozen=True)
class Factors:
    """Two matrices whose product stands for a table.

    Attributes:
        left: V×k.
        right: k×d.
    """

    left: Tensor
    right: Tensor

    @property
    def rank(self) -> int:
        """Components kept, k."""
        return self.left.shape[1]

    def table(self) -> Tensor:
        """The table they stand for (V×d)."""
        return self.left @ self.right


def rank_for(table: Tensor, ratio: float) -> int:
    """The largest rank k with 4k(V+d) <= (1-ratio)·4Vd bytes."""
    return _SVD.largest_rank(table.shape, bytes_for_ratio(_rows(table), ratio), _F32)


def svd(
    table: Tensor, rank: int, *, split: str = "left", weights: NDArray[np.float64] | None = None
) -> Factors:
    """The best factors of that rank, each row's squared error weighted if ``weights`` (V) are given.

    With weights the right factor holds the top eigenvectors of Eᵀ diag(w) E, and the left is E times these.
    """
    if weights is not None and split != "left":
        raise ValueError("the singular values of a weighted table are not those of its left factor")
    asked = Settings(_F32, split)
    known = measure(_rows(table), TABLE, precise=True, weights=weights)
    left, right = _SVD.encode(known, _SVD.at_rank(known, rank, asked), asked)
    factors = (torch.from_numpy(np.concatenate([*part()]).astype(np.float32)) for part in (left, right))
    return Factors(next(factors), next(factors).T.contiguous())


def quantized(table: Tensor, bits: int) -> Tensor:
    """The table after symmetric rounding of each row to ``bits`` bits with a float32 scale of its own."""
    codes, scales = quantize(table, bits)
    return codes * scales


def quantize(table: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Whole numbers (V×d, int8) of at most ``bits`` bits, and the scale of each row (V×1)."""
    largest = 2 ** (bits - 1) - 1
    scales = table.abs().amax(dim=1, keepdim=True) / largest
    codes = torch.where(scales > 0, table / scales, 0.0).round()
    return codes.to(torch.int8), scales


def quantized_bytes(table: Tensor, bits: int) -> int:
    """Bytes of packed codes and of the scales."""
    rows, columns = table.shape
    return rows * ((columns * bits + 7) // 8 + 4)


def relative_error(table: Tensor, approximation: Tensor) -> float:
    """Relative Frobenius error."""
    return float((approximation - table).norm() / table.norm())


def factorized(model: nn.Module, factors: Factors) -> nn.Module:
    """A copy of ``model`` with ``factors`` where its table was."""
    model = copy.deepcopy(model)
    embedding = swap(model, TABLE, factors.rank)
    with torch.no_grad():
        embedding.left.copy_(factors.left)
        embedding.projection.weight.copy_(factors.right.T)
    return model


def folded(model: nn.Module, material: Material) -> nn.Module:
    """A factorized classifier whose first weight matrix has taken in the right factor.

    Both classifiers feed a token's vector, or their mean, to a linear map: W (R x) = (W R) x. The factor
    is gone, the table is V×k, and the network reads k numbers instead of d.
    """
    first = {"lstm": "lstm.weight_ih_l0", "dan": "layers.1.weight"}[material.case.model]
    small = material.network(model.embedding.rank)
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("embedding.")}
    state[first] = state[first] @ model.embedding.right.detach().T
    state[TABLE] = model.embedding.left.detach()
    small.load_state_dict(state)
    return small


def narrowed(material: Material, ratio: float) -> tuple[nn.Module, Factors]:
    """Offline compression: an untrained network with a table U S of floor((1-ratio)·d) columns."""
    table = material.untrained().embedding.weight.detach()
    factors = svd(table, int((1 - ratio) * table.shape[1] + 1e-6))
    model = material.network(factors.rank)
    with torch.no_grad():
        model.embedding.weight.copy_(factors.left)
    return model, factors


def _rows(table: Tensor) -> Rows:
    matrix = table.numpy()
    return Rows((matrix.shape[0], matrix.shape[1]), _F32, lambda start, stop: matrix[start:stop])
