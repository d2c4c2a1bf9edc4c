"""Presets against the frameworks whose names they bear."""
