"""Training of the demo's small vision network: DINOv3's architecture, taught by VGG16.

DINOv3's own weights are under a licence of theirs and too large for a laptop. This network stands
in for them where nothing better is given: its patches predict the deepest convolutional features of
an ImageNet-trained VGG16 at their place, its class token their mean over the picture.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import PRNGKeyArray
from ml_collections import ConfigDict

from pyratok_jax.checkpoints.partition import module_arrays
from pyratok_jax.checkpoints.pretrained import write_weights
from pyratok_jax.demo.clips import PhasedTask
from pyratok_jax.io.remote import AnyPath
from pyratok_jax.losses.features import cosine
from pyratok_jax.models.dino import Dino, DinoConfig
from pyratok_jax.models.perceptual.lpips import LPIPS
from pyratok_jax.tokenizer import to_model_range
from pyratok_jax.training.loop.contracts import DeviceBatch, LossAndTerms, Progress
from pyratok_jax.training.loop.loop import Trained, train


class VisionSystem(nnx.Module):
    """The network in training, its two heads (not kept), and the frozen teacher."""

    def __init__(self, config: ConfigDict, teacher: LPIPS):
        rngs = nnx.Rngs(config.seed)
        sizes = DinoConfig(**config.model.to_dict())
        self.student = Dino(sizes, rngs=rngs)
        width = teacher.convs[-1].out_features
        self.patch_head = nnx.Linear(sizes.width, width, rngs=rngs)
        self.summary_head = nnx.Linear(sizes.width, width, rngs=rngs)
        self.teacher = teacher


class VisionTask(PhasedTask):
    """The `contracts.Task` of this training."""

    def __init__(self, config: ConfigDict):
        from pyratok_jax.checkpoints.foreign.lpips import load_lpips

        self.config = config
        self.system = VisionSystem(config, load_lpips("vgg"))

    def is_trainable(self, name: str, variable: nnx.Variable) -> bool:
        """Student and heads."""
        return not name.startswith("teacher.")

    def loss(
        self, system: VisionSystem, batch: DeviceBatch, key: PRNGKeyArray, progress: Progress
    ) -> LossAndTerms:
        """1 - cosine between predicted and VGG16's features: of patches, and of their mean."""
        video = to_model_range(batch["video"])
        images = video.reshape(-1, *video.shape[2:])
        target = jax.lax.stop_gradient(system.teacher.features(images)[-1])
        found = system.student(images)
        patches = 1.0 - cosine(system.patch_head(found.patches), target)
        summary = 1.0 - cosine(system.summary_head(found.summary), target.mean(axis=(1, 2)))
        terms = {"patches": patches.mean(), "summary": summary.mean()}
        # What a constant prediction would reach.
        mean = target.mean(axis=(0, 1, 2))
        terms["constant"] = jnp.mean(1.0 - cosine(jnp.broadcast_to(mean, target.shape), target))
        return terms["patches"] + terms["summary"], terms


def run(config: ConfigDict, workdir: AnyPath) -> dict[str, AnyPath] | None:
    """Train the network and write its weights; None when interrupted (and saved).

    Raises:
        UserError: whatever the user can mend.
    """
    task = VisionTask(config)
    trained = train(config, workdir, task)
    if not trained.finished:
        return None
    return {"checkpoint": workdir / "checkpoints", "weights": export(trained, workdir)}


def export(trained: Trained, workdir: AnyPath) -> AnyPath:
    """Write the student's (averaged) weights."""
    weights = trained.state.ema or trained.state.params
    student = trained.partition.merge(weights, trained.frozen).student
    arrays = {name: np.asarray(value) for name, value in module_arrays(student).items()}
    path = workdir / f"{workdir.name}.safetensors"
    write_weights(path, student.config.to_dict(), arrays)
    return path
