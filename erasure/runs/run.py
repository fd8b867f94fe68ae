"""A run: one YAML file, checked whole, and the removal of its concepts one after another into a ledger."""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import ConfigDict, Field, ValidationError, create_model
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from ..backbones import backbone_of
from ..backbones.conditioning import tokenized
from ..backbones.sd import textual_inversion_applied
from ..concept import Concept, normalized
from ..erasers import Eraser, Shows, eraser_class, eraser_names
from ..errors import ErasureError, InputError, unknown_name
from ..loading import Attention
from ..profile import DEFAULT_MODEL, profile_of
from ..progress import OnProgress
from ..provenance import provenance
from ..registry import AnySettings, with_settings

if TYPE_CHECKING:
    from ..ledger.ledger import Entry, Ledger


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


def read_config(path: Path) -> dict[str, Any]:
    """Read a YAML 1.2 file of one run, unchecked.

    Raises:
        InputError: It cannot be read, is not YAML, or does not hold a mapping.
    """
    try:
        data = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"config: expected a file to read, got {str(path)!r} ({error.strerror}).") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"config {str(path)!r}: expected YAML, got {_one_line(str(error))!r}.") from None
    if not isinstance(data, dict):
        raise InputError(f"config {str(path)!r}: expected keys such as model and eraser, got {data!r}.")
    return data


def override(config: Mapping[str, Any], assignment: str) -> dict[str, Any]:
    """Return the config with one `key.key=value` set; the value is read as YAML.

    Raises:
        InputError: It is not an assignment, or its path leads through something that has no keys.
    """
    path, sign, text = assignment.partition("=")
    keys = path.strip().split(".")
    if not sign or not all(keys):
        raise InputError(f"--set: expected key.key=value, got {assignment!r}. Write for example eraser.reg=0.5.")
    try:
        value = YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        raise InputError(
            f"--set {path.strip()}: expected a YAML value, got {text!r} ({_one_line(str(error))})."
        ) from None
    changed = json.loads(json.dumps(config))
    place = changed
    for key in keys[:-1]:
        place = place[int(key)] if _is_index(place, key) else _child(place, key, assignment)
    if _is_index(place, keys[-1]):
        place[int(keys[-1])] = value
    elif isinstance(place, dict):
        place[keys[-1]] = value
    else:
        raise InputError(f"--set: expected a path to a setting, got {assignment!r}. {place!r} has no keys.")
    return changed


def read_concepts(path: Path) -> list[dict[str, Any]]:
    """Read removal requests, one a line: the concept, and optionally its anchor and what to preserve (`;` between).

    A first line that starts with "concept" or "target" names the columns, else they are concept, anchor, preserve.

    Raises:
        InputError: It cannot be read, holds no concept, has an unknown column, an empty line between others, or a line
            without a concept or with one that becomes itself.
    """
    return [concept for _, concept in _numbered_concepts(path)]


def check_phrases(path: Path, pipe: Any) -> None:
    """Refuse a list of removal requests with a phrase that is longer than what the model reads.

    Raises:
        InputError: Names the line.
    """
    tokenizer = next(iter(backbone_of(pipe).tokenizers().values()))
    for number, concept in _numbered_concepts(path):
        names = [
            concept["target"],
            concept.get("anchor", ""),
            *concept.get("aliases", ()),
            *concept.get("preserve", ()),
        ]
        phrases = [textual_inversion_applied(pipe, name, tokenizer) for name in names if name]
        ids, found = tokenized(tokenizer, phrases)
        for phrase, offsets in zip(phrases, found, strict=True):
            if max(end for _, end in offsets) < len(phrase):
                raise InputError(
                    f"--from {str(path)!r} line {number}: expected phrases of at most {ids.shape[1] - 2} tokens,"
                    f" got {phrase!r}. Shorten it."
                )


def list_path(name: str) -> Path:
    """Return the file of a list of removal requests: one that comes with the library, by its name, or a path.

    Raises:
        InputError: It is neither.
    """
    known = _lists()
    path = known.get(normalized(name), Path(name))
    if not path.is_file():
        raise InputError(f"concepts: expected a list's name or file, got {name!r}. Known: {', '.join(sorted(known))}.")
    return path


def _lists() -> dict[str, Path]:
    folder = Path(str(resources.files("erasure.configs")))
    return {path.stem: path for path in sorted(folder.glob("*/*.csv"))}


