"""The one DALI pipeline of track D: encoded picture and affine in, letterboxed uint8 RGB out.

    encoded uint8 [n, longest], length i32 [n, 1] ─▶ sliced ─▶ decoded as it lies ─▶ warped by affine f32 [n, 2, 3] ─▶ images

The affine leads from a pixel of the output to one of the picture as it is stored (pixel centres at halves), so it turns and
mirrors what EXIF says, scales, and places; what lies outside is the letterbox' grey. Bilinear, without a low-pass.

The Python backend runs it on the CPU (`model.py` beside this). For Triton's DALI backend it is serialized on a machine with a
GPU, where `mixed` decodes with the CPU and the GPU together:

    python3 letterbox.py OUT/model.dali WIDTH HEIGHT MAX_BATCH
"""

import sys

from nvidia.dali import fn, pipeline_def, types

GREY = 114


@pipeline_def
def letterbox(width, height, decoder):
    """One picture of the batch. `decoder` is `cpu` or `mixed`."""
    # By name: Triton's inputs are called the same.
    encoded = fn.external_source(name="encoded", device="cpu", dtype=types.UINT8, ndim=1)
    length = fn.external_source(name="length", device="cpu", dtype=types.INT32, ndim=1)
    affine = fn.external_source(name="affine", device="cpu", dtype=types.FLOAT, ndim=2)
    picture = fn.slice(encoded, 0, length, axes=[0])
    pixels = fn.decoders.image(picture, device=decoder, output_type=types.RGB, adjust_orientation=False)
    return fn.warp_affine(pixels, matrix=affine, size=(height, width), fill_value=GREY, interp_type=types.INTERP_LINEAR)


def on_cpu(width, height, max_batch, threads):
    """A pipeline for this process, which runs one batch at a time."""
    pipeline = letterbox(
        width, height, "cpu", batch_size=max_batch, num_threads=threads, device_id=None,
        prefetch_queue_depth=1, exec_async=False, exec_pipelined=False,
    )  # fmt: skip
    pipeline.build()
    return pipeline


def serialize(file, width, height, max_batch):
    """Write the pipeline for the DALI backend. Needs a GPU."""
    letterbox(width, height, "mixed", batch_size=max_batch, num_threads=4, device_id=0).serialize(filename=file)


if __name__ == "__main__":
    serialize(sys.argv[1], *(int(argument) for argument in sys.argv[2:5]))
