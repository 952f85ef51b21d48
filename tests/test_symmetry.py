"""The eight symmetries of the square, checked against coordinates and rotations that can be worked out by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cellvit.errors import ConfigError
from cellvit.geometry.star import ray_directions
from cellvit.geometry.symmetry import VIEWS, Symmetry, symmetries

EIGHT = symmetries(8)
one_of_eight = st.sampled_from(EIGHT)


def matrix(symmetry):
    """Return what the symmetry does to a vector (x, y)."""
    mirrored = np.diag([-1 if symmetry.flip_x else 1, -1 if symmetry.flip_y else 1])
    return mirrored[::-1] if symmetry.transpose else mirrored


@given(one_of_eight, st.integers(1, 7), st.integers(1, 7))
def test_undo_takes_back_apply(symmetry, height, width):
    image = torch.arange(2 * 3 * height * width).view(2, 3, height, width)
    view = symmetry.apply(image)
    assert view.shape[-2:] == ((width, height) if symmetry.transpose else (height, width))
    assert torch.equal(symmetry.undo(view), image)


@given(one_of_eight, st.integers(-3, 3), st.integers(-3, 3))
def test_a_pixel_goes_where_its_coordinates_say(symmetry, x, y):
    image = torch.zeros(7, 7)
    image[3 + y, 3 + x] = 1
    there = matrix(symmetry) @ [x, y]
    assert symmetry.apply(image)[3 + there[1], 3 + there[0]] == 1


@given(one_of_eight)
def test_vectors_turn_with_the_image(symmetry):
    y, x = torch.meshgrid(torch.arange(-3.0, 4), torch.arange(-5.0, 6), indexing="ij")
    field = torch.stack([2 * x + y, y - 3])  # no symmetry of its own
    turned = torch.einsum("ij,jhw->ihw", torch.from_numpy(matrix(symmetry).copy()).float(), symmetry.apply(field))
    torch.testing.assert_close(symmetry.undo_vectors(turned), field)
    torch.testing.assert_close(symmetry.undo_vectors(turned[None].expand(2, -1, -1, -1))[1], field)


@given(one_of_eight, st.integers(1, 16))
def test_directions_are_those_of_the_rays(symmetry, quarter):
    rays = ray_directions(4 * quarter)
    turned = rays @ matrix(symmetry).T
    np.testing.assert_allclose(rays[symmetry.directions(4 * quarter)], turned, atol=1e-9)


def test_the_first_symmetries_are_those_that_are_promised():
    assert symmetries(1) == (Symmetry(),)
    assert symmetries(2) == (Symmetry(), Symmetry(flip_x=True))
    assert set(symmetries(4)) == {Symmetry(False, x, y) for x in (False, True) for y in (False, True)}
    image = torch.arange(4).view(2, 2)
    assert len({tuple(symmetry.apply(image).flatten().tolist()) for symmetry in EIGHT}) == 8
    assert [len(symmetries(count)) for count in VIEWS] == list(VIEWS)


@pytest.mark.parametrize("count", [0, 3, 16, -1, 2.0, True, "4"])
def test_other_numbers_of_views_are_refused(count):
    with pytest.raises(ConfigError, match="use 1"):
        symmetries(count)


def test_rays_that_do_not_fall_onto_each_other_are_refused():
    assert Symmetry(flip_y=True).directions(9).tolist() == [0, 8, 7, 6, 5, 4, 3, 2, 1]
    with pytest.raises(ConfigError, match=r"9 rays .* mirrored .* tta 1"):
        Symmetry(flip_x=True).directions(9)
    assert sorted(Symmetry(flip_x=True).directions(6).tolist()) == list(range(6))
    with pytest.raises(ConfigError, match=r"6 rays .* transposed .* multiple of 4"):
        Symmetry(transpose=True).directions(6)
