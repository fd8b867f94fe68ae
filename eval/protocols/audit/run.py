"""The run of an audit: every probe on every row, each judged outcome kept as soon as it is there."""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from erasure.arguments import checks_arguments
from erasure.concept import Concept
from erasure.edits.metadata import now
from erasure.errors import ErasureError, reason
from erasure.io.files import check_places, make_folder, write_whole
from erasure.io.json_files import json_digest
from erasure.io.processes import alone, are_together, share, wait
from erasure.io.tensor_cache import stored
from erasure.io.text import counted
from erasure.judge import Judge
from erasure.profile import ModelProfile
from erasure.progress import OnProgress, Progress, StoppedError
from erasure.provenance import provenance
from erasure.sampling import SamplingSettings

from ...probes import Aim, MissingError, Models, Probe, Subject
from ..variants import image_cache
from .record import Judged, UnitFile
from .results import ConceptAudit, ProbeResult
from .rows import ERASED, GOLD, NOVEL, ORIGINAL, PLAIN, AuditRow, aim_of, novel_concept

VERSION = 1
IMAGES = {"quick": (16, 8), "standard": (40, 24), "full": (96, 48)}
"""Images a dose by suite: of the target, and of kept concepts."""
# Faults of a probe; each is a line of the page, and the other probes go on.
_FAULTS = (ErasureError, ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


@checks_arguments
@dataclass(frozen=True, kw_only=True)
class Audit:
    """One audit of an erased model.

    Attributes:
        title: Title of the report.
        rows: Erased model, original, then golds.
        concepts: Removed concepts.
        aimed: Those of them to audit; empty audits all.
        probes: Probes by name, without the plain prompt, which is always measured.
        untested: Names of the other probes.
        profile: Profile of the model.
        judge: Judge of the images; None without one.
        no_judge: Advice for a model without a judge.
        sampling: Sampling settings.
        suite: Name of the suite, for the number of images a dose.
        seed: Seed of prompts, noise and searches, >= 0.
        cache: Folder of judged outcomes.
    """

    title: str
    rows: tuple[AuditRow, ...]
    concepts: tuple[Concept, ...]
    probes: Mapping[str, Probe]
    untested: tuple[str, ...]
    profile: ModelProfile
    judge: Judge | None
    no_judge: str = ""
    sampling: SamplingSettings
    aimed: tuple[str, ...] = ()
    suite: str = "quick"
    seed: int = 0
    cache: Path = field(default_factory=lambda: image_cache().with_name("audit"))

    @property
    def short(self) -> str:
        """Name of a folder for the results: equal for equal models, concepts, probes and seed, and for no others."""
        parts = {
            "rows": [[row.name, row.identity] for row in self.rows],
            "concepts": [[each.as_json() for each in self.concepts], self.aimed],
            "probes": {name: probe.as_settings() for name, probe in self.probes.items()},
            "judge": self.judge and self.judge.name,
            "seed": self.seed,
        }
        return f"{self.suite}-{json_digest(parts)[:8]}"

    def run(self, on_progress: OnProgress | None = None) -> "AuditResults":
        """Return the results; whatever was measured before, with equal settings on equal models, is read.

        Processes that work together (`erasure.io.processes`) measure a share each and read what the others measured.

        Raises:
            InputError: The cache cannot be written.
            StoppedError: So it became in the middle; what was measured until then is kept.
        """
        check_places(self.cache)
        start = time.perf_counter()
        concepts = [each for each in self.concepts if not self.aimed or each.target in self.aimed]
        if are_together():
            self._share_out(concepts, on_progress)
        counter = _Counter(on_progress, sum(map(self._units, concepts)))
        with alone():
            audits = [self._concept(concept, counter) for concept in concepts]
        device = str(self.rows[0].variant.pipe.device)
        return AuditResults(audit=self, concepts=tuple(audits), origin=provenance(device=device, start=start))

    def _share_out(self, concepts: Sequence[Concept], on_progress: OnProgress | None) -> None:
        """Measure this process's share of the units; those with a fault are tried again, and named, by the run."""
        units = [
            (probe, self._aim(concept), row, rows)
            for concept in concepts
            for rows in [self._rows(concept)]
            for probe in self.probes.values()
            if self.judge is not None or not probe.judged
            for row in rows
        ]
        novel = novel_concept(self.profile)
        if novel is not None:
            tried = [
                (probe, rows) for probe, _, row, rows in units if row is rows[0] and self._needs_novel(probe, rows)
            ]
            units += [(probe, self._aim(novel), rows[0], rows) for probe, rows in tried]
        units = units[share()]
        counter = _Counter(on_progress, len(units))
        for probe, aim, row, rows in units:
            counter.begin(f"{aim.concept.target}: {probe.name}")
            try:
                with alone():
                    self._unit(probe, aim, row, rows, counter)
            except StoppedError:
                raise
            except (MissingError, *_FAULTS):
                counter.add(row.name)
        wait()

    def _concept(self, concept: Concept, counter: "_Counter") -> ConceptAudit:
        aim, rows = self._aim(concept), self._rows(concept)
        golds = [row for row in rows if row.name == GOLD]
        plain: tuple[float, ...] = ()
        results: dict[str, ProbeResult] = {}
        for name, probe in self.probes.items():
            counter.begin(f"{concept.target}: {name}")
            before = counter.done
            results[name] = self._probe(probe, aim, rows, plain, counter)
            if name == PLAIN and results[name].status == "measured":
                plain = results[name].outcomes[ERASED][0].values
            counter.add(units=before + self._units_of(probe, rows) - counter.done)
        gold = golds[0].variant.about if golds else ""
        return ConceptAudit(concept=concept.target, probes=results, gold=gold, untested=self.untested)

    def _probe(
        self, probe: Probe, aim: Aim, rows: Sequence[AuditRow], plain: tuple[float, ...], counter: "_Counter"
    ) -> ProbeResult:
        outcomes: dict[str, Sequence[Judged]] = {}
        seconds: dict[str, float] = {}
        status, why = "measured", ""
        try:
            if probe.judged and self.judge is None:
                raise MissingError(self.no_judge)
            for row in rows:
                outcomes[row.name], seconds[row.name] = self._unit(probe, aim, row, rows, counter)
            novel = novel_concept(self.profile)
            if novel is not None and self._needs_novel(probe, rows):
                outcomes[NOVEL], seconds[NOVEL] = self._unit(probe, self._aim(novel), rows[0], rows, counter)
        except StoppedError:
            raise
        except MissingError as error:
            outcomes, status, why = {}, "missing", reason(error)
        except _FAULTS as error:
            outcomes, status, why = {}, "failed", f"{reason(error)} ({type(error).__name__})"
        return ProbeResult(
            name=probe.name,
            access=probe.access,
            about=(type(probe).__doc__ or "").strip().partition("\n")[0],
            unit=probe.dose_unit,
            effort=probe.effort,
            settings=probe.as_settings(),
            status=status,
            reason=why,
            outcomes=outcomes,
            plain=plain,
            seconds=seconds,
        )

    def _unit(
        self, probe: Probe, aim: Aim, row: AuditRow, rows: Sequence[AuditRow], counter: "_Counter"
    ) -> tuple[Sequence[Judged], float]:
        """Return the judged outcomes of a probe on a row and the seconds they took, from the cache where they are."""
        if not probe.reads_anchor:
            aim = replace(aim, concept=replace(aim.concept, anchor=""))
        file = UnitFile(folder=self.cache, key=self._key(probe, aim, row, rows))
        known = file.read()
        if known is not None:
            counter.add(f"{row.name}, known")
            return known
        start = time.perf_counter()
        material = self._material(probe, aim, rows)
        judged: list[Judged] = []
        with row.opened() as pipe:
            report = counter.within(row.name)
            subject = Subject(
                pipe=pipe, aim=aim, material=material, judge=self.judge, images=self._images(row), on_progress=report
            )
            for outcome in probe.outcomes(subject):
                if outcome.shows and self.judge is not None and not self.judge.knows(outcome.shows):
                    continue  # an anchor that the judge cannot look for
                judged.append(Judged.of(outcome, aim, self.judge, counted(outcome.dose, probe.dose_unit)))
        seconds = round(time.perf_counter() - start, 2)
        file.write(judged, seconds)
        counter.add(row.name)
        return judged, seconds

    def _images(self, row: AuditRow) -> Path | None:
        """Return the folder of a row's images, which are kept for those models that later audits have too."""
        if row.name == ERASED:
            return None
        return self.cache / "images" / hashlib.sha256(row.identity.encode()).hexdigest()[:24]

    def _material(self, probe: Probe, aim: Aim, rows: Sequence[AuditRow]) -> dict[str, Tensor]:
        if type(probe).material is Probe.material:
            return {}
        [original] = [row for row in rows if row.name == ORIGINAL]
        gold = next((row for row in rows if row.name == GOLD), None)
        models = Models(original=original.opened, gold=None if gold is None else gold.opened)
        key = [VERSION, probe.name, probe.version, probe.as_settings(), aim.as_json(), original.identity]
        if probe.reads_gold:
            key.append(gold and gold.identity)
        return stored(self.cache / "material", key, lambda: probe.material(models, aim))

    def _key(self, probe: Probe, aim: Aim, row: AuditRow, rows: Sequence[AuditRow]) -> dict[str, Any]:
        read = [each.identity for each in rows if each.name == ORIGINAL or (probe.reads_gold and each.name == GOLD)]
        return {
            "version": VERSION,
            "probe": [probe.name, probe.version, json.loads(json.dumps(probe.as_settings()))],
            "model": row.identity,
            "read": read,
            "aim": aim.as_json(),
            "judge": self.judge.name if self.judge is not None and probe.judged else "",
        }

    def _aim(self, concept: Concept) -> Aim:
        images, kept_images = IMAGES[self.suite]
        return aim_of(
            concept,
            self.concepts,
            profile=self.profile,
            judge=self.judge,
            sampling=self.sampling,
            images=images,
            kept_images=kept_images,
            seed=self.seed,
        )

    def _units(self, concept: Concept) -> int:
        return sum(self._units_of(probe, self._rows(concept)) for probe in self.probes.values())

    def _units_of(self, probe: Probe, rows: Sequence[AuditRow]) -> int:
        return len(rows) + self._needs_novel(probe, rows)

    def _needs_novel(self, probe: Probe, rows: Sequence[AuditRow]) -> bool:
        """Return True if the probe is aimed at a concept never taught: it stands for a gold where there is none.

        Beside a gold it is a second speed ratio and no floor: a row that the suite `full` alone pays for.
        """
        without = self.suite == "full" or all(row.name != GOLD for row in rows)
        return probe.novel and without and novel_concept(self.profile) is not None

    def _rows(self, concept: Concept) -> list[AuditRow]:
        """Return the rows of a concept: of the golds those that lack it, or that have no recipe; named in order."""
        golds = [row for row in self.rows if row.name.startswith(GOLD)]
        fitting = [row for row in golds if not row.without or concept.target in row.without]
        named = [replace(row, name=GOLD if i == 0 else f"{GOLD} {i + 1}") for i, row in enumerate(fitting)]
        return [row for row in self.rows if row not in golds] + named


@dataclass(frozen=True, kw_only=True)
class AuditResults:
    """Results of an audit.

    Attributes:
        audit: The audit.
        concepts: Results by concept.
        origin: Versions, device, commit, time and memory.
    """

    audit: Audit
    concepts: tuple[ConceptAudit, ...]
    origin: Mapping[str, Any]

    @property
    def failed(self) -> bool:
        """True if a probe failed."""
        return any(result.status == "failed" for each in self.concepts for result in each.probes.values())

    def as_json(self) -> dict[str, Any]:
        """Return the results as plain data, without images."""
        audit = self.audit
        return {
            "format": VERSION,
            "title": audit.title,
            "time": now(),
            "suite": audit.suite,
            "seed": audit.seed,
            "judge": None if audit.judge is None else audit.judge.name,
            "sampling": audit.sampling.as_settings(),
            "rows": {row.name: row.variant.about for row in audit.rows},
            "concepts": [each.as_json() for each in self.concepts],
            **self.origin,
        }

    def write(self, folder: Path) -> Path:
        """Write `audit.json` into a folder and return its path.

        Raises:
            InputError: The folder cannot be written.
        """
        make_folder(folder)
        path = folder / "audit.json"
        write_whole(path, (json.dumps(self.as_json(), indent=1, ensure_ascii=False) + "\n").encode())
        return path


class _Counter:
    """Progress of an audit, in units of a probe on a row."""

    def __init__(self, on_progress: OnProgress | None, total: int) -> None:
        self.done, self.total, self.name = 0, total, ""
        self._on_progress = on_progress

    def begin(self, name: str) -> None:
        """Name the probe that comes next."""
        self.name = name
        self.report("")

    def add(self, note: str = "", units: int = 1) -> None:
        """Count units."""
        self.done += units
        self.report(note)

    def within(self, row: str) -> OnProgress | None:
        """Return the receiver of a probe's own progress."""
        return lambda progress: self.report(f"{row}, {progress.note}" if progress.note else row)

    def report(self, note: str) -> None:
        """Report the units so far with a note on the current one."""
        if self._on_progress is not None:
            self._on_progress(Progress(self.done, self.total, "audit", note=f"{self.name}, {note}".rstrip(", ")))
