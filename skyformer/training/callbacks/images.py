"""Sheets of validation images, for tasks whose sequences are images: predicted classes, or predicted pixels."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from lightning import Callback, LightningModule, Trainer
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from skyformer.internals import step_of_metrics
from skyformer.model.masked_tokens import MaskedBatch
from skyformer.training.loggers import TensorBoardLogger

COLUMNS, ROWS = 8, 4
SIDE = 96  # pixels of a picture on the sheet
CAPTION = 18
RIGHT, WRONG = (0, 114, 178), (213, 94, 0)  # blue and vermilion: distinct for colour-blind readers too
FRAME = (150, 150, 150)
Tile = tuple[np.ndarray, tuple[int, int, int], str]  # picture, colour of frame and caption, caption


class ImageSheet(Callback):
    """Add the first images to TensorBoard at each validation.

    `images/val` has captions `label -> prediction`. In pretraining, `images/reconstruction` shows each image, its
    masked pixels in colour, and its predicted pixels.
    """

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        side = getattr(trainer.datamodule, "image_side", 0)
        loggers = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if not side or not loggers or batch_idx or trainer.sanity_checking or not trainer.is_global_zero:
            return
        if isinstance(outputs, MaskedBatch):
            name, sheet = "images/reconstruction", draw_reconstructions(outputs, side)
        else:
            pictures = _pixels(batch.tokens, batch.position, side)[: COLUMNS * ROWS].byte().cpu().numpy()
            name, sheet = "images/val", draw_sheet(pictures, batch.label.cpu(), outputs.argmax(dim=-1).cpu())
        step = step_of_metrics(trainer)
        for logger in loggers:
            logger.experiment.add_image(name, sheet, step, dataformats="HWC")


def _pixels(tokens: Tensor, position: Tensor | None, side: int) -> Tensor:
    """`(B, side, side)`, 0 where tokens were left out."""
    if position is None:
        return tokens.reshape(-1, side, side)
    # Padding is token 0 at position 0, which adds nothing.
    black = tokens.new_zeros(len(tokens), side * side)
    return black.scatter_add(1, position, tokens).reshape(-1, side, side)


def draw_sheet(pictures: np.ndarray, labels: Tensor, predictions: Tensor) -> np.ndarray:
    """`(n, side, side)` uint8 grey pictures → one `(height, width, 3)` uint8 sheet, eight in a row."""
    tiles: list[Tile] = []
    for picture, label, prediction in zip(pictures, labels.tolist(), predictions.tolist(), strict=False):
        is_right = label == prediction
        caption = f"{label} -> {prediction} {'right' if is_right else 'wrong'}"
        tiles.append((picture, RIGHT if is_right else WRONG, caption))
    return _draw(tiles)


def draw_reconstructions(batch: MaskedBatch, side: int) -> np.ndarray:
    """Draw the first eight images as a `(height, width, 3)` uint8 sheet of three rows: original, masked, predicted."""
    tokens, masked, predicted = (
        _pixels(values, batch.position, side)[:COLUMNS].byte().cpu().numpy()
        for values in (batch.tokens, batch.masked.long(), batch.predicted)
    )
    grey, is_masked = np.repeat(tokens[..., None], 3, axis=-1), masked[..., None] > 0
    seen = np.where(is_masked, np.array(WRONG, dtype=np.uint8), grey)
    empty: Tile = (np.full((side, side), 255, dtype=np.uint8), (255, 255, 255), "")
    rows = [("image", grey), ("masked pixels", seen), ("reconstruction", predicted)]
    return _draw(
        [
            (pictures[number], FRAME, caption) if number < len(pictures) else empty
            for caption, pictures in rows
            for number in range(COLUMNS)
        ]
    )


def _draw(tiles: Sequence[Tile]) -> np.ndarray:
    """Eight in a row, each `(side, side)` or `(side, side, 3)` uint8."""
    font = ImageFont.load_default(size=13)
    rows = -(-len(tiles) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (SIDE + 8), rows * (SIDE + CAPTION + 8)), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (picture, colour, caption) in enumerate(tiles):
        left, top = number % COLUMNS * (SIDE + 8) + 4, number // COLUMNS * (SIDE + CAPTION + 8) + 4
        draw.rectangle((left - 2, top - 2, left + SIDE + 1, top + SIDE + 1), fill=colour)
        way = Image.Resampling.BOX if len(picture) > SIDE else Image.Resampling.NEAREST
        sheet.paste(Image.fromarray(picture).resize((SIDE, SIDE), way), (left, top))
        draw.text((left, top + SIDE + 2), caption, fill=colour, font=font)
    return np.asarray(sheet)
