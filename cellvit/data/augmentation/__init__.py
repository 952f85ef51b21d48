"""Augmentation of image and labels together."""
