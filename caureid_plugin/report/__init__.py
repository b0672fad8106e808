"""A run as one HTML page, and where its network looks."""
