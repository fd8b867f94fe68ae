"""A change of a model's weights and words, as a value: apply it, undo it, scale it, compose it, keep it."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialized
from torch import Tensor, nn

from ..backbones import backbone_of
from ..backbones.base import Backbone
from ..closed_form.problem import Rows, TextMap, solve
from ..closed_form.storage import fetched, packed, put_apart, unpacked, unpacked_first
from ..concept import Concept
from ..errors import BaseMismatchError, InputError
from ..io.files import write_whole
from ..provenance import provenance
from .tokens import NewToken, add_tokens, check_new, tokens_added

_FORMAT = "erasure-edit/2"
_FIRST_FORMAT = "erasure-edit/1"  # its rows were written out column by column


@dataclass(frozen=True, kw_only=True, eq=False)
class DenseChange:
    """A weight's change, entry by entry."""

    delta: Float[Tensor, "..."]

    def of(self, weight: Tensor) -> Tensor:
        """Return what is added to the weight, in float64."""
        return self.delta.to(weight.device, torch.float64)

    def factors(self, weight: Tensor) -> tuple[Tensor, Tensor] | None:
        return None

    def scaled(self, factor: float) -> "DenseChange":
        return DenseChange(delta=self.delta * factor)


@dataclass(frozen=True, kw_only=True, eq=False)
class LowRankChange:
    """A change `up @ down` of one linear layer, or of a convolution's kernel with all axes but the first as one."""

    up: Float[Tensor, "out rank"]
    down: Float[Tensor, "rank in"]

    def of(self, weight: Tensor) -> Tensor:
        """Return what is added to the weight, in float64."""
        product = self.up.to(weight.device, torch.float64) @ self.down.to(weight.device, torch.float64)
        return product.reshape(weight.shape)

    def factors(self, weight: Tensor) -> tuple[Tensor, Tensor] | None:
        return self.up.double(), self.down.double()

    def scaled(self, factor: float) -> "LowRankChange":
        return LowRankChange(up=self.up * factor, down=self.down)


@dataclass(frozen=True, kw_only=True, eq=False)
class MapChange:
    """A change `W M - W` by a map of text states, which all projections share: it is kept once for all of them."""

    map: TextMap

    def of(self, weight: Tensor) -> Tensor:
        """Return what is added to the weight, in float64."""
        return self.map.change_of(weight)

    def factors(self, weight: Tensor) -> tuple[Tensor, Tensor] | None:
        if self.map.v is None:
            return None
        return weight.to("cpu", torch.float64) @ self.map.u, self.map.v.T

    def scaled(self, factor: float) -> "MapChange":
        return MapChange(map=self.map.scaled(factor))


@dataclass(frozen=True, kw_only=True, eq=False)
class SolvedChange:
    """The change by the map that solves its edit's rows, found when it is first needed.

    The rows say it in less room than the map, and a ledger, which solves for many removals at once, needs no single
    one.

    Attributes:
        rows: The problem.
        size: |M - I|_F when the edit was stored, by which a later solve is checked; None for one that was not yet.
    """

    rows: Rows
    size: float | None = None

    @cached_property
    def as_map(self) -> MapChange:
        """The change with its map."""
        return MapChange(map=solve(Rows.joined([self.rows])))

    @cached_property
    def norm(self) -> float:
        """|M - I|_F as it is solved for here."""
        return float(torch.linalg.norm(self.as_map.map.minus_identity()))

    def of(self, weight: Tensor) -> Tensor:
        """Return what is added to the weight, in float64."""
        return self.as_map.of(weight)

    def factors(self, weight: Tensor) -> tuple[Tensor, Tensor] | None:
        return self.as_map.factors(weight)

    def scaled(self, factor: float) -> MapChange:
        return self.as_map.scaled(factor)


