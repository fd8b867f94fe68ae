"""Tables of the README and of docs/, by the name that a page has for each."""

from collections.abc import Callable
from pathlib import Path

from . import ablations, evaluations, images, methods, pieces, removals, sequences, solves, speed, tinyworld

TABLES: dict[str, Callable[[str, Path], str]] = {
    "removal": removals.removal,
    "removal-steps": removals.removal_steps,
    "evaluation": evaluations.evaluation,
    "evaluation-speed": speed.evaluation_speed,
    "continual": sequences.continual,
    "continual-headline": sequences.continual_headline,
    "duge-step": speed.duge_step,
    "a-star-step": speed.a_star_step,
    "several-concepts": images.several_concepts,
    "several-concepts-maps": images.several_concepts_maps,
    "several-concepts-tests": images.several_concepts_tests,
    "localised": images.localised,
    "instances-learned": images.instances_learned,
    "instances-removed": images.instances_removed,
    "trce-stage-1": solves.trce_stage_1,
    "family": evaluations.family,
    "text-states": evaluations.text_states,
    "attacks": evaluations.attacks,
    "searches": evaluations.searches,
    "closed-form": solves.closed_form,
    "closed-form-whole": solves.closed_form_whole,
    "apply-edit": solves.apply_edit,
    "beside-lora": solves.beside_lora,
    "encoding": speed.encoding,
    "trained": speed.trained,
    "processes": speed.processes,
    "ledger": solves.ledger,
    "low-memory": speed.low_memory,
    "startup": speed.startup,
    "tinyworld-quality": tinyworld.tinyworld_quality,
    "tinyworld-oracle": tinyworld.tinyworld_oracle,
    "tinyworld-tokens": tinyworld.tinyworld_tokens,
    "tinyworld-attention": tinyworld.tinyworld_attention,
    "absent": ablations.absent,
    "absent-targets": ablations.absent_targets,
    "absent-settings": ablations.absent_settings,
    "settings": removals.settings,
    "uce-defaults": removals.uce_defaults,
    "uce-places": removals.uce_places,
    "methods": methods.methods,
    "models": methods.models,
    "pieces": pieces.pieces,
    "papers": pieces.papers,
}
"""Each table takes the part after its name on the page, and the folder of results."""
