"""What makes a model `from_pretrained`, `save_pretrained` and `push_to_hub`: config.json beside model.safetensors."""

from huggingface_hub import PyTorchModelHubMixin


class OnHub(PyTorchModelHubMixin, library_name="eeg2image", tags=["eeg"], license="mit"):
    """Of models whose constructor takes plain values alone, which become config.json; weights keep their names.

    `from_pretrained` gives the model in evaluation mode. Unlike the library's own it loads all weights or raises
    RuntimeError: a weight that a file lacks would stay random in silence.
    """

    @classmethod
    def _from_pretrained(cls, *, strict: bool = True, **where) -> "OnHub":
        return super()._from_pretrained(strict=strict, **where)