@dataclass(frozen=True, kw_only=True, eq=False)
class SumChange:
    """Several changes of one weight, each computed from the weight of the base."""

    parts: tuple["Change", ...]

    def of(self, weight: Tensor) -> Tensor:
        """Return what is added to the weight, in float64."""
        total = self.parts[0].of(weight)
        for part in self.parts[1:]:
            total = total + part.of(weight)
        return total

    def factors(self, weight: Tensor) -> tuple[Tensor, Tensor] | None:
        pairs = [pair for part in self.parts if (pair := part.factors(weight)) is not None]
        if len(pairs) < len(self.parts):
            return None
        return torch.cat([up for up, _ in pairs], dim=1), torch.cat([down for _, down in pairs])

    def scaled(self, factor: float) -> "SumChange":
        return SumChange(parts=tuple(part.scaled(factor) for part in self.parts))


Change = DenseChange | LowRankChange | MapChange | SolvedChange | SumChange


@dataclass(frozen=True, kw_only=True)
class EditMetadata:
    """How an edit came to be.

    Attributes:
        method: The eraser's name; "composed" for what was put together from several edits.
        settings: The eraser's settings.
        concepts: What was removed; of a personalisation, what was learned, with its class as the anchor.
        seed: Of the fit.
        base_fingerprint: Of the model that the edit was made for.
        base_name: Where that model came from, for people.
        versions: Of the libraries at work.
        time: When, in ISO 8601, UTC.
        parts: The metadata of the edits that this one was put together from.
    """

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
            settings=dict(settings),
            concepts=tuple(concepts),
            seed=seed,
            base_fingerprint=backbone.fingerprint(),
            base_name=str(backbone.pipe.name_or_path),
            versions=provenance()["versions"],
            time=_now(),
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
        """Return the metadata whose `as_json` gave `data`."""
        concepts = tuple(Concept.from_json(concept) for concept in data["concepts"])
        parts = tuple(cls.from_json(part) for part in data["parts"])
        return cls(**{**data, "concepts": concepts, "parts": parts})


