"""How the encoders of seen images were published: optimiser, batches, epochs, averaging; ATM's states.

Sources: docs/methods.md. Imports nothing slow: a script's -h reads it.
"""

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
    lr_schedule: str = "constant"


RECIPES = {
    "atm": Recipe(lambda_text=0.01),
    "nice": Recipe(lr=2e-4, betas=(0.5, 0.999), batch_size=1000, epochs=200, average_train=4, train_scale=False),
    "ubp": Recipe("adamw", 1e-4, 1e-4, epochs=50, average_train=4, unit_eeg=False),
    "de_mlp": Recipe(lr=1e-3, batch_size=80, epochs=1000),
    "eegnet": Recipe("sgd", 1e-2, 1e-3, batch_size=80, epochs=1000),
    "mlp": Recipe("sgd", 1e-4, 1e-4, batch_size=80, epochs=1000),
    "rgnn": Recipe(lr=1e-3, batch_size=80, epochs=1000),
    "low_level": Recipe("adamw", 1e-3, 1e-2, batch_size=30, epochs=200, lr_schedule="cosine"),
}


def recipe_of(name: str) -> Recipe:
    """An encoder's recipe; ATM's optimiser and batches for those that were published elsewhere, or not."""
    return RECIPES.get(name, Recipe())


# which of ATM's published states a file is from: all of them load in silence, and compute different things
ATM_KINDS = {
    "develop": {"keeps": "electrodes", "positions": "none"},  # branch develop's tokens, and the default here
    "paper": {"keeps": "subject_token", "positions": "none"},  # the main branch until December 2025
    "main": {"keeps": "subject_token", "positions": "sinusoid"},  # the main branch since
    "develop_sinusoid": {"keeps": "electrodes", "positions": "sinusoid"},
}
