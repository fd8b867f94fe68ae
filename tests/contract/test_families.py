"""What a family owes that is mostly declared: its declarations are what the model does."""

import copy
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from erasure.backbones import backbone_of, families
from erasure.backbones.attention import AttentionCapture
from erasure.backbones.autoencoder import decoded_pixels, to_autoencoder, to_denoiser
from erasure.backbones.base import Backbone
from erasure.backbones.conditioning import TEXT
from erasure.closed_form.pair_problems import pair_problems
from erasure.closed_form.readers import Places, PromptPair
from erasure.concept import Concept
from erasure.edits import EditMetadata, WeightEdit
from erasure.erasers import eraser_class, eraser_names, make_eraser
from erasure.errors import InputError
from erasure.ledger import Ledger
from erasure.pipelines.export.formats import Export, write_export
from erasure.pipelines.export.loaded_back import check_loads
from erasure.sampling import SamplingSettings, noise, sample, scheduled_prediction, trajectory_latents
from erasure.training.context import FitContext
from tests import tiny_families

PROMPTS = ["a cat", "a dog there"]
NAMES = sorted(tiny_families.BUILDERS)
IMAGES = [name for name in NAMES if name not in ("wan", "ltx", "cogvideox", "hunyuan-video", "mochi")]
# Their own calls combine predictions otherwise, or are guided by an embedding.
NOT_PLAINLY_GUIDED = {"qwen-image", "flux2", "lumina2"}


@cache
def backbone_named(family: str) -> Any:
    return backbone_of(tiny_families.built(family))


@pytest.fixture(params=NAMES)
def backbone(request: pytest.FixtureRequest) -> Any:
    return backbone_named(request.param)


def latents(backbone: Any, n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, *backbone.latent_shape(), generator=torch.Generator().manual_seed(seed))


def predicted(backbone: Any, conditioning: Any) -> Tensor:
    with torch.no_grad():
        return backbone.predict(latents(backbone, len(conditioning)), torch.tensor(500), conditioning)


def fitted(backbone: Any, name: str = "cat") -> WeightEdit:
    """Return a closed form of one prompt in every stream of the text."""
    pair = PromptPair.of("a photo of a {}", name, "dog", "a photo of a dog")
    places = Places(words="all", trailing=0.5, trailing_states=2)
    problems = pair_problems(backbone, {pair: 1.0}, {}, places, reg=1e-3)
    layers = lambda space: list(backbone.sites(reads=space))  # noqa: E731
    return WeightEdit.from_problems(problems, layers, EditMetadata.of("uce", {}, backbone, [Concept(target=name)], 0))


def test_it_is_a_backbone_of_its_family_with_a_site_for_each_parameter(backbone: Any) -> None:
    assert isinstance(backbone, Backbone)
    assert isinstance(backbone.schedule, backbone.schedule_kind)
    assert ("images" in backbone.abilities) == (backbone.family in IMAGES)
    assert backbone.family in NAMES
    assert set(backbone.covered) <= set(families())
    sites = backbone.sites()
    assert len(sites) == len(list(backbone.denoiser.parameters()))
    assert backbone.fingerprint() == backbone_of(tiny_families.built(backbone.family)).fingerprint()


def test_readers_are_the_layers_whose_input_depends_on_the_text_alone(backbone: Any) -> None:
    seen: dict[str, list[Tensor]] = {}
    layers = {name: module for name, module in backbone.denoiser.named_modules() if isinstance(module, nn.Linear)}
    with ExitStack() as hooks, torch.no_grad():
        for name, layer in layers.items():
            keep = lambda _, args, name=name: seen.setdefault(name, []).append(args[0].detach())  # noqa: E731
            hooks.callback(layer.register_forward_pre_hook(keep).remove)
        for seed, timestep, prompt in ((0, 500, "a cat"), (1, 20, "a cat"), (0, 500, "a dog")):
            backbone.predict(latents(backbone, 1, seed), torch.tensor(timestep), backbone.encode([prompt]))
    once = {name: inputs for name, inputs in seen.items() if len(inputs) == 3}
    of_text = {n for n, (x, other, text) in once.items() if torch.equal(x, other) and not torch.equal(x, text)}
    sites = backbone.sites()
    readers = {site.module.partition(".")[2] for site in sites.values() if site.reads}
    behind = {name for name in layers if backbone.is_text_only(name)}
    assert of_text == readers | behind
    assert not readers & behind


def test_states_move_with_a_name_and_are_read_as_declared(backbone: Any) -> None:
    cat, dog = (backbone.encode([f"a photo of a {name} there"]).streams for name in ("cat", "dog"))
    for space, stream in cat.items():
        moved = (stream.states != dog[space].states).any(-1)[0]
        assert moved.any()
        for tokens, _ in stream.parts():
            named = [i for i, (_, end) in enumerate(tokens.offsets[0]) if end > len("a photo of a ")]
            span = tokens.span(0)
            assert span.start <= named[0] < tokens.ends[0] <= span.stop
            assert bool(moved[span.start : named[0]].any()) != tokens.causal
            assert moved[named[-1]]
            behind = moved[int(tokens.ends[0]) : span.stop]
            assert behind[:1].all()
            assert behind.all() or backbone.family == "wan"  # whose padding is zeros


