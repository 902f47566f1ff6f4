"""What a training step keeps on the device, and less of it."""
