"""The figure of a study."""

import re

import pytest

from dimvl.study.figure import Point, study_svg

LINE = r'<path d="M ([\d.]+) [\d.]+ \nL ([\d.]+) [\d.]+ \n" clip-path=[^>]*stroke-width: 1.6'
"""Of a setting, or a bar of its interval: horizontal places of its ends."""


@pytest.mark.parametrize("places", [(100, 200), (100, 3000)])
def test_equal_points_of_two_settings_stand_side_by_side(places):
    points = [Point(x, 0.5, 0.4, 0.6) for x in places]
    drawn = study_svg({"a": points, "b": points}, "labels", "overall")
    first, second = [ends for ends in re.findall(LINE, drawn) if ends[0] != ends[1]]
    assert 2 < float(second[0]) - float(first[0]) < 10
    assert 2 < float(second[1]) - float(first[1]) < 10


def test_settings_of_a_single_point_stand_side_by_side():
    drawn = study_svg({name: [Point(600, 0.5, 0.4, 0.6)] for name in "ab"}, "labels", "overall")
    assert len({start for start, end in re.findall(LINE, drawn) if start == end}) == 2
