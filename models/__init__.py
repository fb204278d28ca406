"""Encoders, token pooling, projection, language model, mapper, targets, image models. Never imports datasets/.

The tables below are what flags choose from. An entry is a class or function, or where it is, "module:name": so that a
script's -h needs no slow import.
"""

import importlib
import logging
import os
from collections.abc import Callable, Mapping

# What these libraries say while they are imported concerns optional parts that nothing here uses.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

# --encoder of all training scripts, whose features are pooled into tokens: models/token_encoders.py says what they have
FEATURE_ENCODERS = {
    "csbrain": "models.CSBrain:CSBrain",
    "eegnet": "models.token_encoders:EEGNet",
    "eegnet_8_2": "models.token_encoders:EEGNet",  # its name where eegnet is EEG-ImageNet's
    "shallow": "models.token_encoders:ShallowFBCSPNet",
    "evoked": "models.token_encoders:EvokedSamples",
    "braindecode:": "models.braindecode_encoders:encoder_named",  # of the rest of the name; optional library
}
# --encoder of finetune_eeg_to_clip.py, which give one embedding: models/eeg_encoders.py. Its eegnet is EEG-ImageNet's
EMBEDDERS = {
    "atm": "models.eeg_encoders:ATM",
    "nice": "models.eeg_encoders:NICE",
    "ubp": "models.eeg_encoders:UBP",
    "sgdm": "models.eeg_encoders:SGDM",
    "low_level": "models.eeg_encoders:LowLevel",
    "de_mlp": "models.eeg_encoders:DEMapper",
    "mlp": "models.eeg_encoders:DEClassifier",
    "rgnn": "models.eeg_encoders:RGNN",
    "eegnet": "models.eeg_encoders:ImageNetEEGNet",
}
ENCODERS = EMBEDDERS | FEATURE_ENCODERS
# --token_pooling: functions (electrode names, region names), in the encoder's order → {group: positions}
POOLINGS = {
    "region": "models.poolings:region",
    "hemisphere": "models.poolings:hemisphere",
    "electrode": "models.poolings:electrode",
}
# --adapter of finetune_eeg_llm.py: classes (n_tokens, width), tokens → tokens
ADAPTERS = {"mixer": "models.token_adapters:TokenMixer"}
# --augment: functions of a training batch; what is random stands here and never in an encoder's prepare
AUGMENTATIONS = {
    "amplitude": "models.augmentations:amplitude",  # a gain a trial
    "shift": "models.augmentations:shift",  # circular, in time
    "mirror": "models.augmentations:Mirror",  # left and right exchanged, and the classes that have a side
    "cutmix": "models.augmentations:cutmix",  # a piece of another trial of the class
}
# --objective of finetune_eeg_to_clip.py, beside those that are not contrastive: functions, see models/contrastive.py
CONTRASTIVE = {
    "nce": "models.contrastive:info_nce"  # symmetric InfoNCE
}
# --geometry of retrieve.py: functions of one person's embeddings and the candidates, see models/geometry.py
GEOMETRIES = {
    "plain": "models.geometry:plain",
    "whiten": "models.geometry:whiten",
    "csls": "models.geometry:csls",
    "procrustes": "models.geometry:procrustes",
}
# --mapper: see models/eeg_clip_mapper.py
MAPPERS = {
    "qformer": "models.eeg_clip_mapper:QFormerMapper",
    "mlp": "models.eeg_clip_mapper:MLPMapper",
    "linear": "models.eeg_clip_mapper:LinearMapper",
}
# baseline.py --model: see models/baselines.py
BASELINES = {
    "best_constant": "models.baselines:BestConstant",
    "recording_only": "models.baselines:RecordingOnly",
    "bandpower_lda": "models.baselines:bandpower_lda",
    "csp_lda": "models.baselines:csp_lda",
    "tangent_space": "models.baselines:tangent_space",
    "filterbank_tangent": "models.baselines:filterbank_tangent",
    "samples_lda": "models.baselines:samples_lda",
    "xdawn_tangent": "models.baselines:xdawn_tangent",
    "eegnet": "models.baselines:eegnet",
    "shallow": "models.baselines:shallow",
    "atcnet": "models.baselines:atcnet",
    "braindecode:": "models.baselines:of_braindecode",
    "linear_probe": "models.baselines:linear_probe",
    "mlp": "models.baselines:mlp",
    "ridge": "models.baselines:ridge",
    "knn": "models.baselines:knn",
    "forest": "models.baselines:forest",
    "svm": "models.baselines:svm",
}
# class named in an image model's model_index.json → its family, see models/image_generator.py
IMAGE_FAMILIES = {
    "StableDiffusionPipeline": "models.image_generator:StableDiffusion",
    "StableDiffusionXLPipeline": "models.image_generator:StableDiffusionXL",
    "AmusedPipeline": "models.image_generator:Amused",
}
# --scheduler: functions that give an image model its sampler
SCHEDULERS = {
    "dpm": "models.image_generator:published_sampler",  # the family's own
    "pndm": "models.image_generator:pndm",
}


def is_in(table: Mapping, name: str) -> bool:
    """Whether a table has an entry for a name: its own, or its family's, "braindecode:" for "braindecode:BIOT"."""
    family, mark, rest = name.partition(":")
    return (name in table and not name.endswith(":")) or bool(rest and family + mark in table)


def choose(table: Mapping, name: str) -> Callable:
    """The class or function that a table has under a name; of a family's entry, what it makes of the name's rest."""
    family, mark, rest = name.partition(":")
    entry = table[name] if name in table else table[family + mark]
    if isinstance(entry, str):
        module, _, attribute = entry.partition(":")
        entry = getattr(importlib.import_module(module), attribute)
    return entry if name in table else entry(rest)
