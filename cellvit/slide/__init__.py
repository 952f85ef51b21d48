"""Reading images, cutting them into tiles, and joining the nuclei of the tiles."""
