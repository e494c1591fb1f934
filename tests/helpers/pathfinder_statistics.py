"""What a set of 32 × 32 Pathfinder images looks like in numbers, to tell two generators apart.

Every statistic is a mean of one number per image, so that its standard error is known and two samples can be compared.
"""

import numpy as np

from datamodules.pathfinder.paddles import _draw_markers

SIDE = 32
BINS = 8
GRID = 4
MARKER_RADIUS = 1.5
HALFWAY = (22, 93, 199, 202, 220)  # values that have about twice or no pixels where a contrast is rounded otherwise
AT_THE_EDGE = (59, 64, 112, 183, 250)  # values of markers that the image's edge cuts off, and of nothing else
SEPARATION = 3  # pixels; the discs' bright cores, 3 x 3 each, never lie nearer without covering each other
Summary = dict[str, dict[str, float]]


def find_markers(images: np.ndarray) -> np.ndarray:
    """Centres of the two discs in each image, `(n, 2, 2)` as (row, column), the better match first.

    Paddles are one or two pixels thin, so only a disc fills all nine pixels around its centre. The smaller of picture
    and template is summed, since a bright crossing of paddles must not count for more than a disc does.
    """
    templates = _draw_markers(MARKER_RADIUS)
    middle = len(templates) // 2
    template = templates[middle, middle]
    core = template[middle - 1 : middle + 2, middle - 1 : middle + 2]
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1)))
    score = np.zeros(images.shape)
    for row, column in np.ndindex(core.shape):
        score += np.minimum(padded[:, row : row + SIDE, column : column + SIDE], core[row, column])
    rows, columns = np.mgrid[:SIDE, :SIDE]
    found = []
    for _ in range(2):
        best = score.reshape(len(images), -1).argmax(axis=1)
        row, column = (part[:, None, None] for part in np.divmod(best, SIDE))
        score[np.maximum(abs(rows - row), abs(columns - column)) < SEPARATION] = -1
        found.append(np.stack([row, column], axis=-1)[:, 0, 0])
    return np.stack(found, axis=1)


def statistics(images: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """One number per image for each name; the distances by label have as many as there are such images."""
    flat = images.reshape(len(images), -1)
    markers = find_markers(images)
    distance = np.linalg.norm(markers[:, 0] - markers[:, 1], axis=1)
    from_centre = np.linalg.norm(markers - (SIDE - 1) / 2, axis=2)
    cell = markers[..., 0] // (SIDE // GRID) * GRID + markers[..., 1] // (SIDE // GRID)
    return {
        "nonzero": (flat > 0).mean(axis=1),
        **{f"intensity_{i}": (flat // (256 // BINS) == i).mean(axis=1) for i in range(BINS)},
        **{f"value_{value}": (flat == value).mean(axis=1) for value in HALFWAY},
        "values_at_the_edge": np.isin(flat, AT_THE_EDGE).mean(axis=1),
        **{f"markers_in_{i // GRID}_{i % GRID}": (cell == i).mean(axis=1) for i in range(GRID**2)},
        "nearest_to_centre": from_centre.min(axis=1),  # a snake's first end, as a rule: tells where snakes start
        "farthest_from_centre": from_centre.max(axis=1),
        "distance": distance,
        "distance_label_0": distance[labels == 0],
        "distance_label_1": distance[labels == 1],
        "label": labels.astype(float),
    }


def summarise(images: np.ndarray, labels: np.ndarray) -> Summary:
    """Mean, standard deviation and number of images of each statistic."""
    return {
        name: {"mean": float(values.mean()), "std": float(values.std(ddof=1)), "n": len(values)}
        for name, values in statistics(images, labels).items()
    }


def compare(ours: Summary, reference: Summary) -> dict[str, float]:
    """Difference of the means over its standard error, for each statistic.

    Raises:
        KeyError: when the two do not hold the same statistics.
    """
    if ours.keys() != reference.keys():
        raise KeyError(f"only in one of the summaries: {sorted(ours.keys() ^ reference.keys())}")
    scores = {}
    for name, theirs in reference.items():
        mine = ours[name]
        error = np.sqrt(mine["std"] ** 2 / mine["n"] + theirs["std"] ** 2 / theirs["n"])
        difference = mine["mean"] - theirs["mean"]
        scores[name] = float(difference / error) if error else np.inf * np.sign(difference) if difference else 0.0
    return scores
