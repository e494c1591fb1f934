"""Draw a Pathfinder image from (settings, seed, index), in compiled loops over small stamps.

Two target snakes of `contour_length` paddles start near the centre, and short distractor snakes fill the rest. Two
markers lie on the ends of one snake (label 1) or of two (label 0). Occupancy is stored in 255ths. It excludes the
previous paddle of a snake, so that a snake may touch the paddle it grew from. Own implementation of the procedure of
Kim*, Linsley* et al., "Disentangling neural mechanisms for perceptual grouping", ICLR 2020.
"""

from functools import lru_cache

import numpy as np
from numba import njit

from datamodules.files import PreparedDataError
from datamodules.pathfinder.paddles import FREE_BELOW, PaddleTables, build_tables
from datamodules.pathfinder.settings import DrawingSettings

PADDLE_TRIALS = 3  # one and two retries
DISTRACTOR_TRIALS = 5  # one and four retries
OVERLAP_THRESHOLD = 459  # two occupancies that add up to 1.8 of 255 overlap
CROWDED_BELOW = 0.01  # no further distractor starts when less than this share of the image is free
DEAD_END = 1e-4  # total weight of all next heads below which a snake is stuck
GUESSES = 50
TARGET_TRIALS = 100_000  # far beyond any real need: 32 × 32, hard, takes about 400


def draw_image(settings: DrawingSettings, seed: int, index: int) -> tuple[np.ndarray, int]:
    """Draw the `index`-th image of the stream with this seed.

    Returns:
        The picture, `(size, size)` uint8 with minimum 0 and maximum 255, and its label: 1 when the markers lie on
        the ends of one snake, else 0.

    Raises:
        PreparedDataError: when the settings leave no room for two target snakes.
    """
    rng = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, index, 0]))
    label = int(rng.integers(0, 2))
    margins = settings.paddle_margins
    tables = _tables(settings, margins[int(rng.integers(0, len(margins)))])
    canvas = np.zeros((settings.size, settings.size), dtype=np.float32)
    drawn = _draw(
        rng,
        canvas,
        tables,
        label,
        settings.padding,
        settings.paddle_length,
        settings.seed_distance,
        settings.continuity,
        settings.contour_length,
        settings.snake_contrast * settings.paddle_contrast,
        settings.num_distractors,
        settings.distractor_length,
        settings.snake_contrast,
    )
    if not drawn:
        raise PreparedDataError(f"no two snakes fit in {TARGET_TRIALS:,} tries; settings: {settings}")
    return _to_bytes(canvas), label


@lru_cache
def _tables(settings: DrawingSettings, margin: int) -> PaddleTables:
    return build_tables(settings, margin)


def _to_bytes(canvas: np.ndarray) -> np.ndarray:
    """Stretch to 0 … 255, in float64 as the generator does."""
    picture = canvas.astype(np.float64)
    low, high = picture.min(), picture.max()
    return ((picture - low) * (255 / (high - low)) + 0.5).astype(np.uint8)


@njit(nogil=True, cache=True)
def _draw(
    rng, canvas, tables, label, padding, paddle_length, seed_distance, continuity,
    contour_length, target_contrast, num_distractors, distractor_length, distractor_contrast,
):  # fmt: skip
    mask = np.zeros(canvas.shape, dtype=np.uint8)
    paddles = np.zeros((2, contour_length, 3), dtype=np.int64)
    tips = np.zeros((2, 2), dtype=np.int64)
    for _ in range(TARGET_TRIALS):
        if _grow_targets(rng, mask, padding, tables, paddle_length, seed_distance, continuity, paddles, tips):
            break
    else:
        return False
    for snake in range(2):
        for row in range(contour_length):
            _stamp(canvas, tables.image, paddles[snake, row], target_contrast)
    distractor = np.zeros((distractor_length, 3), dtype=np.int64)
    for _ in range(num_distractors):
        for _ in range(DISTRACTOR_TRIALS):
            trial_mask = mask.copy()
            if _grow_distractor(rng, trial_mask, tables, paddle_length, continuity, distractor):
                mask = trial_mask
                for row in range(distractor_length):
                    _stamp(canvas, tables.image, distractor[row], distractor_contrast)
                break
    origin = rng.integers(0, 2)
    terminal = origin if label == 1 else 1 - origin
    _stamp_marker(canvas, tables.marker, tips[origin, 0], tips[origin, 1])
    _stamp_marker(canvas, tables.marker, paddles[terminal, -1, 1], paddles[terminal, -1, 2])
    return True


