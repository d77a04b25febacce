"""A model with its optimizer, as what writes, saves and loads sees them."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from megatron_model.training.optimizer import Optimizer

Named = dict[str, Tensor]


class ModelStore(Protocol):
    """A model and its optimizer, which may be divided among processes."""

    @property
    def model(self) -> nn.Module:
        """What computes the steps."""

    @property
    def optimizer(self) -> Optimizer:
        """What changes its weights."""

    def inference_model(self) -> nn.Module:
        """Return the model as it is now, whole, to write with."""

    def weights(self) -> Named:
        """Return the model's weights by name, whole."""

    def optimizer_state(self) -> Named:
        """Return every tensor of the optimizer's state by name, whole."""

    def is_finite(self) -> bool:
        """Whether no weight is NaN or infinity."""

    def load(self, weights: Named, optimizer: Named) -> None:
        """Take over whole weights and a whole state, which fit."""


class WholeModel:
    """A model and an optimizer that are whole in this process."""

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        self.model = model
        self.optimizer = optimizer

    def inference_model(self) -> nn.Module:
        """Return the model itself."""
        return self.model

    def weights(self) -> Named:
        """Return the weights where they lie."""
        return dict(self.model.state_dict())

    def optimizer_state(self) -> Named:
        """Return the state where it lies."""
        return self.optimizer.state_tensors()

    def is_finite(self) -> bool:
        """Whether no weight is NaN or infinity."""
        return all(bool(weight.isfinite().all()) for weight in self.model.parameters())

    def load(self, weights: Named, optimizer: Named) -> None:
        """See `ModelStore`."""
        self.model.load_state_dict(weights)
        self.optimizer.load_state_tensors(optimizer)
