"""Least-squares edits of the projections that read text states: one solve for all layers.

Every cross-attention key and value projection W of a denoiser reads the same text states. When the wanted outputs are
themselves `W a`, the minimiser of

    sum_i w_i |W' c_i - W a_i|^2 + sum_j v_j |W' p_j - W p_j|^2 + reg |W' - W|_F^2

is `W' = W M` for every W at once, with states in rows scaled by the square roots of their weights and

    G = C^T C + P^T P + reg I,    M = (A^T C + P^T P + reg I) G^-1 = I + (A - C)^T (C G^-1).

M does not depend on W, and M - I has at most as many dimensions as there are erased rows. The layer-by-layer form is
eq. 7 of UCE (arXiv:2308.14761); that it needs one solve only is used throughout this library.
"""

import re
from collections.abc import Sequence, Set
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..concept import normalized
from ..errors import InputError, SolveError


@dataclass(frozen=True, kw_only=True, eq=False)
class TextMap:
    """The linear map of text states `M = I + u v^T`, or `M = I + u` where `v` is None; float64.

    Attributes:
        u: Left factor, or all of M - I.
        v: Right factor.
    """

    u: Float[Tensor, "dim rank"]
    v: Float[Tensor, "dim rank"] | None = None

    @property
    def rank(self) -> int:
        """The rank of M - I, at most."""
        return self.u.shape[1]

    def matrix(self) -> Float[Tensor, "dim dim"]:
        """Return M."""
        return torch.eye(len(self.u), dtype=self.u.dtype, device=self.u.device) + self.minus_identity()

    def minus_identity(self) -> Float[Tensor, "dim dim"]:
        """Return M - I."""
        return self.u if self.v is None else self.u @ self.v.T

    def change_of(self, weight: Float[Tensor, "out dim"]) -> Float[Tensor, "out dim"]:
        """Return W M - W in float64, on the weight's device."""
        u = self.u.to(weight.device)
        moved = weight.to(u.dtype) @ u
        return moved if self.v is None else moved @ self.v.to(weight.device).T

    def scaled(self, factor: float) -> "TextMap":
        """Return the map I + factor (M - I)."""
        return TextMap(u=self.u * factor, v=self.v)


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """The rows of one least-squares problem, each knowing the words it came from; float64.

    The labels make a joint solve of many removals possible long after each was asked for: they tell which preserved
    row is of a concept that another removal erases, which rows are the same, and whose anchor is itself erased.

    Attributes:
        targets: States c to be moved.
        anchors: States that they become.
        strengths: Share of the way to the anchors: a = c + strength (anchor - c) in the equation; None is 1, all
            the way. Apart from the anchors, which so stay states of the text encoder: float32, and the same for every
            target.
        weights: w, >= 0.
        labels: For each of them the name that is erased, normalised.
        anchor_labels: The name that it becomes; "" is the unconditional prompt.
        sites: Template and place of each state, "template|place"; the same for every name.
        preserve: States p that keep their outputs.
        preserve_weights: v, >= 0.
        preserve_labels: The name that is preserved.
        preserve_sites: As `sites`.
        reg: Pull towards the old weights, >= 0.
    """

    targets: Float[Tensor, "n dim"]
    anchors: Float[Tensor, "n dim"]
    strengths: Float[Tensor, " n"] | None = None
    weights: Float[Tensor, " n"]
    labels: tuple[str, ...]
    anchor_labels: tuple[str, ...]
    sites: tuple[str, ...]
    preserve: Float[Tensor, "m dim"]
    preserve_weights: Float[Tensor, " m"]
    preserve_labels: tuple[str, ...]
    preserve_sites: tuple[str, ...]
    reg: float

    @staticmethod
    def joined(parts: Sequence["Rows"]) -> "Rows":
        """Return the rows of one problem that does what all the parts ask, in any order the same to the last bit.

        A name that is erased anywhere leaves the preserved rows, and rows whose template speaks of it go ("a cat in the
        style of {}" would keep the cat). Equal rows count once, at their largest weight. The largest `reg` holds. An
        anchor that is itself erased resolves to that name's anchor.

        Raises:
            InputError: There are no parts, they are of different models, or anchors go round in a circle.
        """
        if not parts:
            raise InputError("rows: expected at least one removal, got none. Add one first.")
        widths = {part.targets.shape[1] for part in parts}
        if len(widths) > 1:
            raise InputError(f"rows: expected states of one width, got {sorted(widths)}. Join removals of one model.")
        erased = [row for part in parts for row in part._erased_rows()]
        kept = [row for part in parts for row in part._kept_rows()]
        names = {row.label for row in erased}
        spoken_of = _templates_speaking_of(names, {row.template for row in [*erased, *kept]})
        erased = _first_of_each([row for row in erased if row.template not in spoken_of])
        kept = _first_of_each([row for row in kept if row.template not in spoken_of and row.label not in names])
        erased = _with_anchors_resolved(erased)
        return Rows.of(erased, kept, reg=max(part.reg for part in parts), dim=widths.pop())

    @staticmethod
    def of(erased: Sequence["Row"], kept: Sequence["Row"], *, reg: float, dim: int) -> "Rows":
        """Return the problem of single rows: those to move, and those to keep (their anchor is not used)."""
        return Rows(
            targets=_stacked([row.state for row in erased], dim),
            anchors=_stacked([row.anchor for row in erased], dim),
            strengths=torch.tensor([row.strength for row in erased], dtype=torch.float64),
            weights=torch.tensor([row.weight for row in erased], dtype=torch.float64),
            labels=tuple(row.label for row in erased),
            anchor_labels=tuple(row.anchor_label for row in erased),
            sites=tuple(row.site for row in erased),
            preserve=_stacked([row.state for row in kept], dim),
            preserve_weights=torch.tensor([row.weight for row in kept], dtype=torch.float64),
            preserve_labels=tuple(row.label for row in kept),
            preserve_sites=tuple(row.site for row in kept),
            reg=reg,
        )

    def goals(self) -> Float[Tensor, "n dim"]:
        """Return the states a that the targets are moved to."""
        if self.strengths is None:
            return self.anchors
        strengths = self.strengths[:, None]
        # All the way is the anchor itself, not what rounding makes of it.
        return torch.where(strengths == 1, self.anchors, self.targets + strengths * (self.anchors - self.targets))

    def _erased_rows(self) -> list["Row"]:
        strengths = [1.0] * len(self.labels) if self.strengths is None else self.strengths.tolist()
        columns = zip(
            self.labels,
            self.sites,
            self.targets,
            self.weights.tolist(),
            self.anchor_labels,
            self.anchors,
            strengths,
            strict=True,
        )
        return [
            Row(
                label=label,
                site=site,
                state=state,
                weight=weight,
                anchor_label=anchor_label,
                anchor=anchor,
                strength=strength,
            )
            for label, site, state, weight, anchor_label, anchor, strength in columns
        ]

    def _kept_rows(self) -> list["Row"]:
        columns = zip(
            self.preserve_labels, self.preserve_sites, self.preserve, self.preserve_weights.tolist(), strict=True
        )
        return [
            Row(label=label, site=site, state=state, weight=weight, anchor_label=label, anchor=state)
            for label, site, state, weight in columns
        ]


@dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """One text state of a problem.

    Attributes:
        label: The name that the prompt was made for, normalised.
        site: Template and place of the state, "template|place".
        state: The state.
        weight: Its weight, >= 0.
        anchor_label: The name that it becomes.
        anchor: The state of that; itself for a preserved row.
        strength: Share of the way to the anchor; 1 is all the way.
    """

    label: str
    site: str
    state: Float[Tensor, " dim"]
    weight: float
    anchor_label: str
    anchor: Float[Tensor, " dim"]
    strength: float = 1.0

    def __post_init__(self) -> None:
        for label in (self.label, self.anchor_label):
            if label != normalized(label):
                raise InputError(f"row: expected a normalised label, got {label!r}. Use {normalized(label)!r}.")

    @property
    def goal(self) -> Float[Tensor, " dim"]:
        """The state that it is moved to."""
        return self.anchor if self.strength == 1 else self.state + self.strength * (self.anchor - self.state)

    @property
    def template(self) -> str:
        """The prompt without the name."""
        return self.site.rpartition("|")[0]

    @property
    def key(self) -> tuple[str, str, str]:
        """Identity of the row: rows with one key are the same row."""
        return (self.label, self.site, self.anchor_label)


def solve(rows: Rows) -> TextMap:
    """Return the minimiser of the least-squares problem of the module's docstring.

    Solved in float64 by one Cholesky factorisation on the CPU: the Gram matrix of text states is ill-conditioned.
    Factors are kept while the rank is at most half the width, where they are the smaller.

    Raises:
        InputError: `reg` or a weight is negative, or a state is not finite.
        SolveError: The Gram matrix is singular to float64's precision.
    """
    _check(rows)
    # A row that stays where it is holds others in place, as a preserved one does, and adds nothing to the rank.
    goals = rows.goals()
    moved = (goals != rows.targets).any(dim=1) & (rows.weights > 0)
    roots = rows.weights.sqrt()[:, None]
    targets, difference = rows.targets * roots, ((goals - rows.targets) * roots)[moved]
    preserve = rows.preserve * rows.preserve_weights.sqrt()[:, None]
    # In place: matrices of the width of Stable Diffusion XL's states take 32 MiB each.
    gram = targets.T @ targets
    gram += preserve.T @ preserve
    factor = _cholesky(gram, rows.reg)
    dim = targets.shape[1]
    if 2 * len(difference) <= dim:
        return TextMap(u=difference.T.contiguous(), v=torch.cholesky_solve(targets[moved].T, factor))
    correlation = difference.T @ targets[moved]
    return TextMap(u=torch.cholesky_solve(correlation.T, factor).T.contiguous())


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