@njit(nogil=True, cache=True)
def _grow_targets(rng, mask, padding, tables, paddle_length, seed_distance, continuity, paddles, tips):
    """Two snakes, one paddle of each in turn. `paddles (2, n, 3)` and `tips (2, 2)` are written."""
    heads = np.zeros((2, 2), dtype=np.int64)
    angles = np.zeros(2)
    found, tips[0], heads[0], angles[0] = _seed_in_room(rng, mask, tables, paddle_length, 2 * seed_distance, True)
    if not found:
        return False
    found, tips[1], heads[1], angles[1] = _seed_at_distance(rng, mask, tables, paddle_length, seed_distance, tips[0])
    if not found:
        return False
    for snake in range(2):
        _first_paddle(tables, paddles[snake], tips[snake], angles[snake])
    _border(mask, padding)
    for row in range(1, paddles.shape[1]):
        for snake in range(2):
            heads[snake], angles[snake], found = _extend(
                rng, mask, tables, paddle_length, continuity, paddles[snake], row, heads[snake], angles[snake]
            )
            if not found:
                return False
    # The public generator marks only the second snake's last paddle as occupied; distractors may touch the first one's.
    _merge(mask, tables.mask, paddles[1, -1])
    return True


@njit(nogil=True, cache=True)
def _grow_distractor(rng, mask, tables, paddle_length, continuity, paddles):
    if (mask < FREE_BELOW).mean() < CROWDED_BELOW:
        return False
    found, tip, pivot, angle = _seed_in_room(rng, mask, tables, paddle_length, 1, False)
    if not found:
        return False
    _first_paddle(tables, paddles, tip, angle)
    for row in range(1, len(paddles)):
        pivot, angle, found = _extend(rng, mask, tables, paddle_length, continuity, paddles, row, pivot, angle)
        if not found:
            return False
    _merge(mask, tables.mask, paddles[-1])
    return True


@njit(nogil=True, cache=True)
def _seed_in_room(rng, mask, tables, paddle_length, border, in_centre):
    """A first paddle whose footprint has room: (found, tail, pivot, angle).

    That of the first snake of all lies anywhere in a square `border` from the edge, a distractor's on free pixels.
    """
    height, width = mask.shape
    pivot = np.zeros(2, dtype=np.int64)
    tail = np.zeros(2, dtype=np.int64)
    for _ in range(PADDLE_TRIALS):
        degree = rng.integers(-180, 180)
        angle = degree * np.pi / 180
        stamp = tables.stamp_of_degree[degree + 180]
        if not tables.can_start[stamp]:
            return False, tail, pivot, angle
        footprint = tables.footprint[stamp]
        if in_centre:
            chosen = _central_pixel(rng, mask, footprint, border)
        else:
            chosen = _free_pixel(rng, mask, footprint, border)
        if chosen < 0:
            return False, tail, pivot, angle
        tail[0], tail[1] = chosen // width, chosen % width
        if _pivot_behind(tables.margin, paddle_length, tail, angle, height, width, pivot):
            return True, tail, pivot, angle
    return False, tail, pivot, 0.0


@njit(nogil=True, cache=True)
def _seed_at_distance(rng, mask, tables, paddle_length, distance, first_tail):
    """The second snake's first paddle, its tail `distance` from the first one's: (found, tail, pivot, angle)."""
    height, width = mask.shape
    pivot = np.zeros(2, dtype=np.int64)
    tail = np.zeros(2, dtype=np.int64)
    for _ in range(PADDLE_TRIALS):
        angle = rng.integers(-180, 180) * np.pi / 180
        around = rng.integers(0, 360) * np.pi / 180
        tail[0] = int(np.round(first_tail[0] + distance * np.sin(around)))
        tail[1] = int(np.round(first_tail[1] + distance * np.cos(around)))
        if _pivot_behind(tables.margin, paddle_length, tail, angle, height, width, pivot):
            return True, tail, pivot, angle
    return False, tail, pivot, 0.0


