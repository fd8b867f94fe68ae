"""A family of concepts erased by one method, and how far indirect wording and attacks bring it back, on the tiny world.

    python -m experiments.family --config configs/trce/weapons-tinyworld.yaml --out results/trce-tinyworld/trce

A run is one method. It is judged on the tiny world's own benchmark (explicit, synonymous and implicit wording, what
else should stay, the distance of all that stays from the original), then attacked; each attack stands beside the plain
prompt with as many seeds and the same attack on the original. What is made on the way lies in `--work`; killed at any
moment, the same command goes on from there.
"""

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from erasure import tinyworld
from erasure.errors import InputError
from erasure.eval.benchmarks.tinyworld import TinyWorld
from erasure.eval.probes import attack_and_probe_names
from erasure.eval.protocols.evaluate import evaluate
from erasure.eval.protocols.red_team import ROWS, AttackRun, attack_prompts
from erasure.eval.protocols.sources import attack_of, judges_of, metrics_of
from erasure.eval.protocols.variants import ERASED, ORIGINAL
from erasure.eval.stats.scores import Rate
from erasure.ledger import Ledger
from erasure.profile import DEFAULT_MODEL
from erasure.progress import progress_bars
from erasure.provenance import provenance
from erasure.runs import configs, overrides, schema
from erasure.sampling import SamplingSettings
from erasure.tinyworld import vocabulary

from .experiment import erased_source, recorded, work_folder

VERSION = 1
FAMILY = ("gun", "knife", "bomb")
BESIDE = tuple(name for name, family in vocabulary.OBJECTS.items() if family in ("tool", "vehicle"))
"""Kept concepts most similar to the family, which has no siblings left."""
ATTACK_SETTINGS = {"unlearn-diff": ("relaxation=mixture",)}
"""Settings of attacks, as key=value: the mixture has 160 passes of the denoiser, the sampled search 2,000."""


def main() -> None:
    """Erase the family, judge, attack, and write run.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--config", type=Path, required=True, help="a config of `erasure remove`, with its concepts")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as in `erasure remove`")
    parser.add_argument("--images", type=int, default=2000, help="images of the benchmark")
    parser.add_argument(
        "--attacks", nargs="*", default=list(attack_and_probe_names()), help="attacks and probes; empty for none"
    )
    parser.add_argument("--prompts", type=int, default=40, help="prompts of each attack")
    parser.add_argument("--budget", type=int, default=20, help="images of each prompt, at most")
    parser.add_argument("--work", type=Path, default=Path("erasure-runs/family"))
    parser.add_argument("--out", type=Path, required=True, help="folder for run.json")
    Console().print(summary(recorded(experiment, parser.parse_args())), highlight=False)


def experiment(options: argparse.Namespace) -> dict[str, Any]:
    """Return the record of one method.

    Raises:
        InputError: The config removes something else than the family.
    """
    began = time.perf_counter()
    config: Mapping[str, Any] = configs.read_config(options.config)
    for assignment in options.set:
        config = overrides.override(config, assignment)
    run = schema.parse(config)
    if {concept.target for concept in run.concepts} != set(FAMILY):
        raise InputError(f"{options.config}: expected the concepts {', '.join(FAMILY)}, got others. Remove those.")
    attacks = [attack_of(name, ATTACK_SETTINGS.get(name, ())) for name in options.attacks]
    pipe = tinyworld.load()
    work = work_folder(options.work, options.out.name, pipe, VERSION, run.as_json())
    sampler = SamplingSettings.of(DEFAULT_MODEL)
    with progress_bars() as on_progress:
        source = erased_source(run, pipe, work / "ledger", on_progress)
        ledger = Ledger.open(work / "ledger")
        rows = [row for row in source.variants if row.name in (ERASED, ORIGINAL)]
        benchmark = TinyWorld(removed=FAMILY, total=options.images)
        metrics = metrics_of(benchmark, "cpu")
        results = evaluate(rows, benchmark, metrics, sampler=sampler, on_progress=on_progress).as_json()
        decides, second = judges_of(source, "cpu")
        attacked = {}
        for attack in attacks:
            assault = AttackRun(
                folder=work / "attacks" / attack.name,
                erased=source.variants[0],
                concepts=run.concepts,
                attack=attack,
                sampler=sampler,
                budget=options.budget,
                judge=decides,
                second=second,
                model=DEFAULT_MODEL,
            )
            assault.run(attack_prompts(run.concepts, options.prompts, model=DEFAULT_MODEL), on_progress)
            attacked[attack.name] = {key: assault.as_json()[key] for key in ("protocol", "rows")}
    return {
        "benchmark": "family",
        "version": VERSION,
        "config": {**run.as_json(), "output": ""},
        "fits": [{"concepts": [c.target for c in e.concepts], "seconds": e.seconds} for e in ledger.standing],
        "scores": results["rows"],
        "concepts": results["concepts"],
        "beside": {row: (rate := beside(concepts)) and rate.as_json() for row, concepts in results["concepts"].items()},
        "protocol": results["protocol"],
        "attacks": attacked,
        **provenance(start=began),
    }


def beside(concepts: Mapping[str, Any]) -> Rate | None:
    """Return the retention of tools and vehicles together, from that of each; None if the original shows none."""
    results = [concepts[name] for name in BESIDE if name in concepts]
    n = sum(each["n"] for each in results)
    return Rate(hits=sum(round(each["value"] * each["n"]) for each in results), n=n) if n else None


def summary(record: Mapping[str, Any]) -> str:
    """Return a line a measure and one an attack."""
    scores = record["scores"][ERASED]
    shown = [name for name in scores if name.startswith(("efficacy", "retention"))] + ["clip_score", "fd"]
    lines = [f"{name}: {scores[name]['value']:.3f} of {scores[name]['n']}" for name in shown if scores.get(name)]
    for name, attack in record["attacks"].items():
        shares = [f"{row} {attack['rows'][row]['success'][-1]['value']:.3f}" for row in ROWS]
        lines.append(f"{name}: {', '.join(shares)}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
