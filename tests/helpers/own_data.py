"""A user's own data module, as small as it can be."""

import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader, IterableDataset

from datamodules.batches import Batch


class OwnData(LightningDataModule):
    """Ten batches of four random sequences.

    Args:
        plain: whether a batch is the list `[tokens, label]`, as a `TensorDataset` gives it.
    """

    vocab_size, num_classes, max_length, num_documents = 12, 3, 16, 1

    def __init__(self, plain: bool = False) -> None:
        super().__init__()
        self.plain = plain

    def train_dataloader(self) -> DataLoader:
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(1, self.vocab_size, (40, self.max_length), generator=generator)
        label = torch.arange(40) % self.num_classes

        def collate(examples: list[int]) -> Batch | list[torch.Tensor]:
            example = torch.tensor(examples)
            made = Batch(tokens[example], None, label[example], example)
            return [made.tokens, made.label] if self.plain else made

        return DataLoader(range(40), batch_size=4, collate_fn=collate)

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


class _Stream(IterableDataset):
    def __iter__(self):
        generator = torch.Generator().manual_seed(0)
        while True:
            tokens = torch.randint(1, OwnData.vocab_size, (4, OwnData.max_length), generator=generator)
            yield Batch(tokens, None, tokens[:, 0] % OwnData.num_classes, torch.arange(4))


class EndlessData(OwnData):
    """Batches without end, from loaders without a length."""

    def train_dataloader(self) -> DataLoader:
        return DataLoader(_Stream(), batch_size=None)

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader
