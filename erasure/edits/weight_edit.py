"""Edits of a model's weights and words: scaled, composed, solved together, merged, exported as a LoRA."""

from collections.abc import Callable, Container, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from diffusers import DiffusionPipeline
from torch import Tensor, nn

from ..arguments import checks_arguments
from ..backbones import backbone_of
from ..backbones.conditioning import TEXT
from ..backbones.usable import check_editable
from ..closed_form.joint import joined_rows
from ..closed_form.problem import Rows
from ..closed_form.solve import solve
from ..closed_form.storage import fetched, put_apart
from ..errors import InputError, unknown_name
from .changes import Change, MapChange, SolvedChange, SumChange, check_size, edited_weights, exchanged, single_changes
from .edit import Edit
from .lora import Lora, lora_of
from .metadata import EditMetadata
from .serialization import (
    ChangeReader,
    ChangeWriter,
    EditFile,
    list_member,
    member,
    object_member,
    rows_as_tensors,
    rows_from,
)
from .switch import Switch
from .tokens import NewToken, add_tokens, check_new, tokens_added

_FORMAT = "erasure-edit/3"
_SECOND_FORMAT = "erasure-edit/2"  # of edits without rows, or with those of the tokens' states alone
_FIRST_FORMAT = "erasure-edit/1"  # its rows are written column by column


