"""Functions of torch with the types that its stubs lack; each calls the one of torch.

`torch.linalg` is defined at run time, without types, and a list of `Tensor.tolist` may hold anything.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Svd(NamedTuple):
    """Factors of a matrix, U diag(S) Vh."""

    U: Tensor
    S: Tensor
    Vh: Tensor


def svd(matrix: Float[Tensor, "*n rows columns"]) -> Svd:
    """Return the singular value decomposition without the directions that have no singular value."""
    return Svd(*torch.linalg.svd(matrix, full_matrices=False))


def solve_linear(matrix: Float[Tensor, "n n"], right: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    """Return matrix^-1 right."""
    return torch.linalg.solve(matrix, right)


def lstsq(matrix: Float[Tensor, "*n rows columns"], right: Float[Tensor, "*n rows k"]) -> Float[Tensor, "*n columns k"]:
    """Return the x that minimises |matrix x - right|."""
    return torch.linalg.lstsq(matrix, right).solution


def pinv(matrix: Float[Tensor, "rows columns"]) -> Float[Tensor, "columns rows"]:
    """Return the pseudo-inverse."""
    return torch.linalg.pinv(matrix)


def cholesky(matrix: Float[Tensor, "n n"], upper: bool = False) -> Float[Tensor, "n n"]:
    """Return the lower Cholesky factor, or the upper one."""
    return torch.linalg.cholesky(matrix, upper=upper)


def vector_norm(values: Float[Tensor, "..."], dim: int | None = None, keepdim: bool = False) -> Float[Tensor, "..."]:
    """Return the 2-norm of all values, or along one dimension."""
    return torch.linalg.vector_norm(values, dim=dim, keepdim=keepdim)


def integers(values: Int[Tensor, " n"]) -> list[int]:
    """Return the values as Python integers."""
    return values.tolist()


def floats(values: Float[Tensor, " n"]) -> list[float]:
    """Return the values as Python floats."""
    return values.tolist()
