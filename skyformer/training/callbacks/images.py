"""A sheet of validation images with label and prediction, for tasks whose sequences are images."""

from typing import Any

import numpy as np
from lightning import Callback, LightningModule, Trainer
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from skyformer.internals import step_of_metrics
from skyformer.training.loggers import TensorBoardLogger

COLUMNS, ROWS = 8, 4
SIDE = 96  # pixels of a picture on the sheet
CAPTION = 18
RIGHT, WRONG = (0, 114, 178), (213, 94, 0)  # blue and vermilion: distinct for colour-blind readers too


class ImageSheet(Callback):
    """Adds `images/val` to TensorBoard at each validation: the first images, captioned `label -> prediction`."""

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        side = getattr(trainer.datamodule, "image_side", 0)
        loggers = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if not side or not loggers or batch_idx or trainer.sanity_checking or not trainer.is_global_zero:
            return
        pictures = _pixels(batch, side)[: COLUMNS * ROWS].byte().cpu().numpy()
        sheet = draw_sheet(pictures, batch.label.cpu(), outputs.argmax(dim=-1).cpu())
        step = step_of_metrics(trainer)
        for logger in loggers:
            logger.experiment.add_image("images/val", sheet, step, dataformats="HWC")


def _pixels(batch: Any, side: int) -> Tensor:
    """`(B, side, side)`, black where tokens were left out."""
    if batch.position is None:
        return batch.tokens.reshape(-1, side, side)
    # Padding is token 0 at position 0, which adds nothing.
    black = batch.tokens.new_zeros(len(batch.tokens), side * side)
    return black.scatter_add(1, batch.position, batch.tokens).reshape(-1, side, side)


def draw_sheet(pictures: np.ndarray, labels: Tensor, predictions: Tensor) -> np.ndarray:
    """`(n, side, side)` uint8 grey pictures → one `(height, width, 3)` uint8 sheet, eight in a row."""
    font = ImageFont.load_default(size=13)
    rows = -(-len(pictures) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (SIDE + 8), rows * (SIDE + CAPTION + 8)), "white")
    draw = ImageDraw.Draw(sheet)
    for number, picture in enumerate(pictures):
        left, top = number % COLUMNS * (SIDE + 8) + 4, number // COLUMNS * (SIDE + CAPTION + 8) + 4
        label, prediction = int(labels[number]), int(predictions[number])
        colour = RIGHT if label == prediction else WRONG
        draw.rectangle((left - 2, top - 2, left + SIDE + 1, top + SIDE + 1), fill=colour)
        way = Image.Resampling.BOX if len(picture) > SIDE else Image.Resampling.NEAREST
        sheet.paste(Image.fromarray(picture).resize((SIDE, SIDE), way), (left, top))
        text = f"{label} -> {prediction} {'right' if label == prediction else 'wrong'}"
        draw.text((left, top + SIDE + 2), text, fill=colour, font=font)
    return np.asarray(sheet)
