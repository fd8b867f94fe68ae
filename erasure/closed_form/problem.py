"""The rows of a least-squares problem, and the map of text states that solves it; see `erasure.closed_form.solve`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from ..backbones.conditioning import TEXT
from ..concept import normalized
from ..errors import InputError


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

    def change_of(self, weight: Float[Tensor, "out width"], *, leading: bool = False) -> Float[Tensor, "out width"]:
        """Return W M - W in float64, on the weight's device.

        Args:
            weight: The weight W.
            leading: Whether W may have further columns behind those that the states are multiplied with; they stay.
        """
        u = self.u.to(weight.device)
        moved = (weight[:, : len(u)] if leading else weight).to(u.dtype) @ u
        change = moved if self.v is None else moved @ self.v.to(weight.device).T
        return F.pad(change, (0, weight.shape[1] - change.shape[1])) if leading else change

    def factors_of(
        self, weight: Float[Tensor, "out width"], *, leading: bool = False
    ) -> tuple[Float[Tensor, "out rank"], Float[Tensor, "rank width"]] | None:
        """Return the factors of W M - W in float64 on the CPU, or None if the map has none; see `change_of`."""
        if self.v is None:
            return None
        read = weight[:, : len(self.u)] if leading else weight
        down = F.pad(self.v.T, (0, weight.shape[1] - len(self.u))) if leading else self.v.T
        return read.to("cpu", torch.float64) @ self.u, down

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
        preserve_weights: v, >= 0; inf holds a state exactly (see `threshold` and `held_rank`).
        preserve_labels: The name that is preserved.
        preserve_sites: As `sites`.
        reg: Pull towards the old weights, >= 0.
        space: The text stream that the states are of: a problem has the states of one, since each has a map of its own.
        reg_each: Further pull for each unit of erased weight, >= 0: that of a problem that averages over its rows.
        threshold: Directions of the states held exactly are held if the mean of the squares along them is at least
            this, >= 0. States of the unconditional prompt (label "") are held whatever it is.
        held_rank: Number of directions held at most, the largest; None is no limit.
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
    space: str = TEXT
    reg_each: float = 0.0
    threshold: float = 0.0
    held_rank: int | None = None

    @staticmethod
    def of(
        erased: Sequence["Row"],
        kept: Sequence["Row"],
        *,
        reg: float,
        dim: int,
        space: str = TEXT,
        reg_each: float = 0.0,
        threshold: float = 0.0,
        held_rank: int | None = None,
    ) -> "Rows":
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
            space=space,
            reg_each=reg_each,
            threshold=threshold,
            held_rank=held_rank,
        )

    def with_rows(self, *, erased: Sequence["Row"] | None = None, kept: Sequence["Row"] | None = None) -> "Rows":
        """Return the problem with other rows to move, or others to keep; None leaves them as they are."""
        rows = Rows.of(erased or (), kept or (), reg=self.reg, dim=self.targets.shape[1])
        changed = (*(() if erased is None else _ERASED), *(() if kept is None else _KEPT))
        return replace(self, **{name: getattr(rows, name) for name in changed})

    @property
    def held(self) -> Bool[Tensor, " m"]:
        """Whether each preserved state is held exactly."""
        return self.preserve_weights.isinf()

    @property
    def pull(self) -> float:
        """The whole pull towards the old weights."""
        return self.reg + self.reg_each * float(self.weights.sum()) if self.reg_each else self.reg

    def goals(self) -> Float[Tensor, "n dim"]:
        """Return the states a that the targets are moved to."""
        if self.strengths is None:
            return self.anchors
        strengths = self.strengths[:, None]
        # All the way is the anchor itself, not what rounding makes of it.
        return torch.where(strengths == 1, self.anchors, self.targets + strengths * (self.anchors - self.targets))

    def erased_rows(self) -> list["Row"]:
        """Return the rows that are moved, one by one."""
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

    def kept_rows(self) -> list["Row"]:
        """Return the rows that are held in place, one by one."""
        columns = zip(
            self.preserve_labels, self.preserve_sites, self.preserve, self.preserve_weights.tolist(), strict=True
        )
        return [
            Row(label=label, site=site, state=state, weight=weight, anchor_label=label, anchor=state)
            for label, site, state, weight in columns
        ]


# Fields of the rows that are moved, and of those that are kept.
_ERASED = ("targets", "anchors", "strengths", "weights", "labels", "anchor_labels", "sites")
_KEPT = ("preserve", "preserve_weights", "preserve_labels", "preserve_sites")


@dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """One text state of a problem.

    Attributes:
        label: The name that the prompt was made for, normalised.
        site: Template and place of the state, "template|place".
        state: The state.
        weight: Its weight, >= 0; inf holds a preserved state exactly.
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


def _stacked(states: Sequence[Float[Tensor, " dim"]], dim: int) -> Float[Tensor, "n dim"]:
    if not states:
        return torch.zeros(0, dim, dtype=torch.float64)
    return torch.stack(list(states)).to(device="cpu", dtype=torch.float64)
