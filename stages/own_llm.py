"""A tiny chat model of a dataset's own sentences, where no chat model is at hand or a tiny one never read them."""

import hashlib
import json
from pathlib import Path

from datasets.description import DatasetDescription
from models.tiny_llm import known_sentences, write_language_model

TINY = "tiny"  # --llm tiny
STEPS = 600  # of 16 chats


def language_model_for(llm: str, description: DatasetDescription, cache_dir: Path, seed: int = 0) -> str:
    """The chat model that a run reads: `llm` itself, or a tiny one of the dataset's own sentences.

    The latter for --llm tiny, and where `llm` is a tiny model of this project that never read these sentences: its
    text would stay near chance. It is trained once, in about a minute, and kept below `cache_dir`.
    """
    sentences = {text for texts in description.phrasings.values() for text in texts}
    known = None if llm == TINY else known_sentences(llm)
    if llm != TINY and (known is None or sentences <= known):
        return llm
    labels = range(len(description.classes))
    prompts = description.system_prompt, description.user_prompt
    conversations = [(*prompts, description.keywords[label], description.phrasings[label]) for label in labels]
    digest = hashlib.sha256(json.dumps([conversations, STEPS, seed]).encode()).hexdigest()
    folder = cache_dir / f"tiny_llm-{digest[:16]}"
    why = "--llm tiny" if llm == TINY else f"{llm} is a tiny chat model that never read the sentences of this dataset"
    if folder.is_dir():
        print(f"{why}: {folder}, which was trained on them, is taken")
        return str(folder)
    print(f"{why}: a tiny one is trained on them now and kept in {folder}; it knows nothing else")
    write_language_model(folder, conversations, seed, STEPS)
    return str(folder)
