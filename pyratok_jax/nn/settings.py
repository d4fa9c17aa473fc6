"""What configs choose of this layer: strides of token grids, and policies of rematerialisation.

Settings of every layer are in modules that load neither JAX nor Flax: commands read them before
they do any work.
"""

Stride = tuple[int, int]

# Published token budgets; for 17x256x256 they give 9,792, 20,480 and 2,448 tokens. They are those
# of a VAE of 4x8x8; `VideoVAEConfig.preset_grids` has them for any other. `fine` is ours: a pyramid
# at about the rate of `uniform` (23,808), for small pictures.
PRESETS: dict[str, tuple[Stride, ...]] = {
    "pyramid": ((1, 32), (2, 16), (4, 16), (4, 8)),
    "uniform": ((4, 8), (4, 8), (4, 8), (4, 8)),
    "compact": ((1, 64), (2, 32), (4, 32), (4, 16)),
    "fine": ((1, 16), (2, 8), (4, 8), (4, 8)),
}
# What `remat.rematerialised` keeps.
POLICIES = ("none", "convs", "stages", "all", "auto")


def check_grids(grids: tuple[Stride, ...], temporal_factor: int, spatial_factor: int) -> None:
    """Refuse strides that no synthesis exists for.

    Raises:
        ValueError: when there is no level, a time stride does not divide the VAE's, or a space
            stride is not a multiple of the VAE's.
    """
    if not grids:
        raise ValueError("grids is empty: at least one level is needed")
    for level, (dt, ds) in enumerate(grids, start=1):
        if dt < 1 or temporal_factor % dt:
            raise ValueError(
                f"level {level}: time stride {dt} must divide the VAE's {temporal_factor}"
            )
        if ds < 1 or ds % spatial_factor:
            raise ValueError(
                f"level {level}: space stride {ds} must be a multiple of the VAE's {spatial_factor}"
            )
