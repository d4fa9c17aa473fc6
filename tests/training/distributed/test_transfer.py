"""Which clips each process reads, on meshes of many hosts that are not there."""

import dataclasses

import numpy as np
import pytest
from jax.sharding import Mesh

from pyratok_jax.errors import UserError
from pyratok_jax.training.distributed.sharding import AXES
from pyratok_jax.training.distributed.transfer import data_shard


@dataclasses.dataclass(frozen=True)
class Device:
    id: int
    process_index: int
    platform: str = "tpu"
    device_kind: str = "none"
    client: object = None


def mesh(processes, each, **sizes):
    devices = [Device(i, i // each) for i in range(processes * each)]
    grid = np.array(devices, dtype=object).reshape([sizes.get(axis, 1) for axis in AXES])
    return Mesh(grid, AXES)


def shares(mesh, processes, rows):
    return [tuple(data_shard(mesh, rows, process=i)) for i in range(processes)]


def test_rows_over_all_processes_are_read_once():
    assert shares(mesh(4, 2, data=4, fsdp=2), 4, 16) == [(0, 4), (1, 4), (2, 4), (3, 4)]


def test_processes_that_share_clips_read_the_same():
    assert shares(mesh(4, 1, data=2, tensor=2), 4, 8) == [(0, 2), (0, 2), (1, 2), (1, 2)]
    # Too few clips for all: heights are split over the processes, and each pair reads one clip.
    assert shares(mesh(4, 1, data=2, spatial=2), 4, 2) == [(0, 2), (0, 2), (1, 2), (1, 2)]
    assert shares(mesh(4, 1, data=2, spatial=2), 4, 8) == [(0, 4), (1, 4), (2, 4), (3, 4)]


def test_one_process_reads_all():
    assert shares(mesh(1, 8, data=8), 1, 8) == [(0, 1)]


def test_batches_that_do_not_split_are_refused():
    with pytest.raises(UserError, match="config.batch_size 6 does not split"):
        data_shard(mesh(4, 1, data=4), 6, process=0)
