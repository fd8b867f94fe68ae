"""Transforms and selectors, on weights and gradients of which the answer is known."""

from dataclasses import replace

import pytest
import torch

from erasure.backbones import Backbone, backbone_of
from erasure.backbones.attention import cross_attention_layers
from erasure.backbones.layer_readings import input_moments
from erasure.concept import Concept
from erasure.edits import DenseChange, EditMetadata, WeightEdit
from erasure.edits.changes import exchanged
from erasure.edits.finish.harden import Harden, on_grid
from erasure.edits.finish.keep_top import KeepTop, top_entries
from erasure.edits.finish.minor import Minor, outside
from erasure.erasers.tune import Tune
from erasure.errors import InputError
from erasure.eval.probes.quantise import rounded
from erasure.training.context import FitContext, History, TrainingTask
from erasure.training.draws.noised_images import NoisedImages
from erasure.training.draws.sensitivity import prediction_fisher
from erasure.training.finetune import Optimisation, finetune
from erasure.training.selectors import Selection
from erasure.training.selectors.causal import Causal, indirect_effects
from erasure.training.selectors.cka import (
    Cka,
    alignment,
    chosen_layer,
    end_states_by_layer,
    layer_parameters,
    wording_bias,
)
from erasure.training.selectors.gradient import GradientSaliency, largest
from erasure.training.shape import Shape
from erasure.training.student import Leaf
from erasure.training.transforms.fisher import Damping, Fisher, damping
from erasure.training.transforms.null_space import NullSpace, kept_moments
from erasure.training.transforms.transfer import Regimes, RemovalSpace, Transfer, main_inputs
from tests import tiny

CAT = Concept(target="cat", preserve=("dog", "bird"))
KEY = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"
OUT = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0.weight"


@pytest.fixture
def backbone() -> Backbone:
    return backbone_of(tiny.sd1())


def task_of(backbone: Backbone, *names: str) -> TrainingTask:
    trained = names.__contains__ if names else backbone.sites(("cross",)).__contains__
    return TrainingTask(context=FitContext(backbone=backbone), requests=[CAT], trained=trained)


