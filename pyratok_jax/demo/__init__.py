"""The demo's own small networks and their training."""

# `config.task` -> its `Run`, see `training.registry`.
TASKS = {
    "backbone": "pyratok_jax.demo.backbone_training:run",
    "decoder": "pyratok_jax.demo.decoder_training:run",
    "vision": "pyratok_jax.demo.vision:run",
}