def _families_expanded(concepts: Sequence[Any]) -> list[Any]:
    """Replace a family word ("weapon", "weapons") by the requests of its list; what it was given holds for each."""
    known = _lists()
    found: list[Any] = []
    for entry in concepts:
        word = (
            normalized(entry["target"]) if isinstance(entry, Mapping) and isinstance(entry.get("target"), str) else ""
        )
        name = next((name for name in (word, f"{word}s") if name in known), None)
        if name is None:
            found.append(entry)
        else:
            given = {key: value for key, value in entry.items() if key not in ("target", "aliases")}
            found += [{**member, **given} for member in read_concepts(known[name])]
    return found


def _numbered_concepts(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Return the requests of a list, each with the number of its line."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            rows = [(reader.line_num, row) for row in reader]
    except OSError as error:
        raise InputError(f"--from: expected a file to read, got {str(path)!r} ({error.strerror}).") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"--from {str(path)!r}: expected text in UTF-8 and CSV, got {str(error)!r}.") from None
    while rows and not any(map(str.strip, rows[-1][1])):
        rows.pop()  # blank lines at the end say nothing
    for number, row in rows:
        if not any(map(str.strip, row)):
            raise InputError(f"--from {str(path)!r} line {number}: expected a concept, got an empty line. Delete it.")
    columns = ["target", "anchor", "preserve"]
    known = ["target", "anchor", "preserve", "kind", "aliases"]
    if rows and rows[0][1][0].strip().lower() in ("concept", "target"):
        columns = ["target" if name.strip().lower() == "concept" else name.strip().lower() for name in rows.pop(0)[1]]
        for name in columns:
            if name not in known:
                raise unknown_name(f"column of {str(path)!r}", name, known)
    concepts = [(number, _concept_of_row(path, number, columns, row)) for number, row in rows]
    if not concepts:
        raise InputError(f"--from {str(path)!r}: expected a concept a line, got none.")
    return concepts


def parse(config: Mapping[str, Any]) -> Run:
    """Check a config whole and fill in what it leaves open.

    The model's profile fills in settings of the eraser, and aliases, kind and preserve where it knows the concepts.

    Raises:
        InputError: Every key that is unknown, of the wrong type or out of range, on one line.
        UnknownNameError: An eraser that does not exist, or a concept that a model of known concepts does not have.
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
        config["concepts"] = _families_expanded(config["concepts"])
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


def check_low_memory(run: Run) -> None:
    """Refuse a run that needs the weights in memory.

    Raises:
        InputError: By its eraser, its attention or its device.
    """
    if run.attention != "sdpa":
        raise InputError(
            f"--low-memory: expected no attention but sdpa, for no pictures are made, got {run.attention!r}."
            " Leave one of them out."
        )
    if run.eraser.reads_weights:
        fit = ", ".join(name for name in eraser_names() if not eraser_class(name).reads_weights)
        raise InputError(
            f"--low-memory: expected an eraser that reads text alone ({fit}), got {run.eraser.name!r}."
            " Leave --low-memory out."
        )
    check_cpu(run.device)


def check_cpu(device: str) -> None:
    """Refuse a device on which nothing is left on the disk."""
    if device not in ("auto", "cpu"):
        raise InputError(f"--low-memory: expected the device cpu, got {device!r}. Leave one of them out.")


def with_assignments(
    kind: type[AnySettings], assignments: Sequence[str], start: Mapping[str, Any] | None = None
) -> AnySettings:
    """Return a dataclass of settings from `--set` assignments over those to start from; see `with_settings`.

    Raises:
        UnknownNameError: It has no such setting.
        InputError: A value that cannot be.
    """
    config: Mapping[str, Any] = dict(start or {})
    for assignment in assignments:
        config = override(config, assignment)
    return with_settings(kind, config, where="--set ")


def own_sampling(model: str, settings: MeasureSettings) -> dict[str, Any]:
    """Return steps, guidance and batch size, with the model's own where the settings leave them open."""
    defaults = profile_of(model).sampling
    return {
        "steps": settings.steps or defaults.steps,
        "guidance_scale": defaults.guidance_scale if settings.guidance_scale is None else settings.guidance_scale,
        "batch_size": settings.batch_size,
    }


