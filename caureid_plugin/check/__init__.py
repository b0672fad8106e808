"""Looks at images and their clustering before anything is trained."""
