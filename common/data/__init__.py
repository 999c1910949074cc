"""Data sets: loaded through public libraries, kept on the device as tensors where they are small."""