@checks_arguments
@dataclass(frozen=True, kw_only=True, eq=False)
class WeightEdit(Edit):
    """A change of a model's weights.

    Attributes:
        changes: Changes by full parameter name: "unet.….attn2.to_k.weight".
        metadata: Origin of the edit.
        rows: Least-squares problems that the edit solves, where it solves any, by the text stream of their states; with
            them, several removals can be solved together. Parameters whose change is a map, or a sum with one, are
            solved for; the other changes and summands are trained.
        tokens: New words of the model; a change of a table of words leaves out their rows.

    Raises:
        InputError: A field is of another type, or a change or the row of a word is not finite, or absurdly large.
    """

    formats: ClassVar[tuple[str, ...]] = (_FORMAT, _SECOND_FORMAT, _FIRST_FORMAT)

    changes: Mapping[str, Change]
    metadata: EditMetadata
    rows: Mapping[str, Rows] | None = None
    tokens: tuple[NewToken, ...] = ()

    def __post_init__(self) -> None:
        check_size(self.changes, self.metadata.method)
        for token in self.tokens:
            token.check_finite()

    @property
    def closed_form(self) -> bool:
        """Whether every change is the solution of the edit's rows."""
        return bool(self.rows) and not self._trained()

    def _trained(self) -> dict[str, Change]:
        """Return the changes that are not a solution of the rows; of a sum, the summands that are none."""
        rests = {name: _unsolved(change, self.rows or {}) for name, change in self.changes.items()}
        return {name: rest for name, rest in rests.items() if rest is not None}

    def solved_spaces(self) -> dict[str, str]:
        """Return the text stream that each parameter is solved for, by its name; those without a map are left out."""
        return {
            name: single.space
            for name, change in self.changes.items()
            for single in single_changes(change)
            if isinstance(single, MapChange | SolvedChange) and single.space in (self.rows or {})
        }

    @classmethod
    def from_rows(cls, rows: Rows, names: Sequence[str], metadata: EditMetadata) -> "WeightEdit":
        """Return the edit that solves `rows` in the parameters `names`, with the rules of a joint solve.

        Raises:
            InputError: See `closed_form.solve`.
        """
        change = SolvedChange(rows=rows)
        _ = change.as_map  # a problem without a solution is refused now
        return cls(changes=dict.fromkeys(names, change), metadata=metadata, rows={rows.space: rows})

    @classmethod
    def from_problems(
        cls, problems: Iterable[Rows], layers: Callable[[str], Sequence[str]], metadata: EditMetadata
    ) -> "WeightEdit":
        """Return the edit that solves a problem for each text stream in the layers that `layers` gives for it.

        Raises:
            InputError: See `closed_form.solve`.
        """
        parts = [cls.from_rows(rows, layers(rows.space), metadata) for rows in problems]
        changes: dict[str, Change] = {name: change for part in parts for name, change in part.changes.items()}
        rows = {space: rows for part in parts for space, rows in (part.rows or {}).items()}
        return cls(changes=changes, metadata=metadata, rows=rows)

    @classmethod
    def compose(cls, edits: Sequence["WeightEdit"]) -> "WeightEdit":
        """Return the sum of edits, each computed from the weights of their one base.

        Raises:
            InputError: There are no edits.
            BaseMismatchError: They were made for different models.
        """
        first = _first(edits)
        for edit in edits:
            first.metadata.check_same_base(edit.metadata)
        return cls._summed(edits)

    @classmethod
    def joint(cls, edits: Sequence["WeightEdit"]) -> "WeightEdit":
        """Return the combined effect of a sequence of removals on the model that they began with.

        All edits with rows are solved together, from the original weights: the result is the same to the last bit in
        any order, and the same as if they had been removed at once. Trained changes, whose fit may have started from
        edited weights, are added after them, in order.

        Raises:
            InputError: There are no edits, or anchors form a circle.
            BaseMismatchError: Edits with rows were made for different models.
        """
        _first(edits)
        solved = [edit for edit in edits if edit.rows]
        for edit in solved:
            solved[0].metadata.check_same_base(edit.metadata)
        trained = [replace(edit, changes=changes, rows=None) for edit in edits if (changes := edit._trained())]
        summed = cls._summed([*([_jointly_solved(solved)] if solved else []), *trained])
        metadata = EditMetadata.composed([edit.metadata for edit in edits])
        return replace(summed, metadata=metadata, tokens=tuple(token for edit in edits for token in edit.tokens))

    @classmethod
    def _summed(cls, edits: Sequence["WeightEdit"]) -> "WeightEdit":
        changes: dict[str, Change] = {}
        for edit in edits:
            for name, change in edit.changes.items():
                changes[name] = SumChange(parts=(changes[name], change)) if name in changes else change
        tokens = tuple(token for edit in edits for token in edit.tokens)
        return cls(changes=changes, metadata=EditMetadata.composed([edit.metadata for edit in edits]), tokens=tokens)

    def scaled(self, factor: float) -> "WeightEdit":
        """Return the edit `factor` times as strong; 0 changes no weight. New words do not depend on the strength."""
        scaled = {id(change): change.scaled(factor) for change in self.changes.values()}
        return WeightEdit(
            changes={name: scaled[id(change)] for name, change in self.changes.items()},
            metadata=self.metadata,
            rows=self.rows if factor == 1 else None,
            tokens=self.tokens,
        )

    @contextmanager
    def applied_to(self, pipe: DiffusionPipeline, *, check: bool = True) -> Generator[DiffusionPipeline]:
        """Change the pipeline's weights for the length of a `with`; on exit they are what they were, bit for bit.

        The original tensors are kept and put back, not computed again. Device moves inside the `with` are allowed.

        Raises:
            BaseMismatchError: The edit was made for another model.
            InputError: The model lacks a parameter, has one of another shape, or knows a new word already.
        """
        if check:
            self.check_base(pipe)
        parameters = self._parameters_of(pipe)
        with exchanged(parameters, self._edited(parameters)), tokens_added(pipe, self.tokens):
            yield pipe

    @contextmanager
    def switched(self, pipe: DiffusionPipeline, *, check: bool = True) -> Generator[Switch]:
        """Yield a switch that turns the edit on and off as often as needed; it is off at first.

        Both sets of the changed weights are kept in memory meanwhile, so turning it computes nothing. On exit the
        weights are what they were, bit for bit. For arguments and errors see `applied_to`.
        """
        if check:
            self.check_base(pipe)
        parameters = self._parameters_of(pipe)
        weights = self._edited(parameters)

        @contextmanager
        def in_force() -> Generator[None]:
            with exchanged(parameters, weights), tokens_added(pipe, self.tokens):
                yield

        switch = Switch(in_force)
        try:
            yield switch
        finally:
            switch.turn(on=False)

    def merge_into(self, pipe: DiffusionPipeline, *, check: bool = True) -> None:
        """Change the pipeline's weights for good; for arguments and errors see `applied_to`."""
        if check:
            self.check_base(pipe)
        parameters = self._parameters_of(pipe)
        for token in self.tokens:
            check_new(backbone_of(pipe), token)  # all or nothing
        for name, weight in self._edited(parameters).items():
            parameters[name].data = weight
        add_tokens(pipe, self.tokens)

    def edited(self, name: str, weight: Tensor) -> Tensor:
        """Return the edited form of a weight of the base that the edit changes; for errors see `applied_to`."""
        if name not in self.changes:
            raise unknown_name("parameter of the edit", name, self.changes)
        return edited_weights({name: weight}, self.changes)[name]

    def as_lora(self, pipe: DiffusionPipeline, *, rank: int | None = None) -> Lora:
        """Return the edit as LoRA factors, exact where a change is low-rank, else its largest directions.

        Only the weights of linear and convolutional layers have a place in a LoRA; other changes, such as those of
        biases, are left out and count as missed.

        Args:
            pipe: The base, whose weights the factors of a shared map are made from.
            rank: Largest number of directions of a weight; None keeps all of a low-rank change, and half the smaller
                side of a dense one.

        Raises:
            InputError: All changes would be left out, or the rank is below 1.
        """
        weights = backbone_of(pipe).weights(self.changes.__contains__)
        self._check_all(weights)
        return lora_of(self.changes, weights, pipe, rank)

    def with_metadata(self, metadata: EditMetadata) -> "WeightEdit":
        return replace(self, metadata=metadata)

    def as_file(self, shared: Path | None = None) -> EditFile:
        writer = ChangeWriter(self.rows or {})
        # Files without further streams are those of the second format, which earlier versions read.
        further = sorted(self.rows or {}) if set(self.rows or {}) - {TEXT} else []
        description = {
            "changes": writer.changes(self.changes),
            "metadata": self.metadata.as_json(),
            "rows": further or self.rows is not None,
            "tokens": writer.new_tokens(self.tokens),
        }
        if writer.by_columns:
            description["by_columns"] = writer.by_columns
        tensors = writer.tensors | rows_as_tensors(self.rows)
        if shared is not None:
            description["shared"] = put_apart(tensors, shared)
        form = _FORMAT if further else _SECOND_FORMAT
        return EditFile(format=form, description=description, tensors=tensors)

    @classmethod
    def of_file(cls, file: EditFile, shared: Path) -> "WeightEdit":
        # Of files of the first format, which have fewer members.
        description: dict[str, Any] = {"shared": {}, "by_columns": [], "tokens": [], **file.description}
        tensors = {**file.tensors, **fetched(object_member(description, "shared"), shared)}
        rows = rows_from(member(description, "rows", object), tensors)
        reader = ChangeReader(tensors, rows or {}, list_member(description, "by_columns"))
        return cls(
            changes={name: reader.change(data) for name, data in object_member(description, "changes").items()},
            metadata=EditMetadata.from_json(object_member(description, "metadata")),
            rows=rows,
            tokens=reader.new_tokens(list_member(description, "tokens")),
        )

    def _parameters_of(self, pipe: DiffusionPipeline) -> dict[str, nn.Parameter]:
        backbone = backbone_of(pipe)
        if self.changes:
            check_editable(backbone)
        parameters = backbone.parameters(self.changes.__contains__)
        self._check_all(parameters)
        return {name: parameters[name] for name in self.changes}

    def _check_all(self, names: Container[str]) -> None:
        for name in self.changes:
            if name not in names:
                raise InputError(f"edit: expected a model with the parameter {name!r}, got one without. Load its base.")

    def _edited(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        return edited_weights({name: parameters[name].data for name in self.changes}, self.changes)


def _unsolved(change: Change, rows: Mapping[str, Rows]) -> Change | None:
    """Return a change without the summands that are a solution of rows; None if all are."""
    singles = single_changes(change)
    rest = tuple(each for each in singles if not (isinstance(each, MapChange | SolvedChange) and each.space in rows))
    if len(rest) == len(singles):
        return change
    return SumChange(parts=rest) if rest else None


def _jointly_solved(edits: Sequence[WeightEdit]) -> WeightEdit:
    """Solve edits with rows together; a weight takes part in the problem of the edits that map it."""
    solved = [edit.solved_spaces() for edit in edits]
    spaces = {name: space for each in solved for name, space in each.items()}
    touching: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for name, space in sorted(spaces.items()):
        indices = tuple(i for i, each in enumerate(solved) if name in each)
        touching.setdefault((space, indices), []).append(name)
    changes: dict[str, Change] = {}
    problems: list[Rows] = []
    for (space, indices), names in touching.items():
        problems.append(joined_rows([rows for i in indices if (rows := (edits[i].rows or {}).get(space)) is not None]))
        changes.update(dict.fromkeys(names, MapChange(map=solve(problems[-1]), space=space)))
    rows = {problem.space: problem for problem in problems}
    metadata = EditMetadata.composed([edit.metadata for edit in edits])
    return WeightEdit(changes=changes, metadata=metadata, rows=rows if len(rows) == len(problems) else None)


def _first(edits: Sequence[WeightEdit]) -> WeightEdit:
    if not edits:
        raise InputError("edits: expected at least one, got none. Fit or load one first.")
    return edits[0]