@dataclass(frozen=True, kw_only=True, eq=False)
class Lora:
    """An edit in the form that `pipe.load_lora_weights` takes.

    Attributes:
        state_dict: Factors in the PEFT naming of diffusers.
        relative_error: |edit - LoRA|_F / |edit|_F over all that changes; 0 where every change is low-rank.
        left_out: Parameters whose change a LoRA has no place for.
    """

    state_dict: Mapping[str, Tensor]
    relative_error: float
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Edit:
    """A change of a model's weights.

    Attributes:
        changes: By full parameter name: "unet.….attn2.to_k.weight".
        metadata: How it came to be.
        rows: The least-squares problem that the edit solves, where it solves one; with it, several removals can be
            solved for together. It is solved in the parameters whose change is a map; what else there is was trained.
        tokens: Words that the model learns by it; a change of a table of words leaves out their rows.
    """

    changes: Mapping[str, Change]
    metadata: EditMetadata
    rows: Rows | None = field(default=None)
    tokens: tuple[NewToken, ...] = ()

    @property
    def closed_form(self) -> bool:
        """Whether all of it is the solution of its rows."""
        return self.rows is not None and not self._trained()

    def _trained(self) -> dict[str, Change]:
        """Return the changes that are no solution of the rows."""
        return {
            name: change
            for name, change in self.changes.items()
            if self.rows is None or not isinstance(change, MapChange | SolvedChange)
        }

    @classmethod
    def from_rows(cls, rows: Rows, names: Sequence[str], metadata: EditMetadata) -> "Edit":
        """Return the edit that solves `rows` in the parameters `names`, with the rules of a joint solve.

        Raises:
            InputError: See `closed_form.solve`.
        """
        change = SolvedChange(rows=rows)
        _ = change.as_map  # what cannot be solved is refused now
        return cls(changes=dict.fromkeys(names, change), metadata=metadata, rows=rows)

    @classmethod
    def compose(cls, edits: Sequence["Edit"]) -> "Edit":
        """Return the sum of edits, each computed from the weights of their one base.

        Raises:
            InputError: There are no edits.
            BaseMismatchError: They were made for different models.
        """
        first = _first(edits)
        for edit in edits:
            _check_same_base(first.metadata, edit.metadata)
        return cls._summed(edits)

    @classmethod
    def joint(cls, edits: Sequence["Edit"]) -> "Edit":
        """Return what a sequence of removals amounts to on the model they began with.

        All edits with rows are solved for together, from the original weights: the result is the same to the last bit
        in any order, and as if they had been asked for at once. What was trained, which may have started from weights
        that were edited before, is added after them, in order.

        Raises:
            InputError: There are no edits, or anchors go round in a circle.
            BaseMismatchError: Edits with rows were made for different models.
        """
        _first(edits)
        solved = [edit for edit in edits if edit.rows is not None]
        for edit in solved:
            _check_same_base(solved[0].metadata, edit.metadata)
        trained = [replace(edit, changes=changes, rows=None) for edit in edits if (changes := edit._trained())]
        summed = cls._summed([*([_jointly_solved(solved)] if solved else []), *trained])
        metadata = _composed([edit.metadata for edit in edits])
        return replace(summed, metadata=metadata, tokens=tuple(token for edit in edits for token in edit.tokens))

    @classmethod
    def _summed(cls, edits: Sequence["Edit"]) -> "Edit":
        changes: dict[str, Change] = {}
        for edit in edits:
            for name, change in edit.changes.items():
                changes[name] = SumChange(parts=(changes[name], change)) if name in changes else change
        tokens = tuple(token for edit in edits for token in edit.tokens)
        return cls(changes=changes, metadata=_composed([edit.metadata for edit in edits]), tokens=tokens)

    def scaled(self, factor: float) -> "Edit":
        """Return the edit `factor` times as strong; 0 changes no weight. New words are as new at any strength."""
        scaled = {id(change): change.scaled(factor) for change in self.changes.values()}
        return Edit(
            changes={name: scaled[id(change)] for name, change in self.changes.items()},
            metadata=self.metadata,
            rows=self.rows if factor == 1 else None,
            tokens=self.tokens,
        )

    @contextmanager
    def applied_to(self, pipe: Any, *, check: bool = True) -> Iterator[Any]:
        """Change the pipeline's weights for the length of a `with`; on exit they are what they were, bit for bit.

        The original tensors are kept and put back, not computed again. Device moves inside the `with` are allowed.

        Args:
            pipe: A diffusers pipeline.
            check: Whether the pipeline must be the one that the edit was made for.

        Raises:
            BaseMismatchError: The edit was made for another model.
            InputError: The model has no such parameter, or one of another shape; or it knows a new word already.
        """
        if check:
            self.check_base(pipe)
        parameters = self._parameters_of(pipe)
        with exchanged(parameters, self._edited(parameters)), tokens_added(pipe, self.tokens):
            yield pipe

    @contextmanager
    def switched(self, pipe: Any, *, check: bool = True) -> Iterator["Switch"]:
        """Yield a switch that puts the edit in force and out of it in a moment, as often as wanted.

        Both sets of the weights that the edit changes are kept in memory meanwhile, so turning it computes nothing. It
        is off at first; on exit the weights are what they were, bit for bit. For arguments and errors see `applied_to`.
        """
        if check:
            self.check_base(pipe)
        parameters = self._parameters_of(pipe)
        weights = self._edited(parameters)

        @contextmanager
        def in_force() -> Iterator[None]:
            with exchanged(parameters, weights), tokens_added(pipe, self.tokens):
                yield

        switch = Switch(in_force)
        try:
            yield switch
        finally:
            switch.turn(on=False)

    def merge_into(self, pipe: Any, *, check: bool = True) -> None:
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
        """Return what a weight of the base becomes; for errors see `applied_to`."""
        return edited_weights({name: weight}, self.changes)[name]

    def check_base(self, pipe: Any) -> None:
        """Raise BaseMismatchError if the edit was made for another model; its precision does not count."""
        found = backbone_of(pipe).fingerprint()
        if found != self.metadata.base_fingerprint:
            raise BaseMismatchError(
                f"edit: expected the model that it was made for,"
                f" {_named(self.metadata.base_name, self.metadata.base_fingerprint)},"
                f" got {_named(str(pipe.name_or_path), found)}. Load that model."
            )

    def as_lora(self, pipe: Any, *, rank: int | None = None) -> Lora:
        """Return the edit as LoRA factors, exact where a change is low-rank, else cut to its largest directions.

        Only the weights of linear and convolutional layers have a place in a LoRA; what else changes, such as biases,
        is left out and counts as missed.

        Args:
            pipe: The base, whose weights the factors of a shared map are made from.
            rank: The most directions a weight gets; None keeps all that a low-rank change has, and half the
                smaller side of what is dense.

        Raises:
            InputError: All that changes would be left out.
        """
        state_dict: dict[str, Tensor] = {}
        left_out: list[str] = []
        missed = total = 0.0
        for name, parameter in self._parameters_of(pipe).items():
            change = self.changes[name]
            delta = change.of(_on_float64_device(parameter.data)).cpu()
            size = delta.square().sum().item()
            total += size
            module = name.removesuffix(".weight")
            if not _takes_factors(pipe, module):
                left_out.append(name)
                missed += size
                continue
            up, down = _cut(delta.flatten(1), change.factors(parameter.data), rank)
            missed += (delta.flatten(1) - up @ down).square().sum().item()
            # A convolution's factors are one like it of few channels, and one over a single pixel.
            single = [1] * (delta.ndim - 2)
            state_dict[f"{module}.lora_A.weight"] = down.float().reshape(-1, *delta.shape[1:]).contiguous()
            state_dict[f"{module}.lora_B.weight"] = up.float().reshape(*up.shape, *single).contiguous()
        if not state_dict:
            raise InputError(
                f"as_lora: expected a change of linear or convolutional layers, got {', '.join(left_out) or 'none'}."
                " Use save or merge_into."
            )
        error = (missed / total) ** 0.5 if total else 0.0
        return Lora(state_dict=state_dict, relative_error=error, left_out=tuple(left_out))

    def save(self, path: str | Path, *, shared: Path | None = None) -> Path:
        """Write the edit to one safetensors file, whole or not at all, and return its path.

        Args:
            path: The file.
            shared: A folder for the rows that many edits have in common, each of which is stored once there; None
                writes all into the one file.

        Raises:
            InputError: The place cannot be written.
        """
        path = Path(path)
        tensors, description = _described(self)
        if shared is not None:
            description["shared"] = put_apart(tensors, shared)
        header = {"format": _FORMAT, "edit": json.dumps(description, sort_keys=True)}
        write_whole(path, serialized(tensors, metadata=header))
        return path

    @classmethod
    def load(cls, path: str | Path, *, shared: Path | None = None) -> "Edit":
        """Return the edit that `save` wrote; nothing in the file is executed.

        Args:
            path: The file.
            shared: The folder of what it shares with others; None looks in `rows/` beside the file's own folder, which
                is where a ledger has it.

        Raises:
            InputError: There is no such file, it is not an edit, or what it shares is missing or was changed.
        """
        path = Path(path)
        if not path.is_file():
            raise InputError(f"edit: expected the path of a file, got {str(path)!r}. Check the path.")
        try:
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        except SafetensorError as error:
            raise InputError(
                f"edit: expected a safetensors file, got {str(path)!r} ({error}). Save it again."
            ) from error
        if header.get("format") not in (_FORMAT, _FIRST_FORMAT):
            found = header.get("format")
            raise InputError(f"{path}: expected an edit of the format {_FORMAT}, got {found!r}. Check the file.")
        description = json.loads(header["edit"])
        blocks = fetched(description.get("shared", {}), shared or path.parent.parent / "rows")
        return _from_description(description, {**tensors, **blocks})

    def _parameters_of(self, pipe: Any) -> dict[str, nn.Parameter]:
        found = backbone_of(pipe).parameters(self.changes.__contains__)
        for name in self.changes:
            if name not in found:
                raise InputError(f"edit: expected a model with the parameter {name!r}, got one without. Load its base.")
        return {name: found[name] for name in self.changes}

    def _edited(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        return edited_weights({name: parameters[name].data for name in self.changes}, self.changes)


class Switch:
    """An edit that can be turned on and off; see `Edit.switched`.

    Attributes:
        on: Whether the edit is in force.
    """

    def __init__(self, in_force: Callable[[], AbstractContextManager[None]]) -> None:
        self._in_force = in_force
        self._inside = ExitStack()
        self.on = False

    def turn(self, *, on: bool) -> None:
        """Put the edit in force or out of it; nothing happens where it is so already."""
        if on and not self.on:
            self._inside.enter_context(self._in_force())
        elif not on:
            self._inside.close()
        self.on = on


@contextmanager
def exchanged(parameters: Mapping[str, nn.Parameter], weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Give parameters other weights for the length of a `with`; on exit their own tensors are put back."""
    own = {name: parameter.data for name, parameter in parameters.items()}
    waiting = dict(weights)
    del weights  # so that a model that is moved to another device inside does not leave them behind
    try:
        for name, parameter in parameters.items():
            parameter.data = waiting.pop(name).to(parameter.device, parameter.dtype)
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.data = own[name].to(parameter.device, parameter.dtype)


def edited_weights(weights: Mapping[str, Tensor], changes: Mapping[str, Change]) -> dict[str, Tensor]:
    """Return the changed weights; computed in float64 and rounded once, so undoing never needs to subtract.

    Raises:
        InputError: A change has another shape than its weight.
    """
    # All results are there before the work in float64: what that frees is in one piece then, and serves again.
    edited = {name: torch.empty_like(weight) for name, weight in weights.items()}
    for name, weight in weights.items():
        edited[name].copy_(_exactly_edited(name, weight, changes[name]))
    return edited


def _exactly_edited(name: str, weight: Tensor, change: Change) -> Tensor:
    """Return the changed weight in float64, where that exists."""
    exact = _on_float64_device(weight).to(torch.float64, copy=True)
    try:
        change_of_it = change.of(exact)
    except RuntimeError as error:
        raise InputError(f"edit: expected a change that fits {name!r} {tuple(weight.shape)}, got {error}.") from error
    if change_of_it.shape != weight.shape:
        raise InputError(
            f"edit: expected a change of {name!r} with shape {tuple(weight.shape)}, got {tuple(change_of_it.shape)}."
        )
    exact += change_of_it  # in place: beside so much memory that is touched, a further copy would be felt
    return exact


def _on_float64_device(weight: Tensor) -> Tensor:
    """Return the weight where float64 exists: Apple's devices have none."""
    return weight.cpu() if weight.device.type == "mps" else weight


def _takes_factors(pipe: Any, module: str) -> bool:
    """Whether what is named is a layer that LoRA factors are added to, and not a bias or a norm."""
    part, _, inner = module.partition(".")
    try:
        layer = backbone_of(pipe).component(part).get_submodule(inner)
    except AttributeError:  # a parameter: a bias, or one that is no layer's weight
        return False
    return isinstance(layer, nn.Linear | nn.Conv2d)


def _cut(delta: Tensor, factors: tuple[Tensor, Tensor] | None, rank: int | None) -> tuple[Tensor, Tensor]:
    """Return up and down with at most `rank` directions; of too many, the best in the least-squares sense."""
    if factors is not None and (rank is None or factors[0].shape[1] <= rank):
        return factors
    left, values, right = torch.linalg.svd(delta, full_matrices=False)
    kept = max(1, len(values) // 2) if rank is None else rank
    return left[:, :kept] * values[:kept], right[:kept]


def _jointly_solved(edits: Sequence[Edit]) -> Edit:
    """Solve edits with rows together; weights that only some of them touch take part in only those."""
    touching: dict[tuple[int, ...], list[str]] = {}
    for name in sorted({name for edit in edits for name in edit.changes.keys() - edit._trained().keys()}):
        those = tuple(at for at, edit in enumerate(edits) if name in edit.changes)
        touching.setdefault(those, []).append(name)
    changes: dict[str, Change] = {}
    problems = []
    for those, names in touching.items():
        problems.append(Rows.joined([rows for at in those if (rows := edits[at].rows) is not None]))
        changes.update(dict.fromkeys(names, MapChange(map=solve(problems[-1]))))
    rows = problems[0] if len(problems) == 1 else None
    return Edit(changes=changes, metadata=_composed([edit.metadata for edit in edits]), rows=rows)


def _first(edits: Sequence[Edit]) -> Edit:
    if not edits:
        raise InputError("edits: expected at least one, got none. Fit or load one first.")
    return edits[0]


def _check_same_base(one: EditMetadata, other: EditMetadata) -> None:
    if one.base_fingerprint != other.base_fingerprint:
        raise BaseMismatchError(
            f"edits: expected edits of one model, got {_named(one.base_name, one.base_fingerprint)} and"
            f" {_named(other.base_name, other.base_fingerprint)}. Fit them on one base."
        )


def _named(name: str, fingerprint: str) -> str:
    return f"{name or 'a model'!r} ({fingerprint[:12]})"


def _composed(parts: Sequence[EditMetadata]) -> EditMetadata:
    if len(parts) == 1:
        return parts[0]
    return replace(
        parts[0],
        method="composed",
        settings={},
        concepts=tuple(concept for part in parts for concept in part.concepts),
        versions=provenance()["versions"],
        time=_now(),
        parts=tuple(parts),
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _described(edit: Edit) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return an edit as tensors and a JSON value that names them; what is shared is written once."""
    tensors: dict[str, Tensor] = {}
    keys: dict[int, str] = {}

    def key_of(tensor: Tensor, name: str) -> str:
        if id(tensor) not in keys:
            keys[id(tensor)] = name
            tensors[name] = tensor.detach().cpu().contiguous()
        return keys[id(tensor)]

    def described(change: Change, name: str) -> dict[str, Any]:
        match change:
            case DenseChange():
                return {"kind": "dense", "delta": key_of(change.delta, f"{name}.delta")}
            case LowRankChange():
                return {"kind": "low-rank", **{k: key_of(getattr(change, k), f"{name}.{k}") for k in ("up", "down")}}
            case SolvedChange() if change.rows is edit.rows:
                return {"kind": "solved", "size": change.norm if change.size is None else change.size}
            case SolvedChange():
                return described(change.as_map, name)
            case MapChange():
                v = None if change.map.v is None else key_of(change.map.v, f"{name}.v")
                return {"kind": "map", "u": key_of(change.map.u, f"{name}.u"), "v": v}
            case SumChange():
                parts = [described(part, f"{name}.{at}") for at, part in enumerate(change.parts)]
                return {"kind": "sum", "parts": parts}

    description: dict[str, Any] = {
        "changes": {name: described(change, name) for name, change in edit.changes.items()},
        "metadata": edit.metadata.as_json(),
        "rows": edit.rows is not None,
        "tokens": [
            {
                "text": token.text,
                "rows": {part: key_of(row, f"tokens.{at}.{part}") for part, row in token.rows.items()},
            }
            for at, token in enumerate(edit.tokens)
        ],
    }
    if edit.rows is not None:
        tensors |= packed(edit.rows)
    return tensors, description


def _from_description(description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Edit:
    rows = _rows_from(description["rows"], tensors)
    maps: dict[str, MapChange] = {}
    solved: dict[float, SolvedChange] = {}

    def change_of(data: Mapping[str, Any]) -> Change:
        match data["kind"]:
            case "dense":
                return DenseChange(delta=tensors[data["delta"]])
            case "low-rank":
                return LowRankChange(up=tensors[data["up"]], down=tensors[data["down"]])
            case "map":
                if data["u"] not in maps:
                    v = None if data["v"] is None else tensors[data["v"]]
                    maps[data["u"]] = MapChange(map=TextMap(u=tensors[data["u"]], v=v))
                return maps[data["u"]]
            case "solved" if rows is not None:
                return solved.setdefault(data["size"], SolvedChange(rows=rows, size=data["size"]))
            case "sum":
                return SumChange(parts=tuple(change_of(part) for part in data["parts"]))
            case kind:
                raise InputError(f"edit: expected a known kind of change, got {kind!r}. Update this library.")

    return Edit(
        changes={name: change_of(data) for name, data in description["changes"].items()},
        metadata=EditMetadata.from_json(description["metadata"]),
        rows=rows,
        tokens=tuple(
            NewToken(text=token["text"], rows={part: tensors[key] for part, key in token["rows"].items()})
            for token in description.get("tokens", ())
        ),
    )


def _rows_from(description: Mapping[str, Any] | bool | None, tensors: Mapping[str, Tensor]) -> Rows | None:
    """Return an edit's rows, if it has any; a file of the first format describes them."""
    if not description:
        return None
    return unpacked(tensors) if description is True else unpacked_first(description, tensors)
