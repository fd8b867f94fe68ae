"""Plain training loops of the equations of ESD, DUGE and TRCE's second stage, for comparison with the erasers.

Each computes every reference again at every step, one pass for each model and prompt, from the same random draws.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from erasure.backbones import Backbone
from erasure.backbones.conditioning import Conditioning, concatenate
from erasure.closed_form.sentences import SentencePair
from erasure.concept import Concept
from erasure.edits import EditMetadata
from erasure.erasers.duge import DUGE
from erasure.erasers.esd import ESD, trained_by
from erasure.erasers.trce import TRCE, steered
from erasure.losses.attention import EPSILON
from erasure.prompts import preserved_templates
from erasure.training.context import FitContext, History
from erasure.training.draws.prompt_pairs import prompt_pairs
from erasure.training.finetune import below, uniform
from erasure.training.replay import noised
from erasure.training.steering import planned_latents
from erasure.training.trajectories import encoded

CAT = Concept(target="cat", preserve=("dog", "house"))
GUN = Concept(target="gun", anchor="flower", aliases=("pistol",), kind="unsafe")

Note = Callable[[], None]


def student_of(denoiser: nn.Module, trained: Callable[[str], bool]) -> tuple[nn.Module, dict[str, nn.Parameter]]:
    """Return a copy of a denoiser in which only the trained parameters collect gradients, and those."""
    student = copy.deepcopy(denoiser)
    chosen = {}
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(trained(f"unet.{name}"))
        if parameter.requires_grad:
            chosen[f"unet.{name}"] = parameter
    return student, chosen


def said(denoiser: nn.Module, latents: Tensor, timestep: Tensor, states: Conditioning) -> Tensor:
    """Return the prediction of one pass."""
    return denoiser(latents, timestep, encoder_hidden_states=states.states, return_dict=False)[0]


def generators(terms: int, seed: int = 0) -> list[torch.Generator]:
    """Return the generators that `finetune` gives so many terms of a loss."""
    seeds = torch.Generator().manual_seed(seed)
    numbers = [int(torch.randint(2**62, (), generator=seeds)) for _ in range(terms + 1)]
    return [torch.Generator().manual_seed(number) for number in numbers[1:]]


def moved(chosen: Mapping[str, nn.Parameter], backbone: Backbone) -> dict[str, Tensor]:
    """Return the changes of parameters from the model's weights."""
    base = backbone.parameters(chosen.__contains__)
    return {name: (parameter - base[name]).detach() for name, parameter in chosen.items()}


def parts(total: int, at_once: int) -> list[list[int]]:
    """Return the places of a batch, so many at once."""
    return [list(range(start, min(start + at_once, total))) for start in range(0, total, at_once)]


def plain_esd(backbone: Backbone, settings: ESD, history: History, at_once: int, note: Note) -> dict[str, Tensor]:
    """Return the changes of a plain loop of ESD.

    eps(x_t, c) is drawn to eps_0(x_t, "") - eta (eps_0(x_t, c) - eps_0(x_t, "")).
    """
    student, chosen = student_of(backbone.denoiser, trained_by(settings.variant, backbone).__contains__)
    pairs = prompt_pairs(CAT, settings.prompts)
    targets = backbone.encode([target for target, _ in pairs])
    anchors, empty = encoded(backbone, [anchor for _, anchor in pairs]), backbone.unconditional()
    optimiser = torch.optim.Adam(chosen.values(), lr=settings.lr)
    draws, size = generators(2)[0], settings.batch_size
    waiting: list[tuple[Tensor, Tensor, list[int]]] = []
    for _ in range(settings.steps):
        if not waiting:
            waiting = denoised(backbone, student, settings, targets, empty, draws, at_once)
        x, timestep, rows = waiting.pop(0)
        for some in parts(size, at_once):
            target, anchor = (states.select([rows[i] for i in some]) for states in (targets, anchors))
            with torch.no_grad():
                free, bound = (said(backbone.denoiser, x[some], timestep, read) for read in (anchor, target))
            target_output = free - settings.negative_guidance * (bound - free)
            (F.mse_loss(said(student, x[some], timestep, target), target_output) * len(some) / size).backward()
        optimiser.step()
        optimiser.zero_grad()
        note()
    return moved(chosen, backbone)


