"""Least-squares edits of the projections that read text states: one solve for all layers.

Every cross-attention key and value projection W of a denoiser reads the same text states. When the wanted outputs are
themselves `W a`, the minimiser of

    sum_i w_i |W' c_i - W a_i|^2 + sum_j v_j |W' p_j - W p_j|^2 + reg |W' - W|_F^2

is `W' = W M` for every W at once, with states in rows scaled by the square roots of their weights and

    G = C^T C + P^T P + reg I,    M = (A^T C + P^T P + reg I) G^-1 = I + (A - C)^T (C G^-1).

M does not depend on W, and M - I has at most as many dimensions as there are erased rows. With R the rows of C and P
together, C G^-1 is E^T (R R^T + reg I)^-1 R, where E selects the erased rows: a system as large as there are rows,
which is the smaller one for wide text encoders. The layer-by-layer form is eq. 7 of UCE (arXiv:2308.14761); that it
needs one solve only is used throughout this library.

States that are held exactly leave a subspace of free directions, with an orthonormal basis in the columns of B: M - I
is Z B^T, the same problem with `C B` and `P B` for C and P. Without any pull (reg 0) Z is then that of the least norm.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import InputError, SolveError
from .problem import Rows, TextMap

# Width from which the dual system is solved where it is the smaller. Below it the primal one takes a moment, and maps
# of Stable Diffusion 1.x, 2.x and XL keep their last bits.
_WIDE = 2049


def solve(rows: Rows, *, wide: int = _WIDE) -> TextMap:
    """Return the minimiser of the least-squares problem of the module's docstring.

    Solved in float64 by one Cholesky factorisation on the CPU: the Gram matrix of text states is ill-conditioned.
    Factors are kept while the rank is at most half the width, where they are the smaller.

    Args:
        rows: The problem.
        wide: Width from which the dual system is solved where it is the smaller.

    Raises:
        InputError: `reg` or a weight is negative, or a number is not finite.
        SolveError: The Gram matrix is singular to float64's precision, or the solution is not finite.
    """
    _check(rows)
    try:
        return _solution(rows, wide)
    except SolveError as error:
        raise _overweight(rows) or error from None


def _solution(rows: Rows, wide: int) -> TextMap:
    """Return the solution of checked rows; see `solve`."""
    # A row that stays where it is holds others in place, as a preserved one does, and adds nothing to the rank.
    goals = rows.goals()
    moved = (goals != rows.targets).any(dim=1) & (rows.weights > 0)
    roots = rows.weights.sqrt()[:, None]
    targets, difference = rows.targets * roots, ((goals - rows.targets) * roots)[moved]
    held = rows.held
    preserve = rows.preserve[~held] * rows.preserve_weights[~held].sqrt()[:, None]
    dim = targets.shape[1]
    low_rank = 2 * len(difference) <= dim
    if bool(held.any()):
        right = _solved_in(free_directions(rows), targets, preserve, moved, rows.pull)
        return _finite(TextMap(u=difference.T.contiguous(), v=right) if low_rank else TextMap(u=(right @ difference).T))
    if dim >= wide and len(targets) + len(preserve) < dim:
        every = torch.cat([targets, preserve])
        selecting = torch.eye(len(every), dtype=every.dtype)[:, : len(targets)][:, moved]
        read = torch.cholesky_solve(selecting, _cholesky(every @ every.T, rows.pull))
        return _finite(TextMap(u=difference.T.contiguous(), v=every.T @ read))
    factor = _factor_of(targets, preserve, rows.pull)
    if low_rank:
        return _finite(TextMap(u=difference.T.contiguous(), v=torch.cholesky_solve(targets[moved].T, factor)))
    correlation = difference.T @ targets[moved]
    return _finite(TextMap(u=torch.cholesky_solve(correlation.T, factor).T.contiguous()))


def free_directions(rows: Rows) -> Float[Tensor, "dim free"]:
    """Return an orthonormal basis of the directions orthogonal to those held exactly."""
    states, dim = rows.preserve[rows.held], rows.targets.shape[1]
    exact = torch.tensor([label == "" for label, held in zip(rows.preserve_labels, rows.held, strict=True) if held])
    named = states[~exact]
    _, sizes, directions = torch.linalg.svd(named, full_matrices=False)
    kept = (sizes.square() >= rows.threshold * len(named)) & (sizes > _NOISE * sizes.max()) if len(named) else sizes > 0
    basis = directions[kept][: rows.held_rank]
    rest = states[exact] - states[exact] @ basis.T @ basis
    _, sizes, directions = torch.linalg.svd(rest, full_matrices=False)
    basis = torch.cat([basis, directions[sizes > _NOISE * torch.linalg.matrix_norm(states[exact])]])
    return torch.linalg.qr(basis.T, mode="complete").Q[:, len(basis) :] if len(basis) else torch.eye(dim).to(states)


_NOISE = 1e-8  # of the rounding of float32 states, relative: below it a direction is none


def _solved_in(
    basis: Float[Tensor, "dim free"],
    targets: Float[Tensor, "n dim"],
    preserve: Float[Tensor, "m dim"],
    moved: Bool[Tensor, " n"],
    pull: float,
) -> Float[Tensor, "dim moved"]:
    """Return the right factor of M - I, in the free directions alone."""
    inside, others = targets @ basis, preserve @ basis
    rows = torch.cat([inside, others])
    if not rows.numel():  # nothing is free
        return basis @ inside[moved].T
    if pull > 0:
        return basis @ torch.cholesky_solve(inside[moved].T, _factor_of(inside, others, pull))
    smallest = _NOISE * torch.linalg.matrix_norm(torch.cat([targets, preserve]))
    inverse = torch.linalg.pinv(rows, atol=smallest, rtol=0.0)
    return basis @ inverse[:, : len(targets)][:, moved]


def _factor_of(
    targets: Float[Tensor, "n dim"], preserve: Float[Tensor, "m dim"], pull: float
) -> Float[Tensor, "dim dim"]:
    """Return the Cholesky factor of the Gram matrix."""
    # In place: matrices of the width of Stable Diffusion XL's states take 32 MiB each.
    gram = targets.T @ targets
    gram += preserve.T @ preserve
    return _cholesky(gram, pull)


def _finite(solution: TextMap) -> TextMap:
    if not all(bool(factor.isfinite().all()) for factor in (solution.u, solution.v) if factor is not None):
        raise SolveError("solve: expected a finite solution, got inf or nan. Use smaller scales and strengths.")
    return solution


def ridge_edit(
    weight: Float[Tensor, "out dim"], keys: Float[Tensor, "n dim"], values: Float[Tensor, "n out"], reg: float
) -> Float[Tensor, "out dim"]:
    """Return the W' that minimises |keys W'^T - values|^2 + reg |W' - weight|^2, for targets of any kind.

    The solve of a single layer; where the values are `W a`, `solve` does all layers at once. In float64, and returned
    in the weight's dtype.
    """
    keys, values, start = keys.double(), values.double(), weight.double()
    factor = _cholesky(keys.T @ keys, reg)
    change = torch.cholesky_solve(keys.T @ (values - keys @ start.T), factor).T
    return (start + change).to(weight.dtype)


def ridge_edit_from_moments(
    weight: Float[Tensor, "out dim"], gram: Float[Tensor, "dim dim"], cross: Float[Tensor, "out dim"], reg: float
) -> Float[Tensor, "out dim"]:
    """Return the W' that minimises sum |W' x - y|^2 + reg |W' - weight|^2, from the sums of x x^T and of y x^T.

    In float64, and returned in the weight's dtype; `gram` is not changed.
    """
    start = weight.double()
    factor = _cholesky(gram.double().clone(), reg)
    residual = cross.double() - start @ gram.double()
    return (start + torch.cholesky_solve(residual.T, factor).T).to(weight.dtype)


def _cholesky(gram: Float[Tensor, "dim dim"], reg: float) -> Float[Tensor, "dim dim"]:
    """Return the factor of `gram + reg I`; `gram` is that sum afterwards."""
    gram.diagonal().add_(reg)
    factor, failed = torch.linalg.cholesky_ex(gram)
    pivots = factor.diagonal().square()
    # Rounding makes a singular matrix pass at random; a pivot at the rounding error of the largest entry is one.
    lowest = len(gram) * torch.finfo(gram.dtype).eps * gram.diagonal().max()
    if failed.item() or pivots.min() <= lowest:
        raise SolveError(
            f"reg: expected a value that makes the {len(gram)} x {len(gram)} system solvable, got {reg!r}. Raise it."
        )
    return factor


def _overweight(rows: Rows) -> SolveError | None:
    """Return the error for weights beside which a usual pull is nothing; None where the pull itself is too small."""
    kept = rows.preserve_weights[~rows.held]
    heaviest = {
        setting: float(weights.max()) if len(weights) else 0.0
        for setting, weights in (("erase_scale", rows.weights), ("preserve_scale", kept))
    }
    setting = max(heaviest, key=lambda name: heaviest[name])
    if heaviest[setting] * rows.pull <= 1:
        return None
    return SolveError(
        f"{setting}: expected weights of prompts beside which reg {rows.pull!r} counts, got {heaviest[setting]:.3g}."
        " Lower it, or raise reg."
    )


def _check(rows: Rows) -> None:
    for where, number in (("reg", rows.reg), ("reg_each", rows.reg_each)):
        if not 0 <= number < math.inf:
            raise InputError(f"{where}: expected a finite number >= 0, got {number!r}. Larger erases less.")
    for where, weights in (("weights", rows.weights), ("preserve_weights", rows.preserve_weights)):
        held = weights.isinf() if where == "preserve_weights" else torch.zeros_like(weights, dtype=torch.bool)
        unusable = weights[~((weights >= 0) & (weights.isfinite() | held))]
        if len(unusable):
            raise InputError(f"{where}: expected finite numbers >= 0, got {unusable[0].item()!r}. Check the scales.")
    if rows.strengths is not None and not bool(rows.strengths.isfinite().all()):
        raise InputError("strength: expected a finite number, got inf or nan. Use a smaller one.")
    for where, states in (("targets", rows.targets), ("anchors", rows.anchors), ("preserve", rows.preserve)):
        if not bool(states.isfinite().all()):
            raise InputError(f"{where}: expected finite text states, got nan or inf. Encode in float32.")