def draws(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def moment_of(inputs: torch.Tensor) -> torch.Tensor:
    return inputs.double().T @ inputs.double() / len(inputs)


def test_a_hard_projector_leaves_kept_inputs_as_they_were_and_is_idempotent() -> None:
    inputs = draws(20, 3) @ draws(3, 8, seed=1)
    projector = NullSpace(form="hard", kept=1 - 1e-9).projector(moment_of(inputs))
    torch.testing.assert_close(projector @ projector, projector)
    assert (inputs.double() @ projector).abs().max() < 1e-6
    assert torch.linalg.matrix_rank(projector) == 5


def test_a_relaxed_projector_halves_the_step_at_the_relative_energy_rho() -> None:
    energies = torch.tensor([4.0, 1.0, 0.0]).double()
    projector = NullSpace(rho=0.6).projector(torch.diag(energies))
    expected = 0.6 / (0.6 + energies / energies.mean())
    torch.testing.assert_close(projector, torch.diag(expected))
    assert float(NullSpace(rho=0.6).projector(torch.diag(torch.tensor([0.6, 1.4]).double()))[0, 0]) == pytest.approx(
        0.5
    )


@pytest.mark.parametrize("rank", [None, 2])
def test_adam_with_decay_stays_in_the_null_space_exactly(backbone: Backbone, rank: int | None) -> None:
    """The failing alternative, a projected gradient, leaves it: Adam rescales each entry."""
    task = task_of(backbone, KEY)
    transform = NullSpace(form="hard", kept=0.9)
    moment = kept_moments(task)[KEY]
    limit = transform.limiting(task)

    def loss(student, step, generator):
        return (student.weights()[KEY].float() - 1).square().sum()

    settings = Optimisation(steps=3, lr=0.01, rank=rank, weight_decay=0.1)
    limited, free = (
        finetune(backbone, task.trained, loss, settings, limits=limits)[KEY].of(torch.zeros(32, 32))
        for limits in ([limit], [])
    )
    energies, directions = torch.linalg.eigh(moment)
    held = directions[:, energies.cumsum(0) > 0.1 * energies.sum()]
    assert (limited @ held).abs().max() < 1e-6
    assert limited.abs().max() > 1e-4
    assert (free @ held).abs().max() > 1e-4


def test_moments_are_those_of_the_inputs_and_biases_are_held(backbone: Backbone) -> None:
    layer = backbone.component("unet").get_submodule(OUT.removeprefix("unet.").removesuffix(".weight"))
    inputs = [draws(2, 5, 32), draws(1, 3, 32, seed=1)]

    def run() -> None:
        for each in inputs:
            layer(each)

    moment = input_moments(backbone, [OUT, OUT.replace("weight", "bias")], run)
    rows = torch.cat([each.flatten(0, 1) for each in inputs])
    torch.testing.assert_close(moment[OUT], moment_of(rows))
    bias = OUT.replace("weight", "bias")
    limit = NullSpace().limiting(task_of(backbone, OUT, bias))
    step = limit({Leaf(OUT, "weight"): torch.ones(32, 32), Leaf(bias, "weight"): torch.ones(32)})
    assert not step[Leaf(bias, "weight")].any()
    assert step[Leaf(OUT, "weight")].any()


def test_damping_is_one_without_fisher_and_falls_where_it_is_large() -> None:
    torch.testing.assert_close(damping(torch.zeros(3), 0.5), torch.ones(3))
    torch.testing.assert_close(damping(torch.tensor([0.0, 2.0]), 1.0), torch.tensor([1.0, 1 / 3]))
    torch.testing.assert_close(damping(draws(4).abs(), 0.0), torch.ones(4))
    factors = torch.tensor([[1.0, 0.5], [0.2, 0.4]])
    damp = Damping({"w": factors})
    grad = {
        Leaf("w", "weight"): torch.ones(2, 2),
        Leaf("w", "up"): torch.ones(2, 1),
        Leaf("w", "down"): torch.ones(1, 2),
    }
    damped, _ = damp(grad, grad, 0)
    assert torch.equal(damped[Leaf("w", "weight")], factors)
    torch.testing.assert_close(damped[Leaf("w", "up")], torch.tensor([[0.75], [0.3]]))
    torch.testing.assert_close(damped[Leaf("w", "down")], torch.tensor([[0.6, 0.45]]))


def test_the_fisher_is_that_of_the_jacobian(backbone: Backbone) -> None:
    """For the bias of the output layer the Jacobian is the identity: F is the number of pixels."""
    bias = "unet.conv_out.bias"
    fisher = prediction_fisher(task_of(backbone, bias), 400)[bias]
    torch.testing.assert_close(fisher, torch.full((4,), 64.0), rtol=0.25, atol=0)
    assert Fisher(samples=1).prepared(task_of(backbone, bias)) is not None


def space(direction: list[float], gradient: list[float]) -> RemovalSpace:
    return RemovalSpace(directions={"w": torch.tensor(direction)[:, None]}, gradient={"w": torch.tensor([gradient])})


@pytest.mark.parametrize(
    ("gradient", "earlier", "expected"),
    [
        ([0.1, 1.0], [1.0, 0.0], [0.0, 1.0]),  # regime 1: hardly in the earlier space
        ([1.0, 0.1], [-1.0, 0.0], [0.0, 0.1]),  # regime 2: far in it, and against
        ([1.0, 0.1], [1.0, 0.0], [1.0, 0.1]),  # regime 3: far in it, and with
    ],
)
def test_a_gradient_enters_an_earlier_space_only_if_it_helps(
    gradient: list[float], earlier: list[float], expected: list[float]
) -> None:
    leaf = Leaf("w", "weight")
    regimes = Regimes([space([1.0, 0.0], earlier)], 0.5, 0.0)
    corrected, _ = regimes({leaf: torch.tensor([gradient])}, {}, 0)
    torch.testing.assert_close(corrected[leaf], torch.tensor([expected]))
    assert regimes.note() == f"transfer: {0 if expected == gradient else 100}% taken out"


def test_main_inputs_are_the_fewest_that_hold_the_energy() -> None:
    moment = torch.diag(torch.tensor([1.0, 6.0, 3.0]).double())
    assert main_inputs(moment, 0.6).shape == (3, 1)
    assert main_inputs(moment, 0.61).shape == (3, 2)
    assert main_inputs(moment, 1.0).shape == (3, 3)
    torch.testing.assert_close(main_inputs(moment, 0.5).abs()[:, 0], torch.tensor([0.0, 1.0, 0.0]))


def test_transfer_measures_earlier_removals_once(backbone: Backbone, tmp_path) -> None:
    task = task_of(backbone, KEY)
    assert Transfer().prepared(task) is None
    history = History(targets=(Concept(target="gun"),), memory=tmp_path)
    task = replace(task, context=replace(task.context, history=history))
    regimes = [Transfer(images=1, image_steps=2).prepared(task) for _ in range(2)]
    basis = regimes[0]._spaces[0].directions[KEY]
    torch.testing.assert_close(basis.T @ basis, torch.eye(basis.shape[1]), atol=1e-5, rtol=0)
    assert torch.equal(basis, regimes[1]._spaces[0].directions[KEY])
    assert regimes[0]._spaces[0].gradient[KEY].shape == (32, 32)
    step = regimes[0]({Leaf(KEY, "weight"): draws(32, 32)}, {}, 0)[0][Leaf(KEY, "weight")]
    assert step.shape == (32, 32)


def test_the_largest_share_is_exact_and_never_empty() -> None:
    scores = {"a": torch.tensor([[3.0], [1.0]]), "b": torch.tensor([[2.0, 5.0]]), "c": torch.zeros(1, 3)}
    masks = largest(scores, 3 / 7)
    assert sum(int(mask.sum()) for mask in masks.values()) == 3
    assert torch.equal(masks["a"], torch.tensor([[1.0], [0.0]]))
    assert torch.equal(masks["b"], torch.tensor([[1.0, 1.0]]))
    assert "c" not in masks
    assert sum(int(mask.sum()) for mask in largest(scores, 0.01).values()) == 1


@pytest.mark.parametrize("kind", ["row", "entry", "weight-entry"])
def test_saliency_selects_its_share_and_never_a_zero_weight(backbone: Backbone, kind: str) -> None:
    task = task_of(backbone, KEY, OUT)
    zeroed = {KEY: torch.zeros(32, 32)}
    selector = GradientSaliency(kind=kind, share=0.25, batches=1, images=1, image_steps=2, alpha=0.0)
    with exchanged(backbone.parameters(zeroed.__contains__), zeroed):
        selection = selector.selected(task)
    shapes = {name: (32, 1) if kind == "row" else (32, 32) for name in (KEY, OUT)}
    total = sum(torch.Size(shape).numel() for shape in shapes.values())
    assert sum(int(mask.sum()) for mask in selection.masks.values()) == round(0.25 * total)
    assert all(mask.shape == shapes[name] for name, mask in selection.masks.items())
    if kind == "weight-entry":
        assert KEY not in selection.names


def test_patches_take_masks_of_rows_alone() -> None:
    up = {Leaf("w", "up"): torch.ones(2, 3), Leaf("w", "down"): torch.ones(3, 4)}
    rows = Selection(names=frozenset("w"), masks={"w": torch.tensor([[1.0], [0.0]])}).limit()
    assert torch.equal(rows(up)[Leaf("w", "up")], torch.tensor([[1.0] * 3, [0.0] * 3]))
    assert torch.equal(rows(up)[Leaf("w", "down")], up[Leaf("w", "down")])
    entries = Selection(names=frozenset("w"), masks={"w": torch.ones(2, 4)}).limit()
    with pytest.raises(InputError, match=r"shape\.sites: expected a selector of rows for patches"):
        entries(up)


@pytest.mark.parametrize("family", ["sd1", "sd2"])
def test_restoring_no_layer_explains_nothing_and_all_layers_everything(family: str) -> None:
    backbone = backbone_of(tiny.FAMILIES[family]())
    task = task_of(backbone)
    images = NoisedImages(task.context, task.concepts, images=2, image_steps=2)
    batch = images.noised([0, 1], torch.Generator().manual_seed(0))
    layers = tuple(cross_attention_layers(backbone))
    with torch.no_grad():
        effects = indirect_effects(task, batch, [(), layers])
    torch.testing.assert_close(effects[()], torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(effects[layers], torch.ones(2), atol=1e-4, rtol=0)


def test_causal_trains_consecutive_layers_and_refuses_too_many(backbone: Backbone) -> None:
    task = task_of(backbone)
    layers = list(cross_attention_layers(backbone))
    names = Causal(window=2, images=1, image_steps=2).selected(task).names
    chosen = [i for i, layer in enumerate(layers) if any(name.startswith(f"{layer}.") for name in names)]
    assert len(chosen) == 2
    assert chosen[1] == chosen[0] + 1
    with pytest.raises(InputError, match=rf"causal\.window: expected at most {len(layers)}"):
        Causal(window=50, images=1, image_steps=2).selected(task)


def test_wordings_that_differ_by_a_turn_are_one_and_the_earliest_best_layer_is_chosen(backbone: Backbone) -> None:
    states = draws(1, 8, 5)
    turned = states @ torch.linalg.qr(draws(5, 5, seed=1)).Q * 3 + 1
    assert alignment(torch.cat([states, turned])) == pytest.approx(1.0, abs=1e-5)
    assert alignment(torch.cat([states, draws(1, 8, 5, seed=2)])) < 0.9
    concepts, wordings = torch.eye(4).repeat(2, 1, 1), torch.eye(2)[:, None].expand(2, 4, 2)
    assert wording_bias(concepts) == pytest.approx(-1.0)
    assert wording_bias(wordings) == pytest.approx(1.0)
    assert chosen_layer([0.5, 0.9, 0.9, 0.95], [0.2, 0.1, 0.1, 0.3], 1.5) == 1
    assert chosen_layer([0.9, 0.1], [0.5, 0.1], 1.0) == 0, "an empty region is all layers"
    flux = backbone_of(tiny.flux())
    assert len(layers := end_states_by_layer(flux, [["a cat", "a dog"], ["cat", "dog"]])) == 2
    assert layer_parameters(flux, 0, len(layers))[0].startswith("text_encoder_2.encoder.block.0."), "T5, not CLIP"
    task = replace(task_of(backbone), trained=lambda name: name.startswith("text_encoder."))
    names = Cka(wordings=2).selected(task).names
    assert len({name.split(".layers.")[1].partition(".")[0] for name in names}) == 1
    with pytest.raises(
        InputError, match=r"shape\.sites: expected an objective that trains a text encoder, got 'guided'"
    ):
        Tune(**{**Tune.quick, "shape": Shape(sites=Cka())}).fit([CAT], task.context)
    with pytest.raises(InputError, match=r"cka: expected at least three names to compare, got 1"):
        Cka().selected(replace(task, requests=[Concept(target="cat")]))


def test_the_top_entries_are_an_exact_share() -> None:
    delta = torch.tensor([[0.1, -3.0], [2.0, 0.0]])
    assert torch.equal(top_entries(delta, 0.5), torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    assert int(top_entries(draws(20, 10), 0.05).sum()) == 10
    assert not top_entries(delta, 0.0).any()


def edit_of(backbone: Backbone, *names: str) -> WeightEdit:
    weights = backbone.parameters(names.__contains__)
    changes = {name: DenseChange(delta=0.1 * draws(*weights[name].shape, seed=i)) for i, name in enumerate(names)}
    return WeightEdit(changes=changes, metadata=EditMetadata.of("tune", {}, backbone, [CAT], 0))


def test_keep_top_and_ignore_top_part_an_edit_in_two(backbone: Backbone) -> None:
    from erasure.edits.finish.ignore_top import IgnoreTop

    edit = edit_of(backbone, KEY)
    kept, ignored = KeepTop(share=0.1).applied(edit, backbone), IgnoreTop(share=0.1).applied(edit, backbone)
    torch.testing.assert_close(kept.changes[KEY].delta + ignored.changes[KEY].delta, edit.changes[KEY].delta)
    assert KeepTop(share=1.0).applied(edit, backbone) is edit
    assert IgnoreTop(share=0.0).applied(edit, backbone) is edit


def test_minor_takes_the_main_directions_out_of_what_writes_to_the_image(backbone: Backbone) -> None:
    basis = torch.linalg.qr(draws(5, 2).double()).Q
    delta = outside(draws(5, 3).double(), basis)
    assert (basis.T @ delta).abs().max() < 1e-12
    torch.testing.assert_close(outside(delta, basis), delta)
    edit = edit_of(backbone, KEY, OUT, OUT.replace("weight", "bias"))
    finished = Minor(components=3, images=2, image_steps=4).applied(edit, backbone)
    assert finished.changes[KEY] is edit.changes[KEY]
    lost = [
        (edit.changes[name].delta - finished.changes[name].delta).reshape(32, -1)
        for name in edit.changes
        if name != KEY
    ]
    assert torch.linalg.matrix_rank(lost[0], atol=1e-5) == 3
    assert torch.linalg.matrix_rank(torch.cat(lost, dim=1), atol=1e-5) == 3, "weight and bias lose the same directions"
    assert Minor(components=0).applied(edit, backbone) is edit


def test_rounding_with_feedback_is_on_the_grid_and_beats_rounding_to_nearest() -> None:
    weight = draws(6, 12).double()
    inputs = draws(200, 4, seed=1).double() @ draws(4, 12, seed=2).double() + 0.05 * draws(200, 12, seed=3).double()
    moment = moment_of(inputs)
    hardened, nearest = on_grid(weight, moment, 4), rounded(weight, 4)
    torch.testing.assert_close(rounded(hardened, 4), hardened)
    errors = [((each - weight) @ inputs.T).square().sum() for each in (hardened, nearest)]
    assert errors[0] < 0.7 * errors[1]
    torch.testing.assert_close(on_grid(weight, torch.eye(12).double(), 4), nearest)


def test_a_hardened_edit_survives_the_rounding_of_the_probe(backbone: Backbone) -> None:
    edit = edit_of(backbone, KEY, OUT)
    hardened = Harden(bits=4, prompts=2, image_steps=2).applied(edit, backbone)
    for name, parameter in backbone.parameters(edit.changes.__contains__).items():
        weight = hardened.edited(name, parameter.detach())
        torch.testing.assert_close(rounded(weight, 4), weight, atol=1e-6, rtol=1e-5)
    assert Harden(bits=None).applied(edit, backbone) is edit
    with pytest.raises(InputError, match=r"harden\.bits"):
        Harden(bits=1)


@pytest.mark.parametrize("gradients", [("null-space",), ("fisher", "conflict")])
@pytest.mark.parametrize("rank", [None, 2])
def test_transforms_train_weights_and_patches(backbone: Backbone, gradients: tuple[str, ...], rank: int | None) -> None:
    shape = {"keep": {"semantic-noise": 1.0}, "gradients": [{"name": name} for name in gradients]}
    edit = Tune(
        **{
            **Tune.quick,
            "rank": rank,
            "shape": Shape(**{**shape, "gradients": tuple(g["name"] for g in shape["gradients"])}),
        }
    ).fit([CAT], FitContext(backbone=backbone))
    weights = backbone.parameters(edit.changes.__contains__)
    assert any(change.of(weights[name].detach()).any() for name, change in edit.changes.items())
