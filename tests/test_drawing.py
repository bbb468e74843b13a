from math import log

import numpy as np
import pytest
from PIL import Image

from dimvl.drawing import BOX_COLOURS, draw_explanation, draw_heat, draw_regions, heat_of
from dimvl.explanation import Explanation, RegionDrop


def bright_noise() -> Image.Image:
    noise = np.random.default_rng(0).integers(200, 256, (40, 60, 3))
    return Image.fromarray(noise.astype(np.uint8))


def colour_of(index: int) -> tuple[int, ...]:
    return tuple(int(BOX_COLOURS[index][at : at + 2], 16) for at in (1, 3, 5))


def test_a_region_is_drawn_in_its_colour_on_its_edge_in_an_image_three_times_as_large():
    drawn = draw_regions(bright_noise(), [(10, 5, 30, 25), (40, 20, 50, 35)], ["one", "two"], longest_side=180)
    assert drawn.size == (180, 120)
    for point, index in (((30, 45), 0), ((90, 45), 0), ((120, 82), 1), ((150, 82), 1)):
        assert drawn.getpixel(point) == colour_of(index), point
    assert min(drawn.getpixel((60, 60))) > 150  # the inside stays


def test_a_box_outside_the_image_and_a_label_wider_than_it_still_show():
    drawn = draw_regions(bright_noise(), [(-20, -20, 500, 500)], [""], longest_side=240)
    assert {drawn.getpixel(point) for point in ((0, 80), (239, 80), (120, 159), (200, 0))} == {colour_of(0)}
    labelled = draw_regions(bright_noise(), [(40, 10, 50, 20)], ["long " * 60], longest_side=240)
    assert colour_of(0) in [labelled.getpixel((0, y)) for y in range(160)]


def test_the_hottest_region_is_the_clearest_and_a_cold_one_is_veiled():
    image = Image.new("RGB", (60, 60), "black")
    boxes = [(0, 0, 19, 19), (20, 20, 39, 39), (40, 40, 59, 59)]
    heat = draw_heat(image, boxes, {0: 1.0, 1: 0.3, 2: 0.0}, longest_side=60)
    hot, warm, cold = (heat.getpixel((at, at))[0] for at in (10, 30, 50))
    assert hot == 0 < warm < cold
    assert heat.getpixel((50, 50)) == heat.getpixel((40, 50)) == heat.getpixel((50, 10))  # neither light nor frame


def test_images_of_an_input_stand_side_by_side_and_regions_are_clear_by_the_share_that_goes_without_them():
    images = [Image.new("RGB", (60, 60), "black"), Image.new("RGB", (60, 30), "black")]
    places = [((0, 0, 29, 29), 0.4, 0), ((30, 0, 59, 29), 0.1, 1), ((30, 30, 59, 59), -0.2, 0)]
    drops = [RegionDrop(box, "", (), 1.0, drop, image) for box, drop, image in places]
    drawn = draw_explanation(images, Explanation("a star", 0.4, drops), longest_side=240)
    assert drawn.size == (240 + 8 + 240, 240) and drawn.getpixel((244, 100)) == (255, 255, 255)
    all_lost, quarter_lost, more_without = (drawn.getpixel(at)[0] for at in ((100, 100), (460, 100), (220, 220)))
    assert all_lost == 0 < quarter_lost < more_without
    for place in ((20, 220), (180, 60)):
        assert more_without == drawn.getpixel(place)[0], "as clear as where the image has no region"
    colours = [{drawn.getpixel((x, y)) for x in own for y in range(240)} for own in (range(240), range(248, 488))]
    assert all(colour_of(4) in found for found in colours), "the largest drops are written beside their regions"


def test_the_share_that_is_lost_is_the_same_from_probabilities_and_their_logarithms():
    for whole, rest in ((0.4, 0.1), (0.4, 0.4), (0.01, 0.5), (0.9, 0.0)):
        from_logarithms = heat_of(log(whole) - log(max(rest, 1e-30)), log(whole), logarithms=True)
        expected = pytest.approx(max(0, 1 - rest / whole) ** 0.5)
        assert heat_of(whole - rest, whole) == expected and from_logarithms == expected
