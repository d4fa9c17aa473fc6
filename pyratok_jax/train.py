"""Train a tokenizer, or the small backbone, as a config file says.

    python -m pyratok_jax.train --config configs/demo.py [--config.key=value ...] [--workdir DIR]

An interrupted training goes on when the same command is given again.
"""

import sys

from pyratok_jax.errors import EXIT_INTERRUPTED, UserError, run_cli


def main() -> int:
    """Run one training; returns the exit code."""
    from pyratok_jax.training.config import parse_flags
    from pyratok_jax.training.hosts import join_hosts

    config, workdir = parse_flags(sys.argv, default_config="configs/demo.py")
    if workdir.is_file():
        raise UserError(f"--workdir {workdir} is a file; name a folder")
    join_hosts(config.multi_host)
    if config.task == "backbone":
        from pyratok_jax.training.backbone import run
    elif config.task == "tokenizer":
        from pyratok_jax.training.run import run
    elif config.task == "projector":
        from pyratok_jax.training.projector import run
    elif config.task == "vision":
        from pyratok_jax.training.vision import run
    else:
        raise UserError(
            f"config.task is {config.task!r}, expected tokenizer, backbone, vision or projector"
        )
    outputs = run(config, workdir)
    if outputs is None:
        return EXIT_INTERRUPTED
    width = max(map(len, outputs))
    for name, path in outputs.items():
        print(f"{name:<{width}}  {path}")
    return 0


if __name__ == "__main__":
    run_cli(main)
