"""The model card of an export: what was removed, what was measured and what was not, and how to load it."""

import json
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.errors import HTTPError
from PIL import Image

from erasure.backbones import backbone_of
from erasure.concept import Concept, normalized, normalized_names
from erasure.edits import weights_of
from erasure.io.text import as_code, in_markdown
from erasure.ledger import Entry, Ledger
from erasure.personalize.folder import PERSONALIZED, Personalized
from erasure.profile import profile_of
from erasure.progress import OnProgress, staged
from erasure.prompts import fill
from erasure.sampling import SamplingSettings, sample_pairs

from ...pipelines.export.folders import folder_of
from ...pipelines.export.formats import Export, Written
from ..images.sheets import side_by_side
from .card_audit import audit_section, last_audit
from .card_results import Result, results_of

BEFORE_AFTER = "before-after.png"
_SHOWN = {
    "object": "a photo of a {}",
    "style": "a picture in the style of {}",
    "identity": "a photo of {}",
    "unsafe": "",  # a card is public
}
_MOST_SHOWN = 3
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_LINK = re.compile(r"https?://[^\s()<>\"]+")
_LICENCE_KEYS = ("license", "license_name", "license_link")


def prompts_of(ledger: Ledger) -> list[str]:
    """Return prompts for the image of before and after: of the last removed and of preserved concepts.

    What is unsafe is not shown.
    """
    removed = [concept for entry in ledger.standing for concept in entry.concepts]
    removed_names = normalized_names(*removed)
    kept = [
        Concept(target=name)
        for concept in removed[-1:]
        for name in concept.preserve
        if normalized(name) not in removed_names
    ]
    shown = [concept for concept in removed if concept.kind != "unsafe"][-_MOST_SHOWN:] + kept[: _MOST_SHOWN - 1]
    return [fill(_SHOWN[concept.kind], concept.target) for concept in shown]


def before_after(
    ledger: Ledger,
    pipe: DiffusionPipeline,
    prompts: Sequence[str],
    sampler: SamplingSettings,
    on_progress: OnProgress | None = None,
) -> Image.Image:
    """Return images of the base and of what stands side by side, seed 0.

    Args:
        ledger: The ledger.
        pipe: Its base.
        prompts: A row each.
        sampler: Sampling settings.
        on_progress: Receives the number of images done.
    """
    pairs = [(prompt, 0) for prompt in prompts]
    before = sample_pairs(pipe, pairs, sampler, staged(on_progress, "images before"))
    with ledger.applied_to(pipe):
        after = sample_pairs(pipe, pairs, sampler, staged(on_progress, "images after"))
    captions = [f"{prompt}, seed 0" for prompt in prompts]
    return side_by_side(["before", "after"], captions, list(zip(before, after, strict=True)))


def model_card(ledger: Ledger, pipe: DiffusionPipeline, written: Written, *, image: bool) -> ModelCard:
    """Return the card of an export.

    Args:
        ledger: The ledger.
        pipe: Its base.
        written: Written export, with its name: "USER/NAME" if it is pushed, else the folder's name.
        image: Whether there is one of before and after.
    """
    results = results_of(ledger)
    licence = _licence_of(ledger.base.name)
    about: dict[str, Any] = {**licence, **_relation(ledger.base.name, written.export)}
    data = ModelCardData(
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=_tags(pipe, written.export),
        model_name=written.name.rpartition("/")[2],
        eval_results=[result.as_eval_result() for result in results] or None,
        **about,
    )
    targets = _listed([concept.target for entry in ledger.standing for concept in entry.concepts])
    base = in_markdown(_shown_base(ledger))
    parts = [
        f"# {base} without {targets}",
        f"![Before and after, with equal prompts and seeds]({BEFORE_AFTER})" if image else "",
        f"{base}, from which the Python library `erasure` {version('erasure')} removed: {targets}.",
        _removed(ledger),
        _measured(results, written.notes),
        audit_section(ledger),
        _not_measured(ledger, pipe, results),
        _loading(ledger, pipe, written),
        _licence(ledger, licence),
    ]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(filter(None, parts)) + "\n")


def _removed(ledger: Ledger) -> str:
    lines = [
        "## What was removed",
        "",
        "| removed | also called | becomes | preserved | method | settings | seed | when (UTC) |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *(_removed_row(entry, concept) for entry in ledger.standing for concept in entry.concepts),
    ]
    if ledger.approximate:
        lines += [
            "",
            f"{', '.join(ledger.approximate)}: trained on top of a removal that was taken back: an approximation.",
        ]
    return "\n".join(lines)


