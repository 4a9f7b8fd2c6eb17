"""The embedded Triton finds in each picture of a batch what it finds in that picture alone, however the batch is split."""

import asyncio
import os

import numpy as np
import pytest

from inference_worker.triton import Triton
from shared import models

CORES = len(os.sched_getaffinity(0))
MODELS = [models.load().get(name) for name in ("small", "small_end2end")]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_a_picture_is_the_same_in_every_batch(triton_url: str, model: models.Model) -> None:
    random = np.random.default_rng(11)
    counts = sorted({2, CORES, CORES + 1, 5, 8} & set(range(2, model.max_batch + 1)))
    pictures = [random.integers(0, 255, model.tensor_bytes, np.uint8).tobytes() for _ in range(max(counts))]

    async def work() -> None:
        triton = Triton(triton_url, 4)
        try:
            alone = [await triton.infer(model, [picture], 10) for picture in pictures]
            for count in counts:
                # Backwards, so that no picture is at the place that it would have by chance.
                batch = await triton.infer(model, pictures[:count][::-1], 10)
                for name, found in batch.items():
                    assert len(found) == count
                    np.testing.assert_allclose(found, np.concatenate([one[name] for one in alone[:count][::-1]]), atol=1e-3)
        finally:
            await triton.close()

    asyncio.run(work())
