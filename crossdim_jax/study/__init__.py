"""Studies: a grid of trainings, and the paired analysis of what came out."""
