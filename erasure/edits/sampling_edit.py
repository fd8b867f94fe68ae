"""Edits that act during sampling: guidances with their settings, and the weight edit beneath them, if there is one."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

from diffusers import DiffusionPipeline
from torch import Tensor

from ..arguments import checks_arguments
from ..errors import InputError, unknown_name
from ..guidance import Guidance, guidances
from ..registry import with_settings
from .edit import Edit
from .metadata import EditMetadata
from .serialization import EditFile, list_member, member, object_member, stored_tensor
from .switch import Switch
from .weight_edit import WeightEdit

_FORMAT = "erasure-sampling-edit/1"


@checks_arguments
@dataclass(frozen=True, kw_only=True, eq=False)
class SamplingEdit(Edit):
    """A change of the sampling.

    Attributes:
        guidances: Guidances in the order in which they are put in force.
        metadata: Origin of the edit.
        weights: Weight edit beneath the guidances; None leaves the weights as they are.

    Raises:
        InputError: A field is of another type.
    """

    formats: ClassVar[tuple[str, ...]] = (_FORMAT,)

    guidances: tuple[Guidance, ...]
    metadata: EditMetadata
    weights: WeightEdit | None = None

    @contextmanager
    def applied_to(self, pipe: DiffusionPipeline, *, check: bool = True) -> Generator[DiffusionPipeline]:
        if check:
            self.check_base(pipe)
        with ExitStack() as stack:
            if self.weights is not None:
                stack.enter_context(self.weights.applied_to(pipe, check=False))
            self._guide(pipe, stack)
            yield pipe

    @contextmanager
    def switched(self, pipe: DiffusionPipeline, *, check: bool = True) -> Generator[Switch]:
        if check:
            self.check_base(pipe)
        with ExitStack() as stack:
            weights = None
            if self.weights is not None:
                weights = stack.enter_context(self.weights.switched(pipe, check=False))

            @contextmanager
            def in_force() -> Generator[None]:
                with ExitStack() as inner:
                    if weights is not None:
                        weights.turn(on=True)
                        inner.callback(weights.turn, on=False)
                    self._guide(pipe, inner)
                    yield

            switch = Switch(in_force)
            stack.callback(switch.turn, on=False)
            yield switch

    def with_metadata(self, metadata: EditMetadata) -> "SamplingEdit":
        return replace(self, metadata=metadata)

    def as_file(self, shared: Path | None = None) -> EditFile:
        beneath = None if self.weights is None else self.weights.as_file(shared)
        description = {
            "guidances": [_described(guidance) for guidance in self.guidances],
            "metadata": self.metadata.as_json(),
            "weights": None if beneath is None else beneath.description,
        }
        tensors = {**({} if beneath is None else beneath.tensors), **fitted_tensors(self.guidances)}
        return EditFile(format=_FORMAT, description=description, tensors=tensors)

    @classmethod
    def of_file(cls, file: EditFile, shared: Path) -> "SamplingEdit":
        description = file.description
        weights = None
        if member(description, "weights", object) is not None:
            beneath = object_member(description, "weights")
            inner = EditFile(format=WeightEdit.formats[0], description=beneath, tensors=file.tensors)
            weights = WeightEdit.of_file(inner, shared)
        return cls(
            guidances=tuple(
                _guidance(each, i, file.tensors) for i, each in enumerate(list_member(description, "guidances"))
            ),
            metadata=EditMetadata.from_json(object_member(description, "metadata")),
            weights=weights,
        )

    def _guide(self, pipe: DiffusionPipeline, stack: ExitStack) -> None:
        for guidance in self.guidances:
            stack.enter_context(guidance.applied_to(pipe))


@checks_arguments
def joint(edits: Sequence[Edit]) -> Edit:
    """Return the combined effect of a sequence of removals on the model that they began with.

    Weight edits are combined by `WeightEdit.joint`; guidances of one kind by `Guidance.merged`, in order.

    Raises:
        InputError: There are no edits, or anchors form a circle.
        BaseMismatchError: Edits with rows were made for different models.
    """
    acting = [edit for edit in edits if isinstance(edit, SamplingEdit)]
    beneath = [weights_of(edit) for edit in edits if not isinstance(edit, SamplingEdit) or edit.weights is not None]
    if not acting:
        return WeightEdit.joint(beneath)
    guidances = [guidance for edit in acting for guidance in edit.guidances]
    kinds = dict.fromkeys(type(guidance) for guidance in guidances)
    merged = [kind.merged([each for each in guidances if type(each) is kind]) for kind in kinds]
    return SamplingEdit(
        guidances=tuple(guidance for parts in merged for guidance in parts),
        metadata=EditMetadata.composed([edit.metadata for edit in edits]),
        weights=WeightEdit.joint(beneath) if beneath else None,
    )


@checks_arguments
def weights_of(edit: Edit) -> WeightEdit:
    """Return the part of an edit that changes weights; without one, an edit that changes nothing."""
    if isinstance(edit, WeightEdit):
        return edit
    beneath = edit.weights if isinstance(edit, SamplingEdit) else None
    return WeightEdit(changes={}, metadata=edit.metadata) if beneath is None else beneath


def recorded_settings(guidance: Guidance) -> dict[str, Any]:
    """Return the settings of a guidance as plain values.

    Functions to be called back (`on_...`) are not recorded, and tensors of a fit are no settings.
    """
    return {
        item.name: getattr(guidance, item.name)
        for item in fields(guidance)
        if not item.name.startswith("on_") and item.name not in guidance.fitted
    }


def fitted_tensors(guidances: Sequence[Guidance]) -> dict[str, Tensor]:
    """Return the tensors that fits gave to guidances, by place, field and name: "guidance.0.directions.unet..."."""
    return {
        _key(i, field, name): tensor.detach().cpu().contiguous()
        for i, guidance in enumerate(guidances)
        for field in guidance.fitted
        for name, tensor in getattr(guidance, field).items()
    }


def _key(place: int, field: str, name: str) -> str:
    return f"guidance.{place}.{field}.{name}"


def _described(guidance: Guidance) -> dict[str, Any]:
    description: dict[str, Any] = {"name": guidance.name, "settings": recorded_settings(guidance)}
    if guidance.fitted:
        description["fitted"] = {field: list(getattr(guidance, field)) for field in guidance.fitted}
    return description


def _guidance(description: Mapping[str, Any], place: int, tensors: Mapping[str, Tensor]) -> Guidance:
    name = member(description, "name", str)
    if name not in guidances():
        raise InputError(f"edit: {unknown_name('guidance', name, guidances())} Update this library.")
    kind = guidances()[name]
    guidance = with_settings(kind, object_member(description, "settings"), where=f"{name}.")
    if not kind.fitted:
        return guidance
    names = {field: list_member(object_member(description, "fitted"), field) for field in kind.fitted}
    return replace(
        guidance,
        **{
            field: {key: stored_tensor(tensors, _key(place, field, str(key))) for key in keys}
            for field, keys in names.items()
        },
    )
