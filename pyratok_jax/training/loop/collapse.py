"""A warning when a level stops using its codebook."""

from collections.abc import Mapping

PREFIX = "distinct/level_"


class CollapseGuard:
    """Watches the share of different codes that each level uses (`losses.usage.distinct_share`).

    A level whose share stays under the threshold for some logged steps in a row has collapsed, or
    is about to: its tokens say the same everywhere.
    """

    def __init__(self, threshold: float, patience: int):
        """Warn after `patience` logged values in a row under `threshold`; 0 never warns."""
        self.threshold, self.patience = threshold, patience
        self._low: dict[str, int] = {}

    def check(self, metrics: Mapping[str, float]) -> str | None:
        """A warning to show, or None; a level that recovers and falls again is named again."""
        fallen = []
        for name, value in metrics.items():
            if name.startswith(PREFIX):
                self._low[name] = self._low.get(name, 0) + 1 if value < self.threshold else 0
                if self._low[name] == self.patience > 0:
                    fallen.append(f"level {name.removeprefix(PREFIX)} ({value:.1%})")
        if not fallen:
            return None
        return (
            f"codebook collapse: the share of different codes stays under {self.threshold:.1%} in "
            f"{', '.join(fallen)}; raise loss.weights.entropy or lower optimizer.learning_rate"
        )
