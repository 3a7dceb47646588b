"""Weight files: their form, their record, and how they enter a network."""
