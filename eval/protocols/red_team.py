"""Attacks on an erased model, beside what an attack must be read against.

A success says little by itself: an erased model may draw the concept now and then for the plain prompt too, and an
attack that brings nothing back may be a weak one. So each attack stands beside three controls: the same attack on the
original; the plain prompt with as many seeds as the attack had images; and a second judge, which neither the attack
nor the decision looked at.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from pydantic_core import from_json
from torch import Tensor

from erasure.arguments import checks_arguments
from erasure.backbones import backbone_of
from erasure.backbones.conditioning import Conditioning
from erasure.concept import Concept
from erasure.errors import InputError
from erasure.io.files import make_folder, write_whole
from erasure.io.tensor_cache import stored
from erasure.judge import Judge, shows_any
from erasure.profile import profile_of
from erasure.progress import OnProgress, ProgressCounter, staged
from erasure.prompts import fill
from erasure.provenance import provenance
from erasure.sampling import SamplingSettings, sample

from ..attacks import Attack, Goal
from ..images.png import as_png
from ..probes import SampledProbe
from ..stats.scores import Rate
from .phrasings import held_out_sentences
from .variants import Variant, image_cache

VERSION = 1
ATTACKED, PLAIN, ORIGINAL = "attacked", "plain prompt", "attack on the original"
ROWS = (ATTACKED, PLAIN, ORIGINAL)
CANDIDATES = 5
"""Number of candidates of an attack that take turns; each turn has its own seed."""
_AT_ONCE = 4


@dataclass(frozen=True, kw_only=True)
class Attempts:
    """The images of one prompt in one row, made until one shows the concept.

    Attributes:
        first: The number of the first that does, from 1; None if none did.
        sampled: Number of images judged.
        confirmed: Whether the second judge sees it in that image too; None without one, or without a success.
    """

    first: int | None
    sampled: int
    confirmed: bool | None

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Attempts":
        """Return the attempts whose `as_json` gave `data`."""
        return cls(first=data["first"], sampled=data["made"], confirmed=data["confirmed"])

    def as_json(self) -> dict[str, Any]:
        """Return the fields as plain data, by the names of the record."""
        return {"first": self.first, "made": self.sampled, "confirmed": self.confirmed}


@dataclass(frozen=True, kw_only=True)
class AttackedPrompt:
    """Results of an attack on one prompt.

    Attributes:
        concept: Removed concept.
        prompt: Prompt that asks for it.
        seed: Seed of the search and of the first image.
        text: The first candidate, decoded for people; decoding may lose what the ids say.
        ids: The candidates.
        rows: Attempts by row.
    """

    concept: str
    prompt: str
    seed: int
    text: str
    ids: tuple[tuple[int, ...], ...]
    rows: Mapping[str, Attempts]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "AttackedPrompt":
        """Return the record whose `as_json` gave `data`."""
        rows = {name: Attempts.from_json(attempts) for name, attempts in data["rows"].items()}
        return cls(**{**data, "ids": tuple(map(tuple, data["ids"])), "rows": rows})

    def as_json(self) -> dict[str, Any]:
        """Return the record as plain data."""
        return {**asdict(self), "rows": {name: attempts.as_json() for name, attempts in self.rows.items()}}


@checks_arguments
@dataclass(kw_only=True)
class AttackRun:
    """One attack on one erased model, kept in a folder as it goes.

    Attributes:
        folder: For attack.json and images/.
        erased: Attacked model.
        concepts: Removed concepts; an image with any of them is a success.
        attack: The attack.
        sampler: Sampling settings.
        budget: Images a prompt and row, at most.
        judge: Judge that decides.
        second: Independent judge of the successes; None leaves that open.
        model: Name of the original model.
        attacked: Prompts that are done.
    """

    folder: Path
    erased: Variant
    concepts: Sequence[Concept]
    attack: Attack | SampledProbe
    sampler: SamplingSettings
    budget: int
    judge: Judge
    second: Judge | None
    model: str
    attacked: list[AttackedPrompt] = field(default_factory=list)

    @cached_property
    def protocol(self) -> dict[str, Any]:
        """Protocol, which must be equal to continue a run."""
        return {
            "version": VERSION,
            "attack": {"name": self.attack.name, **asdict(self.attack)},
            "budget": self.budget,
            "candidates": CANDIDATES,
            "sampler": self.sampler.as_settings(),
            "witness": self.judge.name,
            "second": self.second and self.second.name,
            "model": backbone_of(self.erased.pipe).fingerprint(),
            "edit": self.erased.edit,
            "concepts": [concept.as_json() for concept in self.concepts],
        }

    def run(self, prompts: Sequence[tuple[Concept, str, int]], on_progress: OnProgress | None = None) -> None:
        """Attack each prompt that was not attacked yet; every prompt that is done is on the disk.

        Raises:
            InputError: The folder holds an attack with other settings, or cannot be written.
        """
        make_folder(self.folder / "pictures")
        self.attacked = self._done()
        count = ProgressCounter(on_progress, len(prompts), "prompts")
        count.add(len(self.attacked))
        for i in range(len(self.attacked), len(prompts)):
            concept, prompt, seed = prompts[i]
            self.attacked.append(self._attacked(i, concept, prompt, seed, on_progress))
            self._write()
            count.add()

    def rates(self, row: str) -> list[Rate]:
        """Return the share of prompts that had a success within 1, 2, ... images of a row."""
        firsts = [each.rows[row].first for each in self.attacked]
        return [
            Rate(hits=sum(first is not None and first <= sampled for first in firsts), n=len(firsts))
            for sampled in range(1, self.budget + 1)
        ]

    def confirmed(self, row: str) -> Rate | None:
        """Return the share of the successes that the second judge confirms; None without successes."""
        decisions = [each.rows[row].confirmed for each in self.attacked if each.rows[row].confirmed is not None]
        return Rate(hits=sum(map(bool, decisions)), n=len(decisions)) if decisions else None

    def as_json(self) -> dict[str, Any]:
        """Return the whole record."""
        return {
            "protocol": self.protocol,
            "rows": {
                row: {
                    "success": [rate.as_json() for rate in self.rates(row)],
                    "confirmed": (rate := self.confirmed(row)) and rate.as_json(),
                }
                for row in ROWS
                if self.attacked
            },
            "found": [each.as_json() for each in self.attacked],
            **provenance(device=str(backbone_of(self.erased.pipe).device)),
        }

    def image(self, i: int, row: str) -> Path:
        """Return where a prompt's image of a row is: the first success, or the last try."""
        return self.folder / "pictures" / f"{i:03d}-{ROWS.index(row)}.png"

    def _attacked(
        self, i: int, concept: Concept, prompt: str, seed: int, on_progress: OnProgress | None
    ) -> AttackedPrompt:
        backbone = backbone_of(self.erased.pipe)
        latents = None
        if self.attack.access == "gradient":
            latents = sample(backbone.pipe, [prompt], [seed], self.sampler, output="latents")
        goal = Goal(concept=concept, prompt=prompt, seed=seed, latents=latents)

        ids, ids_of_original = self._ids(goal, staged(on_progress, f"{self.attack.name}, prompt {i + 1}"))
        with torch.no_grad():
            candidates, of_original = backbone.encode_ids(ids), backbone.encode_ids(ids_of_original)
        plain = backbone.encode([prompt])
        rows = {}
        for row, states, applied in (
            (ATTACKED, candidates, self.erased.applied),
            (PLAIN, plain, self.erased.applied),
            (ORIGINAL, of_original, nullcontext),
        ):
            probe = self.attack if row != PLAIN and isinstance(self.attack, SampledProbe) else None
            with applied(), nullcontext() if probe is None else probe.applied_to(self.erased.pipe, goal):
                rows[row] = self._tries(i, row, states, seed)
        return AttackedPrompt(
            concept=concept.target,
            prompt=prompt,
            seed=seed,
            text=candidates.prompts[0],
            ids=tuple(map(tuple, ids.tolist())),
            rows=rows,
        )

    def _ids(self, goal: Goal, on_progress: OnProgress | None) -> tuple[Tensor, Tensor]:
        """Return the candidates for the erased model and for the original."""
        backbone = backbone_of(self.erased.pipe)
        if isinstance(self.attack, SampledProbe):
            ids = self.attack.prompt_ids(backbone, goal)[:CANDIDATES]
            return ids, ids
        attack = self.attack

        def search() -> dict[str, Tensor]:
            return {"ids": attack.search(backbone, goal, on_progress=on_progress)[:CANDIDATES]}

        if attack.access == "gradient":
            with self.erased.applied():
                ids = search()["ids"]
            return ids, search()["ids"]
        # The candidates hold for every denoiser with this text encoder, so they are searched for once.
        key = [self.protocol["attack"], self.protocol["model"], goal.concept.as_json(), goal.prompt, goal.seed]
        ids = stored(image_cache().with_name("attacks"), key, search)["ids"]
        return ids, ids

    def _tries(self, i: int, row: str, states: Conditioning, seed: int) -> Attempts:
        """Make images until one shows a concept; the candidates take turns."""
        targets = [concept.target for concept in self.concepts]
        for start in range(0, self.budget, _AT_ONCE):
            numbers = range(start, min(start + _AT_ONCE, self.budget))
            images = self._images(states.select([number % len(states) for number in numbers]), seed, numbers)
            shown = shows_any(self.judge, images, targets)
            for number, image, hit in zip(numbers, images, shown, strict=True):
                if hit or number == self.budget - 1:
                    write_whole(self.image(i, row), as_png(image, {"row": row, "seed": seed + number}))
                if hit:
                    seen = None if self.second is None else shows_any(self.second, [image], targets)[0]
                    return Attempts(first=number + 1, sampled=number + 1, confirmed=seen)
        return Attempts(first=None, sampled=self.budget, confirmed=None)

    def _images(self, states: Conditioning, seed: int, numbers: Sequence[int]) -> list[Image]:
        pipe = self.erased.pipe
        return sample(pipe, states, [seed + number for number in numbers], replace(self.sampler, batch_size=_AT_ONCE))

    def _done(self) -> list[AttackedPrompt]:
        path = self.folder / "attack.json"
        if not path.is_file():
            return []
        try:
            data = from_json(path.read_bytes())
            protocol, attacked = data["protocol"], [AttackedPrompt.from_json(each) for each in data["found"]]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path}: expected an attack's record, got something else ({error}). Delete it.") from None
        mine = json.loads(json.dumps(self.protocol))
        for key, value in mine.items():
            if protocol.get(key) != value:
                raise InputError(
                    f"{path}: expected an attack with the same {key}, got another. Choose another --out, or delete it."
                )
        return attacked

    def _write(self) -> None:
        data = json.dumps(self.as_json(), indent=1, ensure_ascii=False)
        write_whole(self.folder / "attack.json", (data + "\n").encode())


@checks_arguments
def attack_prompts(concepts: Sequence[Concept], n: int, *, model: str, seed: int = 0) -> list[tuple[Concept, str, int]]:
    """Return n prompts that ask for the concepts in turn, each with a seed of its own."""
    profile = profile_of(model)
    chosen = []
    for i in range(n):
        concept, turn = concepts[i % len(concepts)], i // len(concepts)
        known = profile.prompts(concept.target, turn + 1, seed)
        sentences = held_out_sentences(concept.kind)
        prompt = (
            known[turn] if known else fill(sentences[turn % len(sentences)], concept.names[turn % len(concept.names)])
        )
        chosen.append((concept, prompt, 1_000 * (seed + 1) + 100_000 * i))
    return chosen
