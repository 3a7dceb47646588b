"""BraTS: brain tumours in four MR sequences."""