def test_states_that_are_not_read_have_no_effect(backbone: Any) -> None:
    short, long = PROMPTS[0], " ".join(PROMPTS * 3)
    both = backbone.encode([short, long])
    [tokens] = both.streams[TEXT].tokens
    stop = tokens.span(0).stop
    plain = predicted(backbone, both)
    states = both.states.clone()
    if backbone.family == "aura-flow":  # reads padding, which the pipeline makes zero
        assert not states[0, stop:].any()
        return
    states[0, stop:] += 1.0
    torch.testing.assert_close(predicted(backbone, both.with_states(states)), plain, rtol=1e-5, atol=1e-6)
    states = both.states.clone()
    states[0, stop - 1] += 1.0
    assert not torch.allclose(predicted(backbone, both.with_states(states))[0], plain[0], rtol=1e-4, atol=1e-5)


def test_videos_are_refused_in_one_line(backbone: Any) -> None:
    if "images" in backbone.abilities:
        return
    with pytest.raises(InputError, match=f"sample: expected a model of images, got {backbone.family}, which makes v"):
        sample(backbone.pipe, PROMPTS, [0, 1], SamplingSettings(steps=1))


@pytest.mark.parametrize("family", IMAGES)
def test_the_call_of_the_pipeline_follows_predictions_and_schedule(family: str) -> None:
    backbone = backbone_named(family)
    seeds = [0, 1]
    scale = 1.0 if backbone.family in NOT_PLAINLY_GUIDED else 3.0
    sampled = sample(backbone.pipe, PROMPTS, seeds, SamplingSettings(steps=3, guidance_scale=scale), output="latents")
    start = noise([torch.Generator().manual_seed(seed) for seed in seeds], backbone.latent_shape())
    conditioning, unconditional = backbone.encode(PROMPTS), backbone.unconditional()
    timesteps = backbone.schedule.timesteps(3)
    with torch.no_grad():
        states = trajectory_latents(
            backbone, start, conditioning, unconditional, steps=3, guidance_scale=scale, stops=[2]
        )[2]
        free, bound = (
            scheduled_prediction(backbone, states, timesteps[2], read)
            for read in (unconditional.expand(2), conditioning)
        )
    last = torch.tensor(0.0) if timesteps.is_floating_point() else torch.tensor(0)
    end = backbone.schedule.step(free + scale * (bound - free), states, timesteps[2], last)
    torch.testing.assert_close(end, sampled, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", IMAGES)
def test_images_are_made_alone_as_in_a_batch(family: str) -> None:
    backbone = backbone_named(family)
    settings = SamplingSettings(steps=1, guidance_scale=3.0)
    together = sample(backbone.pipe, PROMPTS, [0, 1], settings, output="latents")
    alone = sample(backbone.pipe, PROMPTS[1:], [1], settings)
    height, width = (side * backbone.pipe.vae_scale_factor for side in backbone.latent_shape()[1:])
    assert alone[0].size == (width, height)
    again = sample(backbone.pipe, PROMPTS[1:], [1], settings, output="latents")
    torch.testing.assert_close(together[1:], again, rtol=1e-4, atol=1e-5)


def test_removals_are_joined_and_undone_bit_for_bit(backbone: Any, tmp_path: Path) -> None:
    pipe = backbone.pipe
    read = {name for name, site in backbone.sites().items() if site.reads}

    def weights(ledger: Ledger | None = None) -> dict[str, Tensor]:
        with ExitStack() as stack:
            if ledger is not None:
                stack.enter_context(ledger.applied_to(pipe))
            return {name: p.detach().clone() for name, p in backbone.parameters(read.__contains__).items()}

    before, cat, boat = weights(), fitted(backbone), fitted(backbone, "boat")
    ledgers = [Ledger.open_or_create(tmp_path / name, pipe, "tiny") for name in ("one", "other", "alone")]
    for ledger, edits in zip(ledgers, ((cat, boat), (boat, cat), (boat,)), strict=True):
        for edit in edits:
            ledger.add(edit)
    one, other, alone = (weights(ledger) for ledger in ledgers)
    assert ledgers[0].verify(pipe) == []
    ledgers[0].undo("001")
    undone, after = weights(ledgers[0]), weights()
    for name in read:
        assert torch.equal(one[name], other[name])
        assert not torch.equal(one[name], before[name])
        assert torch.equal(undone[name], alone[name])
        assert torch.equal(after[name], before[name])


def test_an_exported_lora_is_loaded_back_or_refused(backbone: Any, tmp_path: Path) -> None:
    ledger = Ledger.open_or_create(tmp_path / "ledger", backbone.pipe, "tiny")
    ledger.add(fitted(backbone))
    (tmp_path / "out").mkdir()
    before = backbone.fingerprint()
    if "lora" not in backbone.abilities:
        with pytest.raises(InputError, match=f"lora: expected a pipeline that diffusers loads .*{backbone.family}"):
            write_export(ledger, backbone.pipe, Export(format="lora"), tmp_path / "out")
        return
    write_export(ledger, backbone.pipe, Export(format="lora"), tmp_path / "out")
    assert backbone.fingerprint() == before
    file = tmp_path / "out" / "pytorch_lora_weights.safetensors"
    factors = load_file(file)
    down = next(key for key in factors if key.endswith("lora_A.weight"))
    with pytest.raises(InputError, match=r"^lora: expected .* to load what was written, got another change of"):
        check_loads(backbone.pipe, file, {**factors, down: factors[down] + 1.0})
    assert backbone.fingerprint() == before


def test_a_lora_of_the_readers_loads_as_the_edit_itself(backbone: Any, tmp_path: Path) -> None:
    pipe = backbone.pipe
    if "lora" not in backbone.abilities:
        pytest.skip("diffusers has no LoRA loader for this pipeline")
    states, edit = backbone.encode(PROMPTS), fitted(backbone)
    plain = predicted(backbone, states)
    with edit.applied_to(pipe):
        edited = predicted(backbone, states)
    save_file(edit.as_lora(pipe, rank=32).state_dict, tmp_path / "pytorch_lora_weights.safetensors")
    pipe.load_lora_weights(tmp_path)
    try:
        loaded = predicted(backbone, states)
    finally:
        pipe.unload_lora_weights()
    torch.testing.assert_close(loaded, edited, rtol=1e-4, atol=1e-5)
    assert (edited - plain).abs().max() > 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("family", NAMES)
@pytest.mark.parametrize("name", eraser_names())
def test_every_eraser_fits_the_family_or_says_that_it_does_not(name: str, family: str) -> None:
    backbone = backbone_named(family)
    kind, before = eraser_class(name), backbone.fingerprint()
    concepts, context = [Concept(target="cat", anchor="dog", preserve=("bird",))], FitContext(backbone=backbone)
    if not kind.covers(type(backbone)):
        with pytest.raises(InputError, match=rf"^[\w-]+: expected a model .+, got {family}\. Use another eraser\.$"):
            make_eraser(name, **kind.quick).fit(concepts, context)
        return
    edit = make_eraser(name, **kind.quick).fit(concepts, context)
    assert backbone.fingerprint() == before
    if "images" in backbone.abilities:
        settings = SamplingSettings(steps=2, guidance_scale=3.0)
        plain = sample(backbone.pipe, PROMPTS, [0, 1], settings, output="latents")
        with edit.applied_to(backbone.pipe):
            assert not torch.equal(sample(backbone.pipe, PROMPTS, [0, 1], settings, output="latents"), plain)
        assert torch.equal(sample(backbone.pipe, PROMPTS, [0, 1], settings, output="latents"), plain)


def test_attention_is_captured_without_changing_the_output_or_refused(backbone: Any) -> None:
    conditioning = backbone.encode(PROMPTS[:1])
    if "maps" not in backbone.abilities:
        with pytest.raises(InputError, match=f"model whose attention to words is read, got {backbone.family}"):
            AttentionCapture(backbone=backbone, tokens=[0])
        return
    plain = predicted(backbone, conditioning)
    with AttentionCapture(backbone=backbone, tokens=range(conditioning.states.shape[1])) as capture:
        assert torch.equal(predicted(backbone, conditioning), plain)
    assert capture.maps
    for maps in capture.maps.values():
        assert (maps >= 0).all()
        assert (maps.sum(-1) <= 1 + 1e-5).all()


def test_checkpointing_gives_the_plain_output(backbone: Any) -> None:
    states = backbone.encode(PROMPTS[:1])
    denoiser = copy.deepcopy(backbone.denoiser).train()
    twin = copy.copy(backbone.pipe)
    twin.transformer = denoiser
    both = []
    for on in (False, True):
        denoiser.enable_gradient_checkpointing() if on else denoiser.disable_gradient_checkpointing()
        both.append(backbone_of(twin).predict(latents(backbone, 1), torch.tensor(5), states))
    assert torch.equal(both[0], both[1]) == backbone.checkpoints  # a version of diffusers that mends one fails this


@torch.no_grad()
@pytest.mark.parametrize("family", IMAGES)
def test_latents_are_decoded_as_the_pipeline_does(family: str) -> None:
    pipe, settings = tiny_families.built(family), SamplingSettings(steps=2, guidance_scale=1.0)
    left, [image] = (sample(pipe, ["a cat"], [0], settings, output=form) for form in ("latents", "uint8"))
    pixels = decoded_pixels(pipe.vae, torch.as_tensor(left))
    [again] = pipe.image_processor.postprocess(pixels, output_type="pil")
    assert np.abs(np.asarray(again).astype(int) - np.asarray(image)).max() <= 2
    values = torch.randn(left.shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(to_denoiser(pipe.vae, to_autoencoder(pipe.vae, values)), values)