@njit(nogil=True, cache=True)
def _central_pixel(rng, mask, footprint, border):
    """Flat index of a pixel whose footprint lies inside a square `border` from the edge, or -1 where none does."""
    height, width = mask.shape
    top, left = border - footprint[:, 0].min(), border - footprint[:, 1].min()
    bottom, right = height - border - footprint[:, 0].max(), width - border - footprint[:, 1].max()
    if bottom <= top or right <= left:
        return -1
    return rng.integers(top, bottom) * width + rng.integers(left, right)


@njit(nogil=True, cache=True)
def _free_pixel(rng, mask, footprint, border):
    """Flat index of a pixel drawn uniformly from those where the footprint is clear, or -1 where no pixel is clear.

    Guessing first is the same draw as listing all of them, and many times cheaper while there is room.
    """
    height, width = mask.shape
    for _ in range(GUESSES):
        guess = rng.integers(0, height * width)
        if _is_clear(mask, footprint, border, guess // width, guess % width):
            return guess
    free = np.empty(height * width, dtype=np.int64)
    count = 0
    for y in range(height):
        for x in range(width):
            if _is_clear(mask, footprint, border, y, x):
                free[count] = y * width + x
                count += 1
    return free[rng.integers(0, count)] if count else -1


@njit(nogil=True, cache=True)
def _is_clear(mask, footprint, border, y, x):
    """Return whether the footprint at (y, x) is free and off the border; pixels outside the image are ignored."""
    height, width = mask.shape
    for row in range(len(footprint)):
        ny, nx = y + footprint[row, 0], x + footprint[row, 1]
        if ny < 0 or nx < 0 or ny >= height or nx >= width:
            continue
        inside = border <= ny < height - border and border <= nx < width - border
        if not inside or mask[ny, nx] >= FREE_BELOW:
            return False
    return True


@njit(nogil=True, cache=True)
def _pivot_behind(margin, paddle_length, tail, angle, height, width, pivot):
    """Set `pivot` one margin behind the tail; False when it or the head leaves the image."""
    head_y = int(np.ceil(tail[0] + paddle_length * np.sin(angle)))
    head_x = int(np.ceil(tail[1] + paddle_length * np.cos(angle)))
    back = angle + np.pi if angle < 0 else angle - np.pi
    pivot[0] = int(np.ceil(head_y + (paddle_length + margin) * np.sin(back)))
    pivot[1] = int(np.ceil(head_x + (paddle_length + margin) * np.cos(back)))
    head_inside = 0 <= head_y < height and 0 <= head_x < width
    return head_inside and 0 <= pivot[0] < height and 0 <= pivot[1] < width


@njit(nogil=True, cache=True)
def _first_paddle(tables, paddles, tail, angle):
    degree = int(np.round(angle * 180 / np.pi))
    paddles[0, 0] = tables.stamp_of_degree[degree + 180]
    paddles[0, 1], paddles[0, 2] = tail[0], tail[1]


@njit(nogil=True, cache=True)
def _extend(rng, mask, tables, paddle_length, continuity, paddles, row, pivot, angle):
    """Place paddle `row` of a snake; the one before it enters the occupancy. Returns (pivot, angle, found)."""
    reach = paddle_length + 2 * tables.margin
    new_pivot = np.zeros(2, dtype=np.int64)
    new_pivot[0] = int(np.ceil(pivot[0] + reach * np.sin(angle)))
    new_pivot[1] = int(np.ceil(pivot[1] + reach * np.cos(angle)))
    cumulative = _step_weights(mask, tables, continuity, new_pivot, angle)
    if cumulative[-1] < DEAD_END:
        return new_pivot, angle, False
    for _ in range(PADDLE_TRIALS):
        chosen = np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right")
        paddles[row, 0] = tables.step_stamp[chosen]
        paddles[row, 1] = new_pivot[0] + tables.step[chosen, 0]
        paddles[row, 2] = new_pivot[1] + tables.step[chosen, 1]
        if _fits(mask, tables.mask, paddles[row]):
            _merge(mask, tables.mask, paddles[row - 1])
            return new_pivot, tables.step_angle[chosen], True
    return new_pivot, angle, False


@njit(nogil=True, cache=True)
def _step_weights(mask, tables, continuity, pivot, angle):
    """Running sum of cos²(min(continuity·|Δangle|, π/2)) · (1 − dilated occupancy) over the next heads."""
    height, width = mask.shape
    cumulative = np.zeros(len(tables.step))
    total = 0.0
    for row in range(len(tables.step)):
        y, x = pivot[0] + tables.step[row, 0], pivot[1] + tables.step[row, 1]
        turn = abs(tables.step_angle[row] - angle)
        turn = continuity * min(turn, 2 * np.pi - turn)
        if turn < np.pi / 2 and 0 <= y < height and 0 <= x < width:
            total += np.cos(turn) ** 2 * (1 - _dilated(mask, tables.margin_disc, y, x) / 255)
        cumulative[row] = total
    return cumulative


@njit(nogil=True, cache=True)
def _dilated(mask, disc, y, x):
    height, width = mask.shape
    largest = 0
    for row in range(len(disc)):
        ny, nx = y + disc[row, 0], x + disc[row, 1]
        if 0 <= ny < height and 0 <= nx < width:
            largest = max(largest, mask[ny, nx])
    return largest


@njit(nogil=True, cache=True)
def _border(mask, padding):
    size = len(mask)
    mask[:] = 255
    mask[padding : size - padding, padding : size - padding] = 0


@njit(nogil=True, cache=True)
def _window(shape, half, y, x):
    """The part of a window centred at (y, x) that lies in the image: rows and columns, half open."""
    return max(0, y - half), min(shape[0], y + half + 1), max(0, x - half), min(shape[1], x + half + 1)


@njit(nogil=True, cache=True)
def _fits(mask, stamps, paddle):
    stamp, y, x = paddle[0], paddle[1], paddle[2]
    half = stamps.shape[1] // 2
    top, bottom, left, right = _window(mask.shape, half, y, x)
    for row in range(top, bottom):
        for column in range(left, right):
            taken = int(mask[row, column]) + int(stamps[stamp, row - y + half, column - x + half])
            if taken >= OVERLAP_THRESHOLD:
                return False
    return True


@njit(nogil=True, cache=True)
def _merge(mask, stamps, paddle):
    stamp, y, x = paddle[0], paddle[1], paddle[2]
    half = stamps.shape[1] // 2
    top, bottom, left, right = _window(mask.shape, half, y, x)
    for row in range(top, bottom):
        for column in range(left, right):
            mask[row, column] = max(mask[row, column], stamps[stamp, row - y + half, column - x + half])


# As in the generator, a paddle is float32 when it is multiplied by its contrast. This decides the rounding of values
# halfway between two bytes.
@njit(nogil=True, cache=True)
def _stamp(canvas, stamps, paddle, contrast):
    """Draw one paddle: the maximum of the image and `contrast` times the stamp."""
    stamp, y, x = paddle[0], paddle[1], paddle[2]
    half = stamps.shape[1] // 2
    top, bottom, left, right = _window(canvas.shape, half, y, x)
    for row in range(top, bottom):
        for column in range(left, right):
            value = stamps[stamp, row - y + half, column - x + half] / np.float32(255) * np.float32(contrast)
            canvas[row, column] = max(canvas[row, column], value)


@njit(nogil=True, cache=True)
def _stamp_marker(canvas, markers, y, x):
    """Draw one marker disc, cut off at the image's edges as a reduction of the whole image would."""
    half = len(markers) // 2
    centre_y = min(y, half) + max(0, half - (canvas.shape[0] - 1 - y))
    centre_x = min(x, half) + max(0, half - (canvas.shape[1] - 1 - x))
    top, left = y - centre_y, x - centre_x
    for row in range(len(markers)):
        for column in range(len(markers)):
            value = markers[centre_y, centre_x, row, column] / np.float32(255)
            canvas[top + row, left + column] = max(canvas[top + row, left + column], value)
