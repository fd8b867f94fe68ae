"""The schema of a run: one config, validated whole, with all its errors reported at once."""

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Annotated, Any, cast, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from ..concept import Concept, distinct
from ..erasers import Eraser, eraser_class
from ..errors import InputError, reason
from ..io.text import check_unicode
from ..loading import Attention
from ..profile import DEFAULT_MODEL, ModelProfile, profile_of
from ..registry import check_sizes, with_presets
from ..sampling import SamplingSettings
from .lists import families_expanded, list_path, read_concepts
from .problems import explained

Seed = Annotated[int, Field(ge=0, lt=2**63)]
"""A seed that a generator takes, also when it is counted up."""


@dataclass(frozen=True, kw_only=True)
class MeasureSettings:
    """Settings of the quick measure after each removal.

    Attributes:
        per_concept: Images of each removed concept, > 0.
        near: Images of the concepts nearest to the removed ones in all, >= 0.
        far: Images of all other concepts in all, >= 0.
        seed: Seed of prompts and noise, >= 0.
        steps: Number of sampling steps, > 0; None is the default of the model's profile.
        guidance_scale: Scale of classifier-free guidance, 0 to 1000; None is the default of the model's profile.
        batch_size: Images sampled at once, > 0. Images are equal to the last bit only at equal batch sizes.
        health: Whether abilities on kept concepts are compared with the original's after each entry.
    """

    per_concept: Annotated[int, Field(gt=0)] = 20
    near: Annotated[int, Field(ge=0)] = 32
    far: Annotated[int, Field(ge=0)] = 40
    seed: Seed = 0
    steps: Annotated[int, Field(gt=0)] | None = None
    guidance_scale: Annotated[float, Field(ge=0, le=1000)] | None = None
    batch_size: Annotated[int, Field(gt=0)] = 16
    health: bool = True

    def sampling(self, model: str) -> SamplingSettings:
        """Return the sampling settings of the measure, with the model's defaults where it leaves them open."""
        return SamplingSettings.of(
            model, steps=self.steps, guidance_scale=self.guidance_scale, batch_size=self.batch_size
        )


@dataclass(frozen=True, kw_only=True)
class Run:
    """A resolved run: a config file with every default filled in.

    Attributes:
        model: "tinyworld", a diffusers folder or a Hub id.
        eraser: The method with its settings.
        concepts: Concepts to remove, in this order.
        seed: Seed of the fits, >= 0.
        output: Folder of the ledger; "" is a new one under erasure-runs.
        device: "auto" or a device name of torch: "cpu", "cuda", "cuda:1", "mps".
        attention: Implementation of attention, "sdpa" or "xformers"; see `load_model`.
        measure: Settings of the measure after each removal; None measures nothing.
    """

    model: str
    eraser: Eraser
    concepts: Annotated[tuple[Concept, ...], Field(min_length=1)]
    seed: Seed = 0
    output: str = ""
    device: str = "auto"
    attention: Attention = "sdpa"
    measure: MeasureSettings | None = field(default_factory=MeasureSettings)

    def as_json(self) -> dict[str, Any]:
        """Return the run as the plain data of a config file, which `parse` turns into an equal run."""
        return {
            "model": self.model,
            "eraser": {"name": self.eraser.name, **json.loads(json.dumps(self.eraser.as_settings()))},
            "concepts": [concept.as_json() for concept in self.concepts],
            "seed": self.seed,
            "output": self.output,
            "device": self.device,
            "attention": self.attention,
            "measure": None if self.measure is None else asdict(self.measure),
        }


