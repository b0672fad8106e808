"""What every part may use: files, images, text, processes, signals. Nothing of ReID."""
