"""Manifests: the images of a folder, and all that decides them."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

from diffusers import DiffusionPipeline
from pydantic import TypeAdapter
from pydantic_core import to_json

from erasure.backbones import backbone_of
from erasure.errors import InputError
from erasure.io.json_files import json_digest
from erasure.sampling import Pair, SamplingSettings

from .pipeline_digest import pipeline_digest
from .png import slug

FORMAT = "erasure-images/2"
MANIFEST = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Images of a closed folder, and all that decides them except the last bits of batch, threads and device.

    Attributes:
        precision: Data type of the denoiser: "float32".
        model: Digest of the pipeline while sampling, edited or not: networks, tokenizers, safety checker.
        edit: Id of the edit or guidance applied to the model; "" for none.
        scheduler: Class of the scheduler as "name", and its settings.
        steps: Number of sampling steps.
        guidance_scale: Scale of classifier-free guidance.
        negative_prompt: Replacement of the unconditional prompt; "" is the model's own.
        images: Prompt and seed of each row.
    """

    precision: str
    model: str
    edit: str
    scheduler: Mapping[str, Any]
    steps: int
    guidance_scale: float
    negative_prompt: str
    images: tuple[Pair, ...]

    @classmethod
    def of(
        cls,
        pipe: DiffusionPipeline,
        prompts: Sequence[str],
        seeds: Sequence[int],
        sampling: SamplingSettings,
        edit: str = "",
    ) -> "Manifest":
        """Return the manifest of images to sample from a pipeline in its present state.

        Args:
            pipe: Pipeline with the edit applied.
            prompts: Prompt of each image.
            seeds: Seed of each image, >= 0.
            sampling: Sampling settings; the batch size is not part of a manifest.
            edit: Id of the edit.

        Raises:
            InputError: There are no prompts, a text instead of a list, the lengths differ, or a seed is negative.
        """
        if isinstance(prompts, str) or not prompts or len(prompts) != len(seeds):
            number = repr(prompts) if isinstance(prompts, str) else len(prompts)
            raise InputError(
                f"store: expected a list of prompts and as many seeds, got {number} and {len(seeds)}."
                " Use sampling.grid(prompts, seeds) for every prompt with every seed."
            )
        if negative := [seed for seed in seeds if seed < 0]:
            raise InputError(f"store: expected seeds from 0 on, got {negative[0]!r}.")
        settings = {key: value for key, value in pipe.scheduler.config.items() if not key.startswith("_")}
        return cls(
            precision=str(backbone_of(pipe).dtype).removeprefix("torch."),
            model=pipeline_digest(pipe),
            edit=edit,
            scheduler=_plain({"name": type(pipe.scheduler).__name__, **settings}),
            steps=sampling.steps,
            guidance_scale=float(sampling.guidance_scale),
            negative_prompt=sampling.negative_prompt,
            images=tuple((prompt, int(seed)) for prompt, seed in zip(prompts, seeds, strict=True)),
        )

    def sampling(self, batch_size: int) -> SamplingSettings:
        """Return the sampling settings of the images, with a batch size."""
        return SamplingSettings(
            steps=self.steps,
            guidance_scale=self.guidance_scale,
            batch_size=batch_size,
            negative_prompt=self.negative_prompt,
        )

    @cached_property
    def id(self) -> str:
        """Sixteen hexadecimal digits that identify the manifest."""
        return json_digest(self.as_json())[:16]

    @property
    def facts(self) -> dict[str, str]:
        """Text fields by which a file names its manifest."""
        return {"manifest": self.id}

    def as_json(self) -> dict[str, Any]:
        """Return the fields as plain data, with the file of each row."""
        images = [
            {"file": self.file(row), "prompt": prompt, "seed": seed} for row, (prompt, seed) in enumerate(self.images)
        ]
        return {**{item.name: getattr(self, item.name) for item in fields(self)}, "images": images}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Manifest":
        """Return the manifest whose `as_json` gave `data`.

        Raises:
            KeyError: A field is missing.
            ValidationError: A value is of the wrong type.
        """
        images = tuple((row["prompt"], row["seed"]) for row in data["images"])
        values = {item.name: data[item.name] for item in fields(cls) if item.name != "images"}
        return TypeAdapter(cls).validate_json(to_json({**values, "images": images}), strict=True)

    def file(self, row: int) -> str:
        """Return the file name of a row, which contains its prompt for people."""
        prompt, seed = self.images[row]
        return f"{row:06d}-{slug(prompt)}-{seed}.png"

    def difference(self, other: "Manifest", but: Sequence[str] = ()) -> str:
        """Return the first difference in words, this manifest's value first; "" if there is none.

        Args:
            other: Manifest to compare with.
            but: Fields to ignore, besides the images.
        """
        for name in (item.name for item in fields(self) if item.name not in (*but, "images")):
            if getattr(self, name) != getattr(other, name):
                return f"{name} {getattr(self, name)!r} against {getattr(other, name)!r}"
        if len(self.images) != len(other.images):
            return f"{len(self.images)} images against {len(other.images)}"
        rows = [row for row, (one, two) in enumerate(zip(self.images, other.images, strict=True)) if one != two]
        return f"row {rows[0]} {self.images[rows[0]]!r} against {other.images[rows[0]]!r}" if rows else ""


@dataclass(frozen=True, kw_only=True)
class StateImages:
    """Images of one state of a model, in an open folder to which later requests add.

    A file's name contains all that decides the image besides the state, so equal requests share a file.

    Attributes:
        state: Name of the state.
        settings: Sampling settings.
        images: Prompt and seed of each row.
    """

    state: str
    settings: SamplingSettings
    images: tuple[Pair, ...]

    def sampling(self, batch_size: int) -> SamplingSettings:
        """Return the sampling settings of the images, which fix the batch size."""
        return self.settings

    @property
    def facts(self) -> dict[str, str]:
        """Text fields by which a file names its manifest: none, because its name does."""
        return {}

    def file(self, row: int) -> str:
        """Return the file name of a row: prompt and seed for people, and a digest."""
        prompt, seed = self.images[row]
        settings = self.settings
        decisive = json.dumps([prompt, seed, settings.steps, settings.guidance_scale, settings.negative_prompt])
        return f"{slug(prompt)}-{seed}-{hashlib.sha256(decisive.encode()).hexdigest()[:8]}.png"


def _plain(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return data after a round trip through JSON; values without a JSON form become text."""
    return json.loads(json.dumps(data, default=str))
