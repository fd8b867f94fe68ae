"""Latents and measurements that objectives, terms, transforms and selectors share."""
