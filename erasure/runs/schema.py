"""The schema of a run: one config, checked whole, with every problem said at once."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Annotated, Any

from pydantic import ConfigDict, Field, ValidationError, create_model
from pydantic_core import ErrorDetails

from ..concept import Concept
from ..erasers import Eraser, eraser_class
from ..errors import ErasureError, InputError, unknown_name
from ..loading import Attention
from ..profile import DEFAULT_MODEL, profile_of
from .lists import families_expanded, list_path, read_concepts


@dataclass(frozen=True, kw_only=True)
class MeasureSettings:
    """What the quick measure after each removal looks at.

    Attributes:
        per_concept: Pictures for each removed concept.
        near: Pictures of the concepts most like the removed ones, all together.
        far: Pictures of everything else, all together.
        seed: Of prompts and noise.
        steps: Sampling steps; None is the model's own, 25 where it has none.
        guidance_scale: Of classifier-free guidance; None is the model's own, 7.5 where it has none.
        batch_size: Pictures sampled at once. Pictures are equal to the last bit only at equal batch sizes.
    """

    per_concept: Annotated[int, Field(gt=0)] = 20
    near: Annotated[int, Field(ge=0)] = 32
    far: Annotated[int, Field(ge=0)] = 40
    seed: Annotated[int, Field(ge=0)] = 0
    steps: Annotated[int, Field(gt=0)] | None = None
    guidance_scale: Annotated[float, Field(ge=0)] | None = None
    batch_size: Annotated[int, Field(gt=0)] = 16


@dataclass(frozen=True, kw_only=True)
class Run:
    """A whole run, with nothing left to be guessed.

    Attributes:
        model: "tinyworld", a diffusers folder or a Hub id.
        eraser: The method with its settings.
        concepts: What to remove, one after another in this order.
        seed: Of the fits.
        output: The ledger's folder; "" picks a new one under erasure-runs.
        device: "auto", or what torch calls it: "cpu", "cuda", "cuda:1", "mps".
        attention: "sdpa" or "xformers", as in `load_model`.
        measure: What is measured after each removal; None measures nothing.
    """

    model: str
    eraser: Eraser
    concepts: tuple[Concept, ...]
    seed: int = 0
    output: str = ""
    device: str = "auto"
    attention: Attention = "sdpa"
    measure: MeasureSettings | None = field(default_factory=MeasureSettings)

    def as_json(self) -> dict[str, Any]:
        """Give the run as the plain data of a config file: reading it back gives an equal run."""
        return {
            "model": self.model,
            "eraser": {"name": self.eraser.name, **json.loads(json.dumps(asdict(self.eraser)))},
            "concepts": [concept.as_json() for concept in self.concepts],
            "seed": self.seed,
            "output": self.output,
            "device": self.device,
            "attention": self.attention,
            "measure": None if self.measure is None else asdict(self.measure),
        }


def parse(config: Mapping[str, Any]) -> Run:
    """Check a config whole and fill in what it leaves open.

    The model's profile fills in settings of the eraser, and aliases, kind and preserve of concepts that it knows.

    Raises:
        InputError: Every key that is unknown, of the wrong type or out of range, on one line.
        UnknownNameError: An eraser that does not exist, or a concept that is not among the model's known ones.
    """
    config = {"model": DEFAULT_MODEL, **config}
    given = config.get("eraser", {"name": "uce"})
    settings = dict(given) if isinstance(given, Mapping) else {}
    name = settings.pop("name", "uce")
    if not isinstance(given, Mapping) or not isinstance(name, str):
        raise InputError(
            f"eraser: expected a name and settings, got {given!r}. Write for example {{name: uce, reg: 0.5}}."
        )
    if isinstance(config.get("concepts"), str):
        config["concepts"] = read_concepts(list_path(config["concepts"]))
    elif eraser_class(name).together and isinstance(config.get("concepts"), list):
        config["concepts"] = families_expanded(config["concepts"])
    if isinstance(config["model"], str):
        profile = profile_of(config["model"])
        settings = {**profile.settings(name), **settings}
        if isinstance(config.get("concepts"), list):
            config["concepts"] = profile.completed(config["concepts"])
    schema = create_model(
        "Run",
        __config__=ConfigDict(extra="forbid", strict=True),
        model=(str, ...),
        eraser=(eraser_class(name), ...),
        concepts=(Annotated[tuple[Concept, ...], Field(min_length=1)], ...),
        seed=(Annotated[int, Field(ge=0)], 0),
        output=(str, ""),
        device=(str, "auto"),
        attention=(Attention, "sdpa"),
        measure=(MeasureSettings | None, MeasureSettings()),
    )
    try:
        text = json.dumps({**config, "eraser": settings})
    except TypeError as error:
        raise InputError(f"config: expected texts, numbers, lists and keys, got something else ({error}).") from None
    try:
        checked = schema.model_validate_json(text, strict=True)
    except ValidationError as error:
        problems = error.errors()
        within = {problem["loc"][:-depth] for problem in problems for depth in range(1, len(problem["loc"]) + 1)}
        # A list whose members are wrong is also said to be too short: they do not count.
        told = [problem for problem in problems if problem["type"] != "too_short" or problem["loc"] not in within]
        raise InputError(" ".join(_explain(problem, schema) for problem in told)) from None
    return Run(**{key: getattr(checked, key) for key in type(checked).model_fields})


def _explain(problem: ErrorDetails, schema: type) -> str:
    """Say one of pydantic's findings in the words of this project."""
    where, value = ".".join(map(str, problem["loc"])) or "config", problem["input"]
    cause = problem.get("ctx", {}).get("error")
    if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        parent, _, key = where.rpartition(".")
        known = _keys_at(schema, problem["loc"][:-1])
        return f"{parent or 'config'}: {unknown_name('key', key, known)}"
    if problem["type"] in ("missing", "missing_argument"):
        return f"{where}: expected a value, got none."
    if isinstance(cause, ErasureError):
        return f"{where}: {cause}"
    wanted = problem["msg"].removeprefix("Value error, ")
    for old, new in (
        ("Input should be ", "expected "),
        ("a valid ", "a "),
        ("expected greater", "expected a number greater"),
    ):
        wanted = wanted.replace(old, new)
    return f"{where}: {wanted}, got {value!r}."


def _keys_at(schema: Any, path: Sequence[int | str]) -> list[str]:
    """Return the keys that the place of a finding knows."""
    if not path:
        return list(schema.model_fields)
    kinds: dict[str, Any] = {
        "concepts": Concept,
        "measure": MeasureSettings,
        "eraser": schema.model_fields["eraser"].annotation,
    }
    names = [known.name for known in fields(kinds[str(path[0])])]
    return ["name", *names] if path[0] == "eraser" and "name" not in names else names
