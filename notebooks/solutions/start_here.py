"""Solutions to notebook 00. A teacher may delete this folder: nothing needs it but its tests."""


def count_patches(height, width, patch):
    return (height // patch) * (width // patch)
