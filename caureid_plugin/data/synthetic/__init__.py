"""The dataset that needs no download: drawn people, seen by drawn cameras."""
