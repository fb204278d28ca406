"""How the encoders of seen images were published to be trained: optimiser, batches, epochs, averaging. Sources: docs/methods.md."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """What an encoder was published with, where --target is what it was published for (spec: docs/methods.md)."""

    optimizer: str = "adam"
    lr: float = 3e-4
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    batch_size: int = 1024
    epochs: int = 40
    average_train: int = 1
    lambda_text: float = 0.0
    train_scale: bool = True
    unit_eeg: bool = True


RECIPES = {
    "atm": Recipe(lambda_text=0.01),
    "nice": Recipe(lr=2e-4, betas=(0.5, 0.999), batch_size=1000, epochs=200, average_train=4, train_scale=False),
    "ubp": Recipe("adamw", 1e-4, 1e-4, epochs=50, average_train=4, unit_eeg=False),
    "de_mlp": Recipe(lr=1e-3, batch_size=80, epochs=1000),
    "eegnet": Recipe("sgd", 1e-2, 1e-3, batch_size=80, epochs=1000),
    "mlp": Recipe("sgd", 1e-4, 1e-4, batch_size=80, epochs=1000),
    "rgnn": Recipe(lr=1e-3, batch_size=80, epochs=1000),
}