def _check(rows: Rows) -> None:
    if not rows.reg >= 0:
        raise InputError(f"reg: expected a number >= 0, got {rows.reg!r}. Larger erases less.")
    for where, weights in (("weights", rows.weights), ("preserve_weights", rows.preserve_weights)):
        if not bool((weights >= 0).all()):
            raise InputError(f"{where}: expected numbers >= 0, got {weights.min().item()!r}. Check the scales.")
    for where, states in (("targets", rows.targets), ("anchors", rows.anchors), ("preserve", rows.preserve)):
        if not bool(states.isfinite().all()):
            raise InputError(f"{where}: expected finite text states, got nan or inf. Encode in float32.")


def _stacked(states: Sequence[Float[Tensor, " dim"]], dim: int) -> Float[Tensor, "n dim"]:
    if not states:
        return torch.zeros(0, dim, dtype=torch.float64)
    return torch.stack(list(states)).to(device="cpu", dtype=torch.float64)


def _first_of_each(rows: Sequence[Row]) -> list[Row]:
    """Return the rows in canonical order, each key once, at its largest weight.

    At one weight the strongest is taken. Two encodings of one row may differ in their last bits; then the smaller
    numbers are taken, in any order the same.
    """
    by_key: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        by_key.setdefault(row.key, []).append(row)
    return [same[0] if len(same) == 1 else min(same, key=_preference) for _, same in sorted(by_key.items())]


def _preference(row: Row) -> tuple[float, float, list[float], list[float]]:
    return (-row.weight, -row.strength, row.state.tolist(), row.anchor.tolist())


def _templates_speaking_of(names: Set[str], templates: Set[str]) -> set[str]:
    """Return the templates that hold one of the names as whole words."""
    some = "|".join(re.escape(name) for name in sorted(names) if name)
    pattern = re.compile(rf"(?<!\w)(?:{some})(?!\w)")
    return {template for template in templates if some and pattern.search(normalized(template))}


def _with_anchors_resolved(rows: Sequence[Row]) -> list[Row]:
    """Replace each anchor that is itself erased by what it becomes, along the whole chain.

    The state at the same site of the anchor's own removal says what that is; a removal without that site says it by
    its own map.
    """
    becomes = {row.label: row.anchor_label for row in reversed(rows)}
    _refuse_circles(becomes)
    at = {(row.label, row.site): row for row in reversed(rows)}
    maps: dict[str, TextMap] = {}

    def resolved(row: Row) -> Row:
        if row.anchor_label not in becomes:
            return row
        label, anchor = row.anchor_label, row.goal
        while label in becomes:
            if (label, row.site) in at:
                label, anchor = at[label, row.site].anchor_label, at[label, row.site].goal
                continue
            if label not in maps:
                own = [other for other in rows if other.label == label]
                maps[label] = solve(Rows.of(own, [], reg=_RESOLVING_REG, dim=len(anchor)))
            label, anchor = becomes[label], maps[label].matrix() @ anchor
        return Row(
            label=row.label, site=row.site, state=row.state, weight=row.weight, anchor_label=label, anchor=anchor
        )

    return [resolved(row) for row in rows]


# Small beside the squared norm of a text state (768 for a CLIP state of unit variance), so that the anchor is followed
# nearly all the way, and large enough for a single row.
_RESOLVING_REG = 1e-2


def _refuse_circles(becomes: dict[str, str]) -> None:
    for start in sorted(becomes):
        seen = [start]
        while seen[-1] in becomes:
            following = becomes[seen[-1]]
            if following in seen:
                circle = " -> ".join([*seen, following])
                raise InputError(f"anchor: expected a concept that stays, got the circle {circle}. Change one anchor.")
            seen.append(following)
