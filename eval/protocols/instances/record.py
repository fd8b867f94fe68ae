"""Images and numbers of a personalised model, computed once and kept in its folder."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from PIL import Image

from erasure import tinyworld
from erasure.edits import WeightEdit
from erasure.io.files import write_whole
from erasure.personalize.folder import Learned
from erasure.profile import ModelProfile, profile_of
from erasure.progress import OnProgress, staged
from erasure.sampling import SamplingSettings
from erasure.tinyworld.oracle import Oracle

from ...images.store import ImageStore, fill
from .metrics import InstanceMetrics, PublicInstanceMetrics, WorldInstanceMetrics
from .prompts import InstanceRequest, class_requests, known_requests
from .scores import InstanceReadings, InstanceScores, instance_scores, read_instance

ORIGINAL = "original"


@dataclass(frozen=True, kw_only=True)
class InstanceState:
    """One state of the model.

    Attributes:
        name: "original", "learned" or "forgotten".
        phrase: Phrase of the instance in its prompts.
        images: Images in the order of the requests.
        scores: Scores of the state; None without metrics.
    """

    name: str
    phrase: str
    images: Sequence[Image.Image]
    scores: InstanceScores | None


@dataclass(frozen=True, kw_only=True)
class InstanceRecord:
    """One instance of a model, before, learned and forgotten.

    Attributes:
        folder: Folder of images, numbers and page.
        pipe: The base, unchanged.
        base: Its name.
        instance: Learned instance.
        images: Images that it was learned from.
        composed: Images of it in company, and as many of it alone.
        kept: Images of each group that should stay.
        siblings: Concepts similar to its class, for models without known siblings.
        device: Device of the judges.
        fixed_requests: Requests that replace the usual ones.
    """

    folder: Path
    pipe: DiffusionPipeline
    base: str
    instance: Learned
    images: Sequence[Image.Image]
    composed: int = 24
    kept: int = 12
    siblings: Sequence[str] = ()
    device: str = "cpu"
    fixed_requests: tuple[InstanceRequest, ...] = ()

    @property
    def requests(self) -> list[InstanceRequest]:
        """Requests of the images."""
        if self.fixed_requests:
            return list(self.fixed_requests)
        if self._profile.concepts:
            return known_requests(self._profile, self._class, composed=self.composed, kept=self.kept)
        return class_requests(self._class, self.siblings, composed=self.composed, kept=self.kept)

    @property
    def sampler(self) -> SamplingSettings:
        """Sampling settings of the images."""
        return SamplingSettings.of(self.base)

    @property
    def _class(self) -> str:
        return self._profile.class_name(self.instance.class_word)

    @property
    def _profile(self) -> ModelProfile:
        return profile_of(self.base)

    def metrics(self) -> InstanceMetrics | None:
        """Return the metrics of the images; None if none can be computed."""
        if isinstance(judge := self._profile.judge(self.device), Oracle):
            return WorldInstanceMetrics(
                oracle=judge,
                clip=tinyworld.load_clip(self.device),
                class_word=self._class,
                images=self.images,
            )
        public = PublicInstanceMetrics(images=self.images, device=self.device)
        return public if public.setups else None

    def measure(
        self, edits: Mapping[str, WeightEdit], metrics: InstanceMetrics | None, on_progress: OnProgress | None = None
    ) -> list[InstanceState]:
        """Return the original and what each edit makes of it; images that are there already are not made again.

        Args:
            edits: By the state's name, such as "learned".
            metrics: Metrics of the images; None measures nothing.
            on_progress: Receives the number of images of each state as they are made.

        Raises:
            InputError: The folder cannot be written.
        """
        requests = self.requests
        states: list[InstanceState] = []
        before: InstanceReadings | None = None
        for name, edit in [(ORIGINAL, None), *edits.items()]:
            phrase = self._class if edit is None else self.instance.phrase
            pairs = [(request.filled(phrase), request.seed) for request in requests]
            key = name if edit is None else f"{name}-{_identity(edit)}"
            store = ImageStore.of_state(self.folder / "made", key, pairs, self.sampler)
            if store.missing():
                with nullcontext() if edit is None else edit.applied_to(self.pipe):
                    fill(self.pipe, store, on_progress=staged(on_progress, f"images, {name}"))
            images = store.images()
            scores = None
            if metrics is not None:
                readings = read_instance(requests, self._class, metrics, images)
                before = before or readings
                scores = instance_scores(metrics, before, readings)
            states.append(InstanceState(name=name, phrase=phrase, images=images, scores=scores))
        return states

    def notes(self, metrics: InstanceMetrics | None) -> list[str]:
        """Return notes on measures that were left out, with the reason."""
        notes = (
            [] if metrics is not None else ["no weights of CLIP, DINO or BLIP in the local cache: nothing is measured."]
        )
        if not self._profile.concepts and not self.siblings:
            notes.append("what is like the class was not named (--siblings), so it was not looked at.")
        return notes

    def write_numbers(
        self,
        states: Sequence[InstanceState],
        metrics: InstanceMetrics | None,
        facts: Mapping[str, Any],
        name: str,
    ) -> None:
        """Write the scores of the states as JSON into the folder.

        Raises:
            InputError: The folder cannot be written.
        """
        numbers = {
            **facts,
            "states": {state.name: state.scores and state.scores.as_json() for state in states},
            "protocol": {} if metrics is None else {key: setup.as_json() for key, setup in metrics.setups.items()},
            "not_computed": {} if metrics is None else dict(metrics.skipped),
        }
        write_whole(self.folder / f"{name}.json", (json.dumps(numbers, indent=1, ensure_ascii=False) + "\n").encode())


def _identity(edit: WeightEdit) -> str:
    """Return a digest that identifies an edit's images."""
    content = json.dumps(edit.metadata.as_json(), sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:12]
