"""The loaders of a stage: its training samples in the run's order, its test samples once."""

from __future__ import annotations

from triptych.config import PretrainConfig, RunConfig, TaskConfig
from triptych.data.detection_samples import DetectionSamples
from triptych.data.loading import ResumableLoader, make_loader
from triptych.data.samples import ImageDataset
from triptych.data.sequences import ListOpsDataset
from triptych.seeding import derive_seed
from triptych.tasks.shares import Share

TEST_BATCH = 256
Samples = ImageDataset | ListOpsDataset | DetectionSamples


def train_loader(
    config: RunConfig,
    stage: PretrainConfig | TaskConfig,
    dataset: Samples,
    share: Share,
) -> ResumableLoader:
    """Batches in an order that depends on the seed, the stage and the epoch alone."""
    return make_loader(
        dataset,
        batch_size=min(stage.batch_size, len(dataset)),
        seed=derive_seed(config.seed, "order", str(stage.name)),
        shuffle=True,
        drop_last=True,
        max_batches=config.trainer.limit_batches,
        num_workers=config.data.workers,
        rank=share.rank,
        world_size=share.world_size,
        pieces=share.pieces,
        repeats=stage.repeats if isinstance(stage, TaskConfig) else 1,
        block=config.data.shuffle_blocks,
    )


def test_loader(config: RunConfig, dataset: Samples) -> ResumableLoader:
    """Every test sample once."""
    return shared_test_loader(config, dataset, Share())


def shared_test_loader(config: RunConfig, dataset: Samples, share: Share) -> ResumableLoader:
    """Every test sample once, over all processes."""
    # Images to detect in may be large: no more at once than in training.
    most = config.task.batch_size if isinstance(dataset, DetectionSamples) else TEST_BATCH
    batch = max(1, most // share.world_size) * share.world_size
    # Each process needs a sample of the last batch too.
    while 0 < len(dataset) % batch < share.world_size and batch > share.world_size:
        batch -= share.world_size
    return make_loader(
        dataset,
        batch_size=batch,
        seed=0,
        shuffle=False,
        num_workers=config.data.workers,
        rank=share.rank,
        world_size=share.world_size,
    )