def parse(config: Mapping[str, Any]) -> Run:
    """Validate a config whole and fill in its defaults.

    The model's profile fills in settings of the eraser, and aliases, kind and preserve of concepts that it knows; then
    come the eraser's presets and its defaults.

    Raises:
        InputError: Every key that is unknown, of the wrong type or out of range, on one line.
        UnknownNameError: An eraser that does not exist, or a concept that is not among the model's known ones.
    """
    config = {"model": DEFAULT_MODEL, **config}
    name, settings = _eraser(config)
    if isinstance(config.get("concepts"), str):
        config["concepts"] = read_concepts(list_path(config["concepts"]))
    elif _at_once(name, settings) and isinstance(config.get("concepts"), list):
        config["concepts"] = families_expanded(config["concepts"])
    if isinstance(config["model"], str):
        profile = profile_of(config["model"])
        settings = {**profile.settings(name), **settings}
        if isinstance(parts := settings.get("parts"), list):
            settings["parts"] = [_part(part, profile) for part in parts]
        if isinstance(config.get("concepts"), list):
            config["concepts"] = profile.completed(config["concepts"])
    kind = eraser_class(name)
    return _validated({**config, "eraser": with_presets(kind, settings)}, kind)


def _eraser(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return name and settings of a config's eraser; a list and "one+other" are a stack of erasers.

    Raises:
        InputError: It is not a mapping with a name.
    """
    value = config.get("eraser", {"name": "uce"})
    if isinstance(value, list):
        value = {"name": "stack", "parts": value}
    settings = dict(value) if isinstance(value, Mapping) else {}
    if isinstance(settings.get("name"), str) and "+" in settings["name"]:
        value = settings = {**settings, "name": "stack", "parts": settings["name"].split("+")}
    name = settings.pop("name", "uce")
    if not isinstance(value, Mapping) or not isinstance(name, str):
        raise InputError(
            f"eraser: expected a name and settings, got {value!r}. Write for example {{name: uce, reg: 0.5}}."
        )
    return name, settings


def _at_once(name: str, settings: Mapping[str, Any]) -> bool:
    """Return True if an eraser, or a part of a stack, removes several concepts of one request at once."""
    parts = settings.get("parts")
    listed = parts if isinstance(parts, list) else []
    named = [part.get("name") if isinstance(part, Mapping) else part for part in listed]
    return any(eraser_class(each).together for each in (name, *named) if isinstance(each, str))


def _part(part: object, profile: ModelProfile) -> object:
    """Return a part of a stack with the settings that the profile has for it; anything else is left to the check."""
    settings = {"name": part} if isinstance(part, str) else part
    if not isinstance(settings, Mapping) or not isinstance(settings.get("name"), str):
        return part
    return {**profile.settings(settings["name"]), **settings}


def _validated(config: Mapping[str, Any], eraser: type[Eraser]) -> Run:
    schema = _schema(eraser)
    try:
        text = json.dumps(config)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"config: expected texts, numbers, lists and keys, got something else ({reason(error)})."
        ) from None
    _check_texts(config)
    try:
        checked = schema.model_validate_json(text, strict=True)
    except ValidationError as error:
        parts = {"concepts": Concept, "measure": MeasureSettings, "eraser": eraser}
        raise InputError(explained(error, list(schema.model_fields), parts)) from None
    values = {key: getattr(checked, key) for key in schema.model_fields}
    check_sizes(values["eraser"].as_settings(), "eraser.")
    return Run(**{**values, "concepts": distinct(values["concepts"])})


def _check_texts(value: object, *path: object) -> None:
    """Refuse texts that are no Unicode, as bytes of the command line in another encoding are."""
    if isinstance(value, str):
        check_unicode(value, ".".join(map(str, path)))
    elif isinstance(value, Mapping):
        for key, each in cast("Mapping[object, object]", value).items():
            _check_texts(each, *path, key)
    elif isinstance(value, list):
        for i, each in enumerate(cast("list[object]", value)):
            _check_texts(each, *path, i)


def _schema(eraser: type[Eraser]) -> type[BaseModel]:
    """Return the schema of a run of one eraser: the fields of `Run`, with the settings of that eraser."""
    hints = get_type_hints(Run, include_extras=True) | {"eraser": eraser}
    defaults = {
        item.name: item.default_factory() if item.default_factory is not MISSING else item.default
        for item in fields(Run)
    }
    declared: dict[str, Any] = {
        name: (hint, ... if defaults[name] is MISSING else defaults[name]) for name, hint in hints.items()
    }
    return create_model("RunConfig", __config__=ConfigDict(extra="forbid", strict=True), **declared)