@torch.no_grad()
def denoised(
    backbone: Backbone,
    student: nn.Module,
    settings: ESD,
    targets: Conditioning,
    empty: Conditioning,
    draws: torch.Generator,
    at_once: int,
) -> list[tuple[Tensor, Tensor, list[int]]]:
    """Return latents at some places of trajectories that the student draws, with their timesteps and prompts."""
    size, alphas = settings.batch_size, backbone.pipe.scheduler.alphas_cumprod.to(backbone.device)
    # The number of the concept, of which there is one, is drawn before that of its prompt.
    rows = [below(1, draws) + below(len(targets), draws) for _ in range(size)]
    places = torch.randperm(settings.sample_steps, generator=draws)[: settings.trajectory_uses].tolist()
    latents = torch.stack([torch.randn(backbone.latent_shape(), generator=draws) for _ in range(size)])
    timesteps, spacing = backbone.schedule.timesteps(settings.sample_steps), len(alphas) // settings.sample_steps
    outputs = {}
    for place in range(max(places) + 1):
        outputs[place], t = latents, timesteps[place]
        following = alphas[(t - spacing).clamp(min=0)]
        steps = []
        for some in parts(size, at_once):
            x, read = latents[some], targets.select([rows[i] for i in some])
            free, bound = (said(student, x, t, each) for each in (empty.expand(len(some)), read))
            noise = free + settings.start_guidance * (bound - free)
            clean = (x - (1 - alphas[t]).sqrt() * noise) / alphas[t].sqrt()
            steps.append(following.sqrt() * clean + (1 - following).sqrt() * noise)
        latents = torch.cat(steps)
    return [(outputs[place], timesteps[place], rows) for place in places]


def plain_duge(backbone: Backbone, settings: DUGE, history: History, at_once: int, note: Note) -> dict[str, Tensor]:
    """Return the changes of a plain loop of DUGE with its defaults, at a first request.

    What attention layers read of the target's prompt is drawn beyond what they read of a prompt without it;
    predictions, readings of keys and values, and weights stay near the original's.
    """
    student, chosen = student_of(backbone.denoiser, settings._trained(backbone).__contains__)
    target = settings._target(CAT, FitContext(backbone=backbone, history=history))
    memory = settings._memory([CAT], FitContext(backbone=backbone, history=history))
    distinct = list(dict.fromkeys(memory.prompts))
    texts = concatenate([backbone.unconditional(), backbone.encode(distinct)])
    kept = [template.format(name) for name in CAT.preserve for template in preserved_templates(CAT.kind)]
    held = backbone.encode(list(dict.fromkeys(["", *kept]))).states
    base = {name: parameter.detach() for name, parameter in backbone.parameters(chosen.__contains__).items()}
    optimiser = torch.optim.AdamW(chosen.values(), lr=settings.lr, weight_decay=settings.weight_decay)
    draws, size = generators(4), settings.batch_size
    for _ in range(settings.steps):
        below(1, draws[0])  # the number of the target, of which there is one
        rows = [below(len(target.latents), draws[0]) for _ in range(size)]
        noisy, timestep, _ = noised(backbone, target.latents[rows].float(), draws[0])
        unlearn(backbone, student, settings, noisy, timestep, target, rows, at_once)
        rows = [below(len(memory), draws[1]) for _ in range(size)]
        dropped = [uniform(draws[1]) < settings.prompt_dropout for _ in range(size)]
        noisy, timestep, _ = noised(backbone, memory.latents[rows].float(), draws[1])
        read_rows = [
            0 if drop else 1 + distinct.index(memory.prompts[row]) for row, drop in zip(rows, dropped, strict=True)
        ]
        for some in parts(size, at_once):
            read = texts.select([read_rows[i] for i in some])
            with torch.no_grad():
                target_output = said(backbone.denoiser, noisy[some], timestep[some], read)
            distance = F.mse_loss(said(student, noisy[some], timestep[some], read), target_output)
            (settings.prior_scale * distance * len(some) / size).backward()
        states = held[[below(len(held), draws[2]) for _ in range(32)]].flatten(0, 1)
        readings = [
            (states @ (weight - base[name]).T).square().sum() / (states @ base[name].T).square().sum()
            for name, weight in chosen.items()
        ]
        (settings.reading_scale * torch.stack(readings).mean()).backward()
        shifts = [(weight - base[name]).flatten() for name, weight in chosen.items()]
        ((settings.reg_scale or 0.0) * torch.cat(shifts).square().mean()).backward()
        nn.utils.clip_grad_norm_(chosen.values(), settings.clip_norm)
        optimiser.step()
        optimiser.zero_grad()
        note()
    return moved(chosen, backbone)


