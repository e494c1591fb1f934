"""The few shapes that every Pathfinder image is stamped from, drawn once with Pillow.

A paddle is a short line drawn at twice the resolution and reduced with Lanczos. On the finer grid its end has only a
few possible pixels. So small tables hold all paddles, their occupancy masks and the possible places of the next paddle.
"""

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from datamodules.pathfinder.settings import DrawingSettings

SUPERSAMPLING = 2  # the generator's anti-alias factor
_ORIGIN = 64  # any whole pixel coordinate
FREE_BELOW = 77  # an occupancy of 0.3 of 255: from here on a pixel counts as taken


class PaddleTables(NamedTuple):
    """Stamps and step tables for one paddle margin. All windows are centred on the paddle's start.

    Attributes:
        image: `(T, W, W)` uint8, the paddle of each of T distinct ends.
        mask: `(T, W, W)` uint8, the same dilated by the margin; 255 = fully taken.
        stamp_of_degree: `(360,)` int64, row of `image` for the whole-degree orientations -180 … 179.
        footprint: `(T, F, 2)` int64, offsets (y, x) that a paddle of that end takes, its last row repeated.
        can_start: `(T,)` bool, whether a snake may start with a paddle of that end.
        step: `(C, 2)` int64, displacements (y, x) from a pivot to the possible next heads.
        step_angle: `(C,)` float64, orientation of each displacement, radians.
        step_stamp: `(C,)` int64, row of `image` for a paddle drawn from that head back to the pivot.
        margin_disc: `(M, 2)` int64, offsets of a disc whose radius is the margin.
        marker: `(R, R, R, R)` uint8, the marker disc: at which place of a window, then the window.
        margin: pixels.
    """

    image: np.ndarray
    mask: np.ndarray
    stamp_of_degree: np.ndarray
    footprint: np.ndarray
    can_start: np.ndarray
    step: np.ndarray
    step_angle: np.ndarray
    step_stamp: np.ndarray
    margin_disc: np.ndarray
    marker: np.ndarray
    margin: int


def build_tables(settings: DrawingSettings, margin: int) -> PaddleTables:
    """Draw all stamps for one of the margins of `settings`."""
    ends = _possible_ends(settings.paddle_length * SUPERSAMPLING)
    stamp_of_end = {end: row for row, end in enumerate(ends)}
    stamps = [_draw_paddle(settings, margin, end) for end in ends]
    image, mask = (np.stack(layer) for layer in zip(*stamps, strict=True))

    def stamp_at(angle: float) -> int:
        return stamp_of_end[_end_at(settings.paddle_length * SUPERSAMPLING, angle)]

    degrees = np.arange(-180, 180) * np.pi / 180
    footprint = _footprints(mask, settings.paddle_length + margin)
    step = _circle_pixels(settings.paddle_length + margin)
    step_angle = np.arctan2(step[:, 0], step[:, 1])
    return PaddleTables(
        image=image,
        mask=mask,
        stamp_of_degree=np.array([stamp_at(angle) for angle in degrees]),
        footprint=footprint,
        can_start=np.array([_reaches_everywhere(offsets) for offsets in footprint]),
        step=step,
        step_angle=step_angle,
        step_stamp=np.array([stamp_at(_opposite(angle)) for angle in step_angle]),
        margin_disc=np.argwhere(_disc(margin)) - margin,
        marker=_draw_markers(settings.marker_radius),
        margin=margin,
    )


def _opposite(angle: float) -> float:
    return angle + np.pi if angle < 0 else angle - np.pi


def _end_at(radius: int, angle: float) -> tuple[int, int]:
    """Return the end of a line of `radius` on the grid, relative to its start: the generator rounds up, in y and in x.

    Rounding is done at pixel coordinates, where the 1e-16 that cos(π/2) leaves is gone.
    """
    y, x = np.ceil(_ORIGIN + radius * np.sin(angle)), np.ceil(_ORIGIN + radius * np.cos(angle))
    return int(y) - _ORIGIN, int(x) - _ORIGIN


