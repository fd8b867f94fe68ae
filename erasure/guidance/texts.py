"""Guidance by the text of concepts: one list of names, and the denoiser's predictions and arguments for other texts."""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Generic, TypeVar, cast

import torch
from diffusers import DiffusionPipeline
from jaxtyping import Bool
from torch import Tensor

from ..backbones.base import Backbone
from ..backbones.conditioning import Conditioning
from ..backbones.loaded import LoadedModel
from ..errors import InputError
from .base import AnyGuidance, Guidance, NamedPrompts, named_prompts
from .denoising import Denoising
from .steps import check_covered


@dataclass(frozen=True, kw_only=True)
class TextGuidance(Guidance):
    """Guidance that knows concepts by the states of their names alone.

    Attributes:
        concepts: Names of the concepts.
        only_named: Whether prompts that name none of the concepts are left alone; the sources act on every prompt.
    """

    concepts: tuple[str, ...]
    only_named: bool = False

    @contextmanager
    def prompts(self, pipe: DiffusionPipeline) -> Generator[NamedPrompts]:
        """Follow the prompts of the pipeline, for the length of a `with`.

        Raises:
            InputError: There are no concepts, or the family of the pipeline is not covered.
        """
        check_covered(pipe, self.needs)
        with named_prompts(pipe, self.concepts, longest=True) as named:
            yield named

    def acted_on(self, named: NamedPrompts) -> Bool[Tensor, " n"]:
        """Return for each image of the running loop whether its prompt is acted on."""
        return torch.tensor([bool(row.positions) or not self.only_named for row in named()], dtype=torch.bool)

    @classmethod
    def merged(cls: type[AnyGuidance], parts: Sequence[AnyGuidance]) -> tuple[AnyGuidance, ...]:
        """Return one guidance for all that have the same settings, with the names of all."""
        listed = cast("Sequence[TextGuidance]", parts)
        groups: list[tuple[TextGuidance, list[TextGuidance]]] = []
        for part in listed:
            plain = replace(part, concepts=())
            group = next((members for kind, members in groups if kind == plain), None)
            if group is None:
                groups.append((plain, [part]))
            else:
                group.append(part)
        return cast(
            "tuple[AnyGuidance, ...]",
            tuple(
                replace(kind, concepts=tuple(dict.fromkeys(name for part in members for name in part.concepts)))
                for kind, members in groups
            ),
        )


Computed = TypeVar("Computed")


class PerPrompt(Generic[Computed]):
    """Results of a function of a prompt for the prompts of the running loop, computed once a batch.

    Args:
        settings: The guidance.
        named: The prompts.
        compute: Function of the states of one prompt.
    """

    def __init__(
        self, settings: TextGuidance, named: NamedPrompts, compute: Callable[[Conditioning], Computed]
    ) -> None:
        self._settings, self._named, self._compute = settings, named, compute
        self._read: Conditioning | None = None
        self._results: list[Computed | None] = []

    def __call__(self) -> list[Computed | None]:
        """Return a result for each image; None where the guidance leaves the prompt alone."""
        states = self._named.states()
        if states is not None and states is not self._read:
            known: dict[str, Computed | None] = {}
            for row, acted in enumerate(self._settings.acted_on(self._named).tolist()):
                prompt = states.prompts[row]
                if prompt not in known:
                    known[prompt] = self._compute(states.select([row])) if acted else None
            self._read, self._results = states, [known[prompt] for prompt in states.prompts]
        return self._results


def encoder_columns(backbone: Backbone) -> list[slice]:
    """Return the columns of each text encoder in the states of the tokens."""
    widths = [encoder.config.hidden_size for encoder in cast(LoadedModel, backbone).text_encoders().values()]
    return [slice(*both) for both in pairwise([0, *accumulate(widths)])]


def joined_names(names: Sequence[str], encode: Callable[[Sequence[str]], Conditioning]) -> list[Conditioning]:
    """Return the states of the names joined by ", ", of as few texts as the encoder reads whole.

    Args:
        names: The names.
        encode: The backbone's way to encode prompts, or negative ones.

    Raises:
        InputError: A single name is longer than what the model reads.
    """
    texts: list[Conditioning] = []
    waiting = list(dict.fromkeys(names))
    while waiting:
        taken, states = 1, encode([waiting[0]])
        if states.is_cut(0):
            raise InputError(f"concepts: expected names that the model reads whole, got {waiting[0]!r}. Shorten it.")
        while taken < len(waiting):
            longer = encode([", ".join(waiting[: taken + 1])])
            if longer.is_cut(0):
                break
            taken, states = taken + 1, longer
        texts.append(states)
        waiting = waiting[taken:]
    return texts


def predicted(call: Denoising, states: Conditioning) -> Tensor:
    """Return the prediction for other texts, one for each image."""
    return call.predict(text=states)


def along(rows: Bool[Tensor, " n"], output: Tensor) -> Tensor:
    """Return a value for each image in the shape and on the device that go with an output, whatever its layout."""
    return rows.to(output.device).view(-1, *[1] * (output.ndim - 1))