def unlearn(
    backbone: Backbone,
    student: nn.Module,
    settings: DUGE,
    noisy: Tensor,
    timestep: Tensor,
    target: Any,
    rows: Sequence[int],
    at_once: int,
) -> None:
    """Add the gradient of the unlearning loss."""
    target_output: dict[str, list[Tensor]] = {}
    for some in parts(len(rows), at_once):
        spoken, blank = (s.select([rows[i] % len(s) for i in some]) for s in (target.prompts, target.blanks))
        with torch.no_grad():
            seen = []
            for read in (blank, blank, spoken):  # by the model of now once, by the original twice
                with layers_read(backbone.denoiser) as outputs:
                    said(backbone.denoiser, noisy[some], timestep[some], read)
                seen.append(outputs)
        for name, reference in seen[0].items():
            beyond = reference + settings.overshoot * (seen[1][name] - seen[2][name])
            target_output.setdefault(name, []).append(beyond)
    sizes = {name: torch.cat(each).square().mean() + EPSILON for name, each in target_output.items()}
    for number, some in enumerate(parts(len(rows), at_once)):
        spoken = target.prompts.select([rows[i] % len(target.prompts) for i in some])
        with layers_read(student) as outputs:
            said(student, noisy[some], timestep[some], spoken)
        distances = [(outputs[name] - target_output[name][number]).square().mean() / sizes[name] for name in outputs]
        ((settings.unlearn_scale or 0.0) * torch.stack(distances).mean() * len(some) / len(rows)).backward()


@contextmanager
def layers_read(denoiser: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Keep the output of each cross-attention layer of a pass."""
    outputs: dict[str, Tensor] = {}
    with ExitStack() as hooks:
        for name, module in denoiser.named_modules():
            if name.endswith(".attn2"):

                def keep(module: nn.Module, args: Any, output: Tensor, name: str = name) -> None:
                    outputs[name] = output

                hooks.callback(module.register_forward_hook(keep).remove)
        yield outputs


def plain_trce(backbone: Backbone, settings: TRCE, history: History, at_once: int, note: Note) -> dict[str, Tensor]:
    """Return the changes of a plain loop of TRCE's second stage; the first is fitted as usual.

    Predictions for the malicious and the empty prompt are pushed past a hinge between two places that the model before
    the first stage gives; for the empty prompt elsewhere they stay those of the model after it.
    """
    twins = [SentencePair.of(settings.trajectory_frame, name, GUN) for name in GUN.names]
    plan = settings._plan(len(twins), 0)
    context = FitContext(backbone=backbone, history=history)
    latents, nulls = planned_latents([twin.prompt for twin in twins], plan, context)
    metadata = EditMetadata.of("trce", {}, backbone, [GUN], 0)
    with settings._text([GUN], context, metadata).applied_to(backbone.pipe):
        after_first = copy.deepcopy(backbone.denoiser)
    student, chosen = student_of(after_first, steered(backbone).__contains__)
    malicious, safe = (backbone.encode([getattr(twin, it) for twin in twins]) for it in ("prompt", "safe_prompt"))
    empty, timesteps = backbone.unconditional(), backbone.schedule.timesteps(settings.sample_steps)
    optimiser = torch.optim.AdamW(chosen.values(), lr=settings.lr, weight_decay=settings.weight_decay)
    for step in range(plan.steps):
        numbers = plan.of_step(step)
        for some in parts(len(numbers), at_once):
            visits = [plan.malicious[numbers[i]] for i in some]
            z, t = latents[[numbers[i] for i in some]].float(), timesteps[[place for _, place in visits]]
            terms = [i // plan.trajectories for i, _ in visits]
            reads = malicious.select(terms), safe.select(terms), empty.expand(len(some))
            with torch.no_grad():
                of_malicious, of_safe, of_null = (said(backbone.denoiser, z, t, read) for read in reads)
            f_unsafe, f_safe = (of + settings.target_guidance * (of - of_null) for of in (of_malicious, of_safe))
            for read in (reads[0], reads[2]):
                x = said(student, z, t, read)
                near, far = ((x - place).square().mean(dim=(1, 2, 3)) for place in (f_safe, f_unsafe))
                hinge = (near - far + settings.margin).clamp(min=0)
                (settings.beta / 2 * hinge.sum() / len(numbers)).backward()
        size = plan.preserve_batch
        for some in parts(size, at_once):
            places = [step * size + i for i in some]
            z, t = nulls[places].float(), timesteps[[plan.null[i][1] for i in places]]
            read = empty.expand(len(some))
            with torch.no_grad():
                target_output = said(after_first, z, t, read)
            distance = F.mse_loss(said(student, z, t, read), target_output)
            (settings.preserve_weight * distance * len(some) / size).backward()
        optimiser.step()
        optimiser.zero_grad()
        note()
    return moved(chosen, backbone)