def _removed_row(entry: Entry, concept: Concept) -> str:
    kept = f"{len(concept.preserve)} names" if len(concept.preserve) > 6 else _listed(concept.preserve) or "nothing"
    settings = ", ".join(f"{key}={json.dumps(value)}" for key, value in entry.settings.items()) or "none"
    cells = (
        f"{in_markdown(concept.target)} ({concept.kind})",
        _listed(concept.aliases) or "–",
        in_markdown(concept.anchor) or "nothing",
        kept,
        in_markdown(entry.shown_method),
        as_code(settings),
        str(entry.seed),
        in_markdown(entry.time.removesuffix("+00:00")),
    )
    return f"| {' | '.join(cells)} |"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(in_markdown, names))


def _measured(results: Sequence[Result], notes: Sequence[str]) -> str:
    if not results:
        return "## What was measured\n\nNothing."
    whole = ["", "All of it was measured with the whole change, of which this file holds the most: see below."]
    explained = (
        "Brackets hold 95 % intervals. *Efficacy* is the share of images for prompts of a removed concept in which it"
        " is not seen; *retention* is, of the images in which the original shows what was asked for, the share in"
        " which this model still does."
    )
    return "\n".join(
        [
            "## What was measured",
            "",
            explained,
            *(whole if notes else []),
            "",
            "| | this model | original | images | unit | protocol |",
            "| --- | --- | --- | --- | --- | --- |",
            *(result.row() for result in results),
        ]
    )


def _not_measured(ledger: Ledger, pipe: DiffusionPipeline, results: Sequence[Result]) -> str:
    missing = []
    if _leaves_sentence_vector(ledger, pipe):
        missing.append(
            "How much of what was removed passes by the sentence vector: this model reads it beside the states of the"
            " tokens, and no layer that reads it was edited."
        )
    if not any(result.what.startswith("efficacy") for result in results):
        missing.append("Whether what was removed is gone.")
    if not any(result.what.startswith("retention") for result in results):
        missing.append("Whether what was to stay has stayed.")
    if not any(result.what.startswith("attack") for result in results) and last_audit(ledger) is None:
        missing.append("Whether somebody who tries can bring it back: no attack was run, and no audit made.")
    missing += [
        "Languages other than English, and names of the removed concept that are not listed above.",
        *([] if _relearned(ledger) else ["What further training on images of the removed concept brings back."]),
    ]
    missing += profile_of(ledger.base.name).data.limitations
    return "\n".join(["## What was not measured", "", *(f"- {line}" for line in missing)])


def _relearned(ledger: Ledger) -> bool:
    """Return True if the last audit trained the model on images of each concept."""
    concepts = (last_audit(ledger) or {}).get("concepts", [])
    return bool(concepts) and all(each["probes"].get("relearn", {}).get("readings") for each in concepts)


def _leaves_sentence_vector(ledger: Ledger, pipe: DiffusionPipeline) -> bool:
    """Return True if the model reads a sentence vector by layers of which the removals change none."""
    changed = weights_of(ledger.edit()).changes.keys()
    readers = backbone_of(pipe).sites(reads="pooled").keys()
    return bool(changed and readers) and changed.isdisjoint(readers)


def _loading(ledger: Ledger, pipe: DiffusionPipeline, written: Written) -> str:
    export, name, kind = written.export, written.name, type(pipe).__name__
    base = ledger.base.name if _is_hub_id(ledger.base.name) else "BASE"
    profile = profile_of(ledger.base.name)
    if profile.folder is not None and export.format == "edit":
        base = profile.name  # `erasure.load_model` knows it
    name, base = _in_string(name), _in_string(base)
    during_sampling = export.format == "pipeline" and ledger.during_sampling
    snippet = _RECORDED if during_sampling else _SNIPPETS[export.format]
    transformer = type(backbone_of(pipe).denoiser).__name__
    code = snippet.format(name=name, file=export.file, kind=kind, base=base, transformer=transformer)
    lines = ["## How to load it", "", f"```python\n{code}\n```"]
    if base == "BASE" and "BASE" in code:
        location = profile.data.location
        where = as_code(location) if location else f"the folder of {in_markdown(_shown_base(ledger))}"
        lines += ["", f"`BASE` is {where}, fingerprint `{written.base[:12]}`."]
    if export.guidance is not None:
        lines += ["", "With the guidance beside the weights, whose file is executed:", "", "```python"]
        lines += [_GUIDED.format(name=name, asked=_ASKED[export.guidance]), "```"]
    exactness = [_EXACTNESS[export.format], *written.notes]
    return "\n".join([*lines, "", *exactness])


