"""A stack of erasers: each is fitted on the model as the ones before it left it, all are one removal."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

from annotated_types import MinLen

from ..backbones.loaded import LoadedModel
from ..concept import Concept
from ..edits import Edit, SamplingEdit, WeightEdit, joint
from ..errors import InputError
from ..progress import staged
from ..registry import Chosen, Exactness
from ..training.context import FitContext
from .base import STAGES, Dependence, Eraser, clash_of
from .hirm import HiRM
from .rece import RECE
from .shared_map import SharedMap
from .speed import SPEED


@dataclass(frozen=True, kw_only=True)
class Stack(Eraser):
    """Several erasers, one on top of another: `--method hirm+speed+rece`.

    Each part is fitted on the model as edited by those before it; one entry of a ledger holds all of them. The parts
    come in the order in which their edits act: text encoder, maps of text states, factors of a layer's outputs, trained
    weights, sampling. A map, factors on its left and changes of other weights multiply exactly. There is one map of
    text states at most; RECE after it adds its rows to it.

    Attributes:
        parts: The erasers, by name or with their settings; at least one.
    """

    name: ClassVar[str] = "stack"
    source: ClassVar[str] = "ours"
    exactness: ClassVar[Exactness] = "ours"
    main: ClassVar[tuple[str, ...]] = ()
    quick: ClassVar[Mapping[str, Any]] = {"parts": ({"name": "hirm", "steps": 2, "lr": 1e-3}, "speed")}

    parts: Annotated[tuple[Chosen[Eraser], ...], MinLen(1)] = (HiRM(), SPEED())

    def __post_init__(self) -> None:
        if any(isinstance(part, Stack) for part in self.parts):
            raise InputError("stack.parts: expected single erasers, got a stack. Put its parts in its place.")
        for first, second in zip(self.parts, self.parts[1:], strict=False):
            if STAGES.index(first.place) > STAGES.index(second.place):
                raise InputError(
                    f"stack.parts: expected the {second.place} before the {first.place}, got {first.name!r} before"
                    f" {second.name!r}. Put {second.name!r} first."
                )
        maps = [part.name for part in self.fitted if isinstance(part, SharedMap)]
        if len(maps) > 1:
            raise InputError(
                f"stack.parts: expected one map of text states, got {' and '.join(maps)}, which would be one problem"
                " with the rows of both. Remove with one of them."
            )
        for i, part in enumerate(self.parts):
            for other in self.parts[i + 1 :]:
                if reason := clash_of(part, other, one_concept=True):
                    raise InputError(
                        f"stack.parts: expected parts that go together, got {part.name!r} and {other.name!r}:"
                        f" {reason}. Leave one of them out."
                    )

    @property
    def dependence(self) -> Dependence:
        kinds = {part.dependence for part in self.fitted}
        if "weights" in kinds:
            return "weights"
        return "base" if "base" in kinds else "text"

    @property
    def at_once(self) -> bool:
        return any(part.at_once for part in self.parts)  # all parts see the concepts of one entry together

    @property
    def reflects(self) -> bool:
        return any(part.reflects for part in self.parts)

    @property
    def finds_anchors(self) -> bool:
        return any(part.finds_anchors for part in self.parts)

    @property
    def members(self) -> tuple[Eraser, ...]:
        return self.parts

    @property
    def fitted(self) -> tuple[Eraser, ...]:
        """The parts as they are fitted: RECE after a map of text states stands on that map."""
        parts: list[Eraser] = []
        for part in self.parts:
            if isinstance(part, RECE) and parts and isinstance(parts[-1], SharedMap):
                parts[-1] = replace(part, base=parts[-1])
            else:
                parts.append(part)
        return tuple(parts)

    @classmethod
    def covers(cls, family: type[LoadedModel]) -> bool:
        return all(part.covers(family) for part in cls().parts)

    def fit(self, concepts: Sequence[Concept], context: FitContext) -> Edit:
        backbone = context.backbone
        for eraser in (self, *self.parts):  # before the first is fitted
            eraser.require(concepts, backbone)
        for part in self.parts:
            concepts = part.completed(concepts, context)
        metadata = self.metadata(concepts, context)
        edits: list[Edit] = []
        with ExitStack() as applied:
            for i, part in enumerate(self.fitted):
                is_last = i == len(self.fitted) - 1
                on_progress = context.on_progress if is_last else staged(context.on_progress, f"fit of {part.name}")
                edit = part.fit(concepts, replace(context, on_progress=on_progress))
                # A part saw the edited base; the stack is an edit of the base itself.
                fingerprint = metadata.base_fingerprint
                edits.append(edit.with_metadata(replace(edit.metadata, base_fingerprint=fingerprint)))
                if not is_last and not isinstance(edit, SamplingEdit):
                    context = over(context, edit)
                    applied.enter_context(edit.applied_to(backbone.pipe, check=False))
        parts = tuple(edit.metadata for edit in edits)
        return _merged(edits).with_metadata(replace(metadata, parts=parts))


def _merged(edits: Sequence[Edit]) -> Edit:
    """Return the combined effect of edits, each relative to those before it; one that is solved for keeps its rows."""
    solved = [edit for edit in edits if isinstance(edit, WeightEdit) and edit.rows]
    if len(solved) != 1 or not all(isinstance(edit, WeightEdit) for edit in edits):
        return joint(edits)
    together = WeightEdit.compose([edit for edit in edits if isinstance(edit, WeightEdit)])
    return replace(together, rows=solved[0].rows)


def over(context: FitContext, edit: Any) -> FitContext:
    """Return the context of the next part, which knows the weights that an edit is about to change."""
    now = {name: weight.data for name, weight in context.backbone.parameters(edit.changes.__contains__).items()}
    history = replace(context.history, originals={**now, **context.history.originals})
    return replace(context, history=history, replaced={**now, **context.replaced})
