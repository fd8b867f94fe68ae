"""Base of the guidances: a change of the sampling instead of the weights, applied as an edit is."""

import inspect
from abc import abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

from diffusers import DiffusionPipeline

from ..backbones import backbone_of
from ..backbones.base import Ability
from ..backbones.conditioning import TEXT, Conditioning, being_read
from ..errors import InputError
from ..registry import Plugin
from .attention import AttentionGuidance, OnGuided
from .map_reading import Named
from .words import positions_in

AnyGuidance = TypeVar("AnyGuidance", bound="Guidance")


@runtime_checkable
class Applicable(Protocol):
    """Anything that can be in force on a pipeline for the length of a `with`: an Edit, a Guidance."""

    def applied_to(self, pipe: DiffusionPipeline) -> AbstractContextManager[object]:
        """Put it in force; on exit the pipeline is as it was."""
        ...


@dataclass(frozen=True, kw_only=True)
class Guidance(Plugin):
    """A method that acts while images are made, with its settings.

    Attributes:
        name: Name in configs and on the command line; the file's name.
        every_prompt: Whether it acts by default on prompts that name none of its concepts, as its source does.
        needs: Ability of the models on which it acts.
        fitted: Fields that a fit fills in, each a mapping of names to tensors; files hold them beside the settings.
    """

    every_prompt: ClassVar[bool] = False
    needs: ClassVar[Ability] = "unet guidance"
    fitted: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def applied_to(self, pipe: DiffusionPipeline) -> AbstractContextManager[object]:
        """Guide the sampling of the pipeline for the length of a `with`; no weight is changed.

        The pipeline's own call is guided, and `sample`. Prompts that name none of the guidance's concepts are made as
        without it, bit for bit, but for `every_prompt`.

        Raises:
            InputError: When an image is made: from embeddings that were given instead of prompts.
        """

    @classmethod
    def merged(cls: type[AnyGuidance], parts: Sequence[AnyGuidance]) -> tuple[AnyGuidance, ...]:
        """Return guidances of this class in a form in which all can be in force at once, in order.

        They are put in force one inside the other; a class whose guidances act on the same part of the sampling
        combines them here.

        Raises:
            InputError: They contradict one another.
        """
        return tuple(parts)


