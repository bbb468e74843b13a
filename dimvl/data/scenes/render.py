"""Draw the image of a synthetic scene.

Objects are drawn at twice the size and reduced for smooth edges; later ones cover earlier ones. Colour jitter,
background shade, clutter and noise are keyed by seed and image, so an image is reproducible to the byte.
"""

import numpy as np
from PIL import Image, ImageDraw

from dimvl.data.scenes.world import COLOURS, SceneObject, SceneOptions, World, generator_for, outline

_SCALE = 2  # supersampling
_JITTER = 10  # largest change of each colour channel of an object, of 255
_PERIOD = 6.5  # pixels between stripes or dots: the smallest object has three to four


def render(world: World, options: SceneOptions) -> Image.Image:
    """Return the RGB image of `world`, `world.width` x `world.height` pixels."""
    generator = generator_for(options, world.image_id, "picture")
    shade = float(generator.uniform(170, 240))
    background = np.clip(shade + generator.uniform(-8, 8, 3), 0, 255).astype(int)
    image = Image.new("RGB", (world.width * _SCALE, world.height * _SCALE), tuple(background.tolist()))
    _draw_clutter(image, options.clutter, shade, generator)
    for item in world.objects:
        _draw_object(image, item, generator)
    return _with_noise(image.reduce(_SCALE), options.noise, generator)


def _draw_clutter(image: Image.Image, marks: int, shade: float, generator: np.random.Generator) -> None:
    """Draw short grey lines and specks, which are not objects."""
    draw = ImageDraw.Draw(image)
    for _ in range(marks):
        x, y = (generator.random(2) * image.size).tolist()
        grey = int(np.clip(shade - generator.uniform(25, 90), 0, 255))
        if generator.random() < 0.5:
            angle, length = generator.random() * np.pi, generator.uniform(5, 14) * _SCALE
            end = (x + float(np.cos(angle)) * length, y + float(np.sin(angle)) * length)
            draw.line([(x, y), end], fill=(grey, grey, grey), width=_SCALE)
        else:
            radius = float(generator.uniform(0.8, 2.0)) * _SCALE
            draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=(grey, grey, grey))


def _draw_object(image: Image.Image, item: SceneObject, generator: np.random.Generator) -> None:
    """Draw on a tile the size of the object's box, then paste it through the object's outline."""
    colour = np.asarray(COLOURS[item.colour]) + generator.integers(-_JITTER, _JITTER + 1, 3)
    points = outline(item.shape, item.centre, item.extent, item.tilt) * _SCALE - 0.5  # pixel i is centred at i + 0.5
    corner = np.floor(points.min(axis=0)).astype(int)
    size = tuple((np.ceil(points.max(axis=0)).astype(int) - corner + 1).tolist())
    corners = [(x, y) for x, y in (points - corner).tolist()]

    tile = Image.new("RGB", size, _rgb(colour))
    draw = ImageDraw.Draw(tile)
    if item.texture != "plain":
        _draw_texture(draw, size, item.texture, _rgb(_variant(colour, generator)), generator)
    draw.line([*corners, corners[0]], fill=_rgb(colour * 0.55), width=2 * _SCALE)  # one pixel of it is inside
    mask = Image.new("1", size)
    ImageDraw.Draw(mask).polygon(corners, fill=1)
    image.paste(tile, tuple(corner.tolist()), mask)


def _variant(colour: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return a contrasting variant: bright colours become darker, dark ones lighter."""
    brightness = float(colour @ (0.3, 0.59, 0.11))
    darker = brightness > 140 or (brightness > 100 and generator.random() < 0.5)
    return colour * 0.5 if darker else colour + (255 - colour) * 0.65


def _draw_texture(
    draw: ImageDraw.ImageDraw,
    size: tuple[int, ...],
    texture: str,
    colour: tuple[int, ...],
    generator: np.random.Generator,
) -> None:
    period = _PERIOD * _SCALE * float(generator.uniform(0.9, 1.15))
    phase = float(generator.random()) * period
    longest = sum(size)
    if texture == "striped":
        slope = float(generator.choice([-1.0, 0.0, 1.0]))  # lean left, upright, lean right
        for x in np.arange(phase - longest, 2 * longest, period).tolist():
            draw.line([(x, 0), (x + slope * size[1], size[1])], fill=colour, width=round(period * 0.42))
        return
    radius = period * 0.27
    for row, y in enumerate(np.arange(phase - period, size[1] + period, period).tolist()):
        for x in np.arange(phase - period * (1 + row % 2 / 2), size[0] + period, period).tolist():
            draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=colour)


def _with_noise(image: Image.Image, noise: float, generator: np.random.Generator) -> Image.Image:
    if noise == 0:
        return image
    pixels = np.asarray(image, dtype=np.float32)
    pixels = pixels + generator.standard_normal(pixels.shape, dtype=np.float32) * noise
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def _rgb(colour: np.ndarray) -> tuple[int, ...]:
    return tuple(np.clip(np.rint(colour), 0, 255).astype(int).tolist())