def _possible_ends(radius: int) -> list[tuple[int, int]]:
    """Every grid point within reach of a rounded-up end: a ring a little wider than one pixel."""
    reach = np.arange(-radius, radius + 1)
    return [(y, x) for y in reach.tolist() for x in reach.tolist() if abs(np.hypot(y, x) - radius) < 1.5]


def _circle_pixels(radius: int) -> np.ndarray:
    """Distinct pixels under a circle of `radius` sampled once for each pixel of its arc, `(C, 2)`."""
    angles = np.deg2rad(np.arange(0, 360, 360 / (2 * np.pi * radius)))
    points = np.floor(_ORIGIN + radius * np.stack([np.sin(angles), np.cos(angles)], axis=1))
    return np.unique(points.astype(np.int64), axis=0) - _ORIGIN


def _disc(radius: int) -> np.ndarray:
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    return y**2 + x**2 <= radius**2


def _dilate(picture: np.ndarray, disc: np.ndarray) -> np.ndarray:
    """Maximum of `picture` over `disc` around each pixel; outside counts as nothing."""
    radius = disc.shape[0] // 2
    height, width = picture.shape
    padded = np.pad(picture, radius)
    shifts = [padded[y : y + height, x : x + width] for y, x in np.argwhere(disc)]
    return np.max(shifts, axis=0)


def _reduce(picture: np.ndarray, side: int) -> np.ndarray:
    return np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.LANCZOS))


def _draw_paddle(settings: DrawingSettings, margin: int, end: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    half = settings.paddle_length + int(np.ceil(settings.paddle_thickness)) + margin
    centre = half * SUPERSAMPLING
    canvas = Image.new("L", (2 * centre + 1, 2 * centre + 1))
    line = [(centre, centre), (centre + end[1], centre + end[0])]
    ImageDraw.Draw(canvas).line(line, fill=255, width=round(settings.paddle_thickness * SUPERSAMPLING))
    fine = np.asarray(canvas)
    taken = _dilate(fine, _disc(margin * SUPERSAMPLING))
    return _reduce(fine, 2 * half + 1), _reduce(taken, 2 * half + 1)


def _footprints(mask: np.ndarray, reach: int) -> np.ndarray:
    """Offsets that are wholly taken by each paddle, as `(T, F, 2)`, short lists filled with their last row.

    As in the generator, the footprint is centred one pixel down and right of the paddle's start and cut at `reach`.
    Both affect the possible places of a first paddle.
    """
    half = mask.shape[1] // 2
    offsets = [np.argwhere(stamp == 255) - half + 1 for stamp in mask]
    offsets = [rows[(np.abs(rows) <= reach).all(axis=1)] for rows in offsets]
    longest = max(len(rows) for rows in offsets)
    return np.stack([np.pad(rows, ((0, longest - len(rows)), (0, 0)), mode="edge") for rows in offsets])


def _reaches_everywhere(offsets: np.ndarray) -> bool:
    """Return whether from every pixel of an image at least one of the offsets stays inside it.

    If none does, the generator's dilation is undefined there, and it rejects the orientation. So a snake starts only
    with a paddle whose (shifted) footprint covers its own start. Those paddles point up and to the left.
    """
    side = 2 * int(np.abs(offsets).max()) + 2
    pixels = np.argwhere(np.ones((side, side), dtype=bool))
    reached = pixels[:, None, :] + offsets
    inside = ((reached >= 0) & (reached < side)).all(axis=2)
    return bool(inside.any(axis=1).all())


def _draw_markers(radius: float) -> np.ndarray:
    """The marker disc at each place of an odd window, whose edge is the image's where the disc lies off centre.

    The generator reduces the whole image, so Lanczos weights are cut off at its edges.
    """
    half = int(np.ceil(radius)) + 4  # room for the ringing of Lanczos
    side = 2 * half + 1
    y, x = np.ogrid[: side * SUPERSAMPLING, : side * SUPERSAMPLING]
    markers = np.empty((side, side, side, side), dtype=np.uint8)
    for row, column in np.ndindex(side, side):
        squared = (y - row * SUPERSAMPLING) ** 2 + (x - column * SUPERSAMPLING) ** 2
        inside = squared <= (radius * SUPERSAMPLING) ** 2
        markers[row, column] = _reduce(inside.astype(np.uint8) * 255, side)
    return markers
