"""What a Pathfinder image is drawn with, for each resolution and level.

Source: the settings that Long Range Arena gave to the public Pathfinder generator (Tay et al. 2021,
`lra_benchmarks/data/pathfinder.py`; generator: Kim*, Linsley* et al., ICLR 2020). Lengths are in pixels of the
final image.
"""

from dataclasses import dataclass, replace
from typing import Literal

Level = Literal["easy", "intermediate", "hard"]
Resolution = Literal[32, 64, 128, 256]

CONTOUR_LENGTH = {"easy": 6, "intermediate": 9, "hard": 14}


@dataclass(frozen=True)
class DrawingSettings:
    """Geometry and contrast of one kind of Pathfinder image.

    Attributes:
        size: side of the square image.
        padding: width of the border that no paddle may enter.
        paddle_length, paddle_thickness: size of one dash of a contour.
        paddle_margins: free space around a paddle; one is drawn for each image.
        seed_distance: between the first paddles of the two target snakes.
        marker_radius: radius of the two marker discs.
        continuity: how strongly a snake prefers to go straight on (larger: straighter).
        snake_contrast, paddle_contrast: a target paddle has their product, a distractor the first alone.
        contour_length: paddles in a target snake.
        distractor_paddles: paddles that all distractors share between them.
    """

    size: int
    padding: int
    paddle_length: int
    paddle_thickness: float
    paddle_margins: tuple[int, ...]
    seed_distance: int
    marker_radius: float
    continuity: float
    snake_contrast: float
    paddle_contrast: float
    contour_length: int
    distractor_paddles: int

    @property
    def distractor_length(self) -> int:
        """Paddles in one distractor snake: a third of a target's."""
        return self.contour_length // 3

    @property
    def num_distractors(self) -> int:
        """Distractor snakes that are tried for; one that finds no room is left out."""
        return self.distractor_paddles // self.distractor_length


# In the order of the fields; level hard.
_HARD = {
    32: DrawingSettings(32, 1, 2, 0.5, (1,), 7, 1.5, 1.0, 2.0, 0.75, 14, 20),
    64: DrawingSettings(64, 1, 5, 1.0, (1,), 12, 2.5, 1.8, 0.8, 1.0, 14, 22),
    128: DrawingSettings(128, 1, 5, 1.5, (2, 3), 20, 3.0, 1.8, 0.9, 1.0, 14, 35),
    256: DrawingSettings(256, 22, 5, 2.0, (3,), 27, 5.0, 1.8, 1.0, 1.0, 14, 30),
}


def drawing_settings(resolution: int, level: str) -> DrawingSettings:
    """Long Range Arena's settings for one resolution and level.

    Raises:
        ValueError: for a resolution or level that the benchmark does not have.
    """
    if resolution not in _HARD:
        raise ValueError(f"resolution={resolution!r} is not one of {sorted(_HARD)}")
    if level not in CONTOUR_LENGTH:
        raise ValueError(f"level={level!r} is not one of {sorted(CONTOUR_LENGTH)}")
    return replace(_HARD[resolution], contour_length=CONTOUR_LENGTH[level])
