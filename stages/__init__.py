"""What training and drawing share: a run's life, checkpoints, rows, tokens, targets, retrieval, pictures, scores."""

# --target of finetune_eeg_to_clip.py: where its classes are, so that a script's -h needs no slow import
TARGETS = {
    "image": "stages.targets:Images",
    "vision": "stages.targets:VisionLayers",
    "text": "stages.targets:Sentences",
    "text_states": "stages.targets:TextStates",
    "classes": "stages.targets:Classes",
    "vae_latent": "stages.targets:Latents",
    "structure": "stages.targets:Structure",
}