def remaining(run: Run, ledger: "Ledger") -> tuple[Run, list[str]]:
    """Return the run without what the ledger has removed already, and the names that it had.

    What is removed, or about to be, leaves every preserve list: it is not kept.
    """
    gone = {normalized(name) for entry in ledger.standing for concept in entry.concepts for name in concept.names}
    todo = tuple(concept for concept in run.concepts if normalized(concept.target) not in gone)
    leaving = gone | {normalized(name) for concept in todo for name in concept.names}
    todo = tuple(
        replace(concept, preserve=tuple(kept for kept in concept.preserve if normalized(kept) not in leaving))
        for concept in todo
    )
    return replace(run, concepts=todo), [c.target for c in run.concepts if normalized(c.target) in gone]


def remove(run: Run, pipe: Any, ledger: "Ledger", *, on_progress: OnProgress | None = None) -> Iterator["Entry"]:
    """Remove the run's concepts one after another, or together where the method takes a family as one; yield entries.

    Every entry is in the ledger before it is yielded, so what stands is complete wherever the caller stops.
    """
    shows = shows_of(run.model, str(pipe.device))
    requests = [run.concepts] if run.eraser.together and run.concepts else [(concept,) for concept in run.concepts]
    for concepts in requests:
        yield ledger.remove(pipe, run.eraser, concepts, on_progress=on_progress, seed=run.seed, shows=shows)


def shows_of(model: str, device: str) -> Shows | None:
    """Return the decision of a model's judge as a function; None without a judge."""
    judge = profile_of(model).judge(device)
    return None if judge is None else lambda images, concept: judge.shows(images, concept.target)


def facts(run: Run, *, device: str, start: float) -> dict[str, Any]:
    """Return what one needs to make the run again: settings, versions, device, commit, time and memory.

    Args:
        run: The run, as it was carried out.
        device: Where.
        start: `time.perf_counter()` when it began.
    """
    # a path of this machine means nothing elsewhere
    return {"config": replace(run, output="").as_json(), **provenance(device=device, start=start)}


def starting_settings(method: str, model: str) -> dict[str, Any]:
    """Return settings to start from: the method's defaults, with those of the model's profile and example config.

    Raises:
        UnknownNameError: There is no such eraser.
    """
    kind = eraser_class(method)
    found = asdict(kind())
    profile = profile_of(model)
    found |= profile.settings(method)
    if (example := profile.example(method)) is not None:
        found |= read_config(example)["eraser"]
        del found["name"]
    return found


def read_seeds(text: str, where: str = "--seeds", most: int | None = None) -> list[int]:
    """Read "0,1,2" and "0-7".

    Args:
        text: What was given.
        where: Stands first in what is said of it.
        most: How many there may be; None sets no limit.

    Raises:
        InputError: It is something else, or more.
    """
    seeds: list[int] = []
    for part in text.split(","):
        low, dash, high = (piece.strip() for piece in part.partition("-"))
        last = high if dash else low
        if not all(piece.isascii() and piece.isdigit() and len(piece) <= 18 for piece in (low, last)):
            raise InputError(f"{where}: expected whole numbers from 0, got {text!r}. Write for example 0,1,2 or 0-7.")
        count = len(seeds) + int(last) - int(low) + 1
        if most is not None and count > most:
            raise InputError(f"{where}: expected at most {most} seeds, got {count}. Give fewer.")
        seeds.extend(range(int(low), int(last) + 1))
    return seeds


def _concept_of_row(path: Path, number: int, columns: Sequence[str], row: Sequence[str]) -> dict[str, Any]:
    cells = [cell.strip() for cell in row]
    if len(cells) > len(columns):
        raise InputError(
            f"--from {str(path)!r} line {number}: expected at most {len(columns)} columns, got {len(cells)}."
        )
    concept: dict[str, Any] = {}
    for column, cell in zip(columns, cells, strict=False):
        if column in ("preserve", "aliases"):
            if cell:
                concept[column] = [part.strip() for part in cell.split(";") if part.strip()]
        elif cell or column == "target":
            concept[column] = cell
    if not concept.get("target"):
        raise InputError(f"--from {str(path)!r} line {number}: expected a concept, got {','.join(row)!r}.")
    try:
        Concept.from_json(concept)
    except ErasureError as error:
        raise InputError(f"--from {str(path)!r} line {number}: {error}") from None
    return concept


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


def _child(place: Any, key: str, assignment: str) -> Any:
    if not isinstance(place, dict):
        raise InputError(f"--set: expected a path to a setting, got {assignment!r}. {place!r} has no keys.")
    return place.setdefault(key, {})


def _is_index(place: Any, key: str) -> bool:
    return isinstance(place, list) and key.isdigit() and int(key) < len(place)


def _one_line(text: str) -> str:
    return " ".join(text.split())
