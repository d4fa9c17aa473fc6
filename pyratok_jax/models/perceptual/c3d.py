"""C3D (arXiv 1412.0767) with the classifier of UCF-101, for the Inception score of videos."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

FRAMES, SIDE, CLASSES = 16, 112, 101
# Name and outputs of the convolutions; a number is the frames' stride of a max-pool.
LAYERS: tuple[tuple[str, int] | int, ...] = (
    ("conv1a", 64), 1, ("conv2a", 128), 2, ("conv3a", 256), ("conv3b", 256), 2,
    ("conv4a", 512), ("conv4b", 512), 2, ("conv5a", 512), ("conv5b", 512), 2,
)  # fmt: skip
_HIDDEN = 4096
_FLAT = 512 * 4 * 4  # Of the last pool, (1, 4, 4): its windows begin at the first row.


class C3D(nnx.Module):
    """The network, without dropout, and the mean clip that is subtracted from its input."""

    def __init__(self, *, rngs: nnx.Rngs, hidden: int = _HIDDEN):
        """Build with random weights; `weights_conversion.c3d` has published ones.

        Args:
            rngs: for the parameters.
            hidden: width of the two hidden linear layers; 4,096 in published weights.
        """
        convolutions, channels = {}, 3
        for layer in LAYERS:
            if isinstance(layer, tuple):
                name, outputs = layer
                convolutions[name] = nnx.Conv(channels, outputs, (3, 3, 3), rngs=rngs)
                channels = outputs
        self.convolutions = nnx.Dict(convolutions)
        self.fc6 = nnx.Linear(_FLAT, hidden, rngs=rngs)
        self.fc7 = nnx.Linear(hidden, hidden, rngs=rngs)
        self.fc8 = nnx.Linear(hidden, CLASSES, rngs=rngs)
        self.mean = nnx.Param(jnp.zeros((FRAMES, SIDE, SIDE, 3), jnp.float32))

    def __call__(self, videos: Float[Array, "n 16 112 112 3"]) -> Float[Array, "n 101"]:
        """Logits of videos of RGB pixels, 0 to 255; the network was trained on BGR less a mean."""
        x = videos[..., ::-1] - self.mean[...]
        for layer in LAYERS:
            if isinstance(layer, tuple):
                x = jax.nn.relu(self.convolutions[layer[0]](x))
            else:
                window = (layer, 2, 2)
                # An odd side ends with a window of one row, as in Caffe and Chainer.
                x = nnx.max_pool(x, window, strides=window, padding="SAME")
        # The published matrix takes channels first.
        x = jnp.moveaxis(x, -1, 1).reshape(len(x), -1)
        x = jax.nn.relu(self.fc6(x))
        return self.fc8(jax.nn.relu(self.fc7(x))).astype(jnp.float32)
