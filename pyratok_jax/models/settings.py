"""What configs and commands choose by name, and how the encoder's input is masked."""

import dataclasses

# How codes are predicted from the language model, and what is predicted (`models.alignment`).
HEADS = ("lookup_free", "softmax")
TARGETS = ("straight_through", "fixed")
LPIPS_TRUNKS = ("vgg", "alex")


@dataclasses.dataclass(frozen=True)
class MaskingConfig:
    """Shares of the input that are hidden.

    Attributes:
        frame_ratio: share of the frames after frame 0 that are hidden whole (paper: 0.3).
        spatial_ratio: share of hidden patches at the start of training.
        patch: side of a hidden patch in pixels.
        shuffle_ratio: share of the frames after frame 0 that are permuted among their own places
            before any is hidden (the paper's input is "masked, shuffled"): the encoder must find
            out the order, as it must guess the hidden ones.
        start, end: progress over the whole recipe at the first and the last step of this training,
            within [0, 1]: a later stage continues the cosine where the one before left it.
    """

    frame_ratio: float = 0.3
    spatial_ratio: float = 0.5
    patch: int = 16
    shuffle_ratio: float = 0.0
    start: float = 0.0
    end: float = 1.0
