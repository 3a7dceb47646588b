"""Cases and images: their geometry, their file formats, and their preparation for a network."""
