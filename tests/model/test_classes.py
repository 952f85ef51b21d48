import colorsys

import pytest

from cellvit.classes import PANNUKE, PANNUKE_COLORS, classes_from_list, classes_to_list, default_classes
from cellvit.errors import ConfigError


def test_six_classes_are_pannukes_with_the_hues_of_the_published_colours():
    assert default_classes(6) == PANNUKE
    published = ((255, 0, 0), (34, 221, 77), (35, 92, 236), (254, 255, 0), (255, 159, 68))
    for own, theirs in zip(PANNUKE.colors[1:], published, strict=True):
        hues = [colorsys.rgb_to_hsv(*color)[0] * 360 for color in (own, theirs)]
        assert abs((hues[0] - hues[1] + 180) % 360 - 180) < 32


def test_known_names_keep_their_colour_in_any_order():
    classes = default_classes(3, names=["Background", "Dead", "Other"])
    assert classes.colors[1] == PANNUKE_COLORS["Dead"]
    assert len(set(classes.colors)) == 3


@pytest.mark.parametrize("settings", [{"names": ["a"]}, {"colors": [[0, 0, 0]]}])
def test_wrong_numbers_are_refused(settings):
    with pytest.raises(ConfigError, match="for num_nuclei_classes 3"):
        default_classes(3, **settings)


def test_files_say_what_types_were_learnt_on():
    classes = default_classes(3, learnt_on="colon (CoNSeP)")
    stored = classes_to_list(classes)
    assert "learnt_on" not in stored[0]
    assert classes_from_list(stored, source="here") == classes
    assert all("learnt_on" not in entry for entry in classes_to_list(default_classes(3)))
