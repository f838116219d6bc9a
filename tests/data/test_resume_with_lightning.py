"""A resumed Lightning run sees the batches that the interrupted one would have seen.

The position must travel in the data module's state: Lightning restores a loader's own state
only in the middle of an epoch, and creates iterators before it knows the epoch.
"""

import logging

import pytest
import torch
from torch import nn

from triptych.data import Augmentation, ImageSource, ImageSpec, load_images, make_loader

pl = pytest.importorskip("pytorch_lightning")
logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)


class Images(pl.LightningDataModule):
    def __init__(self, workers):
        super().__init__()
        augmentation = Augmentation(random_resized_crop=(0.5, 1.0), flip=0.5)
        spec = ImageSpec(ImageSource.synthetic, 8, synthetic_images=50, augmentation=augmentation)
        self.loader = make_loader(
            load_images(spec, seed=0).train, batch_size=8, shuffle=True, num_workers=workers
        )

    def train_dataloader(self):
        return self.loader

    def state_dict(self):
        return self.loader.state_dict()

    def load_state_dict(self, state):
        self.loader.load_state_dict(state)


class Model(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)
        self.seen = []

    def training_step(self, batch, _):
        self.seen.append((self.current_epoch, batch.images.clone()))
        return nn.functional.cross_entropy(self.layer(batch.images.flatten(1)), batch.labels)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(folder, workers, *, checkpoint=None, every_n_train_steps=None):
    torch.manual_seed(0)
    saver = pl.callbacks.ModelCheckpoint(
        folder,
        filename="{step}",
        every_n_train_steps=every_n_train_steps,
        every_n_epochs=None if every_n_train_steps else 1,
        save_on_train_epoch_end=not every_n_train_steps,
        save_top_k=-1,
    )
    trainer = pl.Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[saver],
    )
    model = Model()
    trainer.fit(model, datamodule=Images(workers), ckpt_path=checkpoint)
    return model


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
@pytest.mark.filterwarnings("ignore:.*Checkpoint directory.*exists and is not empty.*")
@pytest.mark.filterwarnings("ignore:.*GPU available but not used.*")
@pytest.mark.filterwarnings("ignore:The dirpath has changed.*")
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("every", [1, None])
def test_resumed_run_equals_the_uninterrupted_one(tmp_path, workers, every):
    whole = fit(tmp_path / "whole", workers, every_n_train_steps=every)
    assert [epoch for epoch, _ in whole.seen] == [0] * 5 + [1] * 5 + [2] * 5
    for step in (1, 4, 5, 7, 10) if every else (5, 10):
        path = tmp_path / "whole" / f"step={step}.ckpt"
        resumed = fit(tmp_path / f"from{step}", workers, checkpoint=path, every_n_train_steps=every)
        assert len(resumed.seen) == 15 - step
        for (epoch, images), (other_epoch, other) in zip(
            resumed.seen, whole.seen[step:], strict=True
        ):
            assert epoch == other_epoch
            assert torch.equal(images, other)
        assert torch.equal(resumed.layer.weight, whole.layer.weight)
