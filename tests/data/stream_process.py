"""One host of a job, as a process of its own: prints what its batches hold, one line per step.

Arguments: one JSON object with config, seed, batch_size, process_index, process_count, first
(step to resume at, from a grain checkpoint when `checkpoint` is a folder), steps, save_at.
"""

import hashlib
import json
import sys


def main() -> None:
    import grain
    from etils import epath

    from pyratok_jax.data.config import data_config
    from pyratok_jax.data.pipeline import make_loader

    job = json.loads(sys.argv[1])
    loader = make_loader(
        data_config(**job["config"]),
        seed=job["seed"],
        batch_size=job["batch_size"],
        process_index=job.get("process_index", 0),
        process_count=job.get("process_count", 1),
    )
    handler = grain.checkpoint.CheckpointHandler()
    if job.get("first"):
        handler.restore(epath.Path(job["checkpoint"]), item=loader)
        assert loader.step == job["first"]
    for step in range(job.get("first", 0), job["steps"]):
        if step == job.get("save_at"):
            handler.save(epath.Path(job["checkpoint"]), item=loader)
        batch = next(loader)
        rows = [
            [name, hashlib.sha256(video.tobytes()).hexdigest()[:16], caption]
            for name, video, caption in zip(
                batch["ids"], batch["video"], batch["captions"], strict=True
            )
        ]
        print(json.dumps({"step": step, "bucket": batch["bucket"], "rows": rows}), flush=True)
    print(json.dumps({"broken": sorted(loader.broken)}), flush=True)
    loader.close()


if __name__ == "__main__":
    main()
