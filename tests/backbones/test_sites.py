"""Sites: every parameter of a denoiser has a role, and the readers of a stream are declared."""

import pytest

from erasure.backbones import backbone_of
from erasure.backbones.base import Backbone
from tests import tiny


@pytest.fixture(scope="module", params=sorted(tiny.EVERY))
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return backbone_of(tiny.EVERY[request.param]())


def test_sites_are_the_parameters_of_the_denoiser(backbone: Backbone) -> None:
    sites = backbone.sites()
    assert list(sites) == list(backbone.parameters(sites.__contains__))
    assert {f"{name.partition('.')[0]}" for name in sites} <= {"unet", "transformer"}
    assert len(sites) == len(list(backbone.denoiser.parameters()))
    assert all(site.name == name for name, site in sites.items())


def test_a_role_includes_its_parts(backbone: Backbone) -> None:
    for general in {site.role.partition(".")[0] for site in backbone.sites().values()}:
        expected = [n for n, s in backbone.sites().items() if s.role.partition(".")[0] == general]
        assert list(backbone.sites((general,))) == expected


def test_readers_of_the_text_are_as_wide_as_its_states(backbone: Backbone) -> None:
    readers = backbone.sites(reads="text")
    assert readers
    for name, parameter in backbone.parameters(readers.__contains__).items():
        assert parameter.ndim == 2, name
