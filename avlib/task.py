"""What `train` asks of an objective, whatever is learned."""

from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from avlib.plan import Plan


@runtime_checkable
class Task(Protocol):
    """An `Objective` for a Zorro, a `Writing` for a twin decoder, or one of your own."""

    def check_model(self, model: Any) -> None:
        """Refuse a model that cannot learn it."""

    def names(self, model: Any) -> tuple[str, ...]:
        """Those of the losses."""

    def settings(self) -> dict[str, Any]:
        """What a checkpoint must agree in, beside the names."""

    def unused(self, model: Any) -> bool:
        """Whether some weights get no gradient."""

    def batch(self, examples: Any) -> Any:
        """What the data hold, side by side."""

    def prepare(self, batch: Any, plan: Plan, step: int, rank: int) -> Any:
        """A batch as it is learned from in one step, something left out by chance."""

    def outputs(self, model: Any, batch: Any, through: nn.Module) -> tuple[Tensor, ...]:
        """What the model makes of it, when `through` is called in its place."""

    def found(self, model: Any, batch: Any, outputs: tuple[Tensor, ...]) -> Tensor:
        """The losses, over the outputs of all processes together."""
