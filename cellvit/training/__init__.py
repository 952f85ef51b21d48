"""Training: fine-tuning from other weights, freezing of parts, compiled training steps."""