_SNIPPETS = {
    "pipeline": """import torch
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("{name}", dtype=torch.float32)""",
    "edit": """from erasure import Edit, load_model

pipe = load_model("{base}")
with Edit.load("{file}").applied_to(pipe):
    ...""",
    "lora": """from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("{base}")
pipe.load_lora_weights("{name}", weight_name="{file}", adapter_name="erased")
pipe.set_adapters("erased", 1.0)  # 0.0 is the original""",
    "kohya": """from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("{base}")
pipe.load_lora_weights("{name}", weight_name="{file}", adapter_name="erased")""",
    "checkpoint": """from diffusers import {kind}

# a local copy of this folder; config/ holds what the one file does not
pipe = {kind}.from_single_file("{file}", config="config")""",
}
_SNIPPETS["single-file"] = """# in ComfyUI, in the place of the base's file; or its transformer in diffusers:
import diffusers

transformer = diffusers.{transformer}.from_single_file("{file}")"""
# The folder's own pipeline.py, with the guidance of the removals, is executed.
_RECORDED = _SNIPPETS["pipeline"].replace(", dtype=", ", trust_remote_code=True, dtype=")
_GUIDED = """pipe = DiffusionPipeline.from_pretrained("{name}", custom_pipeline="{name}", trust_remote_code=True)
image = pipe("a cat and a dog", {asked}).images[0]"""
_ASKED = {
    "a-star": 'concepts=["cat", "dog"]',
    "attend-and-excite": 'concepts=["cat", "dog"]',
    "localised": 'concepts=["cat"], preserve=["dog"]',
}
_EXACTNESS = {
    "pipeline": "In float32 the weights are those that the removals were computed to, to the last bit.",
    "edit": "It is applied in float64 and rounded once, and can be taken back bit for bit.",
    "lora": "Where the change is of low rank the images differ from the edited weights' by rounding alone.",
    "kohya": "In ComfyUI and A1111 put the file among the LoRAs; a strength of 1 is the removal, 0 the original.",
    "single-file": "The other tensors are the base's, byte for byte; the changed ones are rounded once to its type.",
    "checkpoint": "The weights have the names of the original release, in float32; ComfyUI and A1111 read the file.",
}


def _licence(ledger: Ledger, licence: Mapping[str, Any]) -> str:
    base = in_markdown(_shown_base(ledger))
    if not licence:
        said = f"The licence of {base} holds. Its card was not at hand: look it up before you pass this on."
    else:
        called = in_markdown(str(licence.get("license_name") or licence["license"]))
        link = str(licence.get("license_link") or "")
        said = f"That of {base}: {f'[{called}]({link})' if _LINK.fullmatch(link) else called}."
    return f"## Licence\n\n{said}"


def _in_string(text: str) -> str:
    """Return a text as it stands within the quotes of a string of Python, in a fenced block."""
    return json.dumps(text)[1:-1].replace("`", "\\x60")


def _licence_of(base: str) -> dict[str, Any]:
    """Return the licence fields of the base's card; none without a card."""
    if licence := profile_of(base).data.licence:
        return {"license": licence}
    if (Path(base) / PERSONALIZED).is_file():
        return _licence_of(Personalized.open(Path(base)).base)
    file = folder_of(base) / "README.md"
    if file.is_file() and not file.read_text(encoding="utf-8", errors="replace").startswith("---"):
        return {}  # no card: a text without fields
    try:
        card = ModelCard.load(file if file.is_file() else base, ignore_metadata_errors=True)
    except (OSError, ValueError, HTTPError):
        return {}
    data = card.data.to_dict()
    return {key: data[key] for key in _LICENCE_KEYS if key in data} if "license" in data else {}


def _relation(base: str, export: Export) -> dict[str, str]:
    if not _is_hub_id(base):
        return {}  # a place on this machine is no name
    adapts = export.format in ("edit", "lora", "kohya")
    return {"base_model": base, "base_model_relation": "adapter" if adapts else "finetune"}


def _is_hub_id(base: str) -> bool:
    return _HUB_ID.fullmatch(base) is not None and not Path(base).is_dir()


def _tags(pipe: DiffusionPipeline, export: Export) -> list[str]:
    family = re.sub(r"(?<=[a-z])(?=[A-Z0-9])", "-", type(pipe).__name__.removesuffix("Pipeline")).lower()
    tags = ["text-to-image", "concept-erasure", family]  # such as "stable-diffusion-xl"
    return [*tags, "lora"] if export.format in ("lora", "kohya") else tags


def _shown_base(ledger: Ledger) -> str:
    name = ledger.base.name
    if title := profile_of(name).data.title:
        return title
    return Path(name).name if Path(name).is_dir() else name
