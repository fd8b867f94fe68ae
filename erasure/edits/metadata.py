"""The origin of an edit: method, settings, concepts, seed, base model, versions, time."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from functools import cache
from typing import Any, ClassVar, cast

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import SchemaValidator

from ..arguments import checks_arguments
from ..backbones.base import Backbone
from ..concept import Concept
from ..errors import BaseMismatchError, InputError
from ..provenance import provenance


@checks_arguments
@dataclass(frozen=True, kw_only=True)
class EditMetadata:
    """The origin of an edit.

    Attributes:
        method: Name of the eraser; "composed" for a combination of several edits.
        settings: Settings of the eraser.
        concepts: Removed concepts; of a personalisation the learned ones, each with its class as the anchor.
        seed: Seed of the fit.
        base_fingerprint: Fingerprint of the model that the edit was made for.
        base_name: Source of that model, for people.
        versions: Versions of the libraries.
        time: Time of the fit, ISO 8601, UTC.
        parts: Metadata of the edits that a combination consists of.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    method: str
    settings: Mapping[str, Any]
    concepts: tuple[Concept, ...]
    seed: int
    base_fingerprint: str
    base_name: str
    versions: Mapping[str, str]
    time: str
    parts: tuple["EditMetadata", ...] = ()

    @classmethod
    def of(
        cls, method: str, settings: Mapping[str, Any], backbone: Backbone, concepts: Sequence[Concept], seed: int
    ) -> "EditMetadata":
        """Return the metadata of a fit on `backbone`, now, with the libraries of this process."""
        return cls(
            method=method,
            settings=json.loads(json.dumps(dict(settings))),  # as a file has them
            concepts=tuple(concepts),
            seed=seed,
            base_fingerprint=backbone.fingerprint(),
            base_name=str(backbone.pipe.name_or_path),
            versions=provenance()["versions"],
            time=now(),
        )

    @classmethod
    def composed(cls, parts: Sequence["EditMetadata"]) -> "EditMetadata":
        """Return the metadata of a combination of edits; of a single one its own."""
        if len(parts) == 1:
            return parts[0]
        return replace(
            parts[0],
            method="composed",
            settings={},
            concepts=tuple(concept for part in parts for concept in part.concepts),
            versions=provenance()["versions"],
            time=now(),
            parts=tuple(parts),
        )

    @classmethod
    def unedited(cls, base_fingerprint: str, base_name: str) -> "EditMetadata":
        """Return the metadata of an edit that changes nothing."""
        return cls(
            method="none",
            settings={},
            concepts=(),
            seed=0,
            base_fingerprint=base_fingerprint,
            base_name=base_name,
            versions={},
            time=now(),
        )

    @property
    def base(self) -> str:
        """The base model in a form for error messages."""
        return named_model(self.base_name, self.base_fingerprint)

    def check_same_base(self, other: "EditMetadata") -> None:
        """Raise BaseMismatchError if two edits were made for different models."""
        if self.base_fingerprint != other.base_fingerprint:
            raise BaseMismatchError(
                f"edits: expected edits of one model, got {self.base} and {other.base}. Fit them on one base."
            )

    def as_json(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return {
            **{item.name: getattr(self, item.name) for item in fields(self)},
            "concepts": [concept.as_json() for concept in self.concepts],
            "parts": [part.as_json() for part in self.parts],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "EditMetadata":
        """Return the metadata whose `as_json` gave `data`.

        Raises:
            InputError: The data are damaged, or of another version.
        """
        try:
            return _validator().validate_json(json.dumps(data), strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, ("metadata", *first["loc"])))
            raise InputError(
                f"edit: expected the metadata of an edit, got {first['msg']!r} at {where}. The file is damaged:"
                " copy or save it again."
            ) from None


@cache
def _validator() -> SchemaValidator:
    return cast("SchemaValidator", TypeAdapter(EditMetadata).validator)


def named_model(name: str, fingerprint: str) -> str:
    """Return a model's name and the start of its fingerprint."""
    return f"{name or 'a model'!r} ({fingerprint[:12]})"


def now() -> str:
    """Return the time in ISO 8601, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
