"""One image over several devices: windows are split, keys and values go round a ring, the labels are the same.

    python examples/shard_one_image.py

Without accelerators it makes four devices of the CPU.
"""

import jax

jax.config.update("jax_num_cpu_devices", 4)  # before JAX is used; accelerators are not affected

import numpy as np  # noqa: E402

import gla_jax  # noqa: E402
from gla_jax.tiny_world.scenes import render  # noqa: E402
from gla_jax.tiny_world.vocabulary import CLASSES  # noqa: E402

scene = render(3, 448, 448, "test")
mesh = gla_jax.make_mesh()
alone = gla_jax.Segmenter.from_pretrained("tiny-world")
split = gla_jax.Segmenter.from_pretrained("tiny-world", mesh=mesh)

features, grid = split.window_features(scene.image)
print(f"{grid.count} windows over {mesh.size} devices: {features.sharding.spec}")
for shard in features.addressable_shards:
    print(f"  {shard.device}: {shard.data.shape[0]} windows, {shard.data.nbytes / 2**20:.1f} MiB of features")
same = np.mean(alone(scene.image, CLASSES).labels == split(scene.image, CLASSES).labels)
print(f"{same:.2%} of the labels are those of one device")
