"""Base class of the erasers: settings, and one method that turns concepts into an edit."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import ClassVar, Literal, TypeVar, get_args

from ..arguments import checks_arguments
from ..backbones.base import Ability, Backbone
from ..backbones.loaded import LoadedModel
from ..backbones.schedule import Discrete, Flow
from ..concept import Concept
from ..edits import Edit, EditMetadata, SamplingEdit
from ..errors import InputError
from ..guidance import Guidance
from ..progress import Progress
from ..registry import Plugin
from ..training.context import FitContext

Dependence = Literal["text", "base", "weights"]
"""Inputs of an edit; see `Eraser.depends_on`."""
Stage = Literal["text encoder", "map of text states", "factor of outputs", "trained weights", "sampling"]
"""Part of the model that an edit acts on; see `Eraser.stage`."""
Work = Literal["training", "images"]
"""Work of a fit: see `Eraser.work`."""
STAGES: tuple[Stage, ...] = get_args(Stage)
"""The stages in the order in which edits of several act."""
_Edit = TypeVar("_Edit", bound=Edit)
EditFit = Callable[[], _Edit]
"""Returns the edit of one request."""

_NEEDED: Mapping[Ability, str] = {
    "maps": "whose attention to words is read",
    "guidance": "with an unconditional prediction that guidances act on",
    "layer guidance": "whose layers guidances act on, with cross-attention",
    "unet guidance": "whose UNet's loop guidances act on",
    "clip": "with a CLIP text encoder",
    "token ids": "whose text encoders share one vocabulary",
}


@dataclass(frozen=True, kw_only=True)
class Eraser(Plugin):
    """A method with its settings: its fields are the keys of a config, its defaults the values of its paper.

    Attributes:
        name: Name in a config and on the command line, equal to the name of the file.
        depends_on: Inputs of the edit: "weights", the weights that it is fitted on; "base", those of the model before
            the first removal; or "text", text states alone. An edit of the last two kinds does not depend on earlier
            removals, so a ledger need not apply them first; one of text states can be fitted on a model whose weights
            stay on the disk.
        stage: Part of the model that the edit acts on, which decides its place among several.
        clashes: Erasers whose removals must not stand beside its own, of whichever concepts, each with the reason.
        together: Whether several concepts of one request are removed at once, as one entry of a ledger (the members of
            a family); else one after another.
    """

    depends_on: ClassVar[Dependence] = "weights"
    # Work of a fit beside reading text: "training" descends a gradient, "images" samples images or their latents.
    work: ClassVar[frozenset[Work]] = frozenset()
    # Licence of the official code, for information ("none": without one); "" where there is no code.
    licence: ClassVar[str] = ""
    stage: ClassVar[Stage] = "trained weights"
    clashes: ClassVar[Mapping[str, str]] = MappingProxyType({})
    together: ClassVar[bool] = False
    # Noise schedules of the models that the method covers.
    schedules: ClassVar[tuple[type[Discrete | Flow], ...]] = (Discrete, Flow)
    # Abilities of the families that the method covers.
    needs: ClassVar[frozenset[Ability]] = frozenset()
    # The settings that a person turns first.
    main: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        for name in ("fit", "fit_lots"):
            if name in vars(cls):
                setattr(cls, name, checks_arguments(vars(cls)[name]))

    @property
    def dependence(self) -> Dependence:
        """The inputs of an edit with these settings."""
        return self.depends_on

    @property
    def place(self) -> Stage:
        """The part of the model that an edit with these settings acts on."""
        return self.stage

    @property
    def at_once(self) -> bool:
        """Whether several concepts of one request are removed at once with these settings."""
        return self.together

    @property
    def reflects(self) -> bool:
        """Whether an edit with these settings mirrors a concept's direction, so that a second mirror restores it."""
        return False

    @property
    def members(self) -> tuple["Eraser", ...]:
        """The single erasers that it consists of: itself, or the parts of a stack."""
        return (self,)

    @classmethod
    def covers(cls, family: type[LoadedModel]) -> bool:
        """Return True if the method, with its default settings, applies to models of a family."""
        return not cls._lacking(family)

    @classmethod
    def _lacking(cls, family: type[LoadedModel] | Backbone) -> str:
        """Return the first thing that the method needs and a family has not, in words; "" without one."""
        lacking = [_NEEDED[need] for need in sorted(cls.needs - family.abilities)]
        if not issubclass(family.schedule_kind, cls.schedules):
            lacking.append(f"with {' or '.join(schedule.words for schedule in cls.schedules)}")
        # A video is trained on, or sampled, nowhere here.
        if "images" not in family.abilities and cls.stage in ("trained weights", "sampling"):
            lacking.append("of images")
        return next(iter(lacking), "")

    def require(self, concepts: Sequence[Concept], backbone: Backbone) -> None:
        """Raise InputError if there is nothing to remove, or the method does not cover models of the family."""
        if not concepts:
            raise InputError(f"{self.name}: expected at least one concept, got none. Name what is to be erased.")
        if lacking := self._lacking(backbone):
            raise InputError(f"{self.name}: expected a model {lacking}, got {backbone.family}. Use another eraser.")
        if "guidance" in self.needs and backbone.distilled:
            raise InputError(
                f"{self.name}: expected a model that is sampled with an unconditional prediction, got {backbone.family}"
                " with an embedded guidance. Use another eraser."
            )

    def metadata(self, concepts: Sequence[Concept], context: FitContext) -> EditMetadata:
        """Return the metadata of an edit that a fit of these concepts makes."""
        return EditMetadata.of(self.name, self.as_settings(), context.backbone, concepts, context.seed)

    @property
    def finds_anchors(self) -> bool:
        """Whether a fit finds an anchor for concepts that have none."""
        return False

    def completed(self, concepts: Sequence[Concept], context: FitContext) -> Sequence[Concept]:
        """Return the concepts with what a fit of them would find itself, such as an anchor; else as they are."""
        del context
        return concepts

    @abstractmethod
    def fit(self, concepts: Sequence[Concept], context: FitContext) -> Edit:
        """Return the edit that removes the concepts; the model is left as it was, bit for bit.

        Args:
            concepts: Concepts to remove, together.
            context: Model, earlier removals, judge, seed and progress.

        Raises:
            InputError: There are no concepts.
        """

    @checks_arguments
    def fit_lots(self, requests: Sequence[Sequence[Concept]], context: FitContext) -> Iterator[Sequence[EditFit[Edit]]]:
        """Yield the fits of several requests, in order; each returns what `fit` returns for that request alone.

        They come in lots, since an eraser of text states reads those of many requests together before it yields them.

        Args:
            requests: Concepts of each request.
            context: See `fit`.

        Raises:
            InputError: See `fit`.
        """
        return ([partial(self.fit, concepts, context)] for concepts in requests)


def guided_edit(
    eraser: Eraser, guidances: Sequence[Guidance], concepts: Sequence[Concept], context: FitContext
) -> SamplingEdit:
    """Return the edit of guidances that need no fit; it is reported as one step."""
    if context.on_progress is not None:
        context.on_progress(Progress(done=1, total=1))
    return SamplingEdit(guidances=tuple(guidances), metadata=eraser.metadata(concepts, context))


def all_names(concepts: Sequence[Concept]) -> tuple[str, ...]:
    """Return the targets and aliases of concepts, each once."""
    return tuple(dict.fromkeys(name for concept in concepts for name in concept.names))


def clash_of(one: Eraser, other: Eraser, *, one_concept: bool) -> str:
    """Return the reason for which removals by two erasers must not stand together; "" without one.

    Args:
        one: An eraser, or a stack.
        other: Another.
        one_concept: Whether they remove the same concept.
    """
    for first in one.members:
        for second in other.members:
            if reason := first.clashes.get(second.name) or second.clashes.get(first.name):
                return reason
            if one_concept and first.reflects and second.reflects:
                return "two reflections of one concept cancel"
    return ""