class Prompts:
    """The prompts that a pipeline is making images of, a row an image."""

    def __init__(self, pipe: DiffusionPipeline) -> None:
        self._backbone = backbone_of(pipe)
        self._encoded: Conditioning | None = None
        # Whether what is encoded next is the prompts': some calls encode the negative prompt after them.
        self._begins = True

    def now(self) -> Conditioning | None:
        """Return the states of the prompts of the loop that is running; None where no prompts are known."""
        self._begins = True
        return being_read() or self._encoded

    @contextmanager
    def followed(self, pipe: DiffusionPipeline) -> Generator["Prompts"]:
        """Take note of the prompts that the pipeline's own call encodes, for the length of a `with`."""
        checks = hasattr(pipe, "check_inputs")

        def begun(_: Mapping[str, Any]) -> None:
            self._begins = True

        def noted(arguments: Mapping[str, Any]) -> None:
            if self._begins or not checks:
                self._begins = False
                self._encoded = self._repeated(arguments["prompt"], arguments.get("num_images_per_prompt", 1))

        def counted(arguments: Mapping[str, Any]) -> None:
            states = None if self._begins else self._encoded
            if being_read() is None:
                if states is None:
                    raise _no_prompts()
                self._encoded = _copied(states, arguments["batch_size"] // len(states))

        # Z-Image checks no inputs, encodes no prompt where it gets states, and copies the states of prompts later.
        with (
            _noting(pipe, "check_inputs", begun) if checks else _noting(pipe, "prepare_latents", counted),
            _noting(pipe, "encode_prompt", noted),
        ):
            yield self

    def _repeated(self, prompt: str | Sequence[str] | None, copies: int) -> Conditioning | None:
        if prompt is None:
            if being_read() is None:
                raise _no_prompts()
            return None
        return _copied(self._backbone.encode([prompt] if isinstance(prompt, str) else list(prompt)), copies)


def _copied(states: Conditioning, copies: int) -> Conditioning:
    return states.select([row for row in range(len(states)) for _ in range(copies)])


def _no_prompts() -> InputError:
    return InputError(
        "guidance: expected prompts, got their embeddings, which do not show their words. Give the prompts."
    )


@contextmanager
def _noting(pipe: DiffusionPipeline, name: str, note: Callable[[Mapping[str, Any]], None]) -> Generator[None]:
    """Call a function with the arguments of each call of a pipeline's method, before it, for the length of a `with`."""
    method = getattr(pipe, name)

    @wraps(method)  # so that one guidance inside another finds its parameters
    def noted(*args: object, **kwargs: object) -> object:
        bound = inspect.signature(method).bind(*args, **kwargs)
        bound.apply_defaults()
        note({**bound.arguments, **kwargs})
        return method(*args, **kwargs)

    members = vars(pipe)
    shadowed = members.get(name)
    members[name] = noted
    try:
        yield
    finally:
        del members[name]
        if shadowed is not None:
            members[name] = shadowed


class NamedPrompts:
    """Positions of concepts in the prompts of the running loop."""

    def __init__(self, prompts: Prompts, concepts: Sequence[str], *, longest: bool = False) -> None:
        self._prompts = prompts
        self._concepts = concepts
        self._longest = longest
        self._last: tuple[Conditioning | None, list[Named]] = (None, [])

    def states(self) -> Conditioning | None:
        """Return the states of the prompts, a row an image; None where no prompts are known."""
        return self._prompts.now()

    def __call__(self) -> list[Named]:
        """Return for each image where the concepts are in its prompt."""
        states = self.states()
        if states is not self._last[0]:
            rows = range(0 if states is None else len(states))
            self._last = (
                states,
                [_named(states, row, self._concepts, self._longest) for row in rows] if states else [],
            )
        return self._last[1]


@contextmanager
def named_prompts(
    pipe: DiffusionPipeline, concepts: Sequence[str], *, longest: bool = False
) -> Generator[NamedPrompts]:
    """Follow where the concepts are in each prompt of the pipeline, for the length of a `with`.

    Args:
        pipe: The pipeline.
        concepts: Words or phrases.
        longest: See `positions_in`.

    Raises:
        InputError: There are no concepts.
    """
    if isinstance(concepts, str) or not concepts:
        raise InputError(f"concepts: expected words of the prompts, got {concepts!r}. Give a list of them.")
    with Prompts(pipe).followed(pipe) as prompts:
        yield NamedPrompts(prompts, concepts, longest=longest)


def _named(states: Conditioning, row: int, concepts: Sequence[str], longest: bool) -> Named:
    # Tokens of several encoders follow one another, and a concept has some of each.
    offsets = [pair for tokens in states.streams[TEXT].tokens for pair in tokens.offsets[row]]
    positions = positions_in(states.prompts[row], offsets, concepts, longest=longest)
    start = next((i for i, (first, last) in enumerate(offsets) if last > first), 1)
    return Named(names=tuple(positions), positions=list(positions.values()), end=int(states.eot[row]), start=start)


@dataclass(frozen=True, kw_only=True)
class ConceptGuidance(AttentionGuidance, Guidance):
    """Attention guidance for whichever of some concepts a prompt names.

    Attributes:
        concepts: Words or phrases as they stand in the prompts; one that a prompt does not hold is left out there.
        on_guided: Called after each guided step with what was done.
    """

    needs: ClassVar[Ability] = "map guidance"

    concepts: tuple[str, ...]
    on_guided: OnGuided | None = None

    @contextmanager
    def applied_to(self, pipe: DiffusionPipeline) -> Generator[DiffusionPipeline]:
        with named_prompts(pipe, self.concepts) as named, self.guiding(pipe, named, on_guided=self.on_guided):
            yield pipe
