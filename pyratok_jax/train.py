"""Train a tokenizer, or the small backbone, as a config file says.

    python -m pyratok_jax.train --config configs/demo.py [--config.key=value ...] [--workdir DIR]

An interrupted training resumes when the same command is given again. Exit codes: 0 finished, 2 a
mistake of the user, 130 stopped by Ctrl-C or SIGTERM with a checkpoint saved, 3 another process of
a run on many hosts was lost or failed, 1 a defect. After 1, 3, 130 and a kill the same command
resumes from the newest checkpoint.
"""

import sys

from pyratok_jax.errors import EXIT_INTERRUPTED, UserError, run_cli
from pyratok_jax.io.cli import say
from pyratok_jax.training.config import parse_command


def main() -> int:
    """Run one training; returns the exit code."""
    config, workdir, dump_to = parse_command(sys.argv, default_config="demo")
    # Heavy imports wait until the command line is known to be sound.
    from pyratok_jax import demo
    from pyratok_jax.assets.programs import keep_programs
    from pyratok_jax.demo.config_check import check_demo_config
    from pyratok_jax.training.checkpoints import locked
    from pyratok_jax.training.config_check import check_config
    from pyratok_jax.training.distributed.coordinator import join_hosts
    from pyratok_jax.training.distributed.heartbeat import heartbeats
    from pyratok_jax.training.loop.monitoring import dump_programs, profiled_steps
    from pyratok_jax.training.registry import TASKS, Run, lookup

    if workdir.is_file():
        raise UserError(f"--workdir {workdir} is a file; name a folder")
    profiled_steps(config.profile_steps)
    run: Run = lookup(TASKS | demo.TASKS, config.task, "task")
    check_config(config)
    check_demo_config(config)
    dumped = dump_programs(dump_to)
    if dumped is None:  # A program from the cache is not dumped.
        keep_programs()
    join_hosts(config.multi_host, config.host_timeout)
    with heartbeats(config.host_timeout, config.step_timeout), locked(workdir):
        outputs = run(config, workdir)
    if outputs is None:
        return EXIT_INTERRUPTED
    if dumped is not None:
        outputs["XLA programs"] = dumped
    width = max(map(len, outputs), default=0)
    for name, path in outputs.items():
        say(f"{name:<{width}}  {path}")
    return 0


if __name__ == "__main__":
    run_cli(main)
